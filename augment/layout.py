"""Where each character of a real picture stands, by a reader that is told what the picture shows.

A convolution head sees a bounded stretch of the picture, so the best alignment of the label (Viterbi over CTC's states,
Graves et al. 2006) puts each character's frames where the character stands, but for a constant offset. That is measured
on rendered pictures, whose layout is known. Between two characters the border runs where there is least ink near the
middle. A BiLSTM's spikes stand where they like, and will not do.
"""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from augment.glyphs import font_files, load_glyphs
from augment.methods.render import Render, RenderSettings
from augment.synthesize import random_texts
from recognizer.charset import Charset
from recognizer.decode import alignment
from recognizer.errors import UserError
from recognizer.images import STRIDE
from recognizer.reader import Reader

CALIBRATION = 96  # rendered pictures that an offset is measured on
TO_THE_MIDDLE = 3.0  # how much ink, as a multiple of a column's mean, a border crosses rather than leave the middle


@dataclass(frozen=True, eq=False)
class Layout:
    """Where the characters of a picture stand, in its pixels.

    `centres` (L,) of the characters; `borders` (L + 1,): a character stands between its border and the next, and the
    first and the last are where the text's ink begins and ends. `sure` (L,) is how probable the reader holds each
    character at its place, 0 to 1.
    """

    text: str
    centres: NDArray[np.float64]
    borders: NDArray[np.float64]
    sure: NDArray[np.float64]


@dataclass
class Aligner:
    """Finds layouts with a reader that has a convolution head. `known_as` says what characters of the texts are to the
    reader, where labels have another case than pictures.

    Raises:
        UserError: a reader with another head.
    """

    reader: Reader
    known_as: Mapping[str, str] = field(default_factory=dict)
    _offset: float | None = field(default=None, repr=False)

    def __post_init__(self) -> None:
        head = self.reader.about.get("head", "conv")
        if head != "conv":
            raise UserError(
                f"a reader with a {head} head does not say where characters stand: train one with --head conv"
            )

    @property
    def offset(self) -> float:
        """By how much this reader's frames stand right of the characters' centres, in pixels of its frame."""
        if self._offset is None:
            self._offset = self._calibrate()
        return self._offset

    def find(self, pictures: Sequence[Image.Image], texts: Sequence[str]) -> list[Layout | None]:
        """The layout of each picture under its text; None where the text does not fit: a character that the reader does
        not know, or more of them than the picture has room for."""
        raw = self._centres(pictures, ["".join(self.known_as.get(c, c) for c in text) for text in texts])
        found: list[Layout | None] = []
        for picture, text, centred in zip(pictures, texts, raw, strict=True):
            if centred is None:
                found.append(None)
                continue
            centres, sure, scale = centred
            centres = np.clip(centres - self.offset * scale, 0, picture.width)
            found.append(Layout(text, centres, borders(picture, centres), sure))
        return found

    def _centres(
        self, pictures: Sequence[Image.Image], texts: Sequence[str]
    ) -> list[tuple[NDArray[np.float64], NDArray[np.float64], float] | None]:
        """For each picture where its characters' frames stand, in its pixels, how sure they are, and how many of its
        pixels one of the reader's is wide."""
        found: list[tuple[NDArray[np.float64], NDArray[np.float64], float] | None] = []
        for picture, text in zip(pictures, texts, strict=True):
            if not text or any(c not in self.reader.charset for c in text):
                found.append(None)
                continue
            grey = self.reader.open(picture)
            (log_probs,) = self.reader.log_probabilities([grey])
            ids = self.reader.charset.encode(text)
            frames = alignment(log_probs, ids)
            if frames is None:
                found.append(None)
                continue
            # what was padded on the right is no part of the picture
            left, top, right, bottom = self.reader.frame.part(picture)
            scale = (right - left) / self.reader.frame.width_of(right - left, bottom - top)
            centres, sure = np.empty(len(ids)), np.empty(len(ids))
            for k, (i, (first, end)) in enumerate(zip(ids, frames, strict=True)):
                held = log_probs[first:end, i].astype(np.float64)
                weight = np.exp(held - held.max())
                centres[k] = (np.arange(first, end) + 0.5) @ weight / weight.sum()
                sure[k] = np.exp(held.max())
            found.append((left + centres * STRIDE * scale, sure, scale))
        return found

    def _calibrate(self) -> float:
        try:
            known = load_glyphs(tuple(font_files(())), self.reader.charset.characters)
        except UserError:  # a script that no font of this package draws: it cannot be measured, and is small
            return 0.0
        drawn = "".join(
            c for c, n in zip(self.reader.charset.characters, (known.index >= 0).sum(0).tolist(), strict=True) if n
        )
        texts = random_texts(Charset(drawn), (4, 5, 6), CALIBRATION, 0)
        size = (4 * self.reader.frame.height, self.reader.frame.height)
        rendered = Render(RenderSettings(difficulty=0.4)).draw(texts, range(CALIBRATION), size)
        greys = (rendered.pictures * 255).round().byte().permute(0, 2, 3, 1).numpy()
        off: list[float] = []
        raw = self._centres([Image.fromarray(g) for g in greys], texts)
        for text, centred, boxes in zip(texts, raw, rendered.boxes.numpy(), strict=True):
            if centred is not None:
                centres, sure, scale = centred
                true = (boxes[: len(text), 0] + boxes[: len(text), 2]) / 2
                off += ((centres - true)[sure > 0.5] / scale).tolist()
        return float(np.median(off)) if len(off) >= 20 else 0.0


