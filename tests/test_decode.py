"""Decoding against brute force over all alignments, torch's CTC loss and Python's regular expressions."""

from __future__ import annotations

import itertools
import random
import re
import time
from collections import defaultdict
from collections.abc import Callable, Sequence

import numpy as np
import numpy.typing as npt
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from recognizer.charset import NAMED, Charset
from recognizer.decode import Constraint, Path, beam, best_path, greedy, sequence_probabilities, sequence_probability
from recognizer.errors import UserError
from recognizer.reader import constraint_of

Ids = tuple[int, ...]
ABC = Charset("abc")
MIXED = Charset("01aBL-")


def random_log_probs(seed: int, *shape: int, sharpness: float = 2.0) -> npt.NDArray[np.float32]:
    logits = np.random.default_rng(seed).normal(size=shape) * sharpness
    return np.asarray(logits - np.log(np.exp(logits).sum(axis=-1, keepdims=True)), dtype=np.float32)


def random_automaton(seed: int, states: int = 4) -> Constraint:
    rng = np.random.default_rng(seed)
    transitions = rng.integers(-1, states, size=(states, ABC.classes)).astype(np.int32)
    transitions[:, 0] = -1
    accepting = rng.random(states) < 0.4
    return Constraint(transitions, accepting, "random") & Constraint.characters("abc", ABC)


def admissible_automata(count: int) -> list[Constraint]:
    found: list[Constraint] = []
    for seed in itertools.count():
        try:
            found.append(random_automaton(seed))
        except UserError:
            continue
        if len(found) == count:
            break
    return found


def collapse(alignment: Sequence[int]) -> Ids:
    return tuple(c for c, _ in itertools.groupby(alignment) if c)


def alignments(log_probs: npt.NDArray[np.float32]) -> list[tuple[Ids, float]]:
    """The text and log-probability of every alignment."""
    frames, classes = log_probs.shape
    rows = log_probs.astype(np.float64).tolist()
    return [
        (collapse(path), sum(row[c] for row, c in zip(rows, path, strict=True)))
        for path in itertools.product(range(classes), repeat=frames)
    ]


def by_text(log_probs: npt.NDArray[np.float32], admits: Callable[[Ids], bool]) -> dict[Ids, float]:
    """Log-probability of every text that fits, by summing its alignments."""
    sums: dict[Ids, float] = defaultdict(float)
    for text, score in alignments(log_probs):
        if admits(text):
            sums[text] += float(np.exp(score))
    return {text: float(np.log(p)) for text, p in sums.items()}


def torch_log_probability(log_probs: npt.NDArray[np.float32], texts: Sequence[Sequence[int]]) -> list[float]:
    pictures, frames, _ = log_probs.shape
    loss: list[float] = torch.nn.functional.ctc_loss(
        torch.from_numpy(log_probs.astype(np.float64)).transpose(0, 1),
        torch.tensor([c for text in texts for c in text], dtype=torch.long),
        torch.full((pictures,), frames),
        torch.tensor([len(text) for text in texts]),
        reduction="none",
    ).tolist()
    return [-value for value in loss]


def frames_of(classes: str, charset: Charset, p: float = 0.9) -> npt.NDArray[np.float32]:
    """Log-probabilities in which each frame shows one character ('_' the blank) with probability p."""
    probs = np.full((len(classes), charset.classes), (1 - p) / (charset.classes - 1), dtype=np.float32)
    for row, c in zip(probs, classes, strict=True):
        row[0 if c == "_" else charset.encode(c)[0]] = p
    return np.log(probs)


@pytest.mark.parametrize(
    ("shown", "text"),
    [("aa", "a"), ("a_a", "aa"), ("aabb", "ab"), ("_a__ab_", "aab"), ("___", ""), ("abab", "abab"), ("c", "c")],
)
def test_greedy_merges_repeats_and_keeps_doubles(shown: str, text: str) -> None:
    path = greedy(frames_of(shown, ABC)[None])[0]
    assert ABC.decode(path.ids) == text
    assert path.confidences == pytest.approx([0.9] * len(text))


