"""Rendered text without end, as batches to train on: no picture twice, each one from (seed, step, place) alone."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Set
from concurrent.futures import ThreadPoolExecutor
from typing import Any, NamedTuple, TypeVar

import numpy as np
import torch
from numpy.typing import NDArray
from pydantic import Field
from torch import Tensor
from torch.nn import functional as F
from torch.utils.data import DataLoader, Dataset

from augment.canvas import HEIGHT, Canvas, borders_of_boxes, columns, padded
from augment.glyphs import Glyphs, font_files, load_glyphs
from augment.layout import Spacing
from augment.method import Known, Request
from augment.methods.captcha import HEIGHT as PACKAGE_HEIGHT
from augment.methods.captcha import Captcha, CaptchaSettings
from augment.methods.render import Render, RenderSettings, draw
from augment.style import Dice, Style, throw_style
from recognizer.charset import DIGITS, MARKS, NAMED, Charset
from recognizer.errors import MOST_THREADS, UserError
from recognizer.images import COLOUR, LUMA, OTHER_WAY, Frame, text_parts
from recognizer.settings import Settings, make
from recognizer.training.batches import Batch, fetched, normalised, undisturbed

# how often a picture's characters are drawn from which set, where the charset holds it
SETS = {
    "letters+digits": 0.30, "upper+digits": 0.22, "lower+digits": 0.16, "digits": 0.10, "upper": 0.07, "lower": 0.10,
    "letters": 0.05,
}  # fmt: skip
MARKED = 0.15  # share of the texts that are amounts, or codes with marks in them, where the charset holds marks
LENGTHS: dict[int, float] = {1: 2, 2: 3, 3: 6, 4: 22, 5: 21, 6: 20, 7: 9, 8: 7, 9: 4, 10: 3, 11: 2, 12: 1}  # weights
WIDTHS = {96: 0.10, 112: 0.16, 128: 0.30, 144: 0.16, 160: 0.15, 208: 0.13}  # as they are read, at a height of 32
# pictures are drawn larger than they are read, as real ones are, and narrower, since a reader draws narrow ones out
HEIGHTS = {32: 0.4, 48: 0.3, 64: 0.3}
SHARES = {1.0: 0.45, 0.85: 0.12, 0.7: 0.15, 0.55: 0.16, 0.45: 0.12}  # of the width
K = TypeVar("K", int, float)
BLOCK = 4  # steps that are drawn together
TOGETHER = 256  # pictures that a thread looks for text in
NARROWEST, NARROWEST_DRAWN = 10, 8  # pixels that a character takes at a height of 32, at least, as read and as drawn
COLOURED = 0.5  # share of the blocks whose pictures are drawn in colour, and seen in the grey that a reader sees
PACKAGE_LOOK = 0.4  # how often the `captcha` package draws with its own settings


class StreamSettings(Settings):
    """Which fonts, and how the pictures grow harder."""

    fonts: tuple[str, ...] = ()  # as the method `render` takes them
    easy: float = Field(0.25, ge=0, le=1)  # the difficulty at the start
    climb: float = Field(0.15, ge=0, le=1)  # share of the run in which it rises to 1
    package: float = Field(0.12, ge=0, le=1)  # share of the pictures that the `captcha` package draws
    trimmed: float = Field(0.85, ge=0, le=1)  # share of which only the text's part is shown, for a frame that trims
    workers: int = Field(0, ge=0, le=MOST_THREADS)  # processes that throw what is drawn; they never touch a GPU


class Thrown(NamedTuple):
    """What a block's pictures are drawn from. Those that the `captcha` package draws are drawn already."""

    style: Style
    size: tuple[int, int]  # (width, height) as they are read
    drawn: tuple[int, int]  # and as they are drawn
    cut: NDArray[np.bool_]  # which show only the part with the text (N,)
    packaged: list[int]  # rows
    pictures: Tensor  # of those rows (P, 1, H, W), 0 to 1
    targets: Tensor
    lengths: Tensor
    channels: int  # that the others are drawn in


