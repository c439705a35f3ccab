"""The commands `recognizer` and `augment` as a user types them: what they print, write, refuse, and how they end."""

from __future__ import annotations

import csv
import errno
import io
import json
import os
import resource
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from conftest import Ended, Trained, augment, draw_folder, recognizer, refusal
from PIL import Image
from safetensors.torch import load_file, save_file

from recognizer.errors import UserError
from recognizer.reader import DEFAULT
from recognizer.samples import list_pictures, read_manifest
from recognizer.training.checkpoint import read_weights, written

BARE = """
import sys

class Gone:
    def find_spec(name, path=None, target=None):
        if name in {gone!r}:
            raise ModuleNotFoundError(f"No module named {{name!r}}", name=name)

sys.meta_path.insert(0, Gone)
sys.argv = {argv!r}
from {module} import app
app()
"""
TRAIN_EXTRA = [
    "torch", "torchvision", "accelerate", "diffusers", "captcha", "safetensors", "onnx", "onnxscript", "webdataset",
    "lmdb", "matplotlib", "jinja2", "tensorboard",
]  # fmt: skip


def without(gone: list[str], *words: object, module: str = "recognizer.cli", stdin: bytes = b"") -> Ended:
    """A command in a process of its own, in which some modules are not installed."""
    program = BARE.format(gone=gone, argv=[module.partition(".")[0], *map(str, words)], module=module)
    ended = subprocess.run([sys.executable, "-c", program], input=stdin, capture_output=True, check=False)
    return Ended(ended.returncode, ended.stdout.decode(), ended.stderr.decode())


def filled(words: list[str], said: str, places: dict[str, Path]) -> tuple[list[str], str]:
    """Words of a command and what it should say, with the paths that stand for `<NAME>`."""
    for name, place in places.items():
        words, said = [word.replace(f"<{name}>", str(place)) for word in words], said.replace(f"<{name}>", str(place))
    return words, said


def rows_of(printed: str) -> list[list[str]]:
    return [line.split("\t") for line in printed.splitlines()]


@pytest.fixture(scope="module")
def pictures(drawn: Path) -> list[Path]:
    return list_pictures(drawn / "validation")[:6]


@pytest.fixture(scope="module")
def truths(drawn: Path) -> dict[str, str]:
    """What the validation pictures show, by their path."""
    return {str(s.path): s.text for s in read_manifest(drawn / "validation")}


# ---------------------------------------------------------------------------------------------------------------- help


def test_help_costs_nothing() -> None:
    """Best of three: other work on the machine makes a process slower, and never faster."""
    seconds = []
    for _ in range(3):
        before = resource.getrusage(resource.RUSAGE_CHILDREN)
        ended = without([*TRAIN_EXTRA, "numpy", "PIL", "onnxruntime", "rapidfuzz", "pydantic"], "--help")
        after = resource.getrusage(resource.RUSAGE_CHILDREN)
        assert ended.status == 0 and "predict" in ended.out and not ended.err
        seconds.append(after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime)
    assert min(seconds) < 0.5


@pytest.mark.parametrize("module", ["augment.cli", "pipelines.cli"])
def test_help_of_the_other_commands_needs_no_torch(module: str) -> None:
    ended = without([*TRAIN_EXTRA, "numpy", "PIL", "onnxruntime"], "--help", module=module)
    assert ended.status == 0 and "Usage:" in ended.out


def test_every_command_has_help() -> None:
    for call, commands in (
        (recognizer, ("train", "evaluate", "export", "predict", "check", "split", "merge")),
        (augment, ("methods", "mine-errors", "synthesize", "filter", "sheet")),
    ):
        for command in commands:
            ended = call(command, "--help")
            assert ended.status == 0 and "--" in ended.out and not ended.err


@pytest.mark.parametrize(
    "words", [["--frobnicate"], ["frobnicate"], ["predict", "--n-best", "0"], ["predict", "--length"]]
)
def test_what_the_command_line_does_not_know_ends_with_2(words: list[str]) -> None:
    ended = recognizer(*words)
    assert ended.status == 2 and not ended.out and "Traceback" not in ended.err


# --------------------------------------------------------------------------------------------------- train, evaluate


def test_a_run_holds_what_it_should(trained: Trained, drawn: Path) -> None:
    run, said = trained
    assert {path.name for path in run.iterdir()} == {
        "settings.toml", "run.json", "problems.jsonl", "metrics.jsonl", "scores.json", "log", "checkpoints",
        "weights.safetensors", "reader.onnx",
    }  # fmt: skip
    lines = said.out.splitlines()
    assert lines[0].startswith("validation: exact match ") and "n = 24" in lines[0]
    assert lines[1].endswith(f"read with: recognizer predict --model {run} PICTURE")
    assert "64 real and 0 made samples to train on, 24 to validate; 4 characters, labels of up to 3" in said.err
    assert json.loads((run / "scores.json").read_text())["exact"] > 0.7
    about = json.loads((run / "run.json").read_text())
    assert about["torch"] == torch.__version__ and len(about["data_sha256"]) == 64 and about["commit"]
    assert list((run / "log").rglob("events.out.tfevents.*"))
    assert read_weights(run)[1].charset == "0123"


