"""Export weights to one ONNX file that `recognizer predict` reads, and prove that it reads the same."""

from __future__ import annotations

import copy
import json
import logging
import tempfile
import time
import warnings
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import torch
from numpy.typing import NDArray
from onnx import numpy_helper
from onnxruntime.quantization import CalibrationDataReader, QuantFormat, QuantType, quantize_dynamic, quantize_static
from torch import Tensor, nn

from recognizer.charset import Charset
from recognizer.errors import UserError, see_writable
from recognizer.images import WIDTH_STEP, Grey, PictureError, normalise, open_picture
from recognizer.reader import SHIPPED, Reader
from recognizer.samples import Sample
from recognizer.training.checkpoint import Description, build, find_weights, read_weights, written
from recognizer.training.model import SIZES, HeadName, Network

TOLERANCE, RARE = 1e-4, 10.0  # and the log probability, turned over, from which on it is in proportion
ROUNDING = 4.0  # times as far as torch's own single precision is from double a file may be, where that is more
FORMS = ("half", "full", "int8", "int8-dynamic")
QUANTIZED = ["Conv", "MatMul", "Gemm"]
CALIBRATED_ON = 256  # pictures, at most
FEWEST = 8  # pictures that are calibrated on, where others are there to compare on
TURNS = 20  # of a measurement
Reads = Callable[[NDArray[np.float32]], NDArray[np.floating[Any]]]  # pictures (N, 1, H, W) to log probabilities
GRAPHS = Path(__file__).with_name("graphs")  # without weights, as `write_graphs` writes them


class Reading(nn.Module):
    """Pictures (N, 1, H, W), normalised, to log probabilities (N, T, classes) of one head."""

    def __init__(self, network: Network, head: HeadName) -> None:
        super().__init__()
        self.network, self.head = network, head

    def forward(self, pictures: Tensor) -> Tensor:
        logits: Tensor = self.network(pictures)[self.head]
        return logits.log_softmax(-1)


def export(
    weights: Path, out: Path | None = None, form: str = "half", data: Sequence[Sample] = ()
) -> tuple[Path, float]:
    """Write the ONNX file of a weights file or a run, `reader.onnx` beside it unless told otherwise.

    Batch and width are free. `form`, one of `FORMS`, is how matrices are stored, and with the last two what is computed
    in; `int8` is calibrated on pictures of `data`. Gives the file and the largest difference from torch in log
    probability, at several batches and widths.

    Raises:
        UserError: no weights, nothing to calibrate on, or a file that is not quantized and differs from torch by more
            than `TOLERANCE`, and by more than rounding does.
    """
    state, description = read_weights(weights)
    if out is None:
        out = find_weights(weights).with_name("reader.onnx")
        if out.parent.resolve() == SHIPPED.resolve():
            raise UserError(f"{weights} is a reader that is installed: say where its file goes, --out FILE.onnx")
    else:
        see_writable("--out", out)
        if out.suffix == ".safetensors":
            raise UserError(f"--out {out}: weights for training have that ending; name a file that ends in .onnx")
    greys = calibrating(data, description) if form == "int8" else None
    module = Reading(build(state, description), description.head).eval()
    model = graph_of(module, description)
    about = {
        "charset": description.charset, "frame": asdict(description.frame), "size": description.size,
        "head": description.head, "scores": dict(description.scores), "form": form,
    }  # fmt: skip
    tmp = out.with_name(out.name + ".tmp")
    with written(out):
        if form.startswith("int8"):
            model = quantized(model, greys)
        elif form == "half":
            store_halves(model, state)
        onnx.helper.set_model_props(model, {"lookalike": json.dumps(about, ensure_ascii=False)})
        tmp.write_bytes(model.SerializeToString())
        difference = largest_difference(by_torch(module), by_onnx(tmp), description)
        if not form.startswith("int8") and not difference <= TOLERANCE:
            rounding = largest_difference(by_torch(module, torch.float64), by_torch(module), description)
            if not difference <= ROUNDING * rounding:
                raise UserError(
                    f"the exported reader differs from torch by {difference:.1e}, more than {TOLERANCE:.0e}, and more "
                    f"than {ROUNDING:g} times the {rounding:.0e} that torch itself rounds by"
                )
        tmp.replace(out)
    return out, difference


def graph_of(module: nn.Module, description: Description) -> onnx.ModelProto:
    """The network as an ONNX model in single precision, of any batch and width: its weights in the graph that the
    exporter wrote for such a network once, in a twentieth of the time, else what the exporter writes."""
    from onnxscript import optimizer  # a second to import, which only an export pays

    model = kept_graph(module, description)
    if model is None:
        model = exported(module, description.frame.height)
    return without_notes(optimizer.optimize(model))


