"""What practice adds on labelled sets of one's own: from the first N labels, the rest of train without labels.

    python benchmarks/practice_sets.py --data ROOT [--sets kelab=300 kcaptcha=300 ...] [--methods classical ...]
        [--each] [--controls classical random] [--labels-alone] [--seed 0] [--set name=value ...]

`ROOT/SET/train` and `ROOT/SET/test` are labelled pictures. `--labels-alone` keeps the rest of train away. `--each`
practises with each method alone, from the same first readers, and at last with all of them, which has the controls.
Case is ignored. Killed, the same command goes on. Prints a line of JSON for each run: how many test pictures were read
right by one training alone, before practice, by the control, and after, and what controls read, if any were asked for.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from more_data import rest_of

from pipelines.practice import PracticeSettings, practice
from pipelines.report import write_report
from recognizer.settings import load, to_toml
from recognizer.training.train import provenance


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--sets", nargs="+", default=["jaccount=100", "wilhelmy=100", "kelab=300", "kcaptcha=300"])
    parser.add_argument("--methods", nargs="+", default=["classical"])
    parser.add_argument("--controls", nargs="*", default=[])
    parser.add_argument("--each", action="store_true")
    parser.add_argument("--labels-alone", action="store_true")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--jobs", type=int, default=2)
    parser.add_argument("--set", dest="sets_", action="append", default=[], help="a setting of practice run")
    parser.add_argument("--out", type=Path, default=Path("runs/practice-sets"))
    given = parser.parse_args()
    given.out.mkdir(parents=True, exist_ok=True)
    for word in given.sets:
        name, _, labels = word.partition("=")
        before: list[Path] = []
        for methods in [*([m] for m in given.methods), given.methods] if given.each else [given.methods]:
            last = methods == given.methods
            own: dict[str, Any] = {
                "data": [str(given.data / name / "train")], "test": str(given.data / name / "test"),
                "limit": int(labels), "methods": methods, "controls": given.controls if last else [],
                "seed": given.seed, "jobs": given.jobs, "fold_case": True,
            }  # fmt: skip
            if not given.labels_alone:
                rest = rest_of(given.data / name / "train", int(labels), given.out / f"{name}-{labels}-rest")
                own["unlabelled"] = [str(rest)]
            alone = "" if given.labels_alone else "-rest"
            run = given.out / f"{name}-{labels}-{'-'.join(methods)}{alone}-{given.seed}"
            settings = load(PracticeSettings, None, own, given.sets_)
            begin_like(before, settings, run)
            ledger = practice(settings, run)
            before.append(run)
            write_report(run)
            readings = ledger["test"]["readings"]
            right = {
                role: sum(row["text"].casefold() == row[role].casefold() for row in readings)
                for role in ("alone", "before", "control", "after")
                if role in ledger["test"]
            }
            row = {"set": name, "labels": int(labels), "seed": given.seed, "methods": methods, "n": len(readings)}
            row |= right | {"chosen": ledger["chosen"]["reader"], "controls": ledger.get("controls", {}).get("rows")}
            row["pictures"] = {
                m: [own[k] for k in ("asked", "kept")] for m, own in ledger["round 1 mine"]["methods"].items()
            }
            print(json.dumps(row | {"commit": provenance()["commit"]}), flush=True)


def begin_like(before: Sequence[Path], settings: PracticeSettings, run: Path) -> None:
    """Begin a run with the first readers of another, which differs in its methods alone, and with what methods have
    learned in others. On labels alone the controls of the first round are the same as well."""
    if not before or (run / "ledger.jsonl").exists():
        return
    shutil.rmtree(run, ignore_errors=True)
    lines = {}
    for other in before:
        for line in (other / "ledger.jsonl").read_text().splitlines():
            step = json.loads(line)["step"]
            if step in ("prepare", "baseline") or step.startswith("fit "):
                lines.setdefault(step, line)
    firsts = ["data", *(path.name for path in before[0].glob("baseline*") if path.is_dir())]
    firsts += [f"folds/fold-{k}" for k in range(settings.folds)]
    if not settings.unlabelled:
        firsts += [f"folds/fold-{k}-control-1" for k in range(settings.folds)] + ["round-1/control"]
        firsts = [name for name in firsts if (before[0] / name).exists()]
    learned = {f"fitted/{path.name}": path for other in before for path in (other / "fitted").glob("*")}
    for part, path in {**{name: before[0] / name for name in firsts}, **learned}.items():
        shutil.copytree(path, run / part, copy_function=os.link)
    (run / "settings.toml").write_text(to_toml(settings), encoding="utf-8")
    (run / "lock").touch()  # by which a folder is known as a run
    (run / "ledger.jsonl").write_text("\n".join(lines.values()) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
