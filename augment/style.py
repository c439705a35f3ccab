"""What a rendered picture looks like, thrown from wide distributions that copy no scheme: tables of numbers by name.

A picture's numbers follow from its text and seed alone. Lengths are pixels, angles radians, greys and shares 0 to 1.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from augment.glyphs import Glyphs
from recognizer.charset import DIGITS
from recognizer.errors import UserError

LONGEST = 32  # characters of a text
# what dice mean, raised where a throw is added, moved or read otherwise: looks that were bred (evolve.py) hold throws
MEANING = 2
IN_CELLS = 0.1  # share of the wildest pictures whose characters stand in windows of their own
LINES = 20  # at most, on one side of the text
BANK = 512  # side of the fixed fields of noise; a picture takes its own window of them, which starts at any place
Floats = NDArray[np.float64]


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
        return np.asarray(numbers if each else numbers[:, 0], np.float64)

    def whole(self, each: int) -> Floats:
        """`throw`, for what a picture has several of as a whole (N, each), not one a character or a line."""
        return self.throw(each)

    def of(self, rows: NDArray[np.int64]) -> Dice:
        """The dice of some of the pictures. Its throws are others than this one's."""
        some = Dice(self._keys[rows])
        some._throws = 2**20 + self._throws
        return some

    def within(self, low: float | Floats, high: float | Floats, each: int = 0) -> Floats:
        return low + (high - low) * self.throw(each)

    def chance(self, p: float | Floats, each: int = 0) -> NDArray[np.bool_]:
        return self.throw(each) < p

    def sometimes(self, p: float | Floats, low: float, high: float) -> Floats:
        """0, or with the chance `p` a number within bounds."""
        return np.where(self.chance(p), self.within(low, high), 0.0)

    def bell(self) -> Floats:
        """About normal with deviation 1, never beyond 3.5: the sum of four."""
        return np.asarray((self.whole(4).sum(1) - 2) * math.sqrt(3))


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
    """All that is thrown for N pictures: numbers a picture (N,) and a character (N, L) by name, lines
    (2, len(LINE), N, LINES), and the glyphs (N, L), -1 beyond a text's end; `beside` (N, L) the glyphs of what shows
    of the next digits on a counter's wheels, -1 where nothing does."""

    picture: dict[str, Floats]
    character: dict[str, Floats]
    lines: Floats
    glyphs: NDArray[np.int64]
    beside: NDArray[np.int64]


def throw_style(
    texts: Sequence[str],
    seeds: Sequence[int],
    size: tuple[int, int],
    glyphs: Glyphs,
    difficulty: float,
    dice: Dice | None = None,
) -> Style:
    """The styles of pictures of `texts`, by `dice` that were made elsewhere or by those of texts and seeds.

    Raises:
        UserError: a text that is empty or too long, or with a character that no font draws.
    """
    if wrong := [t for t in texts if not 1 <= len(t) <= LONGEST]:
        raise UserError(f"{wrong[0]!r} has {len(wrong[0])} characters: a picture shows 1 to {LONGEST}")
    lengths = np.array([len(t) for t in texts])
    dice = dice or Dice(keys_of(texts, seeds))
    held = np.arange(lengths.max()) < lengths[:, None]
    wild = difficulty * dice.within(0.2, 1.0)  # a picture is calm or wild as a whole
    chosen = _choose_glyphs(texts, glyphs, dice, held)
    c = _place(dice, chosen, glyphs, held, size, wild)
    own = dice.of(np.arange(len(texts)))
    p = _throw_cells(c, own, chosen, glyphs, held, size, wild)
    c["thick"] = glyphs.thick[chosen].astype(np.float64)
    thinnest = np.where(held, c["thick"] * c["cap"] * np.minimum(c["aspect"], 1), np.inf).min(1)
    p |= _throw_ink(c, dice, thinnest, size[1], wild)
    p |= _throw_disturbance(p, dice, size, wild)
    lines = _throw_lines(p, dice, size, wild)
    p |= _throw_material(p, dice, size[1], wild)
    p["unlit"] = np.where((glyphs.unlit[chosen] >= 0).any(1, where=held), dice.sometimes(0.6, 0.02, 0.2), 0.0)
    p |= _throw_housing(p, c, own, held, size[1])
    return Style(p, c, lines, chosen, _beside(p, c, chosen, glyphs))


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
    tried = (dice.whole(8) * len(has)).astype(int)
    fits = (has[tried[:, :, None], columns[:, None]] | ~held[:, None]).all(2)
    one = tried[np.arange(len(texts)), fits.argmax(1)]
    mixed = dice.chance(0.25) | ~fits.any(1)
    fonts = np.where(mixed[:, None], each, one[:, None])
    return np.where(held, glyphs.index[fonts, columns], -1)


