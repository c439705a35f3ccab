"""Which method's pictures help: the same reader, trained with the same compute on the same labels, plus as many made
pictures of each method, several seeds, read on the same test pictures."""

from __future__ import annotations

import shutil
import time
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import torch
from pydantic import Field

from augment.fidelity import doubts
from augment.likeness import coverage, features_of, frechet
from augment.method import Request
from augment.methods import load_class
from augment.synthesize import random_texts, requests_for_sources
from pipelines.ledger import Ledger, locked
from pipelines.run import Judges, Run, RunSettings, fitted, make_and_judge, open_run, prepare, read_some
from recognizer.charset import Charset
from recognizer.errors import UserError
from recognizer.progress import Alone, say
from recognizer.readings import Difference, paired_difference, wilson
from recognizer.samples import Manifest, Sample, read_manifest, write_folder
from recognizer.training.side_by_side import Training, train_side_by_side

NONE = "none"  # the control: real pictures alone
ATTEMPTS = 4  # to make as many pictures as are asked for, where many are refused
HOPELESS = 0.1  # a method of whose pictures fewer are kept is asked for no more


class CompareSettings(RunSettings):
    """Everything that `practice compare` can be told."""

    methods: tuple[str, ...] = (NONE, "classical", "splice")
    validation_share: float = Field(0.1, gt=0, lt=1)
    folds: int = Field(2, ge=2, le=20)
    made: float = Field(1.0, gt=0)  # pictures of each method that are kept, for each training picture
    seeds: int = Field(3, ge=1, le=50)
    fold_case: bool = False  # count a reading as right whatever its case


def compare(settings: CompareSettings, out: Path) -> Ledger:
    """Compare into the run folder `out`, or go on where it was; gives the ledger of the finished run.

    Raises:
        UserError: settings or data that do not fit; everything so far is kept.
        Stopped: Ctrl-C; give the same command again to go on.
    """
    if settings.test is None:
        raise UserError("say what to compare on: --test DIR")
    if NONE not in settings.methods or len(set(settings.methods)) < max(2, len(settings.methods)):
        raise UserError(f"methods: {NONE} and at least one other, each once")
    for name in settings.methods:
        if name != NONE:
            load_class(name)
    open_run(settings, out)
    with locked(out):
        ledger = Ledger(out / "ledger.jsonl")
        run = prepare(settings, out, ledger)
        torch.set_num_threads(run.jobs)
        trainings = {s: _training(run, NONE, s) for s in range(settings.seeds)}
        say(Alone(), f"training without made pictures on {len(run.train)}, and {settings.folds} readers out of fold")
        train_side_by_side([*trainings.values(), *run.fold_trainings()], run.jobs, NONE)
        judges = None
        for name in settings.methods:
            if name != NONE and f"made {name}" not in ledger:
                judges = judges or Judges.of(run, [t.out for t in run.fold_trainings()])
                make_pictures(run, settings, name, judges)
        others = [(name, s) for name in settings.methods if name != NONE for s in range(settings.seeds)]
        train_side_by_side([_training(run, name, s) for name, s in others], run.jobs, "with made pictures")
        test = read_manifest(settings.test, settings.label_pattern).samples
        for name in settings.methods:
            for s in range(settings.seeds):
                if f"read {name} {s}" not in ledger:
                    readings = read_some(_training(run, name, s).out, test)
                    ledger.record(f"read {name} {s}", readings={k: r.text for k, r in readings.items()})
        (out / "table.md").write_text(table(settings, ledger, test), encoding="utf-8")
    return ledger


def _training(run: Run, name: str, seed: int) -> Training:
    made = [] if name == NONE else [str(_folder(run, name) / "kept")]
    return run.training(
        _folder(run, name) / f"seed-{seed}", run.out / "data" / "train", run.settings.seed + seed,
        with_synthetic=made, synthetic_share=run.settings.made_share,
    )  # fmt: skip


def _folder(run: Run, name: str) -> Path:
    return run.out / name.replace(":", "-")


