"""Glyphs of fonts as signed distance fields: one small tile a glyph, from which strokes of any weight can be drawn.

A tile holds how far each of its points lies inside the glyph's outline (negative outside). Green 2007, "Improved
Alpha-Tested Magnification for Vector Textures and Special Effects". The unit is the font's cap height, so that all
fonts draw letters of about one size.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFilter, ImageFont
from torch import Tensor
from torch.nn import functional as F

from recognizer.charset import NAMED
from recognizer.errors import UserError

SHIPPED = Path(__file__).parent / "fonts"
SUFFIXES = {".ttf", ".otf", ".ttc", ".woff", ".woff2", ".t1", ".pfb"}
TILE = 40  # texels to a side
REACH = 0.25  # cap heights; distances are cut off beyond
SIDES = 16  # directions in which a glyph's hull is known
_FINE = 2 * TILE  # the outline is found at twice a tile's resolution
_CAP = 45.0  # pixels of a cap height at that resolution, in a tile of ordinary span
DIGITS = NAMED["digits"]
BESIDE_EIGHT = 0.03  # share of a digit's ink beside that of the 8, in which all segments of a display are lit
ABSENT = "\uffff"  # a code point that no font may draw, so that it shows the font's sign for a missing glyph


@dataclass(frozen=True, eq=False)
class Glyphs:
    """The glyphs of some fonts. G glyphs, F fonts, C characters; lengths in cap heights.

    `tiles` (G, TILE, TILE) uint8, 127.5 on the outline and 255 at `REACH` inside it; `span` (G,) half a tile's side;
    `middle` (G, 2) the ink's centre, x from the pen and y down from the middle of the cap height; `half` (G, 2) half
    its width and height; `hull` (G, SIDES, 2) from that centre the points of the ink that lie furthest out, a direction
    each; `thick` (G,) half the thickness of its thickest stroke, up to `REACH`; `advance` (G,) how far
    the pen moves; `unlit` (G,) of a digit of a segment display the glyph in which all segments are lit, -1 of others.
    `index` (F, C) a glyph's place, -1 where a font lacks the character.
    """

    characters: str
    tiles: Tensor
    span: NDArray[np.float32]
    middle: NDArray[np.float32]
    half: NDArray[np.float32]
    hull: NDArray[np.float32]
    thick: NDArray[np.float32]
    advance: NDArray[np.float32]
    unlit: NDArray[np.int64]
    index: NDArray[np.int64]


def font_files(named: Sequence[str]) -> list[Path]:
    """The font files among files and folders, in order; those of this package where none is named.

    Raises:
        UserError: a name that is no file or folder, or a folder without a font.
    """
    files: list[Path] = []
    for name in named or (str(SHIPPED),):
        path = Path(name)
        found = [path] if path.is_file() else sorted(p for p in path.glob("**/*") if p.suffix.lower() in SUFFIXES)
        if not found:
            raise UserError(f"fonts {name!r}: no font file is there")
        files += found
    return files


@lru_cache(maxsize=4)
def load_glyphs(files: tuple[Path, ...], characters: str) -> Glyphs:
    """The glyphs of `characters` in font files.

    Of a font whose small letters are small capitals, the small letters are left out: their pictures would be labelled
    with the wrong case.

    Raises:
        UserError: a file that is no font, or no font that draws any of the characters.
    """
    tiles: list[NDArray[np.bool_]] = []
    numbers: list[tuple[float, ...]] = []
    unlit: list[int] = []
    index = np.full((len(files), len(characters)), -1, np.int64)
    for f, file in enumerate(files):
        masks, own, display = _trace(file, characters)
        for place in _small_capitals(masks, characters):
            masks.pop(place)
        for place, mask in masks.items():
            index[f, place] = len(tiles)
            tiles.append(mask)
            numbers.append(own[place])
        unlit += [int(index[f, characters.index("8")]) if place in display else -1 for place in masks]
    if not tiles:
        raise UserError(f"no font draws any of {characters!r}; there are {', '.join(p.name for p in files[:5])}")
    span, middle_x, middle_y, half_x, half_y, advance = np.array(numbers, np.float32).T
    fields = torch.cat([_field(np.stack(tiles[k : k + 256]), span[k : k + 256]) for k in range(0, len(tiles), 256)])
    thick = (fields.flatten(1).amax(1).numpy().astype(np.float32) - 127.5) / 127.5 * REACH
    middle, half = np.stack([middle_x, middle_y], 1), np.stack([half_x, half_y], 1)
    hull = np.stack([_hull(mask) for mask in tiles]) * span[:, None, None]
    return Glyphs(characters, fields, span, middle, half, hull, thick, advance, np.array(unlit), index)


def _trace(file: Path, characters: str) -> tuple[dict[int, NDArray[np.bool_]], dict[int, tuple[float, ...]], set[int]]:
    """Masks (_FINE, _FINE) of the characters that a font has, by their place, and each one's numbers; and the places of
    the digits of a segment display, which stand in the whole cell that its 8 takes."""
    try:
        font = ImageFont.truetype(str(file), 100, layout_engine=ImageFont.Layout.BASIC)
        cap = next((b - t for _, t, _, b in (font.getbbox(c) for c in "HEX0n") if b > t), 0)
        font = ImageFont.truetype(str(file), round(100 * _CAP / max(cap, 20)), layout_engine=ImageFont.Layout.BASIC)
    except OSError:
        raise UserError(f"font {str(file)!r}: no such file, or no font in it") from None
    absent = bytes(font.getmask(ABSENT))
    top, bottom = next(((t, b) for _, t, _, b in (font.getbbox(c) for c in "HEX0n") if b > t), (0, int(_CAP)))
    masks: dict[int, NDArray[np.bool_]] = {}
    numbers: dict[int, tuple[float, ...]] = {}
    display = set[int]()
    if "8" in characters and _is_display(font):
        display = {place for place, character in enumerate(characters) if character in DIGITS}
    for place, character in enumerate(characters):
        ink = font.getmask(character)
        if ink.getbbox() is None or bytes(ink) == absent:
            continue
        cell = "8" if place in display else character
        left, up, right, down = font.getbbox(cell)  # which counts what the pen moves as well as ink
        sheet = Image.new("L", (int(right - left) + 2, int(down - up) + 2))
        ImageDraw.Draw(sheet).text((1 - left, 1 - up), cell, 255, font)
        box = sheet.getbbox()
        if cell != character:
            sheet = Image.new("L", sheet.size)
            ImageDraw.Draw(sheet).text((1 - left, 1 - up), character, 255, font)
        if box is None:
            continue
        sheet, left, up = sheet.crop(box), left + box[0] - 1, up + box[1] - 1
        wide, tall = sheet.size
        right, down = left + wide, up + tall
        shrink = max(1.0, max(wide, tall) / (_FINE - 2 * _CAP * REACH))  # of a glyph too large for an ordinary tile
        if shrink > 1:
            sheet = sheet.resize((max(round(wide / shrink), 1), max(round(tall / shrink), 1)))
        mask = Image.new("L", (_FINE, _FINE))
        mask.paste(sheet, ((_FINE - sheet.width) // 2, (_FINE - sheet.height) // 2))
        masks[place] = np.asarray(mask) > 127
        if not masks[place].any():  # hairlines
            masks[place] = np.asarray(mask) > 0
        numbers[place] = (
            shrink * _FINE / 2 / _CAP, (left + right) / 2 / _CAP, ((up + down) - (top + bottom)) / 2 / _CAP,
            wide / 2 / _CAP, tall / 2 / _CAP, font.getlength(character) / _CAP,
        )  # fmt: skip
    return masks, numbers, display


def _small_capitals(masks: dict[int, NDArray[np.bool_]], characters: str) -> list[int]:
    """Places of the small letters of a font that draws capitals for them."""
    place = {c: p for p, c in enumerate(characters) if p in masks}

    def form(character: str) -> NDArray[np.bool_]:
        picture = Image.fromarray(masks[place[character]])
        return np.asarray(picture.crop(picture.getbbox()).resize((24, 24)))

    told_apart = [c for c in "abdeghnqrt" if c in place and c.upper() in place]
    same = sum(float((form(c) != form(c.upper())).mean()) < 0.12 for c in told_apart)
    if len(told_apart) < 3 or same < len(told_apart) / 2:
        return []
    return [p for c, p in place.items() if c.islower()]


def _is_display(font: ImageFont.FreeTypeFont) -> bool:
    """Whether a font draws digits as a display of segments does: none has ink where its 8 has none."""
    width, height = (int(side) for side in font.getbbox("8")[2:])
    if font.getmask("8").getbbox() is None:
        return False

    def drawn(digit: str) -> Image.Image:
        sheet = Image.new("L", (width + height, 2 * height))
        ImageDraw.Draw(sheet).text((height // 2, height // 2), digit, 255, font)
        return sheet

    eight = np.asarray(drawn("8").filter(ImageFilter.MaxFilter(3))) > 127  # hints may move a stroke by a pixel
    inks = [np.asarray(drawn(digit)) > 127 for digit in DIGITS]
    return all(0 < ink.sum() > (ink & ~eight).sum() / BESIDE_EIGHT for ink in inks)


def _hull(mask: NDArray[np.bool_]) -> NDArray[np.float32]:
    """The points of a mask (_FINE, _FINE) that lie furthest out in `SIDES` directions, (SIDES, 2), -1 to 1."""
    rows = np.flatnonzero(mask.any(1))
    first, last = mask[rows].argmax(1), _FINE - mask[rows, ::-1].argmax(1)
    x, y = np.concatenate([first, last, first, last]), np.concatenate([rows, rows, rows + 1, rows + 1])
    turn = np.arange(SIDES) * 2 * np.pi / SIDES
    furthest = (np.cos(turn)[:, None] * x + np.sin(turn)[:, None] * y).argmax(1)
    return np.stack([x[furthest], y[furthest]], 1).astype(np.float32) / (_FINE / 2) - 1


def _field(masks: NDArray[np.bool_], span: NDArray[np.float32]) -> Tensor:
    """Tiles (N, TILE, TILE) uint8 of masks (N, _FINE, _FINE): exact Euclidean distances up to `REACH`, averaged by 2x2.

    Along rows, then over the rows, as a lower envelope of parabolas would give them (Felzenszwalb and Huttenlocher
    2012), but by trying all of the few that are within reach.
    """
    inside = torch.from_numpy(masks)
    reach = int(np.ceil(REACH * _CAP)) + 2

    def outwards(solid: Tensor) -> Tensor:
        """Distance of every point to the nearest one that is solid."""
        squares = torch.where(solid, 0.0, float(reach**2))
        for axis in (2, 1):
            pad = (reach, reach) if axis == 2 else (0, 0, reach, reach)
            wide = F.pad(squares, pad, value=float(reach**2))
            squares = squares.clone()
            for d in range(-reach, reach + 1):
                shifted = wide.narrow(axis, reach + d, squares.shape[axis])
                squares = torch.minimum(squares, shifted + d * d)
        return squares.sqrt()

    distance = outwards(~inside) - outwards(inside)
    distance = distance - 0.5 * distance.sign()  # to the outline between two points, not to the next point's centre
    coarse = F.avg_pool2d(distance[:, None], 2)[:, 0]
    caps = coarse / (_FINE / 2) * torch.from_numpy(span)[:, None, None]
    return (127.5 + 127.5 / REACH * caps).clamp(0, 255).round().to(torch.uint8)
