"""One reader out of several trainings from one start, by the mean of their weights.

Wortsman et al. 2022, "Model soups: averaging weights of multiple fine-tuned models improves accuracy without increasing
inference time", arXiv 2203.05482. Trainings from one start stay in one valley of the loss, where the mean of two points
lies lower than either.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import torch
from torch import Tensor
from torch.nn import functional as F

from recognizer.errors import UserError
from recognizer.training.checkpoint import find_weights, read_weights, save_weights

LEARNED = ("data", "keep", "with_synthetic")  # settings that name what a reader has learned
LEAST_ALIKE = 0.5  # cosine of two readers' weights: .93 and more from one start, under .1 from two


class NoMean(UserError):
    """Readers that were not trained from one start."""


def average(models: Sequence[Path], out: Path) -> None:
    """Write the mean of readers' weights to a folder `out`, as `weights.safetensors`. They may have learned other
    pictures each; it names all of these.

    Raises:
        NoMean: readers of different starts.
        UserError: fewer than two weights files, ones of different readers, or a folder that holds something.
    """
    if len({find_weights(path).resolve() for path in models}) < max(2, len(models)):
        raise UserError("name two readers or more, each once")
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise UserError(f"{out} exists and is not empty: name a new folder")
    (first, description), *others = [read_weights(path) for path in models]
    named = [dict(description.settings), *(own.settings for _, own in others)]
    learned = {k: list(dict.fromkeys(path for own in named for path in own.get(k, ()))) for k in LEARNED}
    limits = {own.get("limit") for own in named}
    for path, (state, own) in zip(models[1:], others, strict=True):
        for name in ("size", "head", "charset", "frame"):
            if getattr(own, name) != (expected := getattr(description, name)):
                raise UserError(f"{path} has another {name} than {models[0]} ({getattr(own, name)}, not {expected})")
        if {k: t.shape for k, t in state.items()} != {k: t.shape for k, t in first.items()}:
            raise UserError(f"{path} has other channels than {models[0]}: only readers of one form have a mean")
        if (cosine := alike(first, state)) < LEAST_ALIKE:
            raise NoMean(
                f"{path} and {models[0]} were not trained from one start (the cosine of their weights is "
                f"{cosine:.2f}): what lies between them reads nothing"
            )
    states = [first, *(state for state, _ in others)]
    mean = {name: torch.stack([state[name] for state in states]).mean(0) for name in first}
    out.mkdir(parents=True, exist_ok=True)
    about = replace(
        description,
        scores={"averaged": [str(path) for path in models]},
        settings={
            **description.settings,
            **{k: paths for k, paths in learned.items() if paths},
            **({"limit": None} if len(limits) > 1 else {}),  # of one reader's folder as of another's
        },
    )
    save_weights(out / "weights.safetensors", mean, about)


def alike(a: Mapping[str, Tensor], b: Mapping[str, Tensor]) -> float:
    """The cosine of two readers' weights, -1 to 1, their norms and biases aside."""
    one, other = (torch.cat([t.flatten() for _, t in sorted(s.items()) if t.ndim > 1]) for s in (a, b))
    return float(F.cosine_similarity(one, other, dim=0))