def test_evaluate_says_how_well_and_writes_every_reading(trained: Trained, drawn: Path, tmp_path: Path) -> None:
    out = tmp_path / "readings.jsonl"
    ended = recognizer("evaluate", "--model", trained.run, "--data", drawn / "validation", "--out", out)
    assert ended.status == 0, ended.err
    rows = [json.loads(line) for line in out.read_text().splitlines()]
    assert [(row["file_name"], row["text"]) for row in rows] == [
        (s.name, s.text) for s in read_manifest(drawn / "validation")
    ]
    right = sum(row["text"] == row["read"] for row in rows)
    printed = dict(
        line.split(maxsplit=2)[:2] if "match" not in line else ("exact", line.split()[2])
        for line in ended.out.splitlines()[:2]
    )
    assert printed == {"pictures": "24", "exact": f"{right / 24:.4f}"}
    assert json.loads((trained.run / "scores.json").read_text())["exact"] == right / 24
    assert all(0 < row["confidence"] <= 1 and row["nll"] >= 0 for row in rows)
    for row in rows:
        if row["read"] == row["text"]:
            assert row["confidence"] == pytest.approx(np.exp(-row["nll"]), abs=1e-4)

    ended = recognizer("evaluate", "--model", trained.run, "--data", drawn / "validation", "--out", out, "--limit", 5)
    assert ended.status == 0 and len(out.read_text().splitlines()) == 5 and "unknown" not in ended.out

    other = shutil.copytree(drawn / "eight", tmp_path / "other")
    listed = (other / "metadata.jsonl").read_text().splitlines(keepends=True)
    row = json.loads(listed[0])
    (other / "metadata.jsonl").write_text(json.dumps(row | {"text": row["text"] + "X"}) + "\n" + "".join(listed[1:]))
    ended = recognizer("evaluate", "--model", trained.run, "--data", other, "--out", out)
    right = sum(own["text"] == own["read"] for own in map(json.loads, out.read_text().splitlines()))
    assert f"unknown characters    in 1 more pictures; with these as misread, exact match {right / 8:.4f}" in ended.out


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--out", "<NEW>"], "say what to train on: --data DIR"),
        (["--data", "<DATA>"], "say where the run goes: --out RUN"),
        (
            ["--data", "<DATA>", "--out", "<RUN>"],
            "<RUN> exists and is not empty: name a new folder, or go on with --resume <RUN>",
        ),
        (["--data", "<DATA>", "--out", "<FILE>"], "<FILE> exists and is not empty"),
        (["--data", "nowhere", "--out", "<NEW>"], "nowhere: no such file or folder"),
        (["--data", "<DATA>", "--out", "<NEW>", "--set", "bach=4"], "called 'bach'; did you mean 'batch'?"),
        (["--data", "<DATA>", "--out", "<NEW>", "--set", "vary.nose=1"], "'vary.nose'; did you mean 'vary.noise'?"),
        (["--data", "<DATA>", "--out", "<NEW>", "--batch", "1"], "batch = 1: Input should be greater"),
        (["--data", "<DATA>", "--out", "<NEW>", "--learning-rate", "inf"], "learning_rate = inf: Input should"),
        (["--data", "<DATA>", "--out", "<NEW>", "--loss", "mse"], "loss = 'mse': Input should be 'ctc', 'focal-ctc'"),
        (["--data", "<DATA>", "--out", "<NEW>", "--charset", "xyz"], "no sample is left to train on"),
        (["--data", "<DATA>", "--out", "<NEW>", "--charset", "0120"], "the charset holds '0' more than once"),
        (["--data", "<DATA>", "--out", "<NEW>", "--from", "nowhere"], "nowhere: no such weights file"),
        (
            ["--data", "<DATA>", "--out", "<NEW>", "--from", "<RUN>", "--size", "base"],
            "cannot start a 'base' one: --size tiny",
        ),
        (["--data", "<DATA>", "--out", "<NEW>", "--tracker", "abacus"], "--tracker abacus"),
        (["--config", "nowhere.toml", "--out", "<NEW>"], "nowhere.toml: no such settings file"),
        (["--resume", "<RUN>", "--seed", "0"], "leave --seed out"),
        (["--resume", "<RUN>", "--from", "nothing"], "leave --from out"),
        (["--resume", "<RUN>", "--data", "<DATA>"], "leave --data out"),
        (["--resume", "<RUN>", "--set", "seed=1"], "leave --set out"),
        (["--resume", "<RUN>", "--out", "<RUN>"], "leave --out out"),
        (["--resume", "<DATA>"], "<DATA> is no run that can be resumed: it has no settings.toml"),
    ],
)
def test_train_refuses_in_one_line(trained: Trained, drawn: Path, tmp_path: Path, words: list[str], said: str) -> None:
    train = drawn / "train"
    places = {"RUN": trained.run, "DATA": train, "NEW": tmp_path / "new", "FILE": train / "000.png"}
    words, said = filled(words, said, places)
    before = {path: path.stat().st_mtime_ns for path in trained.run.rglob("*")}
    ended = recognizer("train", *words)
    line = ended.err.splitlines()[-1]  # after what was said of the data
    assert ended.status == 2 and not ended.out and line.startswith("error: ") and said in line, ended.err
    assert "Traceback" not in ended.err
    assert {path: path.stat().st_mtime_ns for path in trained.run.rglob("*")} == before


# ------------------------------------------------------------------------------------------------------------- export


def test_export_writes_the_file_that_training_wrote(trained: Trained, pictures: list[Path], tmp_path: Path) -> None:
    out = tmp_path / "mine.onnx"
    ended = recognizer("export", trained.run, "--out", out)
    assert ended.status == 0 and ended.out.startswith(f"{out}: {out.stat().st_size:,} bytes; largest difference")
    assert [path.name for path in tmp_path.iterdir()] == ["mine.onnx"]
    a, b = (recognizer("predict", "--model", model, *pictures) for model in (out, trained.run))
    assert a.status == 0 and a == b


# ------------------------------------------------------------------------------------------------------------ predict


def test_predict_in_plain_lines(trained: Trained, truths: dict[str, str], drawn: Path) -> None:
    ended = recognizer("predict", "--model", trained.run, drawn / "validation")
    assert ended.status == 0 and not ended.err
    rows = rows_of(ended.out)
    assert [row[0] for row in rows] == sorted(truths)
    assert np.mean([truths[file] == text for file, text, _ in rows]) > 0.7
    assert all(0 < float(confidence) <= 1 and len(confidence) == 6 for *_, confidence in rows)


def test_predict_in_json_and_csv_say_the_same(trained: Trained, pictures: list[Path]) -> None:
    plain, as_json, as_csv = (
        recognizer("predict", "--model", trained.run, *pictures, *how) for how in ([], ["--json"], ["--csv"])
    )
    items = json.loads(as_json.out)
    assert [list(item) for item in items] == [["file", "text", "confidence", "characters"]] * 6
    table = list(csv.DictReader(io.StringIO(as_csv.out)))
    for (file, text, confidence), item, row in zip(rows_of(plain.out), items, table, strict=True):
        assert file == item["file"] == row["file"] and text == item["text"] == row["text"]
        assert float(row["confidence"]) == item["confidence"] == pytest.approx(float(confidence), abs=1e-4)
        assert "".join(c["character"] for c in item["characters"]) == text
        assert all(0 < c["confidence"] <= 1 for c in item["characters"])


def test_predict_from_standard_input(trained: Trained, pictures: list[Path]) -> None:
    one, listed = pictures[0], "".join(f"{path}\n" for path in pictures[1:])
    [named] = rows_of(recognizer("predict", "--model", trained.run, one).out)
    ended = recognizer("predict", "--model", trained.run, "-", stdin=one.read_bytes())
    assert rows_of(ended.out) == [["-", *named[1:]]]
    ended = recognizer("predict", "--model", trained.run, one, "--files-from", "-", stdin=listed.encode())
    assert [row[0] for row in rows_of(ended.out)] == [*map(str, pictures[1:]), str(one)]


