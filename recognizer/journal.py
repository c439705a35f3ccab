"""Files of JSON lines that only grow, each line on disk before the next, and that one process writes at a time."""

from __future__ import annotations

import fcntl
import json
import os
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from recognizer.errors import UserError


class Journal:
    """An append-only file of JSON objects. A line that a kill cut off is dropped: what it said is not known."""

    def __init__(self, path: Path, what: str) -> None:
        """Read what is there.

        Raises:
            UserError: a line that is no JSON object: `what` then says what becomes of it.
        """
        self.path = path
        self.rows: list[Mapping[str, Any]] = []
        self._size = 0  # of the whole lines; what a kill left after them is cut off by the next one
        self._found: tuple[int, int] | None = None  # which file it is, and how long
        if path.exists():
            with path.open("rb") as file:
                held = os.fstat(file.fileno())
                self._found = (held.st_ino, held.st_size)
                whole, newline, _ = file.read().rpartition(b"\n")
            self._size = len(whole) + len(newline)
            for number, line in enumerate(whole.split(b"\n") if newline else (), 1):
                try:
                    row = json.loads(line)
                except ValueError:
                    row = None
                if not isinstance(row, dict):
                    raise UserError(f"{path}, line {number}, {what}")
                self.rows.append(row)

    def append(self, row: Mapping[str, Any]) -> None:
        """Append a line and wait until the disk has it.

        Raises:
            UserError: something else has changed the file: nothing is written.
            OSError: it cannot be written; the next line can be, when there is room again.
        """
        line = json.dumps(row).encode() + b"\n"
        with self.path.open("ab", buffering=0) as file:
            held = os.fstat(file.fileno())
            if (held.st_ino, held.st_size) != (self._found or (held.st_ino, 0)):
                raise UserError(f"{self.path} was changed by something else: stop, look at it, and start again")
            file.truncate(self._size)
            try:
                written = 0
                while written < len(line):
                    written += file.write(line[written:]) or 0
                os.fsync(file.fileno())
            except OSError:  # a full disk: half a line would stand in the way of the next
                with suppress(OSError):
                    file.truncate(self._size)
                raise
            finally:
                self._found = (held.st_ino, os.fstat(file.fileno()).st_size)
            self._size += len(line)
        self.rows.append(row)


@contextmanager
def locked_folder(folder: Path, patience: float = 10.0) -> Iterator[None]:
    """Hold a folder for this process and those that it starts, waiting up to `patience` seconds for others to end.

    Raises:
        UserError: another process holds it.
    """
    held, until = os.open(folder, os.O_RDONLY), time.monotonic() + patience
    try:
        while True:
            try:
                fcntl.flock(held, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError:
                if time.monotonic() > until:
                    raise UserError(f"{folder} is being written by another process") from None
                time.sleep(0.2)
        yield
    finally:
        os.close(held)


@contextmanager
def locked(path: Path) -> Iterator[None]:
    """Hold a file for this process alone.

    Raises:
        UserError: another process holds it.
    """
    with path.open("a") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise UserError(f"{path.parent} is being written by another process") from None
        yield
