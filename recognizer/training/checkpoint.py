"""Weights files, and the state that a run goes on from.

Weights are safetensors, never pickles: `torch.load` of a stranger's file runs code. Matrices are stored in half
precision; what describes them (size, head, charset, frame, settings, scores) stands in the file's metadata.
"""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Container, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, get_args

import torch
from accelerate import Accelerator
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from recognizer.charset import Charset
from recognizer.errors import UNWRITTEN, MachineError, UserError, of_a_worker
from recognizer.images import Frame
from recognizer.training.model import PLACE, SIZES, HeadName, Network, Widths

FORMAT = 1
SHIPPED = Path(__file__).parent.parent / "weights"
DEFAULT = SHIPPED / "weights.safetensors"
TINY = SHIPPED / "tiny.safetensors"
MOST_POSITIONS = 64  # of a fixed head


@dataclass(frozen=True)
class Description:
    """What a weights file says of itself. `scores` and `settings` are for people; the rest rebuilds the network."""

    size: str
    head: HeadName
    charset: str
    frame: Frame
    scores: Mapping[str, Any] = field(default_factory=dict)
    settings: Mapping[str, Any] = field(default_factory=dict)


@contextmanager
def written(path: Path) -> Iterator[None]:
    """End in one line where a file cannot be written, as on a full disk: torch and safetensors have errors of their own
    for that. Nothing half-written stays beside it, as `path` with .tmp behind it.

    Raises:
        MachineError: it could not be; what was there before still is.
    """
    try:
        yield
    except BaseException as error:
        tmp = path.with_name(path.name + ".tmp")
        tmp.unlink(missing_ok=True)
        if of_a_worker(error) or not isinstance(error, OSError | RuntimeError | SafetensorError):
            raise
        there = next(parent for parent in path.absolute().parents if parent.exists())
        free = shutil.disk_usage(there).free / 1e6
        why = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise MachineError(
            f"{path} {UNWRITTEN}, {free:,.0f} MB are free there ({why}): make room where that is it, and "
            "give the command again"
        ) from None


def save_weights(path: Path, state: Mapping[str, Tensor], description: Description) -> None:
    """Write a weights file, whole or not at all."""
    tensors = {
        name: (tensor.half() if tensor.ndim > 1 else tensor).detach().cpu().contiguous()
        for name, tensor in state.items()
        if tensor.is_floating_point()
    }
    about = json.dumps({"format": FORMAT, **asdict(description)}, ensure_ascii=False)
    save_tensors(path, tensors, {"lookalike": about})


def write_whole(path: Path, text: str) -> None:
    """Write a text file, whole or not at all.

    Raises:
        MachineError: it could not be; what was there before still is.
    """
    tmp = path.with_name(path.name + ".tmp")
    with written(path):
        tmp.write_text(text, encoding="utf-8")
        tmp.replace(path)


def save_tensors(path: Path, tensors: dict[str, Tensor], metadata: dict[str, str]) -> None:
    """Write a safetensors file, whole or not at all, readable to whom other files are: safetensors makes it the owner's
    alone, and a server need not be its trainer."""
    tmp = path.with_name(path.name + ".tmp")
    with written(path):
        tmp.touch()
        mode = tmp.stat().st_mode
        save_file(tensors, str(tmp), metadata=metadata)
        tmp.chmod(mode)
        tmp.replace(path)


def find_weights(path: Path) -> Path:
    """The weights file at `path`: the file itself, or the one in a run's folder; `default` is the shipped reader,
    `tiny` the shipped small one.

    Raises:
        UserError: neither.
    """
    if not path.exists():
        path = {"default": DEFAULT, "tiny": TINY}.get(str(path), path)
    if path.is_dir():
        path = path / "weights.safetensors"
    if not path.is_file():
        raise UserError(f"{path}: no such weights file; give a run's folder or its weights.safetensors")
    if path.suffix == ".onnx":
        raise UserError(f"{path} is a reader for predict, serve and bench; here its weights are wanted: a run's folder")
    return path