def _place(
    dice: Dice, chosen: NDArray[np.int64], glyphs: Glyphs, held: NDArray[np.bool_], size: tuple[int, int], d: Floats
) -> dict[str, Floats]:
    """Where each glyph's centre stands (`x`, `y`), its size (`cap`, pixels), aspect, rotation, and how its box is bent
    to another quadrangle: shear and tilt (of its uprights, its levels), twist and keel (opposite sides differ)."""
    width, height = size
    n_held, longest = held.sum(1), held.shape[1]

    def wobble(often: float, most: float) -> Floats:
        """A number a character, within a bound of the picture's own that is often 0."""
        bound = dice.sometimes(often * d, 0.0, most)
        return bound[:, None] * dice.within(-1, 1, longest)

    scattered = dice.of(np.arange(len(d)))
    small = scattered.chance(0.1 * d)  # letters of a picture in which they stand up and down
    cap = np.where(small, scattered.within(0.24, 0.40), dice.within(0.38, 0.80))
    cap = height * cap[:, None] * (1 + wobble(0.5, 0.25))
    drawn_out = np.where(dice.chance(0.25), dice.within(1.0, 1.5), 1.0)  # as narrow pictures are, for a reader
    narrow = np.where(dice.chance(0.3 * d), dice.within(0.55, 1.0), 1.0)
    aspect = (dice.within(0.72, 1.35) * drawn_out * narrow)[:, None] * (1 + wobble(0.4, 0.3))
    bound = dice.sometimes(0.6 * d, 0.0, 38.0)
    bound = np.where(bound > 35, 1.5 * bound, bound)  # a few turn further than anyone would
    turn = (
        np.radians(bound)[:, None] * dice.within(-1, 1, longest)
        + np.where(dice.chance(0.3 * d), dice.within(-0.12, 0.12), 0)[:, None]
    )
    shear = np.where(dice.chance(0.4 * d), 0.22 * dice.bell(), 0)[:, None] + wobble(0.3, 0.35)
    tilt = wobble(0.3, 0.3)
    twist, keel = wobble(0.4, 0.5), wobble(0.35, 0.5)
    reach_x = np.abs(np.cos(turn)) * glyphs.half[chosen, 0] * aspect + np.abs(np.sin(turn)) * glyphs.half[chosen, 1]
    advance = glyphs.advance[chosen] * aspect
    # the pen's advance where letters stand upright, or the ink's own width where they touch or turn
    tight = dice.within(0, 1)[:, None]
    advance = (1 - tight) * np.maximum(advance, 0.3) + tight * (2 * reach_x + 0.12)
    gap = np.where(dice.chance(0.08 + 0.36 * d), dice.within(-0.34, 0.0), 0.6 * dice.throw() ** 1.5 - 0.03)
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
    rise = np.where(small[:, None], scattered.within(-1, 1, longest), wobble(0.55, 1.0))
    rise = rise * np.maximum(slack - np.abs(level), 0.0)
    phase = 2 * np.pi * (dice.throw()[:, None] + dice.within(0.3, 2.0)[:, None] * x / width)
    wave = dice.sometimes(0.15 * d, 0.0, 0.6)[:, None] * np.maximum(slack - np.abs(level), 0.0) * np.sin(phase)
    on_line = glyphs.middle[chosen, 1] * cap
    on_line = np.where(np.abs(on_line) > slack, np.sign(on_line) * slack, on_line)  # descenders stay inside
    y = height / 2 + on_line + level + rise + wave
    y = np.clip(y, tall * 0.85, height - tall * 0.85)
    bent = {"shear": shear, "tilt": tilt, "twist": twist, "keel": keel}
    return {"x": x, "y": y, "cap": cap, "aspect": aspect, "turn": turn, **bent}


