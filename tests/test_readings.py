"""Figures about readings against published values, plain definitions and cases worked by hand."""

from __future__ import annotations

import itertools
import json
import math
import random
from collections import Counter

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from recognizer.errors import UserError
from recognizer.readings import (
    KINDS,
    Reading,
    Scores,
    all_characters,
    auroc,
    binary_accuracy,
    calibration_error,
    character_error_rate,
    confusions,
    error_kinds,
    exact_match,
    mcnemar,
    paired_difference,
    per_character,
    per_position,
    wilson,
    worst_confusions,
)

PAIRS = [("0012", "0012"), ("AbC", "abC"), ("O0", "00"), ("abc", "ac"), ("ab", "abb")]


def plain_distance(a: str, b: str) -> int:
    """Edit distance by its recursive definition."""
    if not a or not b:
        return len(a) + len(b)
    swap = plain_distance(a[1:], b[1:]) + (a[0] != b[0])
    return min(swap, plain_distance(a[1:], b) + 1, plain_distance(a, b[1:]) + 1)


def test_a_reading_is_frozen() -> None:
    reading = Reading("a1", 0.5, (("a", 0.9), ("1", 0.6)))
    assert reading.nll is None
    with pytest.raises(AttributeError):
        reading.text = "b"  # type: ignore[misc]


@pytest.mark.parametrize(
    ("successes", "n", "low", "high"),
    # Newcombe, "Two-sided confidence intervals for the single proportion", 1998, table I, method 3.
    [(81, 263, 0.2553, 0.3662), (15, 148, 0.0624, 0.1605), (0, 20, 0.0, 0.1611), (1, 29, 0.0061, 0.1718)],
)
def test_wilson_gives_published_intervals(successes: int, n: int, low: float, high: float) -> None:
    assert wilson(successes, n) == pytest.approx((low, high), abs=5e-5)
    assert wilson(n - successes, n) == pytest.approx((1 - high, 1 - low), abs=5e-5)


def test_wilson_at_the_ends() -> None:
    assert wilson(0, 0) == (0.0, 1.0)
    assert wilson(0, 7)[0] == 0.0
    assert wilson(7, 7)[1] == 1.0
    assert wilson(5, 10, z=2.5758)[0] < wilson(5, 10)[0]


def test_exact_match_and_character_error_rate_by_hand() -> None:
    assert exact_match(PAIRS) == 1 / 5
    assert exact_match(PAIRS, fold_case=True) == 2 / 5
    assert character_error_rate(PAIRS) == 4 / 14
    assert character_error_rate([("a", "bcd"), ("", "")]) == 3.0


def test_confusions_by_hand() -> None:
    assert confusions(PAIRS) == Counter({("A", "a"): 1, ("O", "0"): 1, ("b", ""): 1, ("", "b"): 1})
    assert confusions([("O1O", "010"), ("0O", "00"), ("I", "")]) == Counter({("O", "0"): 3, ("I", ""): 1})
    assert worst_confusions([("xO1O", "y010"), ("I", "")], n=2) == [(("O", "0"), 2), (("I", ""), 1)]
    assert worst_confusions([("a", "a")]) == []


@pytest.mark.parametrize(
    ("truth", "read", "kinds"),
    [
        ("abc", "abc", {}),
        ("aOc", "a0c", {"one character for another": 1}),
        ("aOc", "aoc", {"case only": 1}),
        ("abc", "ac", {"lost": 1}),
        ("abbc", "abc", {"lost beside its like": 1}),
        ("ac", "abc", {"added": 1}),
        ("abc", "abbc", {"added beside its like": 1}),
        ("arnb", "amb", {"two read as one": 1}),
        ("amb", "arnb", {"one read as two": 1}),
        ("rnOa", "m0a", {"two read as one": 1, "one character for another": 1}),
        ("", "a", {"added": 1}),
        ("ab", "", {"lost": 2}),
    ],
)
def test_error_kinds_by_hand(truth: str, read: str, kinds: dict[str, int]) -> None:
    assert error_kinds([(truth, read)]) == kinds
    assert set(kinds) <= set(KINDS)


SHORT = st.text(alphabet="ab0O", max_size=5)


