"""Mining finds what is misread and asks for just that; fidelity keeps what still shows its text and copies nothing."""

from __future__ import annotations

import json
import math
import os
import shutil
import warnings
from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from conftest import CHARACTERS, Trained, augment, draw, draw_folder, random_labels, refusal
from PIL import Image

from augment.fidelity import (
    REFUSALS,
    Band,
    band_for,
    band_of,
    band_of_drawn,
    coverage_table,
    doubts,
    judge,
    near_copies,
    refusal_table,
)
from augment.method import Request, read_requests, write_requests
from augment.mining import Mined, by_look, fold_settings, hardness, mine, plan, swapped
from recognizer.errors import UserError
from recognizer.readings import Reading
from recognizer.samples import Sample, read_manifest, write_folder
from recognizer.training.checkpoint import read_weights
from recognizer.training.folds import folds_of
from recognizer.training.train import TrainSettings, train


def reading(text: str, nll: float = 0.0) -> Reading:
    return Reading(text, 0.5, (), nll)


@pytest.fixture(scope="module")
def samples(drawn: Path) -> list[Sample]:
    return list(read_manifest(drawn / "train"))


@pytest.fixture(scope="module")
def mined(samples: list[Sample]) -> Mined:
    """A reader that takes every 0 for 3 where it stands first, and one of three 1 for 2; it is the surer the later."""
    readings, ones = [], 0
    for k, sample in enumerate(samples):
        text = sample.text
        if text[0] == "0":
            text = "3" + text[1:]
        elif text[0] == "1":
            ones += 1
            text = ("2" if ones % 3 == 0 else "1") + text[1:]
        readings.append(reading(text, nll=(4.0 - k / 32) * len(text) if text != sample.text else 0.01))
    return mine(samples, readings)


# ------------------------------------------------------------------------------------------------------------- mining


def test_hardness_is_nats_a_character_and_bounded() -> None:
    assert hardness(reading("x", 3.0), "ab") == 1.5
    assert hardness(reading("x", math.inf), "ab") == 50.0


def test_mining_ranks_misread_samples_first_and_then_by_hardness(samples: list[Sample]) -> None:
    few = samples[:7]
    texts = [s.text for s in few]
    readings = [
        reading(texts[0], 0.001),  # read, and surely
        reading("9", 2.0 * len(texts[1])),
        reading(texts[2], 4.0 * len(texts[2])),  # read, and yet held the unlikeliest but one
        reading("9", 3.0 * len(texts[3])),
        reading(texts[4], 0.3),  # a little less likely than 0.8
        reading(texts[5], 0.2),  # a little more
        reading("", math.inf),
    ]
    found = mine(few, readings)
    assert [h.sample for h in found.hard] == [few[i] for i in (6, 3, 1, 2, 4)]
    assert [h.misread for h in found.hard] == [True, True, True, False, False]
    assert found.read == 7 and found.confused[texts[6][0], ""] >= 1
    assert [h.sample for h in mine(few, readings, near=0.85).hard] == [few[i] for i in (6, 3, 1, 2, 4, 5)]


def test_mining_counts_what_was_taken_for_what(mined: Mined, samples: list[Sample]) -> None:
    zeros = sum(s.text[0] == "0" for s in samples)
    ones = sum(s.text[0] == "1" for s in samples) // 3
    assert mined.confused == Counter({("0", "3"): zeros, ("1", "2"): ones})
    assert len(mined.hard) == zeros + ones and all(h.misread for h in mined.hard)


def test_a_label_that_a_sure_reader_contradicts_is_set_aside_and_never_practised_on(samples: list[Sample]) -> None:
    few = samples[:6]
    readings = [
        Reading("9", 0.99, (), 12.0),  # sure, and the label e^12 times less likely
        Reading("8", 0.99, (), 8.0),  # not by enough
        Reading("7", 0.80, (), 30.0),  # not surely
        Reading("6", 0.95, (), 20.0),
        Reading(few[4].text, 0.6, (), -math.log(0.6)),
        Reading(few[5].text, 0.999, (), 0.001),
    ]
    found = mine(few, readings)
    assert [h.sample for h in found.suspects] == [few[3], few[0]], "the likeliest error first"
    assert {h.sample.name for h in found.hard} == {few[i].name for i in (1, 2, 4)}
    assert not {read for _, read in found.confused} & {"9", "6"}, "what it was read as counts nowhere"
    assert sum(found.kinds.values()) > 0 and found.read == 6
    margins = {h.sample.name: h.margin for h in (*found.hard, *found.suspects)}
    assert margins[few[0].name] == pytest.approx(-12 - math.log(0.99))
    assert margins[few[4].name] == pytest.approx(math.log(1.5))
    vary, drawn = plan(found, few, 200, 0)
    assert not {r.source for r in vary} & {few[0].name, few[3].name}
    stray = replace(few[0], text="z" + few[0].text)
    vary, drawn = plan(mine([stray, *few[1:]], readings), [stray, *few[1:]], 200, 0)
    assert not any("z" in r.text for r in vary + drawn), "a character of a wrong label is drawn"