def without_notes(model: onnx.ModelProto) -> onnx.ModelProto:
    """A model without the exporter's notes, which hold file names of the machine that it ran on."""
    for part in (*model.graph.node, *model.graph.value_info, *model.graph.input, *model.graph.output, model.graph):
        part.ClearField("metadata_props")
        part.ClearField("doc_string")
    return model


def exported(module: nn.Module, height: int) -> onnx.ModelProto:
    """What the exporter writes, not yet optimized: each weight in it has its name in the module."""
    example = torch.zeros(2, 1, height, 8 * WIDTH_STEP)
    batch, columns = torch.export.Dim("batch", min=1), torch.export.Dim("columns", min=1)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        logging.getLogger("torch.onnx").setLevel(logging.ERROR)
        program = torch.onnx.export(
            module, (example,), input_names=["pictures"], output_names=["log_probabilities"],
            dynamic_shapes=({0: batch, 3: 4 * columns},), dynamo=True, verbose=False, optimize=False,
        )  # fmt: skip
    assert program is not None
    model: onnx.ModelProto = program.model_proto
    return model


def kept_graph(module: nn.Module, description: Description) -> onnx.ModelProto | None:
    """The graph in `GRAPHS` of such a network, with a module's weights; None where none is of their names and shapes,
    as of pruned ones."""
    path, state = GRAPHS / f"{description.size}-{description.head}.onnx", module.state_dict()
    if not path.is_file():
        return None
    model, classes = onnx.load(path), Charset(description.charset).classes
    if {s.name for s in model.graph.initializer} != {n for n in state if not n.endswith("num_batches_tracked")}:
        return None
    for stored in model.graph.initializer:
        shape = (classes, *stored.dims[1:]) if ".classify." in stored.name else tuple(stored.dims)
        if state[stored.name].shape != shape:
            return None
        stored.CopyFrom(numpy_helper.from_array(state[stored.name].numpy(), stored.name))
    model.graph.output[0].type.tensor_type.shape.dim[2].dim_value = classes
    return model


def write_graphs(folder: Path) -> None:
    """Write the graphs of networks with a convolutional head, without weights: after a change to the network, and with
    `GRAPHS` for the folder, what `kept_graph` goes by."""
    for size, form in SIZES.items():
        model = without_notes(exported(Reading(Network(size, ("conv",), 2), "conv").eval(), form.height))
        del model.graph.value_info[:]  # shapes of so many classes
        for stored in model.graph.initializer:
            stored.ClearField("raw_data")
        (folder / f"{size}-conv.onnx").write_bytes(model.SerializeToString())


