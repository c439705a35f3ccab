"""Deliberate practice: read out of fold, mine what is misread, make lookalikes of it, retrain, and see what it earned.

    baseline and fold readers
    -> [ mine -> make some by each method -> a short trial of each -> make the rest by those that earned
         -> keep the faithful -> train beside a control, and so for each fold ] each round
    -> learn all of it anew where pictures without labels are among it, once more, and for longer, as they are read then
    -> test once

A control follows the pupil round by round: the same start, the same pictures seen, and never a made one. A round that
does not beat it ends practice. The labels that validate are too few to tell, so that each fold has its pupil and its
control as well, and a round is judged by all labels: those that validate and, out of fold, those that train. The
learning rate stays as it is through the rounds, and readers are averages of weights, so that no round is judged by how
far its rate had fallen.

What it begins with is the mean of the weights of several trainings from the run's start, which reads more than each.
It ends with the pupil of the best round; or, where pictures without labels are among what that practised on, with the
mean of as many trainings again, of all that too: they are real ones, and what learns them from the start reads more.
"""

from __future__ import annotations

import json
import shutil
import time
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from pydantic import Field

from augment.fidelity import doubts
from augment.likeness import features_of
from augment.looks import looks_of
from augment.method import Request, Sources
from augment.methods import load_class
from augment.mining import Hard, by_look, mine, plan, write_mined
from augment.synthesize import answered_by
from pipelines.arms import NONE, Arms, difference_rows, difference_table
from pipelines.ledger import Entry, Ledger, enough, locked, see_judged, time_left, to_come
from pipelines.portfolio import PARTS, UNLABELLED, Earned, earned, nats, shared, weighed
from pipelines.run import (
    NEVER,
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
    see_start,
    write_trusted,
)
from pipelines.unlabelled import guessed, how_sure, relabelled, take
from recognizer.charset import Charset
from recognizer.deploy.export import export
from recognizer.errors import MachineError, UserError
from recognizer.progress import Alone, say
from recognizer.readings import BEYOND_CHANCE, Reading, mcnemar
from recognizer.samples import Manifest, Sample, content_hash, read_manifest, write_folder
from recognizer.training.average import NoMean, average
from recognizer.training.checkpoint import find_start, with_a_mean
from recognizer.training.side_by_side import Training, train_side_by_side
from recognizer.training.train import TrainSettings, as_good

PRACTISED = "practised"  # the arm with the pictures that practice made
AGAIN = 1_000_000  # added to a seed
ALONE = ("alone", "alone again")  # trials without made pictures, of two seeds
FEW = 6  # of fewer pictures a paired test tells hardly anything
LITTLE = 0.05  # of what is practised on already: a round that adds no more to it is not worth its trainings
NOTHING_MADE: dict[str, Any] = {"asked": 0, "kept": 0, "refused": {}, "read_right": 0.0, "seconds": 0.0}
NOTHING_KEPT = Earned(-1.0, 1e-9)  # what a method earned of whose pictures none was kept


class PracticeSettings(RunSettings):
    """Everything that `practice run` can be told."""

    starts: int = Field(3, ge=1, le=20)  # trainings, of other seeds, whose mean it begins with; as many learn anew
    rounds: int = Field(3, ge=1, le=100)
    made: float = Field(2.0, gt=0)  # pictures to make in a round, for each training picture, all methods together
    # unlabelled pictures to take where a method would make one: they cost nothing, and none is like another
    found: float = Field(20.0, gt=0)
    found_share: float = Field(0.5, gt=0, le=0.5)  # of each batch, where all that is practised on was found so
    even: float = Field(0.5, gt=0, le=1)  # share of them that all methods make alike, and that their trials see
    trial_share: float = Field(0.25, gt=0)  # of the pictures of a round's training, seen in each method's trial
    round_share: float = Field(0.5, gt=0)  # of the pictures that the first readers see, seen in a round's training
    round_rate: float = Field(0.3, gt=0)  # of the learning rate, in a round's training
    average: float = Field(0.2, ge=0, lt=1)  # share of a round's training that its reader's weights are averaged over
    # besides none; see `train_controls`
    controls: tuple[Literal["classical", "random", "third", "random-third"], ...] = ()
    seeds: int = Field(3, ge=1, le=50)  # of the controls
    fold_case: bool = False  # the controls count a reading as right whatever its case


def practice(settings: PracticeSettings, out: Path) -> Ledger:
    """Practise into the run folder `out`, or go on where it was; gives the ledger of the finished run.

    Raises:
        UserError: settings or data that do not fit; everything so far is kept.
        Stopped: Ctrl-C; give the same command again to go on.
    """
    if settings.controls and settings.test is None:
        raise UserError("controls are read on test pictures: give --test DIR as well")
    check_methods(settings, settings.methods)
    open_run(settings, out, "controls")
    with locked(out):
        ledger = Ledger(out / "ledger.jsonl")
        run = prepare(settings, out, ledger)
        see_what_is_left_outside(run, settings)
        torch.set_num_threads(run.jobs)
        first_readers(run, settings)
        best = control = begun_with(run)
        for number in range(1, settings.rounds + 1):
            practise_round(run, settings, number, best, control)
            if not enough(ledger[f"round {number} mine"]):
                break
            control = out / f"round-{number}" / "control"
            if not ledger[f"round {number}"]["goes_on"]:
                break
            best = out / f"round-{number}" / "pupil"
        settle(run, settings)
        choose(run, settings, control)
        read_test(run)
        if ledger["round 1 mine"]["kept"]:
            train_controls(run, settings)
            read_controls(run, settings)
        elif settings.controls:
            say(Alone(), "no made picture was kept: there is nothing that controls could be compared with")
    return ledger


