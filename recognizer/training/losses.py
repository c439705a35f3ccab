"""What training minimises. Every loss takes logits (N, T, classes) and gives nats a character, one a picture (N,)."""

from __future__ import annotations

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
    counts one frame and the blank the rest. It knows nothing of order, and so has no plateau: CTC from nothing first
    learns that blank is always a good guess, and stays there for long. In nats a character.
    """
    n, t, classes = logits.shape
    held = torch.arange(targets.shape[1], device=targets.device) < lengths[:, None]
    counts = torch.zeros(n, classes, device=logits.device).scatter_add_(1, targets, held.float())
    counts[:, BLANK] = t - lengths
    seen = logits.float().softmax(-1).mean(1).clamp_min(1e-8)
    return -(counts * seen.log()).sum(1) / lengths