def parted(data: Sequence[Sample]) -> tuple[list[Sample], list[Sample]]:
    """Samples to calibrate on and others to compare on, drawn by chance: of sorted ones the first are of one kind."""
    order = [data[i] for i in np.random.default_rng(0).permutation(len(data)).tolist()]
    first = min(CALIBRATED_ON, len(order) // 2)
    return (order[:first], order[first:]) if first >= FEWEST else (order, order)


class Calibration(CalibrationDataReader):  # type: ignore[misc]
    """Pictures one by one, as the quantizer asks for them."""

    def __init__(self, greys: Sequence[Grey]) -> None:
        self._greys = iter(greys)

    def get_next(self) -> dict[str, NDArray[np.float32]] | None:
        grey = next(self._greys, None)
        return None if grey is None else {"pictures": normalise(grey[None])[:, None]}


def calibrating(data: Sequence[Sample], description: Description) -> list[Grey]:
    """Opened pictures to calibrate on.

    Raises:
        UserError: there is none.
    """
    if not data:
        raise UserError("int8 is calibrated on pictures such as will be read: --data DIR")
    greys: list[Grey] = []
    for sample in data:
        with suppress(PictureError):
            greys.append(description.frame.fit(open_picture(sample.read_bytes(), None)))
        if len(greys) == CALIBRATED_ON:
            break
    if not greys:
        raise UserError(f"int8 is calibrated on pictures, and none of these {len(data)} can be opened: {data[0].path}")
    return greys


def quantized(model: onnx.ModelProto, greys: Sequence[Grey] | None) -> onnx.ModelProto:
    """A model whose convolutions and matrices are of 8 bits: with opened pictures computed in 8 bits as well, in ranges
    that these reach, else only as far as ranges are found while it reads."""
    with tempfile.TemporaryDirectory() as folder, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        logging.getLogger().addFilter(_quiet)
        before, after = Path(folder) / "before.onnx", Path(folder) / "after.onnx"
        before.write_bytes(model.SerializeToString())
        try:
            if greys is None:
                quantize_dynamic(before, after, op_types_to_quantize=QUANTIZED)
            else:
                quantize_static(
                    before, after, Calibration(greys), quant_format=QuantFormat.QDQ, per_channel=True,
                    activation_type=QuantType.QUInt8, weight_type=QuantType.QInt8, op_types_to_quantize=QUANTIZED,
                )  # fmt: skip
        finally:
            logging.getLogger().removeFilter(_quiet)
        return onnx.load(after)


def _quiet(record: logging.LogRecord) -> bool:
    """Whether a log record is not the quantizer's advice on steps that change nothing here."""
    return "pre-processing" not in record.getMessage()


@dataclass(frozen=True)
class Measured:
    """What a file costs and reads: bytes, the share read right whatever its case of `n` pictures, how many of them it
    reads otherwise than the first one measured, and milliseconds of one thread a picture, alone and 32 at once."""

    form: str
    size: int
    right: float | None
    differ: int
    n: int
    alone: float
    together: float


def measure(files: Mapping[str, Path], data: Sequence[Sample]) -> list[Measured]:
    """What each file costs and reads, by the name of its form, in turns, so that other work on the machine falls on all
    alike."""
    readers = {form: Reader(path) for form, path in files.items()}
    opened: list[tuple[Grey, str]] = []
    first = next(iter(readers.values()))
    for sample in data:
        with suppress(PictureError):
            opened.append((first.open(sample.read_bytes()), sample.text))
    texts = {form: [r.text for r in reader.read([g for g, _ in opened])] for form, reader in readers.items()}
    looked_at = [g for g, _ in opened] or [np.full((first.frame.height, 128), 255, np.uint8)]
    alone: dict[str, list[float]] = {form: [] for form in readers}
    together: dict[str, list[float]] = {form: [] for form in readers}
    for turn in range(TURNS):
        grey = looked_at[turn % len(looked_at)]
        for form, reader in readers.items():
            reader.log_probabilities([grey])  # the nearest caches hold another form's weights
            for times, n in ((alone, 1), (together, 32)):
                began = time.thread_time()  # the reader's one thread is this one
                reader.log_probabilities([grey] * n)
                times[form].append(1e3 * (time.thread_time() - began) / n)
    usual = next(iter(texts.values()))
    return [
        Measured(
            form, path.stat().st_size,
            sum(a.casefold() == t.casefold() for a, (_, t) in zip(texts[form], opened, strict=True)) / len(opened)
            if opened else None,
            sum(a != b for a, b in zip(texts[form], usual, strict=True)), len(opened),
            float(np.median(alone[form])), float(np.median(together[form])),
        )
        for form, path in files.items()
    ]  # fmt: skip


def verdict(own: Measured, usual: Measured) -> str:
    """What is worse of a form than of the usual one, in words."""
    said = []
    if own.alone > 1.1 * usual.alone or own.together > 1.1 * usual.together:
        said.append("slower")
    if own.right is not None and usual.right is not None and own.right < usual.right - 0.005:
        said.append(f"reads {100 * (usual.right - own.right):.1f} points worse")
    return ", ".join(said)


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


def by_torch(module: nn.Module, precision: torch.dtype = torch.float32) -> Reads:
    """What a module gives, computed by torch in single or double precision."""
    module = copy.deepcopy(module).to(precision)

    def read(pictures: NDArray[np.float32]) -> NDArray[np.floating[Any]]:
        with torch.inference_mode():
            found: NDArray[np.floating[Any]] = module(torch.from_numpy(pictures).to(precision)).numpy()
        return found

    return read


def by_onnx(file: Path) -> Reads:
    """What a file gives, computed by ONNX Runtime."""
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    session = onnxruntime.InferenceSession(str(file), options, providers=["CPUExecutionProvider"])
    return lambda pictures: session.run(None, {"pictures": pictures})[0]


def largest_difference(ours: Reads, theirs: Reads, description: Description) -> float:
    """The largest difference between two in the log probabilities of random pictures, that of rare ones in proportion
    to it: what is computed in single precision is no more exact."""
    rng, worst = np.random.default_rng(0), 0.0
    for n, width in ((1, 64), (3, 96), (2, 128), (1, 208), (5, 512)):
        pictures = rng.standard_normal((n, 1, description.frame.height, width)).astype(np.float32)
        own, other = ours(pictures), theirs(pictures)
        worst = max(worst, float((np.abs(own - other) / np.maximum(np.abs(own) / RARE, 1)).max()))
    return worst
