"""The `captcha` package's picture captchas, seeded.

The package draws from `secrets`, so that `random.seed` changes nothing. Here it is lent a seeded source for the time of
one picture.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import lru_cache
from typing import Annotated, Any, ClassVar, TypeVar, cast

import captcha.image as library
import numpy as np
from PIL import Image, ImageFilter, ImageFont
from pydantic import Field

from augment.method import Request
from recognizer.errors import UserError
from recognizer.settings import Settings

HEIGHT = 60  # pixels; the package's font sizes, offsets, dots and lines are made for it
NARROWEST = 0.55  # the package squeezes a text that is too wide; below this share letters become bars
MIN_CONTRAST = 60.0  # grey levels; the package draws dark colours nearly transparent
SMALLEST = 21  # pixels of a font in which a text may be squeezed: its letters are ten pixels wide, and few are read
ABSENT = "\uffff"  # a code point that no font may draw, so that it shows the font's sign for a missing glyph

T = TypeVar("T")


class CaptchaSettings(Settings):
    """The look of the pictures. The defaults are the package's own; sizes are pixels at a picture height of 60."""

    fonts: tuple[str, ...] = ()  # font files; none is the package's one, Droid Sans Mono
    font_sizes: tuple[Annotated[int, Field(ge=8, le=120)], ...] = Field((42, 50, 56), min_length=1)
    curves: int = Field(1, ge=0, le=20)
    dots: int = Field(30, ge=0, le=1000)
    rotation: int = Field(30, ge=0, le=90)  # degrees to either side
    warp_x: float = Field(0.2, ge=0, le=0.5)  # how far a character's corners move, as a share of its width
    warp_y: float = Field(0.1, ge=0, le=0.5)  # the same of its height
    overlap: float = Field(0.25, ge=0, le=0.5)  # the most of a character's width that the next one covers
    spaces: float = Field(0.5, ge=0, le=1)  # how likely a gap stands before a character


class Captcha:
    """Draws any text of visible characters with the `captcha` package (github lepture/captcha).

    Each picture is drawn 60 pixels high, for which the package is made, and resized. A text too long for its picture is
    drawn in a smaller font, and one that could not be read there is refused.

    Threads of this class wait for each other. The package itself is not safe meanwhile: whoever calls it directly in
    another thread while a picture is made here draws from the same seeded source and disturbs it.
    """

    Settings: ClassVar[type[Settings]] = CaptchaSettings
    needs_source: ClassVar[bool] = False
    exact_text: ClassVar[bool] = True

    def __init__(self, settings: CaptchaSettings) -> None:
        self.settings = settings
        self.fonts = settings.fonts or tuple(library.DEFAULT_FONTS)
        for font in self.fonts:
            try:
                ImageFont.truetype(font, HEIGHT)
            except OSError:
                raise UserError(f"font {font!r}: no such file, or no font in it") from None

    def make(self, requests: Sequence[Request], sources: Sequence[Image.Image | None]) -> list[Image.Image]:
        """One RGB picture for each request; `sources` is not used.

        Raises:
            UserError: a text with a character that none of the fonts can draw together with the others, or a
                picture that is too narrow for its text.
        """
        return [self._draw(request) for request in requests]

    def can_draw(self, requests: Sequence[Request]) -> list[bool]:
        """Whether one of the fonts draws all of a request's characters, and there is room for them, for each."""
        able = [tuple(font for font in self.fonts if all(_drawable(font, c) for c in r.shown)) for r in requests]
        return [bool(fonts) and self._has_room(r, fonts) for r, fonts in zip(requests, able, strict=True)]

    def _scale(self, request: Request, fonts: Sequence[str]) -> float:
        """How much smaller the fonts are, that a text fits into its picture."""
        width = HEIGHT * request.width / request.height
        return min(width / (NARROWEST * self._natural_width(request.shown, fonts)), 1.0)

    def _has_room(self, request: Request, fonts: Sequence[str]) -> bool:
        scale = self._scale(request, fonts)
        return scale == 1 or scale * float(np.mean(self.settings.font_sizes)) >= SMALLEST

    def _draw(self, request: Request) -> Image.Image:
        fonts = self._fonts_with(request.shown)
        settings = self.settings
        if not self._has_room(request, fonts):
            raise UserError(f"{request.shown!r} is too long to be read in {request.width} x {request.height} pixels")
        width = max(round(HEIGHT * request.width / request.height), 1)
        scale = self._scale(request, fonts)
        sizes = tuple(max(round(size * scale), 8) for size in settings.font_sizes)
        painter = library.ImageCaptcha(width, HEIGHT, list(fonts), sizes)
        painter.character_rotate = (-settings.rotation, settings.rotation)
        painter.character_warp_dx = (0.0, settings.warp_x)
        painter.character_warp_dy = (0.0, settings.warp_y)
        painter.word_space_probability = 1 - settings.spaces
        painter.word_offset_dx = settings.overlap
        with _seeded(request.rng()) as source:
            paper = library.random_color(238, 255)
            ink = _visible_ink(paper, source)
            picture = painter.create_captcha_image(request.shown, ink, paper)
            painter.create_noise_dots(picture, ink, number=settings.dots)
            for _ in range(settings.curves):
                painter.create_noise_curve(picture, ink)
        return picture.filter(ImageFilter.SMOOTH).resize((request.width, request.height), Image.Resampling.LANCZOS)

    def _fonts_with(self, text: str) -> tuple[str, ...]:
        missing = {font: "".join(dict.fromkeys(c for c in text if not _drawable(font, c))) for font in self.fonts}
        able = tuple(font for font, characters in missing.items() if not characters)
        if not able:
            raise UserError(
                f"{text!r}: no font draws {min(missing.values(), key=len)!r}; set fonts to a file that does"
            )
        return able

    def _natural_width(self, text: str, fonts: Sequence[str]) -> float:
        """About how wide the package draws a text before it squeezes it, in pixels."""
        size = float(np.mean(self.settings.font_sizes))
        ems = [sum(_advance(font, c) + self.settings.spaces * _advance(font, " ") for c in text) for font in fonts]
        return size * float(np.mean(ems))


