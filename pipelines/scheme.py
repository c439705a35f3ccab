"""A made-up captcha scheme that stands for the user's own pictures in a demonstration.

Its letters are drawn from the stroke table below, with no font file and no renderer library, and bent by a warp of its
own, so that neither its letter forms nor its distortion occur in any picture that a shipped weights file was trained
on. Upper-case letters and digits, 4 to 6 of them; zero is slashed, Z and 7 are crossed, I has two bars and 1 a flag.
"""

from __future__ import annotations

import colorsys
import io
import math
from functools import cache
from itertools import pairwise
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw

from recognizer.charset import NAMED
from recognizer.errors import UserError
from recognizer.samples import FolderWriter, new_folder

CHARACTERS = NAMED["upper+digits"]
LENGTHS = (4, 5, 6)
WIDTH, HEIGHT = 160, 60
JPEG_QUALITY = 80

Floats = NDArray[np.float64]
Colours = NDArray[np.float32]
Piece = tuple[float, ...]
Strokes = tuple[tuple[Piece, ...], ...]

# A glyph is its width and its strokes in a box of height 1, y down. The pieces of a stroke are joined end to end: a
# point (x, y), or an arc (centre x, centre y, radius x, radius y, from, to) in degrees, 0 to the right, 90 down.
GLYPHS: dict[str, tuple[float, Strokes]] = {
    "A": (0.80, (((0.0, 1.0), (0.36, 0.0), (0.46, 0.0), (0.80, 1.0)), ((0.06, 0.70), (0.74, 0.62)))),
    "B": (
        0.66,
        (
            ((-0.06, 0.0), (0.32, 0.0), (0.32, 0.235, 0.25, 0.235, -90, 90), (0.10, 0.47)),
            ((0.10, 0.0), (0.10, 1.0)),
            ((0.10, 0.47), (0.36, 0.47), (0.36, 0.735, 0.30, 0.265, -90, 90), (-0.06, 1.0)),
        ),
    ),
    "C": (0.68, (((0.40, 0.5, 0.40, 0.5, -48, -312),),)),
    "D": (
        0.74,
        (((-0.06, 0.0), (0.28, 0.0), (0.28, 0.5, 0.46, 0.5, -90, 90), (-0.06, 1.0)), ((0.10, 0.0), (0.10, 1.0))),
    ),
    "E": (0.60, (((0.60, 0.0), (0.02, 0.0), (0.02, 1.0), (0.62, 1.0)), ((0.02, 0.47), (0.48, 0.47)))),
    "F": (0.58, (((0.60, 0.0), (0.04, 0.0), (0.04, 1.04)), ((0.04, 0.46), (0.48, 0.46)))),
    "G": (0.76, (((0.40, 0.5, 0.40, 0.5, -52, -330), (0.745, 0.54), (0.42, 0.54)),)),
    "H": (0.70, (((0.02, 0.0), (0.06, 1.0)), ((0.66, 0.0), (0.70, 1.0)), ((0.04, 0.52), (0.68, 0.46)))),
    "I": (0.44, (((0.0, 0.0), (0.44, 0.0)), ((0.22, 0.0), (0.22, 1.0)), ((0.0, 1.0), (0.44, 1.0)))),
    "J": (0.58, (((0.24, 0.0), (0.58, 0.0)), ((0.48, 0.0), (0.48, 0.72), (0.24, 0.72, 0.24, 0.28, 0, 168)))),
    "K": (0.70, (((0.03, 0.0), (0.03, 1.0)), ((0.64, 0.0), (0.03, 0.58)), ((0.24, 0.40), (0.70, 1.0)))),
    "L": (0.56, (((0.04, 0.0), (0.04, 0.88), (0.16, 0.88, 0.12, 0.12, 180, 90), (0.58, 1.0)),)),
    "M": (0.94, (((0.0, 1.0), (0.10, 0.0), (0.47, 0.64), (0.84, 0.0), (0.94, 1.0)),)),
    "N": (0.74, (((0.02, 1.04), (0.02, 0.0), (0.72, 1.0), (0.72, -0.04)),)),
    "O": (0.92, (((0.46, 0.5, 0.46, 0.5, -100, 260),),)),
    "P": (
        0.62,
        (((-0.06, 0.0), (0.32, 0.0), (0.32, 0.28, 0.30, 0.28, -90, 90), (0.10, 0.56)), ((0.10, 0.0), (0.10, 1.04))),
    ),
    "Q": (0.90, (((0.45, 0.47, 0.45, 0.47, -100, 260),), ((0.46, 0.66), (0.60, 0.84), (0.94, 1.08)))),
    "R": (
        0.68,
        (
            ((-0.06, 0.0), (0.32, 0.0), (0.32, 0.26, 0.30, 0.26, -90, 90), (0.10, 0.52)),
            ((0.10, 0.0), (0.10, 1.0)),
            ((0.30, 0.52), (0.70, 1.0)),
        ),
    ),
    "S": (0.64, (((0.33, 0.25, 0.30, 0.25, -35, -270), (0.31, 0.75, 0.32, 0.25, -90, 150)),)),
    "T": (0.72, (((0.0, 0.08), (0.0, 0.0), (0.72, 0.0), (0.72, 0.08)), ((0.36, 0.0), (0.36, 1.02)))),
    "U": (0.72, (((0.03, 0.0), (0.03, 0.62), (0.36, 0.62, 0.33, 0.38, 180, 0), (0.69, 0.0)),)),
    "V": (0.78, (((0.0, 0.0), (0.39, 1.0), (0.78, 0.0)),)),
    "W": (1.04, (((0.0, 0.0), (0.24, 1.0), (0.52, 0.30), (0.80, 1.0), (1.04, 0.0)),)),
    "X": (0.74, (((0.0, 0.0), (0.74, 1.0)), ((0.72, 0.0), (0.02, 1.0)))),
    "Y": (0.76, (((0.0, 0.0), (0.38, 0.50), (0.76, 0.0)), ((0.38, 0.50), (0.38, 1.04)))),
    "Z": (0.68, (((0.02, 0.0), (0.66, 0.0), (0.0, 1.0), (0.70, 1.0)), ((0.14, 0.50), (0.54, 0.50)))),
    "0": (0.62, (((0.31, 0.5, 0.31, 0.5, -60, 300),), ((0.50, 0.20), (0.12, 0.80)))),
    "1": (0.42, (((0.0, 0.30), (0.26, 0.0), (0.26, 1.0)), ((0.06, 1.0), (0.46, 1.0)))),
    "2": (0.62, (((0.30, 0.29, 0.29, 0.29, -170, 35), (0.0, 1.0), (0.64, 1.0)),)),
    "3": (0.60, (((0.28, 0.24, 0.27, 0.24, -150, 90), (0.29, 0.74, 0.31, 0.26, -90, 150)),)),
    "4": (0.70, (((0.52, 1.02), (0.52, 0.0), (0.0, 0.70), (0.72, 0.70)),)),
    "5": (0.62, (((0.58, 0.0), (0.10, 0.0), (0.06, 0.46), (0.28, 0.69, 0.33, 0.31, -120, 140)),)),
    "6": (0.62, (((0.45, 0.68, 0.45, 0.68, -72, -170), (0.31, 0.70, 0.31, 0.30, -180, 180)),)),
    "7": (0.62, (((0.0, 0.0), (0.62, 0.0), (0.20, 1.04)), ((0.16, 0.50), (0.60, 0.50)))),
    "8": (0.60, (((0.30, 0.235, 0.235, 0.235, 90, 450),), ((0.30, 0.735, 0.30, 0.265, -90, 270),))),
    "9": (0.62, (((0.31, 0.30, 0.31, 0.30, 20, -340), (0.30, 1.02)),)),
}  # fmt: skip

