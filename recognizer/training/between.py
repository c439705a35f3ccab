"""How much of what was learned to keep: a point between the weights that a training started from and those that it
ended with, where pictures that it did not train on say that it reads best.

Wortsman et al. 2022, "Robust fine-tuning of zero-shot models", arXiv 2109.01903. Few labels are learned by heart, and
what a reader knew of others is lost; on the way there it reads more than at both ends.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import torch
from accelerate import Accelerator
from torch import Tensor

from recognizer.training.batches import Pictures
from recognizer.training.evaluate import read_pictures
from recognizer.training.model import HeadName, Network

SHARES = (1.0, 0.9, 0.8, 0.7, 0.6, 0.5, 0.4, 0.3, 0.2)  # of what was learned
FEWEST = 3  # pictures that it is judged by
HARDEST = 50.0  # nats that a picture counts, at most
AS_GOOD = 0.5  # standard errors by which a larger share may seem worse than the best one


def started(network: Network, drawn: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The weights that a network starts from; nan those of a head that were `drawn` by chance, for want of a start."""
    state = {name: tensor.clone() for name, tensor in network.state_dict().items()}
    for name, tensor in state.items():
        if name.startswith("heads.") and tensor.is_floating_point():
            tensor[tensor == drawn[name]] = torch.nan
    return state


def between(start: Mapping[str, Tensor], learned: Mapping[str, Tensor], share: float) -> dict[str, Tensor]:
    """Weights between two, `share` of the way to what was learned; what the start had none of is as it was learned."""
    return {
        name: torch.where(start[name].isnan(), own, own.lerp(start[name].to(own), 1 - share))
        if own.is_floating_point()
        else own
        for name, own in learned.items()
    }


def share_to_keep(
    network: Network, head: HeadName, start: Mapping[str, Tensor], learned: Mapping[str, Tensor], pictures: Pictures,
    accelerator: Accelerator,
) -> float:  # fmt: skip
    """The share of what was learned with which the labels of `pictures` are most probable, or a larger one that so few
    of them cannot tell from it; all of it where there are next to none. Leaves other weights in the network."""
    if len(pictures) < FEWEST:
        return 1.0
    whole, costs = network.state_dict(), []
    for share in SHARES:
        network.load_state_dict({**whole, **between(start, learned, share)})
        readings = read_pictures(network, head, pictures, accelerator).readings
        costs.append([min(r.nll if r.nll is not None else HARDEST, HARDEST) for r in readings])
    return choose(np.array(costs))


def choose(costs: np.ndarray[tuple[int, int], np.dtype[np.float64]]) -> float:
    """The share to keep, by what each picture costs at each of `SHARES` (S, N), nats."""
    apart = costs - costs[costs.mean(1).argmin()]
    error = apart.std(1, ddof=1) / costs.shape[1] ** 0.5
    return SHARES[int(np.flatnonzero(apart.mean(1) <= AS_GOOD * error)[0])]