# ------------------------------------------------------------------------------------------------------------- steps


def see_what_is_left_outside(run: Run, settings: PracticeSettings) -> None:
    """See to it, before hours are spent, that what a run has no copy of and still needs is there, as it was.

    Raises:
        UserError: the test set or the reader to start from is gone or has changed.
    """
    more = not set(settings.controls) <= set(run.ledger.get("controls", {"names": ()})["names"])
    if settings.test and ("test" not in run.ledger or more):
        test_set(run, settings.test)
    if "chosen" not in run.ledger or more:
        see_start(settings, run.ledger)


def test_set(run: Run, test: str) -> Sequence[Sample]:
    """The test pictures, as they were when the run began.

    Raises:
        UserError: they are gone or have changed.
    """
    samples = read_manifest(test, run.settings.label_pattern).samples
    known = run.ledger["prepare"].get("test_sha256")
    if known and content_hash(samples) != known:
        raise UserError(f"{test} has changed since the run began: put it back, or start a new run")
    return samples


def first_readers(run: Run, settings: PracticeSettings) -> None:
    """Train the baseline on all real pictures, beside it others with other seeds, for their mean, and each fold's
    reader on the other folds'."""
    if "baseline" in run.ledger:
        see_judged(run.out, run.ledger["baseline"])
        if left := time_left(run.ledger):
            say(Alone(), to_come(left))
        return
    began = time.monotonic()
    baseline, *again = from_the_start(run, settings, run.out / "baseline")
    times = f", {1 + len(again)} times" * bool(again)
    say(Alone(), f"training the baseline on {len(run.train)} samples{times}, and {len(run.folds)} readers out of fold")
    train_side_by_side([baseline, *again, *run.fold_trainings()], run.jobs, "first readers")
    samples, readings = read_held_out(run, baseline.out, fold_readers(run, 1))
    held = scores_of(samples, readings)
    own, mean = with_others(run, baseline.out, again, readings[: len(run.validation)])
    scores = scores_of(run.validation, own)
    run.ledger.record(
        "baseline", validation=scores.to_dict(), held_out=held.to_dict(), nats=float(nats(readings).mean()),
        mean=mean, ahead=[ahead(run, settings, n) for n in range(settings.rounds + 1)],
        ahead_anew=[ahead(run, settings, n, anew=True) for n in range(settings.rounds + 1)],
        ahead_controls=ahead(run, settings, settings.rounds, ends=False),
        seconds=time.monotonic() - began,
    )  # fmt: skip
    say(Alone(), f"baseline: {in_words(scores)} on validation, {in_words(held)} of all that was held out of a training")
    say(Alone(), to_come(run.ledger["baseline"]["ahead"][0]))


def ahead(run: Run, settings: PracticeSettings, done: int = 0, anew: bool = False, ends: bool = True) -> float:
    """Seconds that all trainings after the first readers' and those of `done` rounds take at most, by the baseline's
    pace, where rounds learn all `anew` or not, with or without what is learned anew at the `ends`; what methods learn
    is not counted."""
    base, first = base_settings(run), due_to(run)
    folds, methods = len(run.folds), len(settings.methods)
    trials = [settings.trial_share] * (len(ALONE) + methods) if methods > 1 else []
    if anew:
        own = base.pictures_for(round(len(run.train) * (1 - 1 / folds))) / first
        per_round = lasting([1.0] * 2 + [own] * (2 * folds), run.jobs)
    else:
        per_round = lasting([1.0] * 2 + [1 - 1 / folds] * (2 * folds), run.jobs) * settings.round_share
    per_round += lasting(trials, run.jobs) * settings.round_share
    controls = [1.0] * (2 + len(settings.controls)) * settings.seeds if settings.controls else []
    passes = (settings.rounds - done) * per_round
    if ends and UNLABELLED in settings.methods:
        longest = base.pictures_for(len(run.train) + run.ledger["prepare"]["unlabelled"]) / first
        passes += sum(lasting([own] * settings.starts, run.jobs) for own in (1.0, longest))
    passes += lasting(controls, run.jobs)
    last = json.loads((run.out / "baseline" / "metrics.jsonl").read_text().splitlines()[-1])
    return passes * first / float(last["pictures_per_second"])


def base_settings(run: Run) -> TrainSettings:
    """The settings of a training on all labels."""
    return run.training(run.out / "baseline", run.out / "data" / "train", 0).settings


def due_to(run: Run, made: Sequence[str] = ()) -> int:
    """The pictures that a training sees on all labels and those that were found without."""
    return base_settings(run).pictures_for(len(run.train) + count_found(made))


def lasting(trainings: Sequence[float], jobs: int) -> float:
    """How long trainings of these lengths take, so many beside each other, in the order in which they are begun."""
    ends = [0.0] * jobs
    for own in trainings:
        ends[ends.index(min(ends))] += own
    return max(ends)


