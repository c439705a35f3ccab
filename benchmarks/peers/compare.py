"""This project's reader beside other free ones, none of them trained on the pictures, in one run.

    python benchmarks/peers/compare.py --data DIR [--data DIR ...] [--captcha 500] [--model RUN]

The others are installed into runs/peers, once. `DIR` is labelled pictures in any layout that this project reads;
`--captcha N` adds N pictures of the captcha library (62 classes, 4 to 6 characters). Prints a table and writes
runs/peers/compare.json.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import venv
from pathlib import Path
from typing import Any

from recognizer.progress import CONSOLE
from recognizer.readings import Scores
from recognizer.samples import read_manifest

HERE = Path(__file__).parent
PLACE = Path("runs/peers")
OURS = ("lookalike, one by one", "lookalike, by 32")
PEERS = ("ddddocr", "ddddocr, beta", "rapidocr", "captcha-whisperer")


def peers_python() -> Path:
    """The interpreter of the environment that the others are installed in."""
    python = PLACE / "venv" / "bin" / "python"
    if not (PLACE / "venv" / "ready").exists():
        print(f"installing the other readers into {PLACE / 'venv'}", file=sys.stderr)
        venv.create(PLACE / "venv", with_pip=True, clear=True)
        subprocess.run([python, "-m", "pip", "install", "-q", "-r", HERE / "requirements.txt"], check=True)
        (PLACE / "venv" / "ready").touch()
    return python


def captcha_pictures(count: int) -> Path:
    folder = PLACE / f"captcha-{count}"
    if not folder.exists():
        from augment.synthesize import random_texts, requests_for_texts, synthesize
        from recognizer.charset import Charset

        texts = random_texts(Charset.named("letters+digits"), (4, 5, 6), count, 77)
        synthesize("captcha", {}, requests_for_texts(texts, (160, 60), 770_000), folder)
    return folder


def read(name: str, python: Path, files: list[Path], model: str | None) -> dict[str, Any]:
    words = [str(python), str(HERE / "worker.py"), name, *([model] if model and name in OURS else [])]
    listed = json.dumps([str(f.resolve()) for f in files])
    done = subprocess.run(words, input=listed, capture_output=True, text=True, check=False)
    if done.returncode:
        return {"error": (done.stderr.strip().splitlines() or ["it said nothing"])[-1]}
    found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, action="append", default=[])
    parser.add_argument("--captcha", type=int, default=0)
    parser.add_argument("--limit", type=int, default=500)
    parser.add_argument("--model")
    given = parser.parse_args()
    PLACE.mkdir(parents=True, exist_ok=True)
    sets = [(path.parent.name if path.name == "test" else path.name, path) for path in given.data]
    if given.captcha:
        sets.append(("captcha library", captcha_pictures(given.captcha)))
    if not sets:
        parser.error("say what to read: --data DIR, or --captcha 500")
    python = peers_python()
    rows = []
    for title, path in sets:
        if not path.exists():
            print(f"{path} is not there: it is left out")
            continue
        samples = read_manifest(path).first(given.limit).samples
        if any(s.size is not None or s.key is not None for s in samples):
            parser.error(f"{path}: give a folder of picture files")
        print(f"\n{title}, {len(samples)} pictures")
        print(f"  {'reader':<24}{'exact':>8}{'no case':>9}{'CER':>7}{'images/s':>10}{'load s':>8}{'peak MB':>9}")
        for name in (*OURS, *PEERS):
            with CONSOLE.status(name):
                found = read(name, Path(sys.executable) if name in OURS else python, [s.path for s in samples],
                             given.model)  # fmt: skip
            if "error" in found:
                print(f"  {name:<24}failed: {found['error']}")
                continue
            scores = Scores.of([(s.text, text) for s, text in zip(samples, found.pop("texts"), strict=True)])
            rate = len(samples) / found["cpu_seconds"]
            rows.append({"set": title, "reader": name, **scores.to_dict(), "images_per_cpu_second": rate, **found})
            print(
                f"  {name:<24}{scores.exact:>8.3f}{scores.exact_ignoring_case:>9.3f}"
                f"{scores.character_error_rate:>7.3f}{rate:>10.0f}{found['load_seconds']:>8.2f}{found['peak_mb']:>9.0f}"
            )
    (PLACE / "compare.json").write_text(json.dumps(rows, indent=1) + "\n")
    print(f"\nimages a second of CPU time, one thread, file to text; written to {PLACE / 'compare.json'}")


if __name__ == "__main__":
    main()