def test_greedy_confidence_is_the_best_frame_of_the_run() -> None:
    log_probs = frames_of("aa_ab", ABC)
    log_probs[0] = frames_of("a", ABC, p=0.6)[0]
    log_probs[1] = frames_of("a", ABC, p=0.7)[0]
    assert greedy(log_probs[None])[0].confidences == pytest.approx([0.7, 0.9, 0.9])


def test_greedy_of_a_batch_is_each_picture_alone_and_the_plain_definition() -> None:
    log_probs = random_log_probs(0, 40, 9, 4)
    paths = greedy(log_probs)
    for picture, path in zip(log_probs, paths, strict=True):
        assert path == greedy(picture[None])[0]
        assert path.ids == collapse(picture.argmax(axis=1).tolist())
    assert greedy(log_probs[:0]) == []
    assert greedy(np.log(np.ones((1, 3, 1), dtype=np.float32))) == [Path((), ())]


def test_sequence_probability_is_the_ctc_loss_of_torch() -> None:
    rng = random.Random(0)
    for frames, classes, longest in [(1, 3, 2), (5, 3, 5), (12, 5, 6), (24, 40, 8), (500, 12, 60)]:
        texts = [[rng.randrange(1, classes) for _ in range(rng.randint(0, longest))] for _ in range(40)]
        log_probs = random_log_probs(frames, 40, frames, classes)
        expected = torch_log_probability(log_probs, texts)
        np.testing.assert_allclose(sequence_probabilities(log_probs, texts), expected, rtol=1e-9, atol=1e-9)
        for picture, text, one in zip(log_probs[:5], texts, expected, strict=False):
            assert sequence_probability(picture, text) == pytest.approx(one)


def test_sequence_probability_of_doubles_and_of_what_does_not_fit() -> None:
    log_probs = random_log_probs(1, 1, 4, 3)
    assert sequence_probability(log_probs[0], [1, 1, 1]) == -np.inf
    assert sequence_probability(log_probs[0], [1, 1]) == pytest.approx(torch_log_probability(log_probs, [[1, 1]])[0])


def test_sequence_probability_does_not_underflow_where_a_sure_picture_shows_another_text() -> None:
    log_probs = random_log_probs(2, 1, 500, 5, sharpness=60.0)
    text = [1, 2, 2, 3] * 20
    found = sequence_probability(log_probs[0], text)
    assert found == pytest.approx(torch_log_probability(log_probs, [text])[0])
    assert found < -1000


@pytest.mark.parametrize(("frames", "classes"), [(1, 4), (3, 4), (4, 3), (5, 4)])
def test_unlimited_beam_is_brute_force(frames: int, classes: int) -> None:
    for seed in range(4):
        log_probs = random_log_probs(seed, frames, classes)
        expected = by_text(log_probs, lambda text: True)
        found = beam(log_probs, width=10_000, n_best=10_000)
        assert len(found) == len(expected)
        assert dict(found) == pytest.approx(expected)
        assert [score for _, score in found] == sorted((score for _, score in found), reverse=True)


def test_unlimited_beam_under_a_constraint_is_brute_force() -> None:
    for seed, constraint in enumerate(admissible_automata(12)):
        log_probs = random_log_probs(seed, 5, 4)
        expected = by_text(log_probs, constraint.accepts)
        assert dict(beam(log_probs, width=10_000, n_best=10_000, constraint=constraint)) == pytest.approx(expected)


