"""What `--keep` and `--unlabelled` are worth, each against doing without.

    python benchmarks/more_data.py keep --data ROOT --old kelab --new jaccount [--seeds 0 1 2]
    python benchmarks/more_data.py unlabelled --data ROOT --sets kelab kcaptcha --labels 300 [--seeds 0 1 2]

`keep`: the default reader learns OLD, and that reader then NEW, once with `--keep` and once without; both
test halves are read by all three. `unlabelled`: the first N labels of a set, and the pictures of the rest of its train
half without their labels; the first round is the control. `ROOT/SET/train` and `ROOT/SET/test` are labelled pictures.
Killed, the same command goes on. Prints a line of JSON for each reader and test half.
"""

from __future__ import annotations

import argparse
import json
import shutil
from pathlib import Path
from typing import Any

import torch
from few_labels import read_test

from recognizer.samples import read_manifest
from recognizer.settings import make
from recognizer.training.pseudo import train_with_unlabelled
from recognizer.training.side_by_side import Training, train_side_by_side
from recognizer.training.train import TrainSettings, provenance


def settings(data: Path, seed: int, given: argparse.Namespace, **more: Any) -> TrainSettings:
    own = {"data": [str(data)], "seed": seed, "threads": 1, "tracker": "none"}
    if given.size:
        own["size"] = given.size
    return make(TrainSettings, own | more, "settings")


def note(**row: Any) -> None:
    print(json.dumps(row | {"commit": provenance()["commit"]}), flush=True)


def keep(given: argparse.Namespace) -> None:
    old, new = given.data / given.old, given.data / given.new
    for seed in given.seeds:
        first = given.out / f"{given.old}-{seed}"
        train_side_by_side([Training(settings(old / "train", seed, given), first)], 1, given.old)
        both = {
            "alone": settings(new / "train", seed, given, start=str(first)),
            "keep": settings(new / "train", seed, given, start=str(first), keep=[str(old / "train")]),
        }
        outs = {how: given.out / f"{given.old}-{given.new}-{how}-{seed}" for how in both}
        train_side_by_side([Training(s, outs[how]) for how, s in both.items()], given.jobs, given.new)
        for how, run in {"before": first, **outs}.items():
            for data in (old, new):
                note(seed=seed, reader=how, read=data.name, **read_test(run, data / "test"))


def rest_of(train: Path, labels: int, rest: Path) -> Path:
    """The folder `rest`, with the pictures that follow the first so many of `train`, without their labels."""
    if not rest.exists():
        part = rest.with_name(rest.name + ".part")
        shutil.rmtree(part, ignore_errors=True)
        part.mkdir(parents=True)
        for sample in read_manifest(train).samples[labels:]:
            shutil.copy(train / sample.name, part / Path(sample.name).name)
        part.replace(rest)
    return rest


def unlabelled(given: argparse.Namespace) -> None:
    for name in given.sets:
        train = given.data / name / "train"
        rest = rest_of(train, given.labels, given.out / f"{name}-rest")
        for seed in given.seeds:
            run = given.out / f"{name}-{given.labels}-{seed}"
            own = settings(train, seed, given, limit=given.labels, unlabelled=[str(rest)])
            if not (run / "scores.json").exists():
                train_with_unlabelled(own, run, resume=run.exists())
            for how, where in {"labels alone": run / "round-0", "unlabelled too": run}.items():
                note(set=name, labels=given.labels, seed=seed, how=how, **read_test(where, given.data / name / "test"))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=["keep", "unlabelled"])
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--old", default="kelab")
    parser.add_argument("--new", default="jaccount")
    parser.add_argument("--sets", nargs="+", default=["kelab", "kcaptcha"])
    parser.add_argument("--labels", type=int, default=300)
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2])
    parser.add_argument("--size")
    parser.add_argument("--jobs", type=int, default=2)
    parser.add_argument("--out", type=Path, default=Path("runs/more-data"))
    given = parser.parse_args()
    torch.set_num_threads(1)
    {"keep": keep, "unlabelled": unlabelled}[given.what](given)


if __name__ == "__main__":
    main()