def practise_round(run: Run, settings: PracticeSettings, number: int, best: Path, control: Path) -> None:
    """One round; afterwards the ledger holds it, and whether practice goes on. One that adds hardly anything to
    what is practised on is not worth its trainings, and is the last."""
    step, folder = f"round {number}", run.out / f"round-{number}"
    if step in run.ledger:
        return
    if f"{step} mine" not in run.ledger:
        mine_and_make(run, settings, number, folder, best)
    if not enough(run.ledger[f"{step} mine"]):
        kept = run.ledger[f"{step} mine"]["kept"]
        more = f"hardly more ({kept} pictures)" if kept else "nothing more"
        say(Alone(), f"round {number}: {more} to practise on is found or made: practice ends")
        return
    began, kept = time.monotonic(), practised_on(run, number)
    data, anew = run.out / "data" / "train", learns_anew(run, number)
    if anew:
        say(
            Alone(), f"round {number}: few are read surely: with the likeliest all is learned anew, as long as at first"
        )
        if left := time_left(run.ledger):
            say(Alone(), to_come(left))
    pair = [
        round_training(run, settings, number, folder / "pupil", data, best, kept, anew=anew),
        round_training(run, settings, number, folder / "control", data, control, anew=anew),
    ]
    folds = fold_trainings(run, settings, number, kept, anew)
    train_side_by_side([*pair, *folds["pupil"], *folds["control"]], run.jobs, f"round {number}")
    held = {role: read_held_out(run, folder / role, [t.out for t in own]) for role, own in folds.items()}
    samples, apart = held["pupil"][0], [own for _, own in held.values()]
    gained = beats(samples, *apart)
    # more than its control, and less than practice began with
    lost = gained and worse(samples, apart[0], read_held_out(run, begun_with(run), fold_readers(run, 1))[1])
    told = [scores_of(samples, own) for own in apart]
    before = scores_of(run.validation, read(best, run.validation))
    run.ledger.record(
        step, before=before.to_dict(), goes_on=gained and not lost, lost=lost,
        **{role: scores_of(run.validation, own[: len(run.validation)]).to_dict() for role, (_, own) in held.items()},
        held_out={role: own.to_dict() for role, own in zip(held, told, strict=True)},
        nats=[float(nats(own).mean()) for own in apart],
        seconds=time.monotonic() - began,
    )  # fmt: skip
    say(
        Alone(), f"round {number}: {in_words(told[0])} with made pictures, {in_words(told[1])} without, of "
        f"{len(samples):,} that were held out of a training",
    )  # fmt: skip
    if told[0].exact == told[1].exact:
        own, other = (nats(r).mean() for r in apart)
        say(Alone(), f"  as many; the labels are unlikely by {own:.3f} nats with them, {other:.3f} without")
    if not gained:
        say(Alone(), f"round {number} earned nothing over its control: practice ends")
    elif lost:
        say(Alone(), f"round {number} reads less than was read before practice, beyond chance: practice ends")


def learns_anew(run: Run, number: int) -> bool:
    """Whether the readers of a round learn from the run's start, for as long as the first ones did: where it or one
    before it has guessed, by its mining."""
    return any(run.ledger.get(f"round {n} mine", {}).get("guessed", False) for n in range(1, number + 1))


def practised_on(run: Run, number: int, last: int | None = None) -> list[str]:
    """The folders of made pictures that a round practises on: its own and those of the rounds before, less what came of
    labels that are likely wrong by then, or by a `last` round that was mined, and less what was guessed in pictures
    without labels, where the round has read them again."""
    last = last or number
    doubted, folders = set(run.ledger[f"round {last} mine"]["set_aside"]), []
    again = any(s.meta["method"] == UNLABELLED for s in read_manifest(run.out / f"round-{number}" / "kept"))
    for n in range(1, number + 1):
        folder = run.out / f"round-{n}" / "kept"
        made = read_manifest(folder).samples
        gives_way = again and n < number and learns_anew(run, n)
        sure = [s for s in made if not (gives_way and guessed(s, run.settings))]
        trusted = [s for s in sure if not came_of(s) & doubted]
        if len(trusted) < len(made):
            folder = run.out / f"round-{last}" / (f"kept-{n}" if len(sure) == len(made) else f"sure-{n}")
            if trusted and not folder.exists():
                write_folder(trusted, folder)
        if trusted:
            folders.append(str(folder))
    return folders


def share_of(settings: PracticeSettings, folders: Sequence[str]) -> float:
    """What is practised on has this share of each batch: more, the more of it are pictures that nobody made."""
    return settings.made_share + share_found(folders) * (settings.found_share - settings.made_share)


def share_found(folders: Sequence[str]) -> float:
    """How much of what is practised on are pictures without labels."""
    return count_found(folders) / max(sum(len(read_manifest(path)) for path in folders), 1)


def count_found(folders: Sequence[str]) -> int:
    """How many pictures without labels are practised on."""
    return sum(s.meta["method"] == UNLABELLED for path in folders for s in read_manifest(path))


def told_of(made: Sample) -> tuple[str, ...]:
    """What a kept picture teaches: one without a label is the same where it is read again as before."""
    if made.meta["method"] == UNLABELLED:
        return made.meta["found"], made.text
    return (str(made.path),)


def came_of(made: Sample) -> set[str]:
    """The labelled pictures that one was made of: its source, the one whose text, but for what was swapped, it shows,
    and those whose strokes it holds."""
    return {made.meta["source"], made.meta.get("pair"), *made.meta.get("pieces", ())} - {None}


def from_the_start(run: Run, settings: PracticeSettings, out: Path, **changed: Any) -> list[Training]:
    """Trainings on all labels from the run's start, with other seeds, beside the folder of the first; but one where
    what comes of it has no mean."""
    data, seed = run.out / "data" / "train", settings.seed
    own = {"patience": NEVER, **changed}
    first = run.training(out, data, seed, **own)
    times = settings.starts if with_a_mean(settings.start, first.settings.size, first.settings.head) else 1
    return [first, *(run.training(out.with_name(f"{out.name}-{k}"), data, seed + k * AGAIN, **own)
                     for k in range(1, times))]  # fmt: skip