def test_a_label_once_doubted_stays_set_aside_until_it_is_read(samples: list[Sample]) -> None:
    few = samples[:3]
    readings = [Reading("9", 0.7, (), 6.0), Reading("8", 0.7, (), 6.0), Reading(few[2].text, 0.9, (), 0.1)]
    found = mine(few, readings, doubted={few[0].name, few[2].name})
    assert [h.sample for h in found.suspects] == [few[0]] and not found.suspects[0].contradicted
    assert [h.sample for h in found.hard] == [few[1]]


def test_a_rare_look_gets_more_than_its_share(samples: list[Sample]) -> None:
    readings = [reading("9", 2.0 * len(s.text)) for s in samples]
    looks = [int(k < len(samples) // 16) for k in range(len(samples))]
    found = mine(samples, readings, looks=looks)
    rare = {s.name for s, look in zip(samples, looks, strict=True) if look}
    (common, misread), (few, all_misread) = by_look(found)
    assert common + few == misread + all_misread == len(samples) and few == len(rare)
    share = np.mean([r.source in rare for r in plan(found, samples, 4000, 0)[0]])
    assert share == pytest.approx(len(rare) / (len(rare) + common * (few / common) ** 0.5), abs=0.03)
    assert share > 2 * few / len(samples)


def test_looks_are_told_apart_by_what_a_reader_sees_of_them(tmp_path: Path) -> None:
    from augment.likeness import features_of
    from augment.looks import looks_of
    from augment.synthesize import requests_for_texts, synthesize
    from recognizer.training.checkpoint import DEFAULT

    texts = random_labels(40, 0)
    for name, settings in (("captcha", {}), ("render", {"difficulty": 0.0})):
        synthesize(name, settings, requests_for_texts(texts, (96, 32), 0), tmp_path / name)
    both = [s for name in ("captcha", "render") for s in read_manifest(tmp_path / name).samples]
    features = features_of(DEFAULT, both)
    looks = looks_of(features)
    assert (looks == looks_of(features)).all() and set(looks.tolist()) == {0, 1, 2}
    theirs = [(looks[: len(texts)] == look).sum() for look in range(3)]
    others = [(looks[len(texts) :] == look).sum() for look in range(3)]
    assert sum(map(max, theirs, others)) > 0.85 * len(both), "generators share their looks"
    assert set(looks_of(features[:30]).tolist()) == {0}, "so few are of one look"
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # k-means warns where it is asked for more clusters than there are pictures
        copies = np.repeat(features[:1], 60, axis=0)
        assert set(looks_of(copies).tolist()) == {0}, "copies of one picture"
        copies[50:] *= 1 + 1e-6
        assert set(looks_of(copies).tolist()) == {0}, "in two batches"
        assert looks_of(np.repeat(features[:3], [60, 50, 40], axis=0)).tolist() == [0] * 60 + [1] * 50 + [2] * 40


# --------------------------------------------------------------------------------------------------------------- plan


def test_a_plan_follows_from_its_seed_alone(mined: Mined, samples: list[Sample]) -> None:
    one, again, other = (plan(mined, samples, 50, seed) for seed in (3, 3, 4))
    assert one == again and one != other
    vary, drawn = one
    assert len(vary) == len(drawn) == 50
    assert len({r.seed for r in vary + drawn}) == 100, "two requests would make one picture"


def test_a_plan_varies_hard_samples_as_they_are(mined: Mined, samples: list[Sample]) -> None:
    vary, _ = plan(mined, samples, 200, 0)
    by_name = {h.sample.name: h.sample for h in mined.hard}
    for request in vary:
        source = by_name[str(request.source)]
        with Image.open(source.path) as picture:
            assert (request.text, request.width, request.height) == (source.text, *picture.size)
    times = Counter(r.source for r in vary)
    assert len(times) > len(by_name) * 0.8 and max(times.values()) < 40, "one picture fills the plan"


def test_a_plan_takes_the_hardest_most_often(samples: list[Sample]) -> None:
    readings = [reading("9", len(s.text) * (3.0 if k < 32 else 0.1)) for k, s in enumerate(samples)]
    vary, _ = plan(mine(samples, readings), samples, 2000, 0)
    names = {s.name for s in samples[:32]}
    share = np.mean([r.source in names for r in vary])
    assert share == pytest.approx(3.2 / (3.2 + 0.3), abs=0.03)


def test_where_many_are_hard_their_shares_may_be_rounded_to_more_than_one(samples: list[Sample]) -> None:
    above = 0
    for seed in range(2000):
        rng = np.random.default_rng(seed)
        hard = 0.5 + 2 * rng.random(int(rng.integers(20, len(samples))))
        weights = np.concatenate([0.2 + hard, np.zeros(len(samples) - len(hard))])
        if (weights / weights.sum()).sum() <= 1:
            continue
        above += 1
        hardest = [*hard, *[0.0] * (len(samples) - len(hard))]
        readings = [reading("9" if h else s.text, h * len(s.text)) for h, s in zip(hardest, samples, strict=True)]
        assert len(plan(mine(samples, readings), samples, 5, 0)[0]) == 5
    assert above > 9


def test_few_hard_pictures_do_not_fill_a_plan(samples: list[Sample]) -> None:
    readings = [reading("9" if k < 2 else s.text, 3.0 * (k < 2)) for k, s in enumerate(samples)]
    vary, _ = plan(mine(samples, readings), samples, 2000, 0)
    share = {name: n / 2000 for name, n in Counter(r.source for r in vary).items()}
    hard = {s.name for s in samples[:2]}
    assert len(share) == len(samples), "the others have the rest"
    assert all(n == pytest.approx(0.1, abs=0.025) if name in hard else n < 0.03 for name, n in share.items())
    assert {r.why for r in vary if r.source in hard} == {"hard sample"}
    assert {r.why for r in vary if r.source not in hard} == {"any sample"}


def test_of_labels_as_hard_the_one_that_another_text_beats_by_more_comes_first(samples: list[Sample]) -> None:
    four = [replace(s, text="0000") for s in samples[:4]]
    readings = [Reading("0012", sure, (), nll=500.0) for sure in (0.2, 0.8, 0.5)] + [Reading("0000", 0.9, (), nll=0.1)]
    found = mine(four, readings).hard
    assert [h.reading.confidence for h in found] == [0.8, 0.5, 0.2] and len({h.hardness for h in found}) == 1


def one_swap(text: str, of: set[str]) -> set[tuple[str, str]]:
    """What could have been swapped for what to make a text of one of several."""
    found = set()
    for other in of:
        if len(other) == len(text) and sum(a != b for a, b in zip(other, text, strict=True)) == 1:
            found |= {(a, b) for a, b in zip(other, text, strict=True) if a != b}
    return found


def test_contrast_pairs_swap_a_character_for_what_it_was_taken_for(mined: Mined, samples: list[Sample]) -> None:
    _, drawn = plan(mined, samples, 400, 0)
    texts = {h.sample.text for h in mined.hard}
    pairs = [r for r in drawn if r.why == "contrast pair"]
    assert 0.4 < len(pairs) / 400 < 0.6 and {r.why for r in drawn} == {"contrast pair", "weighted characters"}
    assert all(one_swap(r.text, texts) & {("0", "3"), ("1", "2")} for r in pairs)
    swapped = Counter(swap for r in pairs for swap in one_swap(r.text, {t for t in texts if t[0] in "01"}))
    assert swapped["0", "3"] and swapped["1", "2"]
    assert all(r.source is None for r in drawn)


@pytest.mark.parametrize("fixed", [True, False])
def test_two_that_are_read_as_one_are_swapped_whole(samples: list[Sample], fixed: bool) -> None:
    """A reader that takes rn for m, and of two s sees one, of labels of one length or of several."""
    texts = ["arnb", "cssd", "mabc", "sdca", "brna", "dass"]
    texts = [text + "d" * (not fixed and k % 3 == 0) for k, text in enumerate(texts)]
    own = [replace(s, text=texts[k % 6]) for k, s in enumerate(samples)]
    seen = [s.text.replace("rn", "m").replace("ss", "s") for s in own]
    mined = mine(own, [reading(text, nll=4.0 if text != s.text else 0.01) for s, text in zip(own, seen, strict=True)])
    assert set(mined.taken_for) == {("rn", "m"), ("ss", "s")} and set(mined.kinds) == {
        "two read as one", "lost beside its like"
    }  # fmt: skip
    _, drawn = plan(mined, own, 400, 0)
    pairs = [(r.text, next(s.text for s in own if s.name == r.pair)) for r in drawn if r.pair]
    assert len(pairs) > 100
    lengths = {len(text) for text in texts}
    for text, source in pairs:
        assert len(text) in lengths
        whole = {source.replace("rn", "m", 1), source.replace("ss", "s", 1)} - {source}
        assert any(one in text and len(text) - len(one) <= 1 for one in whole), (source, text)
    assert {source for _, source in pairs} == {text for text in texts if "rn" in text or "ss" in text}
    # the other way about: one read as two, which makes a text longer
    mined = mine(own, [reading(s.text.replace("m", "rn"), nll=4.0 if "m" in s.text else 0.01) for s in own])
    assert set(mined.taken_for) == {("m", "rn")}
    pairs = [(r.text, next(s.text for s in own if s.name == r.pair)) for r in plan(mined, own, 400, 0)[1] if r.pair]
    assert pairs and all("rn" in text and len(text) in lengths for text, _ in pairs)


@pytest.mark.parametrize(
    ("text", "i", "lengths", "found"),
    [
        ("ambc", 1, {4}, "arnb"),  # the end is farther
        ("abcm", 3, {4}, "bcrn"),
        ("am", 1, {2}, "rn"),
        ("ma", 0, {2}, "rn"),
        ("m", 0, {1}, None),  # none is left that would not cut it
        ("m234 x", 0, {6}, None),  # nor that a label could be
        ("a bcdm", 5, {6}, None),
        ("a bmcd", 3, {6}, "a brnc"),
        ("ambc", 1, {4, 5}, "arnbc"),
    ],
)
def test_a_swap_is_whole_and_as_long_as_a_label(text: str, i: int, lengths: set[int], found: str | None) -> None:
    assert swapped(text, i, "m", "rn", "", lengths) == found


def test_no_space_is_put_into_a_text(samples: list[Sample]) -> None:
    """A reader that takes a 0 for a space, of labels some of which hold one."""
    spaced = [replace(s, text=f"{s.text[0]} {s.text[1:]}") if k % 4 == 0 else s for k, s in enumerate(samples)]
    mined = mine(spaced, [reading(s.text.replace("0", " "), nll=4.0 if "0" in s.text else 0.01) for s in spaced])
    assert mined.confused["0", " "]
    vary, drawn = plan(mined, spaced, 400, 0)
    assert all(" " not in r.text or r.text in {s.text for s in spaced} for r in vary)
    assert not any(" " in r.text for r in drawn if r.why == "weighted characters")
    own = {s.name: s.text for s in spaced}
    assert all(r.text.count(" ") <= own[r.pair].count(" ") for r in drawn if r.pair)


def test_new_texts_have_the_lengths_of_the_labels_and_the_characters_that_are_misread(
    mined: Mined, samples: list[Sample]
) -> None:
    _, drawn = plan(mined, samples, 2000, 0)
    new = [r.text for r in drawn if r.why == "weighted characters"]
    lengths = Counter(map(len, new))
    wanted = Counter(len(s.text) for s in samples)
    assert lengths[3] / len(new) == pytest.approx(wanted[3] / 64, abs=0.06) and set(lengths) == {2, 3}
    times, seen = Counter("".join(new)), Counter("".join(s.text for s in samples))
    missed = {"0": mined.confused["0", "3"], "1": mined.confused["1", "2"]}
    mean = seen.total() / 4
    weights = {c: (1 + 10 * missed.get(c, 0) / seen[c]) * (mean / seen[c]) ** 0.5 for c in CHARACTERS}
    for c in CHARACTERS:
        assert times[c] / times.total() == pytest.approx(weights[c] / sum(weights.values()), abs=0.03)
    assert times["0"] > 2 * times["2"]


def test_where_nothing_is_misread_a_plan_takes_everything(samples: list[Sample]) -> None:
    vary, drawn = plan(mine(samples, [reading(s.text) for s in samples]), samples, 300, 0)
    assert len({r.source for r in vary}) > 55 and {r.why for r in drawn} == {"weighted characters"}


def test_a_plan_refuses_what_it_cannot_plan(mined: Mined, samples: list[Sample]) -> None:
    with pytest.raises(UserError, match="no sample"):
        plan(mined, [], 1, 0)


def test_folds_part_the_samples_alike(samples: list[Sample]) -> None:
    parts = folds_of(samples, 4)
    assert sorted(s.name for part in parts for s in part) == sorted(s.name for s in samples)
    assert all(14 <= len(part) <= 18 for part in parts)
    assert folds_of(samples, 4) == parts != folds_of(samples, 4, seed=1)
    for folds in (0, 1, 33):
        with pytest.raises(UserError, match=f"64 samples cannot be read out of {folds} folds: give 2 to 32"):
            folds_of(samples, folds)


# ----------------------------------------------------------------------------------------------------------- fidelity


def test_a_planted_copy_is_found_and_fresh_pictures_are_not(samples: list[Sample], tmp_path: Path) -> None:
    made = draw_folder(tmp_path / "made", random_labels(20, 77), 77)
    for name, source in (("003.png", samples[5]), ("007.png", samples[9])):
        shutil.copy(source.path, made / name)
    with Image.open(samples[20].path) as picture:  # a copy as a generator gives one: not equal, and yet the same
        noise = np.random.default_rng(0).normal(0, 4, (picture.height, picture.width))
        nearly = Image.fromarray((np.asarray(picture) + noise).clip(0, 255).astype(np.uint8))
    nearly.save(made / "011.png", "JPEG", quality=80)
    found = near_copies(list(read_manifest(made)), samples)
    assert [i for i, copied in enumerate(found) if copied] == [3, 7, 11]


def test_a_copy_is_found_where_its_source_is_there_twice(samples: list[Sample]) -> None:
    assert near_copies(samples[:3], [*samples, *samples]) == [True] * 3


def test_pictures_that_cannot_be_opened_were_not_copied(samples: list[Sample], tmp_path: Path) -> None:
    bad = Sample("bad.png", "01", tmp_path / "bad.png")
    gone = Sample("gone.png", "01", tmp_path / "gone.png")
    bad.path.write_bytes(b"no picture")
    assert near_copies(samples[:2], [bad, *samples, gone]) == [True, True]
    assert near_copies(samples[:2], [samples[0], bad]) == [False, False]  # nothing to compare a distance with
    assert near_copies([], samples) == []


def test_the_band_reaches_to_the_hardness_of_nearly_all_real_pictures(samples: list[Sample]) -> None:
    def band(of: list[float], **given: float) -> Band:
        few = samples[: len(of)]
        return band_of(few, [reading("", h * len(s.text)) for h, s in zip(of, few, strict=True)], **given)

    hard = [k / 10 for k in range(51)]
    assert band(hard) == Band(pytest.approx(0.5), pytest.approx(4.9))
    assert band(hard, easiest=0.2, hardest=0.5) == Band(pytest.approx(1.0), pytest.approx(2.5))
    assert band(hard, easiest=0.0).low == 0
    assert band([0.01] * 50) == Band(
        pytest.approx(0.01), 1.0
    )  # a judge that reads everything still lets harder pictures pass
    assert band([]) == Band(0.0, 1.0)


def test_the_band_of_drawn_pictures_is_narrower(samples: list[Sample]) -> None:
    few = samples[:51]
    for of in ([k / 10 for k in range(51)], [0.01] * 51):
        readings = [reading("", h * len(s.text)) for h, s in zip(of, few, strict=True)]
        varied, drawn = band_of(few, readings), band_of_drawn(few, readings)
        assert drawn.low == varied.low and drawn.high < varied.high
        assert drawn.high == pytest.approx(4.75 if of[-1] > 1 else 0.3)


@pytest.mark.parametrize(
    ("about", "text", "expected"),
    [
        ({"method": "render", "source": None}, "zz", Band(0.0, math.inf)),
        ({"method": "classical", "source": "a"}, "ab", Band(0.1, 3.5)),  # of a real picture that is hard itself
        ({"method": "classical", "source": "b"}, "ab", Band(0.1, 1.0)),
        ({"method": "classical", "source": "of another folder"}, "ab", Band(0.1, 1.0)),
        ({"method": "diffusion", "source": "a"}, "zz", Band(0.1, 0.3)),  # one character painted anew
        ({"method": "diffusion", "source": "of another folder"}, "ab", Band(0.1, 0.3)),
        ({"method": "splice", "source": None}, "ab", Band(0.1, 0.3)),
        ({"method": "classical", "source": "a"}, "zz", Band(0.1, 1.0)),  # another folder's picture of that name
        ({"method": ["no", "name"], "source": ["no", "name"]}, "ab", Band(0.1, 0.3)),
        ({}, "ab", Band(0.1, 0.3)),
    ],
)
def test_a_text_that_a_method_drew_must_be_surer_than_a_picture_varied_under_its_own(
    about: dict[str, Any], text: str, expected: Band
) -> None:
    real = {"a": ("ab", 2.5), "b": ("ab", 0.0)}
    assert band_for(Sample("m", text, Path("m"), meta=about), real, Band(0.1, 1.0), Band(0.1, 0.3)) == expected


def test_judging_keeps_the_band_and_says_why_it_refuses(samples: list[Sample]) -> None:
    few, texts = samples[:5], [s.text for s in samples[:5]]
    hard = [0.001, 0.5, 2.5, 2.5, 0.5]
    # of two judges the mean counts
    readings = [[reading(t, h * len(t) * share) for share in (0.8, 1.2)] for t, h in zip(texts, hard, strict=True)]
    bands = [Band(0.01, 2.0)] * 3 + [Band(0.01, 3.0)] * 2
    judged = judge(few, readings, bands, [False, False, False, False, True])
    assert judged.kept == (few[1], few[3])
    assert [(p.name, p.kind) for p in judged.refused] == [
        (few[0].name, "too easy"), (few[2].name, "too hard"), (few[4].name, "near copy"),
    ]  # fmt: skip
    assert judged.refused[1].detail == f"read as {texts[2]!r}, 2.50 nats a character, over 2.00"
    table = refusal_table(judged)
    assert table.startswith("2 of 5 made pictures are kept\n") and all(kind in table for kind in REFUSALS)


def test_characters_that_are_never_kept_are_named() -> None:
    kept = (Sample("a", "0011", Path("a")),)
    assert coverage_table(kept, "012") == "characters kept: 0:2 1:2 2:0\nnever seen: 2"
    assert coverage_table(kept, "01") == "characters kept: 0:2 1:2"


# --------------------------------------------------------------------------------------------------------- the commands


def json_lines(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


@pytest.fixture(scope="module")
def beginner(drawn: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A reader that was stopped too soon: it reads something, and misreads a lot."""
    run = tmp_path_factory.mktemp("beginner") / "run"
    train(short(drawn, 368), run)
    return run


def short(drawn: Path, pictures: int) -> TrainSettings:
    return TrainSettings(
        data=(str(drawn / "train"),), validation=str(drawn / "validation"), pictures=pictures, batch=16, threads=1,
        validations=2, tracker="none", start="nothing",
    )  # fmt: skip


def test_mined_errors_are_written_and_can_be_answered(beginner: Path, drawn: Path, tmp_path: Path) -> None:
    data, out = drawn / "validation", tmp_path / "mined"
    ended = augment("mine-errors", "--model", beginner, "--data", data, "--out", out, "--count", 7)
    assert ended.status == 0, ended.err
    assert {path.name for path in out.iterdir()} == {"hard", "confusions.json", "requests.jsonl", "sheet.png"}
    hard = list(read_manifest(out / "hard"))
    wrong = [s for s in hard if s.meta["read"] != s.text]
    assert wrong and ended.out.startswith(f"{len(wrong)} of 24 samples are misread by the model as it is, ")
    ranks = [(s.meta["read"] == s.text, -s.meta["hardness"]) for s in hard]
    assert ranks == sorted(ranks)
    original = {s.name: s for s in read_manifest(data)}
    assert all(original[s.meta["name"]].read_bytes() == s.read_bytes() for s in hard)
    assert all(original[s.meta["name"]].text == s.text for s in hard)
    confused = json.loads((out / "confusions.json").read_text())
    assert [row["times"] for row in confused] == sorted((row["times"] for row in confused), reverse=True)
    requests = read_requests(out / "requests.jsonl")
    assert Counter(r.source is None for r in requests) == {True: 7, False: 7}
    with Image.open(out / "sheet.png") as sheet:
        assert sheet.width > 100 and sheet.mode == "RGB"

    command = ended.out.splitlines()[-1].removeprefix("make pictures with: augment ").removesuffix(" --out DIR")
    ended = augment(*command.split(), "--out", tmp_path / "made")
    assert ended.status == 0 and ended.out == f"{tmp_path / 'made'}: 7 pictures\n"
    made = list(read_manifest(tmp_path / "made"))
    asked = [r for r in requests if r.source is not None]
    assert [(s.text, s.meta["seed"], s.meta["source"]) for s in made] == [(r.text, r.seed, r.source) for r in asked]
    ended = augment(
        "synthesize", "--method", "captcha", "--requests", out / "requests.jsonl", "--out", tmp_path / "drawn",
    )  # fmt: skip
    assert [s.text for s in read_manifest(tmp_path / "drawn")] == [r.text for r in requests if r.source is None]
    assert "exists and is not empty" in refusal(
        augment("mine-errors", "--model", beginner, "--data", data, "--out", out)
    )


def test_errors_are_mined_out_of_fold(drawn: Path, tmp_path: Path) -> None:
    data, out, model = drawn / "validation", tmp_path / "mined", tmp_path / "model"
    train(short(drawn, 64), model)
    words = ["mine-errors", "--model", model, "--data", data, "--folds", 2, "--out", out, "--jobs", 2]
    ended = augment(*words)
    assert ended.status == 0, ended.err
    assert "of 24 samples are misread out of 2 folds" in ended.out
    parts = folds_of(list(read_manifest(data)), 2)
    for k, part in enumerate(parts):
        seen = {s.read_bytes() for s in read_manifest(out / "folds" / f"data-{k}")}
        assert len(seen) == 24 - len(part) and not seen & {s.read_bytes() for s in part}
        fold = out / "folds" / f"fold-{k}"
        assert (fold / "scores.json").is_file()
        assert f'data = ["{out}/folds/data-{k}"]' in (fold / "settings.toml").read_text()
    assert json_lines(out / "folds" / "fold-0" / "metrics.jsonl")[-1]["steps"] == 4  # as the model was trained

    assert f"{out} exists and is not empty" in refusal(augment(*words)), "nothing there is written over"

    def clear() -> None:
        for path in out.iterdir():
            if path.is_dir() and path.name != "folds":
                shutil.rmtree(path)
            elif path.is_file():
                path.unlink()

    clear()
    before = {path: path.stat().st_mtime_ns for path in (out / "folds").rglob("weights.safetensors")}
    again = augment(*words)
    assert (again.status, again.out) == (0, ended.out)  # from the readers that are there
    assert {path: path.stat().st_mtime_ns for path in (out / "folds").rglob("weights.safetensors")} == before

    clear()
    assert "holds other samples than this fold" in refusal(augment(*words, "--seed", 1))
    assert "holds other samples than this fold" in refusal(augment(*words, "--data", drawn / "eight"))


def test_readers_out_of_fold_of_a_pretrained_one_start_from_it() -> None:
    for model, size in (("default", "small"), ("tiny", "tiny")):
        settings = fold_settings(Path(model), [])
        assert (settings.start, settings.size, settings.stream) == (model, size, None)
        assert settings.charset == read_weights(Path(model))[1].charset


def test_readers_out_of_fold_start_from_no_reader_that_learned_the_pictures(drawn: Path, tmp_path: Path) -> None:
    train(short(drawn, 64), tmp_path / "first")
    train(short(drawn, 32).model_copy(update={"start": str(tmp_path / "first")}), tmp_path / "second")
    learned, others = (read_manifest(drawn / part).samples for part in ("train", "validation"))
    others = tuple(s for s in others if s.name != "017.png")  # a copy of one to train on
    assert fold_settings(tmp_path / "second", others).start == str(tmp_path / "first")
    settings = fold_settings(tmp_path / "second", learned)
    assert (settings.start, settings.pictures) == ("nothing", 64), "as the first was trained"


def test_names_that_are_not_utf_8_are_printed_as_they_are(trained: Trained, drawn: Path, tmp_path: Path) -> None:
    odd = tmp_path / "odd"
    odd.mkdir()
    for sample in read_manifest(drawn / "eight"):
        (odd / os.fsdecode(f"{'1' * 5}_{sample.name[:3]}".encode() + b"\xff.png")).write_bytes(sample.read_bytes())
    pattern = ["--label-pattern", "{text}_{id}.png"]
    ended = augment("mine-errors", "--model", trained.run, "--data", odd, "--out", tmp_path / "mined", *pattern)
    assert ended.status == 0, ended.err
    assert "labels are likely wrong" in ended.out and os.fsdecode(b"\xff.png: 11111 is read ") in ended.out


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--folds", "13"], "24 samples cannot be read out of 13 folds: give 2 to 12"),
        (["--folds", "1"], "24 samples cannot be read out of 1 folds"),
        (["--model", "nowhere"], "nowhere: no such weights file"),
        (["--data", "nowhere"], "nowhere: no such file or folder"),
    ],
)
def test_mining_refuses_in_one_line(trained: Trained, drawn: Path, tmp_path: Path, words: list[str], said: str) -> None:
    for option, value in {"--model": trained.run, "--data": drawn / "validation", "--out": tmp_path / "new"}.items():
        words = words if option in words else [*words, option, str(value)]
    assert said in refusal(augment("mine-errors", *words))


def test_a_method_of_which_more_is_refused_than_kept_is_named() -> None:
    assert doubts({"splice": 5, "vae": 4}, {"splice": 10, "vae": 10, "wgan": 3}) == [
        "vae: 6 of 10 pictures are refused, more than is kept: look at them before you trust it",
        "wgan: 3 of 3 pictures are refused, more than is kept: look at them before you trust it",
    ]


def test_the_filter_keeps_what_shows_its_text_and_is_no_copy(trained: Trained, drawn: Path, tmp_path: Path) -> None:
    data, out = drawn / "validation", tmp_path / "kept"
    real = list(read_manifest(data))
    rng = np.random.default_rng(5)
    labels = random_labels(12, 50)
    for k, text in enumerate(labels):
        shows = text if k % 3 else "".join("3210"[int(c)] for c in text)  # every third shows another text
        (tmp_path / "pictures").mkdir(exist_ok=True)
        draw(shows, rng).save(tmp_path / "pictures" / f"{text}_{k:02d}.png")
    shutil.copy(real[0].path, tmp_path / "pictures" / f"{real[0].text}_99.png")
    (tmp_path / "pictures" / "01_bad.png").write_bytes(b"no picture")
    write_folder(read_manifest(tmp_path / "pictures", "{text}_{id}.png"), tmp_path / "made")

    words = ["filter", "--made", tmp_path / "made", "--data", data, "--judge", trained.run, "--out", out]
    ended = augment(*words, "--low", 0)
    assert ended.status == 0, ended.err
    kept = sorted(int(s.name[-6:-4]) for s in read_manifest(out))
    assert kept == [k for k in range(12) if k % 3]
    lines = ended.out.splitlines()
    assert lines[0] == "8 of 13 made pictures are kept"
    assert lines[1].split()[:3] == ["4", "too", "hard:"] and lines[2].split()[:3] == ["1", "near", "copy:"]
    counts = Counter("".join(labels[k] for k in kept))
    assert lines[3] == "characters kept: " + " ".join(f"{c}:{counts[c]}" for c in CHARACTERS)
    assert "1 of 38 samples cannot be used" in ended.err and ended.err.endswith("\n")

    assert augment(*words).err == f"error: {out} exists and is not empty: name a new folder\n", "before the work"
    words = ["filter", "--made", tmp_path / "made", "--judge", trained.run, "--out", tmp_path / "more", "--data", data]
    ended = augment(*words, "--copies-of", drawn / "train", "--low", 0)
    assert ended.status == 0 and ended.out.splitlines()[0] == "9 of 13 made pictures are kept"
    ended = augment(*words[:-3], tmp_path / "harder", "--data", data)
    assert ended.status == 0 and "too easy" in ended.out, "the easiest tenth of real pictures bounds what is kept"
    ended = augment(*words[:-3], tmp_path / "none", "--data", data, "--low", 40)
    assert ended.status == 2 and ended.err.splitlines()[-1].startswith("error: nothing is kept: look at the made")
    assert not (tmp_path / "none").exists()


def test_requests_are_what_their_file_says(mined: Mined, samples: list[Sample], tmp_path: Path) -> None:

    vary, new = plan(mined, samples, 5, 0)
    requests = [*vary, *new, Request("0é日", 1, 10, 20, None, "why")]
    write_requests(requests, tmp_path / "requests.jsonl")
    assert read_requests(tmp_path / "requests.jsonl") == requests
    wide = [Request("AB", 0, 4400, 300)]  # pictures of that size are read and mined
    write_requests(wide, tmp_path / "wide.jsonl")
    assert read_requests(tmp_path / "wide.jsonl") == wide
    write_requests([Request("AB", 0, 44_000, 3000)], tmp_path / "wide.jsonl")
    with pytest.raises(UserError, match="line 1: not a request"):
        read_requests(tmp_path / "wide.jsonl")