class _Source:
    """What the package uses of `secrets`, from a seeded generator."""

    def __init__(self, rng: np.random.Generator) -> None:
        self.rng = rng

    def randbelow(self, bound: int) -> int:
        return int(self.rng.integers(bound))

    def randbits(self, bits: int) -> int:
        return int(self.rng.integers(1 << bits))

    def choice(self, items: Sequence[T]) -> T:
        return items[self.randbelow(len(items))]


_lock = threading.Lock()


@contextmanager
def _seeded(rng: np.random.Generator) -> Iterator[_Source]:
    module = cast(Any, library)
    with _lock:
        own, module.secrets = module.secrets, _Source(rng)
        try:
            yield module.secrets
        finally:
            module.secrets = own


def _visible_ink(paper: tuple[int, ...], source: _Source) -> tuple[int, int, int, int]:
    """A colour as the package draws it, again until it stands out from the paper by `MIN_CONTRAST`."""
    while True:
        red, green, blue = (source.randbelow(191) + 10 for _ in range(3))
        grey = 0.299 * red + 0.587 * green + 0.114 * blue
        opacity = min(1.97 * grey / 255, 1.0)  # create_captcha_image's `lookup_table` takes brightness for coverage
        if opacity * (min(paper) - grey) >= MIN_CONTRAST:
            return red, green, blue, source.randbelow(36) + 220


@lru_cache(maxsize=64)
def _font(path: str) -> ImageFont.FreeTypeFont:
    return ImageFont.truetype(path, HEIGHT, layout_engine=ImageFont.Layout.BASIC)


@lru_cache(maxsize=65536)
def _drawable(path: str, character: str) -> bool:
    """Whether a font has a glyph with ink for a character."""
    font = _font(path)
    mask = font.getmask(character)
    return mask.getbbox() is not None and bytes(mask) != bytes(font.getmask(ABSENT))


@lru_cache(maxsize=65536)
def _advance(path: str, character: str) -> float:
    """How far a character moves the pen, in ems."""
    return _font(path).getlength(character) / HEIGHT
