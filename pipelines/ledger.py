"""What a practice run has done: one JSON line a finished step, on disk before the next begins."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

from recognizer.errors import UserError
from recognizer.journal import Journal
from recognizer.journal import locked as locked_file
from recognizer.progress import spell

Entry = Mapping[str, Any]
BROKEN = "is no ledger entry: the run cannot be resumed"


class Ledger:
    """The append-only ledger of a run. A line that a kill cut off is dropped: its step is simply done again."""

    def __init__(self, path: Path) -> None:
        self._journal = Journal(path, BROKEN)
        self._entries: dict[str, Entry] = {}
        for number, entry in enumerate(self._journal.rows, 1):
            if "step" not in entry:
                raise UserError(f"{path}, line {number}, {BROKEN}")
            self._entries[entry["step"]] = entry

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
        self._journal.append(entry)
        self._entries[step] = entry
        return entry


def see_judged(run: Path, baseline: Entry) -> None:
    """See that a run is one whose rounds are judged by all labels, by what its ledger says of the baseline.

    Raises:
        UserError: it was begun by a version that judged them by validation pictures alone.
    """
    if "held_out" not in baseline:
        raise UserError(f"{run} was begun by an earlier version, which judged its rounds otherwise: name a new folder")


def time_left(entries: Iterable[Entry]) -> float | None:
    """Seconds of training that are to come at most, by what was told after the first readers of each number of rounds
    that are done, where one has guessed as of rounds that learn anew; None before, and where nothing is trained."""
    told: Sequence[float] = ()
    anew = told
    done, going_on, won, kept, controls = 0, True, False, False, 0.0
    for entry in entries:
        step = entry["step"]
        if step == "baseline":
            told = entry.get("ahead", ())
            anew = entry.get("ahead_anew", told)
            controls = entry.get("ahead_controls", 0.0)
        elif re.fullmatch(r"round \d+", step):
            done, going_on = done + 1, entry["goes_on"]
            won = won or going_on
        elif re.fullmatch(r"round \d+ mine", step):
            going_on = enough(entry)
            told = anew if entry.get("guessed") else told
            kept = kept or entry["kept"] > 0
        elif step in ("settled", "chosen"):
            going_on = won = False
        elif step == "controls trained":
            controls = 0.0
    if told and (going_on or won):
        return told[done if going_on else -1] or None
    return controls if kept and controls else None


def to_come(seconds: float) -> str:
    """`time_left` in words."""
    return f"about {spell(seconds)} of training to come, if every round pays"


def enough(mined: Entry) -> bool:
    """Whether a round, by what the ledger says of its mining, found or made enough to be practised on."""
    return bool(mined.get("enough", mined["kept"]))  # without a word of it in a ledger of before


def locked(run: Path) -> AbstractContextManager[None]:
    """Hold a run for this process alone.

    Raises:
        UserError: another process holds it.
    """
    return locked_file(run / "lock")
