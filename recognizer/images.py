"""Open pictures that nobody vouches for, and bring them to the size that a reader takes.

A reader takes grey pictures of one height, aspect kept, whose width is a multiple of `WIDTH_STEP`. The padding
depends on the picture alone, so that what is read in it does not depend on its neighbours in a batch.
"""

from __future__ import annotations

import io
import re
import warnings
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray
from PIL import ExifTags, Image, ImageOps, UnidentifiedImageError

STRIDE = 4  # pixels to a frame of a reader's output, of every size
WIDTH_STEP = 16
MAX_PIXELS = 16_000_000
MOST_SCANS = 100  # of a JPEG; progressive ones have about ten
MARKER = re.compile(rb"\xff[^\x00\x01\xd0-\xd8\xff]")  # of a JPEG's segment; in what is coded a zero follows each ff
# the formats that pictures are kept in. Not those whose decoders know no bound (ICO and ICNS decode what they hold
# before anyone has seen its size), run for seconds in Python, or start a program (EPS)
USUAL = ("PNG", "JPEG", "GIF", "BMP", "DIB", "PPM")  # Pillow knows these at once
UNUSUAL = ("WEBP", "TIFF", "JPEG2000", "AVIF", "TGA", "PCX")
LUMA = (0.299, 0.587, 0.114)  # what Pillow weighs red, green and blue with
COLOUR = 0.7  # share of the channel that tells most in a picture's grey; the rest is luminance
DARKEST = 128  # grey levels from the paper beyond which ink is ink
# share of the ink beyond each side of a text's part of a picture: dots, ends of strokes; and no more than a part of a
# letter, of which a picture w heights of its text wide holds about 1.7 w
LEFT_OUT, PART_OF_A_LETTER = 0.02, 0.18
BESIDE, ABOVE = 0.4, 0.15  # margins of that part, in heights of the ink
LONGEST = 8192  # pixels of a side, beyond which a picture is reduced first
WIDEST = 32_768  # pixels that a picture may be resized to
SHORTEST = 2.0  # widths of that part to its height, at least, where the picture has them
WHOLE = 0.9  # share of a picture beyond which nothing of note was cut off, and its texture is looked at
# rows and columns with a text have more contrast than the floor of a texture, by so much of what the highest has more,
# which is so many times the floor; that part is no taller than so much of the picture, which has so many pixels a side
OVER_TEXTURE, STANDS_OUT, LESS, SMALLEST = 0.25, 2.0, 0.6, 8
# of a frame: the share of a line that has its colour, within so many levels, so many from the paper; and how deep it is
# share of the line inside it that is paper
ONE_COLOUR, ALIKE, UNLIKE, DEEPEST, INSIDE = 0.95, 12, 30, 0.35, 0.5
OTHER_WAY = (
    16.0  # levels by which a pixel differs from the paper more than twice as much the other way than its picture does
)
LUMINANCE = np.float32(1 - COLOUR) * np.array(LUMA, np.float32)  # its share of that grey, by channel
Grey = NDArray[np.uint8]
Part = tuple[float, float, float, float]  # left, top, right, bottom, pixels


class PictureError(Exception):
    """A picture that cannot be opened. `kind` is a key of `samples.REASONS`."""

    def __init__(self, kind: str, detail: str) -> None:
        super().__init__(detail)
        self.kind = kind


def open_picture(
    source: bytes | Path | Image.Image, mode: Literal["L", "RGB"] | None = "RGB", max_pixels: int = MAX_PIXELS
) -> Image.Image:
    """The first frame of a picture in one of the formats that are read; palettes and alpha are laid on white.

    Without a mode, a grey picture stays grey ("L") and every other is "RGB".

    Raises:
        PictureError: missing, unreadable or truncated, of zero size, or of more than `max_pixels` pixels (the size is
            read from the header, before anything is decoded).
    """
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            if isinstance(source, Image.Image):
                return _decode(source, mode, max_pixels)
            with identify(source) as picture:
                if picture.format in ("JPEG", "MPO"):
                    _see_scans(source if isinstance(source, bytes) else source.read_bytes())
                return _decode(picture, mode, max_pixels)
    except PictureError:
        raise
    except FileNotFoundError:
        raise PictureError("missing file", "no such file") from None
    except IsADirectoryError:
        raise PictureError("unreadable", "a folder, not a picture") from None
    except Image.DecompressionBombError as error:
        raise PictureError("too large", str(error)) from None
    except UnidentifiedImageError:
        raise PictureError(
            "unreadable", f"no picture, or in none of the formats that are read: {', '.join(USUAL + UNUSUAL)}"
        ) from None
    except MemoryError:
        raise PictureError("too large", "not enough memory to decode it") from None
    except Exception as error:  # Pillow's decoders raise whatever their format's parser raised
        raise PictureError("unreadable", f"{type(error).__name__}: {error}") from None