def _throw_cells(
    c: dict[str, Floats], dice: Dice, chosen: NDArray[np.int64], glyphs: Glyphs, held: NDArray[np.bool_],
    size: tuple[int, int], d: Floats,
) -> dict[str, Floats]:  # fmt: skip
    """In some pictures each character stands in a window of its own, as on a counter's wheels or a form: how wide and
    high the windows are, and where (`cell_x`, a character). Moves the characters of these there."""
    width, height = size
    longest = held.shape[1]
    some = dice.chance(IN_CELLS * d)
    pitch = np.minimum(width * dice.within(0.75, 0.98) / held.sum(1), height * dice.within(0.5, 1.1))
    left = (width - pitch * held.sum(1)) * dice.within(0.1, 0.9)
    half_x, half_y = pitch / 2 * dice.within(0.75, 1.0), height * dice.within(0.32, 0.48)
    middle = half_y + (height - 2 * half_y) * dice.within(0.2, 0.8)
    c["cell_x"] = left[:, None] + (np.arange(longest) + 0.5) * pitch[:, None]
    cap = (half_y * dice.within(0.8, 1.4))[:, None]
    wide = np.where(held, glyphs.half[chosen, 0] * c["aspect"] * cap, 0.0).max(1)
    aspect = c["aspect"] * np.minimum(1.0, half_x * dice.within(0.6, 0.9) / np.maximum(wide, 1e-6))[:, None]
    rolled = 0.06 * dice.within(-1, 1, longest)
    last = np.arange(longest) == held.sum(1)[:, None] - 1
    rolled = np.where(last & dice.chance(0.5)[:, None], dice.within(-0.8, 0.8)[:, None], rolled)
    rolled = rolled * half_y[:, None]
    inside = {
        "x": c["cell_x"] + 0.1 * half_x[:, None] * dice.within(-1, 1, longest),
        "y": middle[:, None] + glyphs.middle[chosen, 1] * cap + rolled,
        "cap": np.broadcast_to(cap, held.shape), "aspect": aspect,
    }  # fmt: skip
    for name, values in inside.items():
        c[name] = np.where(some[:, None], values, c[name])
    for name in ("turn", "shear", "tilt", "twist", "keel"):
        c[name] = np.where(some[:, None], 0.2, 1.0) * c[name]
    c["rolled"] = np.where(some[:, None], rolled, 0.0)
    return {"cells": some.astype(float), "cell_wide": half_x, "cell_high": half_y, "cell_y": middle}


def _throw_housing(
    p: dict[str, Floats], c: dict[str, Floats], dice: Dice, held: NDArray[np.bool_], height: int
) -> dict[str, Floats]:
    """What windows are cut into, their rims, and the other colour of the last ones. Their own is the paper's."""
    more: dict[str, Floats] = {}
    framed = dice.chance(0.35)  # rims alone
    up = dice.chance(1 - p["paper"])
    far = dice.within(0.12, 0.9) * np.where(up, 1 - p["paper"], -p["paper"])
    more["housing"] = p["paper"] + np.where(framed, 0.0, far)
    more["housing_hue"] = np.where(framed, p["paper_hue"], dice.throw())
    more["housing_colour"] = np.where(framed, p["paper_colour"], dice.sometimes(0.6, 0.1, 0.8))
    more["cell_rim"] = np.where(framed, dice.within(0.6, 1.6), dice.sometimes(0.3, 0.6, 2.0)) * height / 32
    more["cell_rim_grey"] = np.where(framed, p["ink"], dice.throw())
    others = np.where(dice.chance(0.4), 1 + np.floor(dice.within(0, 3)), 0.0)
    c["other"] = (held & (np.arange(held.shape[1]) >= (held.sum(1) - others)[:, None])).astype(float)
    more["other_grey"] = np.clip(p["paper"] + dice.within(-0.15, 0.15), 0, 1)
    more["other_hue"] = np.where(dice.chance(0.6), 0.0, dice.throw())  # red, most often
    more["other_colour"] = dice.within(0.3, 1.0)
    more["wheels"] = dice.chance(0.6).astype(float)
    return more


