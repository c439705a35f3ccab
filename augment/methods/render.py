"""Rendered text: many fonts, many looks, drawn by the batch on a CPU or a GPU, each picture from its own seed.

Every picture has a style of its own (`augment.style`). Drawing is torch alone: glyphs are sampled from distance fields
at coordinates that are bent first, so that strokes stay sharp, and the nearest outline is shaded once a pixel. Where
each character stands is given with every picture.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import lru_cache
from typing import ClassVar, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from pydantic import Field
from torch import Tensor
from torch.nn import functional as F

from augment.glyphs import REACH, Glyphs, font_files, load_glyphs
from augment.method import Request
from augment.style import BANK, CROSSING, LINE, LONGEST, RING, Floats, Style, throw_style
from augment.weather import weather
from recognizer.charset import NAMED
from recognizer.images import LUMA
from recognizer.settings import Settings


class RenderSettings(Settings):
    """Which fonts, and how far from clean print the looks go."""

    fonts: tuple[str, ...] = ()  # files, or folders of them; none is the ten of this package
    difficulty: float = Field(1.0, ge=0, le=1)  # scales how often, and how far, pictures are distorted


class Drawn(NamedTuple):
    """Pictures (N, C, H, W), 0 to 1, and where each character stands: `boxes` (N, L, 4) in pixels, left, top, right and
    bottom of its ink; nan beyond a text's end."""

    pictures: Tensor
    boxes: Tensor


class Render:
    """Draws any text of its fonts' characters, up to `LONGEST` of them."""

    Settings: ClassVar[type[Settings]] = RenderSettings
    needs_source: ClassVar[bool] = False
    exact_text: ClassVar[bool] = True

    def __init__(self, settings: RenderSettings) -> None:
        self.settings = settings
        self._files = tuple(font_files(settings.fonts))
        self._known = frozenset(NAMED["letters+digits"])

    def make(self, requests: Sequence[Request], sources: Sequence[Image.Image | None]) -> list[Image.Image]:
        """One RGB picture for each request; `sources` is not used.

        Raises:
            UserError: a text that is too long, or with a character that no font draws.
        """
        pictures: dict[int, Image.Image] = {}
        for size in dict.fromkeys((r.width, r.height) for r in requests):
            own = [i for i, r in enumerate(requests) if (r.width, r.height) == size]
            drawn = self.draw([requests[i].shown for i in own], [requests[i].seed for i in own], size)
            for i, picture in zip(own, (drawn.pictures * 255).round().to(torch.uint8), strict=True):
                pictures[i] = Image.fromarray(picture.permute(1, 2, 0).numpy())
        return [pictures[i] for i in range(len(requests))]

    def draw(
        self,
        texts: Sequence[str],
        seeds: Sequence[int],
        size: tuple[int, int],
        channels: int = 3,
        device: torch.device | str = "cpu",
        difficulty: float | None = None,
        layout: bool = True,
    ) -> Drawn:
        """Pictures of `texts`, each from its own seed, of one `size` (width, height); grey ones with one channel.

        `difficulty` stands in for that of the settings. Without `layout` there are no boxes, which a GPU waits for.

        Raises:
            UserError: as `make`.
        """
        glyphs = self.glyphs(texts)
        difficulty = self.settings.difficulty if difficulty is None else difficulty
        style = throw_style(texts, seeds, size, glyphs, difficulty)
        return draw(style, size, glyphs, channels, torch.device(device), layout)

    def can_draw(self, requests: Sequence[Request]) -> list[bool]:
        """Whether a request's text is short enough, and each of its characters drawn by one of the fonts, for each."""
        glyphs = self.glyphs([r.shown for r in requests])
        drawn = {c for k, c in enumerate(glyphs.characters) if (glyphs.index[:, k] >= 0).any()}
        return [1 <= len(r.shown) <= LONGEST and set(r.shown) <= drawn for r in requests]

    def glyphs(self, texts: Sequence[str]) -> Glyphs:
        """The glyphs of its fonts, of letters, digits and the characters of texts."""
        new = self._known.union(*texts)  # so that a font is not traced anew for each batch of another alphabet's texts
        self._known = new if len(new) <= MOST_KNOWN else frozenset(NAMED["letters+digits"]).union(*texts)
        return load_glyphs(self._files, "".join(sorted(self._known)))


# ----------------------------------------------------------------------------------------------------------- drawing

