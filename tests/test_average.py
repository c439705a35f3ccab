"""The mean of several trainings from one start."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from conftest import Trained, draw_folder, random_labels, recognizer, refusal

from recognizer.reader import Reader
from recognizer.samples import read_manifest
from recognizer.training.average import alike
from recognizer.training.checkpoint import build, read_weights, save_weights
from recognizer.training.model import Network


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