def _beside(p: dict[str, Floats], c: dict[str, Floats], chosen: NDArray[np.int64], glyphs: Glyphs) -> NDArray[np.int64]:
    """The glyphs (N, L) of the digits that follow on a counter's wheels, below, or come before, above; -1 for none.
    Where these stand goes into `c`."""
    up = c["rolled"] < 0
    c["beside_y"] = c["y"] + np.where(up, 2, -2) * p["cell_high"][:, None]
    beside = np.full(chosen.shape, -1)
    rows, places = np.nonzero((p["cells"] * p["wheels"] > 0)[:, None] & (chosen >= 0))
    if not len(rows) or not set(DIGITS) <= set(glyphs.characters):
        return beside
    columns = np.array([glyphs.characters.index(digit) for digit in DIGITS])
    digit_of, font_of = np.full(len(glyphs.span), -1), np.zeros(len(glyphs.span), int)
    fonts, digits = np.nonzero(glyphs.index[:, columns] >= 0)
    own = glyphs.index[fonts, columns[digits]]
    digit_of[own], font_of[own] = digits, fonts
    shown = chosen[rows, places]
    following = (digit_of[shown] + np.where(up[rows, places], 1, -1)) % 10
    found = glyphs.index[font_of[shown], columns[following]]
    beside[rows, places] = np.where(digit_of[shown] >= 0, found, -1)
    return beside


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
    least = 0.30 - 0.16 * d
    up, down = 1 - paper, paper
    darker = np.where(np.minimum(up, down) > 0.4, dice.chance(0.6), down > up)
    room = np.where(darker, down, up)
    strength = np.maximum(least, room * dice.within(0.25, 1.0) ** 0.8)
    strength = np.where(dice.chance(0.35), room, strength)  # plain black or white
    p["paper"], p["darker"] = paper, darker.astype(float)
    sign = np.where(darker, -1.0, 1.0)
    many = dice.chance(0.4)[:, None]
    p["many"] = many[:, 0].astype(float)  # inks
    spread = np.where(many, dice.within(0.0, 1.0)[:, None] * dice.within(-1, 1, longest), 0.0)
    own = strength[:, None] * (1 + 0.6 * spread)
    apart = many & dice.chance(0.5)[:, None]  # each character as strong as it may
    own = np.where(apart, dice.within(least[:, None], room[:, None], longest), own)
    own = np.clip(own, np.minimum(least, room)[:, None], room[:, None])
    c["ink"] = np.clip(paper[:, None] + sign[:, None] * own, 0, 1)
    p["ink"] = np.clip(paper + sign * np.minimum(strength, room), 0, 1)
    p["fade"] = dice.sometimes(0.12 * d, -0.3, 0.3)  # ink changes along the picture
    hue, colour = dice.throw(), dice.sometimes(0.75, 0.1, 1.0)
    c["hue"] = np.where(many & dice.chance(0.7)[:, None], dice.throw(longest), hue[:, None])
    c["colour"] = np.broadcast_to(colour[:, None], c["hue"].shape)
    p["hue"], p["colour"] = hue, colour
    p["paper_hue"], p["paper_colour"] = dice.throw(), dice.sometimes(0.4, 0.0, 0.6)

    scale = height / 32
    hollow = dice.chance(0.34 * d)
    p["weight"] = np.where(dice.chance(0.6), 0.035 * dice.bell(), 0.0)  # cap heights that strokes gain on each side
    p["hollow"] = np.where(hollow, dice.within(0.45, 1.9) * scale, 0.0)  # width of the outline that is left
    p["rim"] = np.where(~hollow, dice.sometimes(0.08, 0.8, 2.0), 0.0) * scale  # an outline of another grey
    p["rim_ink"] = dice.throw()
    p["filled"] = np.where(hollow, dice.sometimes(0.3, 0.1, 0.5), 1.0)  # how much ink is within a hollow letter
    p["soft"] = np.where(dice.chance(0.2 * d), dice.within(1.0, 2.5), 1.0) * np.maximum(scale**0.5, 1.0)
    p["shadow"] = dice.sometimes(0.09 * d, 0.25, 0.8)
    p["shadow_x"], p["shadow_y"] = dice.within(-3, 3) * scale, dice.within(-2, 3) * scale
    p["rough"] = dice.sometimes(0.14 * d, 0.2, 0.8) * (thinnest + 0.3)  # pixels by which outlines fray
    p["worn"] = dice.sometimes(0.10 * d, 0.05, 0.3)  # share of the ink that is missing, in spots
    p["hatched"] = dice.sometimes(0.04 * d, 0.3, 0.9)
    p["over"] = dice.chance(0.5).astype(float)  # a later character covers an earlier one, or their inks run together
    return p