_SUPERSAMPLE = 3
_STEP = 0.125  # longest piece of a straight stroke, in glyph heights: a warp bends a stroke between its points only
_Y, _X = np.mgrid[-1 : 1 : HEIGHT * 1j, -1 : 1 : WIDTH * 1j].astype(np.float32)


@cache
def _outline(character: str) -> tuple[Floats, ...]:
    """The strokes of a glyph as polylines (n, 2), fine enough to be bent."""
    lines: list[Floats] = []
    for pieces in GLYPHS[character][1]:
        corners: list[tuple[float, float]] = []
        for piece in pieces:
            if len(piece) == 2:
                corners.append((piece[0], piece[1]))
                continue
            x, y, rx, ry, start, stop = piece
            turns = np.radians(np.linspace(start, stop, round(abs(stop - start) / 15) + 1))
            corners += [(x + rx * math.cos(t), y + ry * math.sin(t)) for t in turns]
        runs = [np.array(corners[:1])]
        for a, b in pairwise(corners):
            if (length := math.dist(a, b)) > 1e-6:  # an arc may start just where the stroke stands
                runs.append(np.linspace(a, b, math.ceil(length / _STEP) + 1)[1:])
        lines.append(np.concatenate(runs))
    return tuple(lines)


def _place(text: str, rng: np.random.Generator) -> tuple[list[Floats], list[float]]:
    """Each stroke of `text` where it stands on the picture, (n, 2), and its glyph's height, in pixels."""
    sizes = rng.uniform(31, 40, len(text))
    gaps = rng.uniform(-0.05, 0.15, len(text)) + rng.uniform(0.08, 0.15)  # the smallest make neighbours touch
    advances = (np.array([GLYPHS[c][0] for c in text]) + gaps) * sizes
    squeeze = min(1.0, (WIDTH - 20) / advances.sum())
    advances, sizes = advances * squeeze, sizes * (0.3 + 0.7 * squeeze)
    left = rng.uniform(8, WIDTH - 10 - advances.sum()) + np.cumsum(advances) - advances
    slant = rng.uniform(-0.18, 0.18)
    lines, heights = [], []
    for character, size, x, advance in zip(text, sizes.tolist(), left, advances, strict=True):
        turn, lean = rng.uniform(-0.2, 0.2), slant + rng.normal(0, 0.05)
        cos, sin = math.cos(turn), math.sin(turn)
        shape = size * np.array([[cos, sin], [-lean * cos - sin, cos - lean * sin]])
        centre = (x + advance / 2, HEIGHT / 2 + rng.uniform(-1, 1) * ((HEIGHT - size) / 2 - 5))
        wave, phase = rng.uniform(-5, 5, (2, 2)), rng.uniform(0, 2 * math.pi, 2)
        for line in _outline(character):
            wobbling = line + 0.022 * np.sin(line @ wave + phase) - (GLYPHS[character][0] / 2, 0.5)
            lines.append(wobbling @ shape + centre)
            heights.append(size)
    return lines, heights


