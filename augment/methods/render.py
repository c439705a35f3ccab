"""Rendered text: many fonts, many looks, drawn by the batch on a CPU or a GPU, each picture from its own seed.

Every picture has a style of its own, thrown from wide distributions that copy no scheme. A style is thrown as two
tables of numbers, one a picture and one a character (`throw_style`); drawing is torch alone (`draw`): glyphs are sampled
from distance fields at coordinates that are bent first, so that strokes stay sharp, and the nearest outline is shaded
once a pixel. Where each character stands is given with every picture.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import ClassVar, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from pydantic import Field
from torch import Tensor
from torch.nn import functional as F

from augment.glyphs import REACH, Glyphs, font_files, load_glyphs
from augment.method import Request
from augment.weather import weather
from recognizer.charset import NAMED
from recognizer.errors import UserError
from recognizer.settings import Settings

LONGEST = 32  # characters of a text
LUMA = (0.299, 0.587, 0.114)  # what Pillow weighs red, green and blue with
Floats = NDArray[np.float64]


class RenderSettings(Settings):
    """Which fonts, and how far from clean print the looks go."""

    fonts: tuple[str, ...] = ()  # files, or folders of them; none is the ten of this package
    difficulty: float = Field(1.0, ge=0, le=1)  # scales how often, and how far, pictures are distorted


class Drawn(NamedTuple):
    """Pictures (N, C, H, W), 0 to 1, and where each character stands: `boxes` (N, L, 4) in pixels, left, top, right and
    bottom of its ink; nan beyond a text's end."""

    pictures: Tensor
    boxes: Tensor


class Render:
    """Draws any text of its fonts' characters, up to `LONGEST` of them."""

    Settings: ClassVar[type[Settings]] = RenderSettings
    needs_source: ClassVar[bool] = False
    exact_text: ClassVar[bool] = True

    def __init__(self, settings: RenderSettings) -> None:
        self.settings = settings
        self._files = tuple(font_files(settings.fonts))

    def make(self, requests: Sequence[Request], sources: Sequence[Image.Image | None]) -> list[Image.Image]:
        """One RGB picture for each request; `sources` is not used.

        Raises:
            UserError: a text that is too long, or with a character that no font draws.
        """
        pictures: dict[int, Image.Image] = {}
        for size in dict.fromkeys((r.width, r.height) for r in requests):
            own = [i for i, r in enumerate(requests) if (r.width, r.height) == size]
            drawn = self.draw([requests[i].text for i in own], [requests[i].seed for i in own], size)
            for i, picture in zip(own, (drawn.pictures * 255).round().to(torch.uint8), strict=True):
                pictures[i] = Image.fromarray(picture.permute(1, 2, 0).numpy())
        return [pictures[i] for i in range(len(requests))]

    def draw(
        self,
        texts: Sequence[str],
        seeds: Sequence[int],
        size: tuple[int, int],
        channels: int = 3,
        device: torch.device | str = "cpu",
        difficulty: float | None = None,
    ) -> Drawn:
        """Pictures of `texts`, each from its own seed, of one `size` (width, height); grey ones with one channel.

        `difficulty` stands in for that of the settings.

        Raises:
            UserError: as `make`.
        """
        known = "".join(sorted({*NAMED["letters+digits"], *"".join(texts)}))
        glyphs = load_glyphs(self._files, known)
        difficulty = self.settings.difficulty if difficulty is None else difficulty
        style = throw_style(texts, seeds, size, glyphs, difficulty)
        return draw(style, size, glyphs, channels, torch.device(device))


# ------------------------------------------------------------------------------------------------------------- style


class Dice:
    """Numbers in [0, 1) that follow from a picture's key and the order of the throws, whatever else is in the batch.

    SplitMix64 (Steele, Lea and Flood 2014) on counters: the place of a number is known beforehand, so that a batch is
    thrown at once and a text's length changes nothing for its other numbers.
    """

    def __init__(self, keys: NDArray[np.uint64]) -> None:
        self._keys, self._throws = keys, 0

    def throw(self, each: int = 0) -> Floats:
        """One number a picture (N,), or `each` of them, up to 64 (N, each)."""
        self._throws += 1
        counter = np.arange(max(each, 1), dtype=np.uint64) + np.uint64(self._throws * 64)
        with np.errstate(over="ignore"):
            mixed = _mixed(self._keys[:, None] + counter * np.uint64(0x9E3779B97F4A7C15))
        numbers = (mixed >> np.uint64(11)) * 2.0**-53
        return numbers if each else numbers[:, 0]

    def within(self, low: float | Floats, high: float | Floats, each: int = 0) -> Floats:
        return low + (high - low) * self.throw(each)

    def chance(self, p: float | Floats, each: int = 0) -> NDArray[np.bool_]:
        return self.throw(each) < p

    def sometimes(self, p: float | Floats, low: float, high: float) -> Floats:
        """0, or with the chance `p` a number within bounds."""
        return np.where(self.chance(p), self.within(low, high), 0.0)

    def bell(self) -> Floats:
        """About normal with deviation 1, never beyond 3.5: the sum of four."""
        return (self.throw(4).sum(1) - 2) * math.sqrt(3)


def _mixed(x: NDArray[np.uint64]) -> NDArray[np.uint64]:
    x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return x ^ (x >> np.uint64(31))


def keys_of(texts: Sequence[str], seeds: Sequence[int]) -> NDArray[np.uint64]:
    """A key for each picture (N,): a text's length and characters, and its seed, mixed."""
    keys = np.array([seed % 2**64 for seed in seeds], np.uint64)
    points = np.zeros((len(texts), max(map(len, texts), default=0)), np.uint64)
    for i, text in enumerate(texts):
        points[i, : len(text)] = np.frombuffer(text.encode("utf-32-le"), np.uint32)
    with np.errstate(over="ignore"):
        for column in points.T:
            keys = np.where(column > 0, _mixed(keys * np.uint64(0x9E3779B97F4A7C15) + column), keys)
        return _mixed(keys + np.uint64(1))


