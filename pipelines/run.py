"""What practice and comparisons have in common: settings, a run's folder, its parts of the data, and made pictures that
are judged by readers that did not train on their source."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Collection, Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, TypeVar, cast

import torch
from accelerate import Accelerator
from pydantic import Field, model_validator

from augment.fidelity import EASIEST, Band, Judged, band_for, band_of, band_of_drawn, judge, near_copies
from augment.method import Learner, Request, Sources
from augment.methods import METHODS, create, load_class
from augment.mining import hardness
from augment.synthesize import synthesize
from pipelines.ledger import Ledger, locked
from pipelines.portfolio import UNLABELLED
from recognizer.charset import Charset, tell_newcomers
from recognizer.data.label import can_be_reviewed
from recognizer.deploy.export import export
from recognizer.errors import MOST_THREADS, MachineError, Stopped, UserError, killed_by, quoted, tells_of_the_machine
from recognizer.images import MAX_PIXELS, Frame
from recognizer.progress import CONSOLE, Alone, Bar, say
from recognizer.readings import Reading, Scores
from recognizer.samples import (
    Manifest,
    Sample,
    content_hash,
    merge,
    problem_table,
    read_manifest,
    shared_pictures,
    split_apart,
    without_copies,
    write_folder,
)
from recognizer.settings import Settings, load, make, to_toml
from recognizer.training.batches import Pictures
from recognizer.training.checkpoint import charset_of, find_start, weights_hash, write_whole
from recognizer.training.evaluate import default_case, evaluate
from recognizer.training.folds import folds_of, tell_learned
from recognizer.training.pseudo import without_labels
from recognizer.training.side_by_side import Training, die_with_parent
from recognizer.training.train import TrainSettings, provenance, tell_leaks


class DataSettings(Settings):
    """What every run over labelled pictures can be told."""

    data: tuple[str, ...]
    test: str | None = None  # read once, at the end
    label_pattern: str | None = None
    limit: int | None = Field(None, ge=8)  # use the first so many samples of data
    charset: str | None = None  # a name in charset.NAMED, or characters to read; else those of `checkpoint.charset_of`
    start: str = "default"
    pictures: int | None = Field(None, ge=1)  # seen by a training
    jobs: int = Field(0, ge=0, le=MOST_THREADS)  # trainings beside each other; 0 is one a processor, on a GPU one
    seed: int = Field(0, ge=0, lt=2**31)
    reader: dict[str, Any] = Field({})  # further settings of `recognizer train`


class RunSettings(DataSettings):
    """What runs that make pictures can be told besides."""

    validation: str | None = None  # else a part of data
    validation_share: float | None = Field(None, gt=0, lt=1)  # else that of `share_to_validate`
    methods: tuple[str, ...] = Field(("captcha", "classical"), min_length=1)
    unlabelled: tuple[str, ...] = ()  # folders of pictures without labels; they join the methods as `UNLABELLED`
    # of readers together, to take what they read for a label; less, where a character has not its share so
    unlabelled_confidence: float = Field(0.9, gt=0, lt=1)
    unlabelled_fewest: float = Field(0.2, ge=0, lt=1)  # share that is taken, if less sure; after a round, twice that
    folds: int = Field(3, ge=2, le=20)
    # share of real pictures than which made ones must not be easier to a reader out of fold
    easiest: float = Field(EASIEST, ge=0, lt=1)
    made_share: float = Field(0.25, gt=0, le=0.5)  # of each batch
    method: dict[str, dict[str, Any]] = Field({})  # settings of `augment synthesize`, by method
    fit: dict[str, dict[str, Any]] = Field({})  # settings of `augment fit`, by method

    @model_validator(mode="before")
    @classmethod
    def _join(cls, values: Any) -> Any:
        if isinstance(values, dict) and values.get("unlabelled"):
            methods = values.get("methods", cls.model_fields["methods"].default)
            if isinstance(methods, list | tuple) and UNLABELLED not in methods:
                return {**values, "methods": [*methods, UNLABELLED]}
        return values


S = TypeVar("S", bound=DataSettings)
TOLD_EVERY = 60.0  # seconds between lines of a fit's progress, off the terminal
NEVER = 1_000_000  # validations to wait for a better one: no training stops early where compute must be equal
AT_FIRST = {"settings.toml", "settings.toml.tmp", "lock"}  # of a run that has done nothing
# settings of `recognizer train` that a run gives its readers itself, and how it is told
OWN = {
    "data": "--data", "validation": "--validation", "limit": "--limit", "label_pattern": "--label-pattern",
    "start": "--from", "seed": "--seed", "with_synthetic": "--methods", "synthetic_share": "--set made_share=...",
    "pictures": "--pictures", "charset": "--charset",
}  # fmt: skip


@dataclass(frozen=True)
class Run:
    """A run's folder and what is fixed from its start on."""

    settings: RunSettings
    out: Path
    ledger: Ledger
    train: tuple[Sample, ...]
    validation: tuple[Sample, ...]
    folds: tuple[tuple[Sample, ...], ...]

    @property
    def jobs(self) -> int:
        return jobs_of(self.settings)

    @property
    def known_as(self) -> dict[str, str]:
        """The letters that pictures show in another case than their labels have, as far as the ledger tells."""
        return dict(self.ledger["prepare"].get("known_as", {}))

    def training(self, out: Path, data: Path, seed: int, **changed: Any) -> Training:
        """A training of this run, from the run's start unless told otherwise."""
        s = self.settings
        values = {
            "threads": 1, "tracker": "none", "validation_share": 0.1, "charset": self.ledger["prepare"]["charset"],
            "start": s.start, "pictures": s.pictures, **s.reader, "data": [str(data)],
            "validation": str(self.out / "data" / "validation"), "seed": seed,
        }  # fmt: skip
        # one frame for all, whichever part a reader does not see: their weights are averaged
        values["frame"] = {"longest": self.ledger["prepare"].get("longest", 0), **values.get("frame", {})}
        return Training(make(TrainSettings, values | changed, "reader settings"), out)

    @property
    def files(self) -> dict[str, str]:
        """The user's own files of the training pictures and those that validate among them, by a sample's name."""
        listed = self.out / "data" / "files.json"
        return dict(json.loads(listed.read_text())) if listed.exists() else {}

    @property
    def trusted(self) -> tuple[Sample, ...]:
        """The training pictures without those whose labels practice found likely wrong, in any round."""
        mined = [entry for entry in self.ledger if entry["step"].endswith(" mine")]
        doubted = {name for entry in mined for name in entry["set_aside"]}
        return tuple(s for s in self.train if s.name not in doubted) or self.train

    def fold_trainings(self) -> list[Training]:
        """The trainings of each fold's reader, on the other folds."""
        return [
            self.training(self.out / "folds" / f"fold-{k}", self.out / "data" / f"fold-{k}", self.settings.seed)
            for k in range(len(self.folds))
        ]