def with_others(
    run: Run, reader: Path, others: Sequence[Training], readings: Sequence[Reading]
) -> tuple[Sequence[Reading], bool]:
    """The mean of a reader's weights and those of others from its start, beside it, and whether that is what goes on:
    not where it reads fewer validation pictures right than the reader alone, beyond chance, whose `readings` are given.
    The readings of these by what goes on come first."""
    mean = mean_beside(reader)
    shutil.rmtree(mean, ignore_errors=True)
    if not others:
        return readings, False
    try:
        average([reader, *(other.out for other in others)], mean)
    except NoMean:  # so high a rate that they lie far from each other
        return readings, False
    own = read(mean, run.validation)
    return (readings, False) if worse(run.validation, own, readings) else (own, True)


def mean_beside(reader: Path) -> Path:
    return reader.with_name(f"{reader.name}-mean")


def begun_with(run: Run) -> Path:
    """The reader that practice begins with: the mean of the first trainings, or the baseline."""
    baseline = run.out / "baseline"
    return mean_beside(baseline) if run.ledger["baseline"]["mean"] else baseline


def number_of(part: Path) -> int:
    """The round of a pupil, or of another folder in a round's."""
    return int(part.parent.name.removeprefix("round-"))


def fold_readers(run: Run, number: int) -> list[Path]:
    """Each fold's reader when a round begins: after the first, practised on what the rounds before kept, less what came
    of its fold."""
    return [run.out / "folds" / (f"fold-{k}" if number == 1 else f"fold-{k}-pupil-{number - 1}")
            for k in range(len(run.folds))]  # fmt: skip


def fold_trainings(
    run: Run, settings: PracticeSettings, number: int, kept: Sequence[str], anew: bool = False
) -> dict[str, list[Training]]:
    """The trainings of a round's pupil and control of each fold, as many times through their labels as the round's own
    go through theirs."""
    trainings: dict[str, list[Training]] = {"pupil": [], "control": []}
    # what a learned method makes has strokes of all training pictures in it, those of each fold as well, and what a
    # reader of all of them read in pictures without labels, a fold's reader must read itself
    apart = {name for name in settings.methods if name == UNLABELLED or hasattr(load_class(name), "fit")}
    for k, (before, fold) in enumerate(zip(fold_readers(run, number), run.folds, strict=True)):
        names = {s.name for s in fold}
        made = run.out / "folds" / f"made-{k}-{number}"
        if not made.exists():
            every = [s for path in kept for s in read_manifest(path)]
            loose = [
                replace(s, name=f"{i}{Path(s.name).suffix}")
                for i, s in enumerate(every)
                if s.meta["method"] == UNLABELLED
            ]
            others = [s for s in every if not came_of(s) & names and s.meta["method"] not in apart]
            write_folder([*others, *relabelled(loose, before, settings.unlabelled_confidence)], made)
        alone = run.out / "folds" / (f"fold-{k}" if number == 1 else f"fold-{k}-control-{number - 1}")
        for role, start in (("pupil", before), ("control", alone)):
            trainings[role].append(round_training(
                run, settings, number, run.out / "folds" / f"fold-{k}-{role}-{number}", run.out / "data" / f"fold-{k}",
                start, [str(made)] * (role == "pupil" and len(read_manifest(made)) > 0), 1 - 1 / len(run.folds),
                anew=anew,
            ))  # fmt: skip
    return trainings


def read_held_out(run: Run, reader: Path, folds: Sequence[Path]) -> tuple[list[Sample], list[Reading]]:
    """All labelled pictures, each read by a reader that did not train on it: first those that validate, by `reader`,
    then each fold's by its own."""
    parts = [(reader, run.validation), *zip(folds, run.folds, strict=True)]
    return [s for _, part in parts for s in part], [r for path, part in parts for r in read(path, part)]


def round_training(
    run: Run, settings: PracticeSettings, number: int, out: Path, data: Path, start: Path, made: Sequence[str] = (),
    share: float = 1.0, again: bool = False, anew: bool = False, **changed: Any,
) -> Training:  # fmt: skip
    """A training of a round, or a share of one, at a share of the learning rate that the first readers had; `again`
    with another seed. `anew` is as those were, from the run's start: a reader that has guessed what a picture shows
    would in a short training be taught little by it but to be sure."""
    if not anew:
        base = run.training(out, data, settings.seed + number).settings
        pictures = base.pictures_for(len(run.train)) * share * settings.round_share
        changed |= {
            "start": str(start), "schedule": "constant", "average": settings.average,
            "learning_rate": base.rate(find_start(settings.start, base.size)[0] is None) * settings.round_rate,
            "pictures": max(1, round(pictures)),
        }  # fmt: skip
    return run.training(
        out, data, settings.seed + number + AGAIN * again, with_synthetic=list(made), patience=NEVER,
        synthetic_share=share_of(settings, made), **changed,
    )  # fmt: skip


