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
    """An append-only file of JSON objects. A line that a kill cut off is dropped: what it said is not known. One that
    lacks nothing but its end, as an editor leaves the last, counts."""

    def __init__(self, path: Path, what: str) -> None:
        """Read what is there.

        Raises:
            UserError: a line that is no JSON object: `what` then says what becomes of it.
        """
        self.path = path
        self.rows: list[Mapping[str, Any]] = []
        self._size = 0  # of the whole lines; what a kill left after them is cut off by the next one
        self._unended = False  # whether the last of these lacks its end
        self._found: tuple[int, int] | None = None  # which file it is, and how long
        if path.exists():
            with path.open("rb") as file:
                held = os.fstat(file.fileno())
                self._found = (held.st_ino, held.st_size)
                *lines, last = file.read().split(b"\n")
            for number, line in enumerate(lines, 1):
                if (row := _object(line)) is None:
                    raise UserError(f"{path}, line {number}, {what}")
                self.rows.append(row)
            self._size = sum(len(line) + 1 for line in lines)
            if (row := _object(last)) is not None:
                self.rows.append(row)
                self._size, self._unended = self._size + len(last), True

    def append(self, row: Mapping[str, Any]) -> None:
        """Append a line and wait until the disk has it.

        Raises:
            UserError: something else has changed the file: nothing is written.
            OSError: it cannot be written; the next line can be, when there is room again.
        """
        line = b"\n" * self._unended + json.dumps(row).encode() + b"\n"
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
            self._size, self._unended = self._size + len(line), False
        self.rows.append(row)


def _object(line: bytes) -> dict[str, Any] | None:
    try:
        row = json.loads(line)
    except (ValueError, RecursionError):
        return None
    return row if isinstance(row, dict) else None


@contextmanager
def locked(path: Path, patience: float = 0.0) -> Iterator[None]:
    """Hold a file, which is made where there is none, or a folder for this process and those that it starts, waiting up
    to `patience` seconds for others to end.

    Raises:
        UserError: another process holds it.
    """
    folder = path if path.is_dir() else path.parent
    held = os.open(path, os.O_RDONLY if folder is path else os.O_RDWR | os.O_CREAT, 0o666)
    until = time.monotonic() + patience
    try:
        while True:
            try:
                fcntl.flock(held, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError:
                if time.monotonic() >= until:
                    raise UserError(f"{folder} is being written by another process") from None
                time.sleep(0.2)
        yield
    finally:
        os.close(held)