def test_predict_from_a_list_of_files(trained: Trained, pictures: list[Path], tmp_path: Path) -> None:
    shutil.copy(pictures[0], tmp_path / "ünïcode name.png")
    lines = [tmp_path / "ünïcode name.png", *pictures]
    (tmp_path / "list.txt").write_text("\n".join(map(str, lines)) + "\n", encoding="utf-8")
    ended = recognizer("predict", "--model", trained.run, "--files-from", tmp_path / "list.txt", "--json")
    assert [item["file"] for item in json.loads(ended.out)] == list(map(str, lines))


def test_a_list_may_come_from_another_command(trained: Trained, pictures: list[Path]) -> None:
    for option, content in (("--files-from", pictures[0]), ("--lexicon", "012")):
        reading, writing = os.pipe()
        os.write(writing, f"{content}\n".encode())
        os.close(writing)
        more = [pictures[1]] if option == "--lexicon" else []
        words = [sys.executable, "-m", "recognizer.cli", "predict", "--model", trained.run, option,
                 f"/dev/fd/{reading}", *more]  # fmt: skip
        ended = subprocess.run(words, capture_output=True, text=True, check=False, pass_fds=[reading])
        os.close(reading)
        assert ended.returncode == 0 and len(ended.stdout.splitlines()) == 1, ended.stderr


def test_predict_the_most_probable_texts(trained: Trained, pictures: list[Path]) -> None:
    ended = recognizer("predict", "--model", trained.run, *pictures, "--n-best", 3, "--json")
    plain = recognizer("predict", "--model", trained.run, *pictures, "--n-best", 3)
    ranked = []
    for item in json.loads(ended.out):
        best = [(r["text"], r["confidence"]) for r in item["n_best"]]
        assert len({text for text, _ in best}) == 3 and best[0] == (item["text"], item["confidence"])
        assert best == sorted(best, key=lambda b: -b[1]) and sum(p for _, p in best) <= 1 + 1e-5
        ranked += [[item["file"], text, f"{p:.4f}"] for text, p in best]
    assert [row[:2] for row in rows_of(plain.out)] == [row[:2] for row in ranked]
    greedy = recognizer("predict", "--model", trained.run, *pictures)
    assert [row[1] for row in rows_of(greedy.out)] == [item["text"] for item in json.loads(ended.out)]


@pytest.mark.parametrize(
    ("how", "fits"),
    [
        (["--length", "3"], lambda text: len(text) == 3),
        (["--length", "1-2"], lambda text: len(text) in (1, 2)),
        (["--pattern", "D[01]"], lambda text: len(text) == 2 and text[1] in "01"),
        (["--charset", "13"], lambda text: set(text) <= {"1", "3"}),
        (["--charset", "digits", "--length", "2"], lambda text: len(text) == 2),
        (["--lexicon", "<WORDS>"], lambda text: text in {"012", "33", "2"}),
        (["--lexicon", "<WORDS>", "--length", "2", "--n-best", "1"], lambda text: text == "33"),
    ],
)
def test_predict_only_what_may_be(
    trained: Trained, pictures: list[Path], tmp_path: Path, how: list[str], fits: Any
) -> None:
    words = tmp_path / "words.txt"
    words.write_text("\ufeff012\n33\n\n2\n", encoding="utf-8")
    free = rows_of(recognizer("predict", "--model", trained.run, *pictures).out)
    ended = recognizer("predict", "--model", trained.run, *pictures, *filled(how, "", {"WORDS": words})[0])
    assert ended.status == 0, ended.err
    held = rows_of(ended.out)
    assert all(fits(text) for _, text, _ in held) and not all(fits(text) for _, text, _ in free)
    for (_, text, before), (_, kept, after) in zip(free, held, strict=True):
        if fits(text):  # what was read already may be: it is read again
            assert kept == text and float(after) >= float(before) - 1e-3


def test_predict_abstains_where_it_is_not_sure(trained: Trained, pictures: list[Path]) -> None:
    noise = np.random.default_rng(0).integers(0, 256, (32, 64), dtype=np.uint8)
    file = io.BytesIO()
    Image.fromarray(noise).save(file, "PNG")
    words = ["predict", "--model", trained.run, "-", pictures[0], "--min-confidence"]
    sure = {
        item["file"]: item["confidence"]
        for item in json.loads(recognizer(*words, 0, "--json", stdin=file.getvalue()).out)
    }
    between = (sure["-"] + sure[str(pictures[0])]) / 2
    assert sure["-"] < between
    ended = recognizer(*words, between, "--json", stdin=file.getvalue())
    read = {item["file"]: item["text"] for item in json.loads(ended.out)}
    assert ended.status == 0 and read["-"] is None and read[str(pictures[0])]
    plain = rows_of(recognizer(*words, between, stdin=file.getvalue()).out)
    assert [row[:2] for row in plain] == [["-", ""], [str(pictures[0]), read[str(pictures[0])]]]


def test_a_bad_picture_among_good_ones_is_set_aside(trained: Trained, pictures: list[Path], tmp_path: Path) -> None:
    bad = tmp_path / "bad.png"
    bad.write_bytes(pictures[0].read_bytes()[:60])
    words = ["predict", "--model", trained.run, pictures[0], bad, tmp_path / "gone.png", pictures[1]]
    ended = recognizer(*words)
    assert ended.status == 0 and [row[0] for row in rows_of(ended.out)] == [str(pictures[0]), str(pictures[1])]
    assert ended.err.startswith("2 of 4 samples cannot be used") and ended.err.endswith("\n")
    assert "unreadable" in ended.err and "missing file" in ended.err and str(bad) in ended.err
    items = json.loads(recognizer(*words, "--json").out)
    assert [item["text"] is None for item in items] == [False, True, True, False]
    assert items[1]["error"].startswith("unreadable: ") and items[2]["error"] == "missing file: no such file"
    assert len(list(csv.DictReader(io.StringIO(recognizer(*words, "--csv").out)))) == 2


def test_pictures_that_are_all_bad_end_with_2(trained: Trained, tmp_path: Path) -> None:
    (tmp_path / "bad.png").write_bytes(b"no picture")
    for how, out in ([], ""), (["--csv"], "file,text,confidence\n"):
        ended = recognizer("predict", "--model", trained.run, tmp_path, *how)
        assert ended.status == 2 and ended.out == out and "1 of 1 samples cannot be used" in ended.err
    ended = recognizer("predict", "--model", trained.run, "-", "--json")
    assert ended.status == 2 and json.loads(ended.out)[0]["text"] is None


