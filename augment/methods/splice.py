"""Cut real pictures between their characters and join the pieces to new texts: real strokes, new labels."""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence
from contextlib import suppress
from functools import cached_property
from pathlib import Path
from typing import Any, ClassVar, NamedTuple

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from pydantic import Field

from augment.fit import aligner_for, alike, see_enough
from augment.method import FEWEST, Known, Request
from recognizer.errors import UserError
from recognizer.images import PictureError, open_picture
from recognizer.progress import Alone, Bar
from recognizer.samples import FolderWriter, Manifest, read_manifest
from recognizer.settings import Settings

Pixels = NDArray[np.float32]

SEAM = 0.08  # of a picture's height: half the stretch in which one piece fades into the next
NARROWEST, WIDEST = 0.8, 1.25  # how far pieces are squeezed or drawn out before a text's width gives way
CLOSEST = 6  # pieces, of those that show a character, that a picture's own looks are alike to


class CutSettings(Settings):
    """How pictures are cut."""

    model: str | None = None  # the reader that finds characters: a run or an ONNX file; else the default one
    least_sure: float = Field(0.05, ge=0, lt=1)  # of each character at its place; other pictures are left out


class PieceSettings(Settings):
    """Where the pieces are."""

    fitted: str | None = None  # the folder that `augment fit --method splice` wrote


class Piece(NamedTuple):
    """One character of a picture: the picture's place, and its left and right border in pixels."""

    picture: int
    left: float
    right: float


