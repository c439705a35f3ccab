"""How like real pictures made ones are, in a reader's feature space: a Frechet distance, and how much they cover."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from recognizer.charset import Charset
from recognizer.images import MAX_PIXELS
from recognizer.samples import Sample
from recognizer.training.batches import Pictures, collate
from recognizer.training.checkpoint import build, read_weights
from recognizer.training.evaluate import groups_of_one_width

NEAREST = 5  # neighbours that make a real picture's ball

Features = NDArray[np.float64]


@torch.inference_mode()
def features_of(weights: Path, samples: Sequence[Sample]) -> Features:
    """What a reader's trunk makes of pictures (N, F): each channel's mean over a picture. Those that it cannot use are
    left out."""
    state, description = read_weights(weights)
    network = build(state, description)
    pictures = Pictures(samples, Charset(description.charset), description.frame, MAX_PIXELS)
    found = np.empty((len(pictures), 0))
    for group in groups_of_one_width(pictures, 128):
        trunk = network.trunk(collate([pictures[i] for i in group]).pictures).mean(2).numpy()
        if not found.shape[1]:
            found = np.empty((len(pictures), trunk.shape[1]))
        found[group] = trunk
    return found


def frechet(a: Features, b: Features) -> float:
    """The squared Frechet distance of two normal distributions with the means and covariances of features (N, F) each.

    It is larger the fewer pictures there are: compare at equal numbers, and with what two halves of the real ones give.

    Source: Heusel et al. 2017, "GANs Trained by a Two Time-Scale Update Rule", arXiv 1706.08500, in another space.
    """
    first, second = np.cov(a, rowvar=False), np.cov(b, rowvar=False)
    values, vectors = np.linalg.eigh(np.atleast_2d(first))
    root = vectors * np.sqrt(np.maximum(values, 0)) @ vectors.T
    between = np.linalg.eigvalsh(root @ np.atleast_2d(second) @ root)
    apart = float(((a.mean(0) - b.mean(0)) ** 2).sum())
    return apart + float(np.trace(np.atleast_2d(first + second)) - 2 * np.sqrt(np.maximum(between, 0)).sum())


def coverage(real: Features, made: Features, nearest: int = NEAREST) -> float:
    """The share of real pictures that have a made one as near as their `nearest`th real neighbour: 0 to 1.

    A generator that draws one look covers little, however well it draws it.

    Source: Naeem et al. 2020, "Reliable Fidelity and Diversity Metrics for Generative Models", arXiv 2002.09797.
    """
    own = _distances(real, real)
    reach = np.partition(own, min(nearest, len(real) - 1), axis=1)[:, min(nearest, len(real) - 1)]  # itself is one
    return float((_distances(real, made).min(1) <= reach).mean())


def _distances(a: Features, b: Features) -> Features:
    squares = (a**2).sum(1)[:, None] + (b**2).sum(1) - 2 * a @ b.T
    return np.asarray(np.sqrt(np.maximum(squares, 0)), np.float64)
