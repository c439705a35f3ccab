"""Progress for a person at a terminal, and plain lines for a log."""

from __future__ import annotations

import time
from types import TracebackType
from typing import Any, Protocol

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

CONSOLE = Console(stderr=True, highlight=False)
SPEED_OVER = 3600.0  # seconds: a training tells of itself once a minute or so, and less often tells no speed


class Process(Protocol):
    """What a bar needs of Accelerate: only the main process shows it."""

    @property
    def is_main_process(self) -> bool: ...


class Alone:
    """A process that is the only one."""

    is_main_process = True


def say(process: Process, line: str) -> None:
    """One line, from the main process, beside the results on standard output."""
    if process.is_main_process and line:
        CONSOLE.print(line, markup=False, soft_wrap=True)


def spell(seconds: float) -> str:
    """Seconds as a person says them."""
    if seconds < 10:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes} min" if hours else f"{minutes} min {rest} s" if minutes else f"{rest} s"


class Bar:
    """A progress bar with rate, time left and the figures of the last step. Off the terminal only notes are printed."""

    def __init__(self, process: Process, what: str, total: int, done: int = 0, per_step: int = 1) -> None:
        self._process, self._per_step, self._done, self._first = process, per_step, done, done
        self._began = self._drawn = time.monotonic()
        self._bar = Progress(
            TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TextColumn("{task.fields[figures]}"),
            TimeElapsedColumn(), TextColumn("left"), TimeRemainingColumn(elapsed_when_finished=True),
            console=CONSOLE, transient=True, disable=not (process.is_main_process and CONSOLE.is_terminal),
            speed_estimate_period=SPEED_OVER,
        )  # fmt: skip
        self._task = self._bar.add_task(what, total=total, completed=done, figures="")

    def __enter__(self) -> Bar:
        self._bar.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: object, trace: TracebackType | None) -> None:
        self._bar.stop()

    def advance(self, **figures: Any) -> None:
        """One step on; `figures` are shown beside the rate."""
        self._done += 1
        now = time.monotonic()
        if self._bar.disable or now - self._drawn < 0.1:
            return
        self._drawn = now
        rate = (self._done - self._first) * self._per_step / max(now - self._began, 1e-6)
        shown = "  ".join([f"{rate:,.0f} images/s", *(f"{k} {v:.3g}" for k, v in figures.items())])
        self._bar.update(self._task, completed=self._done, figures=shown)

    def reach(self, done: int, total: int, figures: str = "") -> None:
        """So many steps are done, of so many: of what another process counts."""
        self._bar.update(self._task, completed=done, total=total, figures=figures)

    def note(self, line: str) -> None:
        """One line that stays."""
        say(self._process, line)
