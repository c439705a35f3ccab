"""Read pictures with one reader and print what it read, and what that cost: `python worker.py NAME < files.json`.

Runs in an environment of its own, where of this project at most the reading half is installed. One thread.
"""

from __future__ import annotations

import json
import os
import resource
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

os.environ["OMP_NUM_THREADS"] = "1"
Read = Callable[[list[Path]], list[str]]


def one_thread() -> None:
    """Make every ONNX Runtime session one of one thread: not all readers have a setting for it, and a second thread
    waits busily for some time after each picture, which counts as CPU time."""
    import onnxruntime

    given = onnxruntime.InferenceSession

    def session(model: Any, sess_options: Any = None, *others: Any, **named: Any) -> Any:
        options = sess_options or onnxruntime.SessionOptions()
        options.intra_op_num_threads = options.inter_op_num_threads = 1
        return given(model, options, *others, **named)

    onnxruntime.InferenceSession = session


def ours(model: str | None, batch: int) -> Read:
    from recognizer.reader import Reader

    reader = Reader(Path(model) if model else None)
    return lambda files: [r.text for r in reader.read([reader.open(file) for file in files], batch=batch)]


def ddddocr(beta: bool) -> Read:
    import ddddocr

    reader = ddddocr.DdddOcr(show_ad=False, beta=beta)
    return lambda files: [reader.classification(file.read_bytes()) for file in files]


def rapidocr() -> Read:
    import cv2
    from rapidocr import RapidOCR

    reader = RapidOCR()

    def read(files: list[Path]) -> list[str]:
        texts = []
        for file in files:
            found = reader(cv2.imread(str(file)), use_det=False, use_cls=False, use_rec=True)
            texts.append("".join(found.txts or ()).replace(" ", ""))
        return texts

    return read


def whisperer() -> Read:
    from captcha_whisperer import recognize

    return lambda files: [recognize(str(file)) for file in files]


def main() -> None:
    name, *model = sys.argv[1:]
    files = [Path(f) for f in json.load(sys.stdin)]
    one_thread()
    began = time.monotonic()
    make: dict[str, Callable[[], Read]] = {
        "lookalike, one by one": lambda: ours(model[0] if model else None, 1),
        "lookalike, by 32": lambda: ours(model[0] if model else None, 32),
        "ddddocr": lambda: ddddocr(False),
        "ddddocr, beta": lambda: ddddocr(True),
        "rapidocr": rapidocr,
        "captcha-whisperer": whisperer,
    }
    read = make[name]()
    loaded = time.monotonic() - began
    read(files[:2])  # the first reading of a session sets it up
    texts, cpu = [], time.process_time()
    step = 1 if name == "lookalike, one by one" else 32
    for k in range(0, len(files), step):
        texts += read(files[k : k + step])
    cpu = time.process_time() - cpu
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    print(json.dumps({"texts": texts, "cpu_seconds": cpu, "load_seconds": loaded, "peak_mb": peak}))


if __name__ == "__main__":
    main()
