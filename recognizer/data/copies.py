"""Pictures that are nearly the same, told by small grey copies of them."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import suppress

import numpy as np
from numpy.typing import NDArray

from recognizer.images import PictureError, open_picture
from recognizer.samples import Sample

SHAPE = (48, 16)  # width and height at which pictures are compared
NEAR = 1 / 4  # of the distance at which pictures usually have their nearest: nearer ones are nearly the same
MOST = 20_000  # pictures that are compared with each other: minutes; ten times as many would take hours
EQUAL = 0.1  # what sums of so many numbers round to, and more


def thumbnail(sample: Sample) -> NDArray[np.float32]:
    """A picture as `SHAPE` grey values with mean 0 and deviation 1, in a row.

    Raises:
        PictureError: it cannot be opened.
    """
    small = np.asarray(open_picture(sample.read_bytes(), "L").resize(SHAPE), np.float32).ravel()
    return np.asarray((small - small.mean()) / max(small.std(), 1.0), dtype=np.float32)


def nearest(
    these: NDArray[np.float32], those: NDArray[np.float32], k: int
) -> tuple[NDArray[np.int64], NDArray[np.float32]]:
    """The `k` nearest of `those` to each of `these`, nearest first: places (N, k) and Euclidean distances (N, k)."""
    squares, places, distances = (those**2).sum(1), [], []
    for start in range(0, len(these), 256):
        part = these[start : start + 256]
        between = np.maximum(squares + (part**2).sum(1)[:, None] - 2 * part @ those.T, 0) ** 0.5
        found = np.argpartition(between, k - 1, axis=1)[:, :k]
        found = np.take_along_axis(found, np.take_along_axis(between, found, 1).argsort(1), 1)
        places.append(found)
        distances.append(np.take_along_axis(between, found, 1))
    return np.concatenate(places), np.concatenate(distances)


def near_pairs(samples: Sequence[Sample]) -> list[tuple[int, int, float]]:
    """Pairs of samples whose pictures are nearly the same, by their places, with the share of the usual distance to a
    picture's nearest, 0 where they are equal. Those that cannot be opened are in none, nor are those after `MOST`."""
    own: dict[int, NDArray[np.float32]] = {}
    for i, sample in enumerate(samples[:MOST]):
        with suppress(PictureError):
            own[i] = thumbnail(sample)
    if len(own) < 3:
        return []
    order, stacked = list(own), np.stack(list(own.values()))
    places, distances = nearest(stacked, stacked, min(4, len(order)))
    others = places != np.arange(len(order))[:, None]
    first = [d[own][0] for d, own in zip(distances, others, strict=True)]
    usual = float(np.median([d for d in first if d > EQUAL] or [0.0]))
    pairs = {
        (min(i, j), max(i, j)): (d / usual if d > EQUAL else 0.0)
        for i, (those, far) in enumerate(zip(places.tolist(), distances.tolist(), strict=True))
        for j, d in zip(those, far, strict=True)
        if i != j and d <= max(NEAR * usual, EQUAL)
    }
    return [(order[i], order[j], share) for (i, j), share in sorted(pairs.items())]
