"""Batches of pictures for training: which samples stand in which step, and how they are varied.

Everything about a step follows from (seed, step) alone, so a run that was killed goes on exactly.
"""

from __future__ import annotations

import signal
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import NamedTuple, TypeVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional as F
from torch.utils.data import Dataset

from recognizer.charset import Charset
from recognizer.errors import MachineError
from recognizer.images import STRIDE, Frame, Grey, PictureError, normalise, open_picture
from recognizer.samples import Problem, Sample, check, printable
from recognizer.settings import Settings

CACHE_BYTES = 1_000_000_000
T = TypeVar("T")


class Item(NamedTuple):
    """One sample as the batches take it: grey (H, W) uint8 and class ids."""

    grey: Grey
    ids: list[int]


class Batch(NamedTuple):
    """Pictures (N, 1, H, W) normalised, class ids (N, L) padded with 0, lengths (N,)."""

    pictures: Tensor
    targets: Tensor
    lengths: Tensor


class Pictures(Dataset[Item]):
    """The samples that can be used, opened once to check them; what cannot is in `problems`.

    Grey pictures stay in memory up to `CACHE_BYTES`; beyond that they are opened again each time.
    """

    def __init__(
        self,
        samples: Sequence[Sample],
        charset: Charset,
        frame: Frame,
        max_pixels: int,
        each: Callable[[], object] = lambda: None,
    ) -> None:
        self.samples: list[Sample] = []
        self.problems: list[Problem] = []
        self.widths: list[int] = []
        self.charset, self._frame, self._max_pixels = charset, frame, max_pixels
        self._greys: list[Grey | None] = []  # None, or missing at the end, where there was no room
        room = CACHE_BYTES
        for sample in samples:
            try:
                grey = check(sample, charset, frame, STRIDE, max_pixels)
            except PictureError as error:
                self.problems.append(Problem(sample.name, error.kind, str(error)))
            else:
                self.samples.append(sample)
                self.widths.append(grey.shape[1])
                room -= grey.nbytes
                if room > 0:
                    self._greys.append(grey)
            each()

    @classmethod
    def joined(cls, parts: Sequence[Pictures]) -> Pictures:
        """Several of one charset and frame, opened already, as one."""
        whole = cls([], parts[0].charset, parts[0]._frame, parts[0]._max_pixels)
        for part in parts:
            whole.samples += part.samples
            whole.widths += part.widths
            whole._greys += part._greys + [None] * (len(part) - len(part._greys))
        return whole

    def __len__(self) -> int:
        return len(self.samples)

    def grey(self, i: int) -> Grey:
        """Picture i at the reader's size, (H, W) uint8.

        Raises:
            MachineError: it cannot be read any more.
        """
        if i < len(self._greys) and (grey := self._greys[i]) is not None:
            return grey
        try:
            return self._frame.fit(open_picture(self.samples[i].read_bytes(), None, self._max_pixels))
        except PictureError as error:
            raise MachineError(
                f"{printable(self.samples[i].name)} can no longer be read ({error}): put it back, and go on (--resume)"
            ) from None

    def __getitem__(self, i: int) -> Item:
        return Item(self.grey(i), self.charset.encode(self.samples[i].text))


def normalised(greys: Tensor) -> Tensor:
    """`images.normalise` in torch, on any device: greys (N, 1, H, W) of 0 to 255."""
    flat = greys.flatten(1)
    mean = flat.mean(1, keepdim=True)
    spread = flat.std(1, correction=0, keepdim=True).clamp_min(8.0)
    middle = flat.median(1, keepdim=True).values  # of the two in the middle the lower one
    return ((flat - mean) * torch.where(middle < mean, -1.0, 1.0) / spread).view_as(greys)


def collate(items: Sequence[Item]) -> Batch:
    """Normalise, pad to the widest picture with each one's own last column, and stack."""
    width = max(item.grey.shape[1] for item in items)
    pictures = np.empty((len(items), 1, items[0].grey.shape[0], width), np.float32)
    targets = np.zeros((len(items), max(len(item.ids) for item in items)), np.int64)
    for i, item in enumerate(items):
        own = item.grey.shape[1]
        pictures[i, 0, :, :own] = normalise(item.grey)
        pictures[i, 0, :, own:] = np.median(pictures[i, 0, :, own - 1])
        targets[i, : len(item.ids)] = item.ids
    return Batch(
        torch.from_numpy(pictures),
        torch.from_numpy(targets),
        torch.tensor([len(item.ids) for item in items]),
    )


def undisturbed(_: int) -> None:
    """What a process that loads ahead begins with: Ctrl-C, or a stop of all that belongs together, is for the process
    that trains to act on, which a worker that dies of it would take down."""
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.SIG_IGN)


def fetched(batches: Iterable[T]) -> Iterator[T]:
    """What other processes load ahead. One that dies closes its pipes first: time for torch to hear of its death, and
    to say that in place of the end of a file."""
    try:
        yield from batches
    except (EOFError, OSError):
        time.sleep(1)  # which torch's handler of SIGCHLD ends with a RuntimeError
        raise


