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
from recognizer.samples import FolderWriter, Manifest, Sample, read_manifest
from recognizer.settings import Settings

Pixels = NDArray[np.float32]

CLEAR = 0.15  # of a picture's height: how far beside its text its paper begins
STRAY = 0.05  # of the narrower neighbour: how far a cut strays from the border; further, it cuts through letters
FAINT = 0.2  # of the ink's strength: less than that is paper, and its grain
NARROWEST, WIDEST = 0.8, 1.25  # how far pieces are squeezed or drawn out before a text's width gives way
CLOSEST = 6  # pieces, of those that show a character, that a picture's own looks are alike to


class CutSettings(Settings):
    """How pictures are cut."""

    model: str | None = None  # the reader that finds characters: a run or an ONNX file; else the default one
    least_sure: float = Field(0.05, ge=0, lt=1)  # of each character at its place; other pictures are left out


class PieceSettings(Settings):
    """Where the pieces are."""

    fitted: str | None = None  # the folder that `augment fit --method splice` wrote


class Cut(NamedTuple):
    """A picture (H, W, 3), the colours of its paper (W, 3), its text, the borders (L + 1,) of its characters, the paths
    (L + 1, H) along which it is cut there, and what share of each runs through ink."""

    pixels: Pixels
    paper: Pixels
    text: str
    borders: NDArray[np.float64]
    paths: NDArray[np.float64]
    crossed: NDArray[np.float64]


class Piece(NamedTuple):
    """One character of a picture: the picture's place, and the character's in its text."""

    picture: int
    place: int