def identify(source: bytes | Path) -> Image.Image:
    """A picture's format and size, by its header: nothing is decoded yet.

    Raises:
        UnidentifiedImageError: none of the formats that are read.
        OSError: no file that can be read.
    """
    file = io.BytesIO(source) if isinstance(source, bytes) else source
    try:
        return Image.open(file, formats=USUAL)
    except UnidentifiedImageError:
        Image.init()
        return Image.open(file, formats=[name for name in UNUSUAL if name in Image.OPEN])


def _decode(picture: Image.Image, mode: Literal["L", "RGB"] | None, max_pixels: int) -> Image.Image:
    if picture.width * picture.height > max_pixels:
        raise PictureError("too large", f"{picture.width} x {picture.height} pixels, the bound is {max_pixels}")
    if (decoded := _decoded_at_once(picture)) > max_pixels:
        raise PictureError("too large", f"tiles of {decoded} pixels, the bound is {max_pixels}")
    if picture.width == 0 or picture.height == 0:
        raise PictureError("unreadable", f"its size is {picture.width} x {picture.height}")
    picture.load()
    with suppress(Exception):  # a damaged EXIF says nothing of the pixels
        if picture.getexif().get(ExifTags.Base.Orientation, 1) != 1:  # a camera was held otherwise; viewers turn it
            picture = ImageOps.exif_transpose(picture)
    whole = _on_white(picture)
    return whole.convert(mode or ("L" if whole.mode in ("1", "L") else "RGB"))


def _decoded_at_once(picture: Image.Image) -> int:
    """The pixels of a TIFF's tile, which need not be smaller than the picture: it is decoded whole."""
    tags = getattr(picture, "tag_v2", {})
    sides = [tags.get(tag, 0) for tag in (322, 323)]  # TileWidth, TileLength
    return int(sides[0]) * int(sides[1]) if all(isinstance(side, int) for side in sides) else 0


def _see_scans(file: bytes) -> None:
    """See that a JPEG holds no more scans than any camera or editor writes: each is a pass over all of the picture, and
    takes fourteen bytes.

    Raises:
        PictureError: it does.
    """
    if file.count(b"\xff\xda") <= MOST_SCANS:
        return
    at, scans = 2, 0
    while (found := MARKER.search(file, at)) and found.group() != b"\xff\xd9":  # behind that a phone puts its film
        scans += found.group() == b"\xff\xda"
        at = found.end() + int.from_bytes(file[found.end() : found.end() + 2])  # past its segment
    if scans > MOST_SCANS:
        raise PictureError("too large", f"{scans} scans, the bound is {MOST_SCANS}")


def _on_white(picture: Image.Image) -> Image.Image:
    if picture.mode in ("I", "I;16", "I;16B", "F"):  # convert would clip 16-bit greys at 255
        values = np.asarray(picture, dtype=np.float32)
        low, high = float(np.nanmin(values)), float(np.nanmax(values))
        # of 10 or 12 bits in 16, as cameras and scanners write them, or of floats from 0 to 1
        top = 1.0 if picture.mode == "F" and high <= 1 else max(255.0, 2.0 ** np.ceil(np.log2(max(high, 1) + 1)) - 1)
        clear = values == picture.info.get("transparency")
        if low < 0 or high > 65535:
            values, top = values - low, max(high - low, 1e-6)
        grey = np.nan_to_num(values * (255.0 / top)).clip(0, 255).astype(np.uint8)
        return Image.fromarray(np.where(clear, np.uint8(255), grey))
    if picture.mode in ("RGBA", "LA", "PA", "La", "RGBa") or "transparency" in picture.info:
        rgba = picture.convert("RGBA")
        return Image.alpha_composite(Image.new("RGBA", rgba.size, "white"), rgba)
    return picture


