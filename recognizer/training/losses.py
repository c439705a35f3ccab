"""What training minimises. Every loss takes logits (N, T, classes) and gives one number a picture (N,): nats a
character, or, of a fixed head, nats a position."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from recognizer.charset import BLANK


@dataclass(frozen=True)
class Options:
    """What some losses can be told."""

    pos_weight: float = 3.0  # of what is there against what is not, in weighted-bce
    alpha: float = 0.25  # share of what is there, in focal-bce
    gamma: float | None = None  # how little easy ones count in focal losses; else 1 in focal-ctc, 2 in focal-bce
    adaptive_gamma: bool = False  # 5 for what is unlikely (p under .2), else 3
    rarity: Tensor | None = None  # weights of the classes in balanced-ctc (classes,); see `rarity`

    def easy(self, p: Tensor, usual: float) -> Tensor:
        """The factor (1 - p)^gamma.

        Mukhoti et al. 2020, "Calibrating Deep Neural Networks using Focal Loss", arXiv 2002.09437, section 5, for the
        gamma that adapts (their FLSD-53).
        """
        left = (1 - p).clamp_min(1e-6)  # at 0 a root has no slope
        if self.adaptive_gamma:
            return torch.where(p.detach() < 0.2, left**5, left**3)
        return left ** (usual if self.gamma is None else self.gamma)


PLAIN = Options()


def nll(logits: Tensor, targets: Tensor, lengths: Tensor) -> Tensor:
    """Exact negative log-likelihood of each text in nats, (N,): CTC (Graves et al. 2006), in float32.

    `targets` is (N, L) class ids padded with anything, `lengths` (N,). Infinite where a text has no alignment.
    """
    log_probs = logits.float().log_softmax(-1).transpose(0, 1)
    frames = torch.full_like(lengths, logits.shape[1])
    return F.ctc_loss(log_probs, targets, frames, lengths, blank=BLANK, reduction="none")


def ctc(logits: Tensor, targets: Tensor, lengths: Tensor, options: Options = PLAIN) -> Tensor:
    """CTC a character."""
    return nll(logits, targets, lengths) / lengths


def focal_ctc(logits: Tensor, targets: Tensor, lengths: Tensor, options: Options = PLAIN) -> Tensor:
    """CTC weighted by (1 - p)^gamma, p the likelihood a character: easy pictures count less.

    Feng et al. 2019, "Focal CTC loss", with p = exp(-loss / length) in place of their exp(-loss), which is near 0 for
    all but read texts, so that the factor would do nothing.
    """
    loss = ctc(logits, targets, lengths)
    return options.easy(torch.exp(-loss), 1.0) * loss


def balanced_ctc(logits: Tensor, targets: Tensor, lengths: Tensor, options: Options = PLAIN) -> Tensor:
    """CTC a character, times the mean weight of a picture's characters: pictures with rare ones count more."""
    loss = ctc(logits, targets, lengths)
    if options.rarity is None:
        return loss
    held = torch.arange(targets.shape[1], device=targets.device) < lengths[:, None]
    return loss * (options.rarity.to(loss)[targets] * held).sum(1) / lengths


def rarity(texts: Iterable[Iterable[int]], classes: int, beta: float = 0.999) -> Tensor:
    """A weight of each class (classes,) by how often it stands in some texts: (1 - beta) / (1 - beta^n), so that the
    mean over all their characters is 1.

    Cui et al. 2019, "Class-Balanced Loss Based on Effective Number of Samples", arXiv 1901.05555, equation 5.
    """
    ids = torch.tensor([i for text in texts for i in text], dtype=torch.long)
    counts = torch.bincount(ids, minlength=classes).double()
    weights = (1 - beta) / (1 - beta ** counts.clamp_min(1))
    return (weights * counts.sum() / (weights * counts).sum().clamp_min(1e-12)).float()


# ----------------------------------------------------------------------------------------------------- a fixed head's


def positions(logits: Tensor, targets: Tensor, lengths: Tensor) -> tuple[Tensor, Tensor]:
    """A fixed head's logits (N, P, classes), without the frames between, and which class stands in each position, as 0
    and 1 of the same shape. Class 0 is nothing; what is longer than P is cut off."""
    own = logits[:, ::2].float()
    places = own.shape[1]
    padded = F.pad(targets, (0, max(0, places - targets.shape[1])))[:, :places]
    held = torch.arange(places, device=targets.device) < lengths[:, None]
    return own, F.one_hot(torch.where(held, padded, BLANK), own.shape[2]).to(own)


def bce(logits: Tensor, targets: Tensor, lengths: Tensor, options: Options = PLAIN) -> Tensor:
    """Binary cross-entropy of every class in every position, a position."""
    own, truth = positions(logits, targets, lengths)
    return F.binary_cross_entropy_with_logits(own, truth, reduction="none").sum((1, 2)) / own.shape[1]


def weighted_bce(logits: Tensor, targets: Tensor, lengths: Tensor, options: Options = PLAIN) -> Tensor:
    """The same, the one class that is there weighted against all those that are not."""
    own, truth = positions(logits, targets, lengths)
    weight = torch.tensor(options.pos_weight, device=own.device)
    loss = F.binary_cross_entropy_with_logits(own, truth, reduction="none", pos_weight=weight)
    return loss.sum((1, 2)) / own.shape[1]


def focal_bce(logits: Tensor, targets: Tensor, lengths: Tensor, options: Options = PLAIN) -> Tensor:
    """Focal loss, a position. Lin et al. 2017, "Focal Loss for Dense Object Detection", arXiv 1708.02002, eq. 5."""
    own, truth = positions(logits, targets, lengths)
    loss = F.binary_cross_entropy_with_logits(own, truth, reduction="none")
    balance = torch.where(truth > 0, options.alpha, 1 - options.alpha)
    return (balance * options.easy(torch.exp(-loss), 2.0) * loss).sum((1, 2)) / own.shape[1]


Loss = Callable[[Tensor, Tensor, Tensor, Options], Tensor]
LOSSES: dict[str, Loss] = {
    "ctc": ctc, "focal-ctc": focal_ctc, "balanced-ctc": balanced_ctc,
    "bce": bce, "weighted-bce": weighted_bce, "focal-bce": focal_bce,
}  # fmt: skip
OF_POSITIONS = {"bce", "weighted-bce", "focal-bce"}  # a fixed head's; all others are those of CTC heads
FOCAL = {"focal-ctc", "focal-bce"}
TOLD = {  # an option -> the losses that ask for it
    "pos_weight": {"weighted-bce"}, "alpha": {"focal-bce"}, "gamma": FOCAL, "adaptive_gamma": FOCAL,
}  # fmt: skip


# -------------------------------------------------------------------------------------------------- off CTC's plateau


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
