"""What is in the data, and whether there is a signal in it."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from conftest import Page, draw_folder, recognizer, refusal
from PIL import Image
from scipy import stats

from recognizer.data.diagnose import Signal, bears_on, crops_of, describe, signal
from recognizer.data.diagnosis import write_diagnosis
from recognizer.data.failures import Failures, failures_of, trained_by
from recognizer.reader import Reader
from recognizer.readings import Reading
from recognizer.samples import Sample, read_manifest


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Ninety pictures of four digits that begin with a 7; one of five; one with a 9."""
    rng = np.random.default_rng(4)
    texts = ["7" + "".join(rng.choice(list("0123"), 3)) for _ in range(90)]
    texts[8], texts[9] = "70123", "7119"
    return draw_folder(tmp_path_factory.mktemp("diagnose") / "data", texts, 4)


@pytest.fixture(scope="module")
def samples(folder: Path) -> list[Sample]:
    return list(read_manifest(folder))


def test_what_is_in_the_pictures_is_counted(samples: list[Sample]) -> None:
    found = describe(samples)
    assert (len(found.samples), found.unopened) == (90, 0)
    assert dict(found.sizes) == {(80, 32): 89, (96, 32): 1} and dict(found.lengths) == {4: 89, 5: 1}
    assert found.by_position[0] == {"7": 90} and found.characters["7"] == 90 and found.characters["9"] == 1
    assert set(found.features["pixels a character"]) == {20.0, 96 / 5} and np.all(found.features["saturation"] == 0)
    assert 200 < found.features["brightness"].mean() < 236 and found.features["contrast"].min() > 100


def test_what_spoils_a_training_is_found_and_nothing_else(samples: list[Sample], tmp_path: Path) -> None:
    told = {f.what: f.bad for f in describe(samples).findings}
    assert told == {
        "1 of 6 characters are seen fewer than 10 times: '9' 1": False,
        "the commonest character is seen 90 times as often as the rarest": False,
        "character 1 is always '7'": False,
        "labels of 5 characters are seen once": False,
    }
    rest = [s for i, s in enumerate(samples) if i not in (8, 9)]
    assert {f.what for f in describe(rest).findings} == {"character 1 is always '7'"}

    with Image.open(samples[0].path) as picture:
        picture.convert("L").resize((100, 40)).save(tmp_path / "again.png")
    (tmp_path / "broken.png").write_bytes(b"no picture")
    again = replace(samples[0], name="again.png", path=tmp_path / "again.png")
    broken = replace(samples[0], name="broken.png", path=tmp_path / "broken.png")
    spoiled = describe([*rest, replace(again, text="7000"), broken], [replace(again, name="held.png")])
    assert {f.what for f in spoiled.findings if f.bad} == {
        "1 pictures cannot be opened", "1 pairs of nearly equal pictures have two labels",
        "1 of 1 pictures to test on are nearly the same as one to train on",
    }  # fmt: skip
    assert not any(f.bad for f in describe(rest[:40], rest[40:]).findings), "other pictures are no leak"


@pytest.mark.parametrize("seed", range(3))
def test_a_signal_is_found_and_in_shuffled_labels_none(samples: list[Sample], seed: int) -> None:
    found = signal(samples, seed)
    assert found.found and found.p < 1e-6 and found.logistic > found.shuffled + 0.2 and found.tree > found.shuffled
    assert (found.pictures, found.crops) == (90, sum(len(s.text) for s in samples))
    texts = [samples[i].text for i in np.random.default_rng(seed).permutation(len(samples))]
    nothing = signal([replace(s, text=t) for s, t in zip(samples, texts, strict=True)], seed)
    assert not nothing.found and nothing.p > 0.01


def test_too_few_pictures_are_no_signal(samples: list[Sample]) -> None:
    assert not signal(samples[:9]).found
    assert not signal([replace(s, text="7777") for s in samples]).found, "one character alone is none either"


def test_crops_part_the_ink_evenly(tmp_path: Path) -> None:
    picture = np.full((20, 60), 240, np.uint8)
    picture[4:16, 20:30], picture[4:16, 30:40] = 0, 120  # two letters, in the middle
    Image.fromarray(picture).save(tmp_path / "two.png")
    first, second = (c.reshape(16, 12)[:, 2:-2] for c in crops_of(Sample("two.png", "ab", tmp_path / "two.png")))
    assert np.corrcoef(first.ravel(), second.ravel())[0, 1] > 0.999, "each is one letter, whatever its strength"
    assert np.ptp(first, axis=1).max() < 0.01, "and nothing of the other"
    assert len(crops_of(Sample("two.png", "a" * 99, tmp_path / "two.png"))) == 99
    Image.new("L", (30, 10), 9).save(tmp_path / "blank.png")
    assert all(np.isfinite(crop).all() for crop in crops_of(Sample("blank.png", "abc", tmp_path / "blank.png")))