def _bend(points: Floats, rng: np.random.Generator) -> Floats:
    """Points (n, 2) of the picture's plane, sheared along a sine and swirled about two centres against each other."""
    depth, length, phase = rng.uniform(1.0, 3.0), rng.uniform(45, 90), rng.uniform(0, 2 * math.pi)
    x, y = points[:, 0] + depth * np.sin(2 * math.pi * points[:, 1] / length + phase), points[:, 1]
    way = rng.choice((-1, 1))
    for centre_x, sign in ((rng.uniform(20, 60), way), (rng.uniform(100, 140), -way)):
        centre_y, turn, reach = rng.uniform(15, 45), sign * rng.uniform(0.12, 0.36), rng.uniform(18, 32)
        away_x, away_y = x - centre_x, y - centre_y
        angle = turn * np.exp(-(away_x**2 + away_y**2) / reach**2)
        cos, sin = np.cos(angle), np.sin(angle)
        x, y = centre_x + cos * away_x - sin * away_y, centre_y + sin * away_x + cos * away_y
    return np.stack([x, y], axis=1)


def _ink(lines: list[Floats], heights: list[float], weight: float, nib: float) -> tuple[Floats, Floats]:
    """Strokes as quadrangles (n, 8) and the discs (m, 4) that join them, in pixels.

    A stroke is as wide as a broad nib held at the angle `nib` would draw it, and thinner at its ends.
    """
    last = np.cumsum([len(line) for line in lines]) - 1
    first = np.append(0, last[:-1] + 1)
    points = np.concatenate(lines)
    step = np.diff(points, axis=0)
    angle = np.append(np.arctan2(step[:, 1], step[:, 0]), 0.0)
    angle[last] = angle[last - 1]
    half = np.repeat(heights, last - first + 1) * weight * (0.034 + 0.038 * np.abs(np.sin(angle - nib)))
    half[first] *= 0.7
    half[last] *= 0.7
    joins = np.append(0.0, np.cos(np.diff(angle))) < 0.94
    joins[first] = joins[last] = True
    # quadrangles that follow each other share an edge, but not where the stroke turns sharply: a disc joins them there
    start = half[:, None] * np.stack([-np.sin(angle), np.cos(angle)], axis=1)
    stop = np.where(joins[1:, None], start[:-1], start[1:])
    start, ahead, behind = start[:-1], points[1:], points[:-1]
    quads = np.concatenate([behind + start, ahead + stop, ahead - stop, behind - start], axis=1)
    discs = np.concatenate([points - half[:, None], points + half[:, None]], axis=1)
    return np.delete(quads, last[:-1], axis=0), discs[joins]


