"""Readers made smaller: what is taught, what is taken out, and what is left."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from conftest import Trained, draw_folder, random_labels, recognizer, refusal
from torch.nn import functional as F

from recognizer.charset import Charset
from recognizer.deploy.compress import without
from recognizer.errors import UserError
from recognizer.images import Frame
from recognizer.reader import Reader, readings_of
from recognizer.samples import read_manifest, write_folder
from recognizer.training.batches import Pictures, collate
from recognizer.training.checkpoint import TINY, Description, build, read_weights, save_weights, widths_of
from recognizer.training.evaluate import shown_case
from recognizer.training.model import Network
from recognizer.training.teach import Teachers, distillation, frame_of_teachers

CPU = torch.device("cpu")


def test_distillation_is_the_divergence_of_all_frames_a_character() -> None:
    rng = torch.Generator().manual_seed(0)
    logits, taught = (torch.randn(3, 7, 5, generator=rng) for _ in range(2))
    lengths = torch.tensor([1, 2, 4])
    found = distillation(logits, taught.log_softmax(-1), lengths)
    for i in range(3):
        expected = F.kl_div(logits[i].log_softmax(-1), taught[i].softmax(-1), reduction="sum") / lengths[i]
        assert float(found[i]) == pytest.approx(float(expected), rel=1e-5)
    assert distillation(taught, taught.log_softmax(-1), lengths).abs().max() < 1e-5
    assert distillation(logits.bfloat16(), taught.log_softmax(-1), lengths).dtype == torch.float32


def test_several_teachers_teach_their_mean_in_the_classes_of_the_pupil(tmp_path: Path) -> None:
    charset, paths = Charset("10ab"), []
    for seed, known in enumerate(("01ABX", "Xab01")):
        torch.manual_seed(seed)
        network = Network("tiny", ("conv",), len(known) + 1)
        paths.append(str(tmp_path / f"{seed}.safetensors"))
        save_weights(Path(paths[-1]), network.state_dict(), Description("tiny", "conv", known, Frame(32, 64, 512)))
    taught = Teachers(paths, charset, [{"a": "A", "b": "B"}, {}], CPU)(pictures := torch.randn(2, 1, 32, 64))
    parts = []
    for path, rows in zip(paths, ([0, 2, 1, 3, 4], [0, 5, 4, 2, 3]), strict=True):
        state, description = read_weights(Path(path))
        with torch.inference_mode():
            parts.append(build(state, description)(pictures)["conv"][..., rows].softmax(-1))
    torch.testing.assert_close(taught.exp(), (parts[0] + parts[1]) / 2, atol=1e-5, rtol=1e-4)
    with pytest.raises(UserError, match="does not know 'z'"):
        Teachers(paths, Charset("01z"), [{}, {}], CPU)
    assert frame_of_teachers(paths) == Frame(32, 64, 512)
    with pytest.raises(UserError, match="do not see pictures alike"):
        frame_of_teachers([paths[0], str(TINY)])


def test_taking_nothing_out_changes_nothing_and_half_leaves_half() -> None:
    state, description = read_weights(TINY)
    pictures = torch.randn(2, 1, 32, 96)
    with torch.inference_mode():
        before = build(state, description)(pictures)["conv"]
        torch.testing.assert_close(build(without(state, 1.0), description)(pictures)["conv"], before)
        half = without(state, 0.5)
        assert widths_of(half) == ((24, 48, 48), 80) and widths_of(state) == ((48, 96, 96), 160)
        assert build(half, description)(pictures)["conv"].shape == before.shape
    assert sum(t.numel() for t in half.values()) < 0.55 * sum(t.numel() for t in state.values())


def test_what_carries_nothing_is_taken_out_first() -> None:
    state, description = read_weights(TINY)
    dead = [1, 5, 30, 40]
    state["trunk.blocks.0.conv2.weight"][:, dead] = 0
    state["heads.conv.body.1.weight"][[0, 7]] = 0
    state["heads.conv.body.1.bias"][[0, 7]] = 0
    pictures = torch.randn(2, 1, 32, 96)
    left = without(state, 44 / 48)
    assert widths_of(left).blocks[0] == 44
    for name in ("trunk.blocks.0.conv1.weight", "trunk.blocks.0.norm1.bias"):
        kept = [i for i in range(48) if i not in dead]
        assert torch.equal(left[name], state[name][kept])
    with torch.inference_mode():
        only = {**state, **{k: v for k, v in left.items() if k.startswith("trunk.blocks.0.")}}
        expected = build(state, description)(pictures)["conv"]
        torch.testing.assert_close(build(only, description)(pictures)["conv"], expected, atol=1e-4, rtol=1e-4)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("compress")
    draw_folder(folder / "train", random_labels(60, 11), 11)
    draw_folder(folder / "validation", random_labels(24, 12), 12)
    draw_folder(folder / "more", random_labels(40, 13), 13)
    (folder / "more" / "metadata.jsonl").unlink()
    return folder


SHORT = (
    "--pictures",
    320,
    "--set",
    "batch=16",
    "--set",
    "validations=2",
    "--set",
    "threads=1",
    "--set",
    "tracker=none",
)


def figures(run: Path) -> dict[str, Any]:
    scores: dict[str, Any] = json.loads((run / "scores.json").read_text())
    return scores


def test_a_pupil_learns_from_pictures_without_labels_too_and_the_run_goes_on(
    trained: Trained, folder: Path, tmp_path: Path
) -> None:
    words = (
        "compress", "distill", "--teacher", trained.run, "--data", folder / "train", "--validation",
        folder / "validation", "--unlabelled", folder / "more", "--out", tmp_path / "out", "--set", "start=nothing",
        *SHORT,
    )  # fmt: skip
    ended = recognizer(*words)
    assert ended.status == 0, ended.err
    out = tmp_path / "out"
    assert {p.name for p in out.iterdir()} == {
        "asked.json",
        "training",
        "read",
        "weights.safetensors",
        "reader.onnx",
        "scores.json",
    }
    read = read_manifest(out / "read").samples
    assert len(read) == len({file.read_bytes() for file in (folder / "more").iterdir()}), "each picture once"
    assert figures(out)["exact"] >= 0.4
    reader = Reader(out)
    assert reader.frame == read_weights(trained.run)[1].frame
    before = (out / "weights.safetensors").read_bytes()
    again = recognizer(*words)
    assert again.status == 0 and (out / "weights.safetensors").read_bytes() == before
    for more in (["--set", "teach=0.5"], ["--unlabelled", folder / "validation"]):
        assert "was begun with other settings" in refusal(recognizer(*words, *more))
    rows = [json.loads(line) for line in (out / "training" / "metrics.jsonl").read_text().splitlines()]
    assert len(rows) == 2 and np.isfinite([row["loss"] for row in rows]).all()


def test_a_pupil_of_few_labels_reads_what_its_teacher_reads(trained: Trained, folder: Path, tmp_path: Path) -> None:
    few = draw_folder(tmp_path / "few", ["01", "10", "00", "11"] * 3, 5)
    kept = draw_folder(tmp_path / "kept", ["04", "40", "44"] * 3, 6)
    words = ("compress", "distill", "--data", few, "--set", f'keep=["{kept}"]', "--set", "start=nothing")
    for teacher, read in ((trained.run, "does not know '4'"), ("tiny", "014")):
        ended = recognizer(*words, "--teacher", teacher, "--out", tmp_path / read[:2], "--pictures", 16, *SHORT[2:])
        if teacher == "tiny":
            assert ended.status == 0 and "cannot be used" not in ended.err, ended.err
            assert read_weights(tmp_path / read[:2])[1].charset == read, "no more, of all that text can hold"
        else:
            assert read in refusal(ended._replace(err=ended.err.splitlines()[-1]))
    ended = recognizer(
        "compress", "distill", "--data", few, "--set", "start=nothing", "--teacher", trained.run, "--unlabelled",
        folder / "more", "--out", tmp_path / "own", "--pictures", 16, *SHORT[2:],
    )  # fmt: skip
    assert ended.status == 0 and read_weights(tmp_path / "own")[1].charset == "0123", ended.err
    assert {c for s in read_manifest(tmp_path / "own" / "read") for c in s.text} == set("0123")


def test_labels_in_another_case_than_the_pictures_are_taught_in_theirs(tmp_path: Path) -> None:
    """Pictures show capitals, labels are lower-case, and the teacher knows both."""
    texts = ["BDGH", "HGDB", "GBHD", "DHBG", "HHBD", "GGDB"] * 5
    folder = draw_folder(tmp_path / "capitals", texts, 3)
    lower = write_folder([replace(s, text=s.text.lower()) for s in read_manifest(folder)], tmp_path / "lower")
    pictures = Pictures(read_manifest(tmp_path / "lower").samples, Charset("bdgh"), Frame(32, 128, 512), 10**6)
    assert lower is None
    case = shown_case(TINY, pictures)
    assert case == {"b": "B", "d": "D", "g": "G", "h": "H"}
    taught = Teachers([str(TINY)], pictures.charset, [case], CPU)(collate([pictures[i] for i in range(8)]).pictures)
    read = [r.text for r in readings_of(taught.numpy(), pictures.charset)]
    assert read == [s.text for s in pictures.samples[:8]]
    ended = recognizer(
        "compress", "distill", "--teacher", "tiny", "--data", tmp_path / "lower", "--unlabelled",
        draw_folder(tmp_path / "more", texts, 7), "--out", tmp_path / "out", "--pictures", 64, *SHORT[2:],
    )  # fmt: skip
    assert ended.status == 0, ended.err
    assert "cannot be used" not in ended.err
    read = {Path(str(s.meta["source"])).name: s.text for s in read_manifest(tmp_path / "out" / "read")}
    shown = {s.path.name: s.text.lower() for s in read_manifest(tmp_path / "more")}
    right = sum(shown[name] == text for name, text in read.items())
    assert len(read) >= 20 and right >= 0.9 * len(read), "in the labels' case"


def test_a_pruned_reader_is_smaller_and_still_reads(trained: Trained, folder: Path, tmp_path: Path) -> None:
    ended = recognizer(
        "compress", "prune", "--model", trained.run, "--data", folder / "train", "--validation", folder / "validation",
        "--keep", 0.5, "--out", tmp_path / "out", *SHORT,
    )  # fmt: skip
    assert ended.status == 0, ended.err
    state, _ = read_weights(tmp_path / "out")
    assert widths_of(state) == ((24, 48, 48), 80)
    assert figures(tmp_path / "out")["exact"] > 0.6
    whole, own = trained.run / "weights.safetensors", tmp_path / "out" / "weights.safetensors"
    assert own.stat().st_size < 0.6 * whole.stat().st_size
    assert (tmp_path / "out" / "reader.onnx").stat().st_size < 0.7 * (trained.run / "reader.onnx").stat().st_size
    less = recognizer(
        "compress", "prune", "--model", trained.run, "--data", folder / "train", "--validation", folder / "validation",
        "--keep", 0.4, "--out", tmp_path / "out", *SHORT,
    )  # fmt: skip
    assert "was begun with other settings" in refusal(less)


def test_what_failed_before_it_learned_is_done_anew_in_the_same_folder(
    trained: Trained, folder: Path, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    words = ("compress", "prune", "--model", trained.run, "--out", out, "--keep", 0.5, *SHORT)
    failed = recognizer(*words, "--data", "nowhere")
    assert failed.status == 2 and failed.err.endswith("error: nowhere: no such file or folder\n")
    ended = recognizer(*words, "--data", folder / "train", "--validation", folder / "validation")
    assert ended.status == 0, ended.err
    assert (out / "reader.onnx").is_file()


@pytest.mark.parametrize("left", ["seed-0/checkpoints/000000100", "seed-0/scores.json"])
def test_one_of_several_trainings_is_not_thrown_away(trained: Trained, folder: Path, tmp_path: Path, left: str) -> None:
    learned = tmp_path / "out" / "training" / left
    learned.mkdir(parents=True)
    (tmp_path / "out" / "asked.json").write_text("{}")
    words = ("compress", "prune", "--model", trained.run, "--data", folder / "train", "--out", tmp_path / "out")
    assert "was begun with other settings" in refusal(recognizer(*words, "--set", "seeds=2", *SHORT))
    assert learned.exists()


def test_mistakes_are_one_line(trained: Trained, folder: Path, tmp_path: Path) -> None:
    data, out = folder / "train", tmp_path / "out"
    base = ("compress", "distill", "--data", data, "--out", out, *SHORT)
    assert "nowhere: no such weights file" in refusal(recognizer(*base, "--teacher", "nowhere"))
    tall = tmp_path / "tall.safetensors"
    save_weights(
        tall, Network("base", ("conv",), 5).state_dict(), Description("base", "conv", "0123", Frame(48, 96, 512))
    )
    assert not out.exists()
    said = refusal(recognizer(*base, "--teacher", tall))
    assert "a 'tiny' reader sees pictures 32 pixels high, its teacher 48" in said
    lstm = tmp_path / "lstm.safetensors"
    save_weights(
        lstm, Network("tiny", ("lstm",), 5).state_dict(), Description("tiny", "lstm", "0123", Frame(32, 64, 512))
    )
    said = refusal(recognizer("compress", "prune", "--model", lstm, "--data", data, "--out", tmp_path / "p", *SHORT))
    assert "has a lstm head" in said
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "letter.txt").write_text("mine")
    said = refusal(recognizer("compress", "prune", "--model", trained.run, "--data", data, "--out", tmp_path / "full"))
    assert "holds something else" in said
