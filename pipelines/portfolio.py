"""How a round's pictures are shared among methods: each gets some, a short trial of each says what it earned, and the
rest goes where more was earned.

The weights are those of Hedge (Freund and Schapire 1997, "A Decision-Theoretic Generalization of On-Line Learning"),
with what a method earned measured in its own standard errors, so that a few validation pictures move little.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from recognizer.readings import Reading

UNLABELLED = "unlabelled"  # what pictures without labels are called beside methods
PARTS = ("even", "earned")  # of a round's pictures, in the order in which they are made
MOST = 5.0  # nats of one picture that count, at most
SURELY = 3.0  # standard errors that count in one round, at most


class Earned(NamedTuple):
    """What a trial's pictures earned over a trial without any: nats by which validation labels grew likelier, the mean
    over pictures, and its standard error."""

    nats: float
    error: float

    @property
    def z(self) -> float:
        """In standard errors, so many as count."""
        return float(np.clip(self.nats / self.error, -SURELY, SURELY)) if self.error > 0 else 0.0


def earned(alone: Sequence[Sequence[Reading]], practised: Sequence[Reading]) -> Earned:
    """From readings of the same validation pictures, by readers tried without made pictures, each of another seed, and
    by one with them. The error is of the pictures and of the seed: a trial of another seed reads otherwise as well."""
    before = np.array([nats(own) for own in alone])
    gain = before.mean(0) - nats(practised)
    pictures = gain.var(ddof=1) / len(gain) if len(gain) > 1 else 0.0
    seeds = before.mean(1).var(ddof=1) * (1 + 1 / len(before)) if len(before) > 1 else 0.0
    return Earned(float(gain.mean()), float((pictures + seeds) ** 0.5))


def weighed(weights: Mapping[str, float], found: Mapping[str, Earned]) -> dict[str, float]:
    """The weights of methods after a trial, of sum 1; a method without a trial keeps its own."""
    grown = {name: w * float(np.exp(found[name].z if name in found else 0.0)) for name, w in weights.items()}
    return {name: w / sum(grown.values()) for name, w in grown.items()}


def shared(count: int, weights: Mapping[str, float]) -> dict[str, int]:
    """`count` pictures shared among methods by weight, every picture given to one."""
    edges = np.round(np.cumsum(list(weights.values())) / sum(weights.values()) * count).astype(int)
    return dict(zip(weights, np.diff(edges, prepend=0).tolist(), strict=True))


def nats(readings: Sequence[Reading]) -> NDArray[np.float64]:
    """By which each label is unlikely, so many as count."""
    return np.array([min(MOST if r.nll is None else r.nll, MOST) for r in readings])
