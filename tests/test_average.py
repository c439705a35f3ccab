"""The mean of several trainings from one start, made of them or trained at once."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from accelerate import Accelerator
from conftest import Trained, draw_folder, random_labels, recognizer, refusal

from recognizer.errors import Stopped
from recognizer.reader import Reader
from recognizer.samples import read_manifest
from recognizer.training.average import alike
from recognizer.training.checkpoint import build, read_weights, save_weights
from recognizer.training.evaluate import evaluate
from recognizer.training.model import Network
from recognizer.training.seeds import resumed_by


@pytest.fixture(scope="module")
def folder(trained: Trained, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two short trainings from one start, `one` and `two`, each from labels of its own."""
    folder = tmp_path_factory.mktemp("average")
    draw_folder(folder / "validation", random_labels(40, 22), 22)
    for seed, name in enumerate(("one", "two")):
        draw_folder(folder / f"labels-{name}", random_labels(40, 23 + seed), 23 + seed)
        ended = recognizer(
            "train", "--from", trained.run, "--data", folder / f"labels-{name}", "--validation", folder / "validation",
            "--out", folder / name, "--pictures", 320, "--batch", 16, "--seed", seed, "--set", "validations=2",
            "--set", "threads=1", "--set", "tracker=none",
        )  # fmt: skip
        assert ended.status == 0, ended.err
    return folder


def test_the_mean_of_two_trainings_reads_and_knows_what_both_learned(folder: Path, tmp_path: Path) -> None:
    out = tmp_path / "mean"
    ended = recognizer("average", folder / "one", folder / "two", "--out", out)
    assert ended.status == 0 and ended.out.startswith(f"the mean of 2 readers is in {out};"), ended
    (one, _), (two, about), (mean, said) = (read_weights(path) for path in (folder / "one", folder / "two", out))
    assert 0.8 < alike(one, two) < 0.99999
    for name, tensor in mean.items():
        torch.testing.assert_close(tensor, (one[name] + two[name]) / 2, atol=1e-3, rtol=1e-3)
    learned = [str(folder / f"labels-{name}") for name in ("one", "two")]
    assert said.settings["data"] == learned and said.scores == {"averaged": [str(folder / n) for n in ("one", "two")]}
    assert replace(said, scores={}, settings={}) == replace(about, scores={}, settings={})

    def right(run: Path) -> int:
        reader, samples = Reader(run / "reader.onnx"), read_manifest(folder / "validation").samples
        readings = reader.read([reader.open(s.read_bytes()) for s in samples])
        return sum(r.text == s.text for r, s in zip(readings, samples, strict=True))

    assert right(out) >= max(30, min(right(folder / "one"), right(folder / "two")) - 1)


def test_what_has_no_mean_is_refused_in_one_line(folder: Path, tmp_path: Path) -> None:
    def refused(*models: Path, out: Path = tmp_path / "mean") -> str:
        said = refusal(recognizer("average", *models, "--out", out))
        assert not (tmp_path / "mean").exists()
        return said

    one = folder / "one"
    assert refused(one) == refused(one, one / "weights.safetensors") == "name two readers or more, each once"
    assert "no such weights file" in refused(one, tmp_path / "nowhere")
    full = "exists and is not empty: name a new folder"
    assert full in refused(one, folder / "two", out=one) and full in refused(one, folder / "two", out=Path(__file__))
    state, about = read_weights(one)
    other = tmp_path / "other.safetensors"
    save_weights(other, state, replace(about, charset="3210"))
    assert "has another charset than" in refused(one, other)
    torch.manual_seed(5)
    save_weights(other, Network("tiny", ("conv",), 5).state_dict(), about)
    assert "were not trained from one start (the cosine of their weights is " in refused(one, other)
    narrow = {k: v[:, :8] if k.endswith("blocks.0.conv2.weight") else v for k, v in state.items()}
    narrow = {k: v[:8] if ".blocks.0.conv1." in k or ".blocks.0.norm1." in k else v for k, v in narrow.items()}
    build(narrow, about)
    save_weights(other, narrow, about)
    assert "has other channels than" in refused(one, other)