@dataclass(frozen=True)
class Frame:
    """The size that a reader takes, in pixels.

    `min_width` is what its longest text needs: a narrower picture is stretched to it. A picture wider than `max_width`
    is squeezed to it. With `trim` the reader sees only the part in which the text stands.
    """

    height: int = 32
    min_width: int = 64
    max_width: int = 512
    trim: bool = False

    def __post_init__(self) -> None:
        sides = (self.height, self.min_width, self.max_width)
        if not all(type(side) is int for side in sides) or not (
            8 <= self.height <= 1024 and 1 <= self.min_width <= self.max_width <= WIDEST
        ):
            raise ValueError(f"no reader's frame is {self.height} high and {self.min_width} to {self.max_width} wide")

    @classmethod
    def for_texts(cls, longest: int, height: int = 32, max_width: int = 512, trim: bool = False) -> Frame:
        """The frame in which texts of up to `longest` characters have four output frames for each."""
        return cls(height, min(max(4 * STRIDE * longest, WIDTH_STEP), max_width), max_width, trim)

    def part(self, picture: Image.Image) -> Part:
        """The part of a picture in "L" or "RGB" that `fit` shows, in its pixels: all of it, or that of its text."""
        if not self.trim:
            return (0.0, 0.0, float(picture.width), float(picture.height))
        part = self._closer(picture, within_frame(picture))
        small = part[3] - part[1] < picture.height / 2  # a line of a large picture is found roughly at first
        return self._closer(picture, part) if small else part

    def _closer(self, picture: Image.Image, part: Part) -> Part:
        left, top, right, bottom = part
        width = min(max(round((right - left) * self.height / (bottom - top)), 1), self.max_width)
        ((x0, y0, x1, y1),) = text_parts(_resized(picture, (width, self.height), part)[None]).tolist()
        return (left + (right - left) * x0, top + (bottom - top) * y0,
                left + (right - left) * x1, top + (bottom - top) * y1)  # fmt: skip

    def width_of(self, width: float, height: float) -> int:
        """The width that a part of `width` x `height` pixels is resized to, before padding."""
        return min(max(round(width * self.height / height), self.min_width), self.max_width)

    def fit(self, picture: Image.Image) -> Grey:
        """The part that it shows of a picture in "L" or "RGB", grey (`grey_of`), at the reader's height, its right side
        padded with the median of its border, uint8 (H, W)."""
        picture = _bounded(picture)
        left, top, right, bottom = part = self.part(picture)
        width = self.width_of(right - left, bottom - top)
        small = _resized(picture, (width, self.height), part)
        padded = np.empty((self.height, -(-width // WIDTH_STEP) * WIDTH_STEP), np.uint8)
        padded[:, :width] = small
        if padded.shape[1] > width:
            border = np.concatenate([small[0], small[-1], small[:, 0], small[:, -1]])
            padded[:, width:] = np.median(border)
        return padded


def _bounded(picture: Image.Image) -> Image.Image:
    """A picture whose sides are at most some thousand pixels: some versions of Pillow first draw one of a single column
    and millions of rows out to its width."""
    by = (max(picture.width // LONGEST, 1), max(picture.height // LONGEST, 1))
    return picture if by == (1, 1) else picture.reduce(by)


def _resized(picture: Image.Image, size: tuple[int, int], part: Part) -> Grey:
    # BILINEAR with Pillow's antialiasing: reducing first would alias thin strokes
    small = np.asarray(picture.resize(size, Image.Resampling.BILINEAR, box=part))
    return small if small.ndim == 2 else grey_of(small)


def within_frame(picture: Image.Image) -> Part:
    """What is left of a picture in "L" or "RGB" without a frame: lines of one colour, not the paper's, along two
    opposite sides or all four."""
    w, h = picture.size
    few = np.asarray(picture.resize((min(w, 32), min(h, 16)), Image.Resampling.NEAREST))
    few = few.reshape(few.shape[0] * few.shape[1], -1)
    paper = in_order(few.T)[:, len(few) // 2]
    box = [0, 0, w, h]
    for low, high, size in ((1, 3, h), (0, 2, w)):
        deepest = int(DEEPEST * size)
        first = frame_colour(picture, box, low, paper) if deepest else None
        last = None if first is None else frame_colour(picture, box, high, paper)
        if first is None or last is None or np.abs(first - last).max() > ALIKE:
            continue
        inner = list(box)
        for side, step, colour in ((low, 1, first), (high, -1, last)):
            inner[side] += step * depth_of(picture, box, side, colour, deepest)
        # bold letters may have more ink than paper: then it is paper's margin that looks like a frame
        if all((far_from(lines_of(picture, inner, side, 1), paper) <= UNLIKE).mean() >= INSIDE for side in (low, high)):
            box = inner
    left, top, right, bottom = map(float, box)
    return left, top, right, bottom


def lines_of(picture: Image.Image, box: list[int], side: int, count: int) -> NDArray[np.int16]:
    """The outermost lines of a box (count, pixels, channels) at its left, top, right or bottom, the outermost first."""
    part = list(box)
    part[(side + 2) % 4] = box[side] + (count if side < 2 else -count)
    left, top, right, bottom = min(part[0::2]), min(part[1::2]), max(part[0::2]), max(part[1::2])
    lines = np.asarray(picture.crop((left, top, right, bottom)), np.int16).reshape(bottom - top, right - left, -1)
    lines = lines if side % 2 else lines.swapaxes(0, 1)
    return lines if side < 2 else lines[::-1]


def far_from(lines: NDArray[np.int16], colour: NDArray[Any]) -> NDArray[np.int16]:
    """By how many levels pixels (..., channels) differ from a colour, in the channel in which they do most."""
    return np.asarray(np.abs(lines - colour.astype(np.int16)).max(-1))


def depth_of(picture: Image.Image, box: list[int], side: int, colour: NDArray[np.int16], deepest: int) -> int:
    """How many lines of a box, from its left, top, right or bottom on, have a colour."""
    count = 0
    while count < deepest:
        count = min(4 * count or 4, deepest)
        alike = (far_from(lines_of(picture, box, side, count), colour) <= ALIKE).mean(1) >= ONE_COLOUR
        if not alike.all():
            return int(alike.argmin())
    return deepest


def frame_colour(
    picture: Image.Image, box: list[int], side: int, paper: NDArray[np.uint8]
) -> NDArray[np.int16] | None:  # fmt: skip
    """The colour, unlike the paper's, that nearly all of the outermost line of a box has, if it has one."""
    (line,) = lines_of(picture, box, side, 1)
    if (far_from(line, paper) > UNLIKE).mean() < ONE_COLOUR:
        return None
    colour = np.sort(line, 0)[len(line) // 2]
    return colour if (far_from(line, colour) <= ALIKE).mean() >= ONE_COLOUR else None


def in_order(values: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """Bytes sorted along the last axis, by a radix sort: a partition slows down where one value comes thousands of
    times, as paper's does."""
    return np.sort(values, axis=-1, kind="stable")


def text_parts(greys: NDArray[np.uint8]) -> NDArray[np.float64]:
    """In which part of each grey picture (N, H, W) its text stands: left, top, right, bottom (N, 4), as shares of its
    width and height.

    Ink is what lies further from the paper (the median) than the root mean square of all, of which no pixel counts more
    than `DARKEST`: a black stroke must not hide pale letters. Where ink reaches to all sides, as noise and textures do,
    it is where contrast stands out, if anywhere.
    """
    n, h, w = greys.shape
    paper = in_order(greys.reshape(n, -1))[:, h * w // 2, None, None]
    squares = np.minimum(np.abs(greys.astype(np.float32) - paper), DARKEST) ** 2
    ink = squares > squares.mean((1, 2), keepdims=True)
    total = ink.sum((1, 2))[:, None]

    def ends(side: int, left_out: NDArray[np.float64]) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        """Where ink begins and ends along an axis, pixels (N,)."""
        before = ink.sum(side).cumsum(1)  # columns, or rows
        first = (before <= left_out[:, None] * total).sum(1)
        last = (before < (1 - left_out[:, None]) * total).sum(1) + 1
        blank = total[:, 0] == 0
        return np.where(blank, 0.0, first), np.where(blank, before.shape[1], last).astype(float)

    top, bottom = ends(2, np.full(n, LEFT_OUT))
    tall = bottom - top
    left, right = ends(1, np.minimum(LEFT_OUT, PART_OF_A_LETTER * tall / w))
    parts = with_margins(np.stack([left, top, right, bottom], 1), w, h)
    for i in np.flatnonzero(np.prod(parts[:, 2:] - parts[:, :2], axis=1) > WHOLE):
        if found := in_texture(greys[i]):
            parts[i] = with_margins(np.array([found], float), w, h)[0]
    return parts


def with_margins(ink: NDArray[np.float64], w: int, h: int) -> NDArray[np.float64]:
    """The parts of pictures of `w` x `h` pixels in which texts stand, as `text_parts` gives them, from where their ink
    does: left, top, right, bottom (N, 4), pixels."""
    left, top, right, bottom = ink.T
    tall = bottom - top
    top, bottom = np.maximum(top - ABOVE * tall, 0), np.minimum(bottom + ABOVE * tall, h)
    left, right = np.maximum(left - BESIDE * tall, 0), np.minimum(right + BESIDE * tall, w)
    wide = np.maximum(right - left, np.minimum(SHORTEST * (bottom - top), w))
    left = np.clip((left + right - wide) / 2, 0, w - wide)
    return np.stack([left / w, top / h, (left + wide) / w, bottom / h], 1)


def in_texture(grey: NDArray[np.uint8]) -> tuple[int, int, int, int] | None:
    """Where a text stands in a grey picture (H, W) whose paper is textured, left, top, right, bottom, pixels; None
    where nothing stands out."""
    h = grey.shape[0]
    if min(grey.shape) < SMALLEST:
        return None
    contrast = np.abs(np.diff(sums_of_three(sums_of_three(grey.astype(np.float32)).T).T, axis=1))
    rows = stands_out(sums_of_three(contrast.sum(1)))
    if rows is None or not 4 <= (tall := rows[1] - rows[0]) <= LESS * h / (1 + 2 * ABOVE):
        return None
    by_column = contrast[slice(*rows)].sum(0)
    over = min(max(round(0.8 * tall), 3), len(by_column))
    left, right = over // 2, over - 1 - over // 2
    mirrored = np.concatenate([by_column[left:0:-1], by_column, by_column[-2 : -right - 2 : -1]])
    columns = stands_out(np.convolve(mirrored, np.ones(over, np.float32), "valid"))
    if columns is None or columns[1] - columns[0] < 0.8 * tall:
        return None
    return columns[0], rows[0], columns[1], rows[1]


def sums_of_three(values: NDArray[np.float32]) -> NDArray[np.float32]:
    """Each of values (N, ...) and its two neighbours, mirrored beyond the ends."""
    sums = values.copy()
    sums[1:] += values[:-1]
    sums[:-1] += values[1:]
    sums[0] += values[1]
    sums[-1] += values[-2]
    return sums


def stands_out(contrast: NDArray[np.float32]) -> tuple[int, int] | None:
    """From where to where a contrast (N,) is higher than that of the texture; None where it hardly is anywhere."""
    floor, most = float(np.sort(contrast)[len(contrast) // 5]), float(contrast.max())
    if most < STANDS_OUT * max(floor, 1e-6):
        return None
    on = np.flatnonzero(contrast > floor + OVER_TEXTURE * (most - floor))
    return int(on[0]), int(on[-1]) + 1


def grey_of(picture: NDArray[np.uint8]) -> Grey:
    """The grey (H, W) of a picture (H, W, 3) in which pale and bright inks stand out from the paper.

    Luminance hides yellow on white and lavender on white. What counts `COLOUR` is by how much the channel that differs
    most from the paper (each channel's median) is darker, or in a picture whose inks are bright, brighter, but for
    pixels that differ far more the other way; luminance is the rest. Where the channels are equal, nothing changes.
    """
    channels = np.ascontiguousarray(np.moveaxis(picture, -1, 0)).reshape(3, -1)
    paper = in_order(channels)[:, (channels.shape[1] - 1) // 2, None]
    values = channels.astype(np.float32)
    apart = values - paper
    brighter, darker = apart.max(0), apart.min(0)
    up, down = np.maximum(brighter, 0), np.minimum(darker, 0)
    telling, other = (brighter, darker) if up @ up > down @ down else (darker, brighter)
    telling = np.where(np.abs(other) > 2 * np.abs(telling) + OTHER_WAY, other, telling)
    telling += np.array(LUMA, np.float32) @ paper.astype(np.float32)
    mixed = LUMINANCE @ values + np.float32(COLOUR) * telling + np.float32(0.5)
    return np.asarray(mixed.clip(0, 255), np.uint8).reshape(picture.shape[:2])


def normalise(grey: NDArray[np.uint8]) -> NDArray[np.float32]:
    """Pictures (..., H, W) of 0 to 255 with mean 0 and standard deviation 1 each, dark ink on bright paper.

    Most of a picture is paper: where the middle value lies under the mean, ink is the brighter one, and the picture is
    turned over. The deviation is held over 8 grey levels, or an empty picture's noise would be blown up to text.
    """
    x = grey.astype(np.float32)
    mean = x.mean(axis=(-2, -1), keepdims=True)
    spread = np.maximum(x.std(axis=(-2, -1), keepdims=True), 8.0)
    flat = grey.reshape(*grey.shape[:-2], -1)
    n = flat.shape[-1]
    middle = in_order(flat)[..., [(n - 1) // 2, n // 2]].astype(np.float32).mean(-1)[..., None, None]
    turned = np.where(middle < mean, -1, 1).astype(np.float32)
    return np.asarray((x - mean) * (turned / spread), dtype=np.float32)