@given(pairs=st.lists(st.tuples(SHORT, SHORT), min_size=1, max_size=4))
@settings(max_examples=60, deadline=None)
def test_the_alignment_is_minimal_and_accounts_for_every_character(pairs: list[tuple[str, str]]) -> None:
    found = confusions(pairs)
    kinds = error_kinds(pairs)
    assert kinds.total() + kinds["two read as one"] + kinds["one read as two"] == found.total()
    assert found.total() == sum(plain_distance(truth, read) for truth, read in pairs)
    assert all(truth != read for truth, read in found)
    scores = per_character(pairs)
    for c, score in scores.items():
        assert score.support == sum(truth.count(c) for truth, _ in pairs)
        lost = sum(count for (truth, _), count in found.items() if truth == c)
        added = sum(count for (_, read), count in found.items() if read == c)
        read = sum(text.count(c) for _, text in pairs)
        assert score.support - lost == read - added
        assert score.recall == ((score.support - lost) / score.support if score.support else 0.0)
        assert score.precision == ((read - added) / read if read else 0.0)
        both = score.precision + score.recall
        assert score.f1 == pytest.approx(2 * score.precision * score.recall / both if both else 0.0)


def test_per_position_by_hand() -> None:
    scores = per_position([("abc", "abc"), ("abc", "xbc"), ("abc", "bc"), ("ab", "abz"), ("", "q")])
    assert scores[0] == (2 / 3, 2 / 4, 4 / 7, 4), "x for a, and a lost"
    assert scores[1] == (4 / 5, 1.0, 8 / 9, 4), "z was added behind the b of ab"
    assert scores[2] == (1.0, 1.0, 1.0, 3)
    assert per_position([("", "")]) == []


@given(pairs=st.lists(st.tuples(SHORT, SHORT), min_size=1, max_size=4))
@settings(max_examples=60, deadline=None)
def test_all_characters_are_what_the_positions_and_the_characters_add_up_to(pairs: list[tuple[str, str]]) -> None:
    whole, parts = all_characters(pairs), per_character(pairs)
    right = sum(round(s.recall * s.support) for s in parts.values())
    assert whole.support == sum(s.support for s in parts.values()) == sum(s.support for s in per_position(pairs))
    assert whole.recall * whole.support == pytest.approx(right)
    assert sum(s.recall * s.support for s in per_position(pairs)) == pytest.approx(right)
    assert whole.precision * sum(len(read) for _, read in pairs) == pytest.approx(right)


def test_binary_accuracy_of_saying_nothing_is_high() -> None:
    """8 positions of 63 classes: the figure that the field's older notes watched is .968 before anything is read."""
    truths = ["abcdefgh", "hgfedcba"]
    assert binary_accuracy([(t, "") for t in truths], 63) == pytest.approx(1 - 2 / 63)
    assert binary_accuracy([(t, t) for t in truths], 63) == 1
    assert binary_accuracy([("abcd", "abxd")], 63) == pytest.approx(1 - 2 / (4 * 63))
    assert binary_accuracy([("ab", "a"), ("abcd", "abcd")], 5) == pytest.approx(1 - 2 / 40)


def test_per_character_by_hand() -> None:
    scores = per_character([("OO0", "O00"), ("0", "0"), ("x", "")])
    assert scores == {"0": (2 / 3, 1.0, 0.8, 2), "O": (1.0, 0.5, 2 / 3, 2), "x": (0.0, 0.0, 0.0, 1)}
    assert per_character([("a", "b")])["b"].support == 0


def test_mcnemar_by_hand_and_symmetric() -> None:
    a = [True] * 9 + [False] + [True] * 50
    b = [False] * 9 + [True] + [True] * 50
    assert mcnemar(a, b) == 22 / 1024
    assert mcnemar(b, a) == 22 / 1024
    assert mcnemar(a, b, mid=True) == mcnemar(b, a, mid=True) == 12 / 1024, "less half of what is as likely"
    assert mcnemar(a, a) == mcnemar(a, a, mid=True) == 1.0
    assert mcnemar([True, False], [False, True]) == 1.0
    with pytest.raises(ValueError):
        mcnemar([True], [True, False])


def test_mcnemar_is_the_share_of_all_outcomes_at_least_as_uneven() -> None:
    for n in (1, 4, 7):
        for only_a in range(n + 1):
            flips = itertools.product([0, 1], repeat=n)
            as_uneven = sum(abs(2 * sum(flip) - n) >= abs(2 * only_a - n) for flip in flips)
            right_a = [i < only_a for i in range(n)]
            assert mcnemar(right_a, [not right for right in right_a]) == pytest.approx(as_uneven / 2**n)