def _cover(quads: Floats, discs: Floats) -> NDArray[np.float32]:
    """How much of each pixel (60, 160, 1) the strokes cover, 0 to 1."""
    sheet = Image.new("L", (WIDTH * _SUPERSAMPLE, HEIGHT * _SUPERSAMPLE))
    pen = ImageDraw.Draw(sheet)
    for quad in (quads * _SUPERSAMPLE).tolist():
        pen.polygon(quad, fill=255)
    for disc in (discs * _SUPERSAMPLE).tolist():
        pen.ellipse(disc, fill=255)
    cover: NDArray[np.float32] = np.asarray(sheet.reduce(_SUPERSAMPLE), dtype=np.float32)[..., None]
    return cover / np.float32(255)


def _stray(rng: np.random.Generator) -> Floats:
    """A stroke across the picture, (20, 2) pixels: a quadratic Bezier curve."""
    start = rng.uniform((2, 8), (40, HEIGHT - 8))
    middle = rng.uniform((50, -15), (WIDTH - 50, HEIGHT + 15))
    stop = rng.uniform((WIDTH - 40, 8), (WIDTH - 2, HEIGHT - 8))
    t = np.linspace(0, 1, 20)[:, None]
    return (1 - t) ** 2 * start + 2 * t * (1 - t) * middle + t**2 * stop


def _colours(rng: np.random.Generator) -> tuple[Colours, Colours, Colours]:
    """Background and ink as gradients (60, 160, 3), and the colour (3,) of what distracts, 0 to 255."""

    def colour(hue: float, low: tuple[float, float], high: tuple[float, float]) -> Colours:
        saturation, value = rng.uniform(low, high)
        return 255 * np.array(colorsys.hsv_to_rgb(hue % 1, saturation, value), dtype=np.float32)

    dark = rng.random() < 0.25
    paper = ((0.35, 0.12), (0.8, 0.30)) if dark else ((0.02, 0.86), (0.26, 1.0))
    pigment = ((0.05, 0.85), (0.5, 1.0)) if dark else ((0.55, 0.25), (1.0, 0.58))
    paper_hue, ink_hue, angle = rng.random(), rng.random(), rng.uniform(0, 2 * math.pi)
    shades = [colour(paper_hue + turn, *paper) for turn in (0, rng.uniform(-0.12, 0.12))]
    inks = [colour(ink_hue + turn, *pigment) for turn in (0, rng.uniform(-0.2, 0.2))]
    stray = 0.7 * colour(ink_hue + rng.uniform(-0.1, 0.5), *pigment) + 0.3 * shades[0]
    along = 0.5 + 0.35 * (math.cos(angle) * _X + math.sin(angle) * _Y)
    ground = shades[0] + along[..., None] * (shades[1] - shades[0])
    return ground, inks[0] + (0.5 + 0.5 * _X)[..., None] * (inks[1] - inks[0]), stray


