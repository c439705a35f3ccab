"""Which weight of what is there suits a fixed-length head: trainings of one reader that differ in their loss alone, on
some labels and on a long-tailed part of them, beside what the field's older notes say of it."""

from __future__ import annotations

import math
import shutil
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from pydantic import Field

from pipelines.compare import test_samples
from pipelines.ledger import Ledger, locked
from pipelines.run import (
    NEVER,
    DataSettings,
    charset_for,
    check_kept,
    each_label_once,
    frame_for,
    jobs_of,
    open_run,
    see_start,
    start_hash,
    tell_copies,
)
from recognizer.errors import UserError
from recognizer.images import MAX_PIXELS
from recognizer.progress import Alone, say
from recognizer.readings import wilson
from recognizer.samples import Sample, merge, problem_table, read_manifest, write_folder
from recognizer.settings import make
from recognizer.training.batches import Pictures
from recognizer.training.evaluate import decisions
from recognizer.training.side_by_side import Training, train_side_by_side
from recognizer.training.train import TrainSettings, tell_leaks

WHOLE, TAILED = "as they are", "long-tailed"
FEWEST = 20  # pictures to train on


class Noted(NamedTuple):
    """What older notes expect of a weight: recall and precision of the yes-or-no decisions, from and to."""

    recall: tuple[float, float]
    precision: tuple[float, float]


NOTES: dict[float | None, Noted] = {
    1.0: Noted((0.40, 0.50), (0.95, 1.0)),
    3.0: Noted((0.85, 0.90), (0.90, 0.95)),
    5.0: Noted((0.95, 1.0), (0.80, 0.85)),
}


class LossSettings(DataSettings):
    """Everything that `practice compare --losses` can be told."""

    pos_weights: tuple[float, ...] = Field((1.0, 2.0, 3.0, 4.0, 5.0), min_length=1)  # 1 is plain bce
    focal: bool = True  # focal-bce as well, with a gamma of 2 and with one that adapts
    tail: float = Field(4.0, ge=1)  # how much rarer the rarest character of the long-tailed part is
    seeds: int = Field(3, ge=1, le=50)

    def arms(self) -> dict[str, dict[str, Any]]:
        """What each arm is called, and its settings."""
        arms: dict[str, dict[str, Any]] = {
            f"weighted-bce, {w:g}": {"loss": "weighted-bce", "pos_weight": w} for w in self.pos_weights
        }
        if self.focal:
            arms |= {
                "focal-bce": {"loss": "focal-bce"}, "focal-bce, adaptive": {"loss": "focal-bce", "adaptive_gamma": True}
            }  # fmt: skip
        return arms


def compare_losses(settings: LossSettings, out: Path) -> Ledger:
    """Compare into the run folder `out`, or go on where it was; gives the ledger of the finished run.

    Raises:
        UserError: settings or data that do not fit; everything so far is kept.
        Stopped: Ctrl-C; give the same command again to go on.
    """
    if settings.test is None:
        raise UserError("say what to compare on: --test DIR")
    open_run(settings, out)
    with locked(out):
        ledger = Ledger(out / "ledger.jsonl")
        _prepare(settings, out, ledger)
        torch.set_num_threads(jobs_of(settings))
        test = test_samples(settings, ledger)  # what cannot be read is told before hours are spent
        trainings = {
            (part, arm, seed): _training(settings, out, ledger, part, arm, seed)
            for part in (WHOLE, TAILED) for arm in settings.arms() for seed in range(settings.seeds)
        }  # fmt: skip
        if any(f"read {part} {arm} {seed}" not in ledger for part, arm, seed in trainings):
            see_start(settings, ledger)
        train_side_by_side(list(trainings.values()), jobs_of(settings), "losses")
        for (part, arm, seed), training in trainings.items():
            if (step := f"read {part} {arm} {seed}") not in ledger:
                found = decisions(training.out, test)
                ledger.record(step, **found._asdict())
        (out / "table.md").write_text(table(settings, ledger), encoding="utf-8")
    return ledger


