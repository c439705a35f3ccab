"""Pretrain a default reader within ten minutes on one GPU, and bring back what fits into 16 MB a file.

    python benchmarks/fonts.py runs/fonts
    python benchmarks/gpu/pretrain.py --size base --minutes 8 --out OUT [--fonts runs/fonts] [--workers 8]
        [--data DIR ...]

First how many pictures a second are rendered here, then how many are trained on, and from that a run of as many as the
minutes hold; or of --pictures, at once. OUT gets weights.safetensors, reader.onnx, metrics.jsonl and figures.json (with
the exact match on each DIR, read without having been trained on it). `--from OUT/weights.safetensors --seed N` goes on
from an OUT of before, with other pictures. On a CPU it does the same, slowly: --minutes 1 tries it.
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

from augment.methods.render import Render, RenderSettings
from augment.synthesize import random_texts, requests_for_texts, synthesize
from recognizer.charset import Charset
from recognizer.training.model import SIZES

CONFIG = Path(__file__).parent.parent.parent / "configs" / "pretrain.toml"
LEAST = {"cuda": 40_000, "cpu": 3000}  # pictures of a first look, from which the rest is sized


def rendered_a_second(fonts: tuple[str, ...], height: int, device: str) -> dict[str, float]:
    """Pictures a second at two sizes, drawn alone."""
    render = Render(RenderSettings(fonts=fonts, difficulty=1.0))
    rates = {}
    for size in ((3 * height, height), (160, 60)):
        for n in (256, 2048) if device == "cuda" else (256,):
            texts = random_texts(Charset.named("letters+digits"), (4, 5, 6), n, 0)
            for k in range(4):
                if k == 1:
                    began = time.perf_counter()
                render.draw(texts, range(k * n, (k + 1) * n), size, 1, device, layout=False)
                if device == "cuda":
                    torch.cuda.synchronize()
            rates[f"{size[0]}x{size[1]}, {n} at once"] = 3 * n / (time.perf_counter() - began)
    return rates


def train(out: Path, pictures: int, batch: int, given: argparse.Namespace, validation: Path, fonts: list[str]) -> None:
    words = [
        "train", "--config", str(CONFIG), "--size", given.size, "--pictures", str(pictures), "--batch", str(batch),
        "--validation", str(validation), "--out", str(out), "--learning-rate", str(given.learning_rate),
        "--seed", str(given.seed), "--from", str(given.start or "nothing"), "--tracker", "none",
        "--set", f"stream_settings.fonts={json.dumps(fonts)}",
        "--set", f"frame.min_width={4 * SIZES[given.size].height}", "--set", f"stream_settings.workers={given.workers}",
        "--set", f"validations={4 if pictures < 1e5 else 20}",
        *(word for value in given.sets for word in ("--set", value)),
    ]  # fmt: skip
    subprocess.run([sys.executable, "-m", "recognizer.cli", *words], check=True)


def trained_a_second(run: Path, batch: int) -> float:
    rows = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    return float((rows[-1]["step"] - rows[0]["step"]) * batch / (rows[-1]["seconds"] - rows[0]["seconds"]))


def evaluate(run: Path, data: Path) -> dict[str, Any]:
    words = ["evaluate", "--model", str(run), "--data", str(data), "--out", str(run / "readings.jsonl")]
    done = subprocess.run([sys.executable, "-m", "recognizer.cli", *words], capture_output=True, text=True, check=True)
    rows = [json.loads(line) for line in (run / "readings.jsonl").read_text().splitlines()]
    print(f"{data}\n{done.stdout}")
    return {"n": len(rows), "ignoring_case": sum(r["text"].lower() == r["read"].lower() for r in rows) / len(rows)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--size", choices=list(SIZES), default="base")
    parser.add_argument("--minutes", type=float, default=8)
    parser.add_argument("--batch", type=int, default=512)
    parser.add_argument("--learning-rate", type=float, default=4e-3)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--from", dest="start", type=Path)
    parser.add_argument("--fonts", type=Path)
    parser.add_argument("--data", type=Path, action="append", default=[])
    parser.add_argument("--pictures", type=int)
    parser.add_argument("--workers", type=int, default=0, help="processes that throw what is rendered")
    parser.add_argument("--set", dest="sets", action="append", default=[], help="a setting of recognizer train")
    parser.add_argument("--out", type=Path, required=True)
    given = parser.parse_args()
    began = time.monotonic()
    device = "cuda" if torch.cuda.is_available() else "cpu"
    fonts = [str(given.fonts)] if given.fonts else []
    given.out.mkdir(parents=True, exist_ok=True)
    height = SIZES[given.size].height
    figures: dict[str, Any] = {}
    if given.pictures is None:
        figures["rendered_a_second"] = rendered_a_second(tuple(fonts), height, device)
        print(json.dumps(figures), flush=True)
    with tempfile.TemporaryDirectory() as folder:
        work = Path(folder)
        texts = random_texts(Charset.named("letters+digits"), range(3, 8), 1000 if device == "cuda" else 100, 9)
        asked = requests_for_texts(texts, (round(3.5 * height), height), 9_000_000)
        synthesize("render", {"fonts": fonts}, asked, work / "validation")
        pictures = given.pictures
        if pictures is None:
            first = LEAST[device]
            train(work / "look", first, given.batch, given, work / "validation", fonts)
            rate = trained_a_second(work / "look", given.batch)
            left = 60 * given.minutes - (time.monotonic() - began) - 20 - 10 * len(given.data)
            pictures = int(max(rate * left * 0.95, first))
            print(f"{rate:.0f} pictures a second: {pictures} in what is left", flush=True)
        train(work / "run", pictures, given.batch, given, work / "validation", fonts)
        figures |= {
            "size": given.size, "pictures": pictures, "batch": given.batch,
            "trained_a_second": trained_a_second(work / "run", given.batch),
            "device": torch.cuda.get_device_name() if device == "cuda" else "cpu",
            "read_untrained": {str(path): evaluate(work / "run", path) for path in given.data},
            "run": json.loads((work / "run" / "run.json").read_text()),
            "validation": json.loads((work / "run" / "scores.json").read_text()),
        }  # fmt: skip
        for name in ("weights.safetensors", "reader.onnx", "metrics.jsonl"):
            shutil.copy(work / "run" / name, given.out / name)
    (given.out / "figures.json").write_text(json.dumps(figures, indent=1) + "\n")
    print(json.dumps(figures, indent=1))


if __name__ == "__main__":
    main()