def plain_beam(log_probs: npt.NDArray[np.float32], width: int) -> set[Ids]:
    """Hannun's algorithm 1 without a language model, prefix by prefix and character by character."""
    kept: dict[Ids, tuple[float, float]] = {(): (1.0, 0.0)}
    for frame in np.exp(log_probs.astype(np.float64)).tolist():
        sums: dict[Ids, list[float]] = defaultdict(lambda: [0.0, 0.0])
        for prefix, (blank, label) in kept.items():
            sums[prefix][0] += frame[0] * (blank + label)
            if prefix:
                sums[prefix][1] += frame[prefix[-1]] * label
            for c in range(1, len(frame)):
                sums[(*prefix, c)][1] += frame[c] * (blank if prefix[-1:] == (c,) else blank + label)
        best = sorted((item for item in sums.items() if sum(item[1]) > 0), key=lambda item: -sum(item[1]))
        kept = {prefix: (blank, label) for prefix, (blank, label) in best[:width]}
    return set(kept)


@pytest.mark.parametrize(("width", "classes"), [(1, 4), (2, 4), (3, 4), (5, 4), (9, 4), (9, 90)])
def test_narrow_beam_keeps_what_the_plain_algorithm_keeps(width: int, classes: int) -> None:
    for seed in range(10):
        log_probs = random_log_probs(seed, 10, classes, sharpness=1.0)
        found = beam(log_probs, width=width, n_best=width)
        assert len(found) == width
        assert {text for text, _ in found} == plain_beam(log_probs, width)


def test_beam_finds_the_text_that_the_best_path_misses() -> None:
    # Graves's example: each frame says blank first, yet "a" gathers three alignments.
    log_probs = np.log(np.array([[0.6, 0.4, 1e-9], [0.6, 0.4, 1e-9]], dtype=np.float32))
    assert greedy(log_probs[None])[0].ids == ()
    assert beam(log_probs)[0][0] == (1,)
    assert beam(log_probs)[0][1] == pytest.approx(np.log(0.64))


def test_beam_scores_are_exact_whatever_the_width() -> None:
    log_probs = random_log_probs(3, 12, 8)
    for text, score in beam(log_probs, width=3, n_best=3):
        assert score == pytest.approx(torch_log_probability(log_probs[None], [text])[0])
    assert len(beam(log_probs, width=3, n_best=9)) == 3


def test_beam_is_not_empty_where_the_constraint_admits_only_the_improbable() -> None:
    log_probs = frames_of("a_b_c_", ABC, p=0.9999)
    constraint = Constraint.lexicon(["cba"], ABC)
    found = beam(log_probs, width=1, constraint=constraint)
    assert [ABC.decode(text) for text, _ in found] == ["cba"]
    assert beam(log_probs[:2], constraint=constraint) == []


def test_best_path_is_brute_force_over_admitted_alignments() -> None:
    told_apart = 0
    for seed, constraint in enumerate(admissible_automata(60)):
        log_probs = random_log_probs(seed, 1 + seed % 5, 4)
        admitted = [(score, text) for text, score in alignments(log_probs) if constraint.accepts(text)]
        expected = max(admitted)[1] if admitted else None
        assert best_path(log_probs, constraint) == expected
        told_apart += expected != greedy(log_probs[None])[0].ids
    assert told_apart > 20


def test_best_path_in_a_longer_loop_is_brute_force() -> None:
    transitions = np.full((3, 3), -1, dtype=np.int32)
    transitions[:, 1] = transitions[:, 2] = [1, 2, 0]
    thirds = Constraint(transitions, np.array([True, False, False]), "any text of 0, 3, 6 characters")
    for seed in range(12):
        log_probs = random_log_probs(seed, 8, 3, sharpness=4.0)
        admitted = [(score, text) for text, score in alignments(log_probs) if len(text) % 3 == 0]
        assert best_path(log_probs, thirds) == max(admitted)[1]


def test_best_path_writes_doubles_with_a_blank_between() -> None:
    double = Constraint.lexicon(["aa"], ABC)
    assert best_path(frames_of("aab", ABC), double) == (1, 1)
    assert best_path(frames_of("aa", ABC), double) is None
    assert best_path(frames_of("_", ABC), Constraint.lexicon([""], ABC)) == ()
    assert best_path(frames_of("a", ABC), Constraint.lexicon([""], ABC)) == ()