def _throw_disturbance(ink: dict[str, Floats], dice: Dice, size: tuple[int, int], d: Floats) -> dict[str, Floats]:
    """How coordinates are bent, what lies behind the text, and what happens to the picture."""
    p: dict[str, Floats] = {}
    height = size[1]
    scale = height / 32
    for name in ("wave_x", "wave_y"):  # waves that shift columns up and down, rows left and right, and diagonals
        p[name] = dice.sometimes(0.42 * d, 0.3, 3.8) * scale
        length = dice.within(14, 90) * scale
        angle = np.where(dice.chance(0.6), 0.0 if name == "wave_y" else np.pi / 2, dice.within(0, np.pi))
        p[name + "_kx"], p[name + "_ky"] = np.cos(angle) / length, np.sin(angle) / length
        p[name + "_phase"] = dice.throw()
    p["bend"] = dice.sometimes(0.4 * d, 0.2, 1.6) * scale
    p["bend_at"] = np.floor(dice.throw() * BANK**2)
    p["swing"] = dice.sometimes(0.15 * d, -0.10, 0.10)  # the whole text's slope

    p["gradient"] = dice.sometimes(0.22 * d, -0.4, 0.4)
    p["gradient_turn"] = dice.within(0, 2 * np.pi)
    p["cloud"] = dice.sometimes(0.28 * d, 0.05, 0.3) * np.abs(ink["ink"] - ink["paper"])
    p["cloud_at"], p["cloud_fine"] = np.floor(dice.throw() * BANK**2), dice.chance(0.5).astype(float)
    p["stripes"] = dice.sometimes(0.10 * d, 0.03, 0.25)
    p["stripes_turn"] = np.where(dice.chance(0.6), np.round(dice.within(0, 2)) * np.pi / 2, dice.within(0, np.pi))
    p["stripes_length"] = dice.within(3, 14) * scale
    p["stripes_sharp"] = dice.within(0.6, 6)
    p["stripes_cross"] = dice.chance(0.4).astype(float)
    p["blocks"] = dice.sometimes(0.04 * d, 0.05, 0.3)

    p["dots"] = dice.sometimes(0.32 * d, 0.004, 0.07)
    p["dots_at"], p["dots_large"] = np.floor(dice.throw() * BANK**2), dice.chance(0.4).astype(float)
    p["dots_grey"] = np.where(dice.chance(0.5), ink["ink"], dice.throw())
    p["holes"] = dice.sometimes(0.12 * d, 0.01, 0.08)  # dots of paper
    p["holes_at"] = np.floor(dice.throw() * BANK**2)

    p["blur"] = dice.sometimes(0.35 * d, 0.25, 1.1) * scale
    p["coarse"] = np.where(dice.chance(0.16 * d), 1 + np.floor(dice.within(0, 3)), 0.0)
    p["blocky"] = dice.chance(0.3).astype(float)
    contrast = np.abs(ink["ink"] - ink["paper"])
    p["grain"] = dice.sometimes(0.35 * d, 0.02, 0.25) * contrast
    p["grain_at"] = np.floor(dice.throw() * BANK**2)
    p["levels"] = np.where(dice.chance(0.08 * d), np.floor(dice.within(3, 17)), 0.0)
    p["dither"] = dice.chance(0.5).astype(float)
    p["jpeg"] = np.where(dice.chance(0.35 * d), dice.within(12, 85), 0.0)
    return p


def _throw_material(ink: dict[str, Floats], dice: Dice, height: int, d: Floats) -> dict[str, Floats]:
    """Brushed paper, or paper whose colour changes, and letters that are pressed into it or stand out of it."""
    p: dict[str, Floats] = {}
    scale = height / 32
    p["brushed"] = dice.sometimes(0.08 * d, 0.01, 0.1)
    p["brushed_at"] = np.floor(dice.throw() * BANK**2)
    middling = (ink["paper"] > 0.25) & (ink["paper"] < 0.85)  # on which both light and shade can be seen
    p["relief"] = np.where(middling, dice.sometimes(0.3 * d, 0.15, 0.5), 0.0)
    turn, far = dice.within(0, 2 * np.pi), dice.within(0.8, 1.8) * np.maximum(scale, 1.0)
    p["relief_x"], p["relief_y"] = far * np.cos(turn), far * np.sin(turn)
    p["relief_ink"] = dice.sometimes(0.6, 0.2, 1.0)  # share of the ink that the letters keep
    p["tint"] = dice.sometimes(0.2 * d, 0.3, 1.0)  # share of the colour that goes as far as the paper's grey admits
    p["tint_hue"], p["tint_turn"] = dice.throw(), dice.within(0, 2 * np.pi)
    contrast = np.abs(ink["ink"] - ink["paper"])
    left = np.minimum(np.maximum(p["relief"], p["relief_ink"] * contrast) / np.maximum(contrast, 1e-6), 1.0)
    for name in ("cloud", "grain"):  # which hide no more of it than they would of ink
        p[name] = ink[name] * np.where(p["relief"] > 0, left, 1.0)
    return p


