"""Keep the made pictures that are worth practising on: they still show their text, and copy no training picture.

The judges are readers that did not train on a picture's source. A filter judged by the pupil would throw away just what
practice needs.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass

import numpy as np

from augment.methods import METHODS, load_class
from augment.mining import hardness
from recognizer.data.copies import nearest, thumbnail
from recognizer.images import PictureError
from recognizer.readings import Reading
from recognizer.samples import Problem, Sample

EASIEST, HARDEST = 0.1, 0.02  # shares of real pictures beyond whose hardness made ones are not kept
DOUBTFUL = 0.05  # the same share for pictures whose text a method drew: what is hard may as well be wrong
LEAST, LEAST_DRAWN = 1.0, 0.3  # nats a character that are always kept: of pictures under their own text, of drawn ones
COPY = 1 / 3  # nearest neighbour under this share of the second nearest: a near copy
WORTH = 0.5  # a method of whose pictures a smaller share is kept is named

# why a made picture is refused -> what that says
REFUSALS = {
    "too hard": "its label is less likely than that of nearly every real picture: it may not show its text any more",
    "too easy": "its label is surer than that of nearly every real picture: there is little to learn from it",
    "near copy": "it is nearly one training picture",
}


@dataclass(frozen=True)
class Band:
    """Hardness that is kept, in nats a character of the label's likelihood."""

    low: float
    high: float


def band_of(
    samples: Sequence[Sample], readings: Sequence[Reading], easiest: float = EASIEST, hardest: float = HARDEST,
    least: float = LEAST,
) -> Band:  # fmt: skip
    """The band that a judge's own readings of real pictures give: without so large a share of the easiest and of the
    hardest ones.

    A weak judge finds real pictures hard as well, and so refuses no more than a strong one. At least up to `least` nats
    a character are always kept.
    """
    found = [hardness(r, s.text) for s, r in zip(samples, readings, strict=True)]
    low, high = np.quantile(found, [easiest, 1 - hardest]).tolist() if found else (0.0, 1.0)
    return Band(low if easiest else 0.0, max(least, high))


def band_of_drawn(samples: Sequence[Sample], readings: Sequence[Reading], easiest: float = EASIEST) -> Band:
    """The band for pictures whose text a method drew or changed, which may have come out as another."""
    return band_of(samples, readings, easiest, DOUBTFUL, LEAST_DRAWN)


@dataclass(frozen=True)
class Judged:
    """Made samples that are kept, and those refused with the reason (a key of `REFUSALS`)."""

    kept: tuple[Sample, ...]
    refused: tuple[Problem, ...]


def exact_text(sample: Sample) -> bool:
    """Whether a made sample was drawn by a method whose pictures show their text by construction."""
    return _says(sample, "exact_text")


def varies(sample: Sample) -> bool:
    """Whether a made sample was drawn by a method that varies a real picture under its own text."""
    return _says(sample, "needs_source")


def _says(sample: Sample, what: str) -> bool:
    """What a made sample's method says of itself: as it was written down, or, of one of before, as a method of ours."""
    name = sample.meta.get("method")
    ours = isinstance(name, str) and name in METHODS
    return sample.meta.get(what) is True or (ours and getattr(load_class(str(name)), what))


def band_for(made: Sample, real: Mapping[str, tuple[str, float]], varied: Band, drawn: Band) -> Band:
    """The hardness of a made picture that is kept. `real` are texts and hardness of real pictures, by name.

    A picture made of a real one under that one's text may be up to 1 nat a character harder than it, even where that is
    over `varied`: what practice works on is what the judge misreads as well. One that shows another text falls in the
    band of the `drawn` ones.
    """
    if exact_text(made):
        return Band(0.0, float("inf"))
    source = made.meta.get("source")
    text, hard = real.get(source, (None, 0.0)) if isinstance(source, str) else (None, 0.0)
    if text == made.text:
        return Band(varied.low, max(varied.high, hard + 1.0))
    # a method that only varies keeps the text: then the source is another one of that name, in another folder
    return varied if varies(made) else drawn


def judge(
    made: Sequence[Sample], readings: Sequence[Sequence[Reading]], bands: Sequence[Band], copies: Sequence[bool]
) -> Judged:
    """Sort made samples into kept and refused. `readings[i]` are the judges' of `made[i]`, whose mean counts, and
    `bands[i]` is theirs."""
    kept, refused = [], []
    for sample, own, band, copy in zip(made, readings, bands, copies, strict=True):
        hard = sum(hardness(reading, sample.text) for reading in own) / len(own)
        if copy:
            refused.append(Problem(sample.name, "near copy", "of a training picture"))
        elif hard > band.high:
            detail = f"read as {own[0].text!r}, {hard:.2f} nats a character, over {band.high:.2f}"
            refused.append(Problem(sample.name, "too hard", detail))
        elif hard < band.low:
            refused.append(Problem(sample.name, "too easy", f"{hard:.4f} nats a character, under {band.low:.4f}"))
        else:
            kept.append(sample)
    return Judged(tuple(kept), tuple(refused))


def near_copies(made: Sequence[Sample], real: Sequence[Sample]) -> list[bool]:
    """Whether each made picture is nearly one real picture: its nearest is under a third as far as its second nearest.

    The test of Yoon et al. 2023, "Diffusion Probabilistic Models Generalize when They Fail to Memorize". Equal real
    pictures count as one, or a copy of them would have two nearest; one that cannot be opened was not copied.
    """
    thumbnails = {}
    for sample in real:
        with suppress(PictureError):
            own = thumbnail(sample)
            thumbnails[own.tobytes()] = own
    if len(thumbnails) < 2 or not made:
        return [False] * len(made)
    _, distances = nearest(np.stack([thumbnail(sample) for sample in made]), np.stack(list(thumbnails.values())), 2)
    return (distances[:, 0] < COPY * distances[:, 1]).tolist()  # type: ignore[no-any-return]


def refusal_table(judged: Judged) -> str:
    """How many were kept and refused, and why."""
    total = len(judged.kept) + len(judged.refused)
    lines = [f"{len(judged.kept)} of {total} made pictures are kept"]
    for kind, n in Counter(p.kind for p in judged.refused).most_common():
        example = next(p for p in judged.refused if p.kind == kind)
        lines.append(f"  {n:>6}  {kind}: {REFUSALS[kind]} ({example.name}: {example.detail})")
    return "\n".join(lines)


def doubts(kept: Mapping[str, int], made: Mapping[str, int]) -> list[str]:
    """A line for each method that has more pictures refused than kept, from numbers by method."""
    return [
        f"{name}: {made[name] - kept.get(name, 0)} of {made[name]} pictures are refused, more than is kept: "
        "look at them before you trust it"
        for name in made
        if kept.get(name, 0) < WORTH * made[name]
    ]


def coverage_table(kept: Sequence[Sample], charset: str) -> str:
    """How often each character stands in what is kept; those that never do are named."""
    counts = Counter(c for s in kept for c in s.text)
    never = [c for c in charset if not counts.get(c)]
    line = "characters kept: " + " ".join(f"{c}:{counts.get(c, 0)}" for c in charset)
    return line + (f"\nnever seen: {''.join(never)}" if never else "")
