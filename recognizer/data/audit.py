"""Which labels look wrong: by readers that did not learn them, by pictures that are nearly the same, and by the rest of
the labels. Nothing is changed: a person looks, in the labelling page."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from recognizer.data.copies import near_pairs
from recognizer.errors import UserError
from recognizer.readings import Reading, label_margin
from recognizer.samples import Manifest, Problem, Sample
from recognizer.settings import make
from recognizer.training.checkpoint import charset_of, find_start
from recognizer.training.folds import folds_of, read_folds, train_folds
from recognizer.training.train import TrainSettings

FOLDS = 5
APART = 2  # readers that read each picture without having learned it
PASSES = 10  # over all labels: so many pictures a reader sees, at least 10,000
MOST = 20.0  # nats that one reader's doubt counts for, at most
ODD = 5.0  # nats that a label is worth less for each thing that sets it apart
SELDOM = 0.002  # of the labels: a length or a character that fewer have is seldom


@dataclass(frozen=True)
class Doubt:
    """A label that may be wrong. `score` is in nats, larger where it is more surely wrong; `suggested` what readers see
    in its place, empty where they see the label; `reasons` say it in words."""

    sample: Sample
    score: float
    suggested: str
    confidence: float
    reasons: tuple[str, ...]

    def row(self) -> dict[str, Any]:
        """As a line of `audit.jsonl`."""
        return {
            "file_name": self.sample.name, "path": str(self.sample.path.resolve()),
            "text": self.sample.text, "suggested": self.suggested, "confidence": round(self.confidence, 4),
            "score": round(self.score, 3), "reasons": list(self.reasons),
        }  # fmt: skip


def audit(
    data: Manifest, out: Path, jobs: int, start: str = "default", folds: int = FOLDS, pictures: int | None = None,
    seed: int = 0,
) -> tuple[list[Doubt], list[Problem]]:  # fmt: skip
    """Doubts of labels, the largest first, and what was set aside. Readers go to `out/folds`, and those that are there
    already are used again.

    Each of `folds` readers learns all parts but `APART`, from `start`; so each label is told by two readers of its own.

    Raises:
        UserError: too few samples for the folds, or no reader at `start`.
    """
    if not len(data):
        raise UserError(f"{data.source}: no sample is left")
    path, size = find_start(start, None)  # as a training writes it down: so its readers are known again
    charset = charset_of(data.texts, [path] if path else []).characters
    asked = make(TrainSettings, {"start": start, "size": size, "charset": charset, "seed": seed}, "audit")
    seen = pictures or max(PASSES * len(data), 10_000)
    parts = folds_of(data.samples, folds, seed)
    readers = train_folds(asked.model_copy(update={"pictures": seen}), parts, out / "folds", jobs, APART)
    samples, readings, problems = read_folds(readers, parts, APART)
    return doubts(samples, readings), problems


def doubts(samples: Sequence[Sample], readings: Sequence[Sequence[Reading]]) -> list[Doubt]:
    """Doubts of labels, by the readings of readers that did not learn them, one or more a sample.

    A label's score is the mean, over its readers, of the nats by which another text is likelier than it, and `ODD` more
    for each thing that sets it apart from the others; those over 0 are doubted.
    """
    odd = oddities(samples)
    found = []
    for sample, own in zip(samples, readings, strict=True):
        margins = [-float(np.clip(label_margin(r, sample.text), -MOST, MOST)) for r in own]
        # a reader that sees the label, however unsure, is no witness against it
        margins = [min(m, 0.0) if r.text == sample.text else m for m, r in zip(margins, own, strict=True)]
        best = max(own, key=lambda r: (r.text != sample.text, r.confidence))
        reasons, suggested = list(odd.get(sample.name, ())), ""
        if best.text != sample.text:
            suggested, votes = best.text, sum(r.text == best.text for r in own)
            who = "a reader" if len(own) == 1 else f"{votes} of {len(own)} readers"
            what = f"{'sees' if votes == 1 else 'see'} {repr(suggested) if suggested else 'nothing'}"
            reasons.insert(0, f"{who} that did not learn it {what}, {best.confidence:.2f} sure")
        score = float(np.mean(margins)) + ODD * len(odd.get(sample.name, ()))
        if score > 0:
            found.append(Doubt(sample, score, suggested, best.confidence, tuple(reasons)))
    return sorted(found, key=lambda d: (-d.score, d.sample.name))


def oddities(samples: Sequence[Sample]) -> dict[str, list[str]]:
    """What sets labels apart from the others, by the samples' names: a seldom length, a seldom character, another label
    on nearly the same picture."""
    few = max(1, int(SELDOM * len(samples)))
    lengths = Counter(len(s.text) for s in samples)
    seen = Counter(c for s in samples for c in set(s.text))
    found: dict[str, list[str]] = {}
    for sample in samples:
        own, n = found.setdefault(sample.name, []), lengths[len(sample.text)]
        if n <= few < len(samples) // 10:
            own.append(f"{n} of {len(samples)} labels {'has' if n == 1 else 'have'} {len(sample.text)} characters")
        rare = sorted({c for c in sample.text if seen[c] <= few < len(samples) // 10})
        if rare:
            own.append(f"{' '.join(map(repr, rare))} stands in hardly any other label")
    for i, j, _ in near_pairs(samples):
        for one, other in ((samples[i], samples[j]), (samples[j], samples[i])):
            if one.text != other.text:
                found[one.name].append(f"nearly the same picture as {other.name}, which is labelled {other.text!r}")
    return {name: own for name, own in found.items() if own}


def write_doubts(found: Iterable[Doubt], path: Path) -> None:
    """Write doubts as JSON lines."""
    lines = "".join(json.dumps(doubt.row(), ensure_ascii=False) + "\n" for doubt in found)
    path.write_text(lines, encoding="utf-8", errors="surrogateescape")  # a file's name need not be UTF-8
