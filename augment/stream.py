"""Rendered text without end, as batches to train on: no picture twice, each one from (seed, step, place) alone."""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray
from pydantic import Field

from augment.glyphs import font_files, load_glyphs
from augment.methods.render import Render, RenderSettings
from augment.style import Dice
from recognizer.charset import NAMED, Charset
from recognizer.errors import UserError
from recognizer.images import Frame
from recognizer.settings import Settings, make
from recognizer.training.batches import Batch, normalised

# how often a picture's characters are drawn from which set, where the charset holds it
SETS = {
    "letters+digits": 0.30, "upper+digits": 0.22, "lower+digits": 0.16, "digits": 0.10, "upper": 0.07, "lower": 0.10,
    "letters": 0.05,
}  # fmt: skip
LENGTHS: dict[int, float] = {1: 2, 2: 3, 3: 6, 4: 22, 5: 21, 6: 20, 7: 9, 8: 7, 9: 4, 10: 3, 11: 2, 12: 1}  # weights
WIDTHS = {96: 0.24, 112: 0.12, 128: 0.26, 144: 0.14, 160: 0.12, 208: 0.12}  # pixels at a height of 32
BLOCK = 4  # steps that are drawn together
NARROWEST = 10  # pixels that a character takes at a height of 32, at least


class StreamSettings(Settings):
    """Which fonts, and how the pictures grow harder."""

    fonts: tuple[str, ...] = ()  # as the method `render` takes them
    easy: float = Field(0.25, ge=0, le=1)  # the difficulty at the start
    climb: float = Field(0.15, ge=0, le=1)  # share of the run in which it rises to 1


class Stream:
    """Batches of rendered text in `charset` at the height of `frame`.

    Raises:
        UserError: a setting that is refused, or fonts that draw none of the charset.
    """

    def __init__(self, charset: Charset, frame: Frame, seed: int, settings: dict[str, object]) -> None:
        self.settings = make(StreamSettings, settings, "stream settings")
        self._render = Render(make(RenderSettings, {"fonts": self.settings.fonts}))
        glyphs = load_glyphs(tuple(font_files(self.settings.fonts)), charset.characters)
        drawn = {c for c, n in zip(charset.characters, (glyphs.index >= 0).sum(0).tolist(), strict=True) if n}
        self._sets = [
            ([c for c in NAMED[name] if c in drawn], share)
            for name, share in SETS.items()
            if set(NAMED[name]) <= set(charset.characters)
        ] or [(sorted(drawn), 1.0)]
        if not drawn:
            raise UserError(f"no font draws any of {charset.characters!r}")
        self._charset, self._height, self._seed = charset, frame.height, seed
        self._drawn: tuple[tuple[int, int, range], list[Batch]] | None = None

    def batch(self, step: int, steps: int, places: range, device: torch.device) -> Batch:
        """The pictures of a step at some places of its batch. Those of `BLOCK` steps are of one width and are drawn
        together, which is three times as fast."""
        block = (step // BLOCK, steps, places)
        if self._drawn is None or self._drawn[0] != block:
            first = step // BLOCK * BLOCK
            width = _pick(WIDTHS, Dice(np.array([self._seed * 2**32 + first], np.uint64)).throw())[0]
            risen = min(first / max(self.settings.climb * steps, 1), 1.0)
            whole = self._draw(
                [(k, place) for k in range(first, first + BLOCK) for place in places],
                width, self.settings.easy + (1 - self.settings.easy) * risen, device,
            )  # fmt: skip
            self._drawn = (
                block,
                [Batch(*part) for part in zip(*(torch.split(x, len(places)) for x in whole), strict=True)],
            )
        return self._drawn[1][step % BLOCK]

    def _draw(self, at: list[tuple[int, int]], width: int, difficulty: float, device: torch.device) -> Batch:
        keys = np.array([((self._seed + 1) << 52) + (step << 20) + place for step, place in at], np.uint64)
        dice = Dice(keys)
        sets = [self._sets[i][0] for i in _pick({i: share for i, (_, share) in enumerate(self._sets)}, dice.throw())]
        lengths = _pick({n: weight for n, weight in LENGTHS.items() if n * NARROWEST <= width}, dice.throw())
        drawn = dice.throw(max(LENGTHS))
        texts = [
            "".join(own[int(u * len(own))] for u in row[:n]) for own, n, row in zip(sets, lengths, drawn, strict=True)
        ]
        seeds = (dice.throw() * 2**53).astype(int).tolist()
        size = (round(width * self._height / 32), self._height)
        pictures = self._render.draw(texts, seeds, size, 1, device, difficulty, layout=False).pictures
        targets = torch.zeros(len(texts), max(lengths), dtype=torch.long)
        for row, text in zip(targets, texts, strict=True):
            row[: len(text)] = torch.tensor(self._charset.encode(text))
        return Batch(normalised((pictures * 255).round()), targets.to(device), torch.tensor(lengths, device=device))


def _pick(weights: dict[int, float], u: NDArray[np.float64]) -> list[int]:
    """For each number in [0, 1) one of the keys, as often as its weight says."""
    edges = np.cumsum(list(weights.values()))
    return [list(weights)[i] for i in np.searchsorted(edges / edges[-1], u, side="right").tolist()]
