"""How a reader fails: what it takes for what, where, how surely, and whether it has stopped looking at the pictures."""

from __future__ import annotations

import json
import math
from collections import Counter, defaultdict
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import NamedTuple

import numpy as np

from recognizer.charset import BLANK
from recognizer.images import Grey
from recognizer.reader import Reader, readings_of
from recognizer.readings import (
    CharacterScore,
    Confusion,
    Pair,
    Reading,
    Scores,
    all_characters,
    auroc,
    binary_accuracy,
    calibration_error,
    confusions,
    error_kinds,
    per_character,
    per_position,
)
from recognizer.samples import Sample
from recognizer.training.collapse import Collapse, find_collapse

TOGETHER, BINS = 256, 10
MOST_SHOWN = 24  # characters of a confusion matrix


class Bin(NamedTuple):
    """Readings of about one confidence: the mean confidence, the share that is right, and how many."""

    confidence: float
    right: float
    n: int


@dataclass(frozen=True)
class Failures:
    """What a reader read in some labelled pictures; texts in the case of the labels, where these have only one."""

    samples: Sequence[Sample]
    readings: Sequence[Reading]
    texts: Sequence[str]  # read
    blank_rate: float  # share of the frames that say blank
    spread: float | None  # as in `collapse.find_collapse`
    classes: int
    before: Sequence[tuple[float, float]] = ()  # precision and recall at the validations of its training

    @cached_property
    def pairs(self) -> list[Pair]:
        return [(s.text, read) for s, read in zip(self.samples, self.texts, strict=True)]

    @cached_property
    def right(self) -> list[bool]:
        return [truth == read for truth, read in self.pairs]

    @cached_property
    def wrong(self) -> list[bool]:
        """Which are misread whatever their case."""
        return [truth.casefold() != read.casefold() for truth, read in self.pairs]

    @cached_property
    def scores(self) -> Scores:
        return Scores.of(self.pairs)

    @cached_property
    def characters(self) -> dict[str, CharacterScore]:
        return per_character(self.pairs)

    @cached_property
    def positions(self) -> list[CharacterScore]:
        return per_position(self.pairs)

    @cached_property
    def together(self) -> CharacterScore:
        return all_characters(self.pairs)

    @cached_property
    def kinds(self) -> Counter[str]:
        return error_kinds(self.pairs)

    @property
    def binary_accuracy(self) -> float:
        return binary_accuracy(self.pairs, self.classes)

    @property
    def calibration_error(self) -> float:
        return calibration_error([r.confidence for r in self.readings], self.right)

    @property
    def auroc(self) -> float:
        return auroc([r.confidence for r in self.readings], self.right)

    @cached_property
    def collapse(self) -> Collapse | None:
        return find_collapse([s.text for s in self.samples], self.texts, self.spread, self.before)

    def reliability(self) -> list[Bin]:
        """Bins of equal mass, the least sure first."""
        order = np.argsort([r.confidence for r in self.readings], kind="stable")
        sure, hits = np.array([r.confidence for r in self.readings])[order], np.array(self.right)[order]
        parts = zip(np.array_split(sure, BINS), np.array_split(hits, BINS), strict=True)
        return [Bin(float(c.mean()), float(h.mean()), len(c)) for c, h in parts if len(c)]

    def matrix(self) -> tuple[list[str], Counter[Confusion]]:
        """The characters that were taken for others most often, and '' for none; and how often each, written, was read
        as each."""
        found = confusions(self.pairs)
        by: Counter[str] = Counter()
        for (truth, read), n in found.items():
            by.update({c: n for c in {truth, read} if c})
        chosen = sorted(c for c, _ in by.most_common(MOST_SHOWN))
        for c in chosen:
            score = self.characters[c]
            if times := round(score.recall * score.support):
                found[c, c] = times
        return [*chosen, ""], found

    def surest_wrong(self, n: int) -> list[int]:
        """The misread pictures, the surest reading first: look at their labels as well."""
        bad = [i for i, right in enumerate(self.right) if not right]
        return sorted(bad, key=lambda i: -self.readings[i].confidence)[:n]

    def least_sure(self, n: int) -> list[int]:
        """The pictures that were read rightly, and least surely."""
        good = [i for i, right in enumerate(self.right) if right]
        return sorted(good, key=lambda i: self.readings[i].confidence)[:n]