LINE = ("drawn", "x", "y", "cos", "sin", "half", "rise", "turns", "phase", "width", "grey", "hue", "colour", "bent")
CROSSING, STROKE, RING = 1.0, 2.0, 3.0  # kinds of lines, as `drawn` has them; 0 is none


def _throw_lines(p: dict[str, Floats], dice: Dice, size: tuple[int, int], wild: Floats) -> Floats:
    """Lines across the picture, short strokes or rings (2, len(LINE), N, LINES): those under the text, then those above
    it; of one kind on one side of a picture."""
    width, height = size
    scale = height / 32
    table = np.zeros((2, len(LINE), len(wild), LINES))
    for layer, often in enumerate((0.34, 0.50)):
        rows = dice.chance(often * wild).nonzero()[0]
        own, kind = dice.of(rows), dice.throw()[rows, None]
        crossing, ring = kind < 0.45, kind > 0.93
        number = np.where(own.chance(0.4), own.within(1, 5), own.within(5, LINES + 1))[:, None]
        number = np.floor(np.where(crossing | ring, np.minimum(number, 5), number))
        same, erased, extreme = own.chance(0.4), own.chance(0.12), own.chance(0.36)
        grey = np.where(extreme, 1 - np.round(p["paper"][rows]), own.throw())  # often the darkest of all
        grey = np.where(same, p["ink"][rows], np.where(erased, p["paper"][rows], grey))
        hue, colour = np.where(same, p["hue"][rows], own.throw()), np.where(same, p["colour"][rows], own.throw())
        mixed = np.where(same | erased, 0.0, own.sometimes(0.4, 0.1, 0.5))[:, None]
        wide = own.within(2.0, 3.6)
        wide = np.where(wide > 3.3, 3.6 + 10 * (wide - 3.3), wide)  # bars
        wide = np.where(own.chance(0.15), wide, own.within(0.6, 2.0)) * scale
        turn = np.where(crossing, own.within(-0.5, 0.5, LINES), own.within(-np.pi / 2, np.pi / 2, LINES))
        reach = np.where(crossing, own.within(0.3, 1.2, LINES) * width, own.within(4, 26, LINES) * scale)
        x = np.where(crossing, width / 2 + own.within(-0.25, 0.25, LINES) * width, own.throw(LINES) * width)
        waves = np.where(crossing, own.within(0.25, 1.45, LINES) * width, 20 * scale)
        found: dict[str, Any] = {
            "drawn": (np.arange(LINES) < number) * np.where(crossing, CROSSING, np.where(ring, RING, STROKE)),
            "x": x, "y": own.throw(LINES) * height, "cos": np.cos(turn), "sin": np.sin(turn),
            "half": np.where(ring, 2 * scale + reach / 5, reach / 2),  # half its length, or its radius
            "rise": np.where(crossing & own.chance(0.5, LINES), own.within(0, 0.28, LINES) * height, 0.0),
            "turns": 2 * np.pi / waves, "phase": 2 * np.pi * own.throw(LINES),
            "width": wide[:, None] * own.within(0.7, 1.3, LINES),
            "grey": np.clip(grey[:, None] + mixed * own.within(-1, 1, LINES), 0, 1),
            "hue": hue[:, None] + np.where(mixed > 0, own.throw(LINES), 0.0),
            "colour": colour[:, None], "bent": own.chance(0.4)[:, None],  # with the text
        }  # fmt: skip
        for i, name in enumerate(LINE):
            table[layer, i, rows] = found[name]
    return table
