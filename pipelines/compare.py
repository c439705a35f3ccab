"""Which method's pictures help: the same reader, trained with the same compute on the same labels, plus as many made
pictures of each method, several seeds, read on the same test pictures."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from pydantic import Field

from pipelines.arms import NONE, Arms, difference_rows, difference_table
from pipelines.ledger import Ledger, locked
from pipelines.run import DataSettings, Judges, RunSettings, check_methods, open_run, prepare
from recognizer.charset import Charset
from recognizer.errors import UserError
from recognizer.images import MAX_PIXELS, Frame
from recognizer.progress import Alone, say
from recognizer.samples import Sample, problem_table, read_manifest
from recognizer.training.batches import Pictures
from recognizer.training.side_by_side import train_side_by_side

ENOUGH = 0.9  # a method with a smaller share of the pictures that are asked for is not compared


class CompareSettings(RunSettings):
    """Everything that `practice compare` can be told."""

    methods: tuple[str, ...] = (NONE, "classical", "splice")
    validation_share: float = Field(0.1, gt=0, lt=1)
    folds: int = Field(2, ge=2, le=20)
    made: float = Field(1.0, gt=0)  # pictures of each method that are kept, for each training picture
    seeds: int = Field(3, ge=1, le=50)
    fold_case: bool = False  # count a reading as right whatever its case


def compare(settings: CompareSettings, out: Path) -> Ledger:
    """Compare into the run folder `out`, or go on where it was, with more methods where `settings` name them; gives the
    ledger of the finished run.

    Raises:
        UserError: settings or data that do not fit; everything so far is kept.
        Stopped: Ctrl-C; give the same command again to go on.
    """
    if settings.test is None:
        raise UserError("say what to compare on: --test DIR")
    if NONE not in settings.methods or len(set(settings.methods)) < max(2, len(settings.methods)):
        raise UserError(f"methods: {NONE} and at least one other, each once")
    check_methods(settings, [name for name in settings.methods if name != NONE])
    open_run(settings, out, growing="methods")
    with locked(out):
        ledger = Ledger(out / "ledger.jsonl")
        run = prepare(settings, out, ledger)
        test = test_samples(settings, ledger)
        torch.set_num_threads(run.jobs)
        arms, texts = Arms(run, out, settings.seeds), ledger["test"]["texts"]
        say(Alone(), f"training without made pictures on {len(run.train)}, and {settings.folds} readers out of fold")
        train_side_by_side([*arms.trainings([NONE]), *run.fold_trainings()], run.jobs, NONE)
        judges = None
        for name in settings.methods:
            if name != NONE and f"made {name}" not in ledger:
                judges = judges or Judges.of(run, [t.out for t in run.fold_trainings()])
                wanted = max(1, round(settings.made * len(run.train)))
                arms.make(name, {name: wanted}, judges, arms.training(NONE, 0).out)
        names = compared(settings, ledger)
        train_side_by_side(arms.trainings(names), run.jobs, "with made pictures")
        arms.read(names, test)
        (out / "table.md").write_text(
            table(settings, ledger, arms.rights(names, texts, settings.fold_case)), encoding="utf-8"
        )
    return ledger


def test_samples(settings: DataSettings, ledger: Ledger) -> tuple[Sample, ...]:
    """The test pictures that every reader will read: the same ones whenever the run goes on.

    Raises:
        UserError: none can be used, or they are others than when the run began.
    """
    assert settings.test is not None
    samples = read_manifest(settings.test, settings.label_pattern).samples
    if "test" not in ledger:
        charset = Charset(ledger["prepare"]["charset"])
        usable = Pictures(samples, charset, Frame.for_texts(max((len(s.text) for s in samples), default=1)), MAX_PIXELS)
        if not len(usable):
            raise UserError(f"{settings.test}: no sample is left to compare on")
        say(Alone(), problem_table(usable.problems, len(samples)))
        ledger.record("test", texts={s.name: s.text for s in usable.samples}, set_aside=len(usable.problems))
    texts = ledger["test"]["texts"]
    kept = tuple(s for s in samples if s.name in texts)
    if {s.name: s.text for s in kept} != texts:
        raise UserError(f"{settings.test} has changed since the comparison began: start a new one")
    return kept


def compared(settings: CompareSettings, ledger: Ledger) -> list[str]:
    """The methods that readers train with: those with nearly as many pictures as were asked for."""
    return [
        name for name in settings.methods
        if name == NONE or ledger[f"made {name}"]["kept"] >= ENOUGH * ledger[f"made {name}"]["wanted"]
    ]  # fmt: skip


def table(settings: CompareSettings, ledger: Ledger, right: Mapping[str, NDArray[np.bool_]]) -> str:
    """The comparison, as a table of Markdown."""
    against = [NONE] + ["classical"] * ("classical" in right)
    n = right[NONE].shape[1]
    aside = ledger["test"]["set_aside"]
    lines = [
        f"{ledger['prepare']['train']} labels to train on, {n} test pictures"
        + (f" ({aside} set aside)" if aside else "")
        + f", {settings.seeds} seed{'s' * (settings.seeds > 1)}" + (", ignoring case" if settings.fold_case else "")
        + ". Intervals of differences count pictures and seeds, p is of these very readers"
        + ("." if settings.seeds > 1 else ": one seed does not tell a method from its seed."),
        "",
        *difference_table(difference_rows(right, against), against),
    ]  # fmt: skip
    for name in settings.methods:
        if name not in right:
            few = "not compared: too few of its pictures were kept"
            lines.append(f"| {name} | {few} |" + " |" * (1 + 2 * len(against)))
    lines += [
        "",
        "| method | made | kept | a reader out of fold reads its label | too hard | near copies | Frechet | covered "
        "| a second | characters never seen |",
        "|---" * 10 + "|",
    ]
    for name in settings.methods:
        if name != NONE:
            m = ledger[f"made {name}"]
            lines.append(
                f"| {name} | {m['asked']} | {m['passed']} | {m['read_right']:.3f} | {m['refused'].get('too hard', 0)} "
                f"| {m['refused'].get('near copy', 0)} | {m['frechet']:.3g} (real {m['frechet_real']:.3g}) "
                f"| {m['coverage']:.2f} | {m['a_second']:.0f} | {m['never_seen'] or 'none'} |"
            )
    return "\n".join(lines) + "\n"