@dataclass(frozen=True)
class Style:
    """All that is thrown for N pictures, by name: numbers a picture (N,), a character (N, L) and a line (N, 2 * LINES),
    those under the text first; and the glyphs (N, L), -1 beyond a text's end."""

    picture: dict[str, Floats]
    character: dict[str, Floats]
    line: dict[str, Floats]
    glyphs: NDArray[np.int64]


LINES = 20  # at most, on one side of the text


def throw_style(
    texts: Sequence[str], seeds: Sequence[int], size: tuple[int, int], glyphs: Glyphs, difficulty: float
) -> Style:
    """The styles of pictures of `texts`.

    Raises:
        UserError: a text that is empty or too long, or with a character that no font draws.
    """
    if wrong := [t for t in texts if not 1 <= len(t) <= LONGEST]:
        raise UserError(f"{wrong[0]!r} has {len(wrong[0])} characters: a picture shows 1 to {LONGEST}")
    lengths = np.array([len(t) for t in texts])
    dice = Dice(keys_of(texts, seeds))
    held = np.arange(lengths.max()) < lengths[:, None]
    wild = difficulty * dice.within(0.15, 1.0)  # a picture is calm or wild as a whole
    chosen = _choose_glyphs(texts, glyphs, dice, held)
    c = _place(dice, chosen, glyphs, held, size, wild)
    c["thick"] = glyphs.thick[chosen]
    thinnest = np.where(held, c["thick"] * c["cap"] * np.minimum(c["aspect"], 1), np.inf).min(1)
    p = _throw_ink(c, dice, thinnest, size[1], wild)
    p |= _throw_disturbance(p, dice, size, wild)
    return Style(p, c, _throw_lines(p, dice, size, wild), chosen)


def _choose_glyphs(texts: Sequence[str], glyphs: Glyphs, dice: Dice, held: NDArray[np.bool_]) -> NDArray[np.int64]:
    """A glyph for each character (N, L): all of one font, or in a quarter of the pictures each of its own."""
    place = {character: i for i, character in enumerate(glyphs.characters)}
    columns = np.array([[place[c] for c in t] + [0] * (held.shape[1] - len(t)) for t in texts])
    has = glyphs.index >= 0
    count = has.sum(0)  # fonts that draw each character
    if not count[columns[held]].all():
        i, j = np.argwhere(held & (count[columns] == 0))[0]
        raise UserError(f"{texts[i]!r}: no font draws {texts[i][j]!r}; set fonts to a file that does")
    able = np.argsort(~has, axis=0, kind="stable")  # (F, C): those that draw it come first
    each = able[(dice.throw(held.shape[1]) * count[columns]).astype(int), columns]
    # one font for all: the first of eight throws that draws every character
    tried = (dice.throw(8) * len(has)).astype(int)
    fits = (has[tried[:, :, None], columns[:, None]] | ~held[:, None]).all(2)
    one = tried[np.arange(len(texts)), fits.argmax(1)]
    mixed = dice.chance(0.25) | ~fits.any(1)
    fonts = np.where(mixed[:, None], each, one[:, None])
    return np.where(held, glyphs.index[fonts, columns], -1)


def _place(
    dice: Dice, chosen: NDArray[np.int64], glyphs: Glyphs, held: NDArray[np.bool_], size: tuple[int, int], d: Floats
) -> dict[str, Floats]:
    """Where each glyph's centre stands (`x`, `y`), its size (`cap`, pixels), aspect, rotation, shear and twist."""
    width, height = size
    n_held, longest = held.sum(1), held.shape[1]

    def wobble(often: float, most: float) -> Floats:
        """A number a character, within a bound of the picture's own that is often 0."""
        bound = dice.sometimes(often * d, 0.0, most)
        return bound[:, None] * dice.within(-1, 1, longest)

    cap = height * dice.within(0.38, 0.80)[:, None] * (1 + wobble(0.5, 0.25))
    drawn_out = np.where(dice.chance(0.25), dice.within(1.0, 1.5), 1.0)  # as narrow pictures are, for a reader
    aspect = (dice.within(0.72, 1.35) * drawn_out)[:, None] * (1 + wobble(0.3, 0.2))
    turn = np.radians(wobble(0.6, 38.0)) + np.where(dice.chance(0.3 * d), dice.within(-0.12, 0.12), 0)[:, None]
    shear = np.where(dice.chance(0.4 * d), 0.22 * dice.bell(), 0)[:, None] + wobble(0.3, 0.35)
    twist = wobble(0.35, 0.3)
    reach_x = np.abs(np.cos(turn)) * glyphs.half[chosen, 0] * aspect + np.abs(np.sin(turn)) * glyphs.half[chosen, 1]
    advance = glyphs.advance[chosen] * aspect
    # the pen's advance where letters stand upright, or the ink's own width where they touch or turn
    tight = dice.within(0, 1)[:, None]
    advance = (1 - tight) * np.maximum(advance, 0.3) + tight * (2 * reach_x + 0.12)
    gap = np.where(dice.chance(0.25 * d), dice.within(-0.28, 0.0), 0.6 * dice.throw() ** 1.5 - 0.03)
    gap = gap[:, None] + wobble(0.4, 0.15)
    step = np.where(held, np.maximum(advance + gap, 0.25 * advance) * cap, 0.0)
    total = step.sum(1)
    room = width * dice.within(0.80, 0.99)
    squeeze = np.minimum(1.0, room / np.maximum(total, 1e-6))[:, None]
    stretch = np.where(dice.chance(0.35), np.maximum(room / np.maximum(total, 1e-6), 1.0) ** dice.throw(), 1.0)[:, None]
    step = step * squeeze * stretch
    aspect = aspect * squeeze**0.7 * np.where(dice.chance(0.3)[:, None], stretch**0.5, 1.0)
    cap = cap * squeeze**0.3
    total = step.sum(1)
    free = np.maximum(width - total, 0.0)
    side = np.where(dice.chance(0.4), 0.5, dice.throw())
    left = free * (0.04 + 0.92 * side)
    x = left[:, None] + np.cumsum(step, 1) - step / 2
    in_cells = dice.chance(0.2)[:, None]
    cells = (np.arange(held.shape[1]) + 0.5) / n_held[:, None]
    x = np.where(in_cells, left[:, None] + total[:, None] * cells, x)
    # ink's height after turning bounds how far a character may rise or fall
    tall = (np.abs(np.cos(turn)) * glyphs.half[chosen, 1] + np.abs(np.sin(turn)) * glyphs.half[chosen, 0]) * cap
    slack = np.maximum(height / 2 - tall, 0.06 * height)
    level = dice.sometimes(0.5, -0.9, 0.9)[:, None] * slack.min(1, where=held, initial=height)[:, None]
    rise = wobble(0.55, 1.0) * np.maximum(slack - np.abs(level), 0.0)
    phase = 2 * np.pi * (dice.throw()[:, None] + dice.within(0.3, 2.0)[:, None] * x / width)
    wave = dice.sometimes(0.15 * d, 0.0, 0.6)[:, None] * np.maximum(slack - np.abs(level), 0.0) * np.sin(phase)
    on_line = glyphs.middle[chosen, 1] * cap
    on_line = np.where(np.abs(on_line) > slack, np.sign(on_line) * slack, on_line)  # descenders stay inside
    y = height / 2 + on_line + level + rise + wave
    y = np.clip(y, tall * 0.85, height - tall * 0.85)
    return {"x": x, "y": y, "cap": cap, "aspect": aspect, "turn": turn, "shear": shear, "twist": twist}


