"""Deliberate practice: read out of fold, mine what is misread, make lookalikes of it, retrain, and see what it earned.

    baseline and fold readers -> [ mine -> make -> keep the faithful -> train beside a control ] each round -> test once

A control follows the pupil round by round: the same start, the same pictures seen, and never a made one. A round that
does not beat it, and the round before, ends practice.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import torch
from accelerate import Accelerator
from pydantic import Field

from augment.fidelity import Band, Judged, band_of, exact_text, judge, learned, near_copies, widened
from augment.method import Learner, Request, sources_of
from augment.methods import create, load_class
from augment.mining import folds_of, hardness, mine, plan, write_mined
from augment.synthesize import synthesize
from pipelines.ledger import Ledger, locked
from recognizer.charset import Charset
from recognizer.deploy.export import export
from recognizer.errors import UserError
from recognizer.images import MAX_PIXELS, Frame
from recognizer.progress import Alone, Bar, say
from recognizer.readings import Reading, Scores, mcnemar
from recognizer.samples import Manifest, Sample, merge, problem_table, read_manifest, split, write_folder
from recognizer.settings import Settings, load, make, to_toml
from recognizer.training.batches import Pictures
from recognizer.training.checkpoint import find_start
from recognizer.training.evaluate import evaluate
from recognizer.training.side_by_side import Training, train_side_by_side
from recognizer.training.train import TrainSettings, provenance


class PracticeSettings(Settings):
    """Everything that `practice run` can be told."""

    data: tuple[str, ...]
    validation: str | None = None  # else a part of data
    validation_share: float = Field(0.25, gt=0, lt=1)
    test: str | None = None  # read once, at the end
    label_pattern: str | None = None
    limit: int | None = Field(None, ge=8)  # use the first so many samples of data
    start: str = "default"
    methods: tuple[str, ...] = ("captcha", "classical")
    rounds: int = Field(3, ge=1, le=100)
    folds: int = Field(3, ge=2, le=20)
    made: float = Field(2.0, gt=0)  # pictures to make in a round, for each training picture, all methods together
    made_share: float = Field(0.5, gt=0, le=0.5)  # of each batch
    pictures: int | None = Field(None, ge=1)  # seen by the baseline and by each fold's reader
    round_share: float = Field(0.5, gt=0)  # of that, seen in a round's training
    round_rate: float = Field(0.5, gt=0)  # of the learning rate, in a round's training
    jobs: int = Field(0, ge=0)  # trainings beside each other; 0 is one a processor, on a GPU one
    seed: int = Field(0, ge=0)
    reader: dict[str, Any] = Field({})  # further settings of `recognizer train`
    fit: dict[str, dict[str, Any]] = Field({})  # settings of `augment fit`, by method


@dataclass(frozen=True)
class Run:
    """A practice run's folder and what is fixed from its start on."""

    settings: PracticeSettings
    out: Path
    ledger: Ledger
    train: tuple[Sample, ...]
    validation: tuple[Sample, ...]
    folds: tuple[tuple[Sample, ...], ...]

    @property
    def jobs(self) -> int:
        if self.settings.jobs or torch.cuda.is_available():
            return self.settings.jobs or 1
        # the processors that this process may use, where the system tells
        return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1

    def training(self, out: Path, data: Path, round_: int, **changed: Any) -> Training:
        """A training of this run; `round_` 0 is the baseline's, from the run's start."""
        s = self.settings
        base = make(
            TrainSettings,
            {
                "threads": 1, "tracker": "none", "validation_share": 0.1, "charset": self.ledger["prepare"]["charset"],
                "start": s.start, "pictures": s.pictures, **s.reader, "data": [str(data)],
                "validation": str(self.out / "data" / "validation"), "seed": s.seed + round_,
            },
            "reader settings",
        )  # fmt: skip
        if round_:
            changed["pictures"] = max(1, round(base.pictures_for(len(self.train)) * s.round_share))
            changed["learning_rate"] = base.rate(find_start(s.start, base.size)[0] is None) * s.round_rate
            changed["synthetic_share"] = s.made_share
        return Training(make(TrainSettings, base.model_dump() | changed, "reader settings"), out)


