"""Training says the truth: it learns, goes on exactly where it was, keeps its best, and reads the same everywhere."""

from __future__ import annotations

import copy
import json
import os
import re
import resource
import shutil
import signal
import subprocess
import sys
import time
from collections import Counter
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from accelerate import Accelerator
from conftest import Trained, draw_folder, random_labels, recognizer
from PIL import Image
from torch import Tensor, nn

from recognizer.charset import NAMED, Charset
from recognizer.deploy import export as exports
from recognizer.deploy.export import export
from recognizer.errors import MachineError, UserError
from recognizer.images import STRIDE, Frame, normalise, open_picture
from recognizer.journal import locked
from recognizer.progress import Alone
from recognizer.reader import Reader, readings_of
from recognizer.readings import Reading, Scores, all_characters, wilson
from recognizer.samples import picture_hash, read_manifest, shared_pictures, write_folder
from recognizer.settings import load, to_toml
from recognizer.training import batches
from recognizer.training import train as train_module
from recognizer.training.average import average
from recognizer.training.batches import Item, Pictures, Plan, StepSampler, Variation, collate, vary
from recognizer.training.calibrate import fit_temperature
from recognizer.training.checkpoint import (
    DEFAULT,
    TINY,
    Description,
    build,
    charset_of,
    find_start,
    last_state,
    names_in,
    positions_of,
    read_weights,
    save_weights,
    start_from,
)
from recognizer.training.collapse import find_collapse
from recognizer.training.evaluate import evaluate, read_pictures, shown_case
from recognizer.training.folds import tell_learned
from recognizer.training.model import SIZES, FixedHead, HeadName, Network
from recognizer.training.pseudo import (
    DOUBTED,
    LIKELY,
    labelled_by,
    last_as_good,
    limit,
    share_at_least,
    surely,
    train_with_unlabelled,
    without_labels,
)
from recognizer.training.side_by_side import Training, _last_line
from recognizer.training.teach import Teachers
from recognizer.training.train import (
    Average,
    Data,
    TrainSettings,
    as_good,
    provenance,
    read_data,
    resumed_settings,
    schedule_of,
    train,
    weight_groups,
)

SMALL = {"start": "nothing", "threads": 1, "tracker": "none", "batch": 16}
CLOCK = {"seconds", "pictures_per_second"}


def settings(data: Path, validation: Path, **changed: Any) -> TrainSettings:
    return TrainSettings(**{**SMALL, "data": (str(data),), "validation": str(validation), **changed})


def metrics(run: Path) -> list[dict[str, Any]]:
    """The lines of metrics.jsonl without what a clock says."""
    rows = [json.loads(line, parse_constant=pytest.fail) for line in (run / "metrics.jsonl").read_text().splitlines()]
    return [{k: v for k, v in row.items() if k not in CLOCK} for row in rows]


def assert_same_weights(a: Path, b: Path) -> None:
    one, other = read_weights(a)[0], read_weights(b)[0]
    assert one.keys() == other.keys()
    for name, tensor in one.items():
        assert torch.equal(tensor, other[name]), name


def exact(run: Path, data: Path) -> float:
    pictures, outcome = evaluate(run, read_manifest(data).samples, Accelerator())
    return float(np.mean([s.text == r.text for s, r in zip(pictures.samples, outcome.readings, strict=True)]))


# ------------------------------------------------------------------------------------------------------------ batches


@pytest.mark.parametrize("widths", [[64], [64, 96, 128]])
def test_a_plan_follows_from_seed_and_step_alone(widths: list[int]) -> None:
    def plan(seed: int) -> Plan:
        return Plan([widths[i % len(widths)] for i in range(37)], 25, 8, 0.25, seed)

    forwards, steps = plan(1), range(100)
    expected = [forwards.indices(step) for step in steps]
    backwards = plan(1)
    assert [backwards.indices(step) for step in reversed(steps)] == expected[::-1]
    assert list(StepSampler(plan(1), 41, 100)) == expected[41:]
    assert [plan(2).indices(step) for step in steps] != expected


@pytest.mark.parametrize("widths", [[64], [64, 96, 128]])
@pytest.mark.parametrize("share", [0.25, 0.5])
def test_a_plan_takes_the_made_share_exactly_and_every_sample_equally_often(widths: list[int], share: float) -> None:
    real, made, batch = 11, 7, 8
    plan = Plan([widths[i % len(widths)] for i in range(real + made)], real, batch, share, 0)
    seen: Counter[int] = Counter()
    for step in range(32 * 11 * 7):
        chosen = plan.indices(step)
        assert len(chosen) == batch and sum(i >= real for i in chosen) == batch * share
        seen.update(chosen)
        if len(widths) == 1 or step % 32 == 31:  # with several widths, at the end of each window
            for part in (range(real), range(real, real + made)):
                times = [seen[i] for i in part]
                assert max(times) - min(times) <= 1
    assert len({seen[i] for i in range(real)}) == len({seen[i] for i in range(real, real + made)}) == 1


def test_a_plan_without_made_samples_fills_its_batches_with_real_ones() -> None:
    assert sorted(Plan([64] * 8, 8, 8, 0.5, 0).indices(0)) == list(range(8))


def test_a_plan_leaves_both_kinds_a_place_in_each_batch() -> None:
    for share in (0.01, 0.99):
        chosen = Plan([64] * 8, 4, 4, share, 0).indices(0)
        assert 0 < sum(i < 4 for i in chosen) < 4, f"of share {share}"


def test_a_plan_sorts_each_window_by_width_and_shuffles_its_batches() -> None:
    rng = np.random.default_rng(0)
    widths = (16 * rng.integers(4, 20, 300)).tolist()
    plan = Plan(widths, 300, 8, 0.5, 0)
    for window in range(3):
        own = [[widths[i] for i in plan.indices(32 * window + place)] for place in range(32)]
        narrowest = [min(batch) for batch in own]
        assert narrowest != sorted(narrowest)
        in_order = sorted(own, key=lambda batch: (min(batch), max(batch)))
        assert all(max(a) <= min(b) for a, b in pairwise(in_order))


def test_collate_pads_each_picture_with_its_own_edge() -> None:
    rng = np.random.default_rng(0)
    greys = [rng.integers(0, 256, (32, width), dtype=np.uint8) for width in (64, 96)]
    batch = collate([Item(greys[0], [1, 2]), Item(greys[1], [3, 2, 1])])
    assert batch.pictures.shape == (2, 1, 32, 96) and batch.pictures.dtype == torch.float32
    np.testing.assert_array_equal(batch.pictures[0, 0, :, :64], normalise(greys[0]))
    np.testing.assert_array_equal(batch.pictures[1, 0], normalise(greys[1]))
    np.testing.assert_array_equal(batch.pictures[0, 0, :, 64:], np.median(normalise(greys[0])[:, -1]))
    assert batch.targets.tolist() == [[1, 2, 0], [3, 2, 1]] and batch.lengths.tolist() == [2, 3]