def test_what_bears_on_being_misread_is_told_with_corrected_p() -> None:
    rng = np.random.default_rng(0)
    texts = ["".join(rng.choice(list("abc"), 4)) + ("0" if k % 4 == 0 else "") for k in range(200)]
    wrong = [("0" in t and k % 8 < 6) or k % 29 == 0 for k, t in enumerate(texts)]
    features = {
        "noise": rng.normal(size=200),
        "dark": np.array(wrong) * 1.0 + rng.normal(size=200),
        "flat": np.ones(200),
    }
    found = bears_on(features, texts, wrong)
    sure = [(t.feature, t.test) for t in found if t.p < 0.001]
    assert set(sure) == {
        ("5 characters", "chi-square"), ("4 characters", "chi-square"), ("shows '0'", "chi-square"),
        ("dark", "t"), ("dark", "rank correlation"),
    }  # fmt: skip
    assert not any(t.feature == "flat" for t in found)
    bad = np.array(wrong)
    t = next(t for t in found if t.test == "t" and t.feature == "noise")
    raw = stats.ttest_ind(features["noise"][bad], features["noise"][~bad], equal_var=False)
    assert t.statistic == pytest.approx(raw.statistic) and raw.pvalue <= t.p <= 1
    assert [t.p for t in found] == sorted(t.p for t in found)
    zero = np.array(["0" in t for t in texts])
    least = stats.chi2_contingency(
        [[(zero & bad).sum(), (zero & ~bad).sum()], [(~zero & bad).sum(), (~zero & ~bad).sum()]]
    )
    shows = next(t for t in found if t.feature == "shows '0'")
    assert shows.statistic == pytest.approx(least.statistic)
    assert bears_on(features, texts, [False] * 200) == []


@pytest.fixture(scope="module")
def failed(samples: list[Sample]) -> Failures:
    return failures_of(Reader(), samples)


def of(samples: list[Sample], texts: list[str], spread: float | None = 0.5) -> Failures:
    """Failures of a reader that read these texts, ever surer."""
    sure = np.linspace(0.2, 0.99, len(texts)).tolist()
    readings = [Reading(t, p, tuple((c, p) for c in t)) for t, p in zip(texts, sure, strict=True)]
    return Failures(samples, readings, texts, 0.8, spread, 6)


def test_a_reader_reads_there_what_it_reads_elsewhere(samples: list[Sample], failed: Failures) -> None:
    reader = Reader()
    alone = reader.read([reader.open(s.path) for s in samples])
    assert [r.text for r in failed.readings] == [r.text for r in alone]
    assert failed.right == [s.text == r.text for s, r in zip(samples, alone, strict=True)] and sum(failed.right) > 20
    assert 0.5 < failed.blank_rate < 1 and failed.spread is not None and failed.spread > 0.02 and not failed.collapse


def test_letters_are_read_in_the_case_of_the_labels_where_these_have_one(tmp_path: Path) -> None:
    folder = draw_folder(tmp_path / "data", ["ABBA", "BAAB"] * 6, 1)
    small = [replace(s, text=s.text.lower()) for s in read_manifest(folder)]
    found = failures_of(Reader(), small)
    assert any(c.isupper() for r in found.readings for c in r.text) and found.scores.exact > 0.8
    assert all(t == t.lower() for t in found.texts)


def test_a_wrong_case_is_wrong_where_labels_have_both(tmp_path: Path) -> None:
    folder = draw_folder(tmp_path / "data", ["ABBA", "BAAB"] * 6, 1)
    mixed = [replace(s, text=s.text[:2] + s.text[2:].lower()) for s in read_manifest(folder)]
    assert failures_of(Reader(), mixed).scores.exact < 0.2


def test_a_confusion_matrix_adds_up(samples: list[Sample]) -> None:
    texts = [s.text.replace("2", "3") if i % 2 else s.text[:-1] for i, s in enumerate(samples)]
    f = of(samples, texts)
    names, counts = f.matrix()
    for c in names[:-1]:
        assert sum(counts[c, b] for b in names) == f.characters[c].support, c
        assert sum(counts[a, c] for a in names) == sum(t.count(c) for t in texts), c
    assert counts["2", "3"] > 10 and sum(counts[a, ""] for a in names) == sum(len(s.text) for s in samples[::2]) // 4


def test_reliability_is_of_all_readings(samples: list[Sample]) -> None:
    f = of(samples, [s.text if i > 30 else "7" for i, s in enumerate(samples)])
    bins = f.reliability()
    assert len(bins) == 10 and sum(b.n for b in bins) == 90
    assert sum(b.n * b.right for b in bins) == pytest.approx(59)
    assert [b.confidence for b in bins] == sorted(b.confidence for b in bins) and f.auroc == 1
    assert f.surest_wrong(3) == [30, 29, 28] and f.least_sure(2) == [31, 32]