def test_too_large_a_picture_is_refused_before_it_is_decoded(trained: Trained, pictures: list[Path]) -> None:
    ended = recognizer("predict", "--model", trained.run, pictures[0], "--max-pixels", 100)
    assert ended.status == 2 and "too large" in ended.err and "the bound is 100" in ended.err


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ([], "no pictures to read: name files or folders"),
        (["<EMPTY>"], "no pictures to read"),
        (["<PICTURE>", "--json", "--csv"], "--json and --csv: choose one"),
        (["<PICTURE>", "--length", "six"], "six"),
        (["<PICTURE>", "--pattern", "[^a]"], "[^a]"),
        (["<PICTURE>", "--charset", "xyz"], "xyz"),
        (["<PICTURE>", "--lexicon", "nowhere"], "--lexicon nowhere: No such file"),
        (["<PICTURE>", "--lexicon", "<PICTURE>"], "<PICTURE> is not UTF-8 text"),
        (["--files-from", "<EMPTY>"], "--files-from <EMPTY>: Is a directory"),
        (["--files-from", "nowhere"], "--files-from nowhere: No such file"),
    ],
)
def test_predict_refuses_in_one_line(
    trained: Trained, pictures: list[Path], tmp_path: Path, words: list[str], said: str
) -> None:
    words, said = filled(words, said, {"PICTURE": pictures[0], "EMPTY": tmp_path})
    assert said in refusal(recognizer("predict", "--model", trained.run, *words))


def test_a_list_that_is_none_names_no_picture(trained: Trained, pictures: list[Path]) -> None:
    ended = recognizer("predict", "--model", trained.run, "--files-from", pictures[0])
    assert ended.status == 2 and not ended.out and "samples cannot be used" in ended.err


def test_predict_needs_no_torch(trained: Trained, pictures: list[Path]) -> None:
    here = recognizer("predict", "--model", trained.run, *pictures, "--n-best", 2)
    there = without(TRAIN_EXTRA, "predict", "--model", trained.run, *pictures, "--n-best", 2)
    assert there == here and there.status == 0


def test_file_names_that_are_no_utf8_are_read_all_the_same(
    trained: Trained, pictures: list[Path], tmp_path: Path
) -> None:
    name = os.fsdecode(os.fsencode(tmp_path) + b"/01_\xff.png")
    shutil.copy(pictures[0], name)
    words = [sys.executable, "-m", "recognizer.cli", "predict", "--model", trained.run, name]
    ended = subprocess.run(words, capture_output=True, check=False)
    assert ended.returncode == 0 and ended.stdout.startswith(os.fsencode(name) + b"\t"), ended.stderr
    ascii_only = subprocess.run(
        words, capture_output=True, check=False, env={**os.environ, "PYTHONIOENCODING": "ascii"}
    )
    assert ascii_only.returncode == 0 and b"01_\\udcff.png" in ascii_only.stdout
    ended = subprocess.run([*words, "--json"], capture_output=True, check=False)
    assert ended.returncode == 0 and json.loads(ended.stdout)[0]["file"] == name
    words = ["evaluate", "--model", trained.run, "--data", tmp_path, "--label-pattern", "{text}_{id}.png"]
    assert recognizer(*words, "--out", tmp_path / "readings.jsonl").status == 0
    assert b'"file_name": "01_\xff.png"' in (tmp_path / "readings.jsonl").read_bytes()


def test_ctrl_c_ends_quietly(trained: Trained) -> None:
    process = subprocess.Popen(
        [sys.executable, "-m", "recognizer.cli", "predict", "--model", trained.run, "-"],
        stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.default_int_handler),
    )  # fmt: skip
    time.sleep(1.5)  # it waits for its standard input then
    process.send_signal(signal.SIGINT)
    out, err = process.communicate(timeout=20)
    assert process.returncode == 130 and not out
    assert err.strip() == "stopped: nothing was left half-written"


# ------------------------------------------------------------------------------------------------------ what is missing


@pytest.mark.parametrize(
    ("gone", "words", "module"),
    [
        ("torch", ["train", "--data", "<DATA>", "--out", "<NEW>"], "recognizer.cli"),
        ("torch", ["evaluate", "--model", "<RUN>", "--data", "<DATA>"], "recognizer.cli"),
        ("webdataset", ["merge", "<DATA>", "--out", "<NEW>", "--shards"], "recognizer.cli"),
        ("captcha", ["synthesize", "--method", "captcha", "--charset", "01", "--out", "<NEW>"], "augment.cli"),
    ],
)
def test_a_missing_module_is_named_with_the_extra_that_brings_it(
    trained: Trained, drawn: Path, tmp_path: Path, gone: str, words: list[str], module: str
) -> None:
    places = {"RUN": trained.run, "DATA": drawn / "eight", "NEW": tmp_path / "new"}
    ended = without([gone], *filled(words, "", places)[0], module=module)
    line = refusal(ended)
    assert line.startswith(f"this command needs {gone}, which is not installed: ") and "[train]" in line


# ------------------------------------------------------------------------------------------------------- broken files


