"""Beginning without a label, through its door at tiny size: killed and resumed, and what it does with bad input."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from conftest import kill_at, practice, recognizer, refusal
from PIL import Image

from pipelines.begin import BeginSettings, goes_on, kept_round, read_with_start, seldom_drawn
from pipelines.ledger import Ledger
from pipelines.run import read_some
from pipelines.scheme import write_scheme
from pipelines.unlabelled import as_known_to, read_together
from recognizer.charset import Charset
from recognizer.errors import UserError
from recognizer.samples import read_manifest
from recognizer.settings import load
from recognizer.training.checkpoint import DEFAULT
from recognizer.training.train import TrainSettings

COMMAND = [sys.executable, "-m", "pipelines.cli"]


@pytest.fixture(scope="module")
def scheme(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("begin") / "scheme"
    write_scheme(folder, 8, 24, 0, 60)
    tested = min((folder / "test").glob("*/*.jpg"))  # is among them as well, and must not be learned
    shutil.copy(tested, folder / "unlabelled" / "again.jpg")
    return folder


def words(scheme: Path, out: Path, *more: str) -> list[str]:
    return [
        "begin", "--unlabelled", str(scheme / "unlabelled"), "--charset", "upper+digits", "--length", "4-6",
        "--test", str(scheme / "test"), "--rounds", "1", "--pictures", "64", "--jobs", "1", "--set", "count=100",
        "--set", "fit.generations=2", "--set", "fit.children=30", "--set", "reader.validations=2",
        "--set", "reader.size=tiny", "--set", "reader.batch=16", "--set", "reader.checkpoint_seconds=0.5",
        "--out", str(out), *more,
    ]  # fmt: skip


def ledger(run: Path) -> dict[str, dict[str, Any]]:
    return {e["step"]: e for e in map(json.loads, (run / "ledger.jsonl").read_text().splitlines())}


def lasting(run: Path) -> dict[str, dict[str, Any]]:
    """What a run did, but for how long it took."""
    return {step: {k: v for k, v in own.items() if k != "seconds"} for step, own in ledger(run).items()}


@pytest.fixture(scope="module")
def whole(scheme: Path) -> tuple[Path, str]:
    out = scheme.parent / "whole"
    done = subprocess.run([*COMMAND, *words(scheme, out)], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return out, done.stdout


def test_from_pictures_alone_to_a_reader(scheme: Path, whole: tuple[Path, str]) -> None:
    out, said = whole
    steps = ledger(out)
    assert list(steps) == ["prepare", "looks", "start", "round 0", "round 1", "chosen", "test"]
    assert steps["round 0"]["read"] == steps["prepare"]["unlabelled"] == 60
    assert "again.jpg" not in (out / "data/unlabelled.json").read_text()
    assert "bred for 60 pictures" in steps["looks"]["said"]
    assert str(out / "data/unlabelled.json") in (out / "looks/settings.toml").read_text()
    for folder, step in (("start", "start"), ("round-0", "round 0"), ("round-1", "round 1")):
        taken, rows = (out / folder / name for name in ("taken", "readings.jsonl"))
        sure = [s for part in ("train", "validation") for s in read_manifest(taken / part)]
        read = [json.loads(line) for line in rows.read_text().splitlines()]
        assert len(sure) == steps[step]["sure"] and len(read) == 60
        by_file = {row["file_name"]: row for row in read}
        assert all(by_file[s.meta["found"]]["text"] == s.text and 4 <= len(s.text) <= 6 for s in sure)
        least = 0.7 if step == "start" else 0.5  # of a character that is hardly read less is enough, but not for it
        assert all(by_file[s.meta["found"]]["confidence"] >= least for s in sure)
    assert steps["round 1"]["alike"] == np.mean(
        [a["text"] == b["text"] for a, b in zip(*(map(json.loads, (out / f"round-{k}/readings.jsonl").read_text()
         .splitlines()) for k in (0, 1)), strict=True)])  # fmt: skip
    test = steps["test"]
    assert len(test["readings"]) == 24 and test["last"]["exact"] == np.mean(
        [row["text"].casefold() == row["last"].casefold() for row in test["readings"]]
    )
    kept = steps["chosen"]["reader"].split("/")[0].replace("-", " ")
    assert kept == ("round 1" if steps["round 1"]["sure"] > steps["round 0"]["sure"] + 1 else "round 0")
    assert f"{test['last']['exact']:.3f}" in said and f"{test['first']['exact']:.3f}" in said
    assert f"{steps[kept]['sure']} of 60 pictures" in said
    with Image.open(out / "readings.png") as sheet:
        assert sheet.width > 500
    picture = next((scheme / "test").glob("*/*.jpg"))
    done = recognizer("predict", "--model", out, picture)
    assert done.status == 0 and re.search(r"\b[0-9A-Z]{3,7}\b", done.out), done.err
    done = practice("status", out)
    assert "a beginning; done: prepare, looks, start, round 0" in done.out and "it is finished" in done.out


def test_the_made_pictures_that_train_are_none_that_validate_and_readings_go_beside_them(
    whole: tuple[Path, str],
) -> None:
    out, _ = whole
    for number in (0, 1):
        parts = [read_manifest(out / f"round-{number}/drawn/{name}").samples for name in ("train", "validation")]
        held, trained = ({s.read_bytes() for s in own} for own in (parts[1], parts[0]))
        assert len(parts[0]) + len(parts[1]) == 100 and 5 <= len(parts[1]) <= 20 and not held & trained
    steps = ledger(out)
    for number, before in enumerate(("start", "round-0")):
        of_all = steps[before.replace("-", " ")]["sure"] / 60
        assert of_all * 60 >= 20, "too few to learn from: other pictures would show more"
        settings = load(TrainSettings, out / f"round-{number}/seed-0/settings.toml", {})
        by_readings = number and of_all >= 0.5
        learned = [f"{before}/taken/train", *([] if by_readings else [f"{before}/taken/validation"])]
        assert list(settings.data) == [str(out / path) for path in learned]
        held = f"{before}/taken" if by_readings else f"round-{number}/drawn"
        assert settings.validation == str(out / held / "validation")
        assert settings.with_synthetic == (str(out / f"round-{number}/drawn/train"),)
        assert settings.synthetic_share == pytest.approx(max(0.5, 1 - of_all)), "the fewer are sure, the more is made"


@pytest.mark.parametrize(
    ("start", "characters"),
    [("nothing", "0123456789"), ("default", "01\N{CYRILLIC CAPITAL LETTER ZHE}")],
    ids=["nothing", "of other characters"],
)
def test_a_start_that_does_not_know_all_characters_gives_no_reading(
    scheme: Path, tmp_path: Path, start: str, characters: str
) -> None:
    settings = BeginSettings(unlabelled=(str(scheme),), charset=characters, length="4", start=start)
    book = Ledger(tmp_path / "ledger.jsonl")
    read_with_start(settings, tmp_path, book, Charset.named(characters))
    assert book["start"]["sure"] == 0 and not (tmp_path / "start").exists()


def test_the_start_reads_nothing_where_pictures_are_gone(scheme: Path, tmp_path: Path) -> None:
    (tmp_path / "data").mkdir()
    (tmp_path / "data/unlabelled.json").write_text(json.dumps([str(tmp_path / "gone.png")]))
    settings = BeginSettings(unlabelled=(str(scheme),), charset="digits", length="4")
    book = Ledger(tmp_path / "ledger.jsonl")
    with pytest.raises(UserError, match="1 of 1 pictures without labels are gone"):
        read_with_start(settings, tmp_path, book, Charset.named("digits"))
    assert "start" not in book, "it is read when they are back"


def test_killed_at_any_moment_it_goes_on_to_the_same_end(scheme: Path, whole: tuple[Path, str]) -> None:
    out = scheme.parent / "killed"
    for waited in ("looks/population.npz", "start", "round-0", "round-0/seed-1", "round-1/seed-0"):
        kill_at(out / waited, [*COMMAND, *words(scheme, out)])
    done = practice("begin", "--resume", out)
    assert done.status == 0, done.err
    own, other = lasting(out), lasting(whole[0])
    assert {k: v for k, v in own.items() if k != "prepare"} == {k: v for k, v in other.items() if k != "prepare"}


def ledger_of(folder: Path, *sure: int) -> Ledger:
    book = Ledger(folder / "ledger.jsonl")
    for number, count in enumerate(sure):
        book.record(f"round {number}", sure=count, read=1000)
    return book


def test_a_round_that_takes_hardly_more_is_the_last_and_is_not_kept(tmp_path: Path) -> None:
    book = ledger_of(tmp_path, 500, 600, 619)
    assert [goes_on(book, k) for k in range(3)] == [True, True, False] and kept_round(book) == 1
    (tmp_path / "more").mkdir()
    assert kept_round(ledger_of(tmp_path / "more", 500, 600, 621)) == 2
    (tmp_path / "few").mkdir()
    few = ledger_of(tmp_path / "few", 19)
    assert not goes_on(few, 0) and kept_round(few) == 0, "too few to learn from"


def test_characters_that_no_reading_has_are_drawn_seldom() -> None:
    charset = Charset("abcdefgh")
    texts = ["abcd"] * 50 + ["efab"] * 50 + ["abgc"] * 5
    rare = seldom_drawn(charset, texts)
    assert rare == {"g", "h"}
    assert seldom_drawn(charset, []) == set()


def test_a_picture_is_read_whatever_the_reader_cannot_spell(scheme: Path) -> None:
    sample = read_manifest(scheme / "test").samples[0]
    other = replace(sample, text="\N{CYRILLIC CAPITAL LETTER ZHE}")
    assert not read_some(DEFAULT, [other])
    (read,) = read_some(DEFAULT, as_known_to(DEFAULT, [other])).values()
    assert read.text


def test_pictures_that_are_gone_are_told_in_one_line(scheme: Path) -> None:
    with pytest.raises(UserError, match=r"gone\.png: no such file; 1 of 1 pictures without labels are gone"):
        read_together([DEFAULT], [str(scheme / "gone.png")], range(4, 7))


def test_what_cannot_begin_is_refused_in_one_line(scheme: Path, tmp_path: Path) -> None:
    def refused(*own: str) -> str:
        said = refusal(practice("begin", "--out", tmp_path / "run", *own))
        assert not (tmp_path / "run").exists(), "nothing is left"
        return said

    loose = ["--unlabelled", str(scheme / "unlabelled")]
    assert "say what to begin on: --unlabelled DIR" in refused()
    assert "charset must be given" in refused(*loose, "--length", "4")
    assert "--length '4to6'" in refused(*loose, "--charset", "digits", "--length", "4to6")
    assert "no setting is called 'generation'" in refused(
        *loose, "--charset", "digits", "--length", "4", "--set", "fit.generation=3"
    )
    all_told = [*loose, "--charset", "digits", "--length", "4"]
    assert "data and limit are of labels" in refused(*all_told, "--set", "limit=50")
    assert "reader.charset: it is told that by --charset" in refused(*all_told, "--set", "reader.charset=digits")
    assert "reader.with_synthetic: its readers learn of what it makes" in refused(
        *all_told, "--set", "reader.with_synthetic=['x']"
    )
    assert "/nowhere: no such weights file" in refused(*all_told, "--set", "fit.model=/nowhere")
    odd = refused(*all_told, "--set", "reader.head=fixed", "--set", "reader.loss=ctc")
    assert "--loss ctc is CTC's" in odd
    assert "a picture shows 1 to 32" in refused(*loose, "--charset", "digits", "--length", "40")
    assert "charset holds 'a' more than once" in refused(*loose, "--charset", "aa", "--length", "4")


def test_a_test_set_in_which_nothing_can_be_read_is_refused_before_anything_is_bred(
    scheme: Path, tmp_path: Path
) -> None:
    for name, text in (("empty", ""), ("broken", "AB12")):
        (tmp_path / name).mkdir()
        (tmp_path / name / "a.png").write_bytes(b"no picture")
        (tmp_path / name / "metadata.jsonl").write_text(json.dumps({"file_name": "a.png", "text": text}) + "\n")
        done = practice(*words(scheme, tmp_path / "run"), "--test", tmp_path / name)
        assert f"{tmp_path / name}: no sample is left to test on" in refusal(done)


def test_another_seed_is_another_run_and_a_test_set_that_changed_is_not_read(
    scheme: Path, whole: tuple[Path, str], tmp_path: Path
) -> None:
    other_seed = practice(*words(scheme, whole[0]), "--seed", "1")
    assert "was begun with other settings (seed" in refusal(other_seed)
    cut, others = tmp_path / "cut", tmp_path / "others"
    shutil.copytree(whole[0], cut)
    steps = (cut / "ledger.jsonl").read_text().splitlines(keepends=True)
    (cut / "ledger.jsonl").write_text("".join(steps[:-1]))
    write_scheme(others, 8, 23, 1)
    settings = (cut / "settings.toml").read_text().replace(str(scheme / "test"), str(others / "test"))
    (cut / "settings.toml").write_text(settings)
    assert "has changed since the run began" in refusal(practice("begin", "--resume", cut))
    assert (cut / "weights.safetensors").is_file()
