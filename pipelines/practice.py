"""Deliberate practice: read out of fold, mine what is misread, make lookalikes of it, retrain, and see what it earned.

    baseline and fold readers -> [ mine -> make -> keep the faithful -> train beside a control ] each round -> test once

A control follows the pupil round by round: the same start, the same pictures seen, and never a made one. A round that
does not beat it, and the round before, ends practice.
"""

from __future__ import annotations

import json
import shutil
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from pydantic import Field

from augment.fidelity import doubts, learned
from augment.likeness import features_of
from augment.looks import looks_of
from augment.methods import load_class
from augment.mining import by_look, mine, plan, write_mined
from pipelines.ledger import Ledger, locked
from pipelines.run import (
    Judges,
    Run,
    RunSettings,
    check_methods,
    fitted,
    in_words,
    make_and_judge,
    open_run,
    prepare,
    read,
    read_some,
    scores_of,
)
from recognizer.deploy.export import export
from recognizer.errors import UserError
from recognizer.progress import Alone, say
from recognizer.readings import Scores, mcnemar
from recognizer.samples import Sample, read_manifest, write_folder
from recognizer.training.checkpoint import find_start
from recognizer.training.side_by_side import Training, train_side_by_side


class PracticeSettings(RunSettings):
    """Everything that `practice run` can be told."""

    rounds: int = Field(3, ge=1, le=100)
    made: float = Field(2.0, gt=0)  # pictures to make in a round, for each training picture, all methods together
    round_share: float = Field(0.5, gt=0)  # of the pictures that the first readers see, seen in a round's training
    round_rate: float = Field(0.5, gt=0)  # of the learning rate, in a round's training


def practice(settings: PracticeSettings, out: Path) -> Ledger:
    """Practise into the run folder `out`, or go on where it was; gives the ledger of the finished run.

    Raises:
        UserError: settings or data that do not fit; everything so far is kept.
        Stopped: Ctrl-C; give the same command again to go on.
    """
    check_methods(settings, settings.methods)
    open_run(settings, out)
    with locked(out):
        ledger = Ledger(out / "ledger.jsonl")
        run = prepare(settings, out, ledger)
        torch.set_num_threads(run.jobs)
        first_readers(run)
        best, control, kept = out / "baseline", out / "baseline", []
        for number in range(1, settings.rounds + 1):
            kept.append(out / f"round-{number}" / "kept")
            practise_round(run, settings, number, best, control, kept)
            facts = ledger[f"round {number}"]
            control = out / f"round-{number}" / "control"
            if not facts["goes_on"]:
                break
            best = out / f"round-{number}" / "pupil"
        choose(run, best, control)
        read_test(run)
    return ledger


# ------------------------------------------------------------------------------------------------------------- steps


def first_readers(run: Run) -> None:
    """Train the baseline on all real pictures, and beside it each fold's reader on the others'."""
    if "baseline" in run.ledger:
        return
    began = time.monotonic()
    baseline = run.training(run.out / "baseline", run.out / "data" / "train", run.settings.seed)
    trainings = [baseline, *run.fold_trainings()]
    say(Alone(), f"training the baseline on {len(run.train)} samples, and {len(run.folds)} readers out of fold")
    train_side_by_side(trainings, run.jobs, "first readers")
    readings = read(run.out / "baseline", run.validation)
    scores = scores_of(run.validation, readings)
    run.ledger.record("baseline", validation=scores.to_dict(), seconds=time.monotonic() - began)
    say(Alone(), f"baseline: {in_words(scores)} on validation")