def test_trainings_of_several_seeds_leave_their_mean(trained: Trained, folder: Path, tmp_path: Path) -> None:
    how = (
        "--from", trained.run, "--data", folder / "labels-one", "--validation", folder / "validation",
        "--pictures", 320, "--batch", 16, "--set", "validations=2", "--set", "threads=1", "--set", "tracker=none",
    )  # fmt: skip
    out = tmp_path / "several"
    ended = recognizer("train", *how, "--seed", 7, "--seeds", 2, "--out", out)
    assert ended.status == 0, ended.err
    assert "by their mean; kept is mean" in ended.err and (out / "reader.onnx").is_file()
    assert recognizer("train", *how, "--seed", 8, "--out", tmp_path / "alone").status == 0
    runs = [out / "seed-7", out / "seed-8"]
    (one, _), (two, _), (alone, _), (mean, _) = (read_weights(run) for run in (*runs, tmp_path / "alone", out))
    assert all(torch.equal(two[name], alone[name]) for name in two)
    for name, tensor in mean.items():
        torch.testing.assert_close(tensor, (one[name] + two[name]) / 2, atol=1e-3, rtol=1e-3)
    read = evaluate(out, read_manifest(folder / "validation").samples, Accelerator(cpu=True))[1].readings
    right = [s.text == r.text for s, r in zip(read_manifest(folder / "validation"), read, strict=True)]
    assert json.loads((out / "scores.json").read_text())["exact"] == sum(right) / len(right) > 0.7

    # as it was killed after the first training
    first = (runs[0] / "weights.safetensors").stat().st_mtime_ns
    shutil.rmtree(runs[1])
    for name in ("weights.safetensors", "scores.json", "reader.onnx"):
        (out / name).unlink()
    assert recognizer("train", "--resume", out).status == 0
    assert (runs[0] / "weights.safetensors").stat().st_mtime_ns == first
    again = read_weights(out)[0]
    assert all(torch.equal(mean[name], again[name]) for name in mean)

    # a mean that reads worse than the best is not kept, nor one that there is not
    state, about = read_weights(runs[1])
    torch.manual_seed(3)
    noise = {k: t + 1.4 * t.std() * torch.randn(t.shape) if t.ndim > 1 else t for k, t in state.items()}
    assert alike(one, noise) > 0.5
    save_weights(runs[1] / "weights.safetensors", noise, about)
    assert "by their mean; kept is seed-7" in recognizer("train", "--resume", out).err
    assert all(torch.equal(one[name], t) for name, t in read_weights(out)[0].items())
    save_weights(runs[1] / "weights.safetensors", Network("tiny", ("conv",), 5).state_dict(), about)
    assert " by seed; kept is seed-7" in recognizer("train", "--resume", out).err


def test_several_seeds_are_refused_where_there_is_no_mean(folder: Path, tmp_path: Path) -> None:
    words = ("train", "--from", "nothing", "--data", folder / "labels-one", "--out", tmp_path / "run", "--seeds", 2)
    assert "what starts from nothing has no mean" in refusal(recognizer(*words))
    assert not (tmp_path / "run").exists()
    assert "seeds" in refusal(recognizer(*words[:-1], 0))
    # each would draw a head by chance that the start lacks
    words = ("train", "--head", "lstm", "--data", folder / "labels-one", "--out", tmp_path / "run", "--seeds", 2)
    assert "no mean" in refusal(recognizer(*words))


def test_a_slip_of_several_trainings_does_not_cost_the_folder(trained: Trained, folder: Path, tmp_path: Path) -> None:
    how = (
        "--from", trained.run, "--validation", folder / "validation", "--pictures", 16, "--batch", 16, "--seeds", 2,
        "--set", "validations=1", "--set", "threads=1", "--set", "tracker=none", "--out", tmp_path / "slip",
    )  # fmt: skip
    slip = recognizer("train", "--data", folder / "nowhere", *how)
    assert slip.status == 2 and slip.err.endswith("nowhere: no such file or folder\n")
    ended = recognizer("train", "--data", folder / "labels-one", *how)
    assert ended.status == 0, ended.err
    assert "is not empty" in refusal(recognizer("train", "--data", folder / "labels-one", *how))


def test_a_training_of_several_that_is_stopped_says_how_all_go_on(tmp_path: Path) -> None:
    with pytest.raises(Stopped) as stopped, resumed_by(tmp_path / "run"):
        raise Stopped(f"at step 3 of 9; go on with: recognizer train --resume {tmp_path / 'run' / 'seed-1'}")
    assert str(stopped.value) == f"at step 3 of 9; go on with: recognizer train --resume {tmp_path / 'run'}"
