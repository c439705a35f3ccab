"""Reading a folder: images a second of CPU time, file to text, against ddddocr, in one run on one thread.

    python -m venv /tmp/peers && /tmp/peers/bin/pip install ddddocr -e .
    /tmp/peers/bin/python benchmarks/read_speed.py --model runs/bench/kelab-2381-0 --data DIR

Both read the same files in turn, 50 at a time; the ratio is that of the medians.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from pathlib import Path

from peers.worker import one_thread


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", type=Path, required=True)
    parser.add_argument("--data", type=Path, required=True)
    given = parser.parse_args()

    one_thread()
    from recognizer.reader import Reader
    from recognizer.samples import list_pictures

    reader = Reader(given.model)
    files = list_pictures(given.data)[:1000]
    groups = [files[k : k + 50] for k in range(0, len(files), 50)]

    def single(group: list[Path]) -> None:
        for file in group:
            reader.read([reader.open(file)])

    ways = {
        "batch of 1": single,
        "batch of 32": lambda group: reader.read([reader.open(file) for file in group]),
    }
    try:
        import ddddocr

        peer = ddddocr.DdddOcr(show_ad=False)
        ways["ddddocr"] = lambda group: [peer.classification(file.read_bytes()) for file in group]
    except ImportError:
        print("ddddocr is not installed: it is left out")
    times: dict[str, list[float]] = {name: [] for name in ways}
    for k, group in enumerate([groups[0], *groups]):
        for name, read in ways.items():
            began = time.process_time()
            read(group)
            if k:
                times[name].append((time.process_time() - began) / len(group) * 1000)
    medians = {name: statistics.median(own) for name, own in times.items()}
    print(json.dumps({"pictures": len(files), "cpu_ms_a_picture": {k: round(v, 3) for k, v in medians.items()}}))
    if (peer_ms := medians.pop("ddddocr", None)) is not None:
        print(json.dumps({f"ratio, {name}": round(peer_ms / own, 1) for name, own in medians.items()}))


if __name__ == "__main__":
    main()