BENT = ("aspect", "turn", "shear", "tilt", "twist", "keel")  # what happens to a glyph, before the whole text is bent
SIDES_OF_32 = (14, 20, 26, 36, 64)  # of the patches that glyphs are drawn in, where a picture is 32 pixels high
MOST_KNOWN = 1000  # characters whose glyphs are kept
_LEVELS = 16000  # of distance that are told apart, to each side of an outline


@lru_cache(maxsize=8)
def noise_bank(kind: str, device: torch.device) -> Tensor:
    """A fixed field of noise that tiles, (2 * BANK, 2 * BANK) so that no window runs over its edge: `even` in [0, 1),
    or normal with deviation 1, independent (`grain`), smooth over about 3 pixels (`fine`) or 10 (`broad`), or along the
    rows alone (`brushed`)."""
    rng = np.random.default_rng(["even", "grain", "fine", "broad", "brushed"].index(kind))
    if kind == "even":
        field = rng.random((BANK, BANK))
    elif kind == "grain":
        field = rng.standard_normal((BANK, BANK))
    else:
        white = np.fft.fft2(rng.standard_normal((BANK, BANK)))
        f = np.fft.fftfreq(BANK)
        down, across = {"fine": (1.5, 1.5), "broad": (5.0, 5.0), "brushed": (0.3, 8.0)}[kind]
        keep = np.exp(-2 * np.pi**2 * ((down * f[:, None]) ** 2 + (across * f[None]) ** 2))
        field = np.fft.ifft2(white * keep).real
        field = np.round(field / field.std(), 4)
    return torch.from_numpy(np.tile(field, (2, 2)).astype(np.float32)).to(device)


