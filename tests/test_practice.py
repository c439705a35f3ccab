"""Practice through its door: the whole loop at tiny size, killed and resumed, and what it does with bad input."""

from __future__ import annotations

import json
import os
import re
import resource
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from conftest import kill_at, practice, recognizer, refusal

from augment.method import Request
from augment.synthesize import synthesize
from pipelines.ledger import Ledger, enough, time_left, to_come
from pipelines.portfolio import UNLABELLED
from pipelines.practice import (
    PracticeSettings,
    ahead,
    arms_of,
    begun_with,
    choose,
    doubted_to_validate,
    fold_trainings,
    learns_anew,
    practise_round,
    practised_on,
    rank,
    read_held_out,
    see_what_is_left_outside,
    settle,
    share_of,
    taken_before,
    taught,
    told_of,
    winners,
    with_others,
    worse,
)
from pipelines.run import Run, answers, fit_into, prepare, read, read_some, scores_of
from pipelines.scheme import write_scheme
from pipelines.unlabelled import guessed, relabelled, take
from recognizer.errors import MachineError, Stopped, UserError, tells_of_the_machine
from recognizer.readings import Reading
from recognizer.samples import Sample, read_manifest, write_folder
from recognizer.settings import load
from recognizer.training.checkpoint import DEFAULT, TINY, read_weights, save_weights
from recognizer.training.pseudo import DOUBTED, LIKELY
from recognizer.training.side_by_side import Training
from recognizer.training.train import TrainSettings

SMALL = """
starts = 2
folds = 2
rounds = 1
pictures = 192
made = 0.6
seeds = 1
methods = ["classical", "vae"]
[reader]
size = "tiny"
validations = 2
batch = 16
checkpoint_seconds = 0.5
[fit.vae]
steps = 2
batch = 4
start = "nothing"
tracker = "none"
"""
COMMAND = [sys.executable, "-m", "pipelines.cli"]
TIMES = {"seconds", "provenance", "a_second", "ahead", "ahead_anew", "ahead_controls"}


def facts(run: Path) -> list[Any]:
    """A ledger without what a clock says."""

    def bare(value: Any) -> Any:
        if isinstance(value, dict):
            return {k: bare(v) for k, v in value.items() if k not in TIMES}
        return value

    return [bare(json.loads(line)) for line in (run / "ledger.jsonl").read_text().splitlines()]


