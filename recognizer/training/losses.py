"""What training minimises. Every loss takes logits (N, T, classes) and gives nats a character, one a picture (N,)."""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn import functional as F

from recognizer.charset import BLANK


def nll(logits: Tensor, targets: Tensor, lengths: Tensor) -> Tensor:
    """Exact negative log-likelihood of each text in nats, (N,): CTC (Graves et al. 2006), in float32.

    `targets` is (N, L) class ids padded with anything, `lengths` (N,). Infinite where a text has no alignment.
    """
    log_probs = logits.float().log_softmax(-1).transpose(0, 1)
    frames = torch.full_like(lengths, logits.shape[1])
    return F.ctc_loss(log_probs, targets, frames, lengths, blank=BLANK, reduction="none")


def ctc(logits: Tensor, targets: Tensor, lengths: Tensor) -> Tensor:
    """CTC a character."""
    return nll(logits, targets, lengths) / lengths


def focal_ctc(logits: Tensor, targets: Tensor, lengths: Tensor, gamma: float = 1.0) -> Tensor:
    """CTC weighted by (1 - p)^gamma, p the likelihood a character: easy pictures count less.

    Feng et al. 2019, "Focal CTC loss", with p = exp(-loss / length) in place of their exp(-loss), which is near 0 for
    all but read texts, so that the factor would do nothing.
    """
    loss = ctc(logits, targets, lengths)
    return (1 - torch.exp(-loss)) ** gamma * loss


Loss = Callable[[Tensor, Tensor, Tensor], Tensor]
LOSSES: dict[str, Loss] = {"ctc": ctc, "focal-ctc": focal_ctc}


def aggregation(logits: Tensor, targets: Tensor, lengths: Tensor) -> Tensor:
    """Aggregation cross-entropy: how often each class is seen over all frames against how often it should be, (N,).

    Xie et al. 2019, "Aggregation Cross-Entropy for Sequence Recognition", arXiv 1904.08364, equation 6; a character
    counts one frame and the blank the rest. It knows nothing of where characters stand. In nats a character.
    """
    n, t, classes = logits.shape
    held = torch.arange(targets.shape[1], device=targets.device) < lengths[:, None]
    counts = torch.zeros(n, classes, device=logits.device).scatter_add_(1, targets, held.float())
    counts[:, BLANK] = t - lengths
    seen = logits.float().softmax(-1).mean(1).clamp_min(1e-8)
    return -(counts * seen.log()).sum(1) / lengths


def evenly_spread(logits: Tensor, targets: Tensor, lengths: Tensor, pictures: Tensor) -> Tensor:
    """Cross-entropy of every frame against characters spread evenly from where ink begins to where it ends, (N,).

    Wrong in detail and mostly right in order, it is plain supervision, and so has no saddle to sit on. Ink is the
    variance of a column of `pictures` (N, 1, H, W); a thirtieth of it may lie beyond either end. A character takes one
    frame, two where it has room for four, and the blank takes the rest. In nats a character.
    """
    n, t, _ = logits.shape
    ink = F.adaptive_avg_pool1d(pictures.float().var(2), t).squeeze(1)
    reached = ink.cumsum(1) / ink.sum(1, keepdim=True).clamp_min(1e-6)
    first, last = (reached < 0.03).sum(1, keepdim=True), (reached < 0.97).sum(1, keepdim=True) + 1
    each = (last - first).clamp_min(1).double() / lengths[:, None]
    i = torch.arange(targets.shape[1], device=targets.device)
    held = i < lengths[:, None]
    centre = (first + (i.double() + 0.5) * each).long().clamp(0, t - 1)
    two = held & (each >= 4) & (centre > 0)
    written = torch.where(held, targets, BLANK)
    truth = torch.full((n, t + 1), BLANK, device=targets.device)  # the last column takes what is not held
    truth.scatter_(1, torch.where(two, centre - 1, t), written)
    truth.scatter_(1, torch.where(held, centre, t), written)
    loss = F.cross_entropy(logits.float().flatten(0, 1), truth[:, :t].flatten(), reduction="none")
    return loss.view(n, t).sum(1) / lengths


def guide(logits: Tensor, targets: Tensor, lengths: Tensor, pictures: Tensor) -> Tensor:
    """What leads a head from nothing off CTC's plateau, (N,): the mean of `aggregation` and `evenly_spread`.

    CTC from nothing first learns that blank is always a good guess, and stays there for long. Either part alone gets
    off it as well, but not soon with every seed (docs/log.md).
    """
    return (aggregation(logits, targets, lengths) + evenly_spread(logits, targets, lengths, pictures)) / 2


def guidance(level: float, classes: int) -> float:
    """The guide's share of the loss, 1 to 0, at a CTC loss of `level` nats a character.

    The plateau lies at log(classes), where every character is equally likely: the guide leads alone at .8 of that and
    leaves at .3.
    """
    return min(max((level / math.log(classes) - 0.3) / 0.5, 0.0), 1.0)