def trained_by(model: Path | None) -> list[tuple[float, float]]:
    """Precision and recall of characters at the validations of a reader's training, where `model` is a run's folder."""
    found: list[tuple[float, float]] = []
    with suppress(OSError, ValueError):
        for line in ((model or Path()) / "metrics.jsonl").read_text(encoding="utf-8").splitlines() if model else ():
            row = json.loads(line)
            if isinstance(row.get("precision"), float) and isinstance(row.get("recall"), float):
                found.append((row["precision"], row["recall"]))
    return found


def failures_of(reader: Reader, samples: Sequence[Sample], before: Sequence[tuple[float, float]] = ()) -> Failures:
    """Read labelled pictures that can be opened; `before` as `trained_by` has it.

    Raises:
        PictureError: one that cannot be.
    """
    readings: dict[int, Reading] = {}
    blanks = frames = 0
    spreads: list[float] = []
    for k in range(0, len(samples), TOGETHER):
        by_width: dict[int, list[tuple[int, Grey]]] = defaultdict(list)
        for i in range(k, min(k + TOGETHER, len(samples))):
            grey = reader.open(samples[i].read_bytes())
            by_width[grey.shape[1]].append((i, grey))
        for members in by_width.values():
            log_probs = reader.log_probabilities([grey for _, grey in members])
            readings.update(zip([i for i, _ in members], readings_of(log_probs, reader.charset), strict=True))
            blanks += int((log_probs.argmax(-1) == BLANK).sum())
            frames += log_probs.shape[0] * log_probs.shape[1]
            if len(members) > 1:
                spreads.append(float(np.exp(log_probs).std(0).sum(-1).mean()))
    ordered = [readings[i] for i in range(len(samples))]
    written = {c for s in samples for c in s.text}
    one_case = not any(c.islower() for c in written) or not any(c.isupper() for c in written)
    unwritten = [c for c in reader.charset.characters if c not in written and c.swapcase() in written]
    other = {c: c.swapcase() for c in unwritten if one_case}
    return Failures(
        samples, ordered, ["".join(other.get(c, c) for c in r.text) for r in ordered], blanks / max(frames, 1),
        float(np.mean(spreads)) if spreads else None, len(written) + 1, before,
    )  # fmt: skip


def print_failures(f: Failures, reader: str) -> None:
    """What `recognizer diagnose` prints of a reader."""
    low, high = f.scores.exact_interval
    print(f"\n{reader} on {len(f.samples):,} pictures")
    print(
        f"exact match {f.scores.exact:.1%} ({low:.1%} to {high:.1%}), ignoring case {f.scores.exact_ignoring_case:.1%}"
    )
    if f.collapse:
        print(f"collapse?   {f.collapse.kind}: {f.collapse.figure}\n            try: {f.collapse.advice}")
    t = f.together
    print(f"characters  precision {t.precision:.1%}, recall {t.recall:.1%}, F1 {t.f1:.1%}")
    print(f"            binary accuracy {f.binary_accuracy:.2%}; of saying nothing {1 - 2 / f.classes:.2%}")
    for name in ("recall", "precision", "f1"):
        shares = ", ".join(f"{getattr(s, name):.0%}" for s in f.positions)
        print(f"{'by position' if name == 'recall' else '':<11} {name.replace('f1', 'F1'):<9} {shares}")
    worst = sorted(f.characters.items(), key=lambda item: (item[1].f1, item[0]))[:8]
    for k, (c, s) in enumerate(worst):
        share = f"precision {s.precision:.0%}, recall {s.recall:.0%}, F1 {s.f1:.0%} of {s.support}"
        print(f"{'weakest' if k == 0 else '':<11} {c!r} {share}")
    told = ", ".join(f"{a or 'nothing'!s} as {b or 'nothing'} {n}" for (a, b), n in f.scores.worst_confusions[:8])
    print(f"confused    {told or 'nothing'}")
    if f.kinds:
        print(f"errors      {', '.join(f'{kind} {n}' for kind, n in f.kinds.items())}")
    sure = "" if math.isnan(f.auroc) else f", AUROC {f.auroc:.3f}"
    print(f"confidence  calibration error {f.calibration_error:.3f}{sure}; {f.blank_rate:.0%} of the frames say blank")
