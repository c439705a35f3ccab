"""Variants of a real picture by geometry, colour and damage: the classical augmentation, with torchvision."""

from __future__ import annotations

import io
from collections.abc import Sequence
from typing import Annotated, ClassVar

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from pydantic import Field
from torchvision.transforms.v2 import functional as tv

from augment.method import Request
from recognizer.errors import UserError
from recognizer.settings import Settings

Pixels = NDArray[np.float32]  # (H, W, 3), 0 to 255
Box = tuple[int, int, int, int]  # left, right, top, bottom in pixels
Amount = Annotated[float, Field(ge=0, le=2)]

INK = 48  # a pixel this many levels off the border's median is ink
SPILL = 0.02  # share of the height by which the ink's box may leave the picture: speckle at the border counts as ink


class ClassicalSettings(Settings):
    """How strong each kind of change is; 0 is off. Each is multiplied by `strength`; at 1 a text stays readable."""

    strength: Amount = 1.0
    affine: Amount = 1.0  # to 7 degrees, shear .25, scale 15 %, shift 8 % of the height
    perspective: Amount = 1.0  # each side to 10 % larger or smaller
    elastic: Amount = 1.0  # to 7 % of the height, none at the border
    colour: Amount = 1.0  # contrast, saturation and hue to both sides, brightness mostly down
    background: Amount = 1.0  # a tint that grows to one side, to 40 levels
    blur: Amount = 1.0  # or sharpening; deviation to 1.5 % of the height
    noise: Amount = 1.0  # deviation to 14 levels
    jpeg: Amount = 1.0  # quality down to 35
    cutout: Amount = 1.0  # up to three holes, sides to 12 % of the ink's height
    flip: bool = False  # half of the pictures mirrored, where no text depends on it: a mirrored b is a d


class Classical:
    """Bends, recolours and damages a real picture.

    It changes the picture, not the text, and does not know the source's text: that `request.text` is the text of the
    source is the caller's to see to. Never mirrors, unless `flip` is set.
    """

    Settings: ClassVar[type[Settings]] = ClassicalSettings
    needs_source: ClassVar[bool] = True
    exact_text: ClassVar[bool] = False

    def __init__(self, settings: ClassicalSettings) -> None:
        self.settings = settings

    def make(self, requests: Sequence[Request], sources: Sequence[Image.Image | None]) -> list[Image.Image]:
        """One RGB picture for each request, a variant of its source, resized to the asked size.

        Raises:
            UserError: a request without a source.
        """
        pictures = []
        for request, source in zip(requests, sources, strict=True):
            if source is None:
                raise UserError(f"classical varies real pictures: the request for {request.text!r} names no source")
            variant = self._vary(source.convert("RGB"), request.rng())
            pictures.append(variant.resize((request.width, request.height), Image.Resampling.LANCZOS))
        return pictures

    def _vary(self, source: Image.Image, rng: np.random.Generator) -> Image.Image:
        s = self.settings
        pixels = np.array(source, dtype=np.float32)
        if s.flip and rng.random() < 0.5:
            pixels = pixels[:, ::-1].copy()
        border = np.concatenate([pixels[0], pixels[-1], pixels[:, 0], pixels[:, -1]])
        paper = np.median(border, axis=0).astype(np.float32)
        box = _ink_box(pixels, paper)
        pixels = _warp(pixels, paper, box, s, rng)
        # small beside the ink's height, so that no hole hides a character or makes a c of a d
        side = 0.12 * min(s.strength * s.cutout, 2) * (box[3] - box[2])
        _cut_out(pixels, paper, side, rng)
        pixels = _tint(pixels, paper, s.strength * s.background, rng)
        image = torch.from_numpy(pixels).permute(2, 0, 1).clamp(0, 255).round().to(torch.uint8)
        image = _recolour(image, s.strength * s.colour, rng)
        image = _focus(image, s.strength * s.blur, rng)
        image = _speckle(image, s.strength * s.noise, rng)
        picture = Image.fromarray(image.permute(1, 2, 0).contiguous().numpy())
        return _compress(picture, s.strength * s.jpeg, rng)


def _warp(pixels: Pixels, paper: Pixels, box: Box, s: ClassicalSettings, rng: np.random.Generator) -> Pixels:
    """Affine, perspective and elastic in one interpolation, so that thin strokes are smoothed once."""
    height, width = pixels.shape[:2]
    back = np.linalg.inv(_homography(width, height, box, s, rng))
    # pixel centres about the middle of the picture, in units of its height
    y, x = np.mgrid[0:height, 0:width].astype(np.float64)
    x, y = (x + 0.5 - width / 2) / height, (y + 0.5 - height / 2) / height
    below = back[2, 0] * x + back[2, 1] * y + back[2, 2]
    grid = np.stack([(back[i, 0] * x + back[i, 1] * y + back[i, 2]) / below for i in (0, 1)])
    knots = rng.uniform(-1, 1, (2, 2, max(round(2 * width / height), 1))).astype(np.float32)
    pinned = torch.from_numpy(np.pad(knots, ((0, 0), (1, 1), (1, 1))))[None]  # a border that moves would cut off ink
    bend = torch.nn.functional.interpolate(pinned, (height, width), mode="bicubic", align_corners=True)
    grid += 0.07 * s.strength * s.elastic * bend[0].numpy()
    grid[0] *= 2 * height / width  # grid_sample's units: -1 to 1 from edge to edge
    grid[1] *= 2
    where = torch.from_numpy(grid).permute(1, 2, 0)[None].float()
    # the difference from the paper is what is sampled: outside it is zero, and no seam shows where the picture ends
    ink = torch.from_numpy(pixels - paper).permute(2, 0, 1)[None]
    warped = torch.nn.functional.grid_sample(ink, where, mode="bilinear", padding_mode="zeros", align_corners=False)
    return warped[0].permute(1, 2, 0).numpy() + paper