def read_weights(path: Path) -> tuple[dict[str, Tensor], Description]:
    """The tensors, in float32, and the description of a weights file or of a run's folder.

    Raises:
        UserError: no weights file of ours, or a broken one.
    """
    path = find_weights(path)
    try:
        with safe_open(str(path), "pt") as file:
            about = json.loads((file.metadata() or {}).get("lookalike", "null"))
            if not isinstance(about, dict):
                raise UserError(f"{path} is a safetensors file, but no reader's weights")
            if about.pop("format", None) != FORMAT:
                raise UserError(f"{path} was written by another version of this program")
            state = {name: file.get_tensor(name).float() for name in file.keys()}  # noqa: SIM118 (not a dict)
        frame = Frame(**about.pop("frame"))
        description = Description(frame=frame, **about)
        if description.size not in SIZES or description.head not in get_args(HeadName):
            raise ValueError(f"no reader is {description.size!r} with a head {description.head!r}")
        if description.frame.height != SIZES[description.size].height:
            raise ValueError(f"a {description.size!r} reader is not {description.frame.height} pixels high")
        Charset(description.charset)
        return state, description
    except (SafetensorError, ValueError, TypeError, KeyError, OSError) as error:
        raise UserError(f"{path} is no weights file that can be read: {error}") from None


def positions_of(state: Mapping[str, Tensor]) -> int:
    """The positions of a fixed head, 0 where there is none."""
    place = state.get("heads.fixed.place.bias")
    return len(place) // PLACE if place is not None else 0


def widths_of(state: Mapping[str, Tensor]) -> Widths:
    """The inner channels of a network's blocks and of its convolution head, as its tensors have them."""
    blocks: list[int] = []
    while (made := state.get(f"trunk.blocks.{len(blocks)}.conv1.weight")) is not None:
        blocks.append(len(made))
    head = state.get("heads.conv.body.0.weight")
    return Widths(tuple(blocks), 0 if head is None else len(head))


def build(state: Mapping[str, Tensor], description: Description) -> Network:
    """The network of a weights file, ready to read.

    Raises:
        UserError: its tensors do not fit its description.
    """
    positions = positions_of(state)
    if description.head == "fixed" and not 1 <= positions <= MOST_POSITIONS:
        raise UserError(f"the weights do not fit their description: a fixed head of {positions} positions")
    classes, widths = Charset(description.charset).classes, widths_of(state)
    if len(widths.blocks) not in (0, len(SIZES[description.size].channels) - 1):
        raise UserError(f"the weights do not fit their description: a trunk of {len(widths.blocks)} blocks")
    network = Network(description.size, (description.head,), classes, positions, widths)
    try:
        missing = network.load_state_dict(dict(state), strict=False)
    except RuntimeError as error:
        raise UserError(f"the weights do not fit their description: {str(error).splitlines()[-1].strip()}") from None
    absent = [name for name in missing.missing_keys if not name.endswith("num_batches_tracked")]
    if absent or missing.unexpected_keys:
        raise UserError(f"the weights do not fit their description: {(absent + missing.unexpected_keys)[0]}")
    return network.eval()


def weights_hash(path: Path) -> str:
    """SHA-256 of the weights file at `path`, as `find_weights` finds it."""
    return hashlib.sha256(find_weights(path).read_bytes()).hexdigest()


def find_start(start: str, size: str | None) -> tuple[Path | None, str]:
    """The weights that a training starts from, None where it starts from nothing, and the size of its network.

    `default` is the shipped reader of that size, where there is one, else nothing. Where no `size` is asked for it is
    that of the weights; from nothing it is tiny.

    Raises:
        UserError: no weights, or weights of another size.
    """
    if start == "nothing":
        return None, size or "tiny"
    if start == "default":
        for path in (DEFAULT, TINY):
            if path.is_file() and size in (None, found := read_weights(path)[1].size):
                return path, found
        return None, size or "tiny"
    found = read_weights(Path(start))[1].size
    if size not in (None, found):
        raise UserError(f"{start} is a {found!r} reader and cannot start a {size!r} one: --size {found}")
    return Path(start), found


