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
from pipelines.run import (
    DataSettings,
    Judges,
    RunSettings,
    check_methods,
    frame_for,
    open_run,
    prepare,
    see_start,
)
from recognizer.charset import Charset
from recognizer.errors import MachineError, UserError
from recognizer.images import MAX_PIXELS
from recognizer.progress import Alone, say
from recognizer.samples import Sample, content_hash, problem_table, read_manifest
from recognizer.training.batches import Pictures
from recognizer.training.side_by_side import train_side_by_side


class CompareSettings(RunSettings):
    """Everything that `practice compare` can be told."""

    methods: tuple[str, ...] = (NONE, "classical", "splice")
    folds: int = Field(2, ge=2, le=20)
    made: float = Field(1.0, gt=0)  # pictures of each method that are kept, for each training picture
    seeds: int = Field(3, ge=1, le=50)
    fold_case: bool = False  # count a reading as right whatever its case


def compare(settings: CompareSettings, out: Path) -> Ledger:
    """Compare into the run folder `out`, or go on where it was, with the methods that `settings` name now; gives the
    ledger of the finished run.

    Raises:
        UserError: settings or data that do not fit, or, when all others are compared, a method that made no pictures;
            everything so far is kept.
        Stopped: Ctrl-C; give the same command again to go on.
    """
    if settings.test is None:
        raise UserError("say what to compare on: --test DIR")
    if NONE not in settings.methods or len(set(settings.methods)) < max(2, len(settings.methods)):
        raise UserError(f"methods: name {NONE} and at least one other, each once")
    check_methods(settings, [name for name in settings.methods if name != NONE])
    open_run(settings, out, "methods")
    with locked(out):
        ledger = Ledger(out / "ledger.jsonl")
        run, shown = prepare(settings, out, ledger), out / "table.md"
        if not (shown.is_file() and all(f"made {name}" in ledger for name in settings.methods if name != NONE)):
            see_start(settings, ledger)  # something is left to train
        shown.unlink(missing_ok=True)  # of a comparison of fewer methods
        test = test_samples(settings, ledger)
        torch.set_num_threads(run.jobs)
        arms, texts = Arms(run, out, settings.seeds), ledger["test"]["texts"]
        say(Alone(), f"training without made pictures on {len(run.train)}, and {settings.folds} readers out of fold")
        train_side_by_side([*arms.trainings([NONE]), *run.fold_trainings()], run.jobs, NONE)
        judges, failed = None, dict[str, str]()
        for name in settings.methods:
            if name != NONE and f"made {name}" not in ledger:
                judges = judges or Judges.of(run, [t.out for t in run.fold_trainings()])
                wanted = max(1, round(settings.made * len(run.train)))
                try:
                    arms.make(name, {name: wanted}, judges, arms.training(NONE, 0).out)
                except MachineError:
                    raise
                except UserError as error:  # one method must not cost the others their hours
                    failed[name] = str(error)
                    say(Alone(), f"{name} is left out: {error}")
        names = arms.compared([name for name in settings.methods if name not in failed])
        train_side_by_side(arms.trainings(names), run.jobs, "with made pictures")
        arms.read(names, test)
        shown.write_text(
            table(settings, ledger, arms.rights(names, texts, settings.fold_case), failed), encoding="utf-8"
        )
    if failed:
        first = next(iter(failed))
        raise UserError(f"{first} could not be compared: {failed[first]}; all others are in {shown}")
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
        usable = Pictures(samples, charset, frame_for(settings, samples), MAX_PIXELS)
        if not len(usable):
            raise UserError(f"{settings.test}: no sample is left to compare on")
        say(Alone(), problem_table(usable.problems, len(samples)))
        ledger.record(
            "test", texts={s.name: s.text for s in usable.samples}, set_aside=len(usable.problems),
            sha256=content_hash(usable.samples),
        )  # fmt: skip
    texts, known = ledger["test"]["texts"], ledger["test"].get("sha256")  # which a run of before does not say
    kept = tuple(s for s in samples if s.name in texts)
    if {s.name: s.text for s in kept} != texts or known not in (None, content_hash(kept)):
        raise UserError(f"{settings.test} has changed since the comparison began: start a new one")
    return kept


def table(
    settings: CompareSettings, ledger: Ledger, right: Mapping[str, NDArray[np.bool_]], failed: Mapping[str, str]
) -> str:
    """The comparison, as a table of Markdown. `failed` says why methods made no pictures."""
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
            few = f"not compared: {failed.get(name, 'too few of its pictures were kept')}"
            lines.append(f"| {name} | {few} |" + " |" * (1 + 2 * len(against)))
    lines += [
        "",
        "| method | made | kept | used | a reader out of fold reads its label | too hard | near copies | Frechet "
        "| covered | a second | characters never seen |",
        "|---" * 11 + "|",
    ]
    for name in settings.methods:
        if name != NONE and name not in failed:
            m = ledger[f"made {name}"]
            lines.append(
                f"| {name} | {m['asked']} | {m['passed']} | {m['kept']} | {m['read_right']:.3f} "
                f"| {m['refused'].get('too hard', 0)} | {m['refused'].get('near copy', 0)} "
                f"| {m['frechet']:.3g} (real {m['frechet_real']:.3g}) | {m['coverage']:.2f} "
                f"| {m['a_second']:.0f} | {m['never_seen'] or 'none'} |"
            )
    return "\n".join(lines) + "\n"