def broken_weights(whole: Path, folder: Path) -> dict[str, Path]:
    """Weights files that each have something wrong, by what it is."""
    data, tensors = whole.read_bytes(), load_file(whole)
    about = json.dumps({"format": 1})
    files = {name: folder / f"{name}.safetensors" for name in ("truncated", "random", "pickle", "other", "empty")}
    files["truncated"].write_bytes(data[: len(data) // 2])
    files["random"].write_bytes(np.random.default_rng(0).bytes(5000))
    files["empty"].write_bytes(b"")
    torch.save(tensors, files["pickle"])
    save_file(tensors, files["other"])
    described = read_metadata(whole)
    changes: dict[str, Any] = {
        "undescribed": about,
        "newer": json.dumps(described | {"format": 2}),
        "no json": "{",
        "another size": json.dumps(described | {"size": "huge"}),
        "another head": json.dumps(described | {"head": "transformer"}),
        "another height": json.dumps(described | {"frame": {"height": 48, "min_width": 48, "max_width": 512}}),
        "no frame": json.dumps(described | {"frame": None}),
        "charset of numbers": json.dumps(described | {"charset": 4}),
        "charset twice": json.dumps(described | {"charset": "0110"}),
        "longer charset": json.dumps(described | {"charset": "01234"}),
    }
    for name, metadata in changes.items():
        files[name] = folder / f"{name}.safetensors"
        save_file(tensors, files[name], metadata={"lookalike": metadata})
    wrong = {
        "a tensor less": {n: t for n, t in tensors.items() if n != "trunk.stem.0.weight"},
        "a tensor more": tensors | {"extra": torch.zeros(1)},
        "another shape": tensors | {"heads.conv.classify.weight": torch.zeros(5, 3)},
    }
    for name, changed in wrong.items():
        files[name] = folder / f"{name}.safetensors"
        save_file(changed, files[name], metadata={"lookalike": json.dumps(described)})
    return files


def read_metadata(path: Path) -> dict[str, Any]:
    from safetensors import safe_open

    with safe_open(path, "pt") as file:
        return dict(json.loads(file.metadata()["lookalike"]))


def test_broken_weights_are_refused_in_one_line(trained: Trained, drawn: Path, tmp_path: Path) -> None:
    files = broken_weights(trained.run / "weights.safetensors", tmp_path)
    for name, path in files.items():
        line = refusal(recognizer("evaluate", "--model", path, "--data", drawn / "eight", "--out", tmp_path / "no"))
        assert len(line) < 500 and ("weights" in line or "charset" in line), (name, line)
        assert "longer charset" in name or line == refusal(recognizer("export", path)), name
        ended = recognizer("train", "--from", path, "--data", drawn / "eight", "--out", tmp_path / name)
        assert ended.status == 2 and "Traceback" not in ended.err and ended.err.splitlines()[-1].startswith("error: ")
    assert not list(tmp_path.glob("*.onnx")) and not (tmp_path / "no").exists()


def test_broken_readers_are_refused_in_one_line(trained: Trained, pictures: list[Path], tmp_path: Path) -> None:
    whole = (trained.run / "reader.onnx").read_bytes()
    other = onnx.helper.make_graph(
        [onnx.helper.make_node("Identity", ["x"], ["y"])], "other",
        [onnx.helper.make_tensor_value_info("x", 1, [1])], [onnx.helper.make_tensor_value_info("y", 1, [1])],
    )  # fmt: skip
    model = onnx.helper.make_model(other, opset_imports=[onnx.helper.make_opsetid("", 17)], ir_version=9)
    files = {
        "truncated": whole[: len(whole) // 2], "random": np.random.default_rng(0).bytes(5000), "empty": b"",
        "another model": model.SerializeToString(),
    }  # fmt: skip
    onnx.helper.set_model_props(model, {"lookalike": json.dumps({"charset": "01", "frame": {"height": 32}})})
    files["another model that says it is one"] = model.SerializeToString()
    own = onnx.load_from_string(whole)
    about = json.loads(own.metadata_props[0].value)
    for broken in ({"height": 64}, {"height": "32"}, {"height": 0}, {"max_width": -3}, {"min_width": 10**8}):
        onnx.helper.set_model_props(own, {"lookalike": json.dumps(about | {"frame": about["frame"] | broken})})
        files[f"a frame of another {broken}"] = own.SerializeToString()
    for name, data in files.items():
        path = tmp_path / f"{name}.onnx"
        path.write_bytes(data)
        line = refusal(recognizer("predict", "--model", path, pictures[0]))
        assert str(path) in line and len(line) < 500, name
    assert "is no reader's ONNX file" in line or "does not fit its charset" in line


def test_an_installed_reader_is_not_written_over(tmp_path: Path) -> None:
    before = DEFAULT.read_bytes()
    for model in ("tiny", "default"):
        assert "say where its file goes" in refusal(recognizer("export", model))
    assert DEFAULT.read_bytes() == before
    assert "its folder is not there" in refusal(recognizer("export", "tiny", "--out", tmp_path / "no" / "x.onnx"))
    own = tmp_path / "weights.safetensors"
    assert "name a file that ends in .onnx" in refusal(recognizer("export", "tiny", "--out", own))
    with pytest.raises(UserError, match="could not be written"), written(own):
        own.with_name("weights.safetensors.tmp").write_bytes(b"half of it")
        raise OSError(errno.ENOSPC, "No space left on device")
    assert "that is a folder" in refusal(recognizer("export", "tiny", "--out", tmp_path))
    assert not list(tmp_path.iterdir())


def test_a_reader_where_weights_are_wanted_is_told_from_them(trained: Trained, drawn: Path) -> None:
    ended = recognizer("evaluate", "--model", trained.run / "reader.onnx", "--data", drawn / "eight")
    assert "here its weights are wanted: a run's folder" in refusal(ended)


def test_a_constraint_that_no_picture_can_show_is_refused(trained: Trained, pictures: list[Path]) -> None:
    for words in (["predict", pictures[0]], ["label", pictures[0].parent]):
        line = refusal(recognizer(words[0], "--model", trained.run, "--length", "500", *words[1:]))
        assert "ask for shorter text" in line


def test_names_that_end_in_nul_are_read_and_abstentions_tell_nothing(
    trained: Trained, pictures: list[Path], tmp_path: Path
) -> None:
    (tmp_path / "list").write_bytes(b"\0".join(os.fsencode(p) for p in pictures[:3]) + b"\0")
    ended = recognizer("predict", "--model", trained.run, "--files-from", tmp_path / "list", "--json", "--n-best", 3,
                       "--min-confidence", 1)  # fmt: skip
    rows = json.loads(ended.out)
    assert [row["file"] for row in rows] == [str(p) for p in pictures[:3]]
    assert all(row["text"] is None and "n_best" not in row for row in rows)


@pytest.mark.parametrize(
    ("model", "said"),
    [
        ("nowhere", "nowhere: no such reader"),
        ("<EMPTY>", "no such reader; give a .onnx file, or a run's folder after recognizer export RUN"),
        ("<WEIGHTS>", "holds weights for training; make a reader of them: recognizer export"),
    ],
)
def test_what_is_no_reader_is_refused_with_the_way_to_one(
    trained: Trained, pictures: list[Path], tmp_path: Path, model: str, said: str
) -> None:
    places = {"EMPTY": tmp_path, "WEIGHTS": trained.run / "weights.safetensors"}
    words, said = filled(["predict", "--model", model, str(pictures[0])], said, places)
    assert said in refusal(recognizer(*words))


# ---------------------------------------------------------------------------------------------- check, split and merge


def samples_in(folder: Path, pattern: str | None = None) -> list[tuple[bytes, str]]:
    manifest = read_manifest(folder, pattern)
    assert not manifest.problems
    return sorted((s.read_bytes(), s.text) for s in manifest)


def test_check_lists_what_cannot_be_used(drawn: Path, tmp_path: Path) -> None:
    ended = recognizer("check", drawn / "train")
    lengths = [len(s.text) for s in read_manifest(drawn / "train")]
    assert ended.status == 0 and ended.out.splitlines() == [
        f"64 samples can be used; lengths: 2: {lengths.count(2)}, 3: {lengths.count(3)}", "characters: 0123",
    ]  # fmt: skip

    data = draw_folder(tmp_path / "data", ["01", "12", "23", "77"], 0)
    (data / "000.png").write_bytes(b"no picture")
    (data / "001.png").unlink()
    ended = recognizer("check", data, "--charset", "digits")
    assert ended.out.splitlines()[:2] == ["2 samples can be used; lengths: 2: 2", "characters: 237"]
    assert "the labels are few" not in ended.out
    assert "the labels are few: about 75% of further pictures" in recognizer("check", data).out
    assert "2 of 4 samples cannot be used" in ended.out and "unreadable" in ended.out and "missing file" in ended.out
    ended = recognizer("check", data, "--charset", "01")
    assert ended.status == 2 and ended.err == f"error: {data}: no sample is left\n"
    assert "'77' holds '7'" in ended.out
    for number in (2, 3):
        (data / f"00{number}.png").write_bytes(b"no picture")
    ended = recognizer("check", data)
    assert ended.status == 2 and ended.err == f"error: {data}: no sample is left\n"
    assert "4 of 4 samples cannot be used" in ended.out


def test_copies_are_not_written_among_pictures_named_by_their_labels(drawn: Path, tmp_path: Path) -> None:
    for s in read_manifest(drawn / "eight"):
        shutil.copy(s.path, tmp_path / f"{s.text}.png")
    for command in ("split", "merge"):
        ended = recognizer(command, tmp_path, "--label-pattern", "{text}.png", "--out", tmp_path / "out")
        assert "out lies among the pictures of" in refusal(ended)
        assert not (tmp_path / "out").exists()


def test_labels_with_what_nobody_sees_are_told(drawn: Path, tmp_path: Path) -> None:
    data = shutil.copytree(drawn / "eight", tmp_path / "data")
    assert "nobody sees" not in recognizer("check", data).out
    lines = (data / "metadata.jsonl").read_text()
    (data / "metadata.jsonl").write_text(lines.replace('"text": "', '"text": " ', 1))
    assert (
        "1 labels have space around them or characters that nobody sees, as 000.png: ' "
        in recognizer("check", data).out
    )


@pytest.mark.parametrize("words", [["--height", "0"], ["--height", "5000"], ["--max-pixels", "-1"]])
def test_check_refuses_sizes_that_are_none(drawn: Path, words: list[str]) -> None:
    ended = recognizer("check", drawn / "eight", *words)
    assert ended.status == 2 and "Traceback" not in ended.err


@pytest.mark.parametrize("words", [["predict", "a.png"], ["serve"], ["train", "--data", "a"]])
def test_more_threads_than_any_machine_has_are_refused(words: list[str]) -> None:
    ended = recognizer(*words, "--threads", 100_000)
    assert ended.status == 2 and "--threads" in ended.err and "Traceback" not in ended.err


@pytest.mark.parametrize("shards", [[], ["--shards"]])
def test_split_parts_what_there_is_and_always_the_same(drawn: Path, tmp_path: Path, shards: list[str]) -> None:
    parts = {}
    for out in ("a", "b"):
        ended = recognizer("split", drawn / "train", "--out", tmp_path / out, "--test", 0.25, *shards)
        assert ended.status == 0 and not ended.err
        parts[out] = {part: samples_in(tmp_path / out / part) for part in ("train", "test")}
        assert ended.out == "".join(f"{tmp_path / out / p}: {len(own)} samples\n" for p, own in parts[out].items())
    assert parts["a"] == parts["b"] and 15 <= len(parts["a"]["test"]) <= 17
    assert sorted(parts["a"]["train"] + parts["a"]["test"]) == samples_in(drawn / "train")
    recognizer("split", drawn / "train", "--out", tmp_path / "c", "--test", 0.25, "--seed", 1)
    assert samples_in(tmp_path / "c" / "test") != parts["a"]["test"]


def test_merge_brings_layouts_together(drawn: Path, tmp_path: Path) -> None:
    named = tmp_path / "named"
    named.mkdir()
    for k, sample in enumerate(read_manifest(drawn / "eight")):
        shutil.copy(sample.path, named / f"{sample.text}_{k}.png")
    ended = recognizer("merge", named, "--label-pattern", "{text}_{id}.png", "--out", tmp_path / "shards", "--shards")
    assert ended.status == 0 and ended.out == f"{tmp_path / 'shards'}: 8 samples\n"
    assert [path.name for path in (tmp_path / "shards").iterdir()] == ["000000.tar"]
    assert samples_in(tmp_path / "shards") == samples_in(drawn / "eight")
    ended = recognizer("merge", tmp_path / "shards", drawn / "validation", drawn / "eight", "--out", tmp_path / "all")
    assert ended.status == 0 and ended.out == f"{tmp_path / 'all'}: 40 samples\n"
    assert samples_in(tmp_path / "all") == sorted(2 * samples_in(drawn / "eight") + samples_in(drawn / "validation"))


def test_what_cannot_be_copied_is_told_and_the_rest_copied(drawn: Path, tmp_path: Path) -> None:
    data = shutil.copytree(drawn / "eight", tmp_path / "data")
    (data / "003.png").unlink()
    ended = recognizer("merge", data, "--out", tmp_path / "out")
    assert ended.status == 0 and ended.out == f"{tmp_path / 'out'}: 7 samples\n"
    assert "1 of 8 samples cannot be used" in ended.err and ended.err.endswith("\n")


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["merge", "<DATA>", "--out", "<DATA>"], "<DATA> exists and is not empty: name a new folder"),
        (["merge", "<DATA>", "--out", "<DATA>", "--shards"], "<DATA> exists and is not empty: name a new folder"),
        (["split", "<DATA>", "--out", "<DATA>"], "<DATA> exists and is not empty: name a new folder"),
        (["split", "<DATA>", "--out", "<FILE>"], "<FILE>"),
        (["split", "<DATA>", "--out", "<NEW>", "--test", "0"], "no sample is left for <NEW>/test"),
        (["split", "<DATA>", "--out", "<NEW>", "--test", "1"], "no sample is left for <NEW>/train"),
        (["merge", "<EMPTY>", "--out", "<NEW>"], "<EMPTY> has no metadata.jsonl"),
        (["merge", "<DATA>", "--label-pattern", "{id}", "--out", "<NEW>"], "--label-pattern '{id}' needs {text} once"),
        (["merge", "<FILE>", "--out", "<NEW>"], "<FILE> is no manifest"),
    ],
)
def test_copying_refuses_in_one_line(drawn: Path, tmp_path: Path, words: list[str], said: str) -> None:
    (tmp_path / "empty").mkdir()
    eight = drawn / "eight"
    places = {"DATA": eight, "NEW": tmp_path / "new", "EMPTY": tmp_path / "empty", "FILE": eight / "000.png"}
    before = samples_in(eight)
    words, said = filled(words, said, places)
    line = refusal(recognizer(*words))
    assert said in line
    assert samples_in(drawn / "eight") == before and sorted(p.name for p in tmp_path.iterdir()) == ["empty"]


