"""`recognizer serve` under load: requests a second, latencies, wrong answers and memory, at several numbers of clients.

    python benchmarks/serve_load.py --data DIR [--model RUN] --seconds 100
    python benchmarks/serve_load.py --data DIR [--model RUN] --seconds 100 --garbage 0.1 --reload 5

One picture a request; each connection sends its next request when it has its answer. Every answer is compared with what
the reader reads by itself. `--garbage` is the share of clients that send what is no picture, too much, or half a form;
`--reload` puts the model's file in place anew every so many seconds. Client and server share the machine.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import math
import random
import shutil
import subprocess
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path

import numpy as np

from recognizer.images import PictureError
from recognizer.reader import Reader, find_model
from recognizer.samples import list_pictures


def request(body: bytes, kind: str = "application/octet-stream") -> bytes:
    head = f"POST /v1/read HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Type: {kind}\r\nContent-Length: {len(body)}\r\n\r\n"
    return head.encode() + body


RUBBISH = [
    request(b"no picture"), request(b""), request(bytes(100_000)), request(b"\x89PNG\r\n\x1a\n" + bytes(500)),
    request(b"--x\r\nhalf a form", "multipart/form-data; boundary=x"),
]  # fmt: skip


class Tally:
    """What came back: `took` of readings alone, `others` of those whose requests are rubbish."""

    def __init__(self) -> None:
        self.took: list[float] = []
        self.statuses: Counter[int] = Counter()
        self.others: Counter[int] = Counter()
        self.peak = 0.0
        self.wrong = 0
        self.cut = 0


async def client(port: int, wanted: list[tuple[bytes, str]], until: float, tally: Tally, seed: int, bad: bool) -> None:
    rng = random.Random(seed)
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    while time.monotonic() < until:
        data, text = (rng.choice(RUBBISH), None) if bad else rng.choice(wanted)
        began = time.monotonic()
        try:
            writer.write(data)
            head = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1").lower()
            length = next(int(line.split(":")[1]) for line in head.splitlines() if line.startswith("content-length"))
            body = await reader.readexactly(length)
        except (ConnectionError, asyncio.IncompleteReadError):
            tally.cut += 1
            reader, writer = await asyncio.open_connection("127.0.0.1", port)
            continue
        status = int(head.split()[1])
        (tally.others if bad else tally.statuses)[status] += 1
        if not bad:
            if status == 200:
                tally.took.append(time.monotonic() - began)
                tally.wrong += json.loads(body)["readings"][0]["text"] != text
            elif status == 503:
                await asyncio.sleep(0.05)
            else:
                tally.wrong += 1
    writer.close()


async def load(
    port: int, process: subprocess.Popen[str], wanted: list[tuple[bytes, str]], connections: int,
    given: argparse.Namespace,
) -> Tally:  # fmt: skip
    tally, until = Tally(), time.monotonic() + given.seconds
    bad = round(given.garbage * connections)

    async def watch() -> None:
        while True:
            tally.peak = max(tally.peak, memory(process))
            await asyncio.sleep(0.5)

    watching = asyncio.create_task(watch())
    await asyncio.gather(*(client(port, wanted, until, tally, i, i < bad) for i in range(connections)))
    watching.cancel()
    return tally


def memory(process: subprocess.Popen[str]) -> float:
    """Resident MB."""
    return int(Path(f"/proc/{process.pid}/statm").read_text().split()[1]) * 4096 / 1e6


async def put_anew(model: Path, every: float) -> None:
    while True:
        await asyncio.sleep(every)
        shutil.copy(model, model.with_suffix(".new"))
        model.with_suffix(".new").replace(model)


async def measure(port: int, process: subprocess.Popen[str], model: Path, given: argparse.Namespace) -> None:
    reader = Reader(model)
    wanted = []
    for file in list_pictures(given.data)[: given.limit]:
        data = file.read_bytes()
        try:
            wanted.append((request(data), reader.read([reader.open(data)])[0].text))
        except PictureError:
            continue
    again = asyncio.create_task(put_anew(model, given.reload)) if given.reload else None
    print("connections  requests/s  p50 ms  p95 ms  p99 ms   wrong  put off  cut off  rubbish  MB before, most, after")
    for connections in given.connections:
        before, began = memory(process), time.monotonic()
        tally = await load(port, process, wanted, connections, given)
        seconds = time.monotonic() - began  # what was asked last is answered after the time
        p50, p95, p99 = np.percentile(1e3 * np.array(tally.took or [math.nan]), [50, 95, 99]).tolist()
        print(
            f"{connections:>11}  {len(tally.took) / seconds:>10.0f}  {p50:>6.1f}  {p95:>6.1f}  {p99:>6.1f}  "
            f"{tally.wrong:>6}  {tally.statuses[503]:>7}  {tally.cut:>7}  {dict(tally.others) or 'none'}  "
            f"{before:.0f}, {tally.peak:.0f}, {memory(process):.0f}",
            flush=True,
        )
    if again is not None:
        again.cancel()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--model", type=Path)
    parser.add_argument("--limit", type=int, default=500)
    parser.add_argument("--connections", type=int, nargs="+", default=[1, 16, 256])
    parser.add_argument("--seconds", type=float, default=100)
    parser.add_argument("--garbage", type=float, default=0.0)
    parser.add_argument("--reload", type=float, default=0.0)
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        model = Path(shutil.copy(find_model(given.model), Path(folder) / "reader.onnx"))
        command = [sys.executable, "-m", "recognizer.cli", "serve", "--port", "0", "--model", str(model)]
        with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
            try:
                assert process.stdout is not None
                port = int(process.stdout.readline().split("/")[2].split(":")[1])
                asyncio.run(measure(port, process, model, given))
            finally:
                process.terminate()


if __name__ == "__main__":
    main()
