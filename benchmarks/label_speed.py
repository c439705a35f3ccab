"""How long a picture takes on the labelling page: what the page takes, in a browser, and the keys that it asks for,
with readers that are right so often.

People are the keystroke-level model's (Card, Moran and Newell 1980): 1.35 seconds to look and decide, 0.28 a key.
"""

from __future__ import annotations

import argparse
import json
import tempfile
import threading
import time
from pathlib import Path

import numpy as np
import uvicorn
from playwright.sync_api import sync_playwright

from pipelines.scheme import write_scheme
from recognizer.data.label import desk_of
from recognizer.data.label_page import make_app
from recognizer.readings import Reading
from recognizer.samples import read_manifest

LOOK, KEY = 1.35, 0.28


def measured(folder: Path, truth: dict[str, str], right: float | None, chromium: str, seed: int) -> dict[str, float]:
    """Label all pictures of a folder with a reader that is right so often; None has no reader."""
    rng = np.random.default_rng(seed)
    keys, spent = 0, []
    with desk_of([folder]) as desk, sync_playwright() as browsers:
        for picture in desk.pictures if right is not None else ():
            text = truth[picture.name]
            place = int(rng.integers(len(text)))
            seen = text if rng.random() < right else text[:place] + "?" + text[place + 1 :]
            picture.guess = Reading(seen, float(rng.random()), tuple((c, 0.95) for c in seen))
        server = uvicorn.Server(uvicorn.Config(make_app(desk, "token"), port=8765, log_level="warning"))
        thread = threading.Thread(target=server.run)
        thread.start()
        while not server.started:
            time.sleep(0.05)
        browser = browsers.chromium.launch(executable_path=chromium, args=["--no-sandbox", "--disable-gpu"])
        page = browser.new_page()
        page.goto("http://127.0.0.1:8765/token/")
        page.wait_for_selector("#work:not([hidden])")
        for _ in truth:
            name, shown = page.inner_text("#name"), page.input_value("#text")
            if shown != truth[name]:
                keys += 1 + len(truth[name]) if shown else len(truth[name])  # select all, and type it
                page.fill("#text", truth[name])
            keys += 1
            began = time.perf_counter()
            page.keyboard.press("Enter")
            page.wait_for_function(
                "name => document.getElementById('work').hidden || (document.getElementById('picture').complete"
                " && document.getElementById('name').textContent !== name)", arg=name,
            )  # fmt: skip
            spent.append(time.perf_counter() - began)
        browser.close()
        server.should_exit = True
        thread.join()
    each = keys / len(truth)
    return {
        "keys": each, "page_median": float(np.median(spent)), "page_p95": float(np.quantile(spent, 0.95)),
        "seconds": LOOK + KEY * each + float(np.mean(spent)),
    }  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--chromium", default="/usr/bin/chromium")
    parser.add_argument("--pictures", type=int, default=100)
    asked = parser.parse_args()
    for right in (1.0, 0.7, None):
        with tempfile.TemporaryDirectory() as name:
            write_scheme(Path(name) / "scheme", asked.pictures, 8, 0)
            folder = Path(name) / "scheme" / "labelled"
            truth = {s.name: s.text for s in read_manifest(folder)}
            (folder / "metadata.jsonl").unlink()
            found = measured(folder, truth, right, asked.chromium, 0)
            labels = {s.name: s.text for s in read_manifest(folder)}
            assert labels == truth, "what was typed is what is written"
            print(json.dumps({"reader": right, **{k: round(v, 3) for k, v in found.items()}}), flush=True)


if __name__ == "__main__":
    main()