class Thrower(Dataset[Thrown]):
    """Throws the dice of blocks (first step, steps in all, places), on a CPU, in whatever process.

    Raises:
        UserError: as `Stream`.
    """

    def __init__(self, charset: Charset, frame: Frame, seed: int, settings: StreamSettings) -> None:
        self.settings = settings
        self.files = tuple(font_files(settings.fonts))
        self.glyphs = load_glyphs(self.files, charset.characters)
        drawn = {c for c, n in zip(charset.characters, (self.glyphs.index >= 0).sum(0).tolist(), strict=True) if n}
        if not drawn:
            raise UserError(f"no font draws any of {charset.characters!r}")
        self._sets = sets_of(charset, drawn)
        self._drawn = drawn
        self._charset, self._height, self._seed = charset, frame.height, seed
        self._trimmed = settings.trimmed if frame.trim else 0.0

    def __getitem__(self, block: tuple[int, int, range]) -> Thrown:
        """`BLOCK` steps of pictures at some places of a batch, of one width."""
        first, steps, places = block
        dice = Dice(np.array([self._seed * 2**32 + first], np.uint64))
        width, height = (_pick(weights, dice.throw())[0] for weights in (WIDTHS, HEIGHTS))
        share = _pick(SHARES, dice.throw())[0]
        channels = 3 if dice.chance(COLOURED)[0] else 1
        risen = min(first / max(self.settings.climb * steps, 1), 1.0)
        difficulty = self.settings.easy + (1 - self.settings.easy) * risen
        at = [(step << 20) + place for step in range(first, first + BLOCK) for place in places]
        dice = Dice(np.array([((self._seed + 1) << 52) + key for key in at], np.uint64))
        room = min(width / NARROWEST, share * width / NARROWEST_DRAWN)
        texts, seeds = thrown_texts(dice, self._sets, room)
        texts = with_marks(dice.of(np.arange(len(texts))), texts, self._drawn, room)
        lengths = torch.tensor([len(text) for text in texts])
        size = (round(width * self._height / 32), self._height)
        scale = height / 32 * self._height / 32
        drawn = (round(width * share * scale), round(32 * scale))
        style = throw_style(texts, seeds, drawn, self.glyphs, difficulty)
        cut = dice.chance(self._trimmed)
        own = {
            row: seen((_part_with_text if cut[row] else _resized)(picture, size))
            for row, picture in self._package(dice, texts, seeds, width * share / 32).items()
        }
        pictures = torch.cat([*own.values(), torch.empty(0, 1, size[1], size[0])])
        targets = torch.zeros(len(texts), int(lengths.max()), dtype=torch.long)
        for row, text in zip(targets, texts, strict=True):
            row[: len(text)] = torch.tensor(self._charset.encode(text))
        return Thrown(style, size, drawn, cut, list(own), pictures, targets, lengths, channels)

    def _package(self, dice: Dice, texts: list[str], seeds: list[int], shape: float) -> dict[int, Tensor]:
        """Those pictures (1, 3, H, W) that the `captcha` package draws, by row, `shape` times as wide as high; no text
        that the faces thrown for it cannot show."""
        chosen, own = dice.chance(self.settings.package), dice.chance(PACKAGE_LOOK)
        faces = (dice.throw(3) * len(self.files)).astype(int)
        many, looks = dice.chance(0.4), dice.throw(7)
        found = {}
        for row in np.flatnonzero(chosen).tolist():
            look: dict[str, object] = {}
            if not own[row]:
                u = looks[row].tolist()
                look = {
                    "curves": int(5 * u[0]), "dots": int(80 * u[1]), "rotation": int(45 * u[2]), "warp_x": 0.4 * u[3],
                    "warp_y": 0.3 * u[4], "overlap": 0.4 * u[5], "spaces": u[6],
                    "fonts": tuple(str(self.files[i]) for i in faces[row][: 3 if many[row] else 1]),
                }  # fmt: skip
            request = Request(texts[row], seeds[row], round(PACKAGE_HEIGHT * shape), PACKAGE_HEIGHT)
            try:
                (picture,) = Captcha(make(CaptchaSettings, look)).make([request], [None])
            except UserError:  # a face without one of the characters
                continue
            found[row] = torch.from_numpy(np.array(picture)).permute(2, 0, 1).float()[None] / 255
        return found