def jobs_of(settings: DataSettings) -> int:
    """Trainings beside each other."""
    if settings.jobs or torch.cuda.is_available():
        return settings.jobs or 1
    # the processors that this process may use, where the system tells
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def reader_settings(settings: DataSettings) -> TrainSettings:
    """Those of `recognizer train` that a run gives its readers."""
    return make(TrainSettings, {**settings.reader, "data": settings.data}, "reader settings")


def check_kept(settings: DataSettings, held: Sequence[Sample]) -> None:
    """See to it that what a run's readers are shown again (`reader.keep`) are none of the pictures `held` that some of
    them must not have seen.

    Raises:
        UserError: it holds some of these.
    """
    folders = reader_settings(settings).keep
    if not folders:
        return
    kept = merge([read_manifest(path) for path in folders])  # without a pattern, as its trainings do
    if shared := shared_pictures(held, kept.samples):
        raise UserError(
            f"reader.keep: {len(shared)} of the run's own pictures are among those that are shown again, as "
            f"{shared[0].name}, and no reader could be judged by them: take them out of there"
        )


def frame_for(settings: DataSettings, samples: Iterable[Sample]) -> Frame:
    """The frame in which a run sees whether samples can be used, with the width that it gives its readers."""
    longest = max((len(s.text) for s in samples), default=1)
    return Frame.for_texts(longest, max_width=reader_settings(settings).frame.max_width)


