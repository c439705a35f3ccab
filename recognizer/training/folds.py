"""Readers out of fold: each trained without some parts of the samples, which it then reads without having seen them."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

from accelerate import Accelerator

from recognizer.errors import UserError
from recognizer.progress import Alone, say
from recognizer.readings import Reading
from recognizer.samples import (
    Problem,
    Sample,
    content_hash,
    read_manifest,
    shared_pictures,
    split_apart,
    write_folder,
)
from recognizer.settings import load, make
from recognizer.training.checkpoint import find_start, read_weights
from recognizer.training.evaluate import evaluate, no_device
from recognizer.training.side_by_side import Training, train_side_by_side
from recognizer.training.train import TrainSettings

MOST_STARTS = 20  # weights that started from others, and so on


def folds_of(samples: Sequence[Sample], folds: int, seed: int = 0) -> list[list[Sample]]:
    """Samples in `folds` parts alike in lengths and characters, equal pictures in one.

    Raises:
        UserError: fewer than 2 folds, or fewer samples than folds need.
    """
    if len(samples) < 4:
        raise UserError(f"{len(samples)} samples are too few to be read out of folds: label 4 at least")
    if not 2 <= folds <= len(samples) // 2:
        raise UserError(f"{len(samples)} samples cannot be read out of {folds} folds: give 2 to {len(samples) // 2}")
    return split_apart(samples, [1.0] * folds, seed)


def left_out(k: int, folds: int, apart: int) -> list[int]:
    """The parts that reader `k` does not learn: `apart` of them, so that so many readers read each part."""
    return sorted((k + j) % folds for j in range(apart))


def train_folds(
    settings: TrainSettings, parts: Sequence[Sequence[Sample]], out: Path, jobs: int, apart: int = 1
) -> list[Path]:
    """Train a reader for each part, into `out/fold-K`, without its parts `left_out`; gives the readers.

    Raises:
        UserError: readers are there already that were trained on other samples, or otherwise: they are not of these
            folds, and would read what they were trained on.
    """
    tell_learned(settings.start, [s for part in parts for s in part])
    trainings, out = [], out.resolve()  # however it is spelled the next time
    for k in range(len(parts)):
        data, without = out / f"data-{k}", left_out(k, len(parts), apart)
        others = [s for j, part in enumerate(parts) if j not in without for s in part]
        if not data.exists():
            write_folder(others, data)
        elif content_hash(read_manifest(data)) != content_hash(others):
            raise UserError(f"{data} holds other samples than this fold: name a new folder")
        changed = {
            "data": [str(data)], "validation": None, "label_pattern": None, "limit": None, "with_synthetic": [],
            "keep": [], "unlabelled": [], "threads": 1, "tracker": "none",
        }  # fmt: skip
        own, wanted = out / f"fold-{k}" / "settings.toml", make(TrainSettings, settings.model_dump() | changed, "folds")
        if own.exists() and load(TrainSettings, own, {}) != wanted:
            raise UserError(f"{own.parent} was trained with other settings: name a new folder")
        trainings.append(Training(wanted, own.parent))
    train_side_by_side(trainings, jobs, "fold")
    return [training.out for training in trainings]


def tell_learned(start: str, samples: Sequence[Sample]) -> int:
    """How many pictures the weights to start from have learned already (`learned_of`); told where there are any."""
    known = learned_of(start, samples)
    if known:
        say(
            Alone(),
            f"{start} has learned {known} of these {len(samples)} pictures: what is read in them will flatter; "
            "--from default has learned none",
        )
    return known


def learned_of(start: str, samples: Sequence[Sample]) -> int:
    """How many pictures the weights to start from, or those that they started from, have learned already, as far as the
    folders are still there, with labels or as unlabelled ones."""
    learned: list[Sample] = []
    asked = start
    for _ in range(MOST_STARTS):
        try:
            path, _ = find_start(asked, None)
            told = {} if path is None else read_weights(path)[1].settings
        except UserError:
            break
        for name in ("data", "keep", "with_synthetic"):
            for folder in told.get(name, ()):
                with suppress(UserError):
                    there = read_manifest(Path(folder), told.get("label_pattern"))
                    limit = told.get("limit") if name == "data" else None
                    learned += (there.first(limit) if limit else there).samples
        if asked == (asked := str(told.get("start", asked))):
            break
    return len(shared_pictures(samples, learned))


def read_folds(
    readers: Sequence[Path], parts: Sequence[Sequence[Sample]], apart: int = 1
) -> tuple[list[Sample], list[list[Reading]], list[Problem]]:
    """Read each part with the readers that did not learn it: the samples that all of these could use, in the order of
    the parts, what each read in them (`apart` readings a sample), and what was set aside."""
    found: dict[str, tuple[Sample, list[Reading]]] = {}
    problems: dict[str, Problem] = {}
    accelerator = Accelerator(cpu=no_device())
    for k, reader in enumerate(readers):
        for j in left_out(k, len(parts), apart):
            pictures, outcome = evaluate(reader, parts[j], accelerator)
            problems |= {p.name: p for p in pictures.problems}
            for sample, reading in zip(pictures.samples, outcome.readings, strict=True):
                found.setdefault(sample.name, (sample, []))[1].append(reading)
    whole = [found[s.name] for part in parts for s in part if len(found.get(s.name, ((), ()))[1]) == apart]
    return [s for s, _ in whole], [r for _, r in whole], [*problems.values()]