def practise_round(
    run: Run, settings: PracticeSettings, number: int, best: Path, control: Path, kept: Sequence[Path]
) -> None:
    """One round; afterwards the ledger holds it, and whether practice goes on."""
    step, folder = f"round {number}", run.out / f"round-{number}"
    if step in run.ledger:
        return
    if f"{step} mine" not in run.ledger:
        mine_and_make(run, settings, number, folder, kept[:-1])
    began = time.monotonic()
    data = run.out / "data" / "train"
    trainings = [
        round_training(run, settings, number, folder / "pupil", data, best, [str(path) for path in kept]),
        round_training(run, settings, number, folder / "control", data, control),
    ]
    train_side_by_side(trainings, run.jobs, f"round {number}")
    before = read(best, run.validation)
    pupil = scores_of(run.validation, readings := read(folder / "pupil", run.validation))
    alone = scores_of(run.validation, read(folder / "control", run.validation))
    last = scores_of(run.validation, before)
    gained = rank(pupil) > rank(alone) and rank(pupil) > rank(last)
    run.ledger.record(
        step, pupil=pupil.to_dict(), control=alone.to_dict(), before=last.to_dict(), goes_on=gained,
        changed=sum(a.text != b.text for a, b in zip(before, readings, strict=True)), seconds=time.monotonic() - began,
    )  # fmt: skip
    say(Alone(), f"round {number}: {in_words(pupil)} with made pictures, {in_words(alone)} without, on validation")
    if not gained:
        say(Alone(), f"round {number} earned nothing over its control: practice ends")


def round_training(
    run: Run, settings: PracticeSettings, number: int, out: Path, data: Path, start: Path, made: Sequence[str] = ()
) -> Training:
    """A training of a round: a share of the pictures, at a share of the learning rate, that the first readers had."""
    base = run.training(out, data, settings.seed + number).settings
    return run.training(
        out, data, settings.seed + number, start=str(start), with_synthetic=list(made),
        pictures=max(1, round(base.pictures_for(len(run.train)) * settings.round_share)),
        learning_rate=base.rate(find_start(settings.start, base.size)[0] is None) * settings.round_rate,
        synthetic_share=settings.made_share,
    )  # fmt: skip