def mine_and_make(run: Run, settings: PracticeSettings, number: int, folder: Path, best: Path) -> None:
    """Read out of fold, mine, make by every method, most by those that earn most, and keep the faithful in
    `folder/kept`."""
    began, step, names = time.monotonic(), f"round {number}", run.settings.methods
    readers = fold_readers(run, number)
    judges = Judges.of(run, readers)
    samples, readings = judges.samples, judges.readings
    looks = looks_of(features_of(run.out / "baseline", samples))
    before = run.ledger[f"round {number - 1} mine"] if number > 1 else {}
    mined = mine(samples, readings, looks=looks.tolist(), doubted=before.get("set_aside", ()))
    also = doubted_to_validate(run, best)
    count = max(2 * len(names), round(settings.made * len(run.train)))
    plans = plan(mined, samples, count, run.settings.seed + number)
    misread = sum(h.misread for h in mined.hard)
    nearly = len(mined.hard) - misread
    if f"{step} even" not in run.ledger:
        shutil.rmtree(folder / "mined", ignore_errors=True)
        likeliest = sorted((*mined.suspects, *also), key=lambda h: h.margin)
        write_mined(replace(mined, suspects=tuple(likeliest)), [], folder / "mined", run.files)
        if number == 1:
            write_trusted(run, {h.sample.name for h in mined.suspects})
        suspects = f", {len(mined.suspects)} labels likely wrong and set aside" if mined.suspects else ""
        suspects += f", {len(also)} likely wrong of those that validate" if also else ""
        say(Alone(), f"round {number}: {misread} of {len(samples)} misread out of fold, {nearly} nearly{suspects}")

    several, parts = len(names) > 1, [f"{step} {part}" for part in PARTS]
    first = max(len(names), round(count * settings.even)) if several else count  # one of each method at least
    even = shared(first, dict.fromkeys(names, 1.0))
    make_part(run, settings, parts[0], folder / PARTS[0], even, plans, best, judges)
    weights = dict.fromkeys(names, 1.0)
    if several:
        weights = try_methods(run, settings, number, folder, best)
        start = sum(even.values())
        rest = tuple(requests[start:] for requests in plans)
        make_part(run, settings, parts[1], folder / PARTS[1], shared(count - start, weights), rest, best, judges)
    kept = [s for part in PARTS for path in sorted((folder / part / "kept").glob("*")) for s in read_manifest(path)]
    shutil.rmtree(folder / "kept", ignore_errors=True)  # of a run that was killed before it could say so
    if kept:
        write_folder(kept, folder / "kept")
    practised = {told_of(s) for n in range(1, number) for s in read_manifest(run.out / f"round-{n}" / "kept")}
    new = {told_of(s) for s in kept} - practised
    run.ledger.record(
        f"{step} mine", read=len(samples), misread=misread, near=nearly, suspects=len(mined.suspects) + len(also),
        set_aside=[h.sample.name for h in mined.suspects], looks=by_look(mined),
        out_of_fold=scores_of(samples, readings).to_dict(), kinds=mined.kinds,
        methods={name: together([run.ledger[part]["methods"][name] for part in parts if part in run.ledger])
                 for name in names},
        weights=weights, kept=len(kept), enough=len(new) > LITTLE * len(practised),
        guessed=any(guessed(s, settings) for s in kept), seconds=time.monotonic() - began,
    )  # fmt: skip


def doubted_to_validate(run: Run, reader: Path) -> tuple[Hard, ...]:
    """Samples that validate whose labels are likely wrong, by a reader that trained on none of them: they go on to
    validate, and are told of. Those of a folder of its own may bear the names of others: none of these."""
    held = run.validation if run.settings.validation is None else ()
    return mine(held, read(reader, held)).suspects


def make_part(
    run: Run, settings: PracticeSettings, step: str, folder: Path, counts: Mapping[str, int],
    plans: Sequence[Sequence[Request]], best: Path, judges: Judges,
) -> None:  # fmt: skip
    """Make so many pictures by each method, from plans that begin with what these methods answer; the faithful go to
    `folder/kept/METHOD`. What `best` reads in pictures without labels is judged by the others."""
    if step in run.ledger:
        return
    shutil.rmtree(folder / "kept", ignore_errors=True)  # of a run that was killed here; what it made is used again
    (folder / "kept").mkdir(parents=True)
    manifest = Manifest(run.train, source=str(run.out / "data" / "train"))
    methods: dict[str, dict[str, Any]] = {}
    refused: list[str] = []
    first = 0
    for name, count in counts.items():
        vary, draw = (requests[first : first + count] for requests in plans)
        first += count
        if name == UNLABELLED:
            seed, readers = vary[0].seed if vary else 0, [best, *judges.readers]
            number, count = number_of(folder), round(count * settings.found)
            found, methods[name] = take(run, count, readers, seed, number, taken_before(run, settings, number))
            if found:
                write_folder(found, folder / "kept" / name)
            read_in, sure, least = (methods[name][key] for key in ("read", "sure", "least"))
            how = how_sure(least, settings)
            say(Alone(), f"  {name}: {len(found)} taken, of {sure:,} that {how} in {read_in:,} looked at")
            continue
        try:
            own, known = fitted(run, name, run.out / "baseline")
            asked = answered_by(name, own, vary, draw, Sources(manifest), run.known_as)
            asked = [r for r in asked if known is None or set(r.text) <= set(known)]
            if count and not asked:
                raise UserError("it can draw no text that is asked for")
            if not asked:
                methods[name] = NOTHING_MADE
                continue
            judged, methods[name] = make_and_judge(run, name, own, asked, folder / "made", judges)
        except MachineError as error:
            raise MachineError(f"{error}; where it can have no more, begin anew without {name}") from None
        except UserError as error:  # one method must not cost a run the others
            told = f"its settings are given as --set method.{name}.NAME=VALUE"
            say(Alone(), f"  {name}: {error}; practice goes on without it ({told})")
            methods[name] = NOTHING_MADE
            continue
        if judged.kept:
            write_folder(judged.kept, folder / "kept" / name)
        refused += [json.dumps({"file_name": p.name, "reason": p.kind, "detail": p.detail}) for p in judged.refused]
        say(Alone(), f"  {name}: {len(judged.kept)} of {len(asked)} kept")
        for line in doubts({name: len(judged.kept)}, {name: len(asked)}):
            say(Alone(), f"  {line}")
    (folder / "refused.jsonl").write_text("".join(line + "\n" for line in refused), encoding="utf-8")
    run.ledger.record(step, methods=methods)


