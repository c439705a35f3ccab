"""Which labels look wrong."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from conftest import Trained, draw_folder, random_labels, recognizer, refusal
from PIL import Image

from recognizer.data.audit import Doubt, doubts, oddities
from recognizer.data.copies import near_pairs
from recognizer.data.label import read_doubts
from recognizer.errors import UserError
from recognizer.progress import CONSOLE
from recognizer.readings import Reading
from recognizer.samples import Sample, read_manifest
from recognizer.training.checkpoint import read_weights
from recognizer.training.folds import left_out


def reading(text: str, confidence: float, nll: float) -> Reading:
    return Reading(text, confidence, tuple((c, confidence) for c in text), nll)


@pytest.fixture(scope="module")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> list[Sample]:
    """Forty pictures of four characters each."""
    labels = [f"{k % 10}{k % 7}{k % 3}{k % 9}" for k in range(40)]
    return list(read_manifest(draw_folder(tmp_path_factory.mktemp("audit") / "forty", labels, 0)))


@pytest.mark.parametrize(("folds", "apart"), [(5, 2), (3, 2), (4, 1)])
def test_each_part_is_read_by_so_many_readers_that_did_not_learn_it(folds: int, apart: int) -> None:
    read = [j for k in range(folds) for j in left_out(k, folds, apart)]
    assert sorted(read) == sorted(list(range(folds)) * apart)
    assert all(len(set(left_out(k, folds, apart))) == apart for k in range(folds))


def test_doubts_are_means_over_readers_the_surest_first(pictures: list[Sample]) -> None:
    right = [reading(s.text, 0.99, 0.01) for s in pictures]
    other = [replace(s, text="9999") for s in pictures]
    wrong, hard = right.copy(), right.copy()
    for i, nll in ((3, 12.0), (7, 19.0)):  # both readers see another text
        wrong[i] = hard[i] = reading(other[i].text, 0.98, nll)
    wrong[5] = reading("9999", 0.6, 2.0)  # one of them does, and the other holds the label
    found = doubts(pictures, [list(pair) for pair in zip(wrong, hard, strict=True)])
    assert [d.sample.name for d in found] == [pictures[7].name, pictures[3].name]
    assert found[0].score == pytest.approx(19 + np.log(0.98)) and found[0].suggested == "9999"
    assert found[0].reasons == ("2 of 2 readers that did not learn it see '9999', 0.98 sure",)
    hard[5] = reading("9998", 0.7, 2.5)
    found = doubts(pictures, [list(pair) for pair in zip(wrong, hard, strict=True)])
    assert found[2].sample.name == pictures[5].name and found[2].suggested == "9998", "the surer of two"
    assert found[2].reasons == ("1 of 2 readers that did not learn it sees '9998', 0.70 sure",)


def test_unsure_readers_that_see_the_label_are_no_witnesses_and_nothing_is_something_to_see(
    pictures: list[Sample],
) -> None:
    own = [[reading(s.text, 0.4, 0.9)] * 2 for s in pictures]
    assert doubts(pictures, own) == []
    own[2] = [reading("", 0.99, 15.0)] * 2
    (found,) = doubts(pictures, own)
    assert found.reasons == ("2 of 2 readers that did not learn it see nothing, 0.99 sure",) and not found.suggested


def test_what_sets_a_label_apart_is_told_and_a_sure_reader_outweighs_it(pictures: list[Sample]) -> None:
    odd = [replace(pictures[0], text="00000"), replace(pictures[1], text="111X"), *pictures[2:]]
    assert oddities(pictures) == {}
    assert oddities(odd) == {
        odd[0].name: ["1 of 40 labels has 5 characters"], odd[1].name: ["'X' stands in hardly any other label"],
    }  # fmt: skip
    readings = [[reading(s.text, 0.9, 0.1)] for s in odd]
    assert {d.sample.name: (d.suggested, d.reasons) for d in doubts(odd, readings)} == {
        name: ("", tuple(why)) for name, why in oddities(odd).items()
    }
    assert doubts(odd, [[reading(s.text, 0.9999, 0.0001)] for s in odd]) == []


def test_nearly_equal_pictures_with_two_labels_are_doubted_both(pictures: list[Sample], tmp_path: Path) -> None:
    assert near_pairs(pictures) == []
    with Image.open(pictures[0].path) as picture:
        rgb = picture.convert("RGB")
    rgb.save(tmp_path / "again.jpg", quality=60)
    rgb.resize((rgb.width * 2, rgb.height * 2)).save(tmp_path / "larger.png")
    copies = [replace(pictures[0], name=n, path=tmp_path / n) for n in ("again.jpg", "larger.png")]
    three = [*pictures, *copies]
    assert {(i, j) for i, j, _ in near_pairs(three)} == {(0, 40), (0, 41), (40, 41)}
    assert all(0 <= share <= 0.25 for *_, share in near_pairs(three))
    assert oddities(three) == {}
    three[40] = replace(three[40], text="7777")
    told = oddities(three)
    assert set(told) == {pictures[0].name, "again.jpg", "larger.png"}
    assert told["larger.png"] == ["nearly the same picture as again.jpg, which is labelled '7777'"]


def test_a_list_comes_back_and_anything_else_is_refused(pictures: list[Sample], tmp_path: Path) -> None:
    from recognizer.data.audit import write_doubts

    write_doubts([Doubt(pictures[0], 9.25, "O0", 0.5, ("so",))], tmp_path / "audit.jsonl")
    (row,) = read_doubts(tmp_path / "audit.jsonl")
    assert row.pop("path") == str(pictures[0].path.resolve())
    assert row == {
        "file_name": pictures[0].name, "text": pictures[0].text, "suggested": "O0", "confidence": 0.5, "score": 9.25,
        "reasons": ["so"],
    }  # fmt: skip
    with pytest.raises(UserError, match="cannot be read: No such file"):
        read_doubts(tmp_path / "none.jsonl")
    for broken in ("[1, 2]", "{", '{"file_name": 3, "text": "x"}'):
        (tmp_path / "audit.jsonl").write_text(broken)
        with pytest.raises(UserError, match="no list that recognizer audit-labels wrote"):
            read_doubts(tmp_path / "audit.jsonl")


def test_wrong_labels_come_first_in_the_list_and_nothing_is_changed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    labels = random_labels(72, 5)
    data = draw_folder(tmp_path / "data", labels, 5)
    rows = (data / "metadata.jsonl").read_text().splitlines()
    wrong = {}
    for i in (11, 40):
        row = json.loads(rows[i])
        row["text"] = row["text"].translate(str.maketrans("0123", "1230"))
        wrong[row["file_name"]] = (row["text"], labels[i])
        rows[i] = json.dumps(row)
    (data / "metadata.jsonl").write_text("\n".join(rows) + "\n")
    before = {path.name: path.read_bytes() for path in data.iterdir()}
    monkeypatch.chdir(tmp_path)
    words = ["audit-labels", "data", "--out", "audit", "--folds", 3, "--pictures", 960, "--jobs", 1]
    ended = recognizer(*words, "--from", "tiny")
    assert ended.status == 0, ended.err
    found = read_doubts(tmp_path / "audit" / "audit.jsonl")
    assert {row["file_name"]: (row["text"], row["suggested"]) for row in found[:2]} == wrong
    assert f"{len(found)} of 72 labels are doubted" in ended.out and found[0]["file_name"] in ended.out
    assert {path.name: path.read_bytes() for path in data.iterdir()} == before
    readers = {path: path.stat().st_mtime_ns for path in (tmp_path / "audit/folds").rglob("weights.safetensors")}
    assert len(readers) == 3 and recognizer(*words, "--from", "tiny").out == ended.out
    assert all(path.stat().st_mtime_ns == at for path, at in readers.items()), "what is trained is used again"
    assert "lies among the pictures" in refusal(recognizer("audit-labels", data, "--out", data / "audit"))
    again = recognizer(*words, "--from", "nothing")
    assert again.status == 2 and "was trained with other settings: name a new folder" in again.err


def test_a_reader_of_ones_own_may_suggest_a_character_that_no_label_shows(
    trained: Trained, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("FORCE_COLOR", "1")  # as on a terminal, where bars are drawn
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setattr(CONSOLE, "is_interactive", True)
    data = draw_folder(tmp_path / "data", random_labels(30, 9, "012"), 9)
    words = ["--out", tmp_path / "audit", "--folds", 3, "--pictures", 32, "--jobs", 1, "--from", trained.run]
    ended = recognizer("audit-labels", data, *words)
    assert ended.status == 0, ended.err
    readers = list((tmp_path / "audit/folds").rglob("weights.safetensors"))
    assert [read_weights(path)[1].charset for path in readers] == ["0123"] * 3
    assert all(bar in ended.err for bar in ("\x1b[2Kfold ", "  fold-0 ", "opening", "reading", "left")), ended.err


def children(pid: int) -> set[int]:
    return {int(child) for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()}


def descendants(pid: int) -> set[int]:
    """The processes that one has begun, and that these have."""
    own = children(pid)
    return own | {pid for child in own for pid in descendants(child)}


def alive(pid: int) -> bool:
    """Whether a process is there that computes: one that has ended may wait for its parent to look."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False