# ------------------------------------------------------------------------------------------------------------- augment


def test_the_methods_are_listed() -> None:
    from augment.methods import METHODS

    ended = augment("methods")
    assert [line.split()[0] for line in ended.out.splitlines()] == [*METHODS, "my.module:Class"]


def made_in(folder: Path) -> list[tuple[str, tuple[int, int], dict[str, Any]]]:
    """Of each made sample: its text, its size, and what its manifest says of it."""
    found = []
    for sample in read_manifest(folder):
        with Image.open(sample.path) as picture:
            found.append((sample.text, picture.size, dict(sample.meta)))
    return found


def test_synthesize_texts_and_charsets(tmp_path: Path) -> None:
    (tmp_path / "texts.txt").write_text("0012\n\nNA\n1E23\n", encoding="utf-8")
    ended = augment(
        "synthesize", "--method", "captcha", "--texts", tmp_path / "texts.txt", "--size", "100x40", "--seed", 5,
        "--set", "curves=0", "--out", tmp_path / "a",
    )  # fmt: skip
    assert ended.status == 0 and ended.out == f"{tmp_path / 'a'}: 3 pictures\n"
    about = {"method": "captcha", "settings": {"curves": 0}, "source": None, "exact_text": True, "why": ""}
    assert made_in(tmp_path / "a") == [
        (text, (100, 40), about | {"seed": 5 + k}) for k, text in enumerate(["0012", "NA", "1E23"])
    ]

    words = ["synthesize", "--method", "captcha", "--charset", "upper", "--length", "2-3", "--count", 12]
    for seed, out in ((1, "b"), (1, "c"), (2, "d")):
        assert augment(*words, "--seed", seed, "--out", tmp_path / out).status == 0
    b, c, d = (samples_in(tmp_path / out) for out in "bcd")
    assert b == c and len(b) == 12 and {t for _, t in b} != {t for _, t in d}
    assert {len(text) for _, text in b} == {2, 3} and all(text.isupper() for _, text in b)
    assert augment(*words, "--count", 2, "--out", tmp_path / "e").out == f"{tmp_path / 'e'}: 2 pictures\n"