def check_methods(settings: RunSettings, names: Sequence[str]) -> None:
    """See to it, before anything is trained, that methods can be made with their settings.

    Raises:
        UserError: no such method, or a setting that it refuses.
    """
    if UNLABELLED in names and not settings.unlabelled:
        raise UserError(f"methods: {UNLABELLED} needs pictures without labels: --unlabelled DIR")
    for key, name in [("method", name) for name in settings.method] + [("fit", name) for name in settings.fit]:
        if name not in {*METHODS, *names}:
            raise UserError(f"{key}.{name}: no such method; there are {', '.join(METHODS)}")
        if name == UNLABELLED:
            raise UserError(f"{key}.{name}: it has no settings of its own; see unlabelled_confidence and found")
        if key == "fit" and not hasattr(load_class(name), "fit"):
            raise UserError(f"fit.{name}: {name} learns nothing; its settings are method.{name}")
    for name in [name for name in names if name != UNLABELLED]:
        cls: Any = load_class(name)
        values = settings.method.get(name, {})
        if hasattr(cls, "fit"):
            make(cls.FitSettings, settings.fit.get(name, {}), f"settings of fit --method {name}")
            make(cls.Settings, values, f"settings of {name}")
        else:
            create(name, values)


def open_run(settings: S, out: Path, *free: str) -> None:
    """Make the run folder, or see that the one to go on with was made with the same settings, but for `jobs` and those
    that are `free`. A run that ended before it had done anything may begin again with others. A folder is a run's where
    it has been locked as one: anybody may keep settings and data in one.

    Raises:
        UserError: other settings, a folder that is taken, or settings of `reader` that it cannot have.
    """
    kept, before = out / "settings.toml", None
    there = {path.name for path in out.iterdir()} if out.is_dir() else set()
    if kept.is_file() and "lock" in there and there - AT_FIRST:
        try:
            before = load(type(settings), kept, {})
        except UserError:
            raise UserError(f"{out} holds a run of another command or version: name a new folder") from None
        fixed = set(type(settings).model_fields) - {*free, "jobs"}
        if other := sorted(name for name in fixed if getattr(before, name) != getattr(settings, name)):
            raise UserError(
                f"{out} was begun with other settings ({', '.join(other)}; see {kept}): name a new folder, or "
                f"--resume {quoted(out)}"
            )
    elif out.exists() and (not out.is_dir() or there - AT_FIRST or (there and "lock" not in there)):
        raise UserError(f"{out} exists and is not empty: name a new folder")
    else:
        for name in settings.reader.keys() & OWN:
            raise UserError(f"reader.{name}: the run gives its readers that itself: {OWN[name]}")
        if unlabelled := [name for name in settings.reader if name.startswith("unlabelled")]:
            where = "the run's" if isinstance(settings, RunSettings) else "for recognizer train"
            raise UserError(f"reader.{unlabelled[0]}: pictures without labels are {where} --unlabelled")
        if "seeds" in settings.reader:
            raise UserError("reader.seeds: each reader of a run is one training; recognizer train --seeds makes means")
        reader_settings(settings).loss_name()
        charset_for(settings, ())
        out.mkdir(parents=True, exist_ok=True)
    if before != settings:
        with locked(out):
            write_whole(kept, to_toml(settings))


def resumed_settings(cls: type[S], out: Path, what: str) -> S:
    """The settings of a run, to go on with; `what` a run of that command is called.

    Raises:
        UserError: no run's folder.
    """
    if not (out / "settings.toml").is_file():
        raise UserError(f"{out} is no {what}: it has no settings.toml")
    with suppress(UserError):
        return load(cls, out / "settings.toml", {})
    raise UserError(f"{out} is no {what}: its settings.toml is another command's")


def charset_for(settings: DataSettings, samples: Sequence[Sample]) -> Charset:
    """The characters that a run's readers read: `checkpoint.charset_of`; something where nothing tells.

    Raises:
        UserError: an empty charset, or no weights.
    """
    start, _ = find_start(settings.start, settings.reader.get("size"))
    texts = [s.text for s in samples]
    if not texts and settings.charset is None:
        return Charset("0")
    return charset_of(texts, [start] if start else [], settings.charset)


def start_hash(settings: DataSettings) -> str | None:
    """SHA-256 of the weights to start from; None where it starts from nothing.

    Raises:
        UserError: no weights.
    """
    path, _ = find_start(settings.start, settings.reader.get("size"))
    return weights_hash(path) if path else None


def see_start(settings: DataSettings, ledger: Ledger) -> None:
    """See that the weights to start from are those with which the run began: its readers are compared.

    Raises:
        UserError: they are gone, or others.
    """
    now, known = start_hash(settings), ledger["prepare"]
    if known.get("start_sha256", now) != now:  # a run of before does not say
        raise UserError(
            f"the weights to start from ({settings.start}) are others than when the run began: put them back, or "
            "start a new run"
        )