@pytest.mark.skipif(sys.platform != "linux", reason="elsewhere trainings are not found so")
def test_a_training_that_is_killed_says_so(tmp_path: Path) -> None:
    draw_folder(tmp_path / "data", random_labels(30, 3), 3)

    def kill() -> None:
        while not (tmp_path / "audit/folds/fold-0/settings.toml").exists():
            time.sleep(0.1)
        for training in descendants(os.getpid()) - children(os.getpid()):  # those of the process that forks them
            os.kill(training, signal.SIGKILL)

    killing = threading.Thread(target=kill, daemon=True)
    killing.start()
    words = ["--out", tmp_path / "audit", "--folds", 3, "--jobs", 1, "--pictures", 1_000_000, "--from", "tiny"]
    ended = recognizer("audit-labels", tmp_path / "data", *words)
    killing.join()
    last = ended.err.splitlines()[-1]
    assert last.startswith("error: training folds/fold-0 failed: it was killed (SIGKILL): mostly"), ended.err


@pytest.mark.skipif(sys.platform != "linux", reason="elsewhere trainings are not told that their parent has died")
@pytest.mark.parametrize("temporary", ["short", "long" * 25])  # too long a name for what trainings are forked through
def test_a_killed_command_leaves_no_training_behind(tmp_path: Path, temporary: str) -> None:
    (tmp_path / temporary).mkdir()
    draw_folder(tmp_path / "data", random_labels(30, 3), 3)
    command = [sys.executable, "-m", "recognizer.cli", "audit-labels", str(tmp_path / "data")]
    process = subprocess.Popen(
        [*command, "--out", str(tmp_path / "audit"), "--folds", "3", "--jobs", "2", "--pictures", "1000000"],
        stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, env={**os.environ, "TMPDIR": str(tmp_path / temporary)},
    )  # fmt: skip
    try:
        while not all((tmp_path / f"audit/folds/fold-{k}/settings.toml").exists() for k in range(2)):
            assert process.poll() is None
            time.sleep(0.1)
        begun = descendants(process.pid)
    finally:
        process.kill()
        process.wait()
    assert len(begun) >= 2
    until = time.monotonic() + 10
    while any(alive(pid) for pid in begun) and time.monotonic() < until:
        time.sleep(0.1)
    assert not any(alive(pid) for pid in begun)


def test_a_script_that_trains_is_not_run_again_in_each_training(tmp_path: Path) -> None:
    draw_folder(tmp_path / "data", random_labels(30, 3), 3)
    (tmp_path / "script.py").write_text(
        "import sys\nfrom recognizer.cli import app\nprint('once')\nsys.argv[1:] = "
        "'audit-labels data --out audit --folds 3 --jobs 3 --pictures 32 --from tiny'.split()\napp()\n"
    )
    done = subprocess.run(
        [sys.executable, "script.py"], cwd=tmp_path, capture_output=True, text=True, timeout=300, check=False
    )
    assert done.returncode == 0 and done.stdout.count("once") == 1, done.stderr
    assert (tmp_path / "audit/audit.jsonl").exists()