def window(bank: Tensor, at: Tensor, h: int, w: int, zoom: int = 1) -> Tensor:
    """Windows (N, h, w) of a noise bank, each from its own place `at` (N,), enlarged `zoom` times."""
    rows, columns = min(-(-h // zoom), BANK), min(-(-w // zoom), BANK)
    start = (at.long() // BANK) * (2 * BANK) + at.long() % BANK
    found = bank.as_strided((2 * BANK**2, rows, columns), (1, 2 * BANK, 1)).index_select(0, start)
    if rows * zoom < h or columns * zoom < w:  # a picture larger than the bank sees it again
        found = found.repeat(1, -(-h // (rows * zoom)), -(-w // (columns * zoom)))
    if zoom > 1:
        n, rows, columns = found.shape
        found = found[:, :, None, :, None].expand(-1, -1, zoom, -1, zoom).reshape(n, rows * zoom, columns * zoom)
    return found[:, :h, :w]


def draw(
    style: Style, size: tuple[int, int], glyphs: Glyphs, channels: int, device: torch.device, layout: bool = True
) -> Drawn:
    """The pictures of styles, of one size (width, height)."""
    width, height = size
    pt = dict(zip(style.picture, _to(device, *style.picture.values()), strict=True))
    ct = dict(zip(style.character, _to(device, *style.character.values()), strict=True))
    under, above = (torch.stack(list(_to(device, *side))) for side in style.lines)
    shift = _displacement(pt, height, width)
    field, owner = _glyph_fields(style.glyphs, ct, pt, glyphs, shift)

    def noise(kind: str, at: Tensor) -> Tensor:
        return window(noise_bank(kind, device), at, height, width)

    picture = _paper(pt, channels, height, width)
    if len(in_cells := _some(pt["cells"])):
        far = _far_from_cells(in_cells, style, ct, pt, shift)
        _draw_other_cells(picture, in_cells, far, ct, pt)
        at = ct | {"y": ct["beside_y"]}
        _draw_more(picture, in_cells, style.beside[in_cells.cpu().numpy()], pt["wheels"], at, pt, glyphs, shift)
    _draw_lines(picture, under, shift)
    if len(some := _some(pt["unlit"])):  # all segments of each cell of a display, faintly
        ids = style.glyphs[some.cpu().numpy()]
        ids = np.where(ids >= 0, glyphs.unlit[ids], -1)
        _draw_more(picture, some, ids, pt["unlit"], ct, pt, glyphs, shift)
    picture = _shade(picture, field, owner, pt, ct)
    if len(in_cells):
        _draw_housing(picture, in_cells, far.amin(1), pt)
    _draw_lines(picture, above, shift)
    _dots(picture, pt)
    picture = weather(picture.clamp_(0, 1), pt, noise).clamp_(0, 1)
    boxes = _boxes(style, glyphs, shift) if layout else torch.empty(len(picture), 0, 4)
    return Drawn(picture, boxes.to(device))


@lru_cache(maxsize=4)
def _tiles(glyphs: Glyphs, device: torch.device) -> Tensor:
    return glyphs.tiles.to(device)


def _to(device: torch.device, *arrays: Floats) -> Sequence[Tensor]:
    """Arrays of one shape as float32 tensors, in one transfer. Rounded: what a library's sine leaves in the last digit
    must not reach a pixel."""
    return torch.from_numpy(np.stack(arrays).round(5).astype(np.float32)).to(device).unbind()


def _some(*numbers: Tensor) -> Tensor:
    """The places of the pictures for which any of these numbers is not 0."""
    hit = torch.stack([x != 0 for x in numbers]).any(0)
    return hit.nonzero()[:, 0]


def _grid(h: int, w: int, device: torch.device) -> tuple[Tensor, Tensor]:
    """Pixel centres: rows (h, 1) and columns (1, w)."""
    return (
        torch.arange(h, device=device, dtype=torch.float32)[:, None] + 0.5,
        torch.arange(w, device=device, dtype=torch.float32)[None] + 0.5,
    )


def _displacement(pt: dict[str, Tensor], h: int, w: int) -> Tensor:
    """By how much each pixel's coordinates are shifted before anything is drawn there, (N, 2, h, w): x, y."""
    n, device = len(pt["paper"]), pt["paper"].device
    shift = torch.zeros(n, 2, h, w, device=device)
    y, x = _grid(h, w, device)
    for name, axis in (("wave_x", 0), ("wave_y", 1)):
        if len(some := _some(pt[name])):
            k = {key: pt[f"{name}{key}"][some, None, None] for key in ("", "_kx", "_ky", "_phase")}
            turns = (x * k["_kx"] + y * k["_ky"] + k["_phase"]) * (2 * math.pi)
            shift[some, axis] = k[""] * torch.sin(turns)
    if len(some := _some(pt["bend"])):
        bank = noise_bank("broad", device)
        for axis in (0, 1):
            at = (pt["bend_at"][some] + axis * 131 * BANK + axis * 77) % BANK**2
            shift[some, axis] += pt["bend"][some, None, None] * window(bank, at, h, w)
    if len(some := _some(pt["swing"])):
        shift[some, 1] += pt["swing"][some, None, None] * (x - w / 2)
    return shift


def _glyph_fields(
    chosen: NDArray[np.int64], ct: dict[str, Tensor], pt: dict[str, Tensor], glyphs: Glyphs, shift: Tensor
) -> tuple[Tensor, Tensor]:
    """How far inside one of the glyphs `chosen` (N, L) each pixel lies, in pixels (N, h, w), and which character's
    that is (N, h, w).

    Each glyph is sampled in a square patch about its centre. What wins where patches meet is packed into one integer a
    pixel, covering order above distance above place, so that the greatest is the answer, in whatever order they come.
    """
    n, (h, w), device = len(shift), shift.shape[2:], shift.device
    ids = torch.from_numpy(chosen).to(device)
    held = ids >= 0
    rows, slots = held.nonzero(as_tuple=True)  # (M,)
    ids = ids[rows, slots]
    numbers = torch.from_numpy(np.column_stack([glyphs.span, glyphs.half]).astype(np.float32)).to(device)[ids]
    span, half_x, half_y = numbers.unbind(1)
    k = {name: ct[name][rows, slots] for name in ("x", "y", "cap", "thick", *BENT)}
    cos, sin, unit = torch.cos(k["turn"]), torch.sin(k["turn"]), 1 / (k["cap"] * span)
    margin = torch.maximum(pt["hollow"] / 2 + 0.6, pt["rim"])
    bent = shift.flatten(1).abs().amax(1)

    # a patch holds the ink as it is turned, with what outlines and bending add
    wide_x = half_x / (1 - k["twist"].abs() * half_y).clamp(min=0.5)
    lean_y = half_y / (1 - k["keel"].abs() * half_x).clamp(min=0.5) + k["tilt"].abs() * wide_x
    lean_x = k["aspect"] * wide_x + k["shear"].abs() * lean_y
    more = (margin + bent + pt["soft"])[rows]
    away_x = (cos.abs() * lean_x + sin.abs() * lean_y) * k["cap"] + more
    away_y = (sin.abs() * lean_x + cos.abs() * lean_y) * k["cap"] + more
    sizes = sorted({-(-h * part // 32) for part in SIDES_OF_32})
    steps_of = torch.tensor(sizes[:-1], device=device, dtype=torch.float32)
    wide_by, high_by = torch.bucketize(2 * away_x, steps_of), torch.bucketize(2 * away_y, steps_of)
    crooked = (bent[rows] > 0) | (k["twist"] != 0) | (k["keel"] != 0)

    # from the picture back to the tile: turn, then shear, then scale, then tilt; twist and keel last
    to_x = (cos - k["shear"] * sin) / k["aspect"] * unit, (sin + k["shear"] * cos) / k["aspect"] * unit
    to_y = -sin * unit + k["tilt"] * to_x[0], cos * unit + k["tilt"] * to_x[1]
    to_tile = torch.stack([*to_x, *to_y, k["twist"] * span, k["keel"] * span])[:, :, None, None]
    # from a tile's 0 to 255 to pixels, and to the levels that are packed. Strokes keep their sharpness where a glyph is
    # squeezed: a distance is measured across them, mostly
    pixels = k["cap"] * k["aspect"].clamp(max=1.0) ** 0.5 * REACH / 127.5
    # no distance in a picture is greater, in pixels; what was thrown for places beyond the end of its text is none
    reach = ct["cap"].where(held, 0.0).amax(1) * (REACH + 0.15) + 4
    levels = _LEVELS / reach
    weight = torch.maximum(pt["weight"][rows], 0.02 - k["thick"])  # no stroke is thinned to nothing
    gain = (weight * k["cap"] - 127.5 * pixels) * levels[rows] + _LEVELS
    steps = pixels * levels[rows]
    least = (_LEVELS - margin * levels)[rows].where(pt["over"][rows] > 0, torch.inf)

    tiles, flat = _tiles(glyphs, device), shift.flatten()
    kinds, kind = torch.unique((wide_by * len(sizes) + high_by) * 2 + crooked, return_inverse=True)
    x, y = k["x"].clamp(0, w), k["y"].clamp(0, h)
    best = torch.zeros(n * (h + 2) * (w + 2), dtype=torch.int32, device=device)  # what lies outside falls on a rim
    for number, code in enumerate(kinds.tolist()):
        some, bends = (kind == number).nonzero()[:, 0], code % 2
        across, down = sizes[code // 2 // len(sizes)], sizes[code // 2 % len(sizes)]
        row, slot = rows[some], slots[some, None, None].int()
        columns = (x[some, None] - across / 2).round().long() + torch.arange(across, device=device)  # (m, across)
        lines = (y[some, None] - down / 2).round().long() + torch.arange(down, device=device)
        px, py = (columns + 0.5 - x[some, None])[:, None, :], (lines + 0.5 - y[some, None])[:, :, None]
        if bends:
            places = (lines.clamp(0, h - 1) * w + (row * 2 * h * w)[:, None])[:, :, None]
            places = (places + columns.clamp(0, w - 1)[:, None]).flatten()
            px = px + flat.gather(0, places).view(-1, down, across)
            py = py + flat[h * w :].gather(0, places).view(-1, down, across)
        a, b, c, d, twist, keel = to_tile[:, some]
        grid = torch.empty(len(some), down, across, 2, device=device)
        tx, ty = grid.unbind(3)
        torch.add(px * c, py * d, out=ty)
        torch.add(px * a, py * b, out=tx)
        if bends:
            both = tx * ty
            tx.addcmul_(both, twist)
            ty.addcmul_(both, keel)
        inside = F.grid_sample(
            tiles.index_select(0, ids[some]).float()[:, None], grid, "bilinear", "border", align_corners=False
        )
        level = torch.addcmul(gain[some, None, None], inside[:, 0], steps[some, None, None])
        value = level.clamp_(0, 2 * _LEVELS).to(torch.int32)
        covers = value >= least[some, None, None]
        value = value.mul_(LONGEST).add_(slot).add_(covers * ((slot + 1) << 20))
        into = ((row * (h + 2))[:, None] + lines.clamp(-1, h) + 1) * (w + 2)
        into = into[:, :, None] + (columns.clamp(-1, w) + 1)[:, None]
        best.scatter_reduce_(0, into.flatten(), value.flatten(), "amax")
    best = best.view(n, h + 2, w + 2)[:, 1:-1, 1:-1].contiguous()
    found = (((best & (2**20 - 1)) >> 5) - _LEVELS) * (1 / levels)[:, None, None]
    return found, (best & (LONGEST - 1)).long()


def _coloured(grey: Tensor, hue: Tensor, colour: Tensor, channels: int) -> Tensor:
    """Colours (..., C) of a given grey: `colour` 0 to 1 says how far the hue goes that this grey admits."""
    if channels == 1:
        return grey[..., None]
    angle = hue[..., None] * 2 * math.pi + torch.tensor([0.0, 4 * math.pi / 3, 2 * math.pi / 3], device=grey.device)
    rgb = torch.cos(angle)
    rgb = rgb - (rgb * torch.tensor(LUMA, device=grey.device)).sum(-1, keepdim=True)
    up = ((1 - grey[..., None]) / rgb.clamp(min=1e-3)).where(rgb > 0, torch.inf)
    down = (grey[..., None] / (-rgb).clamp(min=1e-3)).where(rgb < 0, torch.inf)
    most = torch.minimum(up, down).amin(-1, keepdim=True)
    return grey[..., None] + rgb * most * colour[..., None]


def _paper(pt: dict[str, Tensor], channels: int, h: int, w: int) -> Tensor:
    """What the text is laid on, (N, C, h, w)."""
    n, device = len(pt["paper"]), pt["paper"].device
    base = _coloured(pt["paper"], pt["paper_hue"], pt["paper_colour"], channels)
    picture = base[:, :, None, None].expand(n, channels, h, w).clone()
    y, x = _grid(h, w, device)
    if len(some := _some(pt["gradient"])):
        turn = pt["gradient_turn"][some, None, None]
        along = torch.cos(turn) * (x / w - 0.5) + torch.sin(turn) * (y / h - 0.5)
        picture[some] += (pt["gradient"][some, None, None] * along)[:, None]
    if channels > 1 and len(some := _some(pt["tint"])):
        turn = pt["tint_turn"][some, None, None]
        along = torch.cos(turn) * (x / w - 0.5) + torch.sin(turn) * (y / h - 0.5)
        along = (along / along.abs().amax((1, 2), keepdim=True))[:, None]
        grey = pt["paper"][some]
        ends = [_coloured(grey, pt["tint_hue"][some] + k, pt["tint"][some], 3)[:, :, None, None] for k in (0.0, 0.5)]
        picture[some] += along.clamp(min=0) * (ends[0] - grey[:, None, None, None])
        picture[some] -= along.clamp(max=0) * (ends[1] - grey[:, None, None, None])
    if len(some := _some(pt["cloud"])):
        at = pt["cloud_at"][some]
        broad, fine = window(noise_bank("broad", device), at, h, w), window(noise_bank("fine", device), at, h, w)
        cloud = torch.where(pt["cloud_fine"][some, None, None] > 0, fine, broad)
        picture[some] += (pt["cloud"][some, None, None] * cloud)[:, None]
    if len(some := _some(pt["stripes"])):
        turn, k = pt["stripes_turn"][some, None, None], 2 * math.pi / pt["stripes_length"][some, None, None]
        sharp = pt["stripes_sharp"][some, None, None]
        one = (torch.sin(k * (torch.cos(turn) * x + torch.sin(turn) * y)) * sharp).clamp(-1, 1)
        other = (torch.sin(k * (torch.cos(turn) * y - torch.sin(turn) * x)) * sharp).clamp(-1, 1)
        woven = torch.where(pt["stripes_cross"][some, None, None] > 0, torch.maximum(one, other), one)
        toward = torch.where(pt["paper"][some] > 0.5, -0.5, 0.5)[:, None, None]
        picture[some] += (pt["stripes"][some, None, None] * toward * (1 + woven))[:, None]
    if len(some := _some(pt["brushed"])):
        strokes = window(noise_bank("brushed", device), pt["brushed_at"][some], h, w)
        picture[some] += (pt["brushed"][some, None, None] * strokes)[:, None]
    if len(some := _some(pt["blocks"])):
        patches = window(noise_bank("even", device), pt["cloud_at"][some], h, w, zoom=max(h // 4, 1)) - 0.5
        picture[some] += (pt["blocks"][some, None, None] * patches)[:, None]
    return picture


def _far_from_cells(some: Tensor, style: Style, ct: dict[str, Tensor], pt: dict[str, Tensor], shift: Tensor) -> Tensor:
    """How far outside each character's window each pixel of some pictures lies, pixels (n, L, h, w)."""
    h, w = shift.shape[2:]
    y, x = _grid(h, w, shift.device)
    across = (x + shift[some, 0])[:, None] - ct["cell_x"][some, :, None, None]
    down = (y + shift[some, 1] - pt["cell_y"][some, None, None])[:, None]
    wide, high = (pt[name][some, None, None, None] for name in ("cell_wide", "cell_high"))
    far = torch.maximum(across.abs() - wide, down.abs() - high)
    held = torch.from_numpy(style.glyphs >= 0).to(shift.device)[some]
    return far.where(held[:, :, None, None], torch.inf)


def _draw_other_cells(picture: Tensor, some: Tensor, far: Tensor, ct: dict[str, Tensor], pt: dict[str, Tensor]) -> None:
    """Paint the windows that are of another colour than the others."""
    cover = (0.5 - far.where(ct["other"][some, :, None, None] > 0, torch.inf).amin(1)).clamp(0, 1)
    grey, hue, full = (pt["other_" + part][some] for part in ("grey", "hue", "colour"))
    colour = _coloured(grey, hue, full, picture.shape[1])
    picture[some] = torch.lerp(picture[some], colour[:, :, None, None], cover[:, None])


def _draw_housing(picture: Tensor, some: Tensor, far: Tensor, pt: dict[str, Tensor]) -> None:
    """Cover some of the pictures but for their windows (`far` outside the nearest of which pixels lie, (n, h, w)), and
    draw the windows' rims."""
    grey, hue, full = (pt["housing" + part][some] for part in ("", "_hue", "_colour"))
    housing = _coloured(grey, hue, full, picture.shape[1])
    picture[some] = torch.lerp(picture[some], housing[:, :, None, None], (far + 0.5).clamp(0, 1)[:, None])
    rim = ((pt["cell_rim"][some, None, None] / 2 - far.abs()) + 0.5).clamp(0, 1)
    rim = rim * (pt["cell_rim"][some, None, None] > 0)
    picture[some] = torch.lerp(picture[some], pt["cell_rim_grey"][some, None, None, None], rim[:, None])


def _draw_more(
    picture: Tensor, some: Tensor, ids: NDArray[np.int64], strength: Tensor, ct: dict[str, Tensor],
    pt: dict[str, Tensor], glyphs: Glyphs, shift: Tensor,
) -> None:  # fmt: skip
    """Draw further glyphs (n, L) in some of the pictures, in the picture's ink, before the text is drawn."""
    cells, own = {k: v[some] for k, v in ct.items()}, {k: v[some] for k, v in pt.items()}
    field, _ = _glyph_fields(ids, cells, own, glyphs, shift[some])
    cover = (field / own["soft"][:, None, None] + 0.5).clamp(0, 1) * strength[some, None, None]
    ink = _coloured(own["ink"], own["hue"], own["colour"], picture.shape[1])[:, :, None, None]
    picture[some] = torch.lerp(picture[some], ink, cover[:, None])


def _shade(picture: Tensor, field: Tensor, owner: Tensor, pt: dict[str, Tensor], ct: dict[str, Tensor]) -> Tensor:
    """Lay the glyphs onto a picture: shadow, fill or hollow, and rim."""
    _, channels, h, w = picture.shape
    device = picture.device
    if len(some := _some(pt["rough"])):
        field = field.clone()
        frayed = window(noise_bank("fine", device), pt["cloud_at"][some], h, w)
        field[some] += pt["rough"][some, None, None] * frayed

    soft = 1 / pt["soft"][:, None, None]
    cover = (field * soft + 0.5).clamp(0, 1)
    if len(some := _some(pt["hollow"])):
        rim = (((pt["hollow"][some, None, None] / 2 - field[some].abs()) * soft[some]) + 0.5).clamp(0, 1)
        cover[some] = torch.maximum(rim, cover[some] * pt["filled"][some, None, None])
    if len(some := _some(pt["shadow"])):
        cast = _moved(cover, some, pt["shadow_y"], pt["shadow_x"])
        dark = torch.where(pt["paper"][some] > 0.3, 0.0, 0.6)[:, None, None, None]
        picture[some] = torch.lerp(picture[some], dark, (cast * pt["shadow"][some, None, None])[:, None])
    if len(some := _some(pt["relief"])):
        light, shade = (
            (_moved(cover, some, s * pt["relief_y"], s * pt["relief_x"]) - cover[some]).clamp(0, 1) for s in (-1, 1)
        )
        picture[some] += (pt["relief"][some, None, None] * (light - shade))[:, None]
        cover[some] = cover[some] * pt["relief_ink"][some, None, None]
    if len(some := _some(pt["worn"], pt["hatched"])):
        spots = window(noise_bank("even", device), pt["cloud_at"][some], h, w) >= pt["worn"][some, None, None]
        y, x = _grid(h, w, device)
        lines = (x + y).remainder(4.0) < 2.0
        kept = spots * torch.where(lines, 1.0, 1 - pt["hatched"][some, None, None])
        cover[some] = cover[some] * kept
    if len(some := _some(pt["rim"])):
        edge = (field[some] + pt["rim"][some, None, None] + 0.5).clamp(0, 1)
        grey = pt["rim_ink"][some, None, None, None].expand(-1, channels, -1, -1)
        picture[some] = torch.lerp(picture[some], grey, edge[:, None])

    if len(some := _some(pt["fade"])):
        x = _grid(h, w, device)[1] / w - 0.5
        picture[some] -= (pt["fade"][some, None, None] * x)[:, None]
    inks = _coloured(ct["ink"], ct["hue"], ct["colour"], channels).transpose(1, 2)  # (N, C, L)
    before = picture[some := _some(pt["many"])]
    picture.lerp_(inks[:, :, :1, None], cover[:, None])
    if len(some):
        own = owner[some].flatten(1)[:, None].expand(-1, channels, -1)
        ink = inks[some].gather(2, own).view(-1, channels, h, w)
        picture[some] = torch.lerp(before, ink, cover[some, None])
    if len(some := _some(pt["fade"])):
        picture[some] += (pt["fade"][some, None, None] * x)[:, None]
    return picture


def _moved(cover: Tensor, some: Tensor, down: Tensor, right: Tensor) -> Tensor:
    """Some of what covers the pictures (N, h, w), moved by whole pixels (N,)."""
    h, w = cover.shape[1:]
    ys = torch.arange(h, device=cover.device) - down[some].round().long()[:, None]
    xs = torch.arange(w, device=cover.device) - right[some].round().long()[:, None]
    fits = ((ys >= 0) & (ys < h))[:, :, None] & ((xs >= 0) & (xs < w))[:, None]
    return cover[some[:, None, None], ys.clamp(0, h - 1)[:, :, None], xs.clamp(0, w - 1)[:, None]] * fits


def _draw_lines(picture: Tensor, lines: Tensor, shift: Tensor) -> None:
    """Draw lines (len(LINE), N, LINES) onto a picture (N, C, h, w)."""
    _, channels, h, w = picture.shape
    device = picture.device
    named = dict(zip(LINE, lines, strict=True))
    colours = _coloured(named["grey"], named["hue"], named["colour"], channels)  # (N, LINES, C)
    crossing = named["drawn"] == CROSSING
    y, x = _grid(h, w, device)
    for j in range(int(crossing.sum(1).max())):
        some = crossing[:, j].nonzero()[:, 0]
        k = dict(zip(LINE, lines[:, some, j, None, None], strict=True))
        dx, dy = x - k["x"], y - k["y"]
        if bool(k["bent"].any()):
            bent = k["bent"][:, None] * shift[some]
            dx, dy = dx + bent[:, 0], dy + bent[:, 1]
        along, across = dx * k["cos"] + dy * k["sin"], dy * k["cos"] - dx * k["sin"]
        across = across - k["rise"] * torch.sin(along * k["turns"] + k["phase"])
        cover = (0.5 - torch.maximum(across.abs() - k["width"] / 2, along.abs() - k["half"])).clamp(0, 1)
        picture[some] = torch.lerp(picture[some], colours[some, j, :, None, None], cover[:, None])

    rows, which = (named["drawn"] > CROSSING).nonzero(as_tuple=True)  # each in a patch of its own
    if not len(rows):
        return
    k = dict(zip(LINE, lines[:, rows, which, None, None], strict=True))
    own, packed = torch.unique(rows, return_inverse=True)
    size = h  # no stroke is longer, no ring larger
    left = (k["x"] - size / 2).round().long()
    top = (k["y"] - size / 2).round().long()
    across = torch.arange(size, device=device)
    columns, levels = left + across, top + across[:, None]  # (m, 1, size), (m, size, 1)
    dx, dy = columns + 0.5 - k["x"], levels + 0.5 - k["y"]
    along, aside = dx * k["cos"] + dy * k["sin"], dy * k["cos"] - dx * k["sin"]
    stroke = torch.maximum(aside.abs() - k["width"] / 2, along.abs() - k["half"])
    ring = (torch.sqrt(dx * dx + dy * dy) - k["half"]).abs() - k["width"] / 2
    cover = (0.5 - torch.where(k["drawn"] == RING, ring, stroke)).clamp(0, 1)
    value = (cover * 255).round().to(torch.int32) * 32 + which[:, None, None].int()
    best = torch.zeros(len(own) * (h + 2) * (w + 2), dtype=torch.int32, device=device)  # with a rim, as above
    into = (packed[:, None, None] * (h + 2) + levels.clamp(-1, h) + 1) * (w + 2) + columns.clamp(-1, w) + 1
    best.scatter_reduce_(0, into.flatten(), value.flatten(), "amax")
    best = best.view(-1, h + 2, w + 2)[:, 1:-1, 1:-1]
    ink = colours[own].transpose(1, 2).gather(2, (best & 31).long().flatten(1)[:, None].expand(-1, channels, -1))
    cover = (best >> 5).float() / 255
    picture[own] = torch.lerp(picture[own], ink.view(-1, channels, h, w), cover[:, None])


def _dots(picture: Tensor, pt: dict[str, Tensor]) -> None:
    """Dots of ink, and holes of paper."""
    _, _, h, w = picture.shape
    bank = noise_bank("even", picture.device)
    for name, grey in (("dots", "dots_grey"), ("holes", "paper")):
        if len(some := _some(pt[name])):
            share, at = pt[name][some, None, None], pt[name + "_at"][some]
            hit = window(bank, at, h, w) < share
            if name == "dots":
                large = window(bank, at, h, w, zoom=2) < share
                hit = torch.where(pt["dots_large"][some, None, None] > 0, large, hit)
            picture[some] = torch.where(hit[:, None], pt[grey][some, None, None, None], picture[some])


def _boxes(style: Style, glyphs: Glyphs, shift: Tensor) -> Tensor:
    """Where each character's ink stands in the bent picture, (N, L, 4)."""
    height, width = shift.shape[2:]
    c, ids = style.character, style.glyphs
    weight = np.maximum(style.picture["weight"][:, None], 0.02 - c["thick"]) / c["aspect"].clip(max=1) ** 0.5
    q = glyphs.hull[ids]  # (N, L, SIDES, 2) in cap heights
    b = {name: c[name][..., None] for name in BENT}
    flat = q[..., 0] / (1 + b["twist"] * q[..., 1]).clip(0.5)
    cos, sin = np.cos(b["turn"]), np.sin(b["turn"])
    right, down = cos * b["shear"] + sin, cos - sin * b["shear"]
    to_x, to_y = cos * b["aspect"] + right * b["tilt"], sin * b["aspect"] - down * b["tilt"]
    level = q[..., 1] / (1 + b["keel"] * q[..., 0]).clip(0.5)
    x = c["x"][..., None] + (to_x * flat - right * level) * c["cap"][..., None]
    y = c["y"][..., None] + (to_y * flat + down * level) * c["cap"][..., None]
    more_x = weight * c["cap"] * np.hypot(to_x, right)[..., 0]  # what strokes gain or lose, as it is stretched
    more_y = weight * c["cap"] * np.hypot(to_y, down)[..., 0]
    # a pixel at p shows what was at p + shift(p): find p for the four sides' middles by fixed point
    sides = np.stack([
        np.stack([x.min(2) - more_x, y.mean(2)], -1), np.stack([x.mean(2), y.min(2) - more_y], -1),
        np.stack([x.max(2) + more_x, y.mean(2)], -1), np.stack([x.mean(2), y.max(2) + more_y], -1),
    ], 2)  # (N, L, 4 sides, 2)  # fmt: skip
    bent = shift.cpu().numpy()
    pos = sides.copy()
    picture = np.arange(len(ids))[:, None, None]
    for _ in range(4):
        col = np.clip(np.floor(pos[..., 0]), 0, width - 1).astype(int)
        row = np.clip(np.floor(pos[..., 1]), 0, height - 1).astype(int)
        pos = sides - np.stack([bent[picture, 0, row, col], bent[picture, 1, row, col]], -1)
    boxes = np.stack([pos[..., 0, 0], pos[..., 1, 1], pos[..., 2, 0], pos[..., 3, 1]], -1)
    boxes[ids < 0] = np.nan
    return torch.from_numpy(boxes.astype(np.float32))
