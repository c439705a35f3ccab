"""The training loop of the generators, top to bottom."""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, Literal, NamedTuple, Protocol

import numpy as np
import torch
from accelerate import Accelerator
from numpy.typing import NDArray
from PIL import Image
from pydantic import Field
from torch import Tensor, nn

from augment.canvas import (
    STEP,
    Canvas,
    as_shares,
    canvas_width,
    columns,
    from_canvas,
    on_canvas,
    padded,
    text_part,
    to_canvas,
)
from augment.layout import Aligner, Spacing
from augment.method import FEWEST, Known
from recognizer.charset import Charset
from recognizer.errors import MOST_THREADS, Stopped, UserError, quoted
from recognizer.images import Part, PictureError, open_picture
from recognizer.progress import Bar, say
from recognizer.reader import Reader
from recognizer.samples import Manifest
from recognizer.settings import Settings, to_toml
from recognizer.training import checkpoint
from recognizer.training.evaluate import default_case, no_device
from recognizer.training.train import (
    Average,
    Metrics,
    any_process,
    best_precision,
    due,
    interruptible,
    provenance,
    taken_precision,
)

SHAPES = 2.0  # times as wide as most, or as narrow, for its height: of another shape
MOST_KEPT = 2000  # layouts that a generator's file holds


class FitSettings(Settings):
    """What every method that trains can be told."""

    model: str | None = None  # the reader that finds characters and judges texts, a run; else the shipped ones
    start: str = "default"  # the shipped generator; or nothing, or what augment fit wrote
    fonts: tuple[str, ...] = ()  # of rendered text, where there are no pictures: as the method `render` takes them
    steps: int = Field(2000, ge=1)
    batch: int = Field(32, ge=2, le=4096)
    learning_rate: float = Field(2e-4, gt=0)
    average: float = Field(0.05, ge=0, lt=1)  # share of the run that the generator's moving average looks back over
    grids: int = Field(20, ge=1)  # how often in a run made pictures are shown
    precision: Literal["auto", "no", "bf16"] = "auto"
    seed: int = Field(0, ge=0, lt=4000)
    threads: int = Field(0, ge=0, le=MOST_THREADS)  # of torch on a CPU; 0 leaves it as it is
    tracker: str = "tensorboard"  # any that Accelerate knows, or none
    checkpoint_seconds: float = Field(60, gt=0)


class Source(Protocol):
    """Where batches come from."""

    def batch(self, step: int, draw: int, size: int, device: torch.device) -> Canvas:
        """The `draw`th batch of a step, from (seed, step, draw) alone."""
        ...

    def kept(self, device: torch.device) -> Canvas:
        """The pictures whose layouts its spacing keeps, in that order."""
        ...


class Turn(NamedTuple):
    """One turn of one optimizer: what it lowers, and figures of it. `gradient` is that of `loss`, where it is no number
    but a tensor whose gradient was put together by hand."""

    loss: Tensor
    optimizer: torch.optim.Optimizer
    networks: tuple[nn.Module, ...]
    figures: dict[str, float]
    gradient: Tensor | None = None


class Learning(Protocol):
    """What a method trains. `networks` are all that learn, by name, each alike on all processes; `shown` is the one
    whose average makes pictures."""

    networks: Mapping[str, nn.Module]
    shown: str

    def optimizers(self) -> list[torch.optim.Optimizer]: ...

    def turns(self, batch: Callable[[int], Canvas], accelerator: Accelerator) -> Iterator[Turn]:
        """The turns of one step; `batch(k)` is its kth batch. Each was taken when the next is asked for."""
        ...

    def sample(self, network: nn.Module, canvas: Canvas) -> Tensor:
        """Pictures (N, 3, H, W) under the layouts of a batch."""
        ...


def mark_of(picture: Image.Image) -> str:
    """What an RGB picture is known again by: names are shared by pictures of several folders."""
    return hashlib.sha256(repr(picture.size).encode() + picture.tobytes()).hexdigest()[:16]


def aligner_for(data: Manifest, model: str | None) -> tuple[Aligner, dict[str, str]]:
    """The reader that finds the characters of some pictures, and which letters the pictures show in another case than
    their labels do."""
    known_as = default_case(data.samples)
    if model is None:
        return Aligner(Reader(), known_as), known_as
    return Aligner(Reader(Path(model))), known_as  # which learned the labels as they are