def each_label_once(samples: Sequence[Sample]) -> list[Sample]:
    """Samples without copies of a picture with its label; told where there are any."""
    left = without_copies(samples)
    if copies := len(samples) - len(left):
        say(Alone(), f"{copies} of {len(samples)} labelled pictures are copies of others, and are left out")
    return left


def tell_copies(test: Sequence[Sample]) -> None:
    """Say how many pictures to test on are copies of others."""
    if copies := len(test) - len(without_copies(test)):
        told = f"{copies} of {len(test)} pictures to test on are copies of others"
        say(Alone(), f"{told}: intervals and p take each for one more, and are too sure")


def prepare(settings: RunSettings, out: Path, ledger: Ledger) -> Run:
    """Copy train, validation and each fold's training part into the run, so that it depends on nothing outside but test
    pictures and those without labels, which it lists."""
    data, began = out / "data", time.monotonic()
    if "prepare" not in ledger:
        whole = merge([read_manifest(path, settings.label_pattern) for path in settings.data])
        if settings.limit:
            whole = whole.first(settings.limit)
        held = read_manifest(settings.validation, settings.label_pattern) if settings.validation else Manifest(())
        test = read_manifest(settings.test, settings.label_pattern) if settings.test else Manifest(())
        charset = charset_for(settings, (*whole, *held))
        with Bar(Alone(), "opening", len(whole) + len(held) + len(test)) as bar:
            frame = frame_for(settings, (*whole, *held))
            usable, usable_held, usable_test = (
                Pictures(m.samples, charset, frame, MAX_PIXELS, bar.advance) for m in (whole, held, test)
            )
        problems = [p for m in (whole, usable, held, usable_held, test, usable_test) for p in m.problems]
        say(Alone(), problem_table(problems, sum(len(m) + len(m.problems) for m in (whole, held, test))))
        if settings.test and not len(usable_test):
            raise UserError(f"{settings.test}: no sample is left to test on")
        labelled = each_label_once(usable.samples)
        if settings.validation:
            parts = [labelled, each_label_once(usable_held.samples)]
        else:
            share = settings.validation_share or share_to_validate(len(labelled))
            parts = split_apart(labelled, (1 - share, share), settings.seed)
        if len(parts[0]) < 2 * settings.folds or not parts[1]:
            raise UserError(
                f"{len(parts[0])} samples to train and {len(parts[1])} to validate are too few for "
                f"{settings.folds} folds: they need {2 * settings.folds} and 1"
            )
        check_kept(settings, [*parts[0], *parts[1], *test])
        leaks = {
            "test": tell_leaks(test.samples, [*parts[0], *parts[1]], "test on", Alone()),
            "validation": tell_leaks(parts[1], parts[0], "validate on", Alone()),
        }
        tell_copies(test.samples)
        tell_learned(settings.start, [*parts[0], *parts[1], *test.samples])
        if settings.charset is None:
            say(Alone(), tell_newcomers([s.text for part in parts for s in part], charset))
        loose = []
        if settings.unlabelled:
            loose = without_labels(settings.unlabelled, [*whole, *held, *test], Alone())
        shutil.rmtree(data, ignore_errors=True)
        for name, part in zip(("train", "validation"), parts, strict=True):
            write_folder(part, data / name)
        own = parts[0] if settings.validation else [*parts[0], *parts[1]]  # else other files may have the same names
        files = {s.name: str(s.path.resolve()) for s in own if s.size is None and s.key is None}
        (data / "files.json").write_text(json.dumps(files))
        train = read_manifest(data / "train").samples
        folds = folds_of(train, settings.folds, settings.seed)
        for k in range(settings.folds):
            write_folder([s for j, fold in enumerate(folds) if j != k for s in fold], data / f"fold-{k}")
        if loose:
            (data / "unlabelled.json").write_text(json.dumps([str(path.resolve()) for path in loose]))
        ledger.record(
            "prepare", train=len(parts[0]), validation=len(parts[1]), test=len(test), charset=charset.characters,
            longest=max(len(s.text) for part in parts for s in part), test_sha256=content_hash(test.samples),
            start_sha256=start_hash(settings), unlabelled=len(loose), problems=len(problems), leaks=leaks,
            known_as=default_case(parts[0]), reviewable=can_be_reviewed(settings.data, settings.label_pattern),
            provenance=provenance(), seconds=time.monotonic() - began,
        )  # fmt: skip
    train = read_manifest(data / "train").samples
    return Run(
        settings, out, ledger, train, read_manifest(data / "validation").samples,
        tuple(tuple(fold) for fold in folds_of(train, settings.folds, settings.seed)),
    )  # fmt: skip


