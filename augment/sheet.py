"""Contact sheets: rows of pictures with captions, in which the wrong characters of a reading are marked."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import cast

from PIL import Image, ImageDraw, ImageFont

from recognizer.errors import UserError

DARK = "#222222"
WRONG = "#D55E00"  # vermillion of Okabe and Ito's palette, told from dark grey by every kind of colour vision
GAP = 8  # pixels between cells
WIDEST = 40  # a picture on a sheet, in heights: what is wider is drawn lower


@dataclass(frozen=True, slots=True)
class Cell:
    """A picture, the caption below it, and which of the caption's characters are wrong (none where it is empty)."""

    picture: Image.Image
    caption: str = ""
    wrong: tuple[bool, ...] = ()


def contact_sheet(
    rows: Sequence[Sequence[Cell]], path: Path | None = None, height: int = 64, font: Path | None = None
) -> Image.Image:
    """One RGB picture of all cells, written to `path` as PNG where one is given.

    Pictures are scaled to `height` pixels (very wide ones to fewer), their aspect kept, in columns as wide as their
    widest cell; rows may differ in length. Wrong characters are coloured and underlined. `font` draws scripts that
    Pillow's own font lacks.

    Raises:
        UserError: no cell at all, or a font that cannot be read.
    """
    if not any(rows):
        raise UserError("there is no picture to show on a contact sheet")
    letters = _font(font, max(height // 3, 12))
    ascent, descent = letters.getmetrics()
    line = ascent + descent + 4
    pictures = [[_scaled(cell.picture, height) for cell in row] for row in rows]
    widths = [0] * max(len(row) for row in rows)
    for row, scaled in zip(rows, pictures, strict=True):
        for i, (cell, picture) in enumerate(zip(row, scaled, strict=True)):
            widths[i] = max(widths[i], picture.width, round(letters.getlength(_shown(cell.caption))) + 1)
    step = height + line + GAP
    sheet = Image.new("RGB", (sum(widths) + GAP * (len(widths) + 1), step * len(rows) + GAP), "white")
    draw = ImageDraw.Draw(sheet)
    for r, (row, scaled) in enumerate(zip(rows, pictures, strict=True)):
        x, y = GAP, GAP + r * step
        for cell, picture, width in zip(row, scaled, widths, strict=False):
            sheet.paste(picture, (x, y))
            _write(draw, (x, y + height + 2), cell, letters)
            x += width + GAP
    if path is not None:
        sheet.save(path, format="PNG")
    return sheet


def _font(path: Path | None, size: int) -> ImageFont.FreeTypeFont:
    if path is None:
        return cast(ImageFont.FreeTypeFont, ImageFont.load_default(size))  # of a given size it is always FreeType's
    try:
        return ImageFont.truetype(path, size)
    except OSError:
        raise UserError(f"font {str(path)!r}: no such file, or no font in it") from None


def _scaled(picture: Image.Image, height: int) -> Image.Image:
    scale = min(height / picture.height, WIDEST * height / picture.width)
    size = max(round(picture.width * scale), 1), max(round(picture.height * scale), 1)
    return picture.convert("RGB").resize(size, Image.Resampling.LANCZOS)


def _shown(caption: str) -> str:
    return "".join(c if c.isprintable() else "?" for c in caption)


def _write(draw: ImageDraw.ImageDraw, at: tuple[int, int], cell: Cell, font: ImageFont.FreeTypeFont) -> None:
    x, y = float(at[0]), at[1]
    below = y + sum(font.getmetrics())
    marks = cell.wrong or (False,) * len(cell.caption)
    for character, wrong in zip(_shown(cell.caption), marks, strict=True):
        width = font.getlength(character)
        draw.text((x, y), character, fill=WRONG if wrong else DARK, font=font)
        if wrong:
            draw.line(((x + 1, below), (x + width - 2, below)), fill=WRONG, width=2)
        x += width
