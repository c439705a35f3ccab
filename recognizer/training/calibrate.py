"""Make a reader's confidence mean something: one temperature, fitted on pictures that it did not train on.

Guo et al. 2017, "On Calibration of Modern Neural Networks", arXiv 1706.04599, section 4.2, for the probability of a
whole text: what is fitted is how likely it is that the text that was read is the right one.
"""

from __future__ import annotations

import math

import numpy as np
import torch
from torch import Tensor

from recognizer.decode import greedy
from recognizer.images import normalise
from recognizer.training.batches import Pictures
from recognizer.training.evaluate import groups_of_one_width
from recognizer.training.losses import nll
from recognizer.training.model import HeadName, Network

RANGE = (0.5, 5.0)
USUAL = 1.3  # what readers of few labels need
RESERVE = 10.0  # nats that it costs to go e times away from that: few pictures must not move it far (docs/log.md)


@torch.inference_mode()
def fit_temperature(network: Network, head: HeadName, pictures: Pictures, most: int = 2000) -> float:
    """What the logits must be divided by, so that confidence in what is read is right as often as it says.

    The network must be in eval mode. Minimises the log loss of "the text is read rightly" over the pictures.
    """
    device = next(network.parameters()).device
    read: list[tuple[Tensor, Tensor, Tensor, Tensor]] = []
    seen = 0
    for group in groups_of_one_width(pictures, 128):
        if seen >= most:
            break
        seen += len(group)
        x = torch.from_numpy(normalise(np.stack([pictures.grey(i) for i in group]))[:, None])
        logits = network(x.to(device))[head].float().cpu()
        paths = [path.ids for path in greedy(logits.log_softmax(-1).numpy())]
        right = torch.tensor([list(ids) == pictures[i].ids for i, ids in zip(group, paths, strict=True)])
        lengths = torch.tensor([len(ids) for ids in paths])
        targets = torch.zeros(len(group), max(1, int(lengths.max())), dtype=torch.long)
        for row, ids in zip(targets, paths, strict=True):
            row[: len(ids)] = torch.tensor(ids, dtype=torch.long)
        read.append((logits, targets, lengths, right))

    def loss(temperature: float) -> float:
        total = RESERVE * math.log(temperature / USUAL) ** 2
        for logits, targets, lengths, right in read:
            p = torch.exp(-nll(logits / temperature, targets, lengths)).clamp(1e-6, 1 - 1e-6)
            total -= float(torch.where(right, p.log(), (1 - p).log()).sum())
        return total

    tried: list[float] = np.geomspace(*RANGE, 47).tolist()
    return min(tried, key=loss)
