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
        if path.exists():
            whole, _, cut = path.read_bytes().rpartition(b"\n")
            if cut:
                _replace(path, whole + b"\n" if whole else b"")
            for number, line in enumerate(whole.splitlines(), 1):
                try:
                    entry = json.loads(line)
                    self._entries[entry["step"]] = entry
                except (ValueError, KeyError, TypeError):
                    raise UserError(f"{path}, line {number}, is no ledger entry: the run cannot be resumed") from None

    def __getitem__(self, step: str) -> Entry:
        return self._entries[step]

    def __contains__(self, step: object) -> bool:
        return step in self._entries

    def __iter__(self) -> Iterator[Entry]:
        return iter(self._entries.values())

    def record(self, step: str, **facts: Any) -> Entry:
        """Append a finished step and wait until the disk has it."""
        entry = {"step": step, **facts}
        with self.path.open("a", encoding="utf-8") as file:
            file.write(json.dumps(entry, ensure_ascii=False) + "\n")
            file.flush()
            os.fsync(file.fileno())
        self._entries[step] = entry
        return entry


def _replace(path: Path, data: bytes) -> None:
    tmp = path.with_name(path.name + ".tmp")
    tmp.write_bytes(data)
    tmp.replace(path)


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