def texts_upto(charset: Charset, longest: int) -> list[str]:
    return ["".join(t) for n in range(longest + 1) for t in itertools.product(charset.characters, repeat=n)]


@pytest.mark.parametrize(
    ("pattern", "expression"),
    [
        ("LLDD", "[aBL][aBL][01][01]"),
        ("U?A", "[BL]?[01aBL]"),
        (r".\-D", "[01aBL-]-[01]"),
        (r"\L{2}", "L{2}"),
        ("[a-zL-]{1,3}", "[aL-]{1,3}"),
        (r"[\-0]D?D?", "[-0][01]?[01]?"),
        ("D{0,2}[0]D{0,2}", "[01]{0,2}0[01]{0,2}"),
        ("A?A?a?".replace("a", r"\a"), "[01aBL]?[01aBL]?a?"),
        ("L{0}D", "[01]"),
        ("[xyz]?D", "[01]"),
    ],
)
def test_a_pattern_admits_what_the_regular_expression_matches(pattern: str, expression: str) -> None:
    constraint = Constraint.pattern(pattern, MIXED)
    for text in texts_upto(MIXED, 4):
        assert constraint.accepts(MIXED.encode(text)) == bool(re.fullmatch(expression, text)), text


@pytest.mark.parametrize(
    ("pattern", "says"),
    [
        ("LLX", r"write \\X"),
        ("L*", r"write \\\*"),
        ("-D", r"write \\-"),
        ("[^0]", "not understood"),
        ("[]", "not understood"),
        ("[ab", "not understood"),
        ("L\\", "not understood"),
        ("L{,3}", "not understood"),
        ("L??", "not understood"),
        ("D{3,2}", "at least 3 and at most 2"),
        ("[z-a]", "runs backwards"),
        ("", "is empty"),
        ("D[xyz]", "admits no text"),
        (r"\x{2}", "admits no text"),
        (r".{0,40}\a.{40}", "too ambiguous"),
    ],
)
def test_a_pattern_is_refused_in_one_line(pattern: str, says: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("recognizer.decode.MOST_STATES", 500)
    with pytest.raises(UserError, match=says) as refused:
        Constraint.pattern(pattern, MIXED)
    assert f"pattern '{pattern}'" in str(refused.value)
    assert "\n" not in str(refused.value)


@pytest.mark.parametrize("length", ["", "0", "six", "6-4", "-3", "3-", "4-6-8", "1000"])
def test_a_length_is_refused(length: str) -> None:
    with pytest.raises(UserError, match=f"length '{length}'"):
        Constraint.length(length, ABC)


def test_lengths_characters_and_lexicon_admit_what_they_say() -> None:
    length = Constraint.length("2-3", ABC)
    characters = Constraint.characters("ac", ABC)
    lexicon = Constraint.lexicon(["ab", "abc", "ca", "c"], ABC)
    for text in texts_upto(ABC, 5):
        ids = ABC.encode(text)
        assert length.accepts(ids) == (2 <= len(text) <= 3)
        assert characters.accepts(ids) == (set(text) <= set("ac"))
        assert lexicon.accepts(ids) == (text in {"ab", "abc", "ca", "c"})
        assert (length & characters & lexicon).accepts(ids) == (text == "ca")
    assert Constraint.length("2", ABC).accepts([1, 1])


def test_no_state_of_an_intersection_is_a_dead_end() -> None:
    both = Constraint.lexicon(["abcab", "ab", "cb", "cba"], ABC) & Constraint.length("2-4", ABC)
    assert len(both.accepting) == 6  # "", a, ab, c, cb, cba: nothing of the word that is too long
    assert both.transitions[0].tolist().count(-1) == 2


def test_what_admits_no_text_is_refused() -> None:
    with pytest.raises(UserError, match="no text fits length 2 and pattern 'LLL' at once"):
        Constraint.length("2", ABC) & Constraint.pattern("LLL", ABC)
    with pytest.raises(UserError, match="lexicon is empty"):
        Constraint.lexicon([], ABC)
    with pytest.raises(UserError, match="'x'"):
        Constraint.lexicon(["ab", "ax"], ABC)
    with pytest.raises(UserError, match="'x'"):
        Constraint.characters("ax", ABC)
    with pytest.raises(UserError, match="allowed characters are empty"):
        Constraint.characters("", ABC)


def test_what_fits_no_picture_is_refused() -> None:
    Constraint.length("3", ABC).must_fit(3)
    with pytest.raises(UserError, match="no text of length 3 fits the 2 frames"):
        Constraint.length("3", ABC).must_fit(2)
    Constraint.lexicon(["aa"], ABC).must_fit(3)
    with pytest.raises(UserError, match="a lexicon of 1 words"):
        Constraint.lexicon(["aa"], ABC).must_fit(2)


ITEMS = {"D": "[01]", "L": "[aBL]", "U": "[BL]", "A": "[01aBL]", ".": "[01aBL-]", r"\-": "-", "[aL]": "[aL]"}
COUNTS = st.sampled_from(["", "?", "{2}", "{1,2}", "{0,3}"])
FORMS = st.lists(st.tuples(st.sampled_from(sorted(ITEMS)), COUNTS), min_size=1, max_size=4)


@given(form=FORMS, seed=st.integers(0, 10**6), frames=st.integers(1, 12), longest=st.integers(1, 6))
@settings(max_examples=60, deadline=None)
def test_only_admitted_texts_are_ever_returned(
    form: list[tuple[str, str]], seed: int, frames: int, longest: int
) -> None:
    expression = re.compile("".join(ITEMS[what] + count for what, count in form))
    log_probs = random_log_probs(seed, frames, MIXED.classes)
    try:
        constraint = Constraint.pattern("".join(map("".join, form)), MIXED) & Constraint.length(f"1-{longest}", MIXED)
    except UserError:
        assert not any(expression.fullmatch(text) for text in texts_upto(MIXED, min(longest, 3)) if text)
        return
    found = [text for text, _ in beam(log_probs, width=4, n_best=4, constraint=constraint)]
    path = best_path(log_probs, constraint)
    assert (path is None) == (not found)
    for text in [MIXED.decode(ids) for ids in [*found, path or ()] if ids]:
        assert expression.fullmatch(text)
        assert 1 <= len(text) <= longest


def test_a_lexicon_of_ten_thousand_words_is_decoded_in_time() -> None:
    charset = Charset.named("lower+digits")
    rng = random.Random(0)
    words = sorted({"".join(rng.choices(charset.characters, k=rng.randint(4, 8))) for _ in range(10_000)})
    word = next(word for word in words if len(word) == 7 and len(set(word)) == 7)
    misread = next(c for c in charset.characters if c not in word)
    log_probs = frames_of("_" + "__".join(f"{c}{c}" for c in word[:3] + misread + word[4:]) + "__", charset)
    start = time.perf_counter()
    constraint = Constraint.lexicon(words, charset)
    built = time.perf_counter()
    found = best_path(log_probs, constraint)
    decoded = time.perf_counter()
    assert found is not None
    assert charset.decode(found) == word
    assert built - start < 3
    assert decoded - built < 3


def test_a_named_set_of_which_the_reader_knows_nothing_is_refused() -> None:
    lower = Charset("".join(sorted(NAMED["lower"])))
    for name in ("upper", "digits"):
        with pytest.raises(UserError, match=f"--charset {name}: the reader knows none of these, it reads abc"):
            constraint_of(lower, name)
    known = constraint_of(Charset("01ab"), "digits")
    assert known is not None and known.accepts([1, 2]) and not known.accepts([3])