def test_synthesize_from_real_pictures(drawn: Path, tmp_path: Path) -> None:
    before = samples_in(drawn / "eight")
    ended = augment(
        "synthesize", "--method", "classical", "--data", drawn / "eight", "--count", 10, "--set", "strength=0.5",
        "--out", tmp_path / "a",
    )  # fmt: skip
    assert ended.status == 0, ended.err
    sources = list(read_manifest(drawn / "eight"))
    found = made_in(tmp_path / "a")
    texts = {s.name: s.text for s in sources}
    named = [about["source"] for _, _, about in found]
    assert [text for text, _, _ in found] == [texts[name] for name in named]
    assert sorted(named[:8]) == sorted(texts) and len({*named[8:]}) == 2, "each once before any is varied again"
    assert named[:8] != sorted(texts), "in an order of their own: the first few are not all that is ever varied"
    assert [size for _, size, _ in found] == [(16 * len(text) + 16, 32) for text, _, _ in found]
    assert samples_in(drawn / "eight") == before


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--charset", "01", "--size", "160"], "--size '160': write width x height in pixels, as in 160x60"),
        (["--charset", "01", "--size", "4x4"], "--size '4x4'"),
        (["--charset", "01", "--size", "9999x60"], "--size '9999x60'"),
        (["--charset", "01", "--size", "160x-60"], "--size '160x-60'"),
        (["--charset", "01", "--length", "3-2"], "--length '3-2': write 5, or 4-6"),
        (["--charset", "01", "--length", "0"], "--length '0'"),
        (["--charset", "010"], "the charset holds '0' more than once"),
        (["--charset", ""], "the charset is empty"),
        (["--charset", "01", "--texts", "<TEXTS>"], "--texts and --charset: choose one"),
        (["--texts", "nowhere"], "--texts nowhere: No such file"),
        (["--texts", "<EMPTY>"], "there is nothing to make"),
        (["--texts", "<PICTURE>"], "<PICTURE> is not UTF-8 text"),
        (["--requests", "nowhere"], "nowhere: no requests can be read there"),
        (["--requests", "<TEXTS>"], "<TEXTS>, line 1: not a request"),
        ([], "say what to draw: --requests FILE, --texts FILE, or --charset and --length"),
        (["--charset", "01", "--set", "curvs=1"], "no setting is called 'curvs'; did you mean 'curves'?"),
        (["--charset", "01", "--set", "curves"], "--set 'curves': write name=value"),
        (["--charset", "01", "--set", "curves=99"], "settings of captcha: curves = 99"),
        (["--charset", "01", "--method", "nothing"], "no method is called 'nothing'; there are captcha"),
        (["--charset", "01", "--method", "nomodule:Class"], "there is no module 'nomodule'"),
        (["--charset", "01", "--method", ":Class"], "no method is called ':Class'"),
        (["--charset", "01", "--method", ".methods:Class"], "no method is called '.methods:Class'"),
        (["--method", "classical"], "--method classical varies real pictures: say which with --data DIR"),
        (["--method", "classical", "--data", "<DATA>", "--texts", "<TEXTS>"], "keeps the text of the picture"),
        (["--method", "classical", "--data", "<BROKEN>"], "<BROKEN> has no sample to vary"),
        (["--charset", "01", "--out", "<DATA>"], "<DATA> exists and is not empty"),
    ],
)
def test_synthesize_refuses_in_one_line(drawn: Path, tmp_path: Path, words: list[str], said: str) -> None:
    (tmp_path / "texts.txt").write_text("01\n")
    (tmp_path / "empty.txt").write_text("\n")
    broken = shutil.copytree(drawn / "eight", tmp_path / "broken")
    for path in broken.glob("*.png"):
        path.write_bytes(b"no picture")
    places = {
        "TEXTS": tmp_path / "texts.txt", "EMPTY": tmp_path / "empty.txt", "DATA": drawn / "eight", "BROKEN": broken,
        "PICTURE": drawn / "eight" / "000.png",
    }  # fmt: skip
    for option, value in {"--method": "captcha", "--out": str(tmp_path / "new")}.items():
        words = words if option in words else [*words, option, value]
    words, said = filled(words, said, places)
    assert said in refusal(augment("synthesize", *words))
    assert not (tmp_path / "new").exists() and not list(tmp_path.glob(".*"))


