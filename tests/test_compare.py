"""Comparisons through their door, at tiny size; and the figures that say how like real pictures made ones are."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from conftest import kill_at, practice

from augment.likeness import coverage, features_of, frechet
from pipelines.compare import CompareSettings
from pipelines.compare import test_samples as samples_to_test
from pipelines.ledger import Ledger
from pipelines.report import print_status
from pipelines.scheme import write_scheme
from recognizer.errors import UserError
from recognizer.samples import read_manifest
from recognizer.training.checkpoint import DEFAULT

METHODS = ["none", "classical", "splice"]
COMMAND = [sys.executable, "-m", "pipelines.cli"]
TIMES = {"seconds", "a_second", "provenance"}
READ = r"\| classical \| [01]\.\d"  # it was compared


def facts(run: Path) -> list[Any]:
    rows = [json.loads(line) for line in (run / "ledger.jsonl").read_text().splitlines()]
    return [{k: v for k, v in row.items() if k not in TIMES} for row in rows]


@pytest.fixture(scope="module")
def drawn(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("compare")
    write_scheme(folder / "scheme", 60, 20, 0)
    return folder


def words(drawn: Path, out: str) -> list[str]:
    return [
        "compare", "--data", str(drawn / "scheme/labelled"), "--test", str(drawn / "scheme/test"),
        "--out", str(drawn / out), "--methods", ",".join(METHODS), "--seeds", "2", "--pictures", "96", "--jobs", "1",
        "--set", "reader.validations=2", "--set", "reader.size=tiny", "--set", "reader.batch=16",
        "--set", "reader.checkpoint_seconds=0.5",
    ]  # fmt: skip


@pytest.fixture(scope="module")
def whole(drawn: Path) -> tuple[Path, str]:
    done = subprocess.run([*COMMAND, *words(drawn, "whole")], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return drawn / "whole", done.stdout


def test_status_says_where_a_comparison_is(
    whole: tuple[Path, str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    print_status(whole[0])
    said = capsys.readouterr().out
    assert "a comparison; done: prepare, test, made classical" in said and f"it is finished: {whole[0]}" in said
    cut = shutil.copytree(whole[0], tmp_path / "cut")
    (cut / "table.md").unlink()
    (cut / "none/seed-1/scores.json").unlink()
    (cut / "ledger.jsonl").write_text((whole[0] / "ledger.jsonl").read_text().splitlines(keepends=True)[0])
    print_status(cut)
    said = capsys.readouterr().out
    assert "done: prepare\n" in said and f"go on with: practice compare --resume {cut}" in said
    assert re.search(r"training none/seed-1 at step \d+ of \d+", said)


def test_each_method_trains_alike_and_its_table_follows_from_its_readings(whole: tuple[Path, str]) -> None:
    run, said = whole
    steps = {entry["step"]: entry for entry in facts(run)}
    assert list(steps) == [
        "prepare", "test", "made classical", "fit splice", "made splice",
        *(f"read {m} {s}" for m in METHODS for s in (0, 1)),
    ]  # fmt: skip
    n = steps["prepare"]["train"]
    for name in METHODS[1:]:
        made = steps[f"made {name}"]
        assert made["kept"] == n == len((run / name / "kept/metadata.jsonl").read_text().splitlines())
        assert made["asked"] == made["passed"] + sum(made["refused"].values()) and made["passed"] >= n
        assert 0 <= made["coverage"] <= 1 and made["frechet"] > 0 and made["frechet_real"] > 0
    for name in METHODS:
        for s in (0, 1):
            last = json.loads((run / name / f"seed-{s}" / "metrics.jsonl").read_text().splitlines()[-1])
            assert last["step"] == 6, "equal compute"
    truth = {s.name: s.text for s in read_manifest(run.parent / "scheme/test")}
    for name in METHODS:
        rates = [np.mean([steps[f"read {name} {s}"]["readings"][k] == t for k, t in truth.items()]) for s in (0, 1)]
        assert f"| {name} | {rates[0]:.3f}, {rates[1]:.3f} | {np.mean(rates):.3f} (" in said
    assert said == (run / "table.md").read_text()


def test_killed_at_any_moment_it_goes_on_to_the_same_end(whole: tuple[Path, str], drawn: Path) -> None:
    for waited in ("none/seed-0/metrics.jsonl", "classical/kept", "splice/seed-1/metrics.jsonl"):
        kill_at(drawn / "killed" / waited, [*COMMAND, *words(drawn, "killed")])
    time.sleep(1)  # the training that it had started is ended with it
    done = practice("compare", "--resume", drawn / "killed")
    assert done.status == 0, done.err
    assert facts(drawn / "killed") == facts(whole[0])


def test_pictures_without_labels_are_compared_as_a_method(drawn: Path) -> None:
    write_scheme(drawn / "more", 90, 6, 1)
    done = practice(
        "compare", "--data", drawn / "scheme/labelled", "--test", drawn / "scheme/test", "--out", drawn / "found",
        "--unlabelled", drawn / "more/labelled", "--methods", "none", "--seeds", "1", "--pictures", "64",
        "--jobs", "1", "--set", "reader.validations=1", "--set", "reader.batch=16", "--set", "made=0.4",
    )  # fmt: skip
    assert done.status == 0, done.err
    made = {entry["step"]: entry for entry in facts(drawn / "found")}["made unlabelled"]
    found = read_manifest(drawn / "found/unlabelled/kept").samples
    assert made["wanted"] == made["kept"] == len(found) <= made["passed"] < made["asked"] == 90
    truth = {str(s.path.resolve()): s.text for s in read_manifest(drawn / "more/labelled") if s.path}
    assert np.mean([truth[s.meta["found"]] == s.text for s in found]) > 0.8
    assert "| unlabelled | 90 |" in done.out


def test_more_methods_join_a_finished_comparison_and_nothing_is_trained_twice(
    whole: tuple[Path, str], drawn: Path
) -> None:
    grown = shutil.copytree(whole[0], drawn / "grown")
    more = [w.replace(",".join(METHODS), ",".join([*METHODS, "captcha"])) for w in words(drawn, "grown")]
    done = practice(*more)
    assert done.status == 0, done.err
    before = facts(whole[0])
    assert facts(grown)[: len(before)] == before
    assert [entry["step"] for entry in facts(grown)[len(before) :]] == [
        "made captcha", "read captcha 0", "read captcha 1",
    ]  # fmt: skip
    assert "| captcha | " in done.out and f'"{METHODS[-1]}", "captcha"' in (grown / "settings.toml").read_text()
    for name in METHODS:
        weights = [(run / name / "seed-1/weights.safetensors").stat().st_mtime_ns for run in (whole[0], grown)]
        assert weights[0] == weights[1], "kept as it was copied"


def test_test_pictures_that_were_exchanged_under_their_names_are_not_compared(
    whole: tuple[Path, str], drawn: Path, tmp_path: Path
) -> None:
    ledger = Ledger(whole[0] / "ledger.jsonl")
    shutil.copytree(drawn / "scheme" / "test", tmp_path / "test")
    settings = CompareSettings(data=(str(drawn),), test=str(tmp_path / "test"))
    assert len(samples_to_test(settings, ledger)) == len(ledger["test"]["texts"])
    one, other = sorted((tmp_path / "test").rglob("*.jpg"))[:2]
    shutil.copy(one, other)
    with pytest.raises(UserError, match="has changed since the comparison began"):
        samples_to_test(settings, ledger)


def test_a_finished_comparison_is_shown_without_its_start_which_more_methods_need(
    drawn: Path, whole: tuple[Path, str]
) -> None:
    run = shutil.copytree(whole[0], drawn / "shown")
    lines = (run / "ledger.jsonl").read_text().splitlines()
    first = json.loads(lines[0]) | {"start_sha256": "another"}
    (run / "ledger.jsonl").write_text("\n".join([json.dumps(first), *lines[1:], ""]))
    done = practice(*words(drawn, "shown"))
    assert done.status == 0 and "| splice |" in done.out and (run / "table.md").is_file(), done.err
    more = [w.replace(",".join(METHODS), ",".join([*METHODS, "captcha"])) for w in words(drawn, "shown")]
    done = practice(*more)
    assert done.status == 2 and "are others than when the run began" in done.err and (run / "table.md").is_file()


def test_a_method_that_fails_costs_the_others_nothing(drawn: Path) -> None:
    asked = [
        "compare", "--data", str(drawn / "scheme/labelled"), "--test", str(drawn / "scheme/test"),
        "--out", str(drawn / "failing"), "--methods", "none,cgan,classical", "--seeds", "1", "--pictures", "32",
        "--jobs", "1", "--set", "reader.validations=1", "--set", "reader.batch=16",
        "--set", 'fit.cgan={steps=2, batch=4, start="nothing", tracker="none", learning_rate=1e30}',
    ]  # fmt: skip
    done = practice(*asked)
    last = done.err.splitlines()[-1]
    assert done.status == 2 and last.startswith("error: cgan could not be compared: cgan cannot be fitted"), last
    table = (drawn / "failing" / "table.md").read_text()
    assert "| cgan | not compared: cgan cannot be fitted" in table and re.search(READ, table)
    without = [w.replace("none,cgan,classical", "none,classical") for w in asked]
    done = practice(*without)
    assert done.status == 0 and "cgan" not in done.out and re.search(READ, done.out), done.err


@pytest.mark.parametrize(
    ("more", "said"),
    [
        (["--out", "{new}"], "say what to train on"),
        (["--data", "{scheme}", "--out", "{new}"], "say what to compare on"),
        (["--data", "{scheme}", "--test", "{scheme}", "--out", "{new}", "--methods", "splice"], "none and at least"),
        (["--data", "{scheme}", "--test", "{scheme}", "--out", "{new}", "--methods", "none,none"], "none and at least"),
        (["--data", "{scheme}", "--test", "{scheme}", "--out", "{new}", "--methods", "none,splce"], "no method is"),
        (["--data", "{scheme}", "--test", "{scheme}", "--out", "{new}", "--methods", "none,sd"], "sd needs weights"),
        (["--data", "{scheme}", "--test", "{scheme}", "--out", "{new}", "--charset", "00"], "holds '0' more than once"),
        (
            [
                "--data",
                "{scheme}",
                "--test",
                "{scheme}",
                "--out",
                "{new}",
                "--set",
                "fit.vae={{step=2}}",
                "--methods",
                "none,vae",
            ],
            "did you mean 'steps'",
        ),
        (["--data", "{scheme}", "--test", "{scheme}", "--out", "{whole}"], "was begun with other settings"),
        (["--resume", "{new}"], "is no comparison"),
    ],
)
def test_a_mistake_is_one_line(
    whole: tuple[Path, str], drawn: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch,
    more: list[str], said: str, tmp_path: Path,
) -> None:  # fmt: skip
    from pipelines.cli import app

    places = {"scheme": drawn / "scheme/labelled", "new": tmp_path / "new", "whole": whole[0]}
    monkeypatch.setattr(sys, "argv", ["practice", "compare", *(word.format(**places) for word in more)])
    with pytest.raises(SystemExit) as ended:
        app()
    assert ended.value.code == 2
    lines = capsys.readouterr().err.strip().splitlines()
    assert said in lines[-1] and lines[-1].startswith("error: ") and not (tmp_path / "new").exists()


# ------------------------------------------------------------------------------------------------------------ likeness


def test_the_frechet_distance_of_normal_features_is_the_formula_of_their_moments() -> None:
    rng = np.random.default_rng(0)
    turn = np.linalg.qr(rng.standard_normal((3, 3)))[0]
    a = rng.standard_normal((200_000, 3)) * [1, 2, 3] @ turn + [1, 0, 0]
    b = rng.standard_normal((200_000, 3)) * [2, 2, 1] @ turn + [0, 0, 2]
    # covariances that share their axes: squared distances of means and of deviations along each
    assert frechet(a, b) == pytest.approx(1 + 4 + 1 + 0 + 4, rel=0.02)
    assert frechet(a, a) == pytest.approx(0, abs=1e-6)


def test_coverage_is_whole_for_the_same_pictures_and_little_for_one_look() -> None:
    rng = np.random.default_rng(0)
    real, others = rng.standard_normal((300, 4)), rng.standard_normal((300, 4))
    assert coverage(real, real) == 1
    assert coverage(real, others) > 0.9
    assert coverage(real, np.repeat(others[:1], 300, 0)) < 0.05
    assert coverage(real, others + 20) == 0


def test_features_tell_one_scheme_from_another_and_not_two_parts_of_one(drawn: Path, tmp_path: Path) -> None:
    from augment.synthesize import requests_for_texts, synthesize

    samples = read_manifest(drawn / "scheme/labelled").samples
    synthesize("render", {}, requests_for_texts([s.text for s in samples[:30]], (160, 60), 0), tmp_path / "rendered")
    first, second, other = (
        features_of(DEFAULT, own) for own in (samples[:30], samples[30:], read_manifest(tmp_path / "rendered").samples)
    )
    assert len(first) == 30 and first.shape == other.shape
    assert 1.5 * frechet(first, second) < frechet(first, other)
