"""Open pictures that nobody vouches for, and bring them to the size that a reader takes.

A reader takes grey pictures of one height, aspect kept, whose width is a multiple of `WIDTH_STEP`. The padding
depends on the picture alone, so that what is read in it does not depend on its neighbours in a batch.
"""

from __future__ import annotations

import io
import warnings
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
from numpy.typing import NDArray
from PIL import Image, UnidentifiedImageError

STRIDE = 4  # pixels to a frame of a reader's output, of every size
WIDTH_STEP = 16
MAX_PIXELS = 16_000_000
LUMA = (0.299, 0.587, 0.114)  # what Pillow weighs red, green and blue with
COLOUR = 0.7  # share of the most telling channel in a picture's grey; the rest is luminance
Grey = NDArray[np.uint8]


class PictureError(Exception):
    """A picture that cannot be opened. `kind` is a key of `samples.REASONS`."""

    def __init__(self, kind: str, detail: str) -> None:
        super().__init__(detail)
        self.kind = kind


def open_picture(
    source: bytes | Path | Image.Image, mode: Literal["L", "RGB"] | None = "RGB", max_pixels: int = MAX_PIXELS
) -> Image.Image:
    """The first frame of a picture in any format that Pillow opens; palettes and alpha are laid on white.

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
            with Image.open(io.BytesIO(source) if isinstance(source, bytes) else source) as picture:
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
        raise PictureError("unreadable", "no picture format that Pillow knows") from None
    except MemoryError:
        raise PictureError("too large", "not enough memory to decode it") from None
    except Exception as error:  # Pillow's decoders raise whatever their format's parser raised
        raise PictureError("unreadable", f"{type(error).__name__}: {error}") from None


def _decode(picture: Image.Image, mode: Literal["L", "RGB"] | None, max_pixels: int) -> Image.Image:
    if picture.width * picture.height > max_pixels:
        raise PictureError("too large", f"{picture.width} x {picture.height} pixels, the bound is {max_pixels}")
    if picture.width == 0 or picture.height == 0:
        raise PictureError("unreadable", f"its size is {picture.width} x {picture.height}")
    if picture.format == "EPS":  # Pillow would hand a stranger's PostScript to Ghostscript
        raise PictureError("unreadable", "EPS is a program, not a picture: convert it to PNG")
    picture.load()
    whole = _on_white(picture)
    return whole.convert(mode or ("L" if whole.mode in ("1", "L") else "RGB"))


def _on_white(picture: Image.Image) -> Image.Image:
    if picture.mode in ("I", "I;16", "I;16B", "F"):  # convert would clip 16-bit greys at 255
        values = np.asarray(picture, dtype=np.float32)
        low, high = float(np.nanmin(values)), float(np.nanmax(values))
        top = 65535.0 if high > 255 else 255.0
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
    is squeezed to it.
    """

    height: int = 32
    min_width: int = 64
    max_width: int = 512

    @classmethod
    def for_texts(cls, longest: int, height: int = 32, max_width: int = 512) -> Frame:
        """The frame in which texts of up to `longest` characters have four output frames for each."""
        return cls(height, min(max(4 * STRIDE * longest, WIDTH_STEP), max_width), max_width)

    def width_of(self, width: int, height: int) -> int:
        """The width that a picture of `width` x `height` pixels is resized to, before padding."""
        return min(max(round(width * self.height / height), self.min_width), self.max_width)

    def padded_width_of(self, width: int, height: int) -> int:
        """`width_of`, rounded up to a multiple of `WIDTH_STEP`."""
        return -(-self.width_of(width, height) // WIDTH_STEP) * WIDTH_STEP

    def fit(self, picture: Image.Image) -> Grey:
        """A grey picture (`grey_of`) of one in "L" or "RGB" at the reader's height, its right side padded with the
        median of its border, uint8 (H, W)."""
        width = self.width_of(*picture.size)
        # BILINEAR with Pillow's antialiasing: reducing first would alias thin strokes
        small = np.asarray(picture.resize((width, self.height), Image.Resampling.BILINEAR))
        if small.ndim == 3:
            small = grey_of(small)
        padded = np.empty((self.height, -(-width // WIDTH_STEP) * WIDTH_STEP), np.uint8)
        padded[:, :width] = small
        if padded.shape[1] > width:
            border = np.concatenate([small[0], small[-1], small[:, 0], small[:, -1]])
            padded[:, width:] = np.median(border)
        return padded


def grey_of(picture: NDArray[np.uint8]) -> Grey:
    """The grey (H, W) of a picture (H, W, 3) in which pale and bright inks stand out from the paper.

    Luminance hides yellow on white and lavender on white. Of each pixel the channel that differs most from the paper
    (each channel's median) counts `COLOUR`, its luminance the rest. Where the channels are equal, nothing changes.
    """
    paper = [np.searchsorted(np.bincount(channel.ravel(), minlength=256).cumsum(), channel.size / 2)
             for channel in np.moveaxis(picture, -1, 0)]  # fmt: skip
    most = np.abs(picture.astype(np.int16) - np.array(paper, np.int16)).argmax(-1, keepdims=True)
    telling = np.take_along_axis(picture, most, -1)[..., 0]
    mixed = COLOUR * telling + (1 - COLOUR) * (picture @ np.array(LUMA, np.float32))
    return np.asarray(mixed + 0.5, np.uint8)


def normalise(grey: NDArray[np.uint8]) -> NDArray[np.float32]:
    """Pictures (..., H, W) of 0 to 255 with mean 0 and standard deviation 1 each, dark ink on bright paper.

    Most of a picture is paper: where the middle value lies under the mean, ink is the brighter one, and the picture is
    turned over. The deviation is held over 8 grey levels, or an empty picture's noise would be blown up to text.
    """
    x = grey.astype(np.float32)
    mean = x.mean(axis=(-2, -1), keepdims=True)
    spread = np.maximum(x.std(axis=(-2, -1), keepdims=True), 8.0)
    turned = np.where(np.median(x, axis=(-2, -1), keepdims=True) < mean, -1, 1).astype(np.float32)
    return np.asarray((x - mean) * (turned / spread), dtype=np.float32)