def _throw_ink(c: dict[str, Floats], dice: Dice, thinnest: Floats, height: int, d: Floats) -> dict[str, Floats]:
    """Paper and ink: grey levels, colours, and how a stroke is drawn. Those of each character go into `c`.

    `thinnest` is half the thickness of the text's thinnest glyph, in pixels (N,).
    """
    p: dict[str, Floats] = {}
    longest = c["x"].shape[1]
    kind = dice.throw()
    paper = np.where(kind < 0.72, dice.within(0.72, 1.0), np.where(kind < 0.86, dice.within(0.35, 0.72),
                                                                   dice.within(0.0, 0.3)))  # fmt: skip
    paper = np.where(dice.chance(0.25), np.round(paper), paper)  # plain white or black
    least = 0.3 - 0.14 * d
    up, down = 1 - paper, paper
    darker = np.where(np.minimum(up, down) > 0.4, dice.chance(0.6), down > up)
    room = np.where(darker, down, up)
    strength = np.maximum(least, room * dice.within(0.25, 1.0) ** 0.8)
    strength = np.where(dice.chance(0.25), room, strength)  # plain black or white
    p["paper"], p["darker"] = paper, darker.astype(float)
    sign = np.where(darker, -1.0, 1.0)
    many = dice.chance(0.35)[:, None]
    spread = np.where(many, dice.within(0.0, 1.0)[:, None] * dice.within(-1, 1, longest), 0.0)
    own = np.clip(strength[:, None] * (1 + 0.6 * spread), np.minimum(least, room)[:, None], room[:, None])
    c["ink"] = np.clip(paper[:, None] + sign[:, None] * own, 0, 1)
    p["ink"] = np.clip(paper + sign * np.minimum(strength, room), 0, 1)
    p["fade"] = dice.sometimes(0.12 * d, -0.3, 0.3)  # ink changes along the picture
    hue, colour = dice.throw(), dice.sometimes(0.75, 0.1, 1.0)
    c["hue"] = np.where(many & dice.chance(0.7)[:, None], dice.throw(longest), hue[:, None])
    c["colour"] = np.broadcast_to(colour[:, None], c["hue"].shape)
    p["hue"], p["colour"] = hue, colour
    p["paper_hue"], p["paper_colour"] = dice.throw(), dice.sometimes(0.4, 0.0, 0.6)

    scale = height / 32
    hollow = dice.chance(0.14 * d)
    p["weight"] = np.where(dice.chance(0.6), 0.035 * dice.bell(), 0.0)  # cap heights that strokes gain on each side
    p["hollow"] = np.where(hollow, dice.within(0.7, 2.0) * scale, 0.0)  # width of the outline that is left
    p["rim"] = np.where(~hollow, dice.sometimes(0.08, 0.8, 2.0), 0.0) * scale  # an outline of another grey
    p["rim_ink"] = dice.throw()
    p["filled"] = np.where(hollow, dice.sometimes(0.3, 0.1, 0.5), 1.0)  # how much ink is within a hollow letter
    p["soft"] = np.where(dice.chance(0.2 * d), dice.within(1.0, 2.5), 1.0) * np.maximum(scale**0.5, 1.0)
    p["shadow"] = dice.sometimes(0.09 * d, 0.25, 0.8)
    p["shadow_x"], p["shadow_y"] = dice.within(-3, 3) * scale, dice.within(-2, 3) * scale
    p["rough"] = dice.sometimes(0.14 * d, 0.2, 0.8) * (thinnest + 0.3)  # pixels by which outlines fray
    p["worn"] = dice.sometimes(0.12 * d, 0.05, 0.35)  # share of the ink that is missing, in spots
    p["hatched"] = dice.sometimes(0.04 * d, 0.3, 0.9)
    p["over"] = dice.chance(0.5).astype(float)  # a later character covers an earlier one, or their inks run together
    return p