class Plan:
    """Which samples stand in each step: the endless shuffled passes over real, made and kept samples, side by side.

    Samples 0 to `real` - 1 are real, the last `kept` are kept from earlier trainings, those between are made. Made ones
    take `made_share` of each batch, kept ones `kept_share`, and each kind at least one place. Where widths differ, the
    samples of `WINDOW` steps are sorted by width and cut into batches, which come in random order.
    """

    WINDOW = 32

    def __init__(
        self,
        widths: Sequence[int],
        real: int,
        batch: int,
        made_share: float,
        seed: int,
        kept: int = 0,
        kept_share: float = 0.0,
    ) -> None:
        made = len(widths) - real - kept
        take_made = min(max(int(batch * made_share + 1e-9), 1), batch - 1 - (kept > 0)) if made else 0
        take_kept = min(max(round(batch * kept_share), 1), batch - 1 - take_made) if kept else 0
        takes = (batch - take_made - take_kept, take_made, take_kept)
        self._parts = list(zip((0, real, real + made), (real, made, kept), takes, strict=True))
        self.batch = batch
        self._widths, self._seed = np.asarray(widths), seed
        self._sorted = len(set(widths)) > 1
        self._pass: dict[tuple[int, int], NDArray[np.int64]] = {}

    def indices(self, step: int) -> list[int]:
        """The samples of a step, real and made ones mixed: each of several processes takes a part of every batch."""
        window, place = divmod(step, self.WINDOW) if self._sorted else (step, 0)
        steps = self.WINDOW if self._sorted else 1
        order = np.random.default_rng([self._seed, 3, window]).permutation(steps)
        chosen: list[int] = []
        for part, (first, n, take) in enumerate(self._parts):
            if take:
                drawn = first + self._stream(part, n, window * steps * take, steps * take)
                if self._sorted:
                    drawn = drawn[np.argsort(self._widths[drawn], kind="stable")]
                chosen += drawn.reshape(steps, take)[order[place]].tolist()
        mixed: list[int] = np.random.default_rng([self._seed, 4, step]).permutation(chosen).tolist()
        return mixed

    def _stream(self, part: int, n: int, start: int, count: int) -> NDArray[np.int64]:
        """`count` numbers from place `start` of the endless stream of permutations of range(n)."""
        first, last = start // n, (start + count - 1) // n
        for old in [key for key in self._pass if key[0] == part and key[1] < first]:
            del self._pass[old]
        for k in range(first, last + 1):
            if (part, k) not in self._pass:
                self._pass[part, k] = np.random.default_rng([self._seed, part, k]).permutation(n)
        passes = np.concatenate([self._pass[part, k] for k in range(first, last + 1)])
        return passes[start - first * n : start - first * n + count]


class StepSampler:
    """The batch sampler of steps `start` to `stop` of a plan."""

    drop_last = False

    def __init__(self, plan: Plan, start: int, stop: int) -> None:
        self.plan, self.start, self.stop = plan, start, stop
        self.batch_size = plan.batch

    def __len__(self) -> int:
        return self.stop - self.start

    def __iter__(self) -> Iterator[list[int]]:
        return (self.plan.indices(step) for step in range(self.start, self.stop))


class Variation(Settings):
    """How far each picture of a batch is varied, anew in each step. Never mirrored: a mirrored b is a d."""

    scale: float = 0.10  # share of the size
    rotation: float = 0.10  # slope
    shear: float = 0.10  # slope
    shift: float = 0.07  # share of half the size
    warp: float = 1.0  # pixels, smooth
    contrast: float = 0.3
    brightness: float = 0.3  # standard deviations of the picture
    noise: float = 0.12  # standard deviations of the picture
    erase: float = 0.15  # share of pictures that lose a strip or a patch


def vary(pictures: Tensor, by: Variation, rng: torch.Generator) -> Tensor:
    """Vary normalised pictures (N, 1, H, W). `rng` is a CPU generator, whatever the pictures' device."""
    if not any(by.model_dump().values()):
        return pictures
    n, _, h, w = pictures.shape

    def within(bound: float) -> Tensor:
        return (torch.rand(n, generator=rng) * 2 - 1) * bound

    affine = torch.zeros(n, 2, 3)
    affine[:, 0, 0] = 1 + within(by.scale)
    affine[:, 1, 1] = 1 + within(by.scale)
    affine[:, 0, 1] = within(by.shear) * h / w
    affine[:, 1, 0] = within(by.rotation) * w / h
    affine[:, 0, 2] = within(by.shift)
    affine[:, 1, 2] = within(by.shift)
    grid = F.affine_grid(affine, [n, 1, h, w], align_corners=False)
    if by.warp:
        field = torch.randn(n, 2, 4, max(4, w // 16), generator=rng) * by.warp
        field = F.interpolate(field, (h, w), mode="bicubic", align_corners=False)
        grid = grid + field.permute(0, 2, 3, 1) * torch.tensor([2 / w, 2 / h])
    device = pictures.device
    pictures = F.grid_sample(pictures, grid.to(device), padding_mode="border", align_corners=False)
    gain, lift, grain = 1 + within(by.contrast), within(by.brightness), torch.rand(n, generator=rng) * by.noise
    shape = (n, 1, 1, 1)
    noise = torch.randn(pictures.shape, generator=rng) * grain.view(shape)
    pictures = pictures * gain.view(shape).to(device) + (lift.view(shape) + noise).to(device)
    if by.erase:
        pictures = pictures * _patches(n, h, w, by.erase, rng).to(device)
    return pictures


def _patches(n: int, h: int, w: int, share: float, rng: torch.Generator) -> Tensor:
    """Masks (N, 1, H, W) that blank a patch of at most a third of the height in `share` of the pictures."""
    size = torch.rand(n, 2, generator=rng) * h / 3
    corner = torch.rand(n, 2, generator=rng) * torch.tensor([h, w])
    hit = torch.rand(n, generator=rng) < share
    y, x = torch.arange(h), torch.arange(w)
    rows = (y >= corner[:, :1]) & (y < (corner + size)[:, :1])
    columns = (x >= corner[:, 1:]) & (x < (corner + size)[:, 1:])
    inside = rows[:, :, None] & columns[:, None, :] & hit[:, None, None]
    return (~inside)[:, None].float()