def share_to_validate(labels: int) -> float:
    """A tenth; of few labels about ten, but no more than a quarter: no reader learns one that validates, and rounds are
    judged by all labels, out of fold."""
    return min(max(0.1, 10 / max(labels, 1)), 0.25)


def write_trusted(run: Run, suspects: Collection[str]) -> None:
    """Set the samples aside whose labels are likely wrong, by name: methods that learn do not learn them."""
    shutil.rmtree(run.out / "data" / "trusted", ignore_errors=True)
    if suspects:
        write_folder([s for s in run.train if s.name not in suspects], run.out / "data" / "trusted")


def fitted(run: Run, name: str, reader: Path) -> tuple[dict[str, Any], str | None]:
    """The settings of a method, and the characters that it knows, where it learns. Then it has learned the training
    pictures first, those of `write_trusted`, with a reader's eyes."""
    own = run.settings.method.get(name, {})
    if not hasattr(load_class(name), "fit"):
        return own, None
    folder, step = run.out / "fitted" / name.replace(":", "-"), f"fit {name}"
    if step not in run.ledger:
        began = time.monotonic()
        if not (reader / "reader.onnx").exists():
            export(reader)
        trusted = run.out / "data" / "trusted"
        data = (trusted if trusted.exists() else run.out / "data" / "train").resolve()
        values = {"model": str(reader.resolve()), **run.settings.fit.get(name, {})}
        said = fit_into(folder, name, ["--data", str(data)], values)
        run.ledger.record(step, said=said, seconds=time.monotonic() - began)
        say(Alone(), f"  {name}: {said}")
    settings = {**own, "fitted": str(folder)}
    return settings, cast("Learner", create(name, settings)).known.characters


def fit_into(folder: Path, name: str, words: Sequence[str], values: Mapping[str, Any]) -> str:
    """Have `augment fit` learn a method, or go on where it was; gives what it said of it.

    Raises:
        UserError: it cannot.
        MachineError: for want of room or memory.
        Stopped: by Ctrl-C or another signal.
    """
    # in a process of its own: this one has settled what it computes in, and on
    command = [sys.executable, "-m", "augment.cli", "fit"]
    if learns_there(folder):
        command += ["--resume", str(folder)]
    else:
        shutil.rmtree(folder, ignore_errors=True)
        command += ["--method", name, *words, "--out", str(folder)]
        command += [w for k, v in values.items() for w in ("--set", f"{k}={json.dumps(v)}")]
    code, found, told = watched(command, f"fitting {name}", folder / "metrics.jsonl")
    if -code in (signal.SIGKILL, signal.SIGBUS):
        raise MachineError(f"fitting {name}: {killed_by(code)}; the same command goes on")
    if code == 130:  # somebody has stopped it, or a system short of memory
        raise Stopped(f"fitting {name} was stopped and is saved; give the same command again to go on")
    if code:
        lines = told.strip().splitlines() or [killed_by(code) if code < 0 else "it said nothing"]
        last = lines[-1].removeprefix("error: ")
        raise (MachineError if tells_of_the_machine(last) else UserError)(f"{name} cannot be fitted: {last}")
    return found.splitlines()[0].removeprefix(f"{folder}: ")