def _throw_disturbance(ink: dict[str, Floats], dice: Dice, size: tuple[int, int], d: Floats) -> dict[str, Floats]:
    """How coordinates are bent, what lies behind the text, and what happens to the picture."""
    p: dict[str, Floats] = {}
    height = size[1]
    scale = height / 32
    for name in ("wave_x", "wave_y"):  # waves that shift columns up and down, rows left and right, and diagonals
        p[name] = dice.sometimes(0.38 * d, 0.3, 3.2) * scale
        length = dice.within(14, 90) * scale
        angle = np.where(dice.chance(0.6), 0.0 if name == "wave_y" else np.pi / 2, dice.within(0, np.pi))
        p[name + "_kx"], p[name + "_ky"] = np.cos(angle) / length, np.sin(angle) / length
        p[name + "_phase"] = dice.throw()
    p["bend"] = dice.sometimes(0.4 * d, 0.2, 1.6) * scale
    p["bend_at"] = np.floor(dice.throw() * _BANK**2)
    p["swing"] = dice.sometimes(0.15 * d, -0.10, 0.10)  # the whole text's slope

    p["gradient"] = dice.sometimes(0.22 * d, -0.4, 0.4)
    p["gradient_turn"] = dice.within(0, 2 * np.pi)
    p["cloud"] = dice.sometimes(0.28 * d, 0.05, 0.3) * np.abs(ink["ink"] - ink["paper"])
    p["cloud_at"], p["cloud_fine"] = np.floor(dice.throw() * _BANK**2), dice.chance(0.5).astype(float)
    p["stripes"] = dice.sometimes(0.10 * d, 0.03, 0.25)
    p["stripes_turn"] = np.where(dice.chance(0.6), np.round(dice.within(0, 2)) * np.pi / 2, dice.within(0, np.pi))
    p["stripes_length"] = dice.within(3, 14) * scale
    p["stripes_sharp"] = dice.within(0.6, 6)
    p["stripes_cross"] = dice.chance(0.4).astype(float)
    p["blocks"] = dice.sometimes(0.04 * d, 0.05, 0.3)

    p["dots"] = dice.sometimes(0.32 * d, 0.004, 0.09)
    p["dots_at"], p["dots_large"] = np.floor(dice.throw() * _BANK**2), dice.chance(0.4).astype(float)
    p["dots_grey"] = np.where(dice.chance(0.5), ink["ink"], dice.throw())
    p["holes"] = dice.sometimes(0.12 * d, 0.01, 0.08)  # dots of paper
    p["holes_at"] = np.floor(dice.throw() * _BANK**2)

    p["blur"] = dice.sometimes(0.35 * d, 0.25, 1.25) * scale
    p["coarse"] = np.where(dice.chance(0.16 * d), 1 + np.floor(dice.within(0, 3)), 0.0)
    p["blocky"] = dice.chance(0.3).astype(float)
    contrast = np.abs(ink["ink"] - ink["paper"])
    p["grain"] = dice.sometimes(0.45 * d, 0.02, 0.3) * contrast
    p["grain_at"] = np.floor(dice.throw() * _BANK**2)
    p["levels"] = np.where(dice.chance(0.10 * d), np.floor(dice.within(3, 17)), 0.0)
    p["dither"] = dice.chance(0.5).astype(float)
    p["jpeg"] = np.where(dice.chance(0.35 * d), dice.within(12, 85), 0.0)
    return p