def test_pictures_beyond_the_cache_are_opened_again_and_the_same(drawn: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    samples, charset = read_manifest(drawn / "eight").samples, Charset("0123")
    cached = Pictures(samples, charset, Frame(), 10**6)
    monkeypatch.setattr(batches, "CACHE_BYTES", 3 * 32 * 64)
    opened = Pictures(samples, charset, Frame(), 10**6)
    for i in range(8):
        np.testing.assert_array_equal(opened[i].grey, cached[i].grey)
        assert opened[i].ids == cached[i].ids == charset.encode(samples[i].text)
    (opened.samples[0].path.parent / "gone").touch()  # the folder can be written, and still nothing in it is
    assert len(opened._greys) < 8 == len(cached._greys)


def variation(**changed: float) -> Variation:
    off = dict.fromkeys(Variation.model_fields, 0.0)
    return Variation(**{**off, **changed})


def some_pictures() -> Tensor:
    rng = torch.Generator().manual_seed(0)
    smooth = torch.nn.functional.interpolate(torch.randn(4, 1, 8, 24, generator=rng), (32, 96), mode="bicubic")
    return (smooth - smooth.mean((2, 3), keepdim=True)) / smooth.std((2, 3), keepdim=True)


def test_variation_follows_from_its_generator_alone() -> None:
    pictures = some_pictures()
    before = pictures.clone()
    a, b, c = (vary(pictures, Variation(), torch.Generator().manual_seed(seed)) for seed in (5, 5, 6))
    assert torch.equal(a, b) and not torch.equal(a, c) and torch.equal(pictures, before)
    assert torch.allclose(vary(pictures, variation(), torch.Generator()), pictures, atol=1e-4)


@pytest.mark.parametrize("name", Variation.model_fields)
def test_each_kind_of_variation_changes_pictures_and_mirrors_none(name: str) -> None:
    pictures = some_pictures()
    strength = 1.0 if name == "erase" else Variation.model_fields[name].default
    varied = vary(pictures, variation(**{name: strength}), torch.Generator().manual_seed(0))
    assert varied.shape == pictures.shape and not torch.allclose(varied, pictures, atol=0.01)
    like = (varied * pictures).mean((1, 2, 3))
    mirrored = torch.stack([(varied * pictures.flip(d)).mean((1, 2, 3)) for d in ((2,), (3,), (2, 3))])
    assert bool((like > mirrored.max(0).values + 0.3).all())


# -------------------------------------------------------------------------------------------------- weights and norms


def test_the_average_follows_the_weights_fast_at_first_and_slowly_then() -> None:
    network = torch.nn.Linear(1, 1, bias=False)
    average, literal = Average(network, 10.0), float(network.weight.detach())  # type: ignore[arg-type]
    for k in range(1, 200):
        with torch.no_grad():
            network.weight.fill_(k)
        average.update(network)  # type: ignore[arg-type]
        decay = min(0.9, k / (9 + k))
        literal = decay * literal + (1 - decay) * k
        assert float(average.shadow["weight"]) == pytest.approx(literal, rel=1e-5)
    assert literal == pytest.approx(199 - 9, abs=0.01)  # an average over the last ten lags by nine


def test_norms_and_biases_do_not_decay() -> None:
    network = Network("tiny", ("conv", "lstm"), 5)
    decaying, others = weight_groups(network, 0.01)
    assert (decaying["weight_decay"], others["weight_decay"]) == (0.01, 0.0)
    names = {id(p): name for name, p in network.named_parameters()}
    assert len(decaying["params"]) + len(others["params"]) == len(names)
    kept = [names[id(p)] for p in others["params"]]
    assert all("norm" in n or "bias" in n or "stem.1" in n or "body" in n or "shortcut.2" in n for n in kept)


def described(charset: str = "0123", size: str = "tiny", head: HeadName = "conv") -> tuple[Network, Description]:
    """A network that a training might have left: its norms are not those that it starts with."""
    torch.manual_seed(0)
    network = Network(size, (head,), len(charset) + 1)
    for name, tensor in network.state_dict().items():
        if name.endswith("running_mean"):
            tensor.normal_(0, 0.2)
        elif name.endswith("running_var"):
            tensor.uniform_(0.5, 2)
    with torch.no_grad():
        for p in network.heads[head].classify.parameters():  # type: ignore[union-attr]
            p.normal_(0, 1)
    return network, Description(size, head, charset, Frame(SIZES[size].height, 48, 512))


def saved(path: Path, charset: str = "0123", size: str = "tiny", head: HeadName = "conv") -> Path:
    network, description = described(charset, size, head)
    save_weights(path, network.state_dict(), description)
    return path


def test_weights_come_back_with_their_description(tmp_path: Path) -> None:
    network, description = described("0é日✓")
    save_weights(tmp_path / "weights.safetensors", network.state_dict(), description)
    for path in (tmp_path, tmp_path / "weights.safetensors"):
        state, found = read_weights(path)
        assert found == description
        for name, tensor in network.state_dict().items():
            if tensor.ndim > 1:
                assert torch.equal(state[name], tensor.half().float())
            elif tensor.is_floating_point():
                assert torch.equal(state[name], tensor)
    assert [path.name for path in tmp_path.iterdir()] == ["weights.safetensors"]
    (tmp_path / "other").touch()  # a server's user need not be the trainer's
    assert (tmp_path / "weights.safetensors").stat().st_mode == (tmp_path / "other").stat().st_mode


@pytest.mark.parametrize("head", ["conv", "lstm"])
def test_starting_from_weights_keeps_the_rows_of_known_characters_exactly(tmp_path: Path, head: HeadName) -> None:
    path = saved(tmp_path / "old.safetensors", "abcd", head=head)
    old, _ = read_weights(path)
    network = Network("tiny", (head,), 6)
    before = {name: tensor.clone() for name, tensor in network.state_dict().items()}
    said = start_from(network, path, Charset("xdbya"))
    assert said == f"started from {path}: 3 of 5 characters were known to it"
    known = {0: 0, 2: 4, 3: 2, 5: 1}  # blank, d, b, a
    for name, tensor in network.state_dict().items():
        if ".classify." in name:
            for row in range(6):
                assert torch.equal(tensor[row], old[name][known[row]] if row in known else before[name][row])
        elif tensor.is_floating_point():
            assert torch.equal(tensor, old[name]), name


@pytest.mark.parametrize(
    ("labels", "known", "expected"),
    [
        (["ab", "b"], "ABC", "abc"),
        (["AB1"], "abc0", "01ABC"),
        (["17"], "0123aB", "01237Ba"),
        (["aB"], "ABC", "ABCa"),
        (["ß1"], "AẞS", "1asß"),
    ],
)
def test_a_reader_that_pictures_taught_keeps_its_characters_in_the_case_of_the_labels(
    tmp_path: Path, labels: list[str], known: str, expected: str
) -> None:
    path = saved(tmp_path / "own.safetensors", known)
    assert charset_of(labels, [path]).characters == expected
    assert charset_of(labels, [path], "digits").characters == "0123456789"
    assert charset_of(labels, []) == charset_of(labels, [DEFAULT]) == charset_of(labels, [path, DEFAULT])
    assert charset_of(labels, []) == Charset.of(labels)


def test_what_all_teachers_read_is_kept_and_rows_are_found_in_either_case(tmp_path: Path) -> None:
    paths = [saved(tmp_path / "one.safetensors", "012AbC"), saved(tmp_path / "two.safetensors", "0aBcX")]
    assert charset_of(["1a"], paths).characters == "01abc"
    network = Network("tiny", ("conv",), 6)
    assert "5 of 5 characters were known to it, 2 of them in the other case" in start_from(
        network, paths[0], Charset("01abc")
    )
    old = read_weights(paths[0])[0]["heads.conv.classify.weight"]
    assert torch.equal(network.heads.conv.classify.weight[3:], old[[4, 5, 6]])  # type: ignore[union-attr]
    assert names_in("012AbC", "1Aab", {}) == ["1", "A", "a", "b"], "one of two letters is not called as the other"
    charset = Charset("0abc")
    taught = Teachers(list(map(str, paths)), charset, [{}, {}], torch.device("cpu"))(torch.randn(1, 1, 32, 64))
    assert taught.shape[-1] == charset.classes


def test_few_labels_do_not_take_characters_from_the_reader_they_start_from(
    drawn: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    start = saved(tmp_path / "own.safetensors", "0123XY", "tiny")
    asked = settings(drawn / "train", drawn / "validation", start=str(start))
    train(asked.model_copy(update={"pictures": 16, "validations": 1}), tmp_path / "run")
    assert read_weights(tmp_path / "run")[1].charset == "0123XY"
    assert "6 characters, XY in no label" in capsys.readouterr().err
    (tmp_path / "run" / "scores.json").unlink()  # it goes on with its characters, though its start has others by now
    saved(start, "0123Z", "tiny")
    for left in ({"charset": "0123XY"}, {}):
        facts = json.loads((tmp_path / "run" / "run.json").read_text())
        assert facts.pop("charset") == "0123XY"
        facts.pop("start_sha256", None)  # as of a version before, which did not see that
        (tmp_path / "run" / "run.json").write_text(json.dumps(facts | left))
        train(resumed_settings(tmp_path / "run"), tmp_path / "run", resume=True)
        assert read_weights(tmp_path / "run")[1].charset == "0123XY"


def test_labels_too_few_for_their_characters_are_told_where_none_were_asked_for(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    draw_folder(tmp_path / "few", ["1023"], 0)
    draw_folder(tmp_path / "held", ["1020"], 1)
    asked = settings(tmp_path / "few", tmp_path / "held")
    read_data(asked, Accelerator(cpu=True))
    assert "about 41% of further pictures hold a character that none" in capsys.readouterr().err
    known = read_data(asked.model_copy(update={"charset": "digits"}), Accelerator(cpu=True))
    assert len(known.charset) == 10 and "the labels are few" not in capsys.readouterr().err


def test_starting_with_another_head_keeps_the_trunk_and_says_so(tmp_path: Path) -> None:
    path = saved(tmp_path / "old.safetensors", head="lstm")
    network = Network("tiny", ("conv",), 5)
    before = {name: tensor.clone() for name, tensor in network.heads.state_dict().items()}
    assert ", but not its lstm head: 4 of 4" in start_from(network, path, Charset("0123"))
    assert all(torch.equal(tensor, before[name]) for name, tensor in network.heads.state_dict().items())
    old, _ = read_weights(path)
    assert torch.equal(network.state_dict()["trunk.stem.0.weight"], old["trunk.stem.0.weight"])


def test_starting_from_another_size_is_refused(tmp_path: Path) -> None:
    path = saved(tmp_path / "old.safetensors", size="base")
    with pytest.raises(UserError, match="'base' reader and cannot start a 'tiny' one: --size base"):
        find_start(str(path), "tiny")
    assert find_start(str(path), None) == (path, "base") and find_start("nothing", None) == (None, "tiny")


def test_starting_from_weights_that_do_not_fit_their_description_is_refused(tmp_path: Path) -> None:
    network, description = described()
    state = network.state_dict()
    missing = {name: tensor for name, tensor in state.items() if name != "trunk.stem.0.weight"}
    for k, broken in enumerate([missing, state | {"heads.conv.classify.bias": torch.zeros(2)}]):
        save_weights(tmp_path / f"{k}.safetensors", broken, description)
        with pytest.raises(UserError, match="do not fit their description"):
            start_from(Network("tiny", ("conv",), 5), tmp_path / f"{k}.safetensors", Charset("0123"))


# ------------------------------------------------------------------------------------------ the same reading everywhere


@pytest.mark.parametrize(
    ("size", "head"),
    [  # that of a tiny one with a conv head is compared below
        ("tiny", "lstm"),
        ("base", "conv"),
        pytest.param("base", "lstm", marks=pytest.mark.slow),
    ],
)
def test_onnx_equals_torch(tmp_path: Path, size: str, head: HeadName) -> None:
    path = saved(tmp_path / "weights.safetensors", size=size, head=head)
    file, difference = export(path)
    assert file == tmp_path / "reader.onnx" and 0 < difference < 1e-4
    assert sorted(p.name for p in tmp_path.iterdir()) == ["reader.onnx", "weights.safetensors"]
    assert_reads_as_torch(Reader(file), build(*read_weights(path)), head)


@pytest.mark.parametrize(
    "size", ["tiny", pytest.param("small", marks=pytest.mark.slow), pytest.param("base", marks=pytest.mark.slow)]
)
def test_a_graph_that_is_kept_is_what_the_exporter_writes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, size: str
) -> None:
    path = saved(tmp_path / "weights.safetensors", size=size)
    with monkeypatch.context() as patch:
        patch.setattr(torch.onnx, "export", None)  # not called
        export(path, tmp_path / "kept.onnx")
    with monkeypatch.context() as patch:
        patch.setattr("recognizer.deploy.export.GRAPHS", tmp_path / "none")
        export(path, tmp_path / "written.onnx")
    kept, written = (onnx.load(tmp_path / name).graph for name in ("kept.onnx", "written.onnx"))
    assert list(kept.initializer) == list(written.initializer) and list(kept.output) == list(written.output)
    assert [(n.op_type, n.input, n.attribute) for n in kept.node] == [
        (n.op_type, n.input, n.attribute) for n in written.node
    ]


@pytest.mark.parametrize("size", SIZES)
def test_each_size_has_a_kept_graph_and_a_network_of_other_shapes_none(size: str) -> None:
    network, description = described(size=size)
    module = exports.Reading(network, "conv")
    assert exports.kept_graph(module, description) is not None
    module.network.heads["conv"].body[0] = nn.Conv1d(8, 16, 3)  # type: ignore[index, operator]
    assert exports.kept_graph(module, description) is None
    assert exports.kept_graph(exports.Reading(described(size=size, head="lstm")[0], "lstm"), description) is None


def test_a_reader_that_is_very_sure_is_exported_as_well(tmp_path: Path) -> None:
    path = saved(tmp_path / "weights.safetensors")
    state, description = read_weights(path)
    state["heads.conv.classify.weight"] *= 100
    save_weights(path, state, description)
    file, difference = export(path)
    greys = [np.random.default_rng(k).integers(0, 256, (32, 96)).astype(np.uint8) for k in range(4)]
    assert Reader(file).log_probabilities(greys).min() < -50 and 0 < difference < 1e-4


def test_what_rounding_alone_makes_of_a_reader_ends_no_export(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = saved(tmp_path / "weights.safetensors")
    state, description = read_weights(path)
    plain = dict(state)
    state["heads.conv.classify.weight"] = plain["heads.conv.classify.weight"] + 1000  # of all alike: it changes no
    save_weights(path, state, description)  # reading, and takes digits from each
    file, difference = export(path, form="full")
    assert exports.TOLERANCE < difference < 0.1
    file.unlink()
    # where the graph is wrong by as much as that, of a reader that hardly rounds, it is refused
    save_weights(path, plain, description)
    graph_of = exports.graph_of

    def wrong(module: nn.Module, description: Description) -> onnx.ModelProto:
        with torch.no_grad():
            module = copy.deepcopy(module)
            module.network.heads["conv"].classify.bias[1] += 2 * difference  # type: ignore[index, union-attr, operator]
        return graph_of(module, description)

    monkeypatch.setattr(exports, "graph_of", wrong)
    with pytest.raises(UserError, match="differs from torch by"):
        export(path, form="full")
    assert not file.exists() and not list(tmp_path.glob("*.tmp"))


def test_onnx_equals_torch_after_training(trained: Trained) -> None:
    assert_reads_as_torch(Reader(trained.run), build(*read_weights(trained.run)), "conv")
    state, _ = read_weights(trained.run)
    bytes_in_halves = sum(2 * t.numel() for name, t in state.items() if t.ndim > 1)
    assert (trained.run / "reader.onnx").stat().st_size < 1.2 * bytes_in_halves, "matrices are stored in full"


def assert_reads_as_torch(reader: Reader, network: Network, head: HeadName) -> None:
    rng, means = np.random.default_rng(1), []
    for n, width in [(1, 16), (1, 64), (7, 48), (2, 304), (3, 512), (33, 80)]:
        smooth = rng.integers(0, 256, (n, reader.frame.height // 4, width // 4), dtype=np.uint8)
        greys = [np.asarray(Image.fromarray(s).resize((width, reader.frame.height))) for s in smooth]
        with torch.inference_mode():
            logits: Tensor = network(torch.from_numpy(normalise(np.stack(greys))[:, None]))[head]
        expected = logits.log_softmax(-1).numpy()
        found = reader.log_probabilities(greys)
        assert found.shape == expected.shape and (head == "fixed" or found.shape == (n, width // STRIDE, 5))
        np.testing.assert_allclose(found, expected, atol=1e-4)
        means.append(expected.std())
    assert min(means) > 0.3, "outputs that are all alike compare nothing"


def same(a: Reading, b: Reading) -> bool:
    close = abs(a.confidence - b.confidence) < 1e-4 and [c for c, _ in a.characters] == [c for c, _ in b.characters]
    return (
        a.text == b.text
        and close
        and np.allclose([p for _, p in a.characters], [p for _, p in b.characters], atol=1e-4)
    )


def test_the_reader_reads_what_evaluate_reads(trained: Trained, drawn: Path) -> None:
    pictures, outcome = evaluate(trained.run, read_manifest(drawn / "train").samples, Accelerator())
    reader = Reader(trained.run)
    readings = reader.read([reader.open(s.path) for s in pictures.samples])
    assert len(set(pictures.widths)) > 1 and len({r.text for r in readings}) > 20
    assert all(same(a, b) for a, b in zip(readings, outcome.readings, strict=True))


def test_a_reading_does_not_depend_on_its_neighbours(trained: Trained, drawn: Path) -> None:
    samples = read_manifest(drawn / "validation").samples
    reader = Reader(trained.run)
    greys = [reader.open(s.path) for s in samples]
    together = reader.read(greys)
    assert all(same(reader.read([grey])[0], r) for grey, r in zip(greys, together, strict=True))
    few = reader.read(greys[::-1], batch=2)
    assert all(same(a, b) for a, b in zip(few[::-1], together, strict=True))

    state, description = read_weights(trained.run)
    network, pictures = build(state, description), Pictures(samples, Charset("0123"), description.frame, 10**6)
    alone, all_of_them = (read_pictures(network, "conv", pictures, Accelerator(), batch=n) for n in (1, 128))
    for a, b in zip(alone.readings, all_of_them.readings, strict=True):
        assert same(a, b) and a.nll == pytest.approx(b.nll, abs=1e-4)
    assert alone.blank_rate == all_of_them.blank_rate


# ----------------------------------------------------------------------------------------------------------- it learns


def test_a_reader_learns_eight_pictures_by_heart(drawn: Path, tmp_path: Path) -> None:
    eight = drawn / "eight"
    scores = train(settings(eight, eight, pictures=720, batch=8, validations=4), tmp_path / "run")
    assert scores.exact == 1.0 and scores.character_error_rate == 0.0 and scores.n == 8
    assert exact(tmp_path / "run", eight) == 1.0
    assert json.loads((tmp_path / "run" / "scores.json").read_text()) == scores.to_dict()


@pytest.mark.parametrize(
    "how",
    [
        {"bootstrap": "lstm"},
        {"bootstrap": "none"},
        {"head": "lstm"},
        {"loss": "focal-ctc"},
        {"loss": "balanced-ctc"},
        {"head": "fixed", "loss": "weighted-bce"},
        {"head": "fixed", "loss": "focal-bce", "adaptive_gamma": True},
        {"precision": "bf16"},
    ],
)
def test_every_way_to_train_runs_and_leaves_one_head(drawn: Path, tmp_path: Path, how: dict[str, Any]) -> None:
    from accelerate.state import AcceleratorState

    run, head = tmp_path / "run", how.get("head", "conv")
    AcceleratorState._reset_state(True)  # type: ignore[no-untyped-call]
    try:
        train(settings(drawn / "train", drawn / "eight", pictures=96, validations=2, **how), run)
    finally:
        AcceleratorState._reset_state(True)  # type: ignore[no-untyped-call]
    state, description = read_weights(run)
    assert description.head == head
    assert {name.split(".")[1] for name in state if name.startswith("heads.")} == {head}
    rows = metrics(run)
    assert [row["step"] for row in rows] == [3, 6] and rows[1]["loss"] < rows[0]["loss"]


def test_a_fixed_head_learns_pictures_by_heart_and_reads_the_same_everywhere(drawn: Path, tmp_path: Path) -> None:
    eight, run = drawn / "eight", tmp_path / "run"
    scores = train(settings(eight, eight, pictures=1600, batch=8, validations=2, head="fixed"), run)
    assert scores.exact == 1.0, scores
    export(run)
    pictures, outcome = evaluate(run, read_manifest(eight).samples, Accelerator())
    reader = Reader(run)
    readings = reader.read([reader.open(s.path) for s in pictures.samples])
    assert all(same(a, b) for a, b in zip(readings, outcome.readings, strict=True))
    assert all(r.nll is not None and r.nll < 1 for r in outcome.readings)
    assert_reads_as_torch(reader, build(*read_weights(run)), "fixed")
    again = train(settings(eight, eight, pictures=16, batch=8, start=str(run), head="fixed"), tmp_path / "again")
    assert again.exact == 1.0, "a fixed head is taken over"


def test_a_fixed_head_of_other_positions_is_not_taken_over(tmp_path: Path) -> None:
    old = Network("tiny", ("fixed",), 5, 4)
    told = Description("tiny", "fixed", "0123", Frame(32, 48, 512))
    save_weights(tmp_path / "old.safetensors", old.state_dict(), told)
    assert positions_of(read_weights(tmp_path / "old.safetensors")[0]) == 4
    network = Network("tiny", ("fixed",), 5, 6)
    assert ", but not its fixed head" in start_from(network, tmp_path / "old.safetensors", Charset("0123"))
    network = Network("tiny", ("fixed",), 5, 4)
    assert "not its" not in start_from(network, tmp_path / "old.safetensors", Charset("0123"))


@pytest.mark.parametrize(
    "more",
    [
        {"pos_weight": 9.0}, {"gamma": 4.0}, {"adaptive_gamma": True}, {"head": "fixed", "alpha": 0.5},
        {"loss": "focal-ctc", "gamma": 2.0, "adaptive_gamma": True},
    ],
)  # fmt: skip
def test_what_a_loss_does_not_ask_for_is_refused(drawn: Path, tmp_path: Path, more: dict[str, Any]) -> None:
    with pytest.raises(UserError, match=r"has no|leave --gamma or"):
        train(settings(drawn / "eight", drawn / "validation", **more), tmp_path / "run")
    for words in (["--pos-weight", 3, "--head", "fixed"], ["--gamma", 1], ["--synthetic-share", 0.5]):
        ended = recognizer("train", "--data", drawn / "eight", "--out", tmp_path / "run", *words)
        assert ended.status == 2 and ("has no" in ended.err or "give that as well" in ended.err), ended.err


@pytest.mark.parametrize(("head", "loss"), [("conv", "bce"), ("fixed", "ctc"), ("lstm", "focal-bce")])
def test_a_loss_of_the_other_kind_of_head_is_refused(drawn: Path, tmp_path: Path, head: str, loss: str) -> None:
    with pytest.raises(UserError, match=f"--loss {loss} is"):
        train(settings(drawn / "train", drawn / "eight", head=head, loss=loss), tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_a_label_longer_than_a_fixed_head_may_be_is_refused_before_training(drawn: Path, tmp_path: Path) -> None:
    long = draw_folder(tmp_path / "long", ["01", "0123" * 17, "12", "23"], 0)
    with pytest.raises(UserError, match="a label holds 68 characters, a fixed head has 64 places"):
        train(settings(long, drawn / "eight", head="fixed"), tmp_path / "run")


def test_a_run_from_before_there_was_trim_goes_on_without(drawn: Path, tmp_path: Path) -> None:
    text = to_toml(settings(drawn / "train", drawn / "eight"))
    assert "trim = true" in text
    for name, kept in (("now", text), ("before", text.replace("trim = true\n", ""))):
        (tmp_path / name).mkdir()
        (tmp_path / name / "settings.toml").write_text(kept)
    assert resumed_settings(tmp_path / "now").frame.trim and not resumed_settings(tmp_path / "before").frame.trim


def test_equal_neighbours_stay_two_and_empty_places_are_left_out() -> None:
    head = FixedHead(8, 16, 3, 5)
    nn.init.zeros_(head.classify.weight)
    logits = head(torch.randn(1, 8, 30)).detach()
    assert logits.shape == (1, 9, 3)
    for place, shown in enumerate((1, 1, 0, 2, 0)):
        logits[0, 2 * place] = 0.0
        logits[0, 2 * place, shown] = 9.0
    (reading,) = readings_of(logits.log_softmax(-1).numpy(), Charset("ab"))
    assert reading.text == "aab" and reading.confidence > 0.99


def test_made_pictures_teach_what_the_real_ones_do_not_hold(whole: Path, drawn: Path) -> None:
    real = "".join(s.text for s in read_manifest(json_settings(whole)["data"][0]))
    assert set(real) == {"0", "1"}
    assert metrics(whole)[-1]["exact"] > 0.5  # of pictures of which nearly all hold a 2 or a 3


def json_settings(run: Path) -> dict[str, Any]:
    return dict(read_weights(run)[1].settings)


def test_the_best_weights_are_kept_and_not_the_last(trained: Trained, drawn: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    how = settings(
        drawn / "train", drawn / "validation", start=str(trained.run), pictures=160, validations=10, learning_rate=0.1,
        blend=False,
    )  # fmt: skip
    scores = train(how, run)
    rows = metrics(run)
    ranks = [(row["exact"], -row["cer"]) for row in rows]
    assert ranks[-1] < max(ranks) and abs(scores.exact - max(ranks)[0]) < 0.05, "half precision may change a reading"
    assert abs(exact(run, drawn / "validation") - scores.exact) < 0.05
    best = max(i for i, rank in enumerate(ranks) if rank == max(ranks))
    about = read_weights(run)[1].scores
    assert about["step"] == rows[best]["step"] and about["validation"]["exact"] == rows[best]["exact"]
    # on the way back to a start that read all of them
    assert train(how.model_copy(update={"blend": True}), tmp_path / "blended").exact > scores.exact


def test_training_stops_where_it_only_gets_worse(trained: Trained, drawn: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    how = settings(
        drawn / "train", drawn / "validation", start=str(trained.run), pictures=1600, validations=50, patience=3,
        learning_rate=0.1,
    )  # fmt: skip
    train(how, run)
    rows = metrics(run)
    assert rows[-1]["steps"] == 100 and len(rows) < 40
    n, best = len(read_manifest(drawn / "validation")), 0.0
    worse = []
    for row in rows:
        worse.append(row["exact"] < wilson(round(best * n), n)[0])
        best = max(best, row["exact"])
    assert worse[-3:] == [True] * 3 and "TTT" not in "".join("FT"[w] for w in worse[:-1])
    kept = max(i for i, w in enumerate(worse) if not w)
    assert read_weights(run)[1].scores["step"] == rows[kept]["step"]


@pytest.mark.parametrize(
    ("exact", "best", "kept"),
    [
        (11, 13, True), (10, 13, False), (13, 13, True), (9, 12, True), (8, 12, False),  # of 13
    ],
)  # fmt: skip
def test_later_weights_are_kept_where_they_read_as_well_as_so_few_pictures_can_tell(
    exact: int, best: int, kept: bool
) -> None:
    scores = Scores.of([("a", "a")] * exact + [("a", "b")] * (13 - exact))
    assert as_good(scores, (best / 13, -1.0)) == kept


def test_the_last_round_is_kept_unless_it_is_worse_beyond_chance() -> None:
    def rounds(*right: int) -> list[Scores]:
        return [Scores.of([("a", "a")] * k + [("a", "b")] * (13 - k)) for k in right]

    assert last_as_good(rounds(13, 11)) == 1 and last_as_good(rounds(13, 10)) == 0
    assert last_as_good(rounds(13, 10, 12)) == 2 and last_as_good(rounds(10, 13, 12, 9)) == 2
    assert last_as_good(rounds(0, 0)) == 1 and last_as_good(rounds(5)) == 0
    assert last_as_good([Scores.of([("a", "a" + "b" * k)]) for k in (4, 3)]) == 1, "more errors than characters"


def test_weights_that_read_nothing_are_compared_by_their_character_errors() -> None:
    scores = Scores.of([("ab", "ac")])
    assert as_good(scores, (0.0, -0.6)) and as_good(scores, (0.0, -0.5)) and not as_good(scores, (0.0, -0.4))


def test_a_loss_that_is_not_finite_ends_the_training_in_one_line(drawn: Path, tmp_path: Path) -> None:
    for validations, said in (
        (1, r"the loss is nan at step 1: try --learning-rate 2.5e\+29 \(.*\) in a new folder$"),
        (10, "the reader's outputs"),
    ):
        run = tmp_path / str(validations)
        how = settings(drawn / "eight", drawn / "eight", pictures=160, learning_rate=1e30, validations=validations)
        with pytest.raises(UserError, match=said):
            train(how, run)
        assert not (run / "weights.safetensors").exists(), "weights that read nothing were kept"


def test_metrics_stay_json_where_a_figure_cannot_be_told(drawn: Path, tmp_path: Path) -> None:
    one = draw_folder(tmp_path / "one", ["01"], 0)  # pictures are compared with each other, and there is no other
    train(settings(drawn / "eight", one, charset="0123", pictures=16, validations=1), tmp_path / "run")
    assert metrics(tmp_path / "run")[0]["spread"] is None


def test_what_cannot_be_used_is_set_aside_and_listed(drawn: Path, tmp_path: Path) -> None:
    data = shutil.copytree(drawn / "eight", tmp_path / "data")
    (data / "000.png").write_bytes(b"no picture")
    with (data / "metadata.jsonl").open("a") as file:
        file.write('{"file_name": "999.png", "text": "01"}\n')
    made = draw_folder(tmp_path / "made", ["01", "7", "12"], 0)
    run = tmp_path / "run"
    train(settings(data, drawn / "eight", with_synthetic=(str(made),), pictures=16, validations=1), run)
    problems = [json.loads(line) for line in (run / "problems.jsonl").read_text().splitlines()]
    assert {(p["file_name"], p["reason"]) for p in problems} == {
        ("999.png", "missing file"), ("000.png", "unreadable"), ("001.png", "not in the charset"),
    }  # fmt: skip
    # and of what is validated on
    train(settings(drawn / "eight", data, pictures=16, validations=1), tmp_path / "other")
    problems = [json.loads(line) for line in (tmp_path / "other" / "problems.jsonl").read_text().splitlines()]
    assert {(p["file_name"], p["reason"]) for p in problems} == {("999.png", "missing file"), ("000.png", "unreadable")}


def test_nothing_is_validated_on_that_was_trained_on(
    drawn: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    accelerator = Accelerator(cpu=True)

    def read(**more: Any) -> Data:
        return read_data(TrainSettings(start="nothing", bootstrap="none", **more), accelerator)

    def shared(data: Data) -> int:
        return len(shared_pictures(data.validation.samples, data.train.samples))

    folder, other = str(drawn / "validation"), shutil.copytree(drawn / "validation", tmp_path / "again")
    assert shared(read(data=(folder, str(other)))) == 0
    few = write_folder(read_manifest(folder).samples[:10], tmp_path / "few")
    assert few is None
    kept = read(data=(str(tmp_path / "few"),), keep=(folder,))
    assert shared(kept) == 0 and kept.kept == len(read_manifest(folder)) - 10 - sum(
        s.name.startswith("keep/") for s in kept.validation.samples
    )
    assert "are among those to train on" not in capsys.readouterr().err
    held = read(data=(folder,)).validation.samples
    made = [replace(s, meta={"source": s.name, "method": "classical"}) for s in read_manifest(folder)]
    write_folder(made, tmp_path / "made")
    capsys.readouterr()
    data = read(data=(folder,), with_synthetic=(str(tmp_path / "made"),))
    assert len(data.train) == data.real + len(made) - len(held)
    told = " ".join(capsys.readouterr().err.split())
    assert f"{len(held)} of {len(made)} made pictures vary one to validate on: left out" in told
    named_alike = read(data=(folder,), validation=str(other), with_synthetic=(str(tmp_path / "made"),))
    assert len(named_alike.train) == named_alike.real + len(made), "they vary what is trained on"
    # where two folders have the same names, and where the text was swapped, the source's own hash tells
    for more in ({"data": (folder, str(other))}, {"data": (str(tmp_path / "few"),), "keep": (folder,)}):
        held = read(**more).validation.samples
        made = [
            replace(s, text="0", meta={"source": "renamed", "source_sha256": picture_hash(s), "method": "diffusion"})
            for s in read_manifest(folder)
        ]
        write_folder(made, again := tmp_path / f"made-{len(more)}")
        data = read(**more, with_synthetic=(str(again),))
        left = len(made) - len({picture_hash(s) for s in held})
        assert len(data.train) == data.real + data.kept + left and left < len(made)
    read(data=(folder,), validation=folder)
    assert "to validate on are among those to train on" in " ".join(capsys.readouterr().err.split())


def test_a_start_that_has_learned_the_pictures_is_told(
    drawn: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    def weights(name: str, **told: Any) -> str:
        path = tmp_path / f"{name}.safetensors"
        about = Description("tiny", "conv", "0123", Frame(32, 64, 512), settings=told)
        save_weights(path, Network("tiny", ("conv",), 5).state_dict(), about)
        return str(path)

    samples = read_manifest(drawn / "validation").samples
    first = weights("first", data=[str(drawn / "validation")], limit=10, start="nothing")
    second = weights("second", data=[str(drawn / "eight")], start=first)  # by what it began with
    kept = weights("kept", data=[str(drawn / "eight")], keep=[str(drawn / "validation")], limit=8, start="default")
    found = weights("found", data=[str(drawn / "eight")], with_synthetic=[str(drawn / "validation")], start="nothing")
    gone = weights("gone", data=[str(tmp_path / "gone")], start=str(tmp_path / "gone.safetensors"))
    every = len(samples)
    for start, count in (
        (first, 10), (second, 10), (kept, every), (found, every), (gone, 0), ("default", 0), ("nothing", 0),
    ):  # fmt: skip
        assert tell_learned(start, samples) == count
        told = " ".join(capsys.readouterr().err.split())
        assert (f"has learned {count} of these {every} pictures" in told) == bool(count)

    state, _ = read_weights(Path(first))
    save_weights(Path(kept), state, read_weights(Path(kept))[1])
    for i, models in enumerate(([first, kept], [kept, first])):
        average([Path(model) for model in models], tmp_path / f"mean-{i}")
        assert tell_learned(str(tmp_path / f"mean-{i}"), samples) == every, "whichever of them is named first"


def test_labels_that_cannot_be_used_are_told_before_it_ends(
    drawn: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    data = shutil.copytree(drawn / "eight", tmp_path / "data")
    (data / "metadata.jsonl").write_text('{"file_name": "000.png", "text": ""}\n')
    with pytest.raises(UserError, match="data: no sample is left to train on"):
        read_data(TrainSettings(data=(str(data),)), Accelerator(cpu=True))
    assert "empty label" in capsys.readouterr().err


# ---------------------------------------------------------------------------------------------- it goes on where it was


@pytest.fixture(scope="module")
def recipe(drawn: Path, tmp_path_factory: pytest.TempPathFactory) -> TrainSettings:
    """Sixty steps of real and made pictures; real ones hold 0 and 1 alone."""
    real = draw_folder(tmp_path_factory.mktemp("recipe") / "real", random_labels(16, 9, "01"), 9)
    return settings(
        real, drawn / "validation", with_synthetic=(str(drawn / "train"),), synthetic_share=0.75, charset="0123",
        pictures=960, validations=6, average=0.1, checkpoint_seconds=0.01,
    )  # fmt: skip


@pytest.fixture(scope="module")
def whole(recipe: TrainSettings, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The run of the recipe that nothing interrupts."""
    run = tmp_path_factory.mktemp("whole") / "run"
    train(recipe.model_copy(update={"checkpoint_seconds": 60.0}), run)
    return run


def started(recipe: TrainSettings, run: Path) -> subprocess.Popen[str]:
    """`recognizer train` of the recipe in a process and a group of its own, past its first validation, and past step 12
    where it saves each step."""
    config = run.with_suffix(".toml")
    config.write_text(to_toml(recipe))
    process = subprocess.Popen(
        [sys.executable, "-m", "recognizer.cli", "train", "--config", str(config), "--out", str(run)],
        stderr=subprocess.PIPE, text=True, start_new_session=True,
    )  # fmt: skip

    def far_enough() -> bool:
        state, saves = last_state(run), recipe.checkpoint_seconds < 1
        return bool(state and int(state.name) > 12) if saves else (run / "metrics.jsonl").exists()

    while not far_enough():
        assert process.poll() is None, process.communicate()[1]
        time.sleep(0.005)
    return process


def assert_same_run(run: Path, whole: Path) -> None:
    assert_same_weights(run, whole)
    assert metrics(run) == metrics(whole) and len(metrics(run)) == 6
    assert (run / "scores.json").read_text() == (whole / "scores.json").read_text()


def test_a_killed_run_goes_on_to_the_weights_of_an_uninterrupted_one(
    recipe: TrainSettings, whole: Path, tmp_path: Path
) -> None:
    run = tmp_path / "run"
    process = started(recipe, run)
    process.send_signal(signal.SIGKILL)
    process.communicate()
    state = last_state(run)
    assert state is not None and 13 <= int(state.name) < 60 and not (run / "scores.json").exists()
    train(recipe.model_copy(update={"checkpoint_seconds": 60.0}), run, resume=True)
    assert_same_run(run, whole)


def test_a_full_disk_ends_in_one_line_and_the_run_goes_on_with_room(
    recipe: TrainSettings, whole: Path, tmp_path: Path
) -> None:
    run, config = tmp_path / "run", tmp_path / "recipe.toml"
    config.write_text(to_toml(recipe))
    ended = subprocess.run(
        [sys.executable, "-m", "recognizer.cli", "train", "--config", str(config), "--out", str(run)],
        stderr=subprocess.PIPE, text=True, check=False,
        preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (500_000, 500_000)),
    )  # fmt: skip
    said = ended.stderr.splitlines()
    assert ended.returncode == 2 and "Traceback" not in ended.stderr
    assert re.match(r"error: .* could not be written, [\d,]+ MB are free there .*make room", said[-1]), said
    assert last_state(run) is None and not (run / "weights.safetensors").exists()
    assert recognizer("train", "--resume", str(run)).status == 0
    assert_same_run(run, whole)


def test_a_disk_without_room_for_its_first_file_leaves_nothing_to_go_on_from(
    recipe: TrainSettings, whole: Path, tmp_path: Path
) -> None:
    run, config = tmp_path / "run", tmp_path / "recipe.toml"
    config.write_text(to_toml(recipe))
    command = [sys.executable, "-m", "recognizer.cli", "train", "--config", str(config), "--out", str(run)]
    ended = subprocess.run(
        command, capture_output=True, text=True, check=False,
        preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (64, 64)),
    )  # fmt: skip
    assert ended.returncode == 2 and "settings.toml could not be written" in ended.stderr.splitlines()[-1]
    assert list(run.iterdir()) == []
    (run / "settings.toml.tmp").write_text("pictures = 1")  # as a kill leaves it
    assert subprocess.run(command, capture_output=True, check=False).returncode == 0
    assert_same_run(run, whole)


def test_a_training_whose_log_had_no_room_ends_with_the_room_that_is_left(
    recipe: TrainSettings, tmp_path: Path
) -> None:
    (tmp_path / "run.log").touch()  # it could be made, and not be written
    said = _last_line(Training(recipe, tmp_path / "run"))
    assert re.fullmatch(rf"it said nothing; [\d,]+ MB are free in {re.escape(str(tmp_path))}", said)
    (tmp_path / "run.log").write_text("first\nerror: the loss is nan\n")
    assert _last_line(Training(recipe, tmp_path / "run")) == "the loss is nan"


def test_ctrl_c_saves_and_says_how_to_go_on(recipe: TrainSettings, whole: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    process = started(recipe.model_copy(update={"checkpoint_seconds": 60.0}), run)  # it saves because it is stopped
    process.send_signal(signal.SIGINT)
    said = process.communicate()[1].splitlines()
    assert process.returncode == 130
    state = last_state(run)
    assert state is not None
    step = int(state.name)
    words = f"recognizer train --resume {run}"
    assert said[-1] == f"stopped: at step {step} of 60; go on with: {words}" and "Traceback" not in " ".join(said)
    assert [path.name for path in (run / "checkpoints").iterdir()] == [state.name]

    ended = recognizer(*words.split()[1:])
    assert ended.status == 0 and f"resumed {run} at step {step} of 60" in ended.err
    assert_same_run(run, whole)
    assert Reader(run).charset.characters == "0123"


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_to_a_training_and_its_workers_stops_it_once(
    number: signal.Signals, recipe: TrainSettings, whole: Path, tmp_path: Path
) -> None:
    run = tmp_path / "run"
    process = started(recipe.model_copy(update={"checkpoint_seconds": 60.0, "workers": 1}), run)
    os.killpg(process.pid, number)
    said = process.communicate()[1].splitlines()
    assert process.returncode == 130 and said[-1].startswith("stopped: at step"), said
    train(recipe.model_copy(update={"checkpoint_seconds": 60.0}), run, resume=True)
    assert_same_run(run, whole)


def test_a_worker_that_dies_ends_in_one_line_and_the_run_goes_on(
    recipe: TrainSettings, whole: Path, tmp_path: Path
) -> None:
    run = tmp_path / "run"
    process = started(recipe.model_copy(update={"workers": 2}), run)  # which saves each step
    children = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()
    os.kill(int(children[-1]), signal.SIGKILL)
    said = process.communicate()[1]
    assert process.returncode == 2 and "Traceback" not in said, said
    assert said.splitlines()[-1].startswith("error: a process that loads ahead has died"), said
    train(recipe.model_copy(update={"checkpoint_seconds": 60.0}), run, resume=True)
    assert_same_run(run, whole)


def test_a_run_that_is_done_trains_no_more(whole: Path) -> None:
    def stamps() -> dict[str, int]:
        return {name: (whole / name).stat().st_mtime_ns for name in ("weights.safetensors", "metrics.jsonl")}

    before, rows = (whole / "weights.safetensors").stat().st_mtime_ns, metrics(whole)
    scores = train(TrainSettings(**json_settings(whole)), whole, resume=True)
    assert (whole / "weights.safetensors").stat().st_mtime_ns == before and metrics(whole) == rows
    assert json.loads((whole / "scores.json").read_text()) == scores.to_dict()
    assert stamps()["weights.safetensors"] == before


@pytest.mark.parametrize("total", [1, 2, 50])
def test_the_learning_rate_follows_its_schedule(total: int) -> None:
    rates = {}
    for schedule in ("cycle", "constant", "decay"):
        optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], 0.5)
        own = schedule_of(optimizer, TrainSettings(schedule=schedule, warmup=0.2), 0.5, total)
        found = []
        for _ in range(total):
            found.append(optimizer.param_groups[0]["lr"])
            optimizer.step()
            own.step()
        rates[schedule] = np.array(found)
        assert found == pytest.approx([x for x in found if 0 <= x <= 0.5])
    if total == 50:
        assert rates["cycle"].argmax() in (9, 10) and rates["cycle"][-1] < 0.001
        assert rates["constant"][:10] == pytest.approx(0.05 * np.arange(1, 11)) and set(rates["constant"][10:]) == {0.5}
        assert rates["decay"] == pytest.approx(0.5 * (1 - np.arange(50) / 50))


def test_a_line_of_figures_that_was_cut_off_is_dropped(whole: Path, tmp_path: Path) -> None:
    run = shutil.copytree(whole, tmp_path / "run")
    lines = (run / "metrics.jsonl").read_text()
    (run / "metrics.jsonl").write_text(lines + lines.splitlines()[0][:20])  # as a full disk leaves it
    train(TrainSettings(**json_settings(whole)), run, resume=True)
    assert (run / "metrics.jsonl").read_text() == lines


def test_a_run_whose_data_changed_is_not_resumed(whole: Path, drawn: Path, tmp_path: Path) -> None:
    data = shutil.copytree(drawn / "eight", tmp_path / "data")
    run = tmp_path / "run"
    how = settings(data, drawn / "validation", pictures=16, validations=1)
    train(how, run)
    lines = (data / "metadata.jsonl").read_text()
    original = (data / "000.png").read_bytes()

    (data / "metadata.jsonl").write_text(lines.replace('"text": "', '"text": "0', 1))
    with pytest.raises(UserError, match="cannot be resumed: its pictures or labels have changed"):
        train(how, run, resume=True)
    (data / "metadata.jsonl").write_text(lines)
    open_picture(data / "000.png", "L").point(lambda p: 255 - p).save(data / "000.png")
    with pytest.raises(UserError, match="cannot be resumed: its pictures or labels have changed"):
        train(how, run, resume=True)
    (data / "000.png").write_bytes(original)
    train(how, run, resume=True)
    facts = json.loads((run / "run.json").read_text())
    (run / "run.json").write_text(json.dumps({"data_sha256": "of what a version before took"}))
    with pytest.raises(UserError, match="have changed since, or an earlier version began it"):
        train(how, run, resume=True)
    (run / "run.json").write_text(json.dumps(facts))
    (data / "000.png").rename(data / "9.png")  # the same pictures in another order, and where a part validates, another
    (data / "metadata.jsonl").write_text("".join(sorted(lines.replace("000.png", "9.png").splitlines(keepends=True))))
    with pytest.raises(UserError, match="cannot be resumed: its pictures stand in another order"):
        train(how, run, resume=True)


def test_a_run_whose_start_or_length_changed_is_not_resumed(drawn: Path, tmp_path: Path) -> None:
    start = shutil.copy(TINY, tmp_path / "start.safetensors")
    run = tmp_path / "run"
    how = settings(drawn / "eight", drawn / "validation", start=str(start), pictures=16, validations=1)
    train(how, run)
    train(how, run, resume=True)
    with pytest.raises(UserError, match="it began with 1 steps, and its settings ask for 2"):
        train(how.model_copy(update={"pictures": 32}), run, resume=True)
    state, about = read_weights(start)
    save_weights(start, {name: tensor * 2 for name, tensor in state.items()}, about)
    with pytest.raises(UserError, match="the weights that it starts from, or that teach it, are others than when"):
        train(how, run, resume=True)


def test_a_run_that_is_being_written_is_not_gone_on_with_beside(
    whole: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    run = shutil.copytree(whole, tmp_path / "run")
    monkeypatch.setattr(train_module, "PATIENCE", 0.3)
    with locked(run), pytest.raises(UserError, match="is being written by another process"):
        train(TrainSettings(**json_settings(whole)), run, resume=True)
    train(TrainSettings(**json_settings(whole)), run, resume=True)


def test_a_slip_that_is_found_late_does_not_take_the_folder(drawn: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    fixed = tmp_path / "fixed.safetensors"
    about = Description("tiny", "fixed", "0123", Frame(32, 64, 512))
    save_weights(fixed, Network("tiny", ("fixed",), 5, 4).state_dict(), about)
    how = settings(drawn / "eight", drawn / "validation", pictures=16, validations=1)
    with pytest.raises(UserError, match="fixed head"):
        train(how.model_copy(update={"teacher": (str(fixed),)}), run)
    assert (run / "run.json").exists(), "or it tests nothing"
    train(how, run)
    with pytest.raises(UserError, match="exists and is not empty"):
        train(how, run)


def test_a_run_among_pictures_named_by_their_labels_is_refused(drawn: Path, tmp_path: Path) -> None:
    for s in read_manifest(drawn / "eight"):
        shutil.copy(s.path, tmp_path / f"{s.text}.png")
    how = TrainSettings(**SMALL, data=(str(tmp_path),), validation=str(tmp_path), label_pattern="{text}.png")
    with pytest.raises(UserError, match=r"run lies among the pictures of .*, and its own would be some of them"):
        train(how, tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_what_cannot_be_named_or_tracked_is_one_line(drawn: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="is not UTF-8: rename it"):
        load(TrainSettings, None, {"data": ["a", os.fsdecode(b"b\xff")]})
    how = settings(drawn / "eight", drawn / "validation")
    with pytest.raises(UserError, match="is not UTF-8: rename it"):
        train(how, tmp_path / os.fsdecode(b"r\xff"))
    with pytest.raises(UserError, match="--tracker clearml: it is not installed"):
        train(how.model_copy(update={"tracker": "clearml"}), tmp_path / "run")


def test_it_trains_where_there_is_no_git(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    assert provenance()["commit"] == "unknown"


def test_a_picture_that_goes_while_it_trains_is_one_line(
    drawn: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(batches, "CACHE_BYTES", 0)
    folder = shutil.copytree(drawn / "eight", tmp_path / "eight")
    pictures = Pictures(read_manifest(folder).samples, Charset("0123456789"), Frame(), 10**6)
    shutil.rmtree(folder)
    with pytest.raises(MachineError, match=r"000\.png can no longer be read \(no such file.*put it back"):
        pictures.grey(0)


@pytest.mark.slow
def test_two_processes_train_one_reader(drawn: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    words = [
        # accelerate launch --cpu --num_processes 2 starts two processes where there is MPI, and else one, silently
        sys.executable, "-m", "torch.distributed.run", "--nproc_per_node", "2", "-m", "recognizer.cli", "train",
        "--from", "nothing", "--data", drawn / "train", "--validation", drawn / "validation", "--out", run,
        "--threads", "1",
        "--pictures", "1280", "--batch", "16", "--set", "validations=6",
    ]  # fmt: skip
    ended = subprocess.run(list(map(str, words)), capture_output=True, text=True, check=False)
    assert ended.returncode == 0, ended.stderr
    assert ended.stdout.count("validation: exact match") == 1
    state = last_state(run)
    assert state is not None and len(list(state.glob("random_states_*.pkl"))) == 2
    rows = metrics(run)
    assert [row["step"] for row in rows] == [13, 26, 39, 52, 65, 78, 80] and rows[-1]["exact"] > 0.7
    assert exact(run, drawn / "validation") == json.loads((run / "scores.json").read_text())["exact"]
    reader = Reader(run)
    samples = read_manifest(drawn / "validation").samples
    read = reader.read([reader.open(s.path) for s in samples])
    assert np.mean([s.text == r.text for s, r in zip(samples, read, strict=True)]) > 0.7


# ------------------------------------------------------------------------------------------------------------- alarms


TRUTHS = random_labels(40, 5)


@pytest.mark.parametrize(
    ("truths", "read", "spread", "kind"),
    [
        (TRUTHS, [""] * 40, 0.5, "all blank"),
        (TRUTHS, ["01"] * 39 + ["12"], 0.5, "one answer for everything"),
        (TRUTHS, ["0", "01", "1", "12"] * 10, 0.001, "prior only"),
        (TRUTHS, TRUTHS, 0.5, None),
        (TRUTHS, TRUTHS[1:] + TRUTHS[:1], 0.5, None),  # all wrong, and yet no collapse
        (["01"] * 38 + ["12"] * 2, ["01"] * 38 + ["12"] * 2, 0.5, None),  # one answer is the truth
        (TRUTHS[:7], [""] * 7, 0.0, None),  # too few to tell
        (TRUTHS, ["0" * (1 + i % 4) for i in range(40)], 0.5, "majority class only"),
        (
            ["0" * (1 + i % 4) for i in range(40)],
            ["0" * (1 + i % 4) for i in range(40)],
            0.5,
            None,
        ),  # and is all there is
    ],
)
def test_a_collapse_is_named(truths: list[str], read: list[str], spread: float, kind: str | None) -> None:
    found = find_collapse(truths, read, spread)
    assert (found.kind if found else None) == kind
    assert found is None or str(found).startswith(f"{found.kind}: {found.figure}. Try: ")


def test_a_reader_that_reads_ever_less_is_named() -> None:
    """Recall falls while precision rises: the collapse that exact match hides and binary accuracy praises."""
    bold = [text[:2] + "0" for text in TRUTHS]
    shy = [text[:1] if i % 2 else text[:2] for i, text in enumerate(TRUTHS)]
    before = all_characters(list(zip(TRUTHS, bold, strict=True)))
    found = find_collapse(TRUTHS, shy, 0.5, [(before.precision, before.recall)])
    assert found is not None and found.kind == "ever more cautious" and "recall of characters fell from" in found.figure
    assert find_collapse(TRUTHS, shy, 0.5) is None, "nothing to compare with"
    assert find_collapse(TRUTHS, TRUTHS, 0.5, [(before.precision, before.recall)]) is None
    low = [(before.precision, 0.1)]
    assert find_collapse(TRUTHS, shy, 0.5, low) is None, "recall has not fallen"


def blind(bias: list[float]) -> Network:
    """A reader that gives every frame of every picture the same logits."""
    network = Network("tiny", ("conv",), 5).eval()
    with torch.no_grad():
        network.heads["conv"].classify.weight.zero_()  # type: ignore[union-attr]
        network.heads["conv"].classify.bias.copy_(torch.tensor(bias))  # type: ignore[union-attr]
    return network


def alarm_of(network: Network, data: Path) -> str | None:
    samples = read_manifest(data).samples
    pictures = Pictures(samples, Charset("0123"), Frame(32, 48, 512), 10**6)
    outcome = read_pictures(network, "conv", pictures, Accelerator())
    found = find_collapse([s.text for s in samples], [r.text for r in outcome.readings], outcome.spread)
    return found.kind if found else None


def test_alarms_of_networks(trained: Trained, drawn: Path) -> None:
    validation = drawn / "validation"
    assert alarm_of(blind([3.0, 0, 0, 0, 0]), validation) == "all blank"
    assert alarm_of(blind([0.0, 0, 3, 0, 0]), validation) == "one answer for everything"
    assert alarm_of(build(*read_weights(trained.run)), validation) is None


def test_no_alarm_is_raised_over_a_reader_that_has_learned(trained: Trained) -> None:
    rows = metrics(trained.run)
    assert rows[-1]["exact"] > 0.7 and "alarm" not in rows[-1]


# ------------------------------------------------------------------------------------------- confidence, case, keeping


def test_temperature_undoes_what_makes_a_reader_too_sure(trained: Trained, drawn: Path) -> None:
    state, description = read_weights(trained.run)
    samples = [  # of which it reads a quarter otherwise than they are labelled
        s if i % 4 else replace(s, text=s.text[::-1] + s.text[0]) for i, s in enumerate(read_manifest(drawn / "train"))
    ]
    pictures = Pictures(samples, Charset(description.charset), description.frame, 10**6)
    found = {}
    for k in (1.0, 2.0):
        sharp = {n: t * k if ".classify." in n else t for n, t in state.items()}
        found[k] = fit_temperature(build(sharp, description), "conv", pictures)
    assert found[1.0] > 1
    assert found[2.0] == pytest.approx(2 * found[1.0], rel=0.2)


def test_weights_come_calibrated_and_only_once(trained: Trained, tmp_path: Path, drawn: Path) -> None:
    description = read_weights(trained.run)[1]
    assert 0.5 <= description.scores["temperature"] <= 5.0
    again = tmp_path / "again"
    shutil.copytree(trained.run, again)
    train(TrainSettings(**json.loads(json.dumps(description.settings))), again, resume=True)
    assert_same_weights(trained.run, again)


def lettered(run: Path, path: Path, letters: str) -> Path:
    """The weights of a run under a charset in which each digit is a letter."""
    state, description = read_weights(run)
    assert len(letters) == len(description.charset)
    save_weights(path, state, replace(description, charset=letters))
    return path


def test_letters_are_known_by_the_case_that_the_pictures_show(trained: Trained, drawn: Path, tmp_path: Path) -> None:
    digits = read_weights(trained.run)[1].charset
    upper = "ABCDEFGHIJKLMN"[: len(digits)]
    weights = lettered(trained.run, tmp_path / "upper.safetensors", upper)
    samples = [
        replace(s, text=s.text.translate(str.maketrans(digits, upper.lower())))
        for s in read_manifest(drawn / "train").samples
    ]
    frame = read_weights(trained.run)[1].frame
    shown = shown_case(weights, Pictures(samples, Charset(upper.lower()), frame, 10**6))
    assert shown == dict(zip(upper.lower(), upper, strict=True))
    network = Network("tiny", ("conv",), len(digits) + 1)
    said = start_from(network, weights, Charset(upper.lower()), shown)
    assert said.endswith(
        f"{len(digits)} of {len(digits)} characters were known to it, {len(digits)} of them in the other case"
    )
    old, _ = read_weights(weights)
    assert torch.equal(network.state_dict()["heads.conv.classify.weight"], old["heads.conv.classify.weight"])
    # as labelled, and where the charset has both cases, letters are what they are
    same = [replace(s, text=s.text.upper()) for s in samples]
    assert shown_case(weights, Pictures(same, Charset(upper), frame, 10**6)) == {}
    assert shown_case(weights, Pictures(same, Charset(upper + upper.lower()), frame, 10**6)) == {}


@pytest.mark.parametrize("made", [0, 9])
def test_a_plan_gives_kept_samples_their_share_of_each_batch(made: int) -> None:
    plan = Plan([64] * (20 + made + 6), 20, 8, 0.25, 0, kept=6, kept_share=0.25)
    seen: Counter[str] = Counter()
    for step in range(60):
        kinds = Counter("real" if i < 20 else "made" if i < 20 + made else "kept" for i in plan.indices(step))
        assert kinds["kept"] == 2 and kinds["made"] == (2 if made else 0)
        seen += kinds
    assert sum(seen.values()) == 60 * 8


def test_kept_samples_are_still_read_after_training_on_new_ones(trained: Trained, drawn: Path, tmp_path: Path) -> None:
    new = draw_folder(tmp_path / "new", random_labels(40, 9, "xyz"), 9)
    both = "xyz" + read_weights(trained.run)[1].charset
    runs = {}
    for name, keep in {"kept": (str(drawn / "train"),), "lost": ()}.items():
        runs[name] = tmp_path / name
        own = settings(new, new, start=str(trained.run), keep=keep, charset=both, pictures=1600)
        train(own, runs[name])
    assert exact(runs["kept"], drawn / "validation") > 0.6 > 0.3 > exact(runs["lost"], drawn / "validation")
    assert exact(runs["kept"], new) > 0.6


# --------------------------------------------------------------------------------------------------------- unlabelled


def test_unlabelled_pictures_are_labelled_by_sure_readings_and_trained_on(
    trained: Trained, drawn: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(TrainSettings, "pictures_for", lambda self, n: self.pictures or 400 + n)  # else 40,000
    loose, out = tmp_path / "loose", tmp_path / "run"
    truth = {}
    draw_folder(loose, random_labels(48, 21), 21)
    for line in (loose / "metadata.jsonl").read_text().splitlines():
        row = json.loads(line)
        truth[row["file_name"]] = row["text"]
    (loose / "metadata.jsonl").unlink()
    (loose / "broken.png").write_bytes(b"no picture")
    own = settings(
        drawn / "train", drawn / "validation", start=str(trained.run), learning_rate=1e-3, pictures=None,
        unlabelled=(str(loose),), unlabelled_confidence=0.8,
    )  # fmt: skip
    scores = train_with_unlabelled(own, out)
    runs = [json.loads((out / f"round-{k}" / "scores.json").read_text()) for k in range(3)]
    assert scores.exact == max(run["exact"] for run in runs)
    assert json.loads((out / "scores.json").read_text())["exact"] == scores.exact
    pseudo = read_manifest(out / "pseudo-1").samples
    assert 20 < len(pseudo) <= 48 and all(s.meta["confidence"] >= LIKELY for s in pseudo)
    right = [truth[Path(str(s.meta["source"])).name] == s.text for s in pseudo]
    assert np.mean(right) > 0.85, "and the rest was too unsure to be taken"
    rounds = [load(TrainSettings, out / f"round-{k}" / "settings.toml", {}) for k in range(3)]
    assert [s.synthetic_share for s in rounds] == [0.25, 0.5, 0.5], "real pictures are worth more than made ones"
    due = 400 + len(read_manifest(drawn / "train")) + len(read_manifest(out / "pseudo-2"))
    assert [s.pictures for s in rounds] == [None, None, due], "the last learns as long as is due to all of them"
    before = {path: path.stat().st_mtime_ns for path in out.rglob("*.safetensors")}
    assert train_with_unlabelled(own, out, resume=True) == scores
    assert {p: p.stat().st_mtime_ns for p in before if p.parent != out} == {
        p: t for p, t in before.items() if p.parent != out
    }


def test_two_processes_learn_from_unlabelled_pictures(trained: Trained, drawn: Path, tmp_path: Path) -> None:
    """One training follows another there, in the same processes."""
    run = tmp_path / "run"
    words = [
        sys.executable, "-m", "torch.distributed.run", "--nproc_per_node", "2", "-m", "recognizer.cli", "train",
        "--from", trained.run, "--data", drawn / "eight", "--validation", drawn / "validation", "--out", run,
        "--unlabelled", drawn / "train", "--threads", "1", "--pictures", "64", "--batch", "16", "--seeds", "2",
        "--set", "validations=1", "--set", "unlabelled_rounds=1", "--set", "tracker=none",
    ]  # fmt: skip
    ended = subprocess.run(list(map(str, words)), capture_output=True, text=True, check=False)
    assert ended.returncode == 0, ended.stderr
    assert ended.stdout.count("validation: exact match") == 1
    assert (run / "reader.onnx").is_file() and (run / "round-1" / "mean" / "scores.json").is_file()


def test_what_is_taken_for_labels_has_a_share_of_each_character() -> None:
    rng = np.random.default_rng(0)
    texts = ["".join(rng.choice(list("abcde"), 4)) for _ in range(400)]
    mixed = ["m" + text[1:] if i % 8 == 0 else text for i, text in enumerate(texts)]
    likely = np.where([i % 8 == 0 for i in range(400)], 0.2, 0.5) + 0.5 * rng.random(400)  # none with an m by .9
    sure = surely(mixed, likely, 0.9)
    has = np.array(["m" in text for text in mixed])
    assert (likely[has] < 0.9).all() and sure[likely >= 0.9].all()
    share = (likely >= 0.9).mean()
    assert sure[has].sum() == int(share * has.sum()) > 5
    assert likely[has & sure].min() >= max(LIKELY, likely[has & ~sure].max()), "the likeliest of them"
    assert surely(mixed, np.where(has, 0.4, likely), 0.9)[has].sum() == 0, "but none that is likelier to be wrong"
    assert not surely(texts, [0.5] * 400, 0.9).any() and surely(texts, [0.1] * 400, 0).all()
    assert surely([], [], 0.9).shape == (0,)
    unshown = surely(mixed, likely, 0.9, "abcde")  # no label shows an m: those that are read may be nothing
    assert not unshown[has].any() and (unshown[~has] == sure[~has]).all()
    assert surely(mixed, np.where(has, 0.95, likely), 0.9, "abcde")[has].all()


def test_where_hardly_any_reading_is_sure_the_likeliest_are_taken() -> None:
    likely = np.linspace(0.1, 0.6, 101)
    assert limit(likely, 0.9, 0.2) == pytest.approx(likely[-20]) and (likely >= limit(likely, 0.9, 0.2)).sum() == 20
    assert limit(likely, 0.9, 0.9) == DOUBTED, "but none that is read so badly"
    assert limit(likely, 0.9, 0.0) == limit(likely[:4], 0.9, 0.2) == limit([], 0.9, 0.2) == 0.9
    assert limit(likely, 0.4, 0.2) == 0.4, "nor fewer than are sure"
    assert limit(likely, 0.9, 0.2, 26) == 0.9, "where a fifth of all was taken before"
    assert limit(likely, 0.9, 0.4, 26) == pytest.approx(likely[-24])
    assert limit(likely, 0.9, 0.4, most=7) == pytest.approx(likely[-7]), "no more than are asked for"
    assert [share_at_least(0.2, n) for n in (1, 2, 3)] == [0.2, 0.4, 0.4], "of which the rest would be guessed worse"


BEGINS_AND_IS_KILLED = """
import os, signal, sys
from multiprocessing import forkserver
from pathlib import Path
from recognizer.settings import load
from recognizer.training.side_by_side import Training, _start, train_side_by_side
from recognizer.training.train import TrainSettings
own, out = load(TrainSettings, Path(sys.argv[1]), {}), Path(sys.argv[2])
train_side_by_side([Training(own, out / "first")], 1)  # which starts the process that the others are forked from
told = forkserver.read_signed


def killed(pipe):
    begun = told(pipe)
    os.kill(begun, signal.SIGSTOP)  # as on a busy machine: it is there, and has not run yet
    (out / "begun").write_text(str(begun))
    os.kill(os.getpid(), signal.SIGKILL)


forkserver.read_signed = killed
_start(Training(own, out / "next"))
"""


@pytest.mark.skipif(sys.platform != "linux", reason="no other system ends a training whose parent was killed")
def test_a_training_that_begins_while_its_command_is_killed_writes_nothing(
    trained: Trained, drawn: Path, tmp_path: Path
) -> None:
    own = settings(drawn / "eight", drawn / "validation", start=str(trained.run), pictures=16)
    (tmp_path / "own.toml").write_text(to_toml(own))
    words = [sys.executable, "-c", BEGINS_AND_IS_KILLED, str(tmp_path / "own.toml"), str(tmp_path)]
    done = subprocess.run(words, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, check=False)
    assert done.returncode == -signal.SIGKILL and (tmp_path / "first/scores.json").exists()
    time.sleep(1)  # until what it was forked from is gone as well
    os.kill(int((tmp_path / "begun").read_text()), signal.SIGCONT)
    time.sleep(4)
    assert not (tmp_path / "next").exists(), "the same command would go on beside it, and two write one run"


def test_nothing_sure_ends_after_the_labels_alone(trained: Trained, drawn: Path, tmp_path: Path) -> None:
    own = settings(
        drawn / "eight", drawn / "validation", start=str(trained.run), pictures=16,
        unlabelled=(str(drawn / "train"),), unlabelled_confidence=0.999999, unlabelled_fewest=0,
    )  # fmt: skip
    train_with_unlabelled(own, tmp_path / "run")
    assert not (tmp_path / "run" / "round-1").exists() and (tmp_path / "run" / "weights.safetensors").exists()
    with pytest.raises(UserError, match="No such file or directory"):
        train_with_unlabelled(own.model_copy(update={"unlabelled": (str(tmp_path / "no"),)}), tmp_path / "other")


def test_pictures_that_have_a_label_are_not_taken_for_unlabelled(drawn: Path, tmp_path: Path) -> None:
    loose = tmp_path / "loose"
    shutil.copytree(drawn / "validation", loose)
    shutil.copy(next((drawn / "train").glob("*.png")), loose / "own.png")
    draw_folder(tmp_path / "new", ["12"], 99)
    shutil.copy(next((tmp_path / "new").glob("*.png")), loose / "new.png")
    (loose / "nowhere.png").symlink_to("gone.png")
    own = settings(drawn / "train", drawn / "validation")
    assert without_labels([loose], labelled_by(own), Alone()) == [loose / "new.png"]
    with pytest.raises(UserError, match="no picture is there that has no label"):
        without_labels([drawn / "train"], labelled_by(own), Alone())
    some = without_labels([drawn / "train"], labelled_by(own.model_copy(update={"limit": 5})), Alone())
    assert 50 < len(some) < 60, "beyond a limit labels are not known"
    with pytest.raises(UserError, match="no picture there can be opened"):
        without_labels([loose], labelled_by(own), Alone(), max_pixels=1)
    (loose / "new.png").write_bytes(b"no picture")
    with pytest.raises(UserError, match="no picture there can be opened"):
        without_labels([loose], labelled_by(own), Alone())


# ------------------------------------------------------------------------------------------------------------- stream


def test_pretraining_streams_rendered_text_and_goes_on_exactly(drawn: Path, tmp_path: Path) -> None:
    """As configs/pretrain.toml has it, with less of everything: from nothing, on pictures that nobody has to make."""
    config = Path(__file__).parents[1] / "configs" / "pretrain.toml"
    given = {
        "validation": str(drawn / "validation"), "pictures": 160, "batch": 16, "validations": 2, "tracker": "none",
        "stream_settings": {"fonts": []}, "patience": 1000,
    }  # fmt: skip
    own = load(TrainSettings, config, given)
    assert own.start == "nothing" and own.stream == "augment.stream:Stream" and not any(own.vary.model_dump().values())
    train(own, tmp_path / "whole")
    rows = metrics(tmp_path / "whole")
    assert [row["step"] for row in rows] == [5, 10] and all(row["loss"] > 0 for row in rows)
    description = read_weights(tmp_path / "whole")[1]
    assert description.charset == NAMED["letters+digits+marks"] and description.frame.min_width == 128
    train(own, tmp_path / "again")
    assert_same_weights(tmp_path / "whole", tmp_path / "again")


@pytest.mark.parametrize(
    ("changed", "said"),
    [
        ({"data": ("somewhere",)}, "a stream stands in place of data"),
        ({"charset": None}, "which --charset to read"),
        ({"stream": "nowhere:Stream"}, "stream 'nowhere:Stream' cannot be loaded"),
        ({"stream": "augment.stream"}, "stream 'augment.stream' cannot be loaded"),
        ({"stream": None}, "say what to train on: --data DIR"),
    ],
)
def test_a_stream_that_cannot_be_is_refused(drawn: Path, tmp_path: Path, changed: dict[str, Any], said: str) -> None:
    given = {"stream": "augment.stream:Stream", "charset": "digits", "validation": str(drawn / "validation")}
    with pytest.raises(UserError, match=re.escape(said)):
        train(TrainSettings(**{**SMALL, **given, **changed}), tmp_path / "run")


def test_an_exported_reader_names_no_file_of_the_machine_that_wrote_it(trained: Trained, tmp_path: Path) -> None:
    path, _ = export(trained.run, tmp_path / "reader.onnx")
    data = path.read_bytes()
    assert str(Path(__file__).parents[1]).encode() not in data and b"site-packages" not in data