class Splice:
    """Joins pieces of real pictures. The paper around them is that of one real picture."""

    FitSettings: ClassVar[type[Settings]] = CutSettings
    Settings: ClassVar[type[Settings]] = PieceSettings
    needs_source: ClassVar[bool] = False
    exact_text: ClassVar[bool] = False

    def __init__(self, settings: PieceSettings) -> None:
        if settings.fitted is None:
            raise UserError(
                "splice joins pieces of your pictures: first augment fit --method splice --data DIR --out FITTED"
            )
        self._folder = Path(settings.fitted)

    @classmethod
    def fit(
        cls, data: Manifest | None, settings: CutSettings, out: Path, asked: Mapping[str, Any] | None = None
    ) -> str:
        """Cut pictures into `out`, a folder of them with `borders` in its metadata; gives a line that says how many.

        Raises:
            UserError: too few pictures, or none that could be cut.
        """
        if data is None:
            raise UserError("splice cuts real pictures: say which with --data DIR")
        if len(data) < FEWEST:
            raise UserError(f"{data.source} has {len(data)} pictures: a method needs {FEWEST} to learn from")
        aligner, _ = aligner_for(data, settings.model)
        sizes = {}
        for sample in data:
            with suppress(PictureError):
                sizes[sample.name] = open_picture(sample.read_bytes(), "RGB").size
        usual = alike([*sizes.values()])
        see_enough(data, usual, [*sizes.values()])
        names = {name for name, fits in zip(sizes, usual, strict=True) if fits}
        left_out = len(data) - len(names)
        with FolderWriter(out) as writer, Bar(Alone(), "cutting", len(names)) as bar:
            for sample in data:
                if sample.name not in names:
                    continue
                bar.advance()
                picture = open_picture(sample.read_bytes(), "RGB")
                (layout,) = aligner.find([picture], [sample.text])
                if layout is None or layout.sure.min() < settings.least_sure or (np.diff(layout.borders) < 1).any():
                    left_out += 1
                    continue
                png = io.BytesIO()
                picture.save(png, "PNG", compress_level=1)
                about = {"source": sample.name, "borders": layout.borders.round(2).tolist()}
                writer.add(f"{Path(sample.name).stem}.png", png.getvalue(), sample.text, about)
            if (cut := len(data) - left_out) < FEWEST:
                raise UserError(
                    f"{data.source}: the reader finds the characters of {cut or 'no'} pictures, {FEWEST} are needed; "
                    "train one, and give it as model"
                )
        return f"{cut} of {len(data)} pictures are cut" + (
            f"; of {left_out} the reader does not find every character, or they have another shape" if left_out else ""
        )

    def make(self, requests: Sequence[Request], sources: Sequence[Image.Image | None]) -> list[Image.Image]:
        """One RGB picture for each request; `sources` is not used.

        Raises:
            UserError: a character that no piece shows.
        """
        return [self._join(request) for request in requests]

    @property
    def known(self) -> Known:
        """What the cut pictures show."""
        return Known.of([t for _, t, _ in self._pictures], [(p.shape[1], p.shape[0]) for p, _, _ in self._pictures])

    # ------------------------------------------------------------------------------------------------------ the pieces

    @cached_property
    def _pictures(self) -> list[tuple[Pixels, str, list[float]]]:
        found = []
        for sample in read_manifest(self._folder):
            borders: Any = sample.meta.get("borders")
            if not isinstance(borders, list) or len(borders) != len(sample.text) + 1:
                raise UserError(
                    f"{self._folder} holds no cut pictures: augment fit --method splice writes such a folder"
                )
            try:
                pixels = np.asarray(open_picture(sample.read_bytes(), "RGB"), np.float32)
            except PictureError as error:
                raise UserError(f"{sample.name!r} of {self._folder} cannot be opened: {error.kind}, {error}") from None
            found.append((pixels, sample.text, [float(b) for b in borders]))
        return found

    @cached_property
    def _pieces(self) -> dict[str, list[Piece]]:
        found: dict[str, list[Piece]] = {}
        for i, (_, text, borders) in enumerate(self._pictures):
            for character, left, right in zip(text, borders, borders[1:], strict=False):
                found.setdefault(character, []).append(Piece(i, left, right))
        return found

    @cached_property
    def _looks(self) -> NDArray[np.float32]:
        """Of each picture the colours of its paper and of its ink, and how high it is, in comparable numbers (N, 7)."""
        looks = []
        for pixels, _, borders in self._pictures:
            paper = paper_of(pixels).mean(0)
            text = pixels[:, max(int(borders[0]), 0) : max(int(borders[-1]), int(borders[0]) + 1)].reshape(-1, 3)
            away = np.abs(text - paper).sum(1)
            inked = text[away >= np.quantile(away, 0.85)]
            looks.append([*paper, *inked.mean(0), len(pixels)])
        return np.array(looks, np.float32)

    # ------------------------------------------------------------------------------------------------------ one picture

    def _join(self, request: Request) -> Image.Image:
        rng = request.rng()
        lacking = [c for c in request.text if c not in self._pieces]
        if lacking or not request.text:
            raise UserError(f"no piece shows {lacking[0]!r}: it stands in no label" if lacking else "a text is empty")
        base = int(rng.integers(len(self._pictures)))
        ground, _, own = self._pictures[base]
        w, h = request.width, request.height
        scale = h / len(ground)
        chosen = [self._choose(c, base, rng) for c in request.text]
        widths = np.array([(p.right - p.left) * h / len(self._pictures[p.picture][0]) for p in chosen])
        own_width = (own[-1] - own[0]) * scale
        wanted = own_width * len(request.text) / (len(own) - 1)
        stretch = float(np.clip(wanted / widths.sum(), NARROWEST, WIDEST))
        stretch = min(stretch, 0.96 * w / widths.sum())
        widths = widths * stretch
        spare = w - widths.sum()
        left = float(np.clip(own[0] * scale + (own_width - widths.sum()) / 2, 0.02 * spare, 0.98 * spare))
        borders = left + np.concatenate([[0], np.cumsum(widths)])
        edge = float(ground.shape[1])
        clear = SEAM * len(ground)  # of the base's own text
        parts = [(ground, 0.0, max(own[0] - clear, 0.0), 0.0, left)]
        parts += [
            (self._pictures[p.picture][0], p.left, p.right, float(a), float(b))
            for p, a, b in zip(chosen, borders, borders[1:], strict=False)
        ]
        parts += [(ground, min(own[-1] + clear, edge), edge, float(borders[-1]), float(w))]
        return joined(parts, paper_of(ground), (w, h))

    def _choose(self, character: str, base: int, rng: np.random.Generator) -> Piece:
        """A piece that shows a character, of one of the pictures that look most like the base."""
        pieces = self._pieces[character]
        apart = np.abs(self._looks[[p.picture for p in pieces]] - self._looks[base]).sum(1)
        near = np.argsort(apart, kind="stable")[: max(CLOSEST, len(pieces) // 4)]
        return pieces[int(rng.choice(near))]


def paper_of(pixels: Pixels) -> Pixels:
    """The colours of a picture's paper along it (W, 3): what the brighter part of its columns is like, or of a picture
    of light ink the darker part, smoothed."""
    grey = pixels.mean(2)
    dark_ink = np.median(grey) >= grey.mean()
    columns = np.quantile(pixels, 0.8 if dark_ink else 0.2, axis=0)
    reach = max(len(pixels) // 2, 1)
    padded = np.pad(columns, ((reach, reach), (0, 0)), mode="edge")
    sums = np.concatenate([np.zeros((1, 3)), np.cumsum(padded, 0)])
    return np.asarray((sums[2 * reach + 1 :] - sums[: -2 * reach - 1]) / (2 * reach + 1), np.float32)


def joined(
    parts: Sequence[tuple[Pixels, float, float, float, float]], paper: Pixels, size: tuple[int, int]
) -> Image.Image:
    """Parts of pictures side by side, each faded into the next, on one paper (W, 3) that is drawn out to the width.

    Each part is a picture, its left and right there, and its left and right in the result, in pixels. A part of no
    width in its picture is bare paper.
    """
    w, h = size
    seam = max(SEAM * h, 1.0)
    x = np.arange(w) + 0.5
    ground = along(paper[None], x * len(paper) / w - 0.5)  # (1, w, 3)
    total, weights = np.zeros((h, w, 3), np.float32), np.zeros(w, np.float32)
    for pixels, left, right, at, end in parts:
        if end <= at:
            continue
        weight = np.ones(w, np.float32)
        if at > 0:  # nothing fades at a picture's edge
            weight *= np.clip(0.5 + (x - at) / (2 * seam), 0, 1)
        if end < w:
            weight *= np.clip(0.5 + (end - x) / (2 * seam), 0, 1)
        columns = np.flatnonzero(weight > 0)
        if right - left < 1:
            strip = np.broadcast_to(ground[:, columns], (h, len(columns), 3))
        else:
            there = left + (x[columns] - at) * (right - left) / (end - at) - 0.5
            strip = along(pixels, there) + ground[:, columns] - along(paper_of(pixels)[None], there)
            if len(strip) != h:
                rows = (np.arange(h) + 0.5) * len(strip) / h - 0.5
                strip = along(strip.transpose(1, 0, 2), rows).transpose(1, 0, 2)
        total[:, columns] += strip * weight[columns][None, :, None]
        weights[columns] += weight[columns]
    total /= np.maximum(weights, 1e-6)[None, :, None]
    return Image.fromarray(total.clip(0, 255).round().astype(np.uint8))


def along(pixels: Pixels, columns: NDArray[np.floating[Any]]) -> Pixels:
    """Columns of pixels (H, W, C) at places between them; beyond an edge as at the edge."""
    columns = np.clip(columns, 0, pixels.shape[1] - 1)
    low = np.floor(columns).astype(int)
    share = (columns - low)[None, :, None].astype(np.float32)
    high = np.minimum(low + 1, pixels.shape[1] - 1)
    return np.asarray(pixels[:, low] * (1 - share) + pixels[:, high] * share, np.float32)