def _throw_lines(p: dict[str, Floats], dice: Dice, size: tuple[int, int], d: Floats) -> dict[str, Floats]:
    """Lines across the picture, short strokes and rings, under the text and above it, all of one kind in a picture."""
    width, height = size
    scale = height / 32
    layers = []
    for often in (0.30, 0.34):
        kind = dice.throw()[:, None]
        crossing, ring = kind < 0.6, kind > 0.95
        number = np.floor(np.where(dice.chance(0.7), dice.within(1, 5), dice.within(5, LINES + 1)))
        number = np.where(crossing[:, 0] | ring[:, 0], np.minimum(number, 4 + number // 5), number)
        number = np.where(dice.chance(often * d), number, 0.0)
        same, erased = dice.chance(0.45), dice.chance(0.12)
        grey = np.where(same, p["ink"], np.where(erased, p["paper"], dice.throw()))
        hue = np.where(same, p["hue"], dice.throw())
        colour = np.where(same, p["colour"], dice.throw())
        mixed = np.where(same | erased, 0.0, dice.sometimes(0.4, 0.1, 0.5))[:, None]
        wide = np.where(dice.chance(0.15), dice.within(2.0, 3.6), dice.within(0.6, 2.0)) * scale
        turn = np.where(crossing, dice.within(-0.5, 0.5, LINES), dice.within(-np.pi / 2, np.pi / 2, LINES))
        reach = np.where(crossing, dice.within(0.3, 1.2, LINES) * width, dice.within(4, 26, LINES) * scale)
        rise = np.where(crossing & dice.chance(0.5, LINES), dice.within(0, 0.28, LINES) * height, 0.0)
        length = np.where(crossing, dice.within(0.25, 1.45, LINES) * width, 20 * scale)
        layers.append({
            "drawn": (np.arange(LINES) < number[:, None]) * np.where(crossing, 1.0, np.where(ring, 3.0, 2.0)),
            "x": np.where(crossing, width / 2 + dice.within(-0.25, 0.25, LINES) * width, dice.throw(LINES) * width),
            "y": dice.throw(LINES) * height,
            "cos": np.cos(turn), "sin": np.sin(turn),
            "half": np.where(ring, 2 * scale + reach / 5, reach / 2),  # half its length, or its radius
            "rise": rise, "turns": 2 * np.pi / length, "phase": 2 * np.pi * dice.throw(LINES),
            "width": wide[:, None] * dice.within(0.7, 1.3, LINES),
            "grey": np.clip(grey[:, None] + mixed * dice.within(-1, 1, LINES), 0, 1),
            "hue": hue[:, None] + np.where(mixed > 0, dice.throw(LINES), 0.0),
            "colour": np.repeat(colour[:, None], LINES, 1),
            "bent": np.repeat(dice.chance(0.4)[:, None], LINES, 1).astype(float),
        })  # fmt: skip
    return {name: np.concatenate([layer[name] for layer in layers], 1) for name in layers[0]}


# ----------------------------------------------------------------------------------------------------------- drawing

_LEVELS = 16000  # of distance that are told apart, to each side of an outline
_BANK = 1024  # side of the fixed fields of noise; a picture takes its own window of them


@lru_cache(maxsize=8)
def noise_bank(kind: str, device: torch.device) -> Tensor:
    """A fixed field of noise that tiles, (2 * _BANK, 2 * _BANK) so that no window runs over its edge: `even` in [0, 1),
    or normal with deviation 1 and smooth over about 3 pixels (`fine`) or 10 (`broad`)."""
    rng = np.random.default_rng(["even", "fine", "broad"].index(kind))
    if kind == "even":
        field = rng.random((_BANK, _BANK))
    else:
        white = np.fft.fft2(rng.standard_normal((_BANK, _BANK)))
        f = np.fft.fftfreq(_BANK)
        smooth = {"fine": 1.5, "broad": 5.0}[kind]
        keep = np.exp(-2 * (np.pi * smooth) ** 2 * (f[:, None] ** 2 + f[None] ** 2))
        field = np.fft.ifft2(white * keep).real
        field = np.round(field / field.std(), 4)
    return torch.from_numpy(np.tile(field, (2, 2)).astype(np.float32)).to(device)


def window(bank: Tensor, at: Tensor, h: int, w: int, zoom: int = 1) -> Tensor:
    """Windows (N, h, w) of a noise bank, each from its own place `at` (N,), enlarged `zoom` times."""
    rows, columns = min(-(-h // zoom), _BANK), min(-(-w // zoom), _BANK)
    start = (at.long() // _BANK) * (2 * _BANK) + at.long() % _BANK
    found = bank.as_strided((2 * _BANK**2, rows, columns), (1, 2 * _BANK, 1))[start]
    if rows * zoom < h or columns * zoom < w:  # a picture larger than the bank sees it again
        found = found.repeat(1, -(-h // (rows * zoom)), -(-w // (columns * zoom)))
    if zoom > 1:
        n, rows, columns = found.shape
        found = found[:, :, None, :, None].expand(-1, -1, zoom, -1, zoom).reshape(n, rows * zoom, columns * zoom)
    return found[:, :h, :w]


def draw(style: Style, size: tuple[int, int], glyphs: Glyphs, channels: int, device: torch.device) -> Drawn:
    """The pictures of styles, of one size (width, height)."""
    width, height = size
    pt = dict(zip(style.picture, _to(device, *style.picture.values()), strict=True))
    ct = dict(zip(style.character, _to(device, *style.character.values()), strict=True))
    lt = dict(zip(style.line, _to(device, *style.line.values()), strict=True))
    shift = _displacement(pt, height, width)
    field, owner = _glyph_fields(style, ct, pt, glyphs, shift)

    def even(at: Tensor) -> Tensor:
        return window(noise_bank("even", device), at, height, width)

    picture = _paper(pt, channels, height, width)
    _draw_lines(picture, {name: values[:, :LINES] for name, values in lt.items()}, shift)
    picture = _shade(picture, field, owner, pt, ct)
    _draw_lines(picture, {name: values[:, LINES:] for name, values in lt.items()}, shift)
    _dots(picture, pt)
    picture = weather(picture.clamp_(0, 1), pt, even)
    return Drawn(picture, _boxes(style, glyphs, shift).to(device))


def _to(device: torch.device, *arrays: Floats) -> Sequence[Tensor]:
    """Arrays of one shape as float32 tensors, in one transfer. Rounded: what a library's sine leaves in the last digit
    must not reach a pixel."""
    return torch.from_numpy(np.stack(arrays).round(5).astype(np.float32)).to(device).unbind()


def _some(*numbers: Tensor) -> Tensor:
    """The places of the pictures for which any of these numbers is not 0."""
    hit = torch.stack([x != 0 for x in numbers]).any(0)
    return hit.nonzero()[:, 0]


def _grid(h: int, w: int, device: torch.device) -> tuple[Tensor, Tensor]:
    """Pixel centres: rows (h, 1) and columns (1, w)."""
    return (
        torch.arange(h, device=device, dtype=torch.float32)[:, None] + 0.5,
        torch.arange(w, device=device, dtype=torch.float32)[None] + 0.5,
    )


def _displacement(pt: dict[str, Tensor], h: int, w: int) -> Tensor:
    """By how much each pixel's coordinates are shifted before anything is drawn there, (N, 2, h, w): x, y."""
    n, device = len(pt["paper"]), pt["paper"].device
    shift = torch.zeros(n, 2, h, w, device=device)
    y, x = _grid(h, w, device)
    for name, axis in (("wave_x", 0), ("wave_y", 1)):
        if len(some := _some(pt[name])):
            k = {key: pt[f"{name}{key}"][some, None, None] for key in ("", "_kx", "_ky", "_phase")}
            turns = (x * k["_kx"] + y * k["_ky"] + k["_phase"]) * (2 * math.pi)
            shift[some, axis] = k[""] * torch.sin(turns)
    if len(some := _some(pt["bend"])):
        bank = noise_bank("broad", device)
        for axis in (0, 1):
            at = (pt["bend_at"][some] + axis * 131 * _BANK + axis * 77) % _BANK**2
            shift[some, axis] += pt["bend"][some, None, None] * window(bank, at, h, w)
    if len(some := _some(pt["swing"])):
        shift[some, 1] += pt["swing"][some, None, None] * (x - w / 2)
    return shift


def _glyph_fields(
    style: Style, ct: dict[str, Tensor], pt: dict[str, Tensor], glyphs: Glyphs, shift: Tensor
) -> tuple[Tensor, Tensor]:
    """How far inside a glyph each pixel lies, in pixels (N, h, w), and which character's glyph that is (N, h, w).

    Each glyph is sampled in a square patch about its centre. What wins where patches meet is packed into one integer a
    pixel, covering order above distance above place, so that the greatest is the answer, in whatever order they come.
    """
    (n, longest), (h, w), device = style.glyphs.shape, shift.shape[2:], shift.device
    ids = torch.from_numpy(style.glyphs).to(device)
    rows, slots = (ids >= 0).nonzero(as_tuple=True)  # (M,)
    ids = ids[rows, slots]
    numbers = torch.from_numpy(np.column_stack([glyphs.span, glyphs.half]).astype(np.float32)).to(device)[ids]
    span, half_x, half_y = numbers.unbind(1)
    k = {name: ct[name][rows, slots] for name in ("x", "y", "cap", "aspect", "turn", "shear", "twist", "thick")}
    cos, sin, unit = torch.cos(k["turn"]), torch.sin(k["turn"]), 1 / (k["cap"] * span)
    margin = torch.maximum(pt["hollow"] / 2 + 0.6, pt["rim"])
    bent = shift.flatten(1).abs().amax(1)

    # a patch holds the ink as it is turned, with what outlines and bending add
    lean_x = half_x * k["aspect"] * (1 + k["twist"].abs()) + k["shear"].abs() * half_y
    away = torch.maximum(cos.abs() * lean_x + sin.abs() * half_y, sin.abs() * lean_x + cos.abs() * half_y) * k["cap"]
    side = 2 * (away + (margin + bent + pt["soft"])[rows])
    sizes = sorted({-(-h * part // 16) for part in (7, 10, 13, 18, 32)})
    bucket = torch.bucketize(side, torch.tensor(sizes[:-1], device=device, dtype=torch.float32))
    crooked = (bent[rows] > 0) | (k["twist"] != 0)

    # from the picture back to the tile: turn, then shear, then scale
    to_tile = torch.stack([
        (cos - k["shear"] * sin) / k["aspect"] * unit, (sin + k["shear"] * cos) / k["aspect"] * unit,
        -sin * unit, cos * unit, k["twist"] * span,
    ])[:, :, None, None]  # fmt: skip
    # from a tile's 0 to 255 to pixels, and to the levels that are packed. Strokes keep their sharpness where a glyph is
    # squeezed: a distance is measured across them, mostly
    pixels = k["cap"] * k["aspect"].clamp(max=1.0) ** 0.5 * REACH / 127.5
    reach = ct["cap"].amax(1) * (REACH + 0.15) + 4  # no distance in a picture is greater, in pixels
    levels = _LEVELS / reach
    weight = torch.maximum(pt["weight"][rows], 0.02 - k["thick"])  # no stroke is thinned to nothing
    gain = (weight * k["cap"] - 127.5 * pixels) * levels[rows] + _LEVELS
    steps = pixels * levels[rows]
    least = (_LEVELS - margin * levels)[rows].where(pt["over"][rows] > 0, torch.inf)

    tiles, flat = glyphs.tiles.to(device), shift.view(2 * n, h * w)
    pad = sizes[-1]
    wide = w + 2 * pad
    best = torch.zeros(n * (h + 2 * pad) * wide, dtype=torch.int32, device=device)
    for number, size in enumerate(sizes):
        for bends in (False, True):
            some = ((bucket == number) & (crooked == bends)).nonzero()[:, 0]
            if not len(some):
                continue
            row, slot, across = rows[some], slots[some, None, None].int(), torch.arange(size, device=device)
            x, y = k["x"][some, None], k["y"][some, None]
            columns = (x - size / 2).round().long().clamp(-size, w) + across  # (m, size)
            lines = (y - size / 2).round().long().clamp(-size, h) + across
            px, py = (columns + 0.5 - x)[:, None, :], (lines + 0.5 - y)[:, :, None]
            if bends:
                places = (lines.clamp(0, h - 1) * w)[:, :, None] + columns.clamp(0, w - 1)[:, None]
                px = px + flat[2 * row].gather(1, places.flatten(1)).view(places.shape)
                py = py + flat[2 * row + 1].gather(1, places.flatten(1)).view(places.shape)
            a, b, c, d, twist = to_tile[:, some]
            grid = torch.empty(len(some), size, size, 2, device=device)
            tx, ty = grid.unbind(3)
            torch.add(px * c, py * d, out=ty)
            torch.add(px * a, py * b, out=tx)
            if bends:
                tx.addcmul_(tx * twist, ty)
            inside = F.grid_sample(tiles[ids[some]].float()[:, None], grid, "bilinear", "border", align_corners=False)
            level = torch.addcmul(gain[some, None, None], inside[:, 0], steps[some, None, None])
            value = level.clamp_(0, 2 * _LEVELS).to(torch.int32)
            covers = value >= least[some, None, None]
            value = value.mul_(LONGEST).add_(slot).add_(covers * ((slot + 1) << 20))
            into = ((row * (h + 2 * pad))[:, None] + lines + pad)[:, :, None] * wide + (columns + pad)[:, None]
            best.scatter_reduce_(0, into.flatten(), value.flatten(), "amax")
    best = best.view(n, h + 2 * pad, wide)[:, pad : pad + h, pad : pad + w].contiguous()
    found = (((best & (2**20 - 1)) >> 5) - _LEVELS) * (1 / levels)[:, None, None]
    return found, (best & (LONGEST - 1)).long()


def _coloured(grey: Tensor, hue: Tensor, colour: Tensor, channels: int) -> Tensor:
    """Colours (..., C) of a given grey: `colour` 0 to 1 says how far the hue goes that this grey admits."""
    if channels == 1:
        return grey[..., None]
    angle = hue[..., None] * 2 * math.pi + torch.tensor([0.0, 4 * math.pi / 3, 2 * math.pi / 3], device=grey.device)
    rgb = torch.cos(angle)
    rgb = rgb - (rgb * torch.tensor(LUMA, device=grey.device)).sum(-1, keepdim=True)
    up = ((1 - grey[..., None]) / rgb.clamp(min=1e-3)).where(rgb > 0, torch.inf)
    down = (grey[..., None] / (-rgb).clamp(min=1e-3)).where(rgb < 0, torch.inf)
    most = torch.minimum(up, down).amin(-1, keepdim=True)
    return grey[..., None] + rgb * most * colour[..., None]


def _paper(pt: dict[str, Tensor], channels: int, h: int, w: int) -> Tensor:
    """What the text is laid on, (N, C, h, w)."""
    n, device = len(pt["paper"]), pt["paper"].device
    base = _coloured(pt["paper"], pt["paper_hue"], pt["paper_colour"], channels)
    picture = base[:, :, None, None].expand(n, channels, h, w).clone()
    y, x = _grid(h, w, device)
    if len(some := _some(pt["gradient"])):
        turn = pt["gradient_turn"][some, None, None]
        along = torch.cos(turn) * (x / w - 0.5) + torch.sin(turn) * (y / h - 0.5)
        picture[some] += (pt["gradient"][some, None, None] * along)[:, None]
    if len(some := _some(pt["cloud"])):
        at = pt["cloud_at"][some]
        broad, fine = window(noise_bank("broad", device), at, h, w), window(noise_bank("fine", device), at, h, w)
        cloud = torch.where(pt["cloud_fine"][some, None, None] > 0, fine, broad)
        picture[some] += (pt["cloud"][some, None, None] * cloud)[:, None]
    if len(some := _some(pt["stripes"])):
        turn, k = pt["stripes_turn"][some, None, None], 2 * math.pi / pt["stripes_length"][some, None, None]
        sharp = pt["stripes_sharp"][some, None, None]
        one = (torch.sin(k * (torch.cos(turn) * x + torch.sin(turn) * y)) * sharp).clamp(-1, 1)
        other = (torch.sin(k * (torch.cos(turn) * y - torch.sin(turn) * x)) * sharp).clamp(-1, 1)
        woven = torch.where(pt["stripes_cross"][some, None, None] > 0, torch.maximum(one, other), one)
        toward = torch.where(pt["paper"][some] > 0.5, -0.5, 0.5)[:, None, None]
        picture[some] += (pt["stripes"][some, None, None] * toward * (1 + woven))[:, None]
    if len(some := _some(pt["blocks"])):
        patches = window(noise_bank("even", device), pt["cloud_at"][some], h, w, zoom=max(h // 4, 1)) - 0.5
        picture[some] += (pt["blocks"][some, None, None] * patches)[:, None]
    return picture


def _shade(picture: Tensor, field: Tensor, owner: Tensor, pt: dict[str, Tensor], ct: dict[str, Tensor]) -> Tensor:
    """Lay the glyphs onto a picture: shadow, fill or hollow, and rim."""
    n, channels, h, w = picture.shape
    device = picture.device
    if len(some := _some(pt["rough"])):
        field = field.clone()
        frayed = window(noise_bank("fine", device), pt["cloud_at"][some], h, w)
        field[some] += pt["rough"][some, None, None] * frayed

    soft = 1 / pt["soft"][:, None, None]
    cover = (field * soft + 0.5).clamp(0, 1)
    if len(some := _some(pt["hollow"])):
        rim = (((pt["hollow"][some, None, None] / 2 - field[some].abs()) * soft[some]) + 0.5).clamp(0, 1)
        cover[some] = torch.maximum(rim, cover[some] * pt["filled"][some, None, None])
    if len(some := _some(pt["shadow"])):
        dy, dx = pt["shadow_y"][some].round().long(), pt["shadow_x"][some].round().long()
        ys = torch.arange(h, device=device) - dy[:, None]
        xs = torch.arange(w, device=device) - dx[:, None]
        fits = ((ys >= 0) & (ys < h))[:, :, None] & ((xs >= 0) & (xs < w))[:, None]
        cast = cover[some[:, None, None], ys.clamp(0, h - 1)[:, :, None], xs.clamp(0, w - 1)[:, None]] * fits
        dark = torch.where(pt["paper"][some] > 0.3, 0.0, 0.6)[:, None, None, None]
        picture[some] = torch.lerp(picture[some], dark, (cast * pt["shadow"][some, None, None])[:, None])
    if len(some := _some(pt["worn"], pt["hatched"])):
        spots = window(noise_bank("even", device), pt["cloud_at"][some], h, w) >= pt["worn"][some, None, None]
        y, x = _grid(h, w, device)
        lines = (x + y).remainder(4.0) < 2.0
        kept = spots * torch.where(lines, 1.0, 1 - pt["hatched"][some, None, None])
        cover[some] = cover[some] * kept
    if len(some := _some(pt["rim"])):
        edge = (field[some] + pt["rim"][some, None, None] + 0.5).clamp(0, 1)
        grey = pt["rim_ink"][some, None, None, None].expand(-1, channels, -1, -1)
        picture[some] = torch.lerp(picture[some], grey, edge[:, None])

    inks = _coloured(ct["ink"], ct["hue"], ct["colour"], channels)  # (N, L, C)
    flat = owner.view(n, 1, -1).expand(-1, channels, -1)
    ink = inks.transpose(1, 2).gather(2, flat).view(n, channels, h, w)
    if len(some := _some(pt["fade"])):
        x = _grid(h, w, device)[1] / w - 0.5
        ink[some] += (pt["fade"][some, None, None] * x)[:, None]
    return torch.lerp(picture, ink, cover[:, None])


def _draw_lines(picture: Tensor, lt: dict[str, Tensor], shift: Tensor) -> None:
    """Draw lines onto a picture (N, C, h, w): `lt` holds each one's numbers (N, LINES)."""
    _, channels, h, w = picture.shape
    device = picture.device
    colours = _coloured(lt["grey"], lt["hue"], lt["colour"], channels)  # (N, LINES, C)
    y, x = _grid(h, w, device)
    for j in range(int((lt["drawn"] == 1).sum(1).max())):  # those that cross the picture
        some = (lt["drawn"][:, j] == 1).nonzero()[:, 0]
        k = {name: values[some, j, None, None] for name, values in lt.items()}
        bent = k["bent"][:, None] * shift[some]
        dx, dy = x - k["x"] + bent[:, 0], y - k["y"] + bent[:, 1]
        along, across = dx * k["cos"] + dy * k["sin"], dy * k["cos"] - dx * k["sin"]
        across = across - k["rise"] * torch.sin(along * k["turns"] + k["phase"])
        cover = (0.5 - torch.maximum(across.abs() - k["width"] / 2, along.abs() - k["half"])).clamp(0, 1)
        picture[some] = torch.lerp(picture[some], colours[some, j, :, None, None], cover[:, None])

    rows, which = (lt["drawn"] > 1).nonzero(as_tuple=True)  # short strokes and rings, each in a patch of its own
    if not len(rows):
        return
    k = {name: values[rows, which, None, None] for name, values in lt.items()}
    size = math.ceil(32 * h / 32)
    own, packed = rows.unique(return_inverse=True)
    left = (k["x"] - size / 2).round().long()
    top = (k["y"] - size / 2).round().long()
    across = torch.arange(size, device=device)
    columns, lines = left + across, top + across[:, None]  # (m, 1, size), (m, size, 1)
    dx, dy = columns + 0.5 - k["x"], lines + 0.5 - k["y"]
    along, aside = dx * k["cos"] + dy * k["sin"], dy * k["cos"] - dx * k["sin"]
    stroke = torch.maximum(aside.abs() - k["width"] / 2, along.abs() - k["half"])
    ring = (torch.sqrt(dx * dx + dy * dy) - k["half"]).abs() - k["width"] / 2
    cover = (0.5 - torch.where(k["drawn"] > 2, ring, stroke)).clamp(0, 1)
    value = (cover * 255).round().to(torch.int32) * LINES + which[:, None, None].int()
    wide, tall = w + 2 * size, h + 2 * size
    best = torch.zeros(len(own) * tall * wide, dtype=torch.int32, device=device)
    into = (packed[:, None, None] * tall + lines + size) * wide + columns + size
    best.scatter_reduce_(0, into.flatten(), value.flatten(), "amax")
    best = best.view(-1, tall, wide)[:, size : size + h, size : size + w]
    ink = colours[own].transpose(1, 2).gather(2, (best % LINES).long().flatten(1)[:, None].expand(-1, channels, -1))
    cover = (best // LINES).float() / 255
    picture[own] = torch.lerp(picture[own], ink.view(-1, channels, h, w), cover[:, None])


def _dots(picture: Tensor, pt: dict[str, Tensor]) -> None:
    """Dots of ink, and holes of paper."""
    _, _, h, w = picture.shape
    bank = noise_bank("even", picture.device)
    for name, grey in (("dots", "dots_grey"), ("holes", "paper")):
        if len(some := _some(pt[name])):
            share, at = pt[name][some, None, None], pt[name + "_at"][some]
            hit = window(bank, at, h, w) < share
            if name == "dots":
                large = window(bank, at, h, w, zoom=2) < share
                hit = torch.where(pt["dots_large"][some, None, None] > 0, large, hit)
            picture[some] = torch.where(hit[:, None], pt[grey][some, None, None, None], picture[some])


def _boxes(style: Style, glyphs: Glyphs, shift: Tensor) -> Tensor:
    """Where each character's ink stands in the bent picture, (N, L, 4)."""
    height, width = shift.shape[2:]
    c, ids = style.character, style.glyphs
    corners = np.array([[-1, -1], [1, -1], [-1, 1], [1, 1]], float)
    q = glyphs.half[ids][:, :, None] * corners  # (N, L, 4, 2) in cap heights
    qx = (q[..., 0] - c["shear"][..., None] * q[..., 1] / np.maximum(c["aspect"][..., None], 1e-6)) * c["aspect"][
        ..., None
    ]
    qy = q[..., 1]
    cos, sin = np.cos(c["turn"])[..., None], np.sin(c["turn"])[..., None]
    x = c["x"][..., None] + (qx * cos - qy * sin) * c["cap"][..., None]
    y = c["y"][..., None] + (qx * sin + qy * cos) * c["cap"][..., None]
    # a pixel at p shows what was at p + shift(p): find p for the four sides' middles by fixed point
    sides = np.stack([
        np.stack([x.min(2), y.mean(2)], -1), np.stack([x.mean(2), y.min(2)], -1),
        np.stack([x.max(2), y.mean(2)], -1), np.stack([x.mean(2), y.max(2)], -1),
    ], 2)  # (N, L, 4 sides, 2)  # fmt: skip
    bent = shift.cpu().numpy()
    pos = sides.copy()
    picture = np.arange(len(ids))[:, None, None]
    for _ in range(4):
        col = np.clip(np.floor(pos[..., 0]), 0, width - 1).astype(int)
        row = np.clip(np.floor(pos[..., 1]), 0, height - 1).astype(int)
        pos = sides - np.stack([bent[picture, 0, row, col], bent[picture, 1, row, col]], -1)
    boxes = np.stack([pos[..., 0, 0], pos[..., 1, 1], pos[..., 2, 0], pos[..., 3, 1]], -1)
    boxes[ids < 0] = np.nan
    return torch.from_numpy(boxes.astype(np.float32))
