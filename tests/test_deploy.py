"""Exported readers: what each format reads, costs, and is told to be."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import draw_folder, random_labels, recognizer, refusal

from augment.synthesize import random_texts, requests_for_texts, synthesize
from recognizer.charset import Charset
from recognizer.cli import Form
from recognizer.deploy.bench import bench
from recognizer.deploy.export import FORMS, Measured, export, measure, verdict
from recognizer.errors import UserError
from recognizer.images import normalise
from recognizer.reader import Reader, readings_of
from recognizer.samples import Sample, read_manifest
from recognizer.training.checkpoint import TINY, build, read_weights


@pytest.fixture(scope="module")
def rendered(tmp_path_factory: pytest.TempPathFactory) -> tuple[Sample, ...]:
    """A thousand rendered pictures, of three widths."""
    folder = tmp_path_factory.mktemp("rendered")
    charset = Charset.named("letters+digits")
    for k, width in enumerate((96, 128, 160)):
        texts = random_texts(charset, (4, 5, 6), 334, k)
        synthesize("render", {"difficulty": 0.5}, requests_for_texts(texts, (width, 32), 1000 * k), folder / str(width))
    return tuple(s for width in (96, 128, 160) for s in read_manifest(folder / str(width)))[:1000]


@pytest.fixture(scope="module")
def forms(rendered: tuple[Sample, ...], tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("forms")
    return {form: export(TINY, folder / f"{form}.onnx", form, rendered[:200])[0] for form in FORMS}


def test_every_form_on_the_command_line_is_one_of_the_exporters() -> None:
    assert tuple(Form) == FORMS


@pytest.mark.parametrize("form", ["half", "full"])
def test_a_thousand_pictures_are_read_as_torch_reads_them(
    rendered: tuple[Sample, ...], forms: dict[str, Path], form: str
) -> None:
    reader, (state, description) = Reader(forms[form]), read_weights(TINY)
    network = build(state, description)
    greys = [reader.open(s.path) for s in rendered]
    ours = reader.read(greys)
    differ = []
    for width in sorted({g.shape[1] for g in greys}):
        own = [i for i, g in enumerate(greys) if g.shape[1] == width]
        with torch.inference_mode():
            logits = network(torch.from_numpy(normalise(np.stack([greys[i] for i in own]))[:, None]))["conv"]
        theirs = readings_of(logits.log_softmax(-1).numpy(), reader.charset)
        for i, reading in zip(own, theirs, strict=True):
            if ours[i].text != reading.text:
                two = logits[own.index(i)].softmax(-1).topk(2).values
                differ.append(float((two[:, 0] - two[:, 1]).min()))
    assert all(margin < 1e-3 for margin in differ) and len(differ) < 5, "near ties alone may differ"
    assert sum(r.text.casefold() == s.text.casefold() for r, s in zip(ours, rendered, strict=True)) > 400


def test_eight_bits_are_smaller_and_read_nearly_the_same(rendered: tuple[Sample, ...], forms: dict[str, Path]) -> None:
    rows = {row.form: row for row in measure(forms, rendered)}
    assert rows["int8"].size < 0.35 * rows["full"].size and rows["half"].size < 0.55 * rows["full"].size
    assert rows["half"].differ < 5 and rows["half"].n == rows["int8"].n == 1000
    for form in ("int8", "int8-dynamic"):
        assert rows[form].right is not None and rows["full"].right is not None
        assert rows[form].right > rows["full"].right - 0.03 and 0 < rows[form].differ < 200
    assert all(row.alone > 0 and row.together > 0 for row in rows.values())
    reader = Reader(forms["int8"])
    assert reader.about["form"] == "int8" and reader.charset == Reader(TINY.with_suffix(".onnx")).charset
    for n, width in ((1, 64), (5, 208)):
        assert reader.log_probabilities([np.full((32, width), 200, np.uint8)] * n).shape[:2] == (n, width // 4)


def test_a_form_that_is_worse_says_so() -> None:
    usual = Measured("full", 100, 0.9, 0, 10, 1.0, 0.5)
    assert verdict(usual, usual) == ""
    assert verdict(Measured("x", 50, 0.9, 1, 10, 1.2, 0.5), usual) == "slower"
    assert verdict(Measured("x", 50, 0.88, 1, 10, 0.9, 0.6), usual) == "slower, reads 2.0 points worse"
    assert verdict(Measured("x", 50, None, 1, 10, 0.9, 0.4), usual) == ""


def test_the_command_writes_one_and_compares_all(tmp_path: Path) -> None:
    data = draw_folder(tmp_path / "data", random_labels(30, 0), 0)
    ended = recognizer("export", TINY, "--out", tmp_path / "r.onnx", "--format", "int8", "--data", data)
    assert ended.status == 0, ended.err
    lines = ended.out.splitlines()
    assert lines[0].startswith(f"{tmp_path / 'r.onnx'}: ") and "difference" not in lines[0]
    assert [line.split()[0] for line in lines[3:7]] == ["full", "half", "int8", "int8-dynamic"]
    assert "slower" in lines[6], "the dynamic one"
    assert "0 of 15" in lines[3], "on others than those that it was calibrated on"
    read = recognizer("predict", "--model", tmp_path / "r.onnx", data)
    assert read.status == 0 and len(read.out.splitlines()) == 30
    assert sorted(p.name for p in tmp_path.iterdir()) == ["data", "r.onnx"]


def test_bench_tells_latency_and_throughput(tmp_path: Path) -> None:
    data = draw_folder(tmp_path / "data", random_labels(6, 0), 0)
    found = bench(TINY.with_suffix(".onnx"), [p.read_bytes() for p in data.glob("*.png")] + [b"no picture"], 0.3)
    assert found[0].threads == 1
    for own in found:
        assert 0 < own.alone[0] <= own.alone[1] <= own.alone[2] and own.a_second > 10 and own.together > 10
        assert own.alone_cpu > 0 and own.together_cpu > 0
    ended = recognizer("bench", data, "--seconds", 0.2, "--model", "tiny")
    assert ended.status == 0 and "file to text, 6 pictures;" in ended.out
    (data / "broken.png").write_bytes(b"no picture")
    ended = recognizer("bench", data, "--seconds", 0.1, "--model", "tiny")
    assert "file to text, 6 pictures (1 could not be opened);" in ended.out
    assert "file to text, 64 pictures" in recognizer("bench", "--seconds", 0.1, "--model", "tiny").out
    (tmp_path / "empty").mkdir()
    assert "no picture is there" in refusal(recognizer("bench", tmp_path / "empty"))
    assert "nowhere: No such file" in refusal(recognizer("bench", "nowhere"))
    (tmp_path / "a.png").write_bytes(b"no picture")
    assert "none of 1 pictures can be opened" in refusal(recognizer("bench", tmp_path / "a.png"))


def test_eight_bits_without_pictures_are_refused(tmp_path: Path) -> None:
    said = refusal(recognizer("export", TINY, "--out", tmp_path / "r.onnx", "--format", "int8"))
    assert "int8 is calibrated on pictures such as will be read: --data DIR" in said
    assert not list(tmp_path.iterdir())
    (tmp_path / "a.png").write_bytes(b"no picture")
    with pytest.raises(UserError, match="none of these 1 can be opened"):
        export(TINY, tmp_path / "r.onnx", "int8", [Sample("a.png", "a", tmp_path / "a.png")])