def taken_before(run: Run, settings: PracticeSettings, number: int) -> set[str]:
    """The files without labels that a round need not read again: those it has taken itself, and those that others were
    sure of."""
    return {
        s.meta["found"]
        for path in run.out.glob(f"round-*/*/kept/{UNLABELLED}")
        for s in read_manifest(path)
        if (n := number_of(path.parent.parent)) == number or not (learns_anew(run, n) and guessed(s, settings))
    }


def try_methods(run: Run, settings: PracticeSettings, number: int, folder: Path, best: Path) -> dict[str, float]:
    """The methods' weights, after a short training with the first pictures of each beside two without any."""
    step, names = f"round {number} trial", run.settings.methods
    if step not in run.ledger:
        tried = {name: path for name in names if (path := folder / "even" / "kept" / name).exists()}
        trainings = [
            round_training(
                run, settings, number, folder / "trials" / name, run.out / "data" / "train", best, made,
                share=settings.trial_share, again=name == "alone again", blend=False,
            )
            for name, made in [*((name, []) for name in ALONE), *((name, [str(path)]) for name, path in tried.items())]
            if tried
        ]  # fmt: skip
        train_side_by_side(trainings, run.jobs, f"trials, round {number}")
        every = [read(training.out, run.validation) for training in trainings]
        alone, others = every[: len(ALONE)], every[len(ALONE) :]
        found = {name: earned(alone, own) for name, own in zip(tried, others, strict=True)}
        before = run.ledger[f"round {number - 1} mine"]["weights"] if number > 1 else dict.fromkeys(names, 1.0)
        weights = weighed(before, {name: found.get(name, NOTHING_KEPT) for name in names})
        run.ledger.record(step, earned={name: own._asdict() for name, own in found.items()}, weights=weights)
        told = ", ".join(f"{name} {100 * w:.0f} %" for name, w in weights.items())
        say(Alone(), f"  the rest by what each earned in its trial: {told}")
    return dict(run.ledger[step]["weights"])


def together(parts: Sequence[Entry]) -> dict[str, Any]:
    """What came of a method's pictures, of several parts in one."""
    asked = sum(part["asked"] for part in parts)
    refused: Counter[str] = Counter()
    for part in parts:
        refused.update(part["refused"])
    right = sum(part["read_right"] * part["asked"] for part in parts)
    return {
        "asked": asked, "kept": sum(part["kept"] for part in parts), "refused": dict(refused),
        "read_right": right / max(asked, 1), "seconds": sum(part["seconds"] for part in parts),
    }  # fmt: skip


def winners(run: Run, settings: PracticeSettings) -> list[Path]:
    """The pupils that beat their control, the one first that read most of what was held out; but those that learned
    anew before others, which saw more pictures in training."""
    rounds = range(1, settings.rounds + 1)
    won = [n for n in rounds if run.ledger.get(f"round {n}", {"goes_on": False})["goes_on"]]
    return sorted(
        (run.out / f"round-{n}" / "pupil" for n in won),
        key=lambda path: (learns_anew(run, number_of(path)), *rank(run, path)),
        reverse=True,
    )


def settle(run: Run, settings: PracticeSettings) -> None:
    """Where the best pupil that beat its control practised on pictures without labels, learn anew, from the run's
    start, all that it practised on, and then once more with what that reader, which reads more than those of the
    rounds, is sure of in them: unless less is then read of what validates, beyond chance. Else it is the pupil: to
    learn what is made from the start as well costs more of what real pictures teach than it adds (docs/log.md)."""
    pupils = winners(run, settings)
    if "settled" in run.ledger or not pupils:
        return
    began, folder, longer = time.monotonic(), pupils[0].parent, 1.0
    made, before = taught(run, settings), run.ledger["baseline"]["validation"]
    if share_found(made):
        reader, own = learn_anew(run, settings, folder / "settled", made)
    else:
        reader, own = pupils[0], read(pupils[0], run.validation)
    again = read_again(run, folder / "kept-again", made, reader, number_of(pupils[0]) + 1)
    if again:
        last, theirs = learn_anew(run, settings, folder / "settled-again", again, last=True)
        if not worse(run.validation, theirs, own):
            reader, own, longer = last, theirs, due_to(run, again) / due_to(run)
    run.ledger.record(
        "settled", reader=str(reader.relative_to(run.out)), pupil=scores_of(run.validation, own).to_dict(),
        control=before, longer=longer, seconds=time.monotonic() - began,
    )  # fmt: skip


def learn_anew(
    run: Run, settings: PracticeSettings, out: Path, made: Sequence[str], last: bool = False
) -> tuple[Path, Sequence[Reading]]:
    """The reader that is trained from the run's start on all labels and made pictures, as often as the baseline was and
    with its seeds, for the mean of the weights; and what it reads in what validates. It sees as many pictures as the
    baseline; the `last` as many as are due to all real ones that it learns from, labelled or found."""
    longer = {"pictures": due_to(run, made)} if last else {}
    first, *again = from_the_start(
        run, settings, out, with_synthetic=made, synthetic_share=share_of(settings, made), **longer
    )
    train_side_by_side([first, *again], run.jobs, "learning all anew")
    own, mean = with_others(run, first.out, again, read(first.out, run.validation))
    say(Alone(), f"learned anew: {in_words(scores_of(run.validation, own))} on validation")
    return mean_beside(first.out) if mean else first.out, own