class Stream:
    """Batches of rendered text in `charset` at the height of `frame`.

    Raises:
        UserError: a setting that is refused, or fonts that draw none of the charset.
    """

    def __init__(self, charset: Charset, frame: Frame, seed: int, settings: dict[str, object]) -> None:
        if seed >= 4000:
            raise UserError(f"a stream's seed is under 4000, not {seed}")
        self.settings = make(StreamSettings, settings, "stream settings")
        self._thrower = Thrower(charset, frame, seed, self.settings)
        self._drawn: tuple[tuple[int, int, range], list[Batch]] | None = None
        self._ahead: Iterator[tuple[tuple[int, int, range], Thrown]] = iter(())

    def batch(self, step: int, steps: int, places: range, device: torch.device) -> Batch:
        """The pictures of a step at some places of its batch. Those of `BLOCK` steps are of one width and are drawn
        together, which is three times as fast."""
        block = (step // BLOCK * BLOCK, steps, places)
        if self._drawn is None or self._drawn[0] != block:
            whole = _draw(self._thrown(block), self._thrower.glyphs, device)
            parts = zip(*(torch.split(x, len(places)) for x in whole), strict=True)
            self._drawn = (block, [Batch(*part) for part in parts])
        return self._drawn[1][step % BLOCK]

    def _thrown(self, block: tuple[int, int, range]) -> Thrown:
        """What other processes threw ahead, in the order of the steps; or thrown here."""
        if not self.settings.workers:
            return self._thrower[block]
        own, thrown = next(self._ahead, (None, None))
        if thrown is None or own != block:
            first, steps, places = block
            blocks = [(k, steps, places) for k in range(first, max(steps, first + 1), BLOCK)]
            loader: DataLoader[Thrown] = DataLoader(
                self._thrower, batch_size=None, sampler=blocks, num_workers=self.settings.workers, collate_fn=_same,
                worker_init_fn=undisturbed, generator=torch.Generator(),
            )  # fmt: skip
            self._ahead = zip(blocks, fetched(loader), strict=True)
            _, thrown = next(self._ahead)
        return thrown


def _same(thrown: Any) -> Any:
    return thrown


def _draw(thrown: Thrown, glyphs: Glyphs, device: torch.device) -> Batch:
    """The pictures that were thrown, as one batch."""
    size = thrown.size
    drawn = draw(thrown.style, thrown.drawn, glyphs, thrown.channels, device, layout=False).pictures
    pictures = torch.empty(len(drawn), 1, size[1], size[0], device=device)
    cut = torch.from_numpy(thrown.cut).to(device)
    for rows, shown in ((~cut, _resized), (cut, _part_with_text)):
        if rows.any():
            pictures[rows] = seen(shown(drawn[rows], size))
    pictures[thrown.packaged] = thrown.pictures.to(device)
    return Batch(normalised((pictures * 255).round()), thrown.targets.to(device), thrown.lengths.to(device))


def seen(pictures: Tensor) -> Tensor:
    """Pictures (N, C, H, W) of 0 to 1 in the grey (N, 1, H, W) that a reader sees: `recognizer.images.grey_of`."""
    if pictures.shape[1] == 1:
        return pictures
    values = (pictures * 255).round()
    paper = values.flatten(2).median(2).values[:, :, None, None]
    apart = values - paper
    brighter, darker = apart.amax(1), apart.amin(1)
    bright = brighter.clamp_min(0).square().sum((1, 2)) > darker.clamp_max(0).square().sum((1, 2))
    telling = torch.where(bright[:, None, None], brighter, darker)
    other = torch.where(bright[:, None, None], darker, brighter)
    telling = torch.where(other.abs() > 2 * telling.abs() + OTHER_WAY, other, telling)
    luma = torch.tensor(LUMA, device=pictures.device)[:, None, None]
    grey = (1 - COLOUR) * (luma * values).sum(1) + COLOUR * (telling + (luma * paper).sum(1))
    return ((grey + 0.5).clamp(0, 255).floor() / 255)[:, None]


def _part_with_text(pictures: Tensor, size: tuple[int, int]) -> Tensor:
    """The part of each picture (N, C, H, W) in which its text stands, (N, C, h, w) at a size (width, height)."""
    h, w = pictures.shape[2:]
    small = (seen(_resized(pictures, (max(round(w * 32 / h), 1), 32)))[:, 0] * 255).round().byte().cpu().numpy()
    if pictures.is_cuda and len(pictures) > TOGETHER:  # which waits for this; NumPy lets other threads run
        with ThreadPoolExecutor() as pool:
            found = list(pool.map(text_parts, np.split(small, range(TOGETHER, len(small), TOGETHER))))
    else:
        found = [text_parts(small)]
    left, top, right, bottom = (np.concatenate(found) * (w, h, w, h)).T
    left, top = np.floor(left), np.floor(top)
    right, bottom = np.maximum(np.round(right), left + 1), np.maximum(np.round(bottom), top + 1)
    left, top, right, bottom = torch.from_numpy(np.stack([left, top, right, bottom])).to(pictures)
    down, across = _shrinking(top, bottom, h, size[1]), _shrinking(left, right, w, size[0])
    return (down[:, None] @ pictures @ across.mT[:, None]).clamp(0, 1)


def _shrinking(first: Tensor, last: Tensor, n: int, size: int) -> Tensor:
    """Matrices (N, size, n) that resize the pixels `first` to `last` (N,) of n to `size`, as `F.interpolate` does with
    "bilinear" and antialiasing."""
    first, last = first[:, None, None], last[:, None, None]
    scale = (last - first) / size
    at = torch.arange(n, device=first.device) + 0.5
    centre = first + scale * (torch.arange(size, device=first.device) + 0.5)[:, None]
    weight = (1 - (at - centre).abs() / scale.clamp_min(1)).clamp_min(0) * ((at > first) & (at < last))
    return weight / weight.sum(2, keepdim=True)


def _resized(pictures: Tensor, size: tuple[int, int]) -> Tensor:
    """Pictures (N, C, H, W) at a size (width, height), as `Frame.fit` resizes."""
    width, height = size
    if pictures.shape[2:] == (height, width):
        return pictures
    return F.interpolate(pictures, (height, width), mode="bilinear", antialias=True).clamp(0, 1)


Sets = list[tuple[list[str], float]]


def sets_of(charset: Charset, drawn: Set[str]) -> Sets:
    """Which characters texts are drawn from, and how often."""
    return [
        ([c for c in NAMED[name] if c in drawn], share)
        for name, share in SETS.items()
        if set(NAMED[name]) <= set(charset.characters)
    ] or [(sorted(drawn), 1.0)]


def thrown_texts(dice: Dice, sets: Sets, room: float) -> tuple[list[str], list[int]]:
    """A text of at most `room` characters and a seed for each key of the dice."""
    chosen = [sets[i][0] for i in _pick({i: share for i, (_, share) in enumerate(sets)}, dice.throw())]
    lengths = _pick({n: weight for n, weight in LENGTHS.items() if n <= room}, dice.throw())
    drawn = dice.throw(max(LENGTHS))
    texts = [
        "".join(own[int(u * len(own))] for u in row[:n]) for own, n, row in zip(chosen, lengths, drawn, strict=True)
    ]
    return texts, (dice.throw() * 2**53).astype(int).tolist()


def with_marks(dice: Dice, texts: list[str], drawn: Set[str], room: float) -> list[str]:
    """Texts of which some became amounts, or codes with marks in them, of at most `room` characters, all `drawn`."""
    chosen, thrown = dice.chance(MARKED), dice.throw(16)
    found = list(texts)
    for row in np.flatnonzero(chosen).tolist() if drawn & set(MARKS) else []:
        kind, *u = thrown[row].tolist()
        text = _amount(u) if kind < 0.5 else _divided(texts[row], u) if kind < 0.9 else _signed(texts[row], u)
        if len(text) <= min(room, max(LENGTHS)) and drawn >= set(text):
            found[row] = text
    return found


def _amount(u: list[float]) -> str:
    """An amount of money, of 14 numbers in [0, 1)."""
    whole = "".join(DIGITS[int(10 * x)] for x in u[: 1 + int(5 * u[5])]).lstrip("0") or "0"
    thousands, point = [(",", "."), (".", ","), ("", "."), ("", ","), ("", "-")][int(5 * u[6])]
    if len(whole) > 3:
        whole = whole[:-3] + thousands + whole[-3:]
    cents = "".join(DIGITS[int(10 * x)] for x in u[7:9])
    text = whole + point + cents if u[9] < 0.8 else whole
    currency = "$€£"[int(3 * u[10])]
    return currency + text if u[11] < 0.25 else text + currency if u[11] < 0.35 else text


def _divided(text: str, u: list[float]) -> str:
    """A text with a mark at one or two places."""
    mark = "---//.:"[int(7 * u[0])]
    for x in u[1 : 2 if u[3] < 0.6 else 3]:
        at = 1 + int(x * (len(text) - 1))
        text = text[:at] + mark + text[at:] if len(text) > 1 and mark not in text[at - 1 : at + 1] else text
    return text


def _signed(text: str, u: list[float]) -> str:
    """A text with a mark before or behind it."""
    mark = "#+-%%"[int(5 * u[0])]
    return text + mark if mark == "%" else mark + text


class Canvases:
    """Rendered text with its layouts, in colour, to pretrain generators on: no picture twice."""

    WIDTH, DIFFICULTY = 96, 0.5

    def __init__(self, charset: Charset, seed: int, fonts: tuple[str, ...] = ()) -> None:
        self._charset, self._seed = charset, seed
        self._render = Render(make(RenderSettings, {"fonts": fonts}))
        self._sets = sets_of(charset, set(charset.characters))
        canvas, texts, borders = self._draw(0, 0, 500, torch.device("cpu"))
        self.spacing = Spacing.of(texts, borders, self.WIDTH)
        self.known = Known.of(texts, [(canvas.pictures.shape[3], HEIGHT)])

    def batch(self, step: int, draw: int, size: int, device: torch.device) -> Canvas:
        return self._draw(step, draw + 1, size, device)[0]

    def kept(self, device: torch.device) -> Canvas:
        return self._draw(0, 0, 500, device)[0]

    def _draw(
        self, step: int, draw: int, size: int, device: torch.device
    ) -> tuple[Canvas, list[str], list[NDArray[np.float64]]]:
        first = ((self._seed + 2) << 52) + (step << 24) + (draw << 16)
        keys = np.arange(first, first + size, dtype=np.uint64)
        texts, seeds = thrown_texts(Dice(keys), self._sets, self.WIDTH / NARROWEST)
        drawn = self._render.draw(texts, seeds, (self.WIDTH, HEIGHT), 3, device, self.DIFFICULTY)
        boxes = drawn.boxes.cpu().numpy()
        borders = [borders_of_boxes(own[: len(text)]) for own, text in zip(boxes, texts, strict=True)]
        ids = [self._charset.encode(text) for text in texts]
        parts = (drawn.pictures * 2 - 1, *columns(borders, ids, self.WIDTH), *padded(ids))
        return Canvas(*(part.to(device) for part in parts)), texts, borders


def _pick(weights: Mapping[K, float], u: NDArray[np.float64]) -> list[K]:
    """For each number in [0, 1) one of the keys, as often as its weight says."""
    edges = np.cumsum(list(weights.values()))
    return [list(weights)[i] for i in np.searchsorted(edges / edges[-1], u, side="right").tolist()]