@dataclass(frozen=True)
class Spacing:
    """How texts are laid out in some pictures, to lay out others: layouts of real texts, and each character's width.

    `texts` and `borders`, of pictures `width` pixels wide; `widths` the usual width of each character, in pixels.
    """

    width: int
    texts: tuple[str, ...]
    borders: tuple[tuple[float, ...], ...]
    widths: dict[str, float]

    @classmethod
    def of(cls, texts: Sequence[str], borders: Sequence[NDArray[np.float64]], width: int) -> Spacing:
        drawn: dict[str, list[float]] = {}
        for text, own in zip(texts, borders, strict=True):
            for character, step in zip(text, np.diff(own).tolist(), strict=True):
                drawn.setdefault(character, []).append(step)
        everywhere = float(np.median([w for own in drawn.values() for w in own]))
        # of a rare character the width is drawn to that of all
        widths = {c: (float(np.median(own)) * len(own) + 2 * everywhere) / (len(own) + 2) for c, own in drawn.items()}
        kept = tuple(tuple(round(float(b), 2) for b in own) for own in borders)
        return cls(width, tuple(texts), kept, widths)

    def lay_out(self, text: str, rng: np.random.Generator) -> tuple[NDArray[np.float64], int]:
        """Borders (L + 1,) of a text as they could be in one of the pictures, and that picture's place."""
        apart = np.array([abs(len(t) - len(text)) for t in self.texts])
        k = int(rng.choice(np.flatnonzero(apart == apart.min())))
        usual = float(np.mean(list(self.widths.values())))
        own = np.array(self.borders[k])
        scale = (own[-1] - own[0]) / sum(self.widths[c] for c in self.texts[k])
        steps = np.array([self.widths.get(c, usual) for c in text]) * scale
        steps *= rng.normal(1, 0.05, len(text)).clip(0.8, 1.2)
        steps *= min(1.0, 0.98 * self.width / steps.sum())
        spare = self.width - steps.sum()
        left = np.clip((own[0] + own[-1] - steps.sum()) / 2, 0.01 * spare, 0.99 * spare)
        return np.asarray(left + np.concatenate([[0], np.cumsum(steps)]), np.float64), k


def borders(picture: Image.Image, centres: NDArray[np.float64]) -> NDArray[np.float64]:
    """Borders (L + 1,) of characters whose centres (L,) are known, in pixels from the left."""
    grey = np.asarray(picture.convert("L"), np.float64)
    ink = np.abs(grey - np.median(grey)).sum(0)
    ink /= max(ink.mean(), 1e-6)
    found = np.empty(len(centres) + 1)
    for k, (left, right) in enumerate(itertools.pairwise(centres), 1):
        middle, gap = (left + right) / 2, max(right - left, 1.0)
        columns = np.arange(max(int(left + gap / 5), 0), min(int(right - gap / 5) + 2, len(ink)))
        cost = ink[columns] + TO_THE_MIDDLE * ((columns + 0.5 - middle) / (gap / 2)) ** 2
        found[k] = columns[cost.argmin()] + 0.5 if len(columns) else middle
    # at the text's ends: as far out as ink goes, up to a character's usual width
    usual = float(np.median(np.diff(centres))) if len(centres) > 1 else picture.height * 0.8
    inked = ink > 0.25
    for end, centre, step in ((0, centres[0], -1), (-1, centres[-1], 1)):
        reach = [centre + step * d for d in np.arange(0, max(0.75 * usual, 2), 0.5)]
        held = [x for x in reach if 0 <= x < len(ink) and inked[int(x)]]
        out = held[-1] if held else centre + step * usual / 2
        found[end] = np.clip(out + 0.5 * step, 0, len(ink))
    return found