def alike(sizes: Sequence[tuple[int, int]]) -> list[bool]:
    """Whether pictures of some sizes (width, height) have the usual shape: at half to twice as wide as most of them."""
    shapes = np.array([width / height for width, height in sizes])
    apart = shapes / np.median(shapes) if len(shapes) else shapes
    return ((apart >= 1 / SHAPES) & (apart <= SHAPES)).tolist()  # type: ignore[no-any-return]


def see_enough(data: Manifest, alike: Sequence[bool], sizes: Sequence[tuple[int, int]]) -> None:
    """See that enough pictures have one shape.

    Raises:
        UserError: they do not.
    """
    if sum(alike) < FEWEST:
        narrow, wide = (pick(sizes, key=lambda s: s[0] / s[1]) for pick in (min, max))
        raise UserError(
            f"{data.source}: its pictures are of wildly different shapes, {narrow[0]} x {narrow[1]} to {wide[0]} x "
            f"{wide[1]} pixels, and only {sum(alike)} alike; {FEWEST} are needed: fit those of one kind at a time"
        )


class Drawings:
    """The parts with the text of labelled pictures, with their layouts, in memory at one size. Those of another shape
    than most and those without a layout are left out. Without a `charset` it is that of the characters left."""

    def __init__(
        self, data: Manifest, aligner: Aligner, charset: Charset | None, known_as: Mapping[str, str], seed: int
    ) -> None:
        opened: list[tuple[Image.Image, str]] = []
        for sample in data:
            try:
                opened.append((open_picture(sample.read_bytes(), "RGB"), sample.text))
            except PictureError:
                continue
        self.left_out = len(data) - len(opened)
        if len(opened) < FEWEST:
            raise UserError(f"{data.source}: {len(opened)} of {len(data)} pictures can be opened; {FEWEST} are needed")
        sizes = [p.size for p, _ in opened]
        usual = alike(sizes)
        see_enough(data, usual, sizes)
        self.left_out += len(opened) - sum(usual)
        opened = [own for own, fits in zip(opened, usual, strict=True) if fits]
        parts = [text_part(p) for p, _ in opened]
        widths = [canvas_width(round(right - left), round(bottom - top)) for left, top, right, bottom in parts]
        self.width = int(np.median(widths)) // STEP * STEP
        layouts = aligner.find([p for p, _ in opened], [t for _, t in opened])
        unknown = sorted({c for _, t in opened for c in t if charset and known_as.get(c, c) not in charset})
        if unknown:
            raise UserError(f"the generator never saw {' '.join(unknown[:10])!r}: --set start=nothing learns them anew")
        pictures, self.borders, self.texts, self.marks = [], [], [], list[str]()
        self.parts: list[Part] = []  # shares of the pictures' sides
        for (picture, text), layout, part in zip(opened, layouts, parts, strict=True):
            borders = None if layout is None else on_canvas(layout.borders, part, self.width)
            if borders is None:
                self.left_out += 1
                continue
            pictures.append(to_canvas(picture, self.width, part))
            self.borders.append(borders)
            self.parts.append(as_shares(part, picture.size))
            self.texts.append(text)
            self.marks.append(mark_of(picture))
        if len(pictures) < FEWEST:
            raise UserError(
                f"{data.source}: the reader finds the characters of {len(pictures)} pictures; give model=RUN"
            )
        shown = ["".join(known_as.get(c, c) for c in text) for text in self.texts]
        self.charset = charset or Charset.of(shown)
        self.ids = [self.charset.encode(text) for text in shown]
        self.pictures = np.stack(pictures)
        self.hash = hashlib.sha256("".join([*self.marks, *self.texts]).encode()).hexdigest()
        self.marks, self.parts = self.marks[:MOST_KEPT], self.parts[:MOST_KEPT]
        self.known = Known.of(self.texts, [p.size for p, _ in opened])
        self.spacing = Spacing.of(self.texts[:MOST_KEPT], self.borders[:MOST_KEPT], self.width)
        self._seed = seed

    def __len__(self) -> int:
        return len(self.pictures)

    def batch(self, step: int, draw: int, size: int, device: torch.device) -> Canvas:
        rng = np.random.default_rng([self._seed, step, draw])
        chosen = rng.choice(len(self), size, replace=len(self) < size)
        return self.of(chosen, device)

    def kept(self, device: torch.device) -> Canvas:
        return self.of(np.arange(len(self.spacing.texts)), device)

    def of(self, chosen: NDArray[np.int64], device: torch.device) -> Canvas:
        """The batch of some pictures."""
        pictures = torch.from_numpy(self.pictures[chosen]).float() / 127.5 - 1
        ids = [self.ids[i] for i in chosen]
        parts = (pictures, *columns([self.borders[i] for i in chosen], ids, self.width), *padded(ids))
        return Canvas(*(part.to(device) for part in parts))


