"""What happens to a picture after it was drawn: blur, low resolution, grain, few levels, JPEG. On batches, in torch.

Sums run in a fixed order and never through a library's convolution or matrix product, whose rounding depends on the
batch: the same picture must come out whatever else is in it.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping

import torch
from torch import Tensor
from torch.nn import functional as F

# the luminance table of the JPEG standard (ITU-T T.81, annex K)
QUANTA = (
    16, 11, 10, 16, 24, 40, 51, 61, 12, 12, 14, 19, 26, 58, 60, 55, 14, 13, 16, 24, 40, 57, 69, 56, 14, 17, 22, 29, 51,
    87, 80, 62, 18, 22, 37, 56, 68, 109, 103, 77, 24, 35, 55, 64, 81, 104, 113, 92, 49, 64, 78, 87, 103, 121, 120, 101,
    72, 92, 95, 98, 112, 100, 103, 99,
)  # fmt: skip


def weather(pictures: Tensor, how: Mapping[str, Tensor], noise: Callable[[str, Tensor], Tensor]) -> Tensor:
    """Weather pictures (N, C, H, W) of 0 to 1, in place.

    `how` gives for each picture (N,): `blur` a Gaussian's deviation in pixels; `coarse` 1, 2 or 3 for a resolution 1.5,
    2 or 3 times lower, `blocky` where it is shown without smoothing; `grain` a deviation; `levels` of grey, `dither`ed
    or not; `jpeg` a quality of 1 to 100. 0 leaves a picture alone. `noise(kind, at)` gives noise (M, H, W), `even` in
    [0, 1) or `grain` of deviation 1.
    """
    if len(some := how["blur"].nonzero()[:, 0]):
        pictures[some] = blurred(pictures[some], how["blur"][some])
    for k, factor in ((1, 1.5), (2, 2.0), (3, 3.0)):
        for blocky in (0, 1):
            some = ((how["coarse"] == k) & (how["blocky"] == blocky)).nonzero()[:, 0]
            if len(some):
                pictures[some] = coarse(pictures[some], factor, bool(blocky))
    if len(some := how["grain"].nonzero()[:, 0]):
        grain = how["grain"][some, None, None] * noise("grain", how["grain_at"][some])
        pictures[some] = (pictures[some] + grain[:, None]).clamp(0, 1)
    if len(some := how["levels"].nonzero()[:, 0]):
        top = how["levels"][some, None, None, None] - 1
        spread = (noise("even", how["grain_at"][some]) - 0.5)[:, None] * how["dither"][some, None, None, None]
        pictures[some] = ((pictures[some] * top + spread).round() / top).clamp(0, 1)
    if len(some := how["jpeg"].nonzero()[:, 0]):
        pictures[some] = jpeg(pictures[some], how["jpeg"][some])
    return pictures


def blurred(pictures: Tensor, deviation: Tensor) -> Tensor:
    """Gaussian blur of pictures (N, C, H, W), each with its own deviation (N,) in pixels."""
    own = (2 * deviation).ceil().clamp(min=1)  # as far as each reaches, whatever the others of its batch do
    reach = int(own.max())
    taps = [torch.exp(-0.5 * (k / deviation.clamp(min=0.1)) ** 2) * (k <= own) for k in range(reach + 1)]
    total = taps[0] + 2 * sum(taps[1:])
    for axis in (2, 3):
        pad = (0, 0, reach, reach) if axis == 2 else (reach, reach, 0, 0)
        wide = F.pad(pictures, pad, mode="replicate")
        n = pictures.shape[axis]
        out = pictures * (taps[0] / total)[:, None, None, None]
        for k in range(1, reach + 1):
            pair = wide.narrow(axis, reach - k, n) + wide.narrow(axis, reach + k, n)
            out = out + pair * (taps[k] / total)[:, None, None, None]
        pictures = out
    return pictures


def coarse(pictures: Tensor, factor: float, blocky: bool) -> Tensor:
    """Pictures (N, C, H, W) as a resolution `factor` times lower would show them."""
    h, w = pictures.shape[2:]
    small = F.interpolate(pictures, (max(round(h / factor), 1), max(round(w / factor), 1)), mode="area")
    if blocky:
        return F.interpolate(small, (h, w), mode="nearest")
    return F.interpolate(small, (h, w), mode="bilinear", align_corners=False)


def jpeg(pictures: Tensor, quality: Tensor) -> Tensor:
    """Pictures (N, C, H, W) of 0 to 1 with the losses of JPEG at a quality (N,) of 1 to 100, each channel as luminance.

    The cosine transform of blocks of 8 x 8, quantised by the standard's table as libjpeg scales it, and back.
    """
    n, c, h, w = pictures.shape
    hh, ww = -(-h // 8) * 8, -(-w // 8) * 8
    x = F.pad(pictures * 255 - 128, (0, ww - w, 0, hh - h), mode="replicate")
    i = torch.arange(8, device=x.device, dtype=torch.float64)
    basis = torch.cos((2 * i[None] + 1) * i[:, None] * math.pi / 16) / 2
    basis[0] /= math.sqrt(2)
    basis = basis.float()
    scale = torch.where(quality < 50, 5000 / quality.clamp(min=1), 200 - 2 * quality)
    table = torch.tensor(QUANTA, device=x.device, dtype=torch.float32)
    steps = ((table * scale[:, None] + 50) / 100).floor().clamp(1, 255).view(n, 1, 1, 8, 1, 8)
    x = x.view(n, c, hh // 8, 8, ww // 8, 8)
    x = (_turned(_turned(x, basis, 3), basis, 5) / steps).round() * steps
    x = _turned(_turned(x, basis.T, 3), basis.T, 5).reshape(n, c, hh, ww)[:, :, :h, :w]
    return ((x + 128) / 255).clamp(0, 1)


def _turned(x: Tensor, matrix: Tensor, axis: int) -> Tensor:
    """Multiply the 8 places of an axis by a matrix (8, 8), summed in a fixed order."""
    parts = x.unbind(axis)
    rows = []
    for row in matrix.tolist():
        total = parts[0] * row[0]
        for part, weight in zip(parts[1:], row[1:], strict=True):
            total = torch.add(total, part, alpha=weight)
        rows.append(total)
    return torch.stack(rows, axis)
