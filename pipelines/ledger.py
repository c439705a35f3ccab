"""What a practice run has done: one JSON line a finished step, on disk before the next begins."""

from __future__ import annotations

import fcntl
import json
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from recognizer.errors import UserError

Entry = Mapping[str, Any]


class Ledger:
    """The append-only ledger of a run. A line that a kill cut off is dropped: its step is simply done again."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._entries: dict[str, Entry] = {}
        self._size = 0  # of the whole lines; what a kill left after them is cut off by the next record
        if path.exists():
            whole, newline, _ = path.read_bytes().rpartition(b"\n")
            self._size = len(whole) + len(newline)
            for number, line in enumerate(whole.splitlines(), 1):
                try:
                    entry = json.loads(line)
                    self._entries[entry["step"]] = entry
                except (ValueError, KeyError, TypeError):
                    raise UserError(f"{path}, line {number}, is no ledger entry: the run cannot be resumed") from None

    def __getitem__(self, step: str) -> Entry:
        return self._entries[step]

    def get(self, step: str, default: Entry) -> Entry:
        return self._entries.get(step, default)

    def __contains__(self, step: object) -> bool:
        return step in self._entries

    def __iter__(self) -> Iterator[Entry]:
        return iter(self._entries.values())

    def record(self, step: str, **facts: Any) -> Entry:
        """Append a finished step and wait until the disk has it."""
        entry = {"step": step, **facts}
        with self.path.open("ab") as file:
            file.truncate(self._size)
            file.write(json.dumps(entry).encode() + b"\n")
            file.flush()
            os.fsync(file.fileno())
            self._size = file.tell()
        self._entries[step] = entry
        return entry


@contextmanager
def locked(run: Path) -> Iterator[None]:
    """Hold a run for this process alone.

    Raises:
        UserError: another process holds it.
    """
    with (run / "lock").open("a") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise UserError(f"{run} is being written by another process") from None
        yield
