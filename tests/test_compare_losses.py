"""`practice compare --losses`, at tiny size."""

from __future__ import annotations

import json
import subprocess
import sys
from collections import Counter
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
from conftest import CHARACTERS, draw_folder, practice, random_labels

from pipelines.ledger import Ledger
from pipelines.losses import NOTES, LossSettings, long_tailed, table
from recognizer.errors import UserError
from recognizer.reader import Reader
from recognizer.readings import exact_match
from recognizer.samples import Sample, read_manifest
from recognizer.training.checkpoint import TINY
from recognizer.training.evaluate import decisions


def compare(*words: object) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "pipelines.cli", "compare", "--losses", *map(str, words)]
    return subprocess.run(command, capture_output=True, text=True, check=False)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("losses")
    draw_folder(folder / "train", random_labels(80, 1), 1)
    draw_folder(folder / "test", random_labels(24, 2), 2)
    return folder


def test_a_long_tail_is_a_part_in_which_ever_fewer_pictures_hold_a_character(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    samples = [Sample(f"{i}.png", "".join(rng.choice(list("abcdefgh"), 3)), tmp_path / f"{i}.png") for i in range(6000)]
    part = long_tailed(samples, 7, 0)
    counts = Counter(c for s in part for c in s.text)
    ranked = sorted(Counter(c for s in samples for c in s.text).items(), key=lambda item: (-item[1], item[0]))
    often = [counts[c] for c, _ in ranked]
    assert all(a > 0.8 * b for a, b in pairwise(often)) and 4 < often[0] / often[-1] < 12, often
    assert long_tailed(samples, 7, 0) == part != long_tailed(samples, 7, 1)
    assert long_tailed(samples, 1, 0) == samples


def test_losses_are_compared_at_equal_compute_and_the_run_goes_on(folder: Path, tmp_path: Path) -> None:
    words = (
        "--data", folder / "train", "--test", folder / "test", "--out", tmp_path / "run", "--seeds", 1,
        "--pictures", 160, "--jobs", 2, "--set", "pos_weights=[1, 3]", "--set", "tail=2",
        "--set", "reader.validations=2", "--set", "reader.batch=16", "--from", "nothing",
    )  # fmt: skip
    done = compare(*words)
    assert done.returncode == 0, done.stderr
    run = tmp_path / "run"
    rows = {e["step"]: e for e in map(json.loads, (run / "ledger.jsonl").read_text().splitlines())}
    once = {
        (s.text, s.read_bytes()) for s in read_manifest(folder / "train")
    }  # short labels are drawn alike now and then
    assert rows["prepare"]["counts"]["as they are"] == len(once) < 80
    assert len(once) > rows["prepare"]["counts"]["long-tailed"] > 20
    trained = sorted(p.parent.parent.name for p in run.glob("*/*/seed-0/scores.json"))
    assert trained == sorted(2 * ["weighted-bce-1", "weighted-bce-3", "focal-bce", "focal-bce-adaptive"])
    steps = {json.loads((p / "metrics.jsonl").read_text().splitlines()[-1])["step"] for p in run.glob("*/*/seed-0")}
    assert steps == {10}
    assert "| as they are | weighted-bce, 3 |" in done.stdout and "0.85 to 0.90" in done.stdout
    (run / "ledger.jsonl").write_text("")  # as if killed while its parts were being written
    again = compare(*words)
    assert again.returncode == 0 and again.stdout == done.stdout
    model = run / "as-they-are/weighted-bce-3/seed-0"
    samples = read_manifest(folder / "test").samples
    found, reader = decisions(model, samples), Reader(_exported(model))
    read = reader.read([reader.open(s.path) for s in samples])
    assert found.n == 24 and found.there == sum(len(s.text) for s in samples)
    assert found.exact == round(24 * exact_match([(s.text, r.text) for s, r in zip(samples, read, strict=True)]))
    assert found.right <= min(found.said, found.there)


def _exported(run: Path) -> Path:
    from recognizer.deploy.export import export

    return export(run)[0]


def test_notes_are_held_against_what_came_out(tmp_path: Path) -> None:
    ledger = Ledger(tmp_path / "ledger.jsonl")
    ledger.record("prepare", charset=CHARACTERS, counts={"as they are": 90, "long-tailed": 30})
    settings = LossSettings(data=("d",), pos_weights=(1.0, 2.0, 5.0), focal=False, seeds=2)
    for part in ("as they are", "long-tailed"):
        for arm in settings.arms():
            for seed in range(2):
                ledger.record(f"read {part} {arm} {seed}", right=45, said=47, there=100, exact=seed, n=10)
    lines = table(settings, ledger).splitlines()
    assert "0.450 (0.40 to 0.50: holds) | 0.957 (over 0.95: holds) | 0.000, 0.100 | 0.050 (" in lines[4]
    assert lines[5].startswith("| as they are | weighted-bce, 2 | 0.450 | 0.957 |")
    assert "over 0.95: does not hold" in lines[6] and "0.80 to 0.85: does not hold" in lines[6]
    assert set(NOTES) == {1, 3, 5}


@pytest.mark.parametrize(
    ("words", "line"),
    [
        (["--methods", "splice"], "leave --methods out"),
        (["--set", "tail=0.5"], "tail = 0.5"),
        (["--limit", "24", "--set", "tail=100"], "are needed: give more"),
        (["--charset", "00"], "the charset holds '0' more than once"),
        (["--set", 'reader.keep=["TRAIN"]'], "reader.keep: "),
    ],
)
def test_a_mistake_is_one_line(folder: Path, tmp_path: Path, words: list[str], line: str) -> None:
    how = ("--data", folder / "train", "--test", folder / "test", "--out", tmp_path / "run")
    words = [word.replace("TRAIN", str(folder / "train")) for word in words]
    ended = practice("compare", "--losses", *how, *words)
    assert ended.status == 2 and line in ended.err.splitlines()[-1] and "Traceback" not in ended.err


def test_a_reader_without_positions_decides_nothing() -> None:
    with pytest.raises(UserError, match="decides nothing by position"):
        decisions(TINY, [])
