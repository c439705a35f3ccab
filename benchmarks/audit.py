"""How well `recognizer audit-labels` finds wrong labels: inject some into a set, and see where they stand in its list.

Half of the wrong labels have one character replaced by any other, half by one of its look-alikes.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np

from recognizer.samples import Sample, read_manifest, write_folder

LOOK_ALIKES = ("0oOQD", "1lIi7", "2zZ", "5sS", "6bG", "8B", "9gq", "uvUV", "nmh", "cCe", "wWvV", "kKxX")


def spoiled(samples: list[Sample], share: float, seed: int) -> tuple[list[Sample], set[str]]:
    """Samples of which a share have a wrong label, and the names of those."""
    rng = np.random.default_rng(seed)
    alphabet = sorted({c for s in samples for c in s.text})
    chosen = rng.permutation(len(samples))[: max(1, round(share * len(samples)))].tolist()
    out = list(samples)
    for k, i in enumerate(chosen):
        text = samples[i].text
        alike = {
            (place, other)
            for place, c in enumerate(text)
            for group in LOOK_ALIKES
            if c in group
            for other in group
            if other in alphabet and other != c and other.lower() != c.lower()
        }
        if k % 2 and alike:
            place, other = sorted(alike)[int(rng.integers(len(alike)))]
        else:
            place = int(rng.integers(len(text)))
            other = str(rng.choice([c for c in alphabet if c != text[place]]))
        out[i] = replace(samples[i], text=text[:place] + other + text[place + 1 :])
    return out, {samples[i].name for i in chosen}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", type=Path, required=True, help="labelled pictures")
    parser.add_argument("--out", type=Path, required=True, help="a new folder")
    parser.add_argument("--share", type=float, default=0.03)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--jobs", type=int, default=2)
    parser.add_argument("--pictures", type=int)
    asked = parser.parse_args()
    bad, wrong = spoiled(list(read_manifest(asked.data)), asked.share, asked.seed)
    if not (asked.out / "data").exists():
        write_folder([replace(s, meta={"was": s.name}) for s in bad], asked.out / "data")
    was = {s.name: s.meta["was"] for s in read_manifest(asked.out / "data")}
    more = ["--pictures", str(asked.pictures)] if asked.pictures else []
    command = ["audit-labels", str(asked.out / "data"), "--out", str(asked.out / "audit"), "--jobs", str(asked.jobs)]
    subprocess.run([sys.executable, "-m", "recognizer.cli", *command, *more, "--show", "0"], check=True)
    rows = [json.loads(line) for line in (asked.out / "audit" / "audit.jsonl").read_text().splitlines()]
    hits = [was[row["file_name"]] in wrong for row in rows]
    first = round(asked.share * len(bad))
    found = {
        "data": asked.data.parent.name, "labels": len(bad), "wrong": len(wrong), "listed": len(rows),
        "precision of the first 50": sum(hits[:50]) / min(50, len(rows)),
        f"recall of the first {first}": sum(hits[:first]) / len(wrong), "recall of all": sum(hits) / len(wrong),
    }  # fmt: skip
    print(json.dumps(found))


if __name__ == "__main__":
    main()