def test_mcnemar_holds_for_many_pictures() -> None:
    a = [True] * 1100 + [False] * 900
    p = mcnemar(a, [not right for right in a])
    normal = math.erfc((abs(1100 - 900) - 1) / math.sqrt(2000) / math.sqrt(2))
    assert p == pytest.approx(normal, rel=0.02)


def test_a_paired_difference_of_one_seed_is_mcnemars() -> None:
    rng = np.random.default_rng(1)
    a = rng.random((1, 400)) < 0.8
    b = a ^ (rng.random((1, 400)) < np.where(a, 0.02, 0.3))
    found = paired_difference(a, b)
    assert found.mean == pytest.approx(b.mean() - a.mean())
    assert found.p == pytest.approx(mcnemar(a[0].tolist(), b[0].tolist()), abs=0.01)
    assert found.low < found.mean < found.high
    assert paired_difference(a, a).p == 1 and paired_difference(a, a).mean == 0


def test_a_paired_difference_counts_what_seeds_differ_by() -> None:
    """Two models that differ between seeds more than from each other: an interval over pictures alone would miss 0."""
    steady = np.repeat(np.arange(1000)[None] < 800, 3, 0)
    wavering = np.stack([np.arange(1000) < n for n in (700, 820, 900)])
    found = paired_difference(steady, wavering)
    assert found.low < -0.05 and found.high > 0.05 and found.mean == pytest.approx(0.0067, abs=1e-3)
    flipped = paired_difference(wavering, steady)
    assert flipped.mean == -found.mean and flipped.p == found.p


def test_scores_hold_what_evaluate_prints() -> None:
    scores = Scores.of(PAIRS)
    assert (scores.n, scores.exact, scores.exact_ignoring_case) == (5, 0.2, 0.4)
    assert scores.exact_interval == wilson(1, 5)
    assert scores.exact_ignoring_case_interval == wilson(2, 5)
    assert scores.character_error_rate == 4 / 14
    assert dict(scores.worst_confusions) == confusions(PAIRS)
    written = scores.to_dict()
    assert json.loads(json.dumps(written)) == written
    assert written["worst_confusions"][0] == {"truth": "", "read": "b", "count": 1}


def test_nothing_to_score_is_refused() -> None:
    for score in (exact_match, character_error_rate, Scores.of):
        with pytest.raises(UserError, match="no readings"):
            score([])
    with pytest.raises(UserError, match="no readings"):
        calibration_error([], [])
    with pytest.raises(UserError, match="all 2 true texts are empty"):
        character_error_rate([("", "a"), ("", "")])


def test_calibration_error_by_hand() -> None:
    # Two bins of three: |0.2 - 1/3| and |0.9 - 2/3|, each half of the mass.
    confidences = [0.9, 0.1, 0.8, 0.2, 1.0, 0.3]
    right = [True, False, False, True, True, False]
    assert calibration_error(confidences, right, bins=2) == pytest.approx((1 / 3 - 0.2 + 0.9 - 2 / 3) / 2)
    assert calibration_error([1.0, 0.0], [True, False]) == 0.0
    assert calibration_error([1.0, 1.0], [False, False]) == 1.0


def test_calibration_error_keeps_equal_confidences_together() -> None:
    assert calibration_error([0.9] * 10, [True] * 9 + [False]) == pytest.approx(0.0)
    order = list(range(30))
    random.Random(0).shuffle(order)
    confidences, right = [0.1 * (i % 7) for i in range(30)], [i % 3 == 0 for i in range(30)]
    shuffled = calibration_error([confidences[i] for i in order], [right[i] for i in order])
    assert shuffled == pytest.approx(calibration_error(confidences, right))


def test_auroc_is_the_share_of_pairs_in_order() -> None:
    rng = random.Random(0)
    confidences = [rng.randrange(12) / 12 for _ in range(80)]
    right = [rng.random() < 0.3 + 0.6 * c for c in confidences]
    hits = [c for c, r in zip(confidences, right, strict=True) if r]
    misses = [c for c, r in zip(confidences, right, strict=True) if not r]
    wins = sum((hit > miss) + 0.5 * (hit == miss) for hit in hits for miss in misses)
    assert auroc(confidences, right) == pytest.approx(wins / (len(hits) * len(misses)))
    assert auroc([0.1, 0.9], [False, True]) == 1.0
    assert auroc([0.5] * 4, [True, False] * 2) == 0.5
    assert math.isnan(auroc([0.1, 0.9], [True, True]))
    assert math.isnan(auroc([0.1, 0.9], [False, False]))
