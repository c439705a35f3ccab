"""Export weights to one ONNX file that `recognizer predict` reads, and prove that it reads the same."""

from __future__ import annotations

import json
import logging
import warnings
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import torch
from onnx import numpy_helper
from torch import Tensor, nn

from recognizer.errors import UserError
from recognizer.images import WIDTH_STEP
from recognizer.training.checkpoint import Description, build, find_weights, read_weights
from recognizer.training.model import HeadName, Network

TOLERANCE = 1e-4


class Reading(nn.Module):
    """Pictures (N, 1, H, W), normalised, to log probabilities (N, T, classes) of one head."""

    def __init__(self, network: Network, head: HeadName) -> None:
        super().__init__()
        self.network, self.head = network, head

    def forward(self, pictures: Tensor) -> Tensor:
        logits: Tensor = self.network(pictures)[self.head]
        return logits.log_softmax(-1)


def export(weights: Path, out: Path | None = None) -> tuple[Path, float]:
    """Write the ONNX file of a weights file or a run, `reader.onnx` beside it unless told otherwise.

    Batch and width are free. Matrices are stored in half precision, as they are in the weights file, and reading is in
    single precision all the same. Gives the file and the largest difference from torch, in log probability, at several
    batches and widths.

    Raises:
        UserError: no weights, or a file that differs from torch by more than `TOLERANCE`.
    """
    state, description = read_weights(weights)
    out = out or find_weights(weights).with_name("reader.onnx")
    module = Reading(build(state, description), description.head).eval()
    example = torch.zeros(2, 1, description.frame.height, 8 * WIDTH_STEP)
    batch, columns = torch.export.Dim("batch", min=1), torch.export.Dim("columns", min=1)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        logging.getLogger("torch.onnx").setLevel(logging.ERROR)
        program = torch.onnx.export(
            module, (example,), input_names=["pictures"], output_names=["log_probabilities"],
            dynamic_shapes=({0: batch, 3: 4 * columns},), dynamo=True, verbose=False,
        )  # fmt: skip
    assert program is not None
    model = program.model_proto
    for part in (*model.graph.node, *model.graph.value_info, *model.graph.input, *model.graph.output, model.graph):
        part.ClearField("metadata_props")  # the exporter's notes hold file names of the machine that it ran on
        part.ClearField("doc_string")
    store_halves(model, state)
    about = {
        "charset": description.charset, "frame": asdict(description.frame), "size": description.size,
        "head": description.head, "scores": dict(description.scores),
    }  # fmt: skip
    onnx.helper.set_model_props(model, {"lookalike": json.dumps(about, ensure_ascii=False)})
    tmp = out.with_name(out.name + ".tmp")
    tmp.write_bytes(model.SerializeToString())
    difference = largest_difference(module, tmp, description)
    if not difference <= TOLERANCE:
        tmp.unlink()
        raise UserError(f"the exported reader differs from torch by {difference:.1e}, more than {TOLERANCE:.0e}")
    tmp.replace(out)
    return out, difference


def store_halves(model: onnx.ModelProto, state: Mapping[str, Tensor]) -> None:
    """Store a model's matrices in half precision where that loses nothing: in half the bytes.

    The exporter multiplied a convolution's weights, which are halves, by what the norm behind it makes of each channel:
    both are stored, and ONNX Runtime multiplies them when it opens the file.
    """
    halves: list[onnx.NodeProto] = []
    for stored in list(model.graph.initializer):
        given, name = numpy_helper.to_array(stored), stored.name
        if given.dtype != np.float32 or given.ndim < 2:
            continue
        own = state.get(name.removeprefix("network."))
        matrix = given if own is None or own.shape != given.shape else own.numpy()
        axes, half = tuple(range(1, given.ndim)), matrix.astype(np.float16)
        along = (given * matrix).sum(axes, keepdims=True)
        scale = along / np.maximum((matrix * matrix).sum(axes, keepdims=True), 1e-20)
        if np.abs(half.astype(np.float32) * scale - given).max() > 1e-6 * np.abs(given).max():
            continue
        stored.CopyFrom(numpy_helper.from_array(half, f"{name}.half"))
        if matrix is given:
            halves.append(onnx.helper.make_node("Cast", [f"{name}.half"], [name], to=onnx.TensorProto.FLOAT))
        else:
            model.graph.initializer.append(numpy_helper.from_array(scale.astype(np.float32), f"{name}.scale"))
            halves.append(onnx.helper.make_node("Cast", [f"{name}.half"], [f"{name}.whole"], to=onnx.TensorProto.FLOAT))
            halves.append(onnx.helper.make_node("Mul", [f"{name}.whole", f"{name}.scale"], [name]))
    for node in reversed(halves):
        model.graph.node.insert(0, node)


def largest_difference(module: nn.Module, onnx_file: Path, description: Description) -> float:
    """The largest difference in log probability between torch and ONNX Runtime over random pictures."""
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    session = onnxruntime.InferenceSession(str(onnx_file), options, providers=["CPUExecutionProvider"])
    rng, worst = np.random.default_rng(0), 0.0
    for n, width in ((1, 64), (3, 96), (2, 128), (1, 208), (5, 512)):
        pictures = rng.standard_normal((n, 1, description.frame.height, width)).astype(np.float32)
        with torch.inference_mode():
            ours = module(torch.from_numpy(pictures)).numpy()
        theirs = session.run(None, {"pictures": pictures})[0]
        worst = max(worst, float(np.abs(np.exp(ours) - np.exp(theirs)).max()), float(np.abs(ours - theirs).max()))
    return worst
