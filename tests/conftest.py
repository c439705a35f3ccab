"""What several files of tests share: simple labelled pictures, a reader that learned them, and commands as typed."""

from __future__ import annotations

import io
import json
import os
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import redirect_stderr, redirect_stdout
from html.parser import HTMLParser
from pathlib import Path
from typing import NamedTuple
from unittest.mock import patch

import numpy as np
import pytest
from PIL import Image, ImageDraw, ImageFont

os.environ["OMP_NUM_THREADS"] = "1"  # read when torch is imported, here and in each process that a test starts

CHARACTERS = "0123"
LONGEST = ("test_readme.py", "test_practice.py", "test_training.py", "test_compare.py", "test_commands.py")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """The longest files first: each is one process's, and one that begins last is waited for by all."""
    items.sort(key=lambda item: LONGEST.index(item.path.name) if item.path.name in LONGEST else len(LONGEST))


class Ended(NamedTuple):
    """How a command ended: its exit status, and what it wrote to standard output and to standard error."""

    status: int
    out: str
    err: str


def call(app: Callable[[], None], *words: object, stdin: bytes = b"") -> Ended:
    """Run a command in this process as if its words had been typed."""
    out, err = (io.TextIOWrapper(io.BytesIO(), encoding="utf-8", write_through=True) for _ in range(2))
    status = 0
    given = io.TextIOWrapper(io.BytesIO(stdin), encoding="utf-8")
    typed = patch.multiple(sys, argv=[app.__module__, *map(str, words)], stdin=given)
    with typed, redirect_stdout(out), redirect_stderr(err):
        try:
            app()
        except SystemExit as end:
            status = end.code if isinstance(end.code, int) else int(end.code is not None)
    return Ended(status, *(file.buffer.getvalue().decode(errors="surrogateescape") for file in (out, err)))  # type: ignore[attr-defined]


def recognizer(*words: object, stdin: bytes = b"") -> Ended:
    """The command `recognizer`."""
    from recognizer.cli import app

    return call(app, *words, stdin=stdin)


def augment(*words: object) -> Ended:
    """The command `augment`."""
    from augment.cli import app

    return call(app, *words)


def practice(*words: object) -> Ended:
    """The command `practice`."""
    from pipelines.cli import app

    return call(app, *words)


def kill_at(path: Path, words: list[str]) -> None:
    """Start a command as a process, and kill it as soon as there is a file or folder that it leaves on its way."""
    assert not path.exists(), "it would be killed before it did anything"
    process = subprocess.Popen(words, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, start_new_session=True)
    try:
        until = time.monotonic() + 240
        while not path.exists() and time.monotonic() < until and process.poll() is None:
            time.sleep(0.02)
        assert process.poll() is None and path.exists(), "it ended, or came to nothing, before it was killed"
    finally:
        process.kill()
        process.wait()


def refusal(ended: Ended) -> str:
    """What a command refused, which must be one line and exit status 2."""
    assert ended.status == 2, ended
    lines = ended.err.splitlines()
    assert len(lines) == 1 and lines[0].startswith("error: "), ended.err
    assert not ended.out, ended.out
    return lines[0].removeprefix("error: ")


def draw(text: str, rng: np.random.Generator) -> Image.Image:
    """Dark digits on light paper, 16 pixels a character, so that lengths differ in width."""
    picture = Image.new("L", (16 * len(text) + 16, 32), 235)
    at = 4 + int(rng.integers(8)), 1 + int(rng.integers(5))
    ImageDraw.Draw(picture).text(at, text, 30, ImageFont.load_default(22))
    return picture


def draw_folder(folder: Path, texts: list[str], seed: int) -> Path:
    """A folder of drawn samples `000.png`, ... with `metadata.jsonl`."""
    folder.mkdir(parents=True)
    rng = np.random.default_rng(seed)
    rows = []
    for i, text in enumerate(texts):
        draw(text, rng).save(folder / f"{i:03d}.png")
        rows.append(json.dumps({"file_name": f"{i:03d}.png", "text": text}) + "\n")
    (folder / "metadata.jsonl").write_text("".join(rows))
    return folder


def random_labels(n: int, seed: int, characters: str = CHARACTERS) -> list[str]:
    """Labels of two and three characters."""
    rng = np.random.default_rng(seed)
    return ["".join(rng.choice(list(characters), int(rng.choice([2, 3])))) for _ in range(n)]


@pytest.fixture(scope="session")
def drawn(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Labelled folders of drawn digits: `train` (64 samples), `validation` (24), `eight` (8)."""
    root = tmp_path_factory.mktemp("drawn")
    for seed, (name, n) in enumerate({"train": 64, "validation": 24, "eight": 8}.items(), 1):
        draw_folder(root / name, random_labels(n, seed), seed)
    return root


@pytest.fixture(autouse=True)
def unsettled() -> None:
    """Precision and devices are a process's: what one test settled must not refuse what another asks for."""
    from accelerate.state import AcceleratorState

    AcceleratorState._reset_state(reset_partial_state=True)


class Trained(NamedTuple):
    """A finished run, and what the command that trained it said."""

    run: Path
    said: Ended


@pytest.fixture(scope="session")
def trained(drawn: Path, tmp_path_factory: pytest.TempPathFactory) -> Trained:
    """A reader of the drawn digits, as `recognizer train` leaves it."""
    run = tmp_path_factory.mktemp("trained") / "run"
    said = recognizer(
        "train", "--from", "nothing", "--data", drawn / "train", "--validation", drawn / "validation", "--out", run,
        "--threads", 1,
        "--pictures", 1280, "--batch", 16, "--set", "validations=6",
    )  # fmt: skip
    assert said.status == 0, said.err
    return Trained(run, said)


class Page(HTMLParser):
    """A page's elements; a wrong nesting is an error."""

    VOID = frozenset({"meta", "img", "br"})

    def __init__(self, text: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.elements: list[tuple[str, dict[str, str]]] = []
        self.words = ""
        self.marked: list[str] = []
        self.rows: list[list[str]] = []  # the cells of each row of a table
        self.feed(text)
        self.close()
        assert not self.open, f"not closed: {self.open}"

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, {k: v or "" for k, v in attrs}))
        if tag not in self.VOID:
            self.open.append(tag)
        if tag == "mark":
            self.marked.append("")
        if tag == "tr":
            self.rows.append([])
        if tag in ("td", "th"):
            self.rows[-1].append("")

    def handle_endtag(self, tag: str) -> None:
        assert self.open and self.open.pop() == tag, f"</{tag}> closes nothing, line {self.getpos()}"

    def handle_data(self, data: str) -> None:
        if self.open and self.open[-1] not in ("style", "title"):
            self.words += data
        if self.open and self.open[-1] == "mark":
            self.marked[-1] += data
        if "td" in self.open or "th" in self.open:
            self.rows[-1][-1] += data.strip()

    @property
    def text(self) -> str:
        return " ".join(self.words.split())

    def all(self, tag: str) -> list[dict[str, str]]:
        return [attrs for name, attrs in self.elements if name == tag]