def make_pictures(run: Run, settings: CompareSettings, name: str, judges: Judges) -> None:
    """Make one method's pictures until enough are kept, or `ATTEMPTS` are made; the ledger says what came of it."""
    began, folder, wanted = time.monotonic(), _folder(run, name), max(1, round(settings.made * len(run.train)))
    own, known = fitted(run, name, _folder(run, NONE) / "seed-0")
    shutil.rmtree(folder / "made", ignore_errors=True)
    shutil.rmtree(folder / "kept", ignore_errors=True)
    kept: list[Sample] = []
    made: list[Sample] = []
    refused: Counter[str] = Counter()
    right = seconds = 0.0
    for attempt in range(ATTEMPTS):
        share = len(kept) / len(made) if made else 0.8
        count = min(round((wanted - len(kept)) / share) + 4, 2 * wanted)
        asked = _requests(run, name, count, settings.seed + 10_000_000 * (attempt + 1), known)
        judged, facts = make_and_judge(run, name, own, asked, folder / "made" / str(attempt), judges)
        drawn = read_manifest(folder / "made" / str(attempt) / name)
        made += [Sample(f"{attempt}/{s.name}", s.text, s.path, meta=s.meta) for s in drawn]
        kept += [Sample(f"{attempt}/{s.name}", s.text, s.path, meta=s.meta) for s in judged.kept]
        refused.update(facts["refused"])
        right, seconds = right + facts["read_right"] * facts["asked"], seconds + facts["seconds"]
        if len(kept) >= wanted or len(kept) < HOPELESS * len(made):
            break
    if not kept:
        raise UserError(f"{name}: none of {len(made)} pictures was kept; look at {folder / 'made'}")
    kept = kept[:wanted]
    write_folder(kept, folder / "kept")
    never = sorted({c for s in run.train for c in s.text} - {c for s in kept for c in s.text})
    # in the eyes of a reader, at equal numbers; what another half of the real ones gives is the least to hope for
    real, looks = (features_of(judges.readers[0], own) for own in (judges.samples, made[: len(run.train)]))
    half = min(len(real) // 2, len(looks))
    run.ledger.record(
        f"made {name}", asked=len(made), kept=len(kept), refused=dict(refused), read_right=right / len(made),
        a_second=len(made) / max(seconds, 1e-9), never_seen="".join(never), coverage=coverage(real, looks),
        frechet=frechet(real[:half], looks[:half]), frechet_real=frechet(real[:half], real[half : 2 * half]),
        seconds=time.monotonic() - began,
    )  # fmt: skip
    refusals = sum(refused.values())
    say(Alone(), f"  {name}: {len(kept)} kept, {refusals} of {len(made)} refused")
    for line in doubts({name: len(made) - refusals}, {name: len(made)}):
        say(Alone(), f"  {line}")


def _requests(run: Run, name: str, count: int, seed: int, known: str | None) -> list[Request]:
    """Requests for one method: real pictures in turn under their own text, or random texts of the labels' characters
    and lengths, at the size of a real picture."""
    manifest = Manifest(run.train, source=str(run.out / "data" / "train"))
    varied = requests_for_sources(manifest, count, seed)
    cls = load_class(name)
    if cls.needs_source:
        return varied
    held = {c for s in run.train for c in s.text}
    characters = Charset.of(["".join(sorted(held if known is None else held & set(known)))])
    texts = random_texts(characters, [len(s.text) for s in run.train], count, seed)
    drawn = [Request(t, r.seed, r.width, r.height) for t, r in zip(texts, varied, strict=True)]
    if not getattr(cls, "takes_source", False):
        return drawn
    return [varied[i] if i % 2 else drawn[i] for i in range(count)]  # half from real pictures, half from nothing


def rights(settings: CompareSettings, ledger: Ledger, test: tuple[Sample, ...]) -> dict[str, Any]:
    """Which test pictures each method's readers read right, (seeds, pictures) of booleans."""
    steps = {(name, s): ledger[f"read {name} {s}"]["readings"] for name in settings.methods
             for s in range(settings.seeds)}  # fmt: skip
    usable = [s for s in test if all(s.name in own for own in steps.values())]
    if not usable:
        raise UserError(f"{settings.test}: no sample is left to compare on")

    def same(a: str, b: str) -> bool:
        return a.casefold() == b.casefold() if settings.fold_case else a == b

    return {
        name: np.array([[same(s.text, steps[name, k][s.name]) for s in usable] for k in range(settings.seeds)])
        for name in settings.methods
    }


def table(settings: CompareSettings, ledger: Ledger, test: tuple[Sample, ...]) -> str:
    """The comparison, as a table of Markdown."""
    right = rights(settings, ledger, test)
    against = [NONE] + ["classical"] * ("classical" in right)
    n = right[NONE].shape[1]
    lines = [
        f"{ledger['prepare']['train']} labels to train on, {n} test pictures, {settings.seeds} seeds"
        + (", ignoring case" if settings.fold_case else ""),
        "",
        "| method | read right, by seed | mean, 95 % interval | "
        + " | ".join(f"against {name}, 95 % interval | p" for name in against) + " |",
        "|---" * (3 + 2 * len(against)) + "|",
    ]  # fmt: skip
    for name, own in right.items():
        low, high = wilson(round(own.mean() * n), n)
        cells = [f"{name}", ", ".join(f"{x:.3f}" for x in own.mean(1)), f"{own.mean():.3f} ({low:.3f} to {high:.3f})"]
        for other in against:
            cells += ["", ""] if name == other else _difference(paired_difference(right[other], own))
        lines.append("| " + " | ".join(cells) + " |")
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
                f"| {name} | {m['asked']} | {m['kept']} | {m['read_right']:.3f} | {m['refused'].get('too hard', 0)} "
                f"| {m['refused'].get('near copy', 0)} | {m['frechet']:.3g} (real {m['frechet_real']:.3g}) "
                f"| {m['coverage']:.2f} | {m['a_second']:.0f} | {m['never_seen'] or 'none'} |"
            )
    return "\n".join(lines) + "\n"


def _difference(d: Difference) -> list[str]:
    return [f"{d.mean:+.3f} ({d.low:+.3f} to {d.high:+.3f})", f"{d.p:.3f}" if d.p >= 0.001 else "< .001"]