def _ink_box(pixels: Pixels, paper: Pixels) -> Box:
    """The box around all that stands out from the paper; the whole picture where nothing does."""
    ink = np.abs(pixels - paper).max(axis=2) > INK
    rows, columns = np.flatnonzero(ink.any(axis=1)), np.flatnonzero(ink.any(axis=0))
    if not rows.size:
        return 0, pixels.shape[1], 0, pixels.shape[0]
    return int(columns[0]), int(columns[-1]) + 1, int(rows[0]), int(rows[-1]) + 1


def _homography(
    width: int, height: int, box: Box, s: ClassicalSettings, rng: np.random.Generator
) -> NDArray[np.float64]:
    """Source to result, (3, 3), in heights from the middle, made to keep the ink's box within the picture."""
    half = np.array([width / height / 2, 0.5])
    amount = s.strength * s.affine
    turn = np.deg2rad(7 * amount * rng.uniform(-1, 1))
    shear = 0.25 * amount * rng.uniform(-1, 1)
    sx, sy = np.exp(0.15 * amount * rng.uniform(-1, 1, 2))
    shift = 0.08 * amount * rng.uniform(-1, 1, 2)
    tilt = 0.1 * s.strength * s.perspective * rng.uniform(-1, 1, 2) / half
    rotation = np.array([[np.cos(turn), -np.sin(turn), 0], [np.sin(turn), np.cos(turn), 0], [0, 0, 1]])
    matrix = rotation @ np.array([[sx, shear, 0], [0, sy, 0], [*tilt, 1]])

    left, right, top, bottom = np.array(box) / height - half.repeat(2)
    corners = matrix @ np.array([[left, right, left, right], [top, top, bottom, bottom], [1, 1, 1, 1]])
    corners = corners[:2] / corners[2]
    low, high, room = corners.min(axis=1), corners.max(axis=1), half + SPILL
    shrink = min(1.0, float((2 * room / (high - low)).min()))
    shift = np.clip(shift, -room - shrink * low, room - shrink * high)
    return np.asarray(np.array([[shrink, 0, shift[0]], [0, shrink, shift[1]], [0, 0, 1]]) @ matrix, dtype=np.float64)


def _cut_out(pixels: Pixels, paper: Pixels, side: float, rng: np.random.Generator) -> None:
    """Lay up to three holes of the paper's colour into `pixels`, their sides `side` pixels at most."""
    height, width = pixels.shape[:2]
    for _ in range(int(rng.integers(4))):
        h, w = np.rint(side * rng.uniform(0.5, 1, 2)).astype(int)
        top, left = rng.integers((0, 0), (height, width))
        pixels[top : top + h, left : left + w] = paper


def _tint(pixels: Pixels, paper: Pixels, amount: float, rng: np.random.Generator) -> Pixels:
    """Shift the colours near the paper's, by more to one side than to the other."""
    height, width = pixels.shape[:2]
    colour = 40 * amount * rng.uniform(-1, 1, 3)
    start, across, down = rng.uniform(-1, 1, 3)
    slope = start + across * np.linspace(-1, 1, width)[None] + down * np.linspace(-1, 1, height)[:, None]
    distance = np.abs(pixels - paper).max(axis=2)
    share = np.clip(slope, -1, 1) * np.exp(-((distance / INK) ** 2))
    return np.asarray(pixels + share[..., None] * colour, dtype=np.float32)


def _recolour(image: torch.Tensor, amount: float, rng: np.random.Generator) -> torch.Tensor:
    # most papers are near white: much brighter or flatter would drown pale letters in them
    brightness, contrast, saturation = np.exp(amount * rng.uniform((-0.35, -0.15, -0.4), (0.05, 0.35, 0.4)))
    image = tv.adjust_brightness(image, float(brightness))
    image = tv.adjust_contrast(image, float(contrast))
    image = tv.adjust_saturation(image, float(saturation))
    image = tv.adjust_hue(image, 0.1 * amount * float(rng.uniform(-1, 1)))
    return image


def _focus(image: torch.Tensor, amount: float, rng: np.random.Generator) -> torch.Tensor:
    """Blur a third of the pictures, sharpen a third."""
    kind, degree = rng.random(2)
    height, width = image.shape[-2:]
    sigma = 0.015 * height * amount * degree
    if kind < 1 / 3 and sigma > 0.1:
        side = 2 * min(int(np.ceil(2 * sigma)), min(height, width) - 1) + 1
        image = tv.gaussian_blur(image, [side, side], [sigma, sigma])
    elif kind > 2 / 3:
        image = tv.adjust_sharpness(image, 1 + 2 * amount * degree)
    return image


def _speckle(image: torch.Tensor, amount: float, rng: np.random.Generator) -> torch.Tensor:
    """Add noise, grey or coloured, to half of the pictures."""
    deviation = 14 * amount * max(rng.uniform(-1, 1), 0)
    noise = rng.normal(0, deviation, (rng.choice([1, 3]), *image.shape[1:]))
    return (image + torch.from_numpy(noise)).clamp(0, 255).round().to(torch.uint8)


def _compress(picture: Image.Image, amount: float, rng: np.random.Generator) -> Image.Image:
    """Write half of the pictures as JPEG (with Pillow: torchvision 0.29 gives up its own codec)."""
    quality = round(95 - 60 * amount * max(rng.uniform(-1, 1), 0))
    if quality == 95:
        return picture
    file = io.BytesIO()
    picture.save(file, "JPEG", quality=max(quality, 10))
    return Image.open(file).convert("RGB")