def read_again(run: Run, out: Path, made: Sequence[str], reader: Path, number: int) -> list[str]:
    """A folder with what is practised on where those pictures that have no label are taken anew, all of which a reader
    is sure of, as in a round `number`; none where nothing was practised on that has none."""
    practised = [replace(s, name=f"{k}/{s.name}") for k, path in enumerate(made) for s in read_manifest(path)]
    drawn = [s for s in practised if s.meta["method"] != UNLABELLED]
    if len(drawn) == len(practised):
        return []
    if not out.exists():
        files = run.ledger["prepare"]["unlabelled"]
        found, facts = take(run, files, [reader], run.settings.seed, number, hard=False)
        if not found:
            return []
        write_folder([*drawn, *found], out)
        how = how_sure(facts["least"], run.settings)
        say(Alone(), f"{len(found):,} of {files:,} pictures without labels {how} now: once more with these")
    return [str(out)]


def choose(run: Run, settings: PracticeSettings, control: Path) -> None:
    """Keep as the run's weights what practice ends with (`settle`), where a round beat its control, unless it reads
    fewer validation pictures right than the reader from before, beyond chance; else that one. Beside it goes the
    control that trained on as long without made pictures: of that pupil, or the last; but the reader from before,
    which was trained as often, where the round learned anew."""
    if "chosen" in run.ledger:
        return
    began, won, winner, practised = time.monotonic(), winners(run, settings), begun_with(run), False
    control = won[0].with_name("control") if won else control
    if control != winner and learns_anew(run, number_of(control)):
        control = winner
    readings = {path: read(path, run.validation) for path in (winner, control)}
    if won:
        settled = run.out / run.ledger["settled"]["reader"]
        readings[settled] = read(settled, run.validation)
        practised = not worse(run.validation, readings[settled], readings[winner])
        winner = settled if practised else winner
    scores = {path: scores_of(run.validation, own) for path, own in readings.items()}
    shutil.copy(winner / "weights.safetensors", run.out / "weights.safetensors.tmp")
    (run.out / "weights.safetensors.tmp").replace(run.out / "weights.safetensors")
    export(run.out)
    run.ledger.record(
        "chosen", reader=str(winner.relative_to(run.out)), practised=practised,
        control=str(control.relative_to(run.out)), validation=scores[winner].to_dict(),
        control_validation=scores[control].to_dict(),
        seconds=time.monotonic() - began,
    )  # fmt: skip


def read_test(run: Run) -> None:
    """Read the test set, once: with what practice began with, with the reader that was chosen, with its control, and
    with the baseline alone, as a training without practice would have left it."""
    if "test" in run.ledger or run.settings.test is None:
        return
    chosen, began = run.ledger["chosen"], time.monotonic()
    samples = test_set(run, run.settings.test)
    before = str(begun_with(run).relative_to(run.out))
    readers = {"before": before, "control": chosen["control"], "after": chosen["reader"]}
    if before != "baseline":
        readers["alone"] = "baseline"
    found = {role: read_some(run.out / path, samples) for role, path in readers.items()}
    usable = [s for s in samples if all(s.name in own for own in found.values())]
    if not usable:
        raise UserError(f"{run.settings.test}: no sample is left to test on")
    rows = [{"file_name": s.name, "text": s.text, **{k: own[s.name].text for k, own in found.items()}} for s in usable]
    scores = {role: scores_of(usable, [own[s.name] for s in usable]) for role, own in found.items()}
    right = {role: [own[s.name].text == s.text for s in usable] for role, own in found.items()}
    charset = Charset(run.ledger["prepare"]["charset"])
    run.ledger.record(
        "test", set_aside=len(samples) - len(usable), unknown=sum(bool(charset.missing(s.text)) for s in samples),
        readings=rows,
        **{role: own.to_dict() for role, own in scores.items()},
        p_before=mcnemar(right["before"], right["after"]), p_control=mcnemar(right["control"], right["after"]),
        seconds=time.monotonic() - began,
    )  # fmt: skip


def taught(run: Run, settings: PracticeSettings) -> list[str]:
    """The folders of what the best pupil that beat its control practised on, where none did the first, less what came
    of labels that are likely wrong by the last round."""
    best = winners(run, settings)
    last = max(n for n in range(1, settings.rounds + 1) if f"round {n} mine" in run.ledger)
    number = number_of(best[0]) if best else 1
    return practised_on(run, number, last) or practised_on(run, number)  # where all are doubted, all are trusted


def arms_of(run: Run, settings: PracticeSettings) -> Arms:
    """The controls' arms, all with as large a share of each batch as practice's pictures had."""
    return Arms(run, run.out / "controls", settings.seeds, share_of(settings, taught(run, settings)))


