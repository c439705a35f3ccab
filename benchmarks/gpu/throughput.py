"""How many pictures a second are thrown, drawn and trained on, each alone, on one GPU or a CPU's thread.

    python benchmarks/fonts.py runs/fonts
    python benchmarks/gpu/throughput.py [--sizes tiny small base] [--batch 1024] [--blocks 5] [--fonts runs/fonts]

Prints a table: a process throws, which as many may do as there are processors; the device draws and trains. Medians of
blocks of four steps; the first of each width is left out.
"""

from __future__ import annotations

import argparse
import statistics
import time
from pathlib import Path

import torch
from torch import nn

from augment.stream import BLOCK, StreamSettings, Thrower, _draw
from recognizer.charset import Charset
from recognizer.images import Frame
from recognizer.training.losses import ctc
from recognizer.training.model import SIZES, Network
from recognizer.training.train import Average, best_precision, weight_groups


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sizes", nargs="+", choices=list(SIZES), default=list(SIZES))
    parser.add_argument("--batch", type=int, default=1024)
    parser.add_argument("--blocks", type=int, default=5)
    parser.add_argument("--fonts", type=Path)
    given = parser.parse_args()
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    charset = Charset.named("letters+digits")
    settings = StreamSettings(fonts=(str(given.fonts),) if given.fonts else (), climb=0, package=0.04)
    half = best_precision() == "bf16"

    def wait() -> float:
        if device.type == "cuda":
            torch.cuda.synchronize()
        return time.perf_counter()

    print(torch.cuda.get_device_name() if device.type == "cuda" else "cpu, one thread", f"torch {torch.__version__}")
    print("| size | batch | thrown a second | drawn | trained on |\n|---|---|---|---|---|")
    for size in given.sizes:
        height = SIZES[size].height
        thrower = Thrower(charset, Frame(height, 4 * height, 512, trim=True), 3, settings)
        network = Network(size, ("conv",), charset.classes).to(device).to(memory_format=torch.channels_last)
        optimizer = torch.optim.AdamW(weight_groups(network, 0.01), lr=1e-4)
        average = Average(network, 100)
        spent: dict[str, list[float]] = {"thrown": [], "drawn": [], "trained": []}
        widths = set[int]()
        while len(spent["thrown"]) < given.blocks:
            first = BLOCK * (len(widths) + len(spent["thrown"]))
            began = wait()
            thrown = thrower[first, 10**6, range(given.batch)]
            threw = wait()
            batch = _draw(thrown, thrower.glyphs, device)
            drew = wait()
            for part in zip(*(x.split(given.batch) for x in batch), strict=True):
                with torch.autocast(device.type, torch.bfloat16, enabled=half):
                    logits = network(part[0])["conv"]
                ctc(logits, *part[1:]).mean().backward()
                nn.utils.clip_grad_norm_(network.parameters(), 5.0)
                optimizer.step()
                optimizer.zero_grad()
                average.update(network)
            ended = wait()
            if thrown.size[0] in widths:
                for name, seconds in zip(spent, (threw - began, drew - threw, ended - drew), strict=True):
                    spent[name].append(BLOCK * given.batch / seconds)
            widths.add(thrown.size[0])
        rates = [statistics.median(own) for own in spent.values()]
        print(f"| {size} | {given.batch} | " + " | ".join(f"{rate:,.0f}" for rate in rates) + " |", flush=True)


if __name__ == "__main__":
    main()