def charset_of(texts: Iterable[str], readers: Sequence[Path], asked: str | None = None) -> Charset:
    """The characters to read: those that were asked for, else those of some labels and, where pictures taught the
    reader to start from, or all that teach, those that they read besides: few labels show few of them. One that a
    stream taught, as the shipped ones, reads all there are, and leaves it to the labels.

    Labels of one case stand for letters of either: a reader of ABC that is told `ab` goes on with `abc`.

    Raises:
        UserError: an empty charset, or no weights.
    """
    if asked:
        return Charset.named(asked)
    own = Charset.of(texts)
    letters = [c for c in own.characters if c.lower() != c.upper()]
    besides: list[set[str]] = []
    for path in readers:
        description = read_weights(path)[1]
        known = "" if description.settings.get("stream") else description.charset
        for one_case in (str.lower, str.upper):
            if letters and all(c == one_case(c) for c in letters):
                known = "".join(swapped if len(swapped := one_case(c)) == 1 else c for c in known)  # ß has no capital
        besides.append(set(known))
    return Charset.of([own.characters, *(set.intersection(*besides) if besides else ())])


def names_in(known: Container[str], characters: Iterable[str], known_as: Mapping[str, str]) -> list[str]:
    """What a reader that has the characters `known` calls others: what they are `known_as` to it, else themselves, or
    in the other case where it has them in that alone, and none of the others is called so."""
    names = [known_as.get(c, c) for c in characters]
    free = [c.swapcase() if c.swapcase() in known and c.swapcase() not in names else c for c in names]
    return [name if name in known else other for name, other in zip(names, free, strict=True)]


def with_a_mean(start: str, size: str | None, head: HeadName) -> bool:
    """Whether trainings of other seeds from there have a mean: not from nothing, nor with a head that the weights to
    start from lack, as each training draws its own by chance.

    Raises:
        UserError: as `find_start`.
    """
    path, _ = find_start(start, size)
    return path is not None and any(name.startswith(f"heads.{head}.") for name in read_weights(path)[0])


def start_from(network: Network, path: Path, charset: Charset, known_as: Mapping[str, str] | None = None) -> str:
    """Load what fits from other weights into `network`: the trunk, and each head that both have.

    Of a head's last layer, the rows of the blank and of each character that the old charset holds are kept, by its own
    name or by what it is `known_as`. Gives one line that says what was taken.

    Raises:
        UserError: no weights, or ones that do not fit their description.
    """
    state, description = read_weights(path)
    build(state, description)
    old = {c: i for i, c in enumerate(description.charset, 1)}
    names = names_in(old, charset.characters, known_as or {})
    shared = [(old[name], i) for i, name in enumerate(names, 1) if name in old]
    rows = torch.tensor([(0, 0), *shared])
    own = network.state_dict()
    # a fixed head of other positions has nothing of which a part would be right
    left = description.head not in network.heads or any(
        name in own and own[name].shape != tensor.shape and ".classify." not in name for name, tensor in state.items()
    )
    for name, tensor in state.items():
        if name not in own or (left and name.startswith("heads.")):
            continue
        if ".classify." in name:
            own[name][rows[:, 1]] = tensor[rows[:, 0]].to(own[name])
        else:
            own[name].copy_(tensor)
    head = f", but not its {description.head} head" if left else ""
    told = {DEFAULT: "the default reader", TINY: "the shipped tiny reader"}.get(path, str(path))
    swapped = sum(a != b for a, b in zip(names, charset.characters, strict=True))
    case = f", {swapped} of them in the other case" if swapped else ""
    return f"started from {told}{head}: {len(shared)} of {len(charset)} characters were known to it{case}"


# ------------------------------------------------------------------------------------------------------- run's state


def save_state(accelerator: Accelerator, run: Path, step: int) -> None:
    """Save all that `accelerator` holds as `run/checkpoints/STEP`; older ones go once it stands whole."""
    tmp = run / "checkpoints" / "writing"
    if accelerator.is_main_process:
        shutil.rmtree(tmp, ignore_errors=True)
    accelerator.wait_for_everyone()
    with written(tmp):
        accelerator.save_state(str(tmp))  # on every process
    accelerator.wait_for_everyone()
    if accelerator.is_main_process:
        final = tmp.with_name(f"{step:09d}")
        shutil.rmtree(final, ignore_errors=True)
        tmp.rename(final)
        for old in final.parent.glob("[0-9]*"):
            if old != final:
                shutil.rmtree(old, ignore_errors=True)
    accelerator.wait_for_everyone()


def last_state(run: Path) -> Path | None:
    """The newest whole checkpoint of a run, or None."""
    return max((run / "checkpoints").glob("[0-9]*"), default=None)