@dataclass
class Progress:
    """Where a run is."""

    step: int = 0
    figures: list[dict[str, float]] = field(default_factory=list)  # since the last line of metrics.jsonl

    def state_dict(self) -> dict[str, Any]:
        return dict(vars(self))

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        vars(self).update(state)


def fit(
    learning: Learning,
    source: Source,
    settings: FitSettings,
    out: Path,
    finish: Callable[[Mapping[str, Tensor]], None],
    data_hash: str = "",
    asked: Mapping[str, Any] | None = None,
) -> None:
    """Train into the run folder `out`, or go on where it was: settings.toml, run.json, metrics.jsonl, tracker events,
    grids/, checkpoints/. `finish` is given the averaged weights of what makes pictures.

    Raises:
        UserError: figures that are not finite or run away; everything so far is kept.
        Stopped: Ctrl-C; the run is saved and goes on with `augment fit --resume`.
    """
    if settings.threads:
        torch.set_num_threads(settings.threads)
    best = "bf16" if best_precision() == "bf16" else "no"  # fp16 would need its losses scaled
    tracker = None if settings.tracker == "none" else settings.tracker
    taken = taken_precision(settings.precision, best)
    try:
        accelerator = Accelerator(
            cpu=no_device(), mixed_precision=taken, log_with=tracker, project_dir=str(out / "log")
        )
    except ValueError as error:
        raise UserError(f"precision {settings.precision}, tracker {settings.tracker}: {error}") from None
    if settings.batch % accelerator.num_processes or settings.batch < 2 * accelerator.num_processes:
        raise UserError(f"batch {settings.batch} cannot be shared evenly among {accelerator.num_processes} processes")
    begin_folder(accelerator, out, settings, data_hash, asked)
    networks = {name: network.to(accelerator.device) for name, network in learning.networks.items()}
    for network in networks.values():
        network.to(memory_format=torch.channels_last)
    optimizers = learning.optimizers()
    for network in networks.values():
        accelerator.register_for_checkpointing(network)
    for optimizer in optimizers:
        accelerator.register_for_checkpointing(optimizer)
    average = Average(networks[learning.shown], settings.average * settings.steps)
    progress = Progress()
    accelerator.register_for_checkpointing(average, progress)
    if (state := checkpoint.last_state(out)) is not None:
        accelerator.load_state(str(state))
        say(accelerator, f"resumed {out} at step {progress.step} of {settings.steps}")
    metrics = Metrics(accelerator, out, settings.tracker, "generator", settings.model_dump(mode="json"), progress.step)
    every = max(1, settings.steps // settings.grids)
    looked_at = source.batch(0, 0, 12, accelerator.device)
    saved = began = time.monotonic()

    each, process = settings.batch // accelerator.num_processes, accelerator.process_index

    def drawn(step: int, draw: int) -> Canvas:
        return source.batch(step, draw * accelerator.num_processes + process, each, accelerator.device)

    with (
        interruptible() as interrupted,
        Bar(accelerator, "fitting", settings.steps, progress.step, settings.batch) as bar,
    ):
        while progress.step < settings.steps:
            step = progress.step
            torch.manual_seed(hash((settings.seed, step, accelerator.process_index)) % 2**63)
            figures: dict[str, float] = {}
            for turn in learning.turns(partial(drawn, step), accelerator):
                turn.optimizer.zero_grad()
                accelerator.backward(turn.loss, gradient=turn.gradient)
                share_gradients(accelerator, turn.networks)
                turn.optimizer.step()
                figures |= turn.figures
            average.update(networks[learning.shown])
            progress.step += 1
            progress.figures.append(figures)
            wrong = [k for k, v in figures.items() if not abs(v) < 1e4]
            if any_process(accelerator, bool(wrong)):
                wrong = wrong or list(figures)
                raise UserError(
                    f"the run diverged at step {step}: {wrong[0]} is {figures[wrong[0]]:.3g}; "
                    f"try learning_rate={settings.learning_rate / 2:g}"
                )
            bar.advance(**figures)

            if progress.step % every == 0 or progress.step == settings.steps:
                mean = {k: float(np.mean([f[k] for f in progress.figures])) for k in figures}
                progress.figures.clear()
                metrics.write(progress.step, steps=settings.steps, seconds=round(time.monotonic() - began, 1), **mean)
                bar.note(f"step {progress.step:>6}  " + "  ".join(f"{k} {v:.3f}" for k, v in mean.items()))
                own = {k: v.clone() for k, v in networks[learning.shown].state_dict().items()}
                networks[learning.shown].load_state_dict(average.shadow)
                torch.manual_seed(settings.seed)
                with torch.inference_mode():
                    made = learning.sample(networks[learning.shown], looked_at)
                networks[learning.shown].load_state_dict(own)
                if accelerator.is_main_process:
                    grid(looked_at.pictures, made).save(out / "grids" / f"{progress.step:07d}.png")
                metrics.show("made", torch.cat([looked_at.pictures, made.float()]).cpu() / 2 + 0.5, progress.step)

            stop = any_process(accelerator, bool(interrupted))
            if progress.step == settings.steps or stop or due(accelerator, saved, settings.checkpoint_seconds):
                checkpoint.save_state(accelerator, out, progress.step)
                saved = time.monotonic()
            if stop and progress.step < settings.steps:
                accelerator.end_training()
                raise Stopped(
                    f"at step {progress.step} of {settings.steps}; go on with: augment fit --resume {quoted(out)}"
                )
    if accelerator.is_main_process:
        finish({name: tensor.cpu() for name, tensor in average.shadow.items()})
    accelerator.end_training()


def begin_folder(
    accelerator: Accelerator, out: Path, settings: Settings, data_hash: str, asked: Mapping[str, Any] | None
) -> None:
    """Make the folder of a fit, with what it was asked for, its settings and where it ran.

    Raises:
        UserError: it is there, of other data.
    """
    facts, file = provenance() | {"data_sha256": data_hash}, out / "run.json"
    with suppress(OSError, ValueError):
        if json.loads(file.read_text())["data_sha256"] != data_hash:
            raise UserError(f"{out} cannot be resumed: its pictures or labels have changed since; start a new fit")
    accelerator.wait_for_everyone()
    if accelerator.is_main_process:
        (out / "grids").mkdir(parents=True, exist_ok=True)
        checkpoint.write_whole(out / "asked.json", json.dumps(asked) + "\n")
        checkpoint.write_whole(out / "settings.toml", to_toml(settings))
        checkpoint.write_whole(file, json.dumps(facts, indent=2) + "\n")


def share_gradients(accelerator: Accelerator, networks: Iterable[nn.Module]) -> None:
    """Average gradients over all processes. By hand: a gradient of a gradient does not go through a wrapped network."""
    if accelerator.num_processes > 1:
        for network in networks:
            for parameter in network.parameters():
                if parameter.grad is not None:
                    parameter.grad.copy_(accelerator.reduce(parameter.grad, "mean"))


def grid(real: Tensor, made: Tensor) -> Image.Image:
    """Real pictures, and below each what was made under its layout."""
    n, _, h, w = real.shape
    sheet = Image.new("RGB", ((w + 4) * 6, (2 * h + 10) * -(-n // 6)), "white")
    for k, pair in enumerate(zip(from_canvas(real, [(w, h)] * n), from_canvas(made, [(w, h)] * n), strict=True)):
        for j, picture in enumerate(pair):
            sheet.paste(picture, (k % 6 * (w + 4), k // 6 * (2 * h + 10) + j * (h + 2)))
    return sheet