def train_controls(run: Run, settings: PracticeSettings) -> None:
    """Say what mining adds: readers trained at once, from the run's start, with the same compute and the same number of
    pictures: `none`; `practised`, those that practice made; `classical`, variations of any labelled picture; `random`,
    by the methods that practice used, as often, of any picture and text; with a `third` of practice's; and with as few
    of the random ones (`random-third`), without which nobody could tell whether fewer of any would do. The readers that
    judged the last of practice's pictures judge theirs: those from before are sure of too few without labels."""
    if set(settings.controls) <= set(run.ledger.get("controls trained", {"names": ()})["names"]):
        return
    began, arms = time.monotonic(), arms_of(run, settings)
    practised = [s for path in taught(run, settings) for s in read_manifest(path)]
    few = max(1, len(practised) // 3)

    def some(samples: Sequence[Sample]) -> list[Sample]:
        chosen = np.random.default_rng(settings.seed).permutation(len(samples))[:few]
        return [samples[i] for i in sorted(chosen.tolist())]

    for name, own in ((PRACTISED, practised), ("third", some(practised))):
        if name in (PRACTISED, *settings.controls) and not (arms.folder(name) / "kept").exists():
            write_folder(own, arms.folder(name) / "kept")
    wanted = {"classical": {"classical": len(practised)}, "random": Counter(str(s.meta["method"]) for s in practised)}
    judges, failed = None, dict[str, str]()
    for name in dict.fromkeys(name.removesuffix("-third") for name in settings.controls):
        if name in wanted and f"made {name}" not in run.ledger:
            won = winners(run, settings)
            number = number_of(won[0]) if won else 1
            judges = judges or Judges.of(run, fold_readers(run, number))
            best = begun_with(run) if number == 1 else run.out / f"round-{number - 1}" / "pupil"
            try:
                arms.make(name, wanted[name], judges, best, number)
            except MachineError:
                raise
            except UserError as error:  # one control must not cost a run the others
                say(Alone(), f"{name} is left out: {error}")
                failed |= dict.fromkeys({name, f"{name}-third"} & set(settings.controls), str(error))
    few_random = arms.folder("random-third") / "kept"
    if "random-third" in {*settings.controls} - failed.keys():
        if not arms.compared(["random"]):
            failed["random-third"] = "too few random pictures were kept"
            say(Alone(), f"random-third is left out: {failed['random-third']}")
        elif not few_random.exists():
            write_folder(some(read_manifest(arms.folder("random") / "kept").samples), few_random)
    controls = [name for name in settings.controls if name not in failed]
    names = arms.compared([NONE, PRACTISED, *controls])
    train_side_by_side(arms.trainings(names), run.jobs, "controls")
    run.ledger.record(
        "controls trained", names=controls, failed=failed, practised=len(practised),
        seconds=time.monotonic() - began,
    )  # fmt: skip


def read_controls(run: Run, settings: PracticeSettings) -> None:
    """Read the test pictures with the controls, those that all readers of the run could use."""
    if set(settings.controls) <= set(run.ledger.get("controls", {"names": ()})["names"]):
        return
    began, arms = time.monotonic(), arms_of(run, settings)
    controls = run.ledger["controls trained"]["names"]
    names = arms.compared([NONE, *controls, PRACTISED])
    assert settings.test is not None
    texts = {row["file_name"]: row["text"] for row in run.ledger["test"]["readings"]}
    test = [s for s in read_manifest(settings.test, settings.label_pattern) if texts.get(s.name) == s.text]
    if len(test) < len(texts):
        raise UserError(f"{settings.test} has changed since it was read: its controls cannot be")
    arms.read(names, test)
    right = arms.rights(names, texts, settings.fold_case)
    against = [name for name in (NONE, "classical", "random", "random-third") if name in names]
    rows = difference_rows(right, against)
    kept = {name: arms.folder(name) / "kept" for name in (*settings.controls, PRACTISED)}
    pictures = {name: len(read_manifest(folder)) if folder.exists() else 0 for name, folder in kept.items()}
    lines = difference_table(rows, against)
    failed = run.ledger["controls trained"].get("failed", {})
    why = dict(failed) if isinstance(failed, dict) else {}  # in runs of before a list of names
    lines += [
        f"| {name} | not compared: "
        + why.get(name, f"{pictures[name]} pictures were kept, {pictures[PRACTISED]} are needed")
        + " |" * (2 + 2 * len(against))
        for name in settings.controls
        if name not in names
    ]
    (run.out / "controls.md").write_text("\n".join(lines) + "\n", encoding="utf-8")
    run.ledger.record(
        "controls", names=controls, failed=failed, rows=rows,
        against=against, n=len(test), pictures=pictures, seconds=time.monotonic() - began,
    )  # fmt: skip


def beats(samples: Sequence[Sample], own: Sequence[Reading], others: Sequence[Reading]) -> bool:
    """Whether a reader reads more pictures right than another, or as many and holds the labels to be likelier by more
    than a standard error."""
    mine, theirs = (scores_of(samples, readings).exact for readings in (own, others))
    return mine > theirs or (mine == theirs and earned([others], own).z > 1)


def worse(samples: Sequence[Sample], own: Sequence[Reading], others: Sequence[Reading]) -> bool:
    """Whether a reader reads fewer pictures right than another, beyond chance, by McNemar's mid-p, which does not call
    five lost of ten chance; where they are too few for a paired test, by `as_good`."""
    right = [[r.text == s.text for s, r in zip(samples, readings, strict=True)] for readings in (own, others)]
    if len(samples) < FEW:
        theirs = scores_of(samples, others)
        return not as_good(scores_of(samples, own), (theirs.exact, -theirs.character_error_rate))
    return sum(right[0]) < sum(right[1]) and mcnemar(right[0], right[1], mid=True) < BEYOND_CHANCE


def rank(run: Run, pupil: Path) -> tuple[float, float]:
    """How many of all labelled pictures a pupil and its folds' read right out of training, and how likely they held the
    labels, which breaks ties."""
    done = run.ledger[f"round {number_of(pupil)}"]
    return done["held_out"]["pupil"]["exact"], -done["nats"][0]
