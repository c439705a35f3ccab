"""Pretrain the generators on rendered text within ten minutes on one GPU, and bring back what fits into 16 MB a file.

    python benchmarks/fonts.py runs/fonts
    python benchmarks/gpu/generators.py --minutes 8 --out OUT [--fonts runs/fonts] [--methods wgan ...] [--from DIR]

First how many steps a second each method takes here, then a run of as many as its share of the minutes holds. OUT gets
METHOD.safetensors, METHOD.png (rendered pictures, and below each what was made under its layout), METHOD.jsonl and
figures.json. `--from` goes on from an OUT of before. On a CPU it does the same, slowly: --minutes 3 tries it.
"""

from __future__ import annotations

import argparse
import json
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import torch

from augment.generated import SHIPPED

SHARES = {"vae": 1.0, "cgan": 1.5, "wgan": 3.0, "diffusion": 2.5}  # of the minutes
LOOK = {"cuda": 60, "cpu": 4}  # steps of a first look


def fit(method: str, steps: int, given: argparse.Namespace, out: Path) -> float:
    """Seconds that a fit took, its first steps and the start of its process left out."""
    values: dict[str, Any] = {
        "steps": steps, "batch": given.batch, "tracker": "none", "grids": 20 if steps > 100 else 2, "start": "nothing",
        "fonts": [str(given.fonts)] if given.fonts else [], "average": 0.02,
    }  # fmt: skip
    if method == "diffusion":
        values["drafts"] = False  # by the autoencoder as it is
    others = [] if method == "vae" else [SHIPPED / "vae.safetensors", given.out / "vae.safetensors"]
    for file in [*others, *([given.start / f"{method}.safetensors"] if given.start else [])]:
        if file.is_file():
            values["start"] = str(file)
    sets = [w for k, v in values.items() for w in ("--set", f"{k}={json.dumps(v)}")]
    subprocess.run(
        [sys.executable, "-m", "augment.cli", "fit", "--method", method, "--out", str(out), *sets], check=True
    )
    rows = [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]
    return float((rows[-1]["seconds"] - rows[0]["seconds"]) / max(rows[-1]["step"] - rows[0]["step"], 1))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--methods", nargs="+", choices=list(SHARES), default=list(SHARES))
    parser.add_argument("--minutes", type=float, default=8)
    parser.add_argument("--batch", type=int, default=64)
    parser.add_argument("--fonts", type=Path)
    parser.add_argument("--from", dest="start", type=Path)
    parser.add_argument("--out", type=Path, required=True)
    given = parser.parse_args()
    device = "cuda" if torch.cuda.is_available() else "cpu"
    given.out.mkdir(parents=True, exist_ok=True)
    began, figures = time.monotonic(), dict[str, Any]()
    waiting = list(given.methods)
    with tempfile.TemporaryDirectory() as folder:
        while waiting:
            method = waiting[0]
            left = 60 * given.minutes - (time.monotonic() - began)
            own = left * SHARES[method] / sum(SHARES[m] for m in waiting)
            started = time.monotonic()
            waiting.pop(0)
            try:
                each = fit(method, LOOK[device], given, Path(folder) / f"look-{method}")
            except subprocess.CalledProcessError as error:  # what it said is above
                figures[method] = {"failed": error.returncode}
                continue
            looked = time.monotonic() - started
            steps = max(int((own - 1.5 * looked) / each), LOOK[device])
            print(f"{method}: {each:.3f} s a step, {steps} steps", flush=True)
            run = Path(folder) / method
            try:
                fit(method, steps, given, run)
            except subprocess.CalledProcessError as error:
                figures[method] = {"failed": error.returncode}
                continue
            shutil.copy(run / "generator.safetensors", given.out / f"{method}.safetensors")
            shutil.copy(max((run / "grids").iterdir()), given.out / f"{method}.png")
            shutil.copy(run / "metrics.jsonl", given.out / f"{method}.jsonl")
            figures[method] = {
                "steps": steps, "batch": given.batch, "seconds_a_step": each,
                "device": torch.cuda.get_device_name() if device == "cuda" else "cpu",
                "last": json.loads((run / "metrics.jsonl").read_text().splitlines()[-1]),
                "run": json.loads((run / "run.json").read_text()),
            }  # fmt: skip
            (given.out / "figures.json").write_text(json.dumps(figures, indent=1) + "\n")
    (given.out / "figures.json").write_text(json.dumps(figures, indent=1) + "\n")
    print(json.dumps(figures, indent=1))


if __name__ == "__main__":
    main()