def practice(settings: PracticeSettings, out: Path) -> Ledger:
    """Practise into the run folder `out`, or go on where it was; gives the ledger of the finished run.

    Raises:
        UserError: settings or data that do not fit; everything so far is kept.
        Stopped: Ctrl-C; give the same command again to go on.
    """
    open_run(settings, out)
    with locked(out):
        ledger = Ledger(out / "ledger.jsonl")
        run = prepare(settings, out, ledger)
        torch.set_num_threads(run.jobs)
        first_readers(run)
        best, control, kept = out / "baseline", out / "baseline", []
        for number in range(1, settings.rounds + 1):
            kept.append(out / f"round-{number}" / "kept")
            practise_round(run, number, best, control, kept)
            facts = ledger[f"round {number}"]
            control = out / f"round-{number}" / "control"
            if not facts["goes_on"]:
                break
            best = out / f"round-{number}" / "pupil"
        choose(run, best, control)
        read_test(run)
    return ledger


def open_run(settings: PracticeSettings, out: Path) -> None:
    """Make the run folder, or see that the one to go on with was made with the same settings."""
    for name in settings.methods:
        load_class(name)
    kept = out / "settings.toml"
    if kept.is_file():
        if load(PracticeSettings, kept, {}) != settings:
            raise UserError(f"{out} was begun with other settings (see {kept}): name a new folder, or --resume {out}")
    elif out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise UserError(f"{out} exists and is not empty: name a new folder")
    else:
        make(TrainSettings, {**settings.reader, "data": settings.data}, "reader settings")
        out.mkdir(parents=True, exist_ok=True)
        kept.write_text(to_toml(settings), encoding="utf-8")


# ------------------------------------------------------------------------------------------------------------- steps


def prepare(settings: PracticeSettings, out: Path, ledger: Ledger) -> Run:
    """Copy train, validation and each fold's training part into the run, so that it depends on nothing outside."""
    data, began = out / "data", time.monotonic()
    if "prepare" not in ledger:
        whole = merge([read_manifest(path, settings.label_pattern) for path in settings.data])
        if settings.limit:
            whole = whole.first(settings.limit)
        held = read_manifest(settings.validation, settings.label_pattern) if settings.validation else Manifest(())
        test = read_manifest(settings.test, settings.label_pattern) if settings.test else Manifest(())
        longest = max((len(s.text) for s in whole), default=1)
        charset = Charset.of(s.text for s in (*whole, *held)) if len(whole) else Charset("0")
        with Bar(Alone(), "opening", len(whole) + len(held)) as bar:
            frame = Frame.for_texts(longest)
            usable = Pictures(whole.samples, charset, frame, MAX_PIXELS, bar.advance)
            usable_held = Pictures(held.samples, charset, frame, MAX_PIXELS, bar.advance)
        problems = [*whole.problems, *usable.problems, *held.problems, *usable_held.problems]
        say(Alone(), problem_table(problems, len(whole) + len(held) + len(whole.problems) + len(held.problems)))
        if settings.validation:
            parts = [usable.samples, usable_held.samples]
        else:
            share = settings.validation_share
            parts = split(usable.samples, (1 - share, share), settings.seed)
        if len(parts[0]) < 2 * settings.folds or not parts[1]:
            raise UserError(
                f"{len(parts[0])} samples to train and {len(parts[1])} to validate are too few for practice "
                f"with {settings.folds} folds"
            )
        shutil.rmtree(data, ignore_errors=True)
        for name, part in zip(("train", "validation"), parts, strict=True):
            write_folder(part, data / name)
        train = read_manifest(data / "train").samples
        folds = folds_of(train, settings.folds, settings.seed)
        for k in range(settings.folds):
            write_folder([s for j, fold in enumerate(folds) if j != k for s in fold], data / f"fold-{k}")
        ledger.record(
            "prepare", train=len(parts[0]), validation=len(parts[1]), test=len(test), charset=charset.characters,
            problems=len(problems), provenance=provenance(), seconds=time.monotonic() - began,
        )  # fmt: skip
    train = read_manifest(data / "train").samples
    return Run(
        settings, out, ledger, train, read_manifest(data / "validation").samples,
        tuple(tuple(fold) for fold in folds_of(train, settings.folds, settings.seed)),
    )  # fmt: skip


def first_readers(run: Run) -> None:
    """Train the baseline on all real pictures, and beside it each fold's reader on the others'."""
    if "baseline" in run.ledger:
        return
    began = time.monotonic()
    trainings = [run.training(run.out / "baseline", run.out / "data" / "train", 0)]
    trainings += [
        run.training(run.out / "folds" / f"fold-{k}", run.out / "data" / f"fold-{k}", 0) for k in range(len(run.folds))
    ]
    say(Alone(), f"training the baseline on {len(run.train)} samples, and {len(run.folds)} readers out of fold")
    train_side_by_side(trainings, run.jobs, "first readers")
    readings = read(run.out / "baseline", run.validation)
    scores = scores_of(run.validation, readings)
    run.ledger.record("baseline", validation=scores.to_dict(), seconds=time.monotonic() - began)
    say(Alone(), f"baseline: {in_words(scores)} on validation")