@pytest.mark.parametrize("what", ["as read", "nothing", "all right", "hostile"])
def test_the_page_tells_it_in_pictures(samples: list[Sample], failed: Failures, tmp_path: Path, what: str) -> None:
    hostile = "<script>alert(1)</script>"
    if what == "hostile":
        samples = [replace(samples[0], text=hostile), *samples[1:]]
    f = {
        "as read": failed, "nothing": of(samples, [""] * 90), "all right": of(samples, [s.text for s in samples]),
        "hostile": of(samples, ["7"] * 89 + ["9<b>"]),
    }[what]  # fmt: skip
    found = describe(samples)
    tests = bears_on(found.features, [s.text for s in samples], f.wrong)
    write_diagnosis(tmp_path / "page.html", found, signal(samples), f, "the default reader", tests)
    assert [p.name for p in tmp_path.iterdir()] == ["page.html"]
    source = (tmp_path / "page.html").read_text()
    page = Page(source)
    assert hostile not in source and "<b>" not in page.text.replace("9<b>", "")
    assert all(image["src"].startswith("data:image/jpeg;base64,") and image["alt"] for image in page.all("img"))
    assert not [a for a in page.all("a") if not a["href"].startswith("#")] and not page.all("script")
    assert f"{100 * f.scores.exact:.1f} %" in page.text and "Characters by position" in page.text
    assert ("The reader has collapsed: all blank" in page.text) == (what == "nothing")
    assert ("None is misread" in page.text) == (f.scores.exact == 1)
    for c, score in f.characters.items():
        if c in found.characters:
            assert f"{100 * score.recall:.1f} %" in page.text


def test_the_command_tells_it_in_words(folder: Path, tmp_path: Path) -> None:
    ended = recognizer("diagnose", folder, "--test", folder, "--report", tmp_path / "page.html")
    assert ended.status == 0, ended.err
    assert ended.out.endswith(f"report: {tmp_path / 'page.html'}\n")
    assert (tmp_path / "page.html").stat().st_size > 10_000
    assert "the default reader on 90 pictures" in ended.out and "by position recall" in ended.out
    lines = ended.out.splitlines()
    assert lines[0] == "pictures    90, of 2 sizes: 80 x 32: 89, 96 x 32: 1" and lines[1] == "lengths     4: 89, 5: 1"
    assert "there is a signal to learn (p < .001)" in ended.out and "by the default reader: " in ended.out
    assert "problem     90 of 90 pictures to test on are nearly the same as one to train on" in lines
    for nowhere in (tmp_path / "nowhere" / "page.html", tmp_path):
        assert f"--report {nowhere}: name a file" in refusal(recognizer("diagnose", folder, "--report", nowhere))
    few = draw_folder(tmp_path / "few", ["01", "12"], 0)
    assert "whether there is a signal is not told" in recognizer("diagnose", few).out
    (few / "000.png").write_bytes(b"no picture")
    (few / "001.png").write_bytes(b"no picture")
    assert "no picture can be opened" in refusal(recognizer("diagnose", few))
    (tmp_path / "metadata.jsonl").write_text("")
    assert "no sample is left" in refusal(recognizer("diagnose", tmp_path))


def test_what_a_training_showed_before_tells_that_a_reader_grew_cautious(tmp_path: Path) -> None:
    rows = [{"step": 1, "precision": 0.9, "recall": 0.9}, {"step": 2}, {"step": 3, "precision": 0.92, "recall": 0.85}]
    (tmp_path / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    assert trained_by(tmp_path) == [(0.9, 0.9), (0.92, 0.85)]
    assert trained_by(None) == trained_by(tmp_path / "reader.onnx") == []
    few = [Sample(f"{i}.png", "1234", tmp_path) for i in range(20)]
    timid = Failures(few, [Reading("12", 0.9, ())] * 20, ["12"] * 20, 0.8, None, 5, trained_by(tmp_path))
    assert timid.collapse is not None and timid.collapse.kind == "ever more cautious"


def test_near_the_bound_and_of_a_few_pictures_nobody_is_told_that_there_is_no_signal() -> None:
    verdicts = {(0.0001, 500): (True, False), (0.005, 500): (False, False), (0.2, 40): (False, False),
                (0.2, 500): (False, True)}  # fmt: skip
    for (p, pictures), told in verdicts.items():
        own = Signal(4 * pictures, pictures, 0.3, 0.2, 0.1, p)
        assert (own.found, own.none) == told, (p, pictures)


def test_few_counts_are_tested_exactly() -> None:
    texts = ["1"] * 5 + ["2"] * 1995
    wrong = [True, True, False, False, False] + [True] * 18 + [False] * 1977
    (test,) = [t for t in bears_on({}, texts, wrong) if t.feature == "shows '1'"]
    assert test.test == "Fisher's exact" and test.p == pytest.approx(2 * 9e-4, rel=0.1), "two tests were made"
