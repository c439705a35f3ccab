"""How much of what was learned is kept."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import torch
from accelerate import Accelerator
from conftest import recognizer
from torch import Tensor

from recognizer.charset import Charset
from recognizer.samples import read_manifest
from recognizer.training.batches import Pictures
from recognizer.training.between import SHARES, between, choose, share_to_keep, started
from recognizer.training.checkpoint import TINY, read_weights, start_from
from recognizer.training.model import Network


def test_weights_between_two() -> None:
    start = {"a": torch.tensor([0.0, 4.0]), "b": torch.tensor([torch.nan, 2.0]), "n": torch.tensor(3)}
    learned = {"a": torch.tensor([1.0, 0.0]), "b": torch.tensor([8.0, 4.0]), "n": torch.tensor(9)}
    mixed = between(start, learned, 0.25)
    assert mixed["a"].tolist() == [0.25, 3.0] and mixed["b"].tolist() == [8.0, 2.5] and int(mixed["n"]) == 9
    assert all(torch.equal(between(start, learned, 1.0)[name], own) for name, own in learned.items())


def test_the_largest_share_is_kept_that_the_pictures_cannot_tell_from_the_best() -> None:
    flat = np.full((len(SHARES), 10), 0.3)
    assert choose(flat) == 1.0
    rng = np.random.default_rng(0)
    bend = (np.array(SHARES) - 0.5)[:, None] ** 2 * 40 + rng.normal(0, 0.01, (1, 10))
    assert choose(bend) == 0.5
    hidden = bend / 1000 + rng.normal(0, 1, (len(SHARES), 10))  # in noise that is far larger
    assert choose(hidden) >= SHARES[int(hidden.mean(1).argmin())]


def test_a_reader_that_spoilt_what_it_knew_goes_back_and_one_that_did_not_keeps_all(drawn: Path) -> None:
    _, description = read_weights(TINY)
    charset = Charset(description.charset + "#")  # which the start has no row for
    network = Network("tiny", ("conv",), charset.classes, 12)
    at_random = {name: tensor.clone() for name, tensor in network.state_dict().items()}
    start_from(network, TINY, charset)
    start = started(network, at_random)
    row = start["heads.conv.classify.weight"][-1]
    assert row.isnan().all() and not any(t.isnan().any() for name, t in start.items() if not name.startswith("heads."))
    pictures = Pictures(read_manifest(drawn / "validation").samples, charset, description.frame, 10**6)

    network.eval()
    cpu = Accelerator(cpu=True)
    generator = torch.Generator().manual_seed(0)
    same = {name: tensor.clone() for name, tensor in network.state_dict().items()}

    def spoilt(by: float) -> dict[str, Tensor]:
        return {
            name: t + by * t.std() * torch.randn(t.shape, generator=generator) if t.ndim > 1 else t
            for name, t in same.items()
        }

    assert share_to_keep(network, "conv", start, same, pictures, cpu) == 1.0
    assert share_to_keep(network, "conv", start, spoilt(1.0), pictures, cpu) <= 0.3


def test_a_training_keeps_a_share_of_what_it_learned_and_says_which(drawn: Path, tmp_path: Path) -> None:
    """The pictures to validate show other characters than its labels say: the less of it is learned, the better."""
    wrong = {"0": "1", "1": "2", "2": "3", "3": "0"}
    data = tmp_path / "data"
    shutil.copytree(drawn / "train", data)
    rows = [json.loads(line) for line in (data / "metadata.jsonl").read_text().splitlines()]
    lines = [json.dumps({**row, "text": "".join(wrong[c] for c in row["text"])}) + "\n" for row in rows]
    (data / "metadata.jsonl").write_text("".join(lines))
    kept = {}
    for name, labels, blend in (("right", drawn / "train", True), ("wrong", data, True), ("all", data, False)):
        words = ["--data", labels, "--validation", drawn / "validation", "--from", "tiny", "--size", "tiny"]
        ended = recognizer(
            "train", *words, "--out", tmp_path / name, "--threads", 1, "--pictures", 640, "--batch", 16,
            "--tracker", "none", "--set", f"blend={str(blend).lower()}", "--set", "validations=2",
        )  # fmt: skip
        assert ended.status == 0, ended.err
        kept[name] = read_weights(tmp_path / name)[1].scores.get("learned")
        told = [line for line in ended.err.splitlines() if line.startswith("keeps ")]
        assert len(told) == (kept[name] not in (None, 1.0)), ended.err
    assert kept["wrong"] in SHARES[-2:] and kept["right"] > kept["wrong"] and kept["all"] is None