def learns_there(folder: Path) -> bool:
    """Whether a fit was begun in a folder, of pictures that still lie where they lay: its run may have been moved."""
    try:
        asked = json.loads((folder / "asked.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return False
    return all(Path(path).exists() for path in (*asked["data"], *(asked["settings"].get("unlabelled") or ())))


def watched(command: Sequence[str], what: str, metrics: Path) -> tuple[int, str, str]:
    """Run a command with a progress bar of the steps that it writes to `metrics`; off the terminal a line a minute.
    Gives its exit status and what it printed on standard output and standard error."""
    told, row = time.monotonic(), {"step": 0, "steps": 0}
    with tempfile.TemporaryFile("w+") as out, tempfile.TemporaryFile("w+") as err, Bar(Alone(), what, 0) as bar:
        process = subprocess.Popen(
            command, stdout=out, stderr=err, preexec_fn=partial(die_with_parent, os.getpid()),
            start_new_session=True,  # Ctrl-C reaches this process alone, which passes it on once
        )  # fmt: skip
        try:
            while process.poll() is None:
                time.sleep(0.25)
                with suppress(OSError, ValueError, IndexError):  # nothing yet, or a line that is being written
                    row = json.loads(metrics.read_text().splitlines()[-1])
                    bar.reach(row["step"], row["steps"])
                if not CONSOLE.is_terminal and time.monotonic() - told > TOLD_EVERY and row["steps"]:
                    told = time.monotonic()
                    say(Alone(), f"  {what}: step {row['step']:,} of {row['steps']:,}")
        finally:
            if process.poll() is None:
                process.send_signal(signal.SIGINT)
                process.wait()
        out.seek(0)
        err.seek(0)
        return process.returncode, out.read(), err.read()


@dataclass(frozen=True)
class Judges:
    """Readers that each did not train on one fold, and what they read in it."""

    readers: tuple[Path, ...]
    samples: tuple[Sample, ...]  # of all folds
    readings: tuple[Reading, ...]
    bands: tuple[Band, ...]
    drawn: Band  # for pictures whose text a method drew or changed
    fold_of: Mapping[str, int]  # by a sample's name
    real: Mapping[str, tuple[str, float]]  # text and hardness, by a sample's name

    @classmethod
    def of(cls, run: Run, readers: Sequence[Path]) -> Judges:
        per_fold = [read(reader, fold) for reader, fold in zip(readers, run.folds, strict=True)]
        samples, readings = [s for fold in run.folds for s in fold], [r for own in per_fold for r in own]
        return cls(
            tuple(readers), tuple(samples), tuple(readings),
            tuple(band_of(fold, own, run.settings.easiest) for fold, own in zip(run.folds, per_fold, strict=True)),
            band_of_drawn(samples, readings, run.settings.easiest),
            {s.name: k for k, fold in enumerate(run.folds) for s in fold},
            {s.name: (s.text, hardness(r, s.text)) for s, r in zip(samples, readings, strict=True)},
        )  # fmt: skip

    def read(self, made: Sequence[Sample]) -> list[list[Reading]]:
        """What is read in made pictures by those judges that did not train on their source: of a picture without one,
        by all."""
        fold = [self.fold_of.get(s.meta["source"] or "") for s in made]
        readings: list[list[Reading]] = [[] for _ in made]
        for k, reader in enumerate(self.readers):
            own = [i for i in range(len(made)) if fold[i] in (k, None)]
            for i, reading in zip(own, read(reader, [made[i] for i in own]), strict=True):
                readings[i].append(reading)
        return readings

    def band(self, made: Sample) -> Band:
        """The hardness of a made picture that is kept."""
        varied = self.bands[self.fold_of.get(made.meta["source"] or "", 0)]
        return band_for(made, self.real, varied, self.drawn)


def make_and_judge(
    run: Run, name: str, settings: dict[str, Any], asked: Sequence[Request], made: Path, judges: Judges
) -> tuple[Judged, dict[str, Any]]:
    """Make one method's pictures into `made/name` and judge them."""
    began = time.monotonic()
    sources = Sources(Manifest(run.train, source=str(run.out / "data" / "train")))
    if not answers(made / name, asked):
        shutil.rmtree(made / name, ignore_errors=True)
        with Bar(Alone(), f"making with {name}", len(asked)) as bar:
            synthesize(name, settings, asked, made / name, sources, bar.advance)
    seconds = time.monotonic() - began
    pictures = read_manifest(made / name).samples
    pictures = tuple(Sample(f"{name}/{s.name}", s.text, s.path, meta=s.meta) for s in pictures)
    readings = judges.read(pictures)
    judged = judge(pictures, readings, [judges.band(s) for s in pictures], near_copies(pictures, run.train))
    right = [sum(r.text == s.text for r in own) / len(own) for s, own in zip(pictures, readings, strict=True)]
    return judged, {
        "asked": len(asked), "kept": len(judged.kept), "refused": dict(Counter(p.kind for p in judged.refused)),
        "read_right": sum(right) / len(right),
        "seconds": seconds,
    }  # fmt: skip


def answers(made: Path, asked: Sequence[Request]) -> bool:
    """Whether a folder holds the pictures of these requests, made before the run was killed."""
    if not (made / "metadata.jsonl").is_file():
        return False
    there = [(s.text, s.meta["seed"], s.meta["source"], s.meta.get("pair")) for s in read_manifest(made)]
    return there == [(r.text, r.seed, r.source, r.pair) for r in asked]


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


def in_words(scores: Scores) -> str:
    low, high = scores.exact_interval
    return f"exact match {scores.exact:.3f} ({low:.3f} to {high:.3f})"
