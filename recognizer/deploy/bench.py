"""How fast a reader reads here, file to text: latency alone, and pictures a second together."""

from __future__ import annotations

import io
import os
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from recognizer.errors import UserError
from recognizer.images import PictureError
from recognizer.reader import Reader

TOGETHER = 32
SECONDS = 3.0  # of each measurement
WARM = 5  # readings that are not counted


@dataclass(frozen=True)
class Speed:
    """File to text with so many threads: milliseconds of wall clock and of CPU time a picture, and pictures a second;
    alone, and `TOGETHER` at once."""

    threads: int
    pictures: int  # that were read
    alone: tuple[float, float, float]  # median, 90th and 99th of a hundred, ms
    alone_cpu: float  # ms
    a_second: float
    together: float  # pictures a second
    together_cpu: float  # ms


def bench(model: Path | None, pictures: Sequence[bytes], seconds: float = SECONDS) -> list[Speed]:
    """The speed with one thread and with as many as there are processors.

    Raises:
        UserError: no picture can be opened, or no model.
    """
    processors = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    found = []
    for threads in sorted({1, processors}):
        reader = Reader(model, threads)
        usable = []
        for data in pictures:
            try:
                reader.open(data)
                usable.append(data)
            except PictureError:
                continue
        if not usable:
            raise UserError(f"none of {len(pictures)} pictures can be opened")
        for k in range(WARM):
            reader.read([reader.open(usable[k % len(usable)])])
        took: list[float] = []
        began, cpu = time.perf_counter(), time.process_time()
        while time.perf_counter() - began < seconds:
            start = time.perf_counter()
            reader.read([reader.open(usable[len(took) % len(usable)])])
            took.append(1e3 * (time.perf_counter() - start))
        alone_cpu = 1e3 * (time.process_time() - cpu) / len(took)
        n, began, cpu = 0, time.perf_counter(), time.process_time()
        while time.perf_counter() - began < seconds:
            reader.read([reader.open(usable[(n + k) % len(usable)]) for k in range(TOGETHER)], batch=TOGETHER)
            n += TOGETHER
        together = n / (time.perf_counter() - began)
        low, high, highest = np.percentile(took, [50, 90, 99]).tolist()
        found.append(Speed(
            threads, len(usable), (low, high, highest), alone_cpu, 1e3 / float(np.mean(took)), together,
            1e3 * (time.process_time() - cpu) / n,
        ))  # fmt: skip
    return found


def drawn(n: int = 64) -> list[bytes]:
    """Plain pictures of six characters, 160 x 60, as PNG, where there are none to read."""
    rng, font = np.random.default_rng(0), ImageFont.load_default(32)
    pictures = []
    for _ in range(n):
        picture = Image.fromarray(rng.integers(215, 256, (60, 160), dtype=np.uint8))
        text = "".join(rng.choice(list("ABCDEFGHJKLMNPQRSTUVWXYZ23456789"), 6))
        ImageDraw.Draw(picture).text((14, 10), text, fill=40, font=font)
        data = io.BytesIO()
        picture.save(data, "PNG")
        pictures.append(data.getvalue())
    return pictures