def draw(text: str, seed: int) -> Image.Image:
    """The picture of `text`, RGB, 160 x 60 pixels. The same text and seed give the same pixels.

    Raises:
        UserError: `text` has not 4 to 6 characters, or one that the scheme lacks.
    """
    if len(text) not in LENGTHS or any(c not in GLYPHS for c in text):
        raise UserError(f"the scheme draws {LENGTHS[0]} to {LENGTHS[-1]} of {CHARACTERS}, not {text!r}")
    rng = np.random.default_rng((seed, *text.encode()))
    ground, ink, stray = _colours(rng)
    lines, heights = _place(text, rng)
    bent = np.split(_bend(np.concatenate(lines), rng), np.cumsum([len(line) for line in lines])[:-1])
    letters = _cover(*_ink(bent, heights, weight=rng.uniform(0.85, 1.25), nib=rng.uniform(-1.0, 0.2)))
    curves = [_stray(rng) for _ in range(rng.integers(1, 3))]
    strays = _cover(*_ink(curves, rng.uniform(10, 20, len(curves)).tolist(), weight=1.0, nib=rng.uniform(0, math.pi)))
    picture = ground + strays * (stray - ground)
    picture += letters * (ink - picture)
    pixels = picture.reshape(-1, 3)
    dots, holes = rng.integers(HEIGHT * WIDTH, size=(2, 120))
    pixels[dots] = 0.3 * pixels[dots] + 0.7 * stray
    pixels[holes] = 0.3 * pixels[holes] + 0.7 * ground.reshape(-1, 3)[holes]
    picture += rng.uniform(2, 8) * rng.standard_normal((HEIGHT, WIDTH, 1), dtype=np.float32)
    return Image.fromarray(picture.clip(0, 255).astype(np.uint8))


def write_scheme(out: Path, n_labelled: int = 600, n_test: int = 1000, seed: int = 0, n_unlabelled: int = 0) -> None:
    """Write `n_labelled` JPEG pictures to `out/labelled`, `n_test` to `out/test` and, where asked for, `n_unlabelled`
    without labels to `out/unlabelled`; no text occurs twice.

    The same numbers and seed give the same bytes, those to train and to test on with or without unlabelled ones.

    Raises:
        UserError: one of the folders exists and is not empty.
    """
    rng = np.random.default_rng(seed)
    texts: dict[str, int] = {}  # text -> its picture's seed
    while len(texts) < n_labelled + n_test + n_unlabelled:
        text = "".join(rng.choice(list(CHARACTERS), rng.choice(LENGTHS)))
        texts.setdefault(text, int(rng.integers(2**32)))
    drawn = list(texts.items())
    for folder, rows in (("labelled", drawn[:n_labelled]), ("test", drawn[n_labelled : n_labelled + n_test])):
        with FolderWriter(out / folder) as writer:
            for i, (text, own) in enumerate(rows):
                writer.add(_name(i), _jpeg(text, own), text)
    if n_unlabelled:
        with new_folder(out / "unlabelled") as new:
            for i, (text, own) in enumerate(drawn[n_labelled + n_test :]):
                path = new / _name(i)
                path.parent.mkdir(exist_ok=True)
                path.write_bytes(_jpeg(text, own))


def _name(i: int) -> str:
    # three digits between the separators: the shortest text has four, so no name can hold its label
    return f"{i // 1000:03d}/{i % 1000:03d}.jpg"


def _jpeg(text: str, seed: int) -> bytes:
    data = io.BytesIO()
    draw(text, seed).save(data, "JPEG", quality=JPEG_QUALITY)
    return data.getvalue()