class Part(NamedTuple):
    """A stretch of a cut picture, between two of its columns and two of its paths (H,), and where that comes to lie."""

    cut: Cut
    left: float
    right: float
    paths: tuple[NDArray[np.float64], NDArray[np.float64]]
    at: float
    end: float


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
        self._picked: dict[Request, tuple[int, list[Piece]]] = {}  # for those that were asked for last

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
        self._picked = {}
        return [self._join(request) for request in requests]

    def pieces(self, request: Request) -> list[str]:
        """The names of the samples whose characters answer a request, each once.

        Raises:
            UserError: a character that no piece shows.
        """
        _, chosen = self._picked.get(request) or self._pick(request)
        return sorted({self._names[piece.picture] for piece in chosen})

    @cached_property
    def _names(self) -> list[str]:
        """The sample that each cut picture is of."""
        return [str(sample.meta.get("source") or sample.name) for sample in read_manifest(self._folder)]

    @property
    def known(self) -> Known:
        """What the cut pictures show."""
        return Known.of([c.text for c in self._pictures], [c.pixels.shape[1::-1] for c in self._pictures])

    # ------------------------------------------------------------------------------------------------------ the pieces

    @cached_property
    def _pictures(self) -> list[Cut]:
        found = []
        for sample in read_manifest(self._folder):
            borders = borders_of(sample)
            if borders is None:
                raise UserError(
                    f"{self._folder} holds no cut pictures: augment fit --method splice writes such a folder"
                )
            try:
                pixels = np.asarray(open_picture(sample.read_bytes(), "RGB"), np.float32)
            except PictureError as error:
                raise UserError(f"{sample.name!r} of {self._folder} cannot be opened: {error.kind}, {error}") from None
            found.append(cut(pixels, sample.text, borders))
        return found

    @cached_property
    def _pieces(self) -> dict[str, list[Piece]]:
        found: dict[str, list[Piece]] = {}
        for i, picture in enumerate(self._pictures):
            for k, character in enumerate(picture.text):
                found.setdefault(character, []).append(Piece(i, k))
        return found

    @cached_property
    def _looks(self) -> NDArray[np.float32]:
        """Of each picture the colours of its paper and of its ink, and how high it is, in comparable numbers (N, 7)."""
        looks = []
        for pixels, paper, _, borders, _, _ in self._pictures:
            text = slice(max(int(borders[0]), 0), max(int(borders[-1]), int(borders[0]) + 1))
            away = np.abs(pixels - paper)[:, text].sum(2).ravel()
            inked = pixels[:, text].reshape(-1, 3)[away >= np.quantile(away, 0.85)]
            looks.append([*paper.mean(0), *inked.mean(0), len(pixels)])
        return np.array(looks, np.float32)

    @cached_property
    def _dark(self) -> NDArray[np.bool_]:
        """Of each picture whether its ink is darker than its paper (N,)."""
        paper, ink = self._looks[:, :3], self._looks[:, 3:6]
        return np.asarray(ink.mean(1) < paper.mean(1))

    # ------------------------------------------------------------------------------------------------------ one picture

    def _join(self, request: Request) -> Image.Image:
        base, chosen = self._picked[request] = self._pick(request)
        ground = self._pictures[base]
        w, h = request.width, request.height
        own, scale = ground.borders, h / len(ground.pixels)
        stretches = [self._pictures[p.picture].borders[p.place : p.place + 2] for p in chosen]
        heights = [len(self._pictures[p.picture].pixels) for p in chosen]
        widths = np.array([(b - a) * h / high for (a, b), high in zip(stretches, heights, strict=True)])
        own_width = (own[-1] - own[0]) * scale
        wanted = own_width * len(request.text) / (len(own) - 1)
        stretch = float(np.clip(wanted / widths.sum(), NARROWEST, WIDEST))
        stretch = min(stretch, 0.96 * w / widths.sum())
        widths = widths * stretch
        spare = w - widths.sum()
        left = float(np.clip(own[0] * scale + (own_width - widths.sum()) / 2, 0.02 * spare, 0.98 * spare))
        borders = left + np.concatenate([[0], np.cumsum(widths)])
        edge = float(ground.pixels.shape[1])
        clear = CLEAR * len(ground.pixels)
        rows = np.ones(len(ground.pixels))
        begin, rest = max(own[0] - clear, 0.0), min(own[-1] + clear, edge)
        parts = [Part(ground, 0.0, begin, (-rows, begin * rows), 0.0, left)]
        for (i, k), (a, b), at, end in zip(chosen, stretches, borders, borders[1:], strict=False):
            paths = self._pictures[i].paths
            parts.append(Part(self._pictures[i], a, b, (paths[k], paths[k + 1]), float(at), float(end)))
        parts.append(Part(ground, rest, edge, (rest * rows, (edge + 1) * rows), float(borders[-1]), float(w)))
        return joined(parts, ground.paper, (w, h))

    def _pick(self, request: Request) -> tuple[int, list[Piece]]:
        """The picture whose paper is under a text, and a piece for each of its characters."""
        rng = request.rng()
        lacking = [c for c in request.text if c not in self._pieces]
        if lacking or not request.text:
            raise UserError(f"no piece shows {lacking[0]!r}: it stands in no label" if lacking else "a text is empty")
        base = int(rng.integers(len(self._pictures)))
        return base, [self._choose(c, base, rng) for c in request.text]

    def _choose(self, character: str, base: int, rng: np.random.Generator) -> Piece:
        """A piece that shows a character, cut cleanly, of one of the pictures that look most like the base: with ink as
        dark or as light beside its paper, if there is one."""
        pieces = self._pieces[character]
        alike = [p for p in pieces if self._dark[p.picture] == self._dark[base]]
        pieces = alike or pieces
        apart = np.abs(self._looks[[p.picture for p in pieces]] - self._looks[base]).sum(1)
        near = np.argsort(apart, kind="stable")[: max(2 * CLOSEST, len(pieces) // 4)]
        through = [self._pictures[pieces[k].picture].crossed[pieces[k].place :][:2].sum() for k in near]
        clean = near[np.argsort(through, kind="stable")[: max(CLOSEST, len(near) // 2)]]
        return pieces[int(rng.choice(clean))]


def borders_of(sample: Sample) -> NDArray[np.float64] | None:
    """The borders (L + 1,) of a cut picture's characters, if its metadata hold some that rise."""
    try:
        borders = np.array(sample.meta.get("borders"), np.float64)
    except (TypeError, ValueError):
        return None
    fits = borders.shape == (len(sample.text) + 1,) and np.isfinite(borders).all() and (np.diff(borders) > 0).all()
    return borders if fits else None


def cut(pixels: Pixels, text: str, borders: NDArray[np.float64]) -> Cut:
    """Cut a picture (H, W, 3) at the borders (L + 1,) of its characters, along the paths about them that run through
    the least ink."""
    paper = paper_of(pixels)
    ink = ink_of(pixels - paper)
    clear = CLEAR * len(pixels)  # beyond the text's ends no other character is cut
    paths, crossed = [np.full(len(pixels), borders[0] - clear)], [0.0]
    for left, border, right in zip(borders, borders[1:], borders[2:], strict=False):
        stray = STRAY * min(border - left, right - border)
        path, through = between_strokes(ink, float(border), float(stray))
        paths.append(path)
        crossed.append(through)
    paths.append(np.full(len(pixels), borders[-1] + clear))
    return Cut(pixels, paper, text, borders, np.array(paths), np.array([*crossed, 0.0]))


def ink_of(apart: Pixels) -> Pixels:
    """How much ink there is at each pixel (H, W), 0 to 1, from a picture's distance from its paper (H, W, 3)."""
    away = np.abs(apart).sum(2)
    return np.asarray(np.clip(away / max(float(np.quantile(away, 0.95)), 1.0), 0, 1), np.float32)


def between_strokes(ink: Pixels, border: float, stray: float) -> tuple[NDArray[np.float64], float]:
    """The path (H,) from top to bottom about a border, a pixel aside a row at most, along which there is the least
    ink (H, W), and the share of its rows that run through ink."""
    height, width = ink.shape
    middle = int(np.clip(border, 0, width - 1))
    columns = np.arange(max(min(int(border - stray), middle), 0), max(min(int(border + stray), width - 1), middle) + 1)
    aside = 0.1 * ((columns + 0.5 - border) / max(stray, 1.0)) ** 2
    cost = ink[:, columns] + aside
    total, came = cost.copy(), np.zeros(cost.shape, np.int64)
    for row in range(1, height):
        before = np.pad(total[row - 1], 1, constant_values=np.inf)
        ways = np.stack([before[:-2] + 0.02, before[1:-1], before[2:] + 0.02])
        came[row] = ways.argmin(0) - 1
        total[row] += ways.min(0)
    at = int(total[-1].argmin())
    path = np.zeros(height, np.int64)
    for row in range(height - 1, -1, -1):
        path[row] = at
        at += came[row, at]
    return columns[path] + 0.5, float((ink[np.arange(height), columns[path]] > FAINT).mean())


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


def joined(parts: Sequence[Part], paper: Pixels, size: tuple[int, int]) -> Image.Image:
    """Parts of pictures side by side on one paper (W, 3) that is drawn out to the width; where two overlap, the one
    with more ink shows. A part of no width in its picture is bare paper."""
    w, h = size
    x = np.arange(w) + 0.5
    ground = along(paper[None], x * len(paper) / w - 0.5)  # (1, w, 3)
    drawn = np.zeros((h, w, 3), np.float32)
    for (pixels, own_paper, _, _, _, _), left, right, paths, at, end in parts:
        if end <= at or right - left < 1:
            continue
        step = (right - left) / (end - at)
        first, last = paths[0].min(), paths[1].max()
        columns = np.flatnonzero((x >= at + (first - left) / step - 1) & (x <= at + (last - left) / step + 1))
        there = left + (x[columns] - at) * step
        strip = along(pixels, there - 0.5) - along(own_paper[None], there - 0.5)
        inside = np.clip(0.5 + (there - paths[0][:, None]) / step, 0, 1) * np.clip(
            0.5 + (paths[1][:, None] - there) / step, 0, 1
        )
        strip = strip * inside[..., None].astype(np.float32)
        if len(strip) != h:
            rows = (np.arange(h) + 0.5) * len(strip) / h - 0.5
            strip = along(strip.transpose(1, 0, 2), rows).transpose(1, 0, 2)
        more = np.abs(strip).sum(2) > np.abs(drawn[:, columns]).sum(2)
        drawn[:, columns] = np.where(more[..., None], strip, drawn[:, columns])
    return Image.fromarray((ground + drawn).clip(0, 255).round().astype(np.uint8))


def along(pixels: Pixels, columns: NDArray[np.floating[Any]]) -> Pixels:
    """Columns of pixels (H, W, C) at places between them; beyond an edge as at the edge."""
    columns = np.clip(columns, 0, pixels.shape[1] - 1)
    low = np.floor(columns).astype(int)
    share = (columns - low)[None, :, None].astype(np.float32)
    high = np.minimum(low + 1, pixels.shape[1] - 1)
    return np.asarray(pixels[:, low] * (1 - share) + pixels[:, high] * share, np.float32)