def test_one_broken_picture_is_told_and_the_others_are_varied(drawn: Path, tmp_path: Path) -> None:
    broken = shutil.copytree(drawn / "eight", tmp_path / "broken")
    (broken / "000.png").write_bytes(b"no picture")
    ended = augment("synthesize", "--method", "classical", "--data", broken, "--out", tmp_path / "new")
    assert ended.status == 0 and "1 of 8 samples cannot be used" in ended.err
    assert {s.meta["source"] for s in read_manifest(tmp_path / "new")} == {f"{i:03d}.png" for i in range(1, 8)}


# -------------------------------------------------------------------------------------------------- the default reader


def test_a_sheet_shows_pictures_and_what_a_reader_reads(trained: Trained, drawn: Path, tmp_path: Path) -> None:
    sizes = {}
    for name, more in {"labels": [], "read": ["--model", trained.run], "wide": ["--columns", 4]}.items():
        ended = augment("sheet", drawn / "eight", "--out", tmp_path / f"{name}.png", "--limit", 7, *more)
        assert ended.status == 0 and ended.out == f"{tmp_path / name}.png: 7 pictures\n"
        with Image.open(tmp_path / f"{name}.png") as picture:
            sizes[name] = picture.size
    assert sizes["labels"][1] == sizes["read"][1] == sizes["wide"][1]  # two rows of six, or of four
    assert sizes["wide"][0] < sizes["labels"][0]
    made, beside = tmp_path / "made", ["--sources", drawn / "eight"]
    assert (
        augment("synthesize", "--method", "classical", "--data", drawn / "eight", "--count", 16, "--out", made).status
        == 0
    )
    ended = augment("sheet", made, "--out", tmp_path / "beside.png", "--limit", 16, *beside)
    assert ended.out == f"{tmp_path / 'beside.png'}: 16 pictures\n"
    with Image.open(tmp_path / "beside.png") as picture:  # eight rows: a real picture, and two that were made of it
        assert picture.height > 3.5 * sizes["wide"][1] and picture.width < sizes["wide"][0]
    broken = shutil.copytree(drawn / "eight", tmp_path / "broken")
    (broken / "003.png").write_bytes(b"no picture")
    assert "'003.png' of" in refusal(augment("sheet", broken, "--out", tmp_path / "no.png"))
    assert not (tmp_path / "no.png").exists()
    (made / "metadata.jsonl").write_text(labels := (made / "metadata.jsonl").read_text().replace("000.png", "9.png"))
    said = refusal(augment("sheet", made, "--out", made / "metadata.jsonl"))
    assert "is no contact sheet" in said and (made / "metadata.jsonl").read_text() == labels
    ended = augment("sheet", made, "--out", tmp_path / "beside.png", "--limit", 16, *beside)
    assert ended.status == 0 and f"not in {drawn / 'eight'}, as '9.png'" in ended.err


OWN = """
from PIL import Image
from augment.methods.captcha import CaptchaSettings

class Whole:
    Settings, needs_source, exact_text = CaptchaSettings, False, True
    def __init__(self, settings): pass
    def make(self, requests, sources):
        return [Image.new("RGB", (r.width, r.height), "white") for r in requests]

class Small(Whole):
    def make(self, requests, sources):
        return [Image.new("L", (5, 5)) for r in requests]

class Few(Whole):
    def make(self, requests, sources):
        return []

class Broken(Whole):
    def make(self, requests, sources):
        return [1 / 0]

class Lacking:
    pass

def function(): pass
"""


def test_a_method_of_ones_own_stands_in_the_folder_where_it_is_asked_for(tmp_path: Path) -> None:
    (tmp_path / "ownmethods.py").write_text(OWN)
    command = [str(Path(sys.executable).with_name("augment")), "synthesize", "--charset", "01", "--count", "2"]
    for name, said in {
        "Whole": "",
        "Small": "Small made '",
        "Few": "Few made 0 pictures for 2 requests",
        "Broken": "ownmethods.py, line 21: ZeroDivisionError: division by zero",
        "Lacking": "this has no Settings",
        "function": "this has no Settings",
    }.items():
        words = [*command, "--method", f"ownmethods:{name}", "--out", name]
        ended = subprocess.run(
            words, cwd=tmp_path, capture_output=True, text=True, env={**os.environ, "PYTHONPATH": ""}
        )
        assert said in ended.stderr and ended.returncode == (2 if said else 0), ended.stderr
        assert "Traceback" not in ended.stderr and (tmp_path / name).exists() == (not said)


def test_the_default_reader_reads_clean_print_right_after_install(tmp_path: Path) -> None:
    texts = tmp_path / "texts.txt"
    texts.write_text("".join(f"{text}\n" for text in ["7KQ2M", "HELLO", "4096", "Wxyz", "lookalike", "B3nT"] * 4))
    words = ["--method", "render", "--texts", texts, "--set", "difficulty=0", "--size", "140x40"]
    assert augment("synthesize", *words, "--out", tmp_path / "drawn").status == 0
    ended = recognizer("predict", tmp_path / "drawn", "--json")
    assert ended.status == 0, ended.err
    truth = {s.name: s.text for s in read_manifest(tmp_path / "drawn")}
    read = {Path(row["file"]).name: row["text"] for row in json.loads(ended.out)}
    right = sum(read[name].casefold() == text.casefold() for name, text in truth.items())
    assert right >= 20, read


def test_training_starts_from_the_default_reader_where_it_fits(drawn: Path, tmp_path: Path) -> None:
    words = ["train", "--data", drawn / "eight", "--validation", drawn / "eight", "--pictures", 16, "--batch", 8,
             "--threads", 1, "--tracker", "none"]  # fmt: skip
    started = "started from the default reader"
    for name, more, said in (
        ("a", [], True), ("b", ["--from", "nothing"], False), ("c", ["--size", "base"], False),
        ("d", ["--from", "default", "--head", "lstm"], True),
    ):  # fmt: skip
        ended = recognizer(*words, *more, "--out", tmp_path / name)
        assert ended.status == 0 and (started in ended.err) == said, ended.err


def test_the_shipped_weights_are_small_and_say_what_they_are() -> None:
    folder = DEFAULT.parent
    assert sum(file.stat().st_size for file in folder.iterdir()) < 8_000_000
    state, description = read_weights(folder / "weights.safetensors")
    assert sum(tensor.numel() for tensor in state.values()) < 2_000_000
    assert len(description.charset) == 62 and description.settings["stream"] == "augment.stream:Stream"
    card = (folder / "README.md").read_text()
    assert all(heading in card for heading in ("## Data", "## Figures", "## Limits", "## Licence"))