@pytest.fixture(scope="module")
def drawn(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("practice")
    write_scheme(folder / "scheme", 60, 20, 0)
    (folder / "small.toml").write_text(SMALL)
    return folder


def words(drawn: Path, out: str) -> list[str]:
    scheme = drawn / "scheme"
    return [
        "run", "--config", str(drawn / "small.toml"), "--data", str(scheme / "labelled"),
        "--test", str(scheme / "test"), "--out", str(drawn / out), "--jobs", "1",
    ]  # fmt: skip


@pytest.fixture(scope="module")
def whole(drawn: Path) -> Path:
    done = subprocess.run([*COMMAND, *words(drawn, "whole")], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return drawn / "whole"


def test_a_run_leaves_all_that_it_says(whole: Path) -> None:
    steps = {entry["step"]: entry for entry in facts(whole)}
    ends = ["settled"] * steps["round 1"]["goes_on"] + ["chosen", "test"]
    assert list(steps) == [
        "prepare", "baseline", "fit vae", "round 1 even", "round 1 trial", "round 1 earned",
        "round 1 mine", "round 1", *ends,
    ]  # fmt: skip
    assert [steps["prepare"][part] for part in ("train", "validation")] == [48, 12], "about ten of few labels validate"
    asked = steps["round 1 mine"]["methods"]
    even = steps["round 1 even"]["methods"]
    total = sum(own["asked"] for own in asked.values())
    assert [own["asked"] for own in even.values()] == [7, 7]
    assert 27 <= total <= 30, "but for texts with a character that a method never saw"
    weights = steps["round 1 trial"]["weights"]
    assert sum(weights.values()) == pytest.approx(1)
    for name in asked:
        more = asked[name]["asked"] - even[name]["asked"]
        assert -3 <= more - 15 * weights[name] <= 1, "the rest goes by what was earned"
    kept = sum(own["kept"] for own in asked.values())
    assert (
        kept == steps["round 1 mine"]["kept"] == len((whole / "round-1/kept/metadata.jsonl").read_text().splitlines())
    )
    assert steps["test"]["before"]["n"] == steps["test"]["alone"]["n"] == 20
    for name in ("report.html", "reader.onnx", "weights.safetensors", "round-1/mined/sheet.png"):
        assert (whole / name).stat().st_size > 1000
    row = json.loads((whole / "round-1/kept/metadata.jsonl").read_text().splitlines()[0])
    assert {"method", "settings", "seed", "source"} <= set(row)


def test_killed_at_any_moment_it_goes_on_to_the_same_end(whole: Path, drawn: Path) -> None:
    out = drawn / "killed"
    for waited in ("folds/fold-1.log", "round-1/even", "round-1/pupil/metrics.jsonl"):
        kill_at(out / waited, [*COMMAND, *words(drawn, "killed")])
    time.sleep(1)  # the training that it had started is ended with it
    done = practice(*words(drawn, "killed"))
    assert done.status == 0, done.err
    assert facts(out) == facts(whole)


def test_cut_off_after_any_step_it_goes_on_to_the_same_end(whole: Path, drawn: Path) -> None:
    lines = (whole / "ledger.jsonl").read_text().splitlines(keepends=True)
    steps = [json.loads(line)["step"] for line in lines]
    for step in steps[steps.index("round 1 even") :]:
        run = shutil.copytree(whole, drawn / "cut")
        (run / "ledger.jsonl").write_text("".join(lines[: steps.index(step)]))  # all was done but for saying so
        done = practice(*words(drawn, "cut"))
        assert done.status == 0, f"{step}: {done.err}"
        assert facts(run) == facts(whole), step
        shutil.rmtree(run)


def test_a_finished_run_reads_its_test_set_no_more(whole: Path, drawn: Path) -> None:
    before = (whole / "ledger.jsonl").read_bytes()
    (drawn / "scheme" / "test").rename(drawn / "gone")
    try:
        done = practice("run", "--resume", str(whole))
    finally:
        (drawn / "gone").rename(drawn / "scheme" / "test")
    assert done.status == 0, done.err
    assert (whole / "ledger.jsonl").read_bytes() == before


def test_a_run_goes_on_with_another_number_of_trainings_beside_each_other(whole: Path, drawn: Path) -> None:
    run = shutil.copytree(whole, drawn / "beside")
    asked = [*words(drawn, "beside")[:-1], "2"]
    done = practice(*asked)
    assert done.status == 0 and facts(run) == facts(whole), done.err
    assert "jobs = 2" in (run / "settings.toml").read_text()
    assert "with other settings (rounds, seed; see" in refusal(practice(*asked, "--rounds", 2, "--seed", 1))


def test_how_long_the_rest_may_take_goes_by_the_baselines_pace(
    whole: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = load(PracticeSettings, whole / "settings.toml", {})
    run = prepare(settings, whole, Ledger(whole / "ledger.jsonl"))
    pace = json.loads((whole / "baseline/metrics.jsonl").read_text().splitlines()[-1])["pictures_per_second"]
    # one round of half the pictures: a pupil and a control, as much again for two folds, four trials of a quarter
    assert ahead(run, settings) == pytest.approx(192 / pace * 0.5 * (4 + 4 * 0.25))
    # where a round guesses, its trainings are as long as the first ones, and its trials as short as ever
    assert ahead(run, settings, anew=True) == pytest.approx(192 / pace * (6 + 0.5 * 4 * 0.25))
    # with pictures without labels one more trial, and twice all of it anew, two trainings each
    found = settings.model_copy(update={"methods": (*settings.methods, UNLABELLED)})
    assert ahead(run, found) == pytest.approx(192 / pace * (0.5 * (4 + 5 * 0.25) + 4))
    shutil.copy(whole / "ledger.jsonl", tmp_path)
    more = replace(run, ledger=Ledger(tmp_path / "ledger.jsonl"))
    more.ledger.record(
        "prepare", **{k: v for k, v in run.ledger["prepare"].items() if k != "step"} | {"unlabelled": 48}
    )
    with monkeypatch.context() as patched:
        patched.setattr(TrainSettings, "pictures_for", lambda self, n: 4 * n)
        assert ahead(more, found) == pytest.approx(192 / pace * (0.5 * (4 + 5 * 0.25) + 2 + 2 * 2)), (
            "the last is longer"
        )
    steps = [entry for entry in run.ledger if entry["step"] != "settled"]
    places = {entry["step"]: i for i, entry in enumerate(steps)}
    told = steps[places["baseline"]]["ahead"]
    assert told == [ahead(run, settings), 0], "of each number of rounds that are done"
    begun, mined = places["baseline"] + 1, places["round 1 mine"] + 1
    assert time_left(steps[: begun - 1]) is None and time_left(steps[:begun]) == time_left(steps[:mined]) == told[0]
    first, guessing = steps[mined], [*steps[: mined - 1], {**steps[mined - 1], "guessed": True}]
    assert time_left(guessing) == steps[places["baseline"]]["ahead_anew"][0] == ahead(run, settings, anew=True)
    assert time_left([*steps[:mined], {**first, "goes_on": True}]) is None, "neither learned anew nor controls"
    assert time_left([*steps[:mined], {**first, "goes_on": False}]) is None
    assert time_left([*steps[: mined - 1], {**steps[mined - 1], "enough": False}]) is None is time_left(steps)
    # what is learned anew at the end, and controls, are to come where a round has lost as well
    more = {**steps[places["baseline"]], "ahead": [9.0, 5.0], "ahead_anew": [12.0, 5.0], "ahead_controls": 2.0}
    rounds = [{**first, "goes_on": won} for won in (True, False)]
    begun_anew = [*steps[: places["baseline"]], more, *steps[begun:mined]]
    settled, chosen, controls = ({"step": step} for step in ("settled", "chosen", "controls trained"))
    assert (
        time_left([*begun_anew, rounds[0]])
        == 5
        == time_left([*begun_anew, rounds[0], {**rounds[1], "step": "round 2"}])
    )
    assert time_left([*begun_anew, rounds[1]]) == 2 == time_left([*begun_anew, rounds[0], settled])
    assert time_left([*begun_anew, rounds[1], chosen]) == 2
    assert time_left([*begun_anew, rounds[1], chosen, controls]) is None


def test_pictures_that_are_gone_end_in_one_line_and_the_run_goes_on_when_they_are_back(
    whole: Path, drawn: Path
) -> None:
    run, test, away = shutil.copytree(whole, drawn / "gone"), drawn / "scheme/test", drawn / "away"
    lines = (run / "ledger.jsonl").read_text().splitlines(keepends=True)
    (run / "ledger.jsonl").write_text("".join(line for line in lines if json.loads(line)["step"] != "test"))
    test.rename(away)
    done = practice(*words(drawn, "gone"))
    early = shutil.copytree(run, drawn / "gone early")
    (early / "ledger.jsonl").write_text(lines[0])
    told = practice("run", "--resume", str(early))
    away.rename(test)
    assert (done.status, done.err.splitlines()) == (2, [f"error: {test}: no such file or folder"])
    assert (told.status, told.err) == (2, done.err), "before anything is trained"
    done = practice(*words(drawn, "gone"))
    assert done.status == 0 and facts(run) == facts(whole)


def test_a_test_set_that_changed_is_not_read(whole: Path, drawn: Path, tmp_path: Path) -> None:
    run, listed = shutil.copytree(whole, drawn / "changed"), drawn / "scheme/test/metadata.jsonl"
    lines = (run / "ledger.jsonl").read_text().splitlines(keepends=True)
    (run / "ledger.jsonl").write_text("".join(line for line in lines if json.loads(line)["step"] != "test"))
    before = listed.read_text()
    listed.write_text("".join(before.splitlines(keepends=True)[:-1]))
    done = practice(*words(drawn, "changed"))
    listed.write_text(before)
    assert done.status == 2 and "has changed since the run began" in done.err
    assert "test" not in {row["step"] for row in facts(run)}


def test_what_was_made_before_a_kill_is_used_where_it_answers_the_same_requests(tmp_path: Path) -> None:
    asked = [Request("AB", 1, 60, 20), replace(Request("AC", 2, 60, 20), pair="x.png")]
    synthesize("render", {}, asked, tmp_path / "made")
    assert answers(tmp_path / "made", asked)
    assert not answers(tmp_path / "made", asked[:1]) and not answers(tmp_path / "none", asked)
    assert not answers(tmp_path / "made", [asked[0], replace(asked[1], pair=None)])


def test_a_slip_of_the_first_command_does_not_cost_the_folder(drawn: Path, tmp_path: Path) -> None:
    asked = [*words(drawn, "slip"), "--set", "rounds=2"]
    small = tmp_path / "small"  # letters that no label to learn from holds
    write_folder([replace(s, text="abcd") for s in read_manifest(drawn / "scheme" / "test")], small)
    for slip, said in (
        (["--test", str(tmp_path / "none")], "none: no such"),
        (["--limit", "8", "--folds", "5"], "too few"),
        (["--from", str(tmp_path / "none")], "none: no such weights file"),
        (["--test", str(small)], "small: no sample is left to test on"),
    ):
        ended = practice(*asked, *slip)
        assert ended.status == 2 and said in ended.err
    (drawn / "slip" / "weights.safetensors").write_bytes(b"")  # of a training, which has settings and no ledger as well
    assert "was begun with other settings" in refusal(practice(*asked, "--rounds", 3))


def test_a_folder_with_data_in_it_is_not_taken_for_a_run(drawn: Path, tmp_path: Path) -> None:
    shutil.copytree(drawn / "scheme" / "labelled", tmp_path / "project" / "data")
    ended = practice("run", "--data", tmp_path / "project" / "data", "--out", tmp_path / "project")
    assert "exists and is not empty" in refusal(ended)
    assert len(read_manifest(tmp_path / "project" / "data")) == 60


def test_somebodys_own_settings_are_not_written_over(drawn: Path, tmp_path: Path) -> None:
    own, labelled = tmp_path / "settings.toml", drawn / "scheme" / "labelled"
    own.write_text("# mine\nseed = 3\n")
    for ended in (
        practice("run", "--config", own, "--data", labelled, "--out", tmp_path),
        recognizer("train", "--config", own, "--data", labelled, "--seeds", 2, "--out", tmp_path),
    ):
        assert "exists and is not empty" in refusal(ended)
    assert own.read_text() == "# mine\nseed = 3\n" and list(tmp_path.iterdir()) == [own]
    shutil.copytree(labelled, tmp_path / "data")  # where a run's own copies lie
    ended = practice("run", "--config", own, "--data", tmp_path / "data", "--out", tmp_path)
    assert "exists and is not empty" in refusal(ended)
    assert own.read_text() == "# mine\nseed = 3\n" and len(read_manifest(tmp_path / "data")) == 60


def test_copies_of_a_picture_count_once(drawn: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    labelled, tested = (read_manifest(drawn / "scheme" / part).samples for part in ("labelled", "test"))
    for part, samples in (("labelled", labelled), ("test", tested)):
        again = [replace(s, name=f"again-{s.name}") for s in samples[:15]]
        write_folder([*samples, *again, replace(samples[0], name="other", text="Z9")], tmp_path / part)
    settings = PracticeSettings(data=(str(tmp_path / "labelled"),), test=str(tmp_path / "test"))
    (tmp_path / "run").mkdir()
    run = prepare(settings, tmp_path / "run", Ledger(tmp_path / "run" / "ledger.jsonl"))
    assert len(run.train) + len(run.validation) == 61, "another label of the same picture is no copy of the first"
    told = " ".join(capsys.readouterr().err.split())
    assert "15 of 76 labelled pictures are copies of others, and are left out" in told
    assert "15 of 36 pictures to test on are copies of others: intervals and p take each for one more" in told


def test_a_start_that_changed_is_not_gone_on_with(drawn: Path, tmp_path: Path) -> None:
    start = shutil.copy(TINY, tmp_path / "start.safetensors")
    settings = PracticeSettings(data=(str(drawn / "scheme" / "labelled"),), start=str(start))
    (tmp_path / "run").mkdir()
    run = prepare(settings, tmp_path / "run", Ledger(tmp_path / "run" / "ledger.jsonl"))
    see_what_is_left_outside(run, settings)
    shutil.copy(DEFAULT, start)
    with pytest.raises(UserError, match=r"start\.safetensors\) are others than when the run began"):
        see_what_is_left_outside(run, settings)


def test_a_fit_of_pictures_that_are_elsewhere_now_begins_anew(drawn: Path, tmp_path: Path) -> None:
    values = {"steps": 1, "batch": 4, "start": "nothing", "tracker": "none"}
    (tmp_path / "fit").mkdir()  # as it lies in a run that was moved
    asked = {
        "method": "vae",
        "data": [str(tmp_path / "gone")],
        "limit": None,
        "label_pattern": None,
        "settings": values,
    }
    (tmp_path / "fit" / "asked.json").write_text(json.dumps(asked))
    said = fit_into(tmp_path / "fit", "vae", ["--data", str(drawn / "scheme/labelled")], values)
    assert said == "fitted to 60 pictures in 1 steps"


def in_ideographs(samples: Sequence[Sample], out: Path) -> None:
    """Copy samples under labels of characters that the fonts at hand do not draw."""
    write_folder([replace(s, text="".join(chr(0x4E00 + ord(c)) for c in s.text)) for s in samples], out)


def test_a_method_that_cannot_draw_a_label_is_left_out(drawn: Path, tmp_path: Path) -> None:
    in_ideographs(read_manifest(drawn / "scheme" / "labelled").samples, tmp_path / "labelled")
    asked = [
        "run", "--config", str(drawn / "small.toml"), "--data", str(tmp_path / "labelled"), "--out",
        str(tmp_path / "out"), "--jobs", "1", "--methods", "captcha,classical", "--set", "starts=1",
    ]  # fmt: skip
    done = practice(*asked)
    assert done.status == 0, done.err
    assert "captcha: " in done.err and "practice goes on without it" in done.err


def test_a_first_round_that_makes_nothing_leaves_the_reader_from_before(drawn: Path, tmp_path: Path) -> None:
    for part in ("labelled", "test"):
        in_ideographs(read_manifest(drawn / "scheme" / part).samples, tmp_path / part)
    asked = [
        "run", "--config", str(drawn / "small.toml"), "--data", str(tmp_path / "labelled"), "--test",
        str(tmp_path / "test"), "--out", str(tmp_path / "out"), "--jobs", "1", "--methods", "captcha",
        "--controls", "random", "--set", "starts=1",
    ]  # fmt: skip
    done = practice(*asked)
    assert done.status == 0, done.err
    assert "round 1: nothing more to practise on" in done.err and "nothing that controls" in done.err
    assert "the run is finished and keeps the reader of baseline" in done.out
    steps = {row["step"]: row for row in facts(tmp_path / "out")}
    assert steps["test"]["before"] == steps["test"]["after"] and steps["test"]["after"]["n"] == 20
    assert "Nothing was practised" in (tmp_path / "out/report.html").read_text()
    assert (tmp_path / "out/weights.safetensors").exists()


def test_a_space_and_a_long_label_cost_a_run_nothing(drawn: Path, tmp_path: Path) -> None:
    """No font draws a space that could be seen: other texts are drawn. A fold without the longest label sees pictures
    as wide as the others do, or their weights had no mean."""
    samples = list(read_manifest(drawn / "scheme" / "labelled").samples)
    samples[0] = replace(samples[0], text=f"{samples[0].text[:2]} {samples[0].text[2:]}")
    samples[1] = replace(samples[1], text="ABCDEFGHJKLM")
    write_folder(samples, tmp_path / "labelled")
    asked = [
        "run", "--config", str(drawn / "small.toml"), "--data", str(tmp_path / "labelled"), "--validation",
        str(drawn / "scheme/test"), "--out", str(tmp_path / "out"), "--jobs", "1", "--methods", "captcha",
        "--set", "starts=1",
    ]  # fmt: skip
    done = practice(*asked)
    assert done.status == 0, done.err
    drawn_texts = [s.text for s in read_manifest(tmp_path / "out/round-1/kept")]
    assert len(drawn_texts) > 20 and not any(" " in text for text in drawn_texts)
    readers = [tmp_path / "out" / name for name in ("baseline", "folds/fold-0", "folds/fold-1")]
    assert {read_weights(path)[1].frame.min_width for path in readers} == {192}


def test_a_loss_that_is_not_finite_ends_the_run_in_one_line(drawn: Path) -> None:
    asked = [*words(drawn, "diverged"), "--set", "reader.learning_rate=1e30"]
    done = practice(*asked)
    assert done.status == 2
    assert re.match(r"error: training .* failed: the loss is nan at step", done.err.splitlines()[-1])


def test_controls_are_added_to_a_finished_run(whole: Path, drawn: Path) -> None:
    run = shutil.copytree(whole, drawn / "controlled")
    asked = [*words(drawn, "controlled"), "--controls", "random,third,random-third", "--seeds", "2"]
    assert "other settings" in refusal(practice(*asked))
    asked = [*words(drawn, "controlled"), "--controls", "random,third,random-third"]
    done = practice(*asked)
    assert done.status == 0, done.err
    before, steps = facts(whole), facts(run)
    assert steps[: len(before)] == before
    arms = ["none", "random", "third", "random-third", "practised"]
    assert [entry["step"] for entry in steps[len(before) :]] == [
        "made random", "controls trained", *(f"read {arm} 0" for arm in arms), "controls",
    ]  # fmt: skip
    named = {entry["step"]: entry for entry in steps}
    count = named["controls trained"]["practised"]
    assert count == named["round 1 mine"]["kept"] == named["made random"]["wanted"]
    pictures = {arm: len(read_manifest(run / f"controls/{arm}/kept")) for arm in arms[1:]}
    random = named["made random"]["kept"]
    assert pictures == {"random": random, "third": count // 3, "random-third": count // 3, "practised": count}
    practised, third, plain, few = (
        Counter((s.meta["method"], s.text, s.path.read_bytes()) for s in read_manifest(run / f"controls/{arm}/kept"))
        for arm in ("practised", "third", "random", "random-third")
    )
    assert third < practised and few < plain and not few & practised
    methods = [Counter(method for method, *_ in own.elements()) for own in (practised, plain)]
    assert methods[0] == methods[1] or random < count
    truth = {row["file_name"]: row["text"] for row in named["test"]["readings"]}
    for row in named["controls"]["rows"]:
        read = named[f"read {row['name']} 0"]["readings"]
        assert row["by_seed"] == [np.mean([read[k] == t for k, t in truth.items()])]
    assert "What practice added, by its controls" in (run / "report.html").read_text()
    told = {row["name"]: row["against"] for row in named["controls"]["rows"]}
    assert set(told["third"]) == {"none", "random", "random-third"} and "random-third" not in told["random-third"]
    assert "against random-third" in done.out and "| third |" in (run / "controls.md").read_text()


@pytest.mark.parametrize(
    ("more", "said"),
    [
        (["--out", "{new}"], "say what to practise on"),
        (["--data", "{scheme}", "--out", "{new}", "--set", "round=2"], "did you mean 'rounds'"),
        (["--data", "{scheme}", "--out", "{new}", "--set", "reader.bach=8"], "did you mean 'batch'"),
        (["--data", "{scheme}", "--out", "{new}", "--methods", "capcha"], "no method is called 'capcha'"),
        (["--data", "{scheme}/nowhere", "--out", "{new}"], "no such file or folder"),
        (["--data", "{scheme}", "--out", "{new}", "--limit", "8", "--folds", "5"], "too few for 5 folds"),
        (["--data", "{scheme}", "--out", "{whole}"], "was begun with other settings"),
        (["--resume", "{new}"], "is no practice run"),
        (["--data", "{scheme}", "--test", "{scheme}", "--out", "{new}"], "are among those to train on, as 000"),
        (["--data", "{scheme}", "--out", "{new}", "--set", "reader.seed=3"], "reader.seed: the run gives its readers"),
        (["--data", "{scheme}", "--out", "{new}", "--set", "reader.charset=digits"], "gives its readers that itself"),
        (["--data", "{scheme}", "--out", "{new}", "--charset", "00"], "the charset holds '0' more than once"),
        (
            ["--data", "{scheme}", "--out", "{new}", "--set", 'reader.unlabelled=["x"]'],
            "without labels are the run's --unlabelled",
        ),
        (["--data", "{scheme}", "--out", "{new}", "--set", "reader.seeds=3"], "each reader of a run is one training"),
        (
            ["--data", "{scheme}", "--out", "{new}", "--set", 'reader.keep=["{scheme}"]'],
            "reader.keep: 60 of the run's own pictures",
        ),
        (["--data", "{scheme}", "--out", "{new}", "--methods", "unlabelled"], "pictures without labels: --unlabelled"),
        (["--data", "{scheme}", "--out", "{new}", "--controls", "random"], "controls are read on test pictures"),
        (["--data", "{scheme}", "--out", "{new}", "--controls", "rndom"], "controls"),
        (["--data", "{scheme}", "--out", "{new}", "--set", "methods=[]"], "methods"),
        (["--data", "{scheme}", "--out", "{new}", "--set", "made_share=0.51"], "made_share"),
        (["--data", "{scheme}", "--out", "{new}", "--set", "found_share=0.51"], "found_share"),
        (["--data", "{scheme}", "--out", "{new}", "--set", "method.clasical.warp=3"], "method.clasical: no such"),
        (["--data", "{scheme}", "--out", "{new}", "--set", "fit.wagn.steps=3"], "fit.wagn: no such method"),
        (["--data", "{scheme}", "--out", "{new}", "--set", "fit.classical.steps=3"], "classical learns nothing"),
        (
            ["--data", "{scheme}", "--out", "{new}", "--unlabelled", "{scheme}", "--set", "method.unlabelled.found=3"],
            "method.unlabelled: it has no settings of its own; see unlabelled_confidence",
        ),
    ],
)
def test_a_mistake_is_one_line(
    whole: Path, drawn: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, more: list[str],
    said: str, tmp_path: Path,
) -> None:  # fmt: skip
    from pipelines.cli import app

    places = {"scheme": drawn / "scheme/labelled", "new": tmp_path / "new", "whole": whole}
    monkeypatch.setattr(sys, "argv", ["practice", "run", *(word.format(**places) for word in more)])
    with pytest.raises(SystemExit) as ended:
        app()
    assert ended.value.code == 2
    lines = capsys.readouterr().err.strip().splitlines()
    assert said in lines[-1] and lines[-1].startswith("error: ")


def test_pictures_without_labels_are_practised_as_they_are_read(drawn: Path) -> None:
    write_scheme(drawn / "more", 40, 6, 1)
    shutil.copytree(drawn / "scheme" / "test", drawn / "more" / "labelled" / "test")  # is never trained on
    out, loose = drawn / "found", drawn / "more" / "labelled"
    asked = [*words(drawn, "found"), "--methods", "classical", "--unlabelled", str(loose), "--controls", "random"]
    asked += ["--set", "starts=1"]
    loose.rename(drawn / "away")
    done = practice(*asked)
    assert done.status == 2 and "labelled cannot be read: No such file" in done.err
    (drawn / "away").rename(loose)
    done = practice(*asked)
    assert done.status == 0, done.err
    steps = {entry["step"]: entry for entry in facts(out)}
    assert steps["prepare"]["unlabelled"] == 40
    own = steps["round 1 mine"]["methods"]["unlabelled"]
    kept = [s for s in read_manifest(out / "round-1" / "kept") if s.meta["method"] == "unlabelled"]
    assert len(kept) == own["kept"] > 5
    assert own["asked"] == own["kept"] + sum(own["refused"].values())
    assert len({s.meta["found"] for s in kept}) == len(kept), "none is taken twice"
    known = {len(s.text) for s in read_manifest(drawn / "scheme" / "labelled")}
    assert all(min(known) <= len(s.text) <= max(known) for s in kept)
    truth = {str(s.path.resolve()): s.text for s in read_manifest(loose) if s.path}
    assert np.mean([truth[s.meta["found"]] == s.text for s in kept]) > 0.8, "what is read surely is mostly right"
    assert all(s.meta["confidence"] >= LIKELY for s in kept)
    assert all(s.read_bytes() == Path(s.meta["found"]).read_bytes() for s in kept)
    random = [s for s in read_manifest(out / "controls/random/kept") if s.meta["method"] == "unlabelled"]
    assert len(random) == len(kept) and steps["made random"]["kept"] >= 0.9 * steps["controls trained"]["practised"]
    done = practice("run", "--resume", str(out))
    assert done.status == 0 and facts(out) == list(steps.values())

    lines = (out / "ledger.jsonl").read_text().splitlines(keepends=True)  # cut off, and the pictures gone
    named = [json.loads(line)["step"] for line in lines]
    for step in ("round 1 even", "made random"):
        (out / "ledger.jsonl").write_text("".join(lines[: named.index(step)]))
        loose.rename(drawn / "away")
        done = practice("run", "--resume", str(out))
        assert done.status == 2 and re.search(r"no such file; 40 of 40 pictures without labels are gone", done.err)
        (drawn / "away").rename(loose)
        done = practice("run", "--resume", str(out))
        assert done.status == 0 and facts(out) == list(steps.values())

    for k in range(2):  # what one reader of all folds read, each of them must read itself
        again = [s for s in read_manifest(out / f"folds/made-{k}-1") if s.meta["method"] == "unlabelled"]
        assert 0 < len(again) <= len(kept) and (out / f"folds/fold-{k}-pupil-1/weights.safetensors").exists()
        texts = {name: r.text for name, r in read_some(out / f"folds/fold-{k}", again).items()}
        assert texts == {s.name: s.text for s in again}


def test_where_readers_are_sure_of_hardly_any_picture_the_likeliest_are_taken(whole: Path, tmp_path: Path) -> None:
    run = shutil.copytree(whole, tmp_path / "run")
    loose = [str(s.path) for s in read_manifest(whole.parent / "scheme" / "test")]
    (run / "data" / "unlabelled.json").write_text(json.dumps(loose))
    sure = {"unlabelled_confidence": 0.999999, "unlabelled_fewest": 0.0}
    opened = prepare(load(PracticeSettings, run / "settings.toml", sure), run, Ledger(run / "ledger.jsonl"))
    readers = [run / "baseline", *(run / "folds" / f"fold-{k}" for k in range(2))]
    none, facts = take(opened, 20, readers, 0, 1)
    assert not none and facts["least"] == 0.999999 and relabelled([], readers[0], 0.9) == []
    opened = replace(opened, settings=opened.settings.model_copy(update={"unlabelled_fewest": 0.2}))
    first, facts = take(opened, 20, readers, 0, 1)
    assert 4 <= len(first) <= 10 and DOUBTED <= facts["least"] < 0.999999
    assert all(s.meta["confidence"] >= min(LIKELY, facts["least"]) for s in first)
    more, _ = take(opened, 20, readers, 0, 2, {s.meta["found"] for s in first})
    assert more and not {s.meta["found"] for s in first} & {s.meta["found"] for s in more}, "in each round some more"
    assert take(opened, 20, readers, 0, 3, set(loose))[0] == [], "all are taken"
    alike = relabelled(first, readers[0], 0.999999)
    assert alike, "a reader is held to the likelihood by which they were taken"
    bare = [replace(s, meta={k: v for k, v in s.meta.items() if k != "least"}) for s in first]
    assert relabelled(bare, readers[0], 0.999999) == [], "which runs of before do not name"
    both = [*first, *(replace(s, name=f"bare-{s.name}") for s in bare)]
    assert relabelled(both, readers[0], 0.999999) == alike, "each by its own"
    few, told = take(opened, 2, readers, 0, 1)
    assert few and told["read"] == facts["read"] and told["least"] > facts["least"], "no more than are asked for"


def test_where_few_are_read_surely_rounds_learn_anew_and_read_again_what_was_guessed(drawn: Path) -> None:
    write_scheme(drawn / "unsure", 6, 40, 2)
    out, told = drawn / "guessed", ["unlabelled_confidence=0.999999", "starts=1"]
    done = practice(
        *words(drawn, "guessed"), "--methods", "classical", "--unlabelled", str(drawn / "unsure" / "test"),
        *(word for setting in told for word in ("--set", setting)),
    )  # fmt: skip
    assert done.status == 0 and "few are read surely" in done.err, done.err
    begun, mined, *_ = (e for e in Ledger(out / "ledger.jsonl") if e["step"] in ("baseline", "round 1 mine"))
    assert mined["guessed"] and to_come(begun["ahead_anew"][0]) in done.err, "a round that guesses takes longer"
    first = load(TrainSettings, out / "baseline/settings.toml", {})
    paths: dict[str, Any] = {"with_synthetic": (), "data": (), "synthetic_share": 0.25, "seed": 0, "pictures": 192}
    for reader, pictures in (("round-1/pupil", 192), ("round-1/control", 192), ("folds/fold-1-pupil-1", 192)):
        own = load(TrainSettings, out / reader / "settings.toml", {})
        assert own.pictures == pictures and own.model_copy(update=paths) == first.model_copy(update=paths)

    settings = load(PracticeSettings, out / "settings.toml", {})
    run = prepare(settings, out, Ledger(out / "ledger.jsonl"))
    kept = read_manifest(out / "round-1/kept").samples
    unsure = {s.meta["found"] for s in kept if guessed(s, settings)}
    assert unsure == {s.meta["found"] for s in kept if s.meta["method"] == "unlabelled"} != set()
    assert run.ledger["chosen"]["control"] == "baseline", "what learned anew is compared with what learned as long"
    facts = run.ledger["test"]
    assert facts["control"] == facts["before"] and facts["p_control"] == facts["p_before"]
    assert taken_before(run, settings, 1) == unsure and taken_before(run, settings, 2) == set()
    again = drawn / "guessed-again"  # as if round 2 had kept what round 1 did
    shutil.copytree(out, again)
    for part in ("kept", "even"):
        shutil.copytree(out / "round-1" / part, again / "round-2" / part)
    opened = replace(run, out=again, ledger=Ledger(again / "ledger.jsonl"))
    opened.ledger.record("round 2 mine", **{k: v for k, v in opened.ledger["round 1 mine"].items() if k != "step"})
    drawn_ones = [s.name for s in kept if s.meta["method"] == "classical"]
    assert drawn_ones
    own_of = [[s.name for s in read_manifest(path)] for path in practised_on(opened, 2)]
    assert own_of == [drawn_ones, [s.name for s in kept]], "what a round guessed gives way to what a later one reads"
    assert [[s.name for s in read_manifest(path)] for path in practised_on(opened, 1, 2)] == [[s.name for s in kept]]
    found = {told_of(s) for part in ("round-1", "round-2") for s in read_manifest(again / part / "kept")}
    assert len(found) == len(unsure) + 2 * len(drawn_ones), "what is read again as before is nothing new"

    won = {"goes_on": True, "nats": [1.0, 2.0]}
    for n, exact in ((1, 0.9), (2, 0.8)):
        opened.ledger.record(f"round {n}", **won, held_out={"pupil": {"exact": exact}})
    first_one, last_one = (again / f"round-{n}" / "pupil" for n in (1, 2))
    two = settings.model_copy(update={"rounds": 2})
    assert learns_anew(opened, 1) and winners(opened, two) == [first_one, last_one]
    opened.ledger.record("round 1 mine", **{k: run.ledger["round 1 mine"][k] for k in ("set_aside", "kept")})
    assert not learns_anew(opened, 1) and winners(opened, two) == [last_one, first_one], "which saw more pictures"
    assert taken_before(opened, settings, 3) == unsure, "a round from before this was told kept what it guessed"


def test_all_labels_judge_a_round_each_read_by_who_did_not_learn_it(whole: Path) -> None:
    settings = load(PracticeSettings, whole / "settings.toml", {})
    run = prepare(settings, whole, Ledger(whole / "ledger.jsonl"))
    done = run.ledger["round 1"]
    for role in ("pupil", "control"):
        folds = [whole / "folds" / f"fold-{k}-{role}-1" for k in range(2)]
        for k, reader in enumerate(folds):
            learned = load(TrainSettings, reader / "settings.toml", {})
            assert [Path(p).name for p in (*learned.data, *learned.with_synthetic)] == [
                f"fold-{k}", *([f"made-{k}-1"] if role == "pupil" else []),
            ]  # fmt: skip
            made = [s for path in learned.with_synthetic for s in read_manifest(path)]
            assert not {s.meta["source"] for s in made} & {s.name for s in run.folds[k]}
            assert not {s.meta["method"] for s in made} & {"vae"}, "it has strokes of every fold"
        samples, readings = read_held_out(run, whole / "round-1" / role, folds)
        assert sorted(s.name for s in samples) == sorted(s.name for s in (*run.train, *run.validation))
        assert done["held_out"][role] == scores_of(samples, readings).to_dict()
        assert done["held_out"][role]["n"] == 60
    own, other = (done["held_out"][role]["exact"] for role in ("pupil", "control"))
    assert rank(run, whole / "round-1/pupil") == (own, -done["nats"][0])
    assert done["goes_on"] == (own > other) or own == other


def as_if_round_1_was_won(whole: Path, run: Path, settings: PracticeSettings) -> Run:
    """A copy of a run before it settled, whose first round goes on."""
    shutil.copytree(whole, run, ignore=shutil.ignore_patterns("settled*"))
    rows = [json.loads(line) for line in (whole / "ledger.jsonl").read_text().splitlines()]
    rows = [row for row in rows if row["step"] not in ("settled", "chosen", "test")]
    rows[-1]["goes_on"] = True
    (run / "ledger.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return prepare(settings, run, Ledger(run / "ledger.jsonl"))


def test_practice_on_what_was_made_ends_with_its_best_pupil_unless_it_is_worse(whole: Path, tmp_path: Path) -> None:
    settings = load(PracticeSettings, whole / "settings.toml", {})
    run = as_if_round_1_was_won(whole, tmp_path / "run", settings)
    settle(run, settings)
    pupil = run.out / "round-1" / "pupil"
    assert run.ledger["settled"]["reader"] == "round-1/pupil" and not (run.out / "round-1/settled").exists()
    assert run.ledger["settled"]["pupil"] == run.ledger["round 1"]["pupil"]
    choose(run, settings, run.out / "round-1/control")
    chosen = run.ledger["chosen"]
    assert (chosen["reader"], chosen["control"], chosen["practised"]) == ("round-1/pupil", "round-1/control", True)
    assert same_file(run.out, pupil) and not same_file(run.out, run.out / "baseline-mean")


def with_found(run: Run) -> None:
    """As if the last of what a run's first round kept had been a picture without a label."""
    *drawn, last = read_manifest(run.out / "round-1/kept").samples
    found = replace(last, meta={"method": UNLABELLED, "source": None, "found": str(last.path)})
    write_folder([*drawn, found], run.out / "kept-before")
    shutil.rmtree(run.out / "round-1/kept")
    (run.out / "kept-before").rename(run.out / "round-1/kept")
    (run.out / "data/unlabelled.json").write_text("[]")


def test_a_round_that_reads_less_than_before_practice_earned_nothing(
    whole: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    settings = load(PracticeSettings, whole / "settings.toml", {})
    run = as_if_round_1_was_won(whole, tmp_path / "run", settings)
    rows = [entry for entry in run.ledger if entry["step"] != "round 1"]
    (run.out / "ledger.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    run = prepare(settings, run.out, Ledger(run.out / "ledger.jsonl"))
    for role in ("pupil", "control"):
        for path in (run.out / "round-1" / role, *(run.out / f"folds/fold-{k}-{role}-1" for k in range(2))):
            state, description = read_weights(path)
            never = description.charset[: 3 if role == "pupil" else None]  # it reads none of these
            for name in [name for name in state if name.endswith("classify.bias")]:
                for character in never:
                    state[name][1 + description.charset.index(character)] = -1000.0
            save_weights(path / "weights.safetensors", state, description)
    practise_round(run, settings, 1, begun_with(run), begun_with(run))
    done, before = run.ledger["round 1"], run.ledger["baseline"]["held_out"]["exact"]
    assert done["held_out"]["control"]["exact"] == 0 < done["held_out"]["pupil"]["exact"] < before
    assert done["lost"] and not done["goes_on"] and winners(run, settings) == []
    assert "round 1 reads less than was read before practice, beyond chance: practice ends" in capsys.readouterr().err


def test_what_was_practised_is_learned_anew_and_kept_unless_it_is_worse(whole: Path, tmp_path: Path) -> None:
    settings = load(PracticeSettings, whole / "settings.toml", {})
    run = as_if_round_1_was_won(whole, tmp_path / "run", settings)
    with_found(run)
    settle(run, settings)
    folder, baseline = run.out / "round-1", run.out / "baseline"
    told = [load(TrainSettings, path / "settings.toml", {}) for path in (folder / "settled", folder / "settled-1")]
    firsts = [load(TrainSettings, path / "settings.toml", {}) for path in (baseline, run.out / "baseline-1")]
    for own, first in zip(told, firsts, strict=True):
        assert own.with_synthetic == tuple(practised_on(run, 1)) != ()
        paths: dict[str, Any] = {"with_synthetic": (), "data": (), "validation": None, "synthetic_share": 0.25}
        assert own.model_copy(update=paths) == first.model_copy(update=paths)
        assert own.synthetic_share == share_of(settings, own.with_synthetic) > settings.made_share
    assert_mean(folder / "settled-mean", [folder / "settled", folder / "settled-1"])
    assert run.ledger["settled"]["reader"] == "round-1/settled-mean"

    choose(run, settings, folder / "control")
    assert run.ledger["chosen"]["reader"] == "round-1/settled-mean" and run.ledger["chosen"]["practised"]
    assert run.ledger["chosen"]["control"] == "round-1/control"
    assert same_file(run.out, folder / "settled-mean") and not same_file(run.out, run.out / "baseline-mean")

    state, description = read_weights(folder / "settled-mean")
    blind = {k: t.std() * torch.randn(t.shape) if t.ndim > 1 else t for k, t in state.items()}
    save_weights(folder / "settled-mean" / "weights.safetensors", blind, description)
    chosen_again = Run(settings, run.out, Ledger(tmp_path / "other.jsonl"), run.train, run.validation, run.folds)
    for step in ("prepare", "baseline", "round 1", "settled"):
        chosen_again.ledger.record(step, **{k: v for k, v in run.ledger[step].items() if k != "step"})
    choose(chosen_again, settings, folder / "control")
    assert chosen_again.ledger["chosen"]["reader"] == "baseline-mean" and same_file(run.out, run.out / "baseline-mean")
    assert not chosen_again.ledger["chosen"]["practised"]


def test_pictures_without_labels_are_read_again_by_what_learned_anew(
    whole: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(TrainSettings, "pictures_for", lambda self, n: 4 * n)  # 192 of 48 labels, as the others see
    settings = load(PracticeSettings, whole / "settings.toml", {})
    run = as_if_round_1_was_won(whole, tmp_path / "run", settings)
    loose = [s.path.resolve() for s in read_manifest(whole.parent / "scheme/test").samples if s.path]
    (run.out / "data/unlabelled.json").write_text(json.dumps([str(path) for path in loose]))
    told = {k: v for k, v in run.ledger["prepare"].items() if k != "step"}
    run.ledger.record("prepare", **told | {"unlabelled": len(loose)})
    *drawn, last = read_manifest(whole / "round-1/kept").samples
    shutil.rmtree(run.out / "round-1/kept")
    wrong = replace(last, text=last.text[::-1], meta={"method": UNLABELLED, "source": None, "found": str(loose[0])})
    write_folder([*drawn, wrong], run.out / "round-1/kept")
    settle(run, settings)
    again = run.out / "round-1/kept-again"
    found = [s for s in read_manifest(again) if s.meta["method"] == UNLABELLED]
    assert 0 < len(found) <= len(loose) and {s.meta["found"] for s in found} <= {str(path) for path in loose}
    assert all(s.read_bytes() == Path(s.meta["found"]).read_bytes() for s in found)
    read = read_some(run.out / "round-1/settled-mean", found)
    assert {s.name: s.text for s in found} == {name: r.text for name, r in read.items()}, "not as a round read them"
    others = [s for s in read_manifest(again) if s.meta["method"] != UNLABELLED]
    assert sorted((s.text, s.meta["seed"]) for s in others) == sorted((s.text, s.meta["seed"]) for s in drawn)
    for name, made, real in (("settled", "kept", 48), ("settled-again", "kept-again", 48 + len(found))):
        learned = load(TrainSettings, run.out / "round-1" / name / "settings.toml", {})
        assert learned.with_synthetic == (str(run.out / "round-1" / made),)
        assert learned.pictures == 4 * real, "the last learns as long as is due to labelled and found ones"
    assert run.ledger["settled"]["reader"] in ("round-1/settled-again-mean", "round-1/settled-mean")
    assert taught(run, settings) == [str(run.out / "round-1/kept")], "controls are of what was mined"


def test_pictures_that_nobody_made_take_a_larger_share_of_a_batch(whole: Path, tmp_path: Path) -> None:
    settings = load(PracticeSettings, whole / "settings.toml", {"made_share": 0.1, "found_share": 0.4})
    samples = read_manifest(whole / "round-1/kept").samples[:8]
    for name, method in (("made", "classical"), ("found", UNLABELLED)):
        write_folder([replace(s, meta={**s.meta, "method": method}) for s in samples], tmp_path / name)
    made, found = str(tmp_path / "made"), str(tmp_path / "found")
    shares = [share_of(settings, folders) for folders in ([], [made], [found], [made, found], [made, found, found])]
    assert shares == pytest.approx([0.1, 0.1, 0.4, 0.25, 0.3])


def test_controls_have_what_was_learned_anew_in_as_large_a_share(whole: Path, tmp_path: Path) -> None:
    settings = load(PracticeSettings, whole / "settings.toml", {"rounds": 2, "found_share": 0.4})
    run = as_if_round_1_was_won(whole, tmp_path / "run", settings)
    shutil.rmtree(run.out / "round-1/kept")
    samples = read_manifest(whole / "round-1/kept").samples[:8]
    write_folder([replace(s, meta={**s.meta, "method": UNLABELLED}) for s in samples], run.out / "round-1/kept")
    assert taught(run, settings) == [str(run.out / "round-1/kept")]
    for arm in ("none", "practised"):
        assert arms_of(run, settings).training(arm, 0).settings.synthetic_share == 0.4
    # a second round that read less of what was held out is not what was learned anew
    write_folder(samples, run.out / "round-2/kept")
    run.ledger.record("round 2 mine", **{k: v for k, v in run.ledger["round 1 mine"].items() if k != "step"})
    run.ledger.record("round 2", **{k: v for k, v in run.ledger["round 1"].items() if k != "step"} | {"nats": [99, 99]})
    assert len(winners(run, settings)) == 2 and taught(run, settings) == [str(run.out / "round-1/kept")]


def test_a_run_whose_rounds_earned_nothing_keeps_what_it_began_with(whole: Path, tmp_path: Path) -> None:
    settings = load(PracticeSettings, whole / "settings.toml", {})
    run = as_if_round_1_was_won(whole, tmp_path / "run", settings)
    run.ledger.record("round 1", **{k: v for k, v in run.ledger["round 1"].items() if k != "step"} | {"goes_on": False})
    settle(run, settings)
    choose(run, settings, run.out / "round-1/control")
    chosen = run.ledger["chosen"]
    assert (chosen["reader"], chosen["control"], chosen["practised"]) == ("baseline-mean", "round-1/control", False)
    assert not (run.out / "round-1/settled").exists() and same_file(run.out, run.out / "baseline-mean")


def same_file(one: Path, other: Path) -> bool:
    return (one / "weights.safetensors").read_bytes() == (other / "weights.safetensors").read_bytes()


def assert_mean(mean: Path, readers: list[Path]) -> None:
    states = [read_weights(path)[0] for path in readers]
    for name, tensor in read_weights(mean)[0].items():
        own = torch.stack([state[name] for state in states]).mean(0)
        torch.testing.assert_close(tensor, own, rtol=2e-3, atol=1e-3)  # half precision


@pytest.mark.parametrize(("exact", "order"), [((0.8, 0.7, 0.9), [1, 2]), ((0.6, 0.7, 0.9), [2, 1])])
def test_what_the_pupil_that_read_most_practised_is_learned_anew_not_the_last(
    whole: Path, tmp_path: Path, exact: tuple[float, float, float], order: list[int]
) -> None:
    rows = [json.loads(line) for line in (whole / "ledger.jsonl").read_text().splitlines()]
    done = next(row for row in rows if row["step"] == "round 1")
    lines = [row for row in rows if row["step"] == "prepare"]
    for n, own in enumerate(exact, 1):
        held = {**done["held_out"], "pupil": {**done["held_out"]["pupil"], "exact": own}}
        lines.append({**done, "step": f"round {n}", "held_out": held, "goes_on": n < 3})
    (tmp_path / "ledger.jsonl").write_text("".join(json.dumps(row) + "\n" for row in lines))
    settings = load(PracticeSettings, whole / "settings.toml", {"rounds": 3})
    run = replace(prepare(settings, whole, Ledger(tmp_path / "ledger.jsonl")), out=tmp_path)
    assert [path.parent.name for path in winners(run, settings)] == [f"round-{n}" for n in order]


def test_own_pictures_judge_out_of_fold_unless_their_method_learned(
    whole: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "own.py").write_text(
        "from augment.methods.classical import Classical\n\n\nclass Own(Classical):\n    pass\n\n\n"
        "class Learned(Own):\n    def fit(self):\n        pass\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    run = shutil.copytree(whole, tmp_path / "run", ignore=shutil.ignore_patterns("made-*"))
    listed = run / "round-1/kept/metadata.jsonl"
    for name, seen in (("own:Own", True), ("own:Learned", False)):
        rows = [json.loads(line) for line in (whole / "round-1/kept/metadata.jsonl").read_text().splitlines()]
        listed.write_text("".join(json.dumps({**row, "method": name}) + "\n" for row in rows))
        settings = load(PracticeSettings, run / "settings.toml", {"methods": [name]})
        opened = prepare(settings, run, Ledger(run / "ledger.jsonl"))
        trainings = fold_trainings(opened, settings, 1, [run / "round-1/kept"])
        assert [bool(t.settings.with_synthetic) for t in trainings["pupil"]] == [seen, seen]
        assert not any(t.settings.with_synthetic for t in trainings["control"])
        shutil.rmtree(run / "folds/made-0-1")
        shutil.rmtree(run / "folds/made-1-1")


def test_what_came_of_a_label_is_seen_by_no_reader_that_it_judges_and_goes_when_it_is_doubted(
    whole: Path, tmp_path: Path
) -> None:
    run = shutil.copytree(whole, tmp_path / "run", ignore=shutil.ignore_patterns("made-*"))
    settings, listed = load(PracticeSettings, run / "settings.toml", {}), run / "round-1/kept/metadata.jsonl"
    opened = prepare(settings, run, Ledger(run / "ledger.jsonl"))
    of = [[s.name for s in fold] for fold in opened.folds]
    rows = [{**json.loads(line), "method": "captcha"} for line in listed.read_text().splitlines()][:5]
    origins: list[dict[str, Any]] = [
        {"source": of[0][0]}, {"source": None, "pair": of[0][1]}, {"source": None, "pair": of[1][0]}, {"source": None},
        {"source": None, "pieces": [of[0][1], of[1][1]]},
    ]  # fmt: skip
    listed.write_text("".join(json.dumps(row | own) + "\n" for row, own in zip(rows, origins, strict=True)))
    fold_trainings(opened, settings, 1, [str(run / "round-1/kept")])
    names = [row["file_name"] for row in rows]
    shown = [{s.text for s in read_manifest(run / f"folds/made-{k}-1")} for k in range(2)]
    texts = [row["text"] for row in rows]
    assert shown == [set(texts[2:4]), {texts[0], texts[1], texts[3]}]

    assert practised_on(opened, 1) == [str(run / "round-1/kept")]
    mine = {k: v for k, v in opened.ledger["round 1 mine"].items() if k != "step"}
    opened.ledger.record("round 2 mine", **{**mine, "set_aside": [of[0][1]]})
    shutil.copytree(run / "round-1/kept", run / "round-2/kept")
    for _ in range(2):
        found = [[s.name for s in read_manifest(path)] for path in practised_on(opened, 2)]
        assert found == [[names[0], *names[2:4]]] * 2
    settings = settings.model_copy(update={"rounds": 2})
    own = [[s.name for s in read_manifest(path)] for path in taught(opened, settings)]
    assert own == [[names[0], *names[2:4]]], "what came of a label that round 2 doubts is not learned anew of round 1"
    assert of[0][1] not in {s.name for s in opened.trusted} and len(opened.trusted) == len(opened.train) - 1


def test_wrong_labels_that_validate_are_told_of(whole: Path) -> None:
    opened = prepare(load(PracticeSettings, whole / "settings.toml", {}), whole, Ledger(whole / "ledger.jsonl"))
    surely = next(
        (i for i, (s, r) in enumerate(zip(opened.validation, read(DEFAULT, opened.validation), strict=True))
         if r.text == s.text and r.confidence > 0.95)
    )  # fmt: skip
    wrong = replace(opened.validation[surely], text="XXXXXX")
    held = (*opened.validation[:surely], wrong, *opened.validation[surely + 1 :])
    (found,) = doubted_to_validate(replace(opened, validation=held), DEFAULT)
    assert found.sample == wrong and Path(opened.files[wrong.name]).read_bytes() == wrong.read_bytes()
    apart = replace(opened, validation=held, settings=opened.settings.model_copy(update={"validation": "other"}))
    assert not doubted_to_validate(apart, DEFAULT)


@pytest.mark.skipif(sys.platform != "linux", reason="elsewhere it is not found so")
@pytest.mark.parametrize(
    ("number", "kind", "said"),
    [(signal.SIGKILL, MachineError, "killed (SIGKILL): mostly there was too little memory; the same command goes on"),
     (signal.SIGTERM, Stopped, "was stopped and is saved; give the same command again to go on")],
)  # fmt: skip
def test_a_fit_that_is_ended_from_outside_is_no_method_that_cannot_be_fitted(
    drawn: Path, tmp_path: Path, number: signal.Signals, kind: type[Exception], said: str
) -> None:
    def end() -> None:
        while not (tmp_path / "fit/metrics.jsonl").exists():
            time.sleep(0.1)
        for command in Path("/proc").glob("[0-9]*/cmdline"):
            with suppress(OSError):  # it has ended
                if os.fsencode(tmp_path / "fit") in command.read_bytes():
                    os.kill(int(command.parent.name), number)

    ending = threading.Thread(target=end, daemon=True)  # where there never is anything to end
    ending.start()
    values = {"steps": 100_000, "batch": 4, "start": "nothing", "tracker": "none", "grids": 100_000}
    with pytest.raises(kind, match=re.escape(said)):
        fit_into(tmp_path / "fit", "vae", ["--data", str(drawn / "scheme/labelled")], values)
    ending.join()


@pytest.mark.parametrize(
    ("line", "machines"),
    [("No space left on device: runs/x", True), ("torch.OutOfMemoryError: CUDA out of memory. Tried to", True),
     ("DefaultCPUAllocator: can't allocate memory (Cannot allocate memory)", True), ("MemoryError", True),
     ("runs/x could not be written, 0 MB are free there (enforce fail): make room", True),
     ("12 samples are too few to learn from", False)],
)  # fmt: skip
def test_what_a_command_that_lacked_room_or_memory_ends_with_is_known(line: str, machines: bool) -> None:
    assert tells_of_the_machine(line) == machines


def test_a_full_disk_ends_a_run_and_costs_it_no_method(whole: Path, drawn: Path) -> None:
    run = shutil.copytree(whole, drawn / "full", ignore=shutil.ignore_patterns("fitted"))
    lines = (whole / "ledger.jsonl").read_text().splitlines(keepends=True)
    (run / "ledger.jsonl").write_text("".join(lines[:2]))  # the baseline is trained
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (3_000_000, hard))
    try:
        ended = practice(*words(drawn, "full"))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    last = ended.err.splitlines()[-1]
    assert ended.status == 2 and last.startswith("error: vae cannot be fitted: ") and "make room" in last, ended.err
    assert "fit vae" not in {entry["step"] for entry in facts(run)}
    done = practice(*words(drawn, "full"))
    assert done.status == 0, done.err
    assert facts(run) == facts(whole)


def test_folds_that_cannot_practise_are_no_judges(drawn: Path) -> None:
    done = practice(*words(drawn, "alone"), "--methods", "vae", "--set", "fit.vae.start=default", "--set", "starts=1")
    assert done.status == 0, done.err
    steps = {entry["step"]: entry for entry in facts(drawn / "alone")}
    assert not steps["baseline"]["mean"] and not (drawn / "alone/baseline-1").exists()
    started = load(TrainSettings, drawn / "alone/round-1/pupil/settings.toml", {}).start
    assert started == str(drawn / "alone/baseline")
    held = steps["round 1"]["held_out"]
    apart = held["pupil"]["exact"] - held["control"]["exact"], steps["round 1"]["pupil"]["exact"]
    for k in range(2):  # they are the same, so that validation alone tells pupil from control
        own = [read_weights(drawn / "alone/folds" / f"fold-{k}-{role}-1")[0] for role in ("pupil", "control")]
        assert all(torch.equal(t, own[1][name]) for name, t in own[0].items())
    there = round(steps["round 1"]["pupil"]["n"] * (apart[1] - steps["round 1"]["control"]["exact"]))
    assert round(held["pupil"]["n"] * apart[0]) == there


def test_a_second_round_mines_again_and_practises_on_both(
    whole: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = shutil.copytree(whole, tmp_path / "run", ignore=shutil.ignore_patterns("settled*"))
    rows = [json.loads(line) for line in (run / "ledger.jsonl").read_text().splitlines()]
    rows = [row for row in rows if row["step"] not in ("settled", "chosen", "test")]
    first = next(row for row in rows if row["step"] == "round 1 mine")
    (run / "ledger.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    settings = load(PracticeSettings, run / "settings.toml", {"rounds": 2})
    before = run / "round-1"
    opened = prepare(settings, run, Ledger(run / "ledger.jsonl"))
    with monkeypatch.context() as patched:
        patched.setattr("pipelines.practice.LITTLE", 100.0)  # beside the first the second are few
        practise_round(opened, settings, 2, before / "pupil", before / "control")
    second = opened.ledger["round 2 mine"]
    assert not enough(second) and "round 2" not in opened.ledger and not (run / "round-2/pupil").exists()
    assert enough(first) and enough({k: v for k, v in second.items() if k != "enough"}), "0 alone was, before"

    opened.ledger.record(**{**second, "enough": True})
    practise_round(opened, settings, 2, before / "pupil", before / "control")
    pupils, controls = (
        [load(TrainSettings, run / f"round-{n}/{role}/settings.toml", {}) for n in (1, 2)]
        for role in ("pupil", "control")
    )
    assert pupils[1].start == str(before / "pupil") and controls[1].start == str(before / "control")
    assert len(pupils[1].with_synthetic) == 2 and list(pupils[1].with_synthetic) == practised_on(opened, 2)
    assert not controls[1].with_synthetic
    assert len(read_manifest(run / "round-2/kept")) == second["kept"] > 0
    assert len({(s.schedule, s.learning_rate, s.pictures) for s in (*pupils, *controls)}) == 1
    assert pupils[1].schedule == "constant" and pupils[1].synthetic_share <= 0.5
    read_by = [json.loads((run / f"round-{n}/mined/confusions.json").read_text()) for n in (1, 2)]
    assert second["out_of_fold"] != first["out_of_fold"] and read_by[0] != read_by[1], "by the first round's pupils"


def test_a_later_round_that_makes_nothing_ends_practice_and_keeps_what_was_earned(whole: Path, tmp_path: Path) -> None:
    run = shutil.copytree(whole, tmp_path / "run", ignore=shutil.ignore_patterns("settled*"))
    rows = [json.loads(line) for line in (run / "ledger.jsonl").read_text().splitlines()]
    rows = [row for row in rows if row["step"] not in ("settled", "chosen", "test")]
    rows[-1]["goes_on"] = True
    mine = next(row for row in rows if row["step"] == "round 1 mine")
    methods = {name: {**own, "kept": 0} for name, own in mine["methods"].items()}
    rows.append({**mine, "step": "round 2 mine", "kept": 0, "enough": False, "methods": methods})
    (run / "ledger.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    text = (run / "settings.toml").read_text()
    (run / "settings.toml").write_text(text.replace("rounds = 1", "rounds = 2"))
    done = practice("run", "--resume", str(run))
    assert done.status == 0 and "round 2: nothing more" in done.err
    assert "made nothing" in done.out and "the run is finished" in done.out
    steps = {row["step"] for row in facts(run)}
    assert {"settled", "chosen", "test"} <= steps and "round 2" not in steps and (run / "report.html").exists()


def test_a_reader_is_worse_beyond_chance_alone() -> None:
    samples = [Sample(f"{i}.png", "ab", Path(f"{i}.png")) for i in range(20)]
    right, wrong = Reading("ab", 1.0, ()), Reading("ba", 1.0, ())
    best = [right] * 20
    assert not worse(samples, [wrong, *best[1:]], best), "one of twenty is chance"
    assert worse(samples, [wrong] * 6 + best[6:], best) and not worse(samples, best, [wrong] * 6 + best[6:])
    half = [*[wrong] * 5, *[right] * 5]  # its exact p calls five lost of ten chance
    assert worse(samples[:10], half, best[:10]) and not worse(samples[:10], [*[wrong] * 4, *best[:6]], best[:10])
    assert not worse(samples, [wrong] * 20, [right, *[wrong] * 19]), "none where there was one"
    few = samples[:5]
    assert worse(few, [wrong] * 5, best[:5]) and worse(few, [right, *[wrong] * 4], best[:5])
    assert not worse(few, best[:5], best[:5]) and not worse(few, best[:5], [wrong] * 5)


def test_practice_begins_with_the_mean_of_trainings_of_other_seeds(whole: Path, tmp_path: Path) -> None:
    settings = load(PracticeSettings, whole / "settings.toml", {})
    run = prepare(settings, whole, Ledger(whole / "ledger.jsonl"))
    assert begun_with(run) == whole / "baseline-mean" and not (whole / "baseline-2").exists()
    assert_mean(whole / "baseline-mean", [whole / "baseline", whole / "baseline-1"])
    assert not same_file(whole / "baseline", whole / "baseline-1")
    for role in ("pupil", "control"):
        assert load(TrainSettings, whole / f"round-1/{role}/settings.toml", {}).start == str(whole / "baseline-mean")
    assert run.ledger["round 1"]["before"] == run.ledger["baseline"]["validation"]

    # not where it reads less, nor where the readers have no mean
    state, description = read_weights(whole / "baseline")
    blind = tmp_path / "blind" / "weights.safetensors"
    blind.parent.mkdir()
    save_weights(blind, {k: t * (3 if t.ndim > 1 else 1) for k, t in state.items()}, description)
    shutil.copytree(whole / "baseline", tmp_path / "own")
    right, other = [Reading(s.text, 1.0, ()) for s in run.validation], Training(TrainSettings(), blind.parent)
    assert with_others(run, tmp_path / "own", [other], right) == (right, False)
    save_weights(blind, {k: torch.randn_like(t) for k, t in state.items()}, description)
    assert with_others(run, tmp_path / "own", [other], right) == (right, False)


def test_test_pictures_that_the_start_learned_without_labels_are_told(
    drawn: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    state, description = read_weights(Path("default"))
    learned = replace(description, settings={"with_synthetic": [str(drawn / "scheme/test")], "start": "nothing"})
    save_weights(tmp_path / "weights.safetensors", state, learned)
    values = {"data": [str(drawn / "scheme/labelled")], "test": str(drawn / "scheme/test"), "start": str(tmp_path)}
    run = prepare(load(PracticeSettings, None, values), tmp_path / "run", Ledger(tmp_path / "ledger.jsonl"))
    assert run.ledger["prepare"]["charset"] == "0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZ", "what the start reads as well"
    asked = load(PracticeSettings, None, values | {"charset": "0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZ-"})
    run = prepare(asked, tmp_path / "asked", Ledger(tmp_path / "asked.jsonl"))
    assert run.ledger["prepare"]["charset"] == asked.charset
    assert "has learned 20 of these 80 pictures" in " ".join(capsys.readouterr().err.split())


def test_a_run_of_an_earlier_version_is_one_line_and_keeps_all(whole: Path, drawn: Path) -> None:
    run = shutil.copytree(whole, drawn / "earlier")
    rows = [json.loads(line) for line in (run / "ledger.jsonl").read_text().splitlines()]
    told = "".join(json.dumps({k: v for k, v in row.items() if k != "held_out"}) + "\n" for row in rows)
    (run / "ledger.jsonl").write_text(told)
    for asked in (["run", "--resume"], ["status"], ["report"]):
        assert "begun by an earlier version" in refusal(practice(*asked, run))
    assert (run / "ledger.jsonl").read_text() == told