def mine_and_make(run: Run, settings: PracticeSettings, number: int, folder: Path, before: Sequence[Path]) -> None:
    """Read out of fold, mine, make by every method, and keep the faithful in `folder/kept`."""
    began = time.monotonic()
    readers = fold_readers(run, settings, number, before)
    shutil.rmtree(folder, ignore_errors=True)
    judges = Judges.of(run, readers)
    samples, readings = judges.samples, judges.readings
    looks = looks_of(features_of(run.out / "baseline", samples))
    mined = mine(samples, readings, looks=looks.tolist())
    count = max(len(run.settings.methods), round(settings.made * len(run.train)))
    vary, draw = plan(mined, samples, count, run.settings.seed + number)
    write_mined(mined, [], folder / "mined")
    misread = sum(h.misread for h in mined.hard)
    suspects = f", {len(mined.suspects)} labels likely wrong and set aside" if mined.suspects else ""
    nearly = len(mined.hard) - misread
    say(Alone(), f"round {number}: {misread} of {len(samples)} misread out of fold, {nearly} nearly{suspects}")

    methods: dict[str, dict[str, Any]] = {}
    kept: list[Sample] = []
    refused: list[str] = []
    share = max(1, count // len(run.settings.methods))
    for i, name in enumerate(run.settings.methods):
        asked = (vary if load_class(name).needs_source else draw)[i * share : (i + 1) * share]
        own, known = fitted(run, name, run.out / "baseline")
        if not (asked := [r for r in asked if known is None or set(r.text) <= set(known)]):
            say(Alone(), f"  {name}: knows the characters of no text that is asked for")
            continue
        judged, facts = make_and_judge(run, name, own, asked, folder / "made", judges)
        kept += judged.kept
        refused += [json.dumps({"file_name": p.name, "reason": p.kind, "detail": p.detail}) for p in judged.refused]
        methods[name] = facts
        say(Alone(), f"  {name}: {len(judged.kept)} of {len(asked)} kept")
        for line in doubts({name: len(judged.kept)}, {name: len(asked)}):
            say(Alone(), f"  {line}")
    if not kept:
        raise UserError(f"round {number}: no made picture was kept; look at {folder / 'made'}")
    (folder / "refused.jsonl").write_text("".join(line + "\n" for line in refused), encoding="utf-8")
    write_folder(kept, folder / "kept")
    run.ledger.record(
        f"round {number} mine", read=len(samples), misread=misread, near=nearly,
        suspects=len(mined.suspects), looks=by_look(mined),
        out_of_fold=scores_of(samples, readings).to_dict(), kinds=mined.kinds, methods=methods, kept=len(kept),
        seconds=time.monotonic() - began,
    )  # fmt: skip


def fold_readers(run: Run, settings: PracticeSettings, number: int, kept: Sequence[Path]) -> list[Path]:
    """Each fold's reader for this round: after the first, practised on what was kept, less what came of its fold."""
    if number == 1:
        return [run.out / "folds" / f"fold-{k}" for k in range(len(run.folds))]
    before = [
        run.out / "folds" / (f"fold-{k}" if number == 2 else f"fold-{k}-round-{number - 1}")
        for k in range(len(run.folds))
    ]
    trainings = []
    for k, fold in enumerate(run.folds):
        names = {s.name for s in fold}
        made = run.out / "folds" / f"made-{k}-round-{number}"
        if not made.exists():
            # what a learned method makes has strokes of all training pictures in it, those of this fold as well
            others = [
                s for path in kept for s in read_manifest(path) if s.meta.get("source") not in names and not learned(s)
            ]
            write_folder(others, made)
        out = run.out / "folds" / f"fold-{k}-round-{number}"
        data = run.out / "data" / f"fold-{k}"
        trainings.append(round_training(run, settings, number, out, data, before[k], [str(made)]))
    train_side_by_side(trainings, run.jobs, f"readers out of fold, round {number}")
    return [t.out for t in trainings]


def choose(run: Run, best: Path, control: Path) -> None:
    """Keep the best of all readers on validation as the run's weights: also a control, where practice did not pay."""
    if "chosen" in run.ledger:
        return
    began = time.monotonic()
    candidates = [run.out / "baseline", best, control, *sorted(run.out.glob("round-*/pupil"))]
    scores = {path: scores_of(run.validation, read(path, run.validation)) for path in dict.fromkeys(candidates)}
    winner = max(scores, key=lambda path: rank(scores[path]))
    shutil.copy(winner / "weights.safetensors", run.out / "weights.safetensors.tmp")
    (run.out / "weights.safetensors.tmp").replace(run.out / "weights.safetensors")

    export(run.out)
    run.ledger.record(
        "chosen", reader=str(winner.relative_to(run.out)), practised=winner.name == "pupil",
        control=str(control.relative_to(run.out)), validation=scores[winner].to_dict(),
        seconds=time.monotonic() - began,
    )  # fmt: skip


def read_test(run: Run) -> None:
    """Read the test set, once: with the baseline, with the last control, and with the reader that was chosen."""
    if "test" in run.ledger or run.settings.test is None:
        return
    chosen, began = run.ledger["chosen"], time.monotonic()
    samples = read_manifest(run.settings.test, run.settings.label_pattern).samples
    readers = {"before": "baseline", "control": chosen["control"], "after": chosen["reader"]}
    found = {role: read_some(run.out / path, samples) for role, path in readers.items()}
    usable = [s for s in samples if all(s.name in own for own in found.values())]
    if not usable:
        raise UserError(f"{run.settings.test}: no sample is left to test on")
    rows = [{"file_name": s.name, "text": s.text, **{k: own[s.name].text for k, own in found.items()}} for s in usable]
    scores = {role: scores_of(usable, [own[s.name] for s in usable]) for role, own in found.items()}
    right = {role: [own[s.name].text == s.text for s in usable] for role, own in found.items()}
    run.ledger.record(
        "test", set_aside=len(samples) - len(usable), readings=rows,
        **{role: own.to_dict() for role, own in scores.items()},
        p_before=mcnemar(right["before"], right["after"]), p_control=mcnemar(right["control"], right["after"]),
        seconds=time.monotonic() - began,
    )  # fmt: skip


def rank(scores: Scores) -> tuple[float, float]:
    """By exact match; character error rate breaks ties."""
    return scores.exact, -scores.character_error_rate
