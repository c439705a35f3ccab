"""How much a few labels of one's own are worth: train on the first N of each set, read its test half, several seeds.

    python benchmarks/few_labels.py --data ROOT [--sets kelab ...] [--labels 0 100 300 1000 all] [--seeds 0 1 2]
        [--form kelab=upper+digits,4 ...]

`ROOT/SET/train` and `ROOT/SET/test` are labelled pictures. 0 labels is the default reader as it is shipped, and once
more where --form says what a user of that set would tell it (`--charset` and `--length` of recognizer predict). The
readers of several seeds are read once more as the mean of their weights (`recognizer average`). Killed,
the same command goes on; runs lie in --out, and rows.jsonl there holds a line for each. Prints a table.
"""

from __future__ import annotations

import argparse
import json
import math
import shutil
import statistics
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator

from recognizer.reader import Reader, constraint_of
from recognizer.readings import Reading, auroc, calibration_error, wilson
from recognizer.samples import read_manifest
from recognizer.settings import load
from recognizer.training.average import average
from recognizer.training.checkpoint import DEFAULT
from recognizer.training.evaluate import evaluate
from recognizer.training.side_by_side import Training, train_side_by_side
from recognizer.training.train import TrainSettings, provenance


def read_test(weights: Path, data: Path) -> dict[str, Any]:
    pictures, outcome = evaluate(weights, read_manifest(data).samples, Accelerator())
    return figures([s.text for s in pictures.samples], outcome.readings)


def read_told(form: str, data: Path) -> dict[str, Any]:
    """Figures of the default reader where it is told a set's characters and lengths."""
    characters, _, length = form.partition(",")
    reader, samples = Reader(), read_manifest(data).samples
    constraint = constraint_of(reader.charset, characters, length or None)
    return figures([s.text for s in samples], reader.read([reader.open(s.read_bytes()) for s in samples], constraint))


def figures(texts: Sequence[str], readings: Sequence[Reading]) -> dict[str, Any]:
    pairs = [(text, reading.text) for text, reading in zip(texts, readings, strict=True)]
    right, sure = [a.casefold() == b.casefold() for a, b in pairs], [r.confidence for r in readings]
    area = auroc(sure, right)
    return {
        "n": len(right), "right": sum(right), "ignoring_case": sum(right) / len(right),
        "exact": sum(a == b for a, b in pairs) / len(pairs), "calibration_error": calibration_error(sure, right),
        "auroc": None if math.isnan(area) else area,
    }  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--sets", nargs="+", default=["jaccount", "wilhelmy", "kelab", "kcaptcha"])
    parser.add_argument("--labels", nargs="+", default=["0", "100", "300", "1000", "all"])
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2])
    parser.add_argument("--form", action="append", default=[], help="SET=CHARSET,LENGTH")
    parser.add_argument("--from", dest="start", default="default")
    parser.add_argument("--jobs", type=int, default=2)
    parser.add_argument("--set", dest="sets_", action="append", default=[], help="a setting of recognizer train")
    parser.add_argument("--out", type=Path, default=Path("runs/few-labels"))
    given = parser.parse_args()
    torch.set_num_threads(1)
    given.out.mkdir(parents=True, exist_ok=True)
    path = given.out / "rows.jsonl"
    rows = [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []
    done = {(row["set"], row["labels"], row["seed"]) for row in rows}

    def note(**row: Any) -> None:
        rows.append(row)
        with path.open("a") as file:
            file.write(json.dumps(row) + "\n")

    for name in given.sets:
        if not (given.data / name).is_dir():
            print(f"{given.data / name} is not there: it is left out")
            continue
        train, test = given.data / name / "train", given.data / name / "test"
        whole = len(read_manifest(train))
        for wanted in given.labels:
            n = whole if wanted == "all" else int(wanted)
            if n > whole:
                continue
            if n == 0:
                if (name, 0, 0) not in done:
                    start = DEFAULT if given.start == "default" else Path(given.start)
                    note(
                        set=name, labels=0, seed=0, minutes=0.0, commit=provenance()["commit"], **read_test(start, test)
                    )
                form = dict(item.split("=", 1) for item in given.form).get(name)
                told = f"0, told {form}"
                if form is not None and (name, told, 0) not in done:
                    found = read_told(form, test)
                    note(set=name, labels=told, seed=0, minutes=0.0, commit=provenance()["commit"], **found)
                continue
            trainings = {}
            for seed in given.seeds:
                if (name, n, seed) not in done:
                    own = {"data": [str(train)], "limit": n, "seed": seed, "threads": 1, "tracker": "none",
                           "start": given.start}  # fmt: skip
                    settings = load(TrainSettings, None, own, given.sets_)
                    trainings[seed] = Training(settings, given.out / f"{name}-{n}-{seed}")
            began = time.monotonic()
            train_side_by_side(list(trainings.values()), given.jobs, f"{name}, {n} labels")
            minutes = (time.monotonic() - began) / 60 * min(given.jobs, len(trainings)) / max(len(trainings), 1)
            for seed, training in trainings.items():
                found = read_test(training.out, test)
                note(set=name, labels=n, seed=seed, minutes=round(minutes, 1), commit=provenance()["commit"], **found)
                print(f"{name:<10}{n:>6}  seed {seed}  {found['ignoring_case']:.3f}", flush=True)
            averaged = f"{n}, mean of {len(given.seeds)}"
            if len(given.seeds) > 1 and (name, averaged, 0) not in done:
                mean = given.out / f"{name}-{n}-mean"
                shutil.rmtree(mean, ignore_errors=True)
                average([given.out / f"{name}-{n}-{seed}" for seed in given.seeds], mean)
                note(set=name, labels=averaged, seed=0, minutes=0.0, commit=provenance()["commit"],
                     **read_test(mean, test))  # fmt: skip

    print("\n| set | labels | ignoring case, by seed | mean, 95 % interval | calibration error | AUROC | minutes |")
    print("|---|---|---|---|---|---|---|")
    for name, n in dict.fromkeys((row["set"], row["labels"]) for row in rows):
        own = [row for row in rows if (row["set"], row["labels"]) == (name, n)]
        seeds = ", ".join(f"{row['ignoring_case']:.3f}" for row in own)
        mean = {k: statistics.mean(row[k] for row in own) for k in ("ignoring_case", "calibration_error", "minutes")}
        area = statistics.mean([row["auroc"] for row in own if row["auroc"] is not None] or [math.nan])
        low, high = wilson(round(mean["ignoring_case"] * own[0]["n"]), own[0]["n"])  # of one reader as good as the mean
        print(
            f"| {name} | {n} | {seeds} | {mean['ignoring_case']:.3f} ({low:.3f} to {high:.3f}) "
            f"| {mean['calibration_error']:.3f} | {area:.3f} | {mean['minutes']:.1f} |"
        )


if __name__ == "__main__":
    main()
