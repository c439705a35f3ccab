"""Which method's pictures help: the same reader, trained with the same compute on the same labels, plus as many made
pictures of each method, several seeds, read on the same test pictures."""

from __future__ import annotations

import math
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
from augment.method import Request, sources_of
from augment.synthesize import answered_by, random_texts, requests_for_sources
from pipelines.ledger import Ledger, locked
from pipelines.run import (
    Judges,
    Run,
    RunSettings,
    check_methods,
    fitted,
    make_and_judge,
    open_run,
    prepare,
    read,
)
from recognizer.charset import Charset
from recognizer.errors import UserError
from recognizer.images import MAX_PIXELS, Frame
from recognizer.progress import Alone, say
from recognizer.readings import Difference, paired_difference, wilson
from recognizer.samples import Manifest, Sample, problem_table, read_manifest, write_folder
from recognizer.training.batches import Pictures
from recognizer.training.side_by_side import Training, train_side_by_side

NONE = "none"  # the control: real pictures alone
ATTEMPTS = 4  # to make as many pictures as are asked for, where many are refused
ENOUGH = 0.9  # a method with a smaller share of the pictures that are asked for is not compared
MOST_LOOKED_AT = 2000  # pictures whose looks are compared
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
        trainings = {s: _training(run, NONE, s) for s in range(settings.seeds)}
        say(Alone(), f"training without made pictures on {len(run.train)}, and {settings.folds} readers out of fold")
        train_side_by_side([*trainings.values(), *run.fold_trainings()], run.jobs, NONE)
        judges = None
        for name in settings.methods:
            if name != NONE and f"made {name}" not in ledger:
                judges = judges or Judges.of(run, [t.out for t in run.fold_trainings()])
                make_pictures(run, settings, name, judges)
        trained = [(name, s) for name in compared(settings, ledger) for s in range(settings.seeds)]
        train_side_by_side([_training(run, name, s) for name, s in trained], run.jobs, "with made pictures")
        for name, s in trained:
            if f"read {name} {s}" not in ledger:
                readings = read(_training(run, name, s).out, test)
                texts = {t.name: r.text for t, r in zip(test, readings, strict=True)}
                ledger.record(f"read {name} {s}", readings=texts)
        (out / "table.md").write_text(table(settings, ledger), encoding="utf-8")
    return ledger


def test_samples(settings: CompareSettings, ledger: Ledger) -> tuple[Sample, ...]:
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


def _training(run: Run, name: str, seed: int) -> Training:
    made = [] if name == NONE else [str(_folder(run, name) / "kept")]
    return run.training(
        _folder(run, name) / f"seed-{seed}", run.out / "data" / "train", run.settings.seed + seed,
        with_synthetic=made, synthetic_share=run.settings.made_share,
        patience=1_000_000,  # none stops early: equal compute
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
        asked = _requests(run, name, own, count, settings.seed + 10_000_000 * (attempt + 1), known)
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
    passed, kept = len(kept), kept[:wanted]
    write_folder(kept, folder / "kept")
    never = sorted({c for s in run.train for c in s.text} - {c for s in kept for c in s.text})
    looks = likeness(run, settings, made, judges.readers[0])
    run.ledger.record(
        f"made {name}", asked=len(made), passed=passed, kept=len(kept), wanted=wanted, refused=dict(refused),
        read_right=right / len(made), a_second=len(made) / max(seconds, 1e-9), never_seen="".join(never), **looks,
        seconds=time.monotonic() - began,
    )  # fmt: skip
    refusals = sum(refused.values())
    say(Alone(), f"  {name}: {len(kept)} kept, {refusals} of {len(made)} refused")
    for line in doubts({name: len(made) - refusals}, {name: len(made)}):
        say(Alone(), f"  {line}")


def likeness(run: Run, settings: CompareSettings, made: list[Sample], reader: Path) -> dict[str, float]:
    """How like real pictures made ones are, in the eyes of a reader that was not trained on those: half of its own fold
    against as many made of other pictures, and against the other half, which is the least to hope for."""
    rng = np.random.default_rng(settings.seed)
    fold = [run.folds[0][i] for i in rng.permutation(len(run.folds[0]))]
    half = min(len(fold) // 2, MOST_LOOKED_AT)
    names = {s.name for s in fold[:half]}
    others = [s for s in made if s.meta.get("source") not in names]
    others = [others[i] for i in rng.permutation(len(others))[:half]]
    real, rest, looks = (features_of(reader, part) for part in (fold[:half], fold[half : 2 * half], others))
    if min(len(real), len(rest), len(looks)) < 2:
        return {"coverage": math.nan, "frechet": math.nan, "frechet_real": math.nan}
    return {
        "coverage": coverage(real, looks), "frechet": frechet(real, looks), "frechet_real": frechet(real, rest),
    }  # fmt: skip


def _requests(run: Run, name: str, settings: dict[str, Any], count: int, seed: int, known: str | None) -> list[Request]:
    """Requests for one method: real pictures in turn under their own text, or random texts of the labels' characters,
    each of the length and at the size of one real picture."""
    manifest = Manifest(run.train, source=str(run.out / "data" / "train"))
    varied = requests_for_sources(manifest, count, seed)
    held = {c for s in run.train for c in s.text}
    characters = Charset.of(["".join(sorted(held if known is None else held & set(known)))])
    drawn = [Request(random_texts(characters, [len(r.text)], 1, r.seed)[0], r.seed, r.width, r.height) for r in varied]
    return answered_by(name, settings, varied, drawn, sources_of(manifest))


def rights(settings: CompareSettings, ledger: Ledger) -> dict[str, Any]:
    """Which test pictures each method's readers read right, (seeds, pictures) of booleans."""

    def same(a: str, b: str) -> bool:
        return a.casefold() == b.casefold() if settings.fold_case else a == b

    texts = ledger["test"]["texts"]
    read_by = {(n, k): ledger[f"read {n} {k}"]["readings"] for n in compared(settings, ledger)
               for k in range(settings.seeds)}  # fmt: skip
    return {
        name: np.array([[same(t, read_by[name, k][s]) for s, t in texts.items()] for k in range(settings.seeds)])
        for name in compared(settings, ledger)
    }


def table(settings: CompareSettings, ledger: Ledger) -> str:
    """The comparison, as a table of Markdown."""
    right = rights(settings, ledger)
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


def _difference(d: Difference) -> list[str]:
    return [f"{d.mean:+.3f} ({d.low:+.3f} to {d.high:+.3f})", f"{d.p:.3f}" if d.p >= 0.001 else "< .001"]
