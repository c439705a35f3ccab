"""What practice adds on labelled sets of one's own: from the first N labels, the rest of train without labels.

    python benchmarks/practice_sets.py --data ROOT [--sets kelab=300 kcaptcha=300 ...] [--methods classical ...]
        [--controls classical random] [--labels-alone] [--seed 0] [--set name=value ...]

`ROOT/SET/train` and `ROOT/SET/test` are labelled pictures. `--labels-alone` keeps the rest of train away. Case is
ignored. Killed, the same command goes on. Prints a line of JSON for each set: how many test pictures were read right
by one training alone, before practice, by the control, and after, and what controls read, if any were asked for.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

from more_data import rest_of

from pipelines.practice import PracticeSettings, practice
from pipelines.report import write_report
from recognizer.settings import load
from recognizer.training.train import provenance


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--sets", nargs="+", default=["jaccount=100", "wilhelmy=100", "kelab=300", "kcaptcha=300"])
    parser.add_argument("--methods", nargs="+", default=["classical"])
    parser.add_argument("--controls", nargs="*", default=[])
    parser.add_argument("--labels-alone", action="store_true")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--jobs", type=int, default=2)
    parser.add_argument("--set", dest="sets_", action="append", default=[], help="a setting of practice run")
    parser.add_argument("--out", type=Path, default=Path("runs/practice-sets"))
    given = parser.parse_args()
    given.out.mkdir(parents=True, exist_ok=True)
    for word in given.sets:
        name, _, labels = word.partition("=")
        own: dict[str, Any] = {
            "data": [str(given.data / name / "train")], "test": str(given.data / name / "test"), "limit": int(labels),
            "methods": given.methods, "controls": given.controls, "seed": given.seed, "jobs": given.jobs,
            "fold_case": True,
        }  # fmt: skip
        if not given.labels_alone:
            rest = rest_of(given.data / name / "train", int(labels), given.out / f"{name}-{labels}-rest")
            own["unlabelled"] = [str(rest)]
        run = (
            given.out / f"{name}-{labels}-{'-'.join(given.methods)}{'' if given.labels_alone else '-rest'}-{given.seed}"
        )
        ledger = practice(load(PracticeSettings, None, own, given.sets_), run)
        write_report(run)
        readings = ledger["test"]["readings"]
        right = {
            role: sum(row["text"].casefold() == row[role].casefold() for row in readings)
            for role in ("alone", "before", "control", "after")
            if role in ledger["test"]
        }
        row = {"set": name, "labels": int(labels), "seed": given.seed, "methods": given.methods, "n": len(readings)}
        row |= right | {"chosen": ledger["chosen"]["reader"], "controls": ledger.get("controls", {}).get("rows")}
        print(json.dumps(row | {"commit": provenance()["commit"]}), flush=True)


if __name__ == "__main__":
    main()