def practise_round(run: Run, number: int, best: Path, control: Path, kept: Sequence[Path]) -> None:
    """One round; afterwards the ledger holds it, and whether practice goes on."""
    step, folder = f"round {number}", run.out / f"round-{number}"
    if step in run.ledger:
        return
    if f"{step} mine" not in run.ledger:
        mine_and_make(run, number, folder, kept[:-1])
    began = time.monotonic()
    data = run.out / "data" / "train"
    made = [str(path) for path in kept]
    trainings = [
        run.training(folder / "pupil", data, number, start=str(best), with_synthetic=made),
        run.training(folder / "control", data, number, start=str(control)),
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


def mine_and_make(run: Run, number: int, folder: Path, before: Sequence[Path]) -> None:
    """Read out of fold, mine, make by every method, and keep the faithful in `folder/kept`."""
    began = time.monotonic()
    judges = fold_readers(run, number, before)
    shutil.rmtree(folder, ignore_errors=True)
    per_fold = [read(reader, fold) for reader, fold in zip(judges, run.folds, strict=True)]
    samples = [s for fold in run.folds for s in fold]
    readings = [r for own in per_fold for r in own]
    mined = mine(samples, readings)
    count = max(len(run.settings.methods), round(run.settings.made * len(run.train)))
    vary, draw = plan(mined, samples, count, run.settings.seed + number)
    write_mined(mined, [], folder / "mined")
    misread = sum(h.misread for h in mined.hard)
    say(Alone(), f"round {number}: {misread} of {len(samples)} misread out of fold, {len(mined.hard) - misread} nearly")

    bands = [band_of(fold, own) for fold, own in zip(run.folds, per_fold, strict=True)]
    fold_of = {s.name: k for k, fold in enumerate(run.folds) for s in fold}
    hard = {s.name: hardness(r, s.text) for s, r in zip(samples, readings, strict=True)}
    sources = sources_of(Manifest(run.train, source=str(run.out / "data" / "train")))
    methods: dict[str, dict[str, Any]] = {}
    kept: list[Sample] = []
    refused: list[str] = []
    share = max(1, count // len(run.settings.methods))
    for i, name in enumerate(run.settings.methods):
        asked = (vary if load_class(name).needs_source else draw)[i * share : (i + 1) * share]
        own, known = fitted(run, name)
        if not (asked := [r for r in asked if known is None or set(r.text) <= set(known)]):
            say(Alone(), f"  {name}: knows the characters of no text that is asked for")
            continue
        judged, facts = make_and_judge(
            name, own, asked, folder / "made", sources, judges, bands, fold_of, hard, run.train
        )
        kept += judged.kept
        refused += [json.dumps({"file_name": p.name, "reason": p.kind, "detail": p.detail}) for p in judged.refused]
        methods[name] = facts
        say(Alone(), f"  {name}: {len(judged.kept)} of {len(asked)} kept")
    if not kept:
        raise UserError(f"round {number}: no made picture was kept; look at {folder / 'made'}")
    (folder / "refused.jsonl").write_text("".join(line + "\n" for line in refused), encoding="utf-8")
    write_folder(kept, folder / "kept")
    run.ledger.record(
        f"round {number} mine", read=len(samples), misread=misread, near=len(mined.hard) - misread,
        out_of_fold=scores_of(samples, readings).to_dict(), methods=methods, kept=len(kept),
        seconds=time.monotonic() - began,
    )  # fmt: skip


def fitted(run: Run, name: str) -> tuple[dict[str, Any], str | None]:
    """The settings of a method, and the characters that it knows, where it learns. Then it has learned the training
    pictures first, with the baseline's eyes."""
    if not hasattr(load_class(name), "fit"):
        return {}, None
    folder, step = run.out / "fitted" / name.replace(":", "-"), f"fit {name}"
    if step not in run.ledger:
        began, baseline = time.monotonic(), run.out / "baseline"
        if not (baseline / "reader.onnx").exists():
            export(baseline)
        # in a process of its own: this one has settled what it computes in, and on
        command = [sys.executable, "-m", "augment.cli", "fit"]
        if (folder / "asked.json").exists():
            command += ["--resume", str(folder)]
        else:
            shutil.rmtree(folder, ignore_errors=True)
            command += ["--method", name, "--data", str(run.out / "data" / "train"), "--out", str(folder)]
            values = {"model": str(baseline), **run.settings.fit.get(name, {})}
            command += [w for k, v in values.items() for w in ("--set", f"{k}={json.dumps(v)}")]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        if done.returncode:
            raise UserError(f"{name} cannot be fitted: {(done.stderr.strip().splitlines() or ['it was stopped'])[-1]}")
        said = done.stdout.splitlines()[0].removeprefix(f"{folder}: ")
        run.ledger.record(step, said=said, seconds=time.monotonic() - began)
        say(Alone(), f"  {name}: {said}")
    settings = {"fitted": str(folder)}
    return settings, cast("Learner", create(name, settings)).known.characters


def make_and_judge(
    name: str,
    settings: dict[str, Any],
    asked: Sequence[Request],
    made: Path,
    sources: Callable[[str], Any],
    judges: Sequence[Path],
    bands: Sequence[Band],
    fold_of: Mapping[str, int],
    hard: Mapping[str, float],
    train: Sequence[Sample],
) -> tuple[Judged, dict[str, Any]]:
    """Make one method's pictures and judge each by the reader that did not train on its source, where one must."""
    began = time.monotonic()
    with Bar(Alone(), f"making with {name}", len(asked)) as bar:
        synthesize(name, settings, asked, made / name, sources, bar.advance)
    seconds = time.monotonic() - began
    pictures = read_manifest(made / name).samples
    pictures = tuple(Sample(f"{name}/{s.name}", s.text, s.path, meta=s.meta) for s in pictures)
    fold = [fold_of.get(s.meta["source"] or "", i % len(judges)) for i, s in enumerate(pictures)]
    readings: dict[int, Reading] = {}
    for k, reader in enumerate(judges):
        own = [i for i in range(len(pictures)) if fold[i] == k]
        readings.update(zip(own, read(reader, [pictures[i] for i in own]), strict=True))
    own_bands = [
        Band(0.0, float("inf")) if exact_text(s) else widened(bands[k], hard.get(s.meta["source"] or ""))
        for s, k in zip(pictures, fold, strict=True)
    ]
    judged = judge(pictures, [readings[i] for i in range(len(pictures))], own_bands, near_copies(pictures, train))
    return judged, {
        "asked": len(asked), "kept": len(judged.kept), "refused": dict(Counter(p.kind for p in judged.refused)),
        "read_right": sum(readings[i].text == s.text for i, s in enumerate(pictures)) / len(pictures),
        "seconds": seconds,
    }  # fmt: skip


def fold_readers(run: Run, number: int, kept: Sequence[Path]) -> list[Path]:
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
        trainings.append(run.training(out, data, number, start=str(before[k]), with_synthetic=[str(made)]))
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


# ----------------------------------------------------------------------------------------------------------- readings


def read(weights: Path, samples: Sequence[Sample]) -> list[Reading]:
    """What a reader reads in samples that are known to be usable, in order."""
    if not samples:
        return []
    pictures, outcome = evaluate(weights, samples, Accelerator())
    if pictures.problems:
        problem = pictures.problems[0]
        raise UserError(f"{problem.name} cannot be read any more: {problem.kind}, {problem.detail}")
    return outcome.readings


def read_some(weights: Path, samples: Sequence[Sample]) -> dict[str, Reading]:
    """What a reader reads in those samples that it can use, by name."""
    pictures, outcome = evaluate(weights, samples, Accelerator())
    return {s.name: r for s, r in zip(pictures.samples, outcome.readings, strict=True)}


def scores_of(samples: Sequence[Sample], readings: Sequence[Reading]) -> Scores:
    return Scores.of([(s.text, r.text) for s, r in zip(samples, readings, strict=True)])


def rank(scores: Scores) -> tuple[float, float]:
    """By exact match; character error rate breaks ties."""
    return scores.exact, -scores.character_error_rate


def in_words(scores: Scores) -> str:
    low, high = scores.exact_interval
    return f"exact match {scores.exact:.3f} ({low:.3f} to {high:.3f})"


def resumed_settings(out: Path) -> PracticeSettings:
    """The settings of a run, to go on with.

    Raises:
        UserError: no run's folder.
    """
    if not (out / "settings.toml").is_file():
        raise UserError(f"{out} is no practice run: it has no settings.toml")
    with suppress(UserError):
        return load(PracticeSettings, out / "settings.toml", {})
    raise UserError(f"{out} is no practice run: its settings.toml is another command's")