def _prepare(settings: LossSettings, out: Path, ledger: Ledger) -> None:
    if "prepare" in ledger:
        return
    whole = merge([read_manifest(path, settings.label_pattern) for path in settings.data])
    if settings.limit:
        whole = whole.first(settings.limit)
    charset = charset_for(settings, whole.samples)
    usable = Pictures(whole.samples, charset, frame_for(settings, whole), MAX_PIXELS)
    say(Alone(), problem_table([*whole.problems, *usable.problems], len(whole) + len(whole.problems)))
    labelled = each_label_once(usable.samples)
    assert settings.test is not None
    test = read_manifest(settings.test, settings.label_pattern).samples
    check_kept(settings, [*labelled, *test])
    tell_leaks(test, labelled, "test on", Alone())
    tell_copies(test)
    tailed = long_tailed(labelled, settings.tail, settings.seed)
    if len(tailed) < FEWEST:
        raise UserError(
            f"{len(labelled)} pictures leave {len(tailed)} for a long-tailed part, {FEWEST} are needed: give more, "
            f"or --set tail={max(1.0, settings.tail / 2):g}"
        )
    shutil.rmtree(out / "data", ignore_errors=True)
    write_folder(labelled, out / "data" / WHOLE)
    write_folder(tailed, out / "data" / TAILED)
    ledger.record(
        "prepare", charset=charset.characters, counts={WHOLE: len(labelled), TAILED: len(tailed)},
        start_sha256=start_hash(settings),
    )  # fmt: skip


def long_tailed(samples: Sequence[Sample], tail: float, seed: int) -> list[Sample]:
    """A part of some pictures in which characters are ever rarer, the last one `tail` times as rare as the first: a
    character of rank r of n counts tail^(-r / (n - 1)), and a picture is kept as often as their product says."""
    rng = np.random.default_rng(seed)
    counts = Counter(c for s in samples for c in s.text)
    ranked = sorted(counts, key=lambda c: (-counts[c], c))
    share = {c: tail ** (-r / max(len(ranked) - 1, 1)) for r, c in enumerate(ranked)}
    return [s for s, u in zip(samples, rng.random(len(samples)).tolist(), strict=True)
            if s.text and u < math.prod(share[c] for c in s.text)]  # fmt: skip


def _training(settings: LossSettings, out: Path, ledger: Ledger, part: str, arm: str, seed: int) -> Training:
    values = {
        "threads": 1, "tracker": "none", "charset": ledger["prepare"]["charset"], "start": settings.start,
        "pictures": settings.pictures, "patience": NEVER, **settings.reader, "head": "fixed",
        "data": [str(out / "data" / part)], "seed": settings.seed + seed, **settings.arms()[arm],
    }  # fmt: skip
    folder = out / part.replace(" ", "-") / arm.replace(", ", "-") / f"seed-{seed}"
    return Training(make(TrainSettings, values, "reader settings"), folder)


def table(settings: LossSettings, ledger: Ledger) -> str:
    """The comparison, as a table of Markdown."""
    counts = ledger["prepare"]["counts"]
    lines = [
        f"{counts[WHOLE]} labels, and {counts[TAILED]} of them in which the rarest character is {settings.tail:g} "
        f"times as rare; {settings.seeds} seed{'s' * (settings.seeds > 1)}. Recall and precision are of the decisions "
        "whether a character stands in a position, each at one half; older notes expected them as in brackets.",
        "",
        "| labels | loss | recall | precision | exact match, by seed | mean, 95 % interval |",
        "|---" * 6 + "|",
    ]  # fmt: skip
    for part in (WHOLE, TAILED):
        for arm, told in settings.arms().items():
            rows = [ledger[f"read {part} {arm} {seed}"] for seed in range(settings.seeds)]
            right, said, there = (sum(row[k] for row in rows) for k in ("right", "said", "there"))
            recall, precision = right / max(there, 1), right / max(said, 1)
            noted = NOTES.get(told.get("pos_weight"))
            exact, n = [row["exact"] / row["n"] for row in rows], rows[0]["n"]
            low, high = wilson(round(sum(exact) / len(exact) * n), n)
            lines.append(
                f"| {part} | {arm} | {_beside(recall, noted and noted.recall)} "
                f"| {_beside(precision, noted and noted.precision)} | {', '.join(f'{x:.3f}' for x in exact)} "
                f"| {sum(exact) / len(exact):.3f} ({low:.3f} to {high:.3f}) |"
            )
    return "\n".join(lines) + "\n"


def _beside(share: float, noted: tuple[float, float] | None) -> str:
    """A share, and what was expected of it."""
    if noted is None:
        return f"{share:.3f}"
    low, high = noted
    holds = "holds" if low <= share <= high else "does not hold"
    expected = f"over {low:.2f}" if high == 1 else f"{low:.2f} to {high:.2f}"
    return f"{share:.3f} ({expected}: {holds})"
