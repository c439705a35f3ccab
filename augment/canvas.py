"""Pictures as generators take them: the part with the text, in colour and at one height, and for every column which
character stands there, and where in it. That is the condition of every method that learns: a text of any length, in any
layout."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from recognizer.images import Frame, Part

HEIGHT = 32  # pixels
STEP = 8  # widths are multiples of it
WIDEST = 256


class Canvas(NamedTuple):
    """A batch of pictures and their layouts.

    `pictures` (N, 3, HEIGHT, W) -1 to 1; `characters` (N, W) the class of the character in each column, 0 where there
    is none; `within` (N, W) how far right of its centre a column lies, -1 at its left border and 1 at its right one;
    `targets` (N, L) the text's classes, padded with 0, and `lengths` (N,).
    """

    pictures: Tensor
    characters: Tensor
    within: Tensor
    targets: Tensor
    lengths: Tensor


def canvas_width(width: int, height: int) -> int:
    """The width of a picture of `width` x `height` pixels at `HEIGHT`, a multiple of `STEP`."""
    return int(min(max(round(width * HEIGHT / height / STEP), 2) * STEP, WIDEST))


def text_part(picture: Image.Image) -> Part:
    """The part of an RGB picture in which its text stands, in its pixels."""
    return Frame(HEIGHT, trim=True).part(picture)


def on_canvas(borders: NDArray[np.float64], part: Part, width: int) -> NDArray[np.float64] | None:
    """Borders in a picture, in its pixels, on a canvas of a width that shows a part of it; None where a character has
    less than a pixel there."""
    found = ((borders - part[0]) * width / (part[2] - part[0])).clip(0, width)
    return None if (np.diff(found) < 1).any() else found


def as_shares(part: Part, size: tuple[int, int]) -> Part:
    """A part of a picture of a size (width, height) as shares of its sides."""
    (left, top, right, bottom), (width, height) = part, size
    return left / width, top / height, right / width, bottom / height


def to_canvas(picture: Image.Image, width: int, part: Part | None = None) -> NDArray[np.uint8]:
    """An RGB picture, or a part of it, at `HEIGHT` and a width, uint8 (3, HEIGHT, width)."""
    small = picture.convert("RGB").resize((width, HEIGHT), Image.Resampling.BILINEAR, box=part)
    return np.array(small).transpose(2, 0, 1).copy()


def from_canvas(pictures: Tensor, sizes: Sequence[tuple[int, int]]) -> list[Image.Image]:
    """RGB pictures of the asked sizes (width, height) from (N, 3, HEIGHT, W) of -1 to 1."""
    pixels = ((pictures.clamp(-1, 1) + 1) * 127.5).round().to(torch.uint8).permute(0, 2, 3, 1).cpu().numpy()
    return [Image.fromarray(p).resize(size, Image.Resampling.BICUBIC) for p, size in zip(pixels, sizes, strict=True)]


def put_back(
    part: Image.Image, place: Part, onto: Image.Image, painted: NDArray[np.float32] | None = None
) -> Image.Image:
    """A copy of the picture `onto` with a part of it, in its pixels, painted over by `part`, resized; where `painted`
    (W,) is given, in those columns of the part alone, by shares of 0 to 1."""
    left, top, right, bottom = (round(edge) for edge in place)
    whole = onto.copy()
    size = (max(right - left, 1), max(bottom - top, 1))
    mask = None
    if painted is not None:
        mask = Image.fromarray((painted[None] * 255).astype(np.uint8)).resize(size, Image.Resampling.BILINEAR)
    whole.paste(part.resize(size, Image.Resampling.BICUBIC), (left, top), mask)
    return whole


def paper_around(part: Image.Image, place: Part, size: tuple[int, int], rng: np.random.Generator) -> Image.Image:
    """Paper of a size (width, height) that goes on from the sides of `part`, which shall lie at `place`: shade as it is
    along each side where no stroke meets it, and grain."""
    left, top, right, bottom = (round(edge) for edge in place)
    small = part.resize((max(right - left, 1), max(bottom - top, 1)), Image.Resampling.BICUBIC)
    inner = np.asarray(small, np.float32)
    smooth, grain = inner.copy(), [np.zeros((1, 3), np.float32)]
    for side in (smooth[0], smooth[-1], smooth[:, 0], smooth[:, -1]):  # views
        reach = len(side) // 4
        longer = np.pad(side, ((reach, reach), (0, 0)), "edge")
        shade = np.median(np.lib.stride_tricks.sliding_window_view(longer, 2 * reach + 1, 0), -1)
        grain.append(side - shade)
        side[:] = shade
    around = ((top, size[1] - bottom), (left, size[0] - right), (0, 0))
    found = np.concatenate(grain)
    usual = np.median(np.abs(found)) * 3
    found = found[(np.abs(found) <= usual).all(1)]  # a stroke is none
    paper = np.pad(smooth, [(max(a, 0), max(b, 0)) for a, b in around], "edge")[: size[1], : size[0]]
    paper = paper + found[rng.integers(0, len(found), paper.shape[:2])]
    return Image.fromarray(paper.clip(0, 255).round().astype(np.uint8))


def columns(borders: Sequence[NDArray[np.float64]], ids: Sequence[Sequence[int]], width: int) -> tuple[Tensor, Tensor]:
    """`characters` and `within` (N, width) of layouts: the borders (L + 1,) of each text's characters, in pixels."""
    characters = np.zeros((len(borders), width), np.int64)
    within = np.zeros((len(borders), width), np.float32)
    x = np.arange(width) + 0.5
    for row, (own, text) in enumerate(zip(borders, ids, strict=True)):
        place = np.searchsorted(own, x, side="right") - 1
        inside = (place >= 0) & (place < len(text))
        at = place[inside]
        characters[row, inside] = np.asarray(text)[at]
        left, right = np.asarray(own)[at], np.asarray(own)[at + 1]
        within[row, inside] = 2 * (x[inside] - left) / np.maximum(right - left, 1e-6) - 1
    return torch.from_numpy(characters), torch.from_numpy(within)


def padded(ids: Sequence[Sequence[int]]) -> tuple[Tensor, Tensor]:
    """`targets` (N, L) and `lengths` (N,) of texts."""
    lengths = torch.tensor([len(text) for text in ids])
    targets = torch.zeros(len(ids), int(lengths.max()), dtype=torch.long)
    for row, text in zip(targets, ids, strict=True):
        row[: len(text)] = torch.tensor(text, dtype=torch.long)
    return targets, lengths


def borders_of_boxes(boxes: NDArray[np.float32]) -> NDArray[np.float64]:
    """Borders (L + 1,) between boxes (L, 4): halfway between neighbours, and the ends of the first and the last."""
    between = (boxes[:-1, 2].astype(np.float64) + boxes[1:, 0]) / 2
    found = np.concatenate([[boxes[0, 0]], between, [boxes[-1, 2]]])
    return np.maximum.accumulate(found)
