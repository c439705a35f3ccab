"""Run several trainings beside each other, each in a process of its own, with nested progress bars.

On a CPU two trainings of one thread each finish sooner than one of two threads, and a training that fails takes nothing
down with it. A training that was killed goes on where it was when it is asked for again.
"""

from __future__ import annotations

import ctypes
import json
import multiprocessing
import os
import shutil
import signal
import sys
import tempfile
import time
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from multiprocessing.process import BaseProcess
from pathlib import Path
from types import ModuleType

from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from recognizer.errors import Stopped, UserError, killed_by, one_line_errors
from recognizer.progress import CONSOLE, SPEED_OVER, Alone, say, spell
from recognizer.settings import load, to_toml
from recognizer.training.train import TrainSettings, train

LONGEST = 75  # bytes of the temporary folder's name: a socket's, which lies in it, has 107 at most


@dataclass(frozen=True, eq=False)
class Training:
    """One training: its settings and the run folder it goes to."""

    settings: TrainSettings
    out: Path

    @property
    def done(self) -> bool:
        return (self.out / "scores.json").is_file()


def train_side_by_side(trainings: Sequence[Training], at_once: int, what: str = "training") -> None:
    """Train what is not done yet, `at_once` at a time.

    Raises:
        UserError: a training failed; the others keep what they have.
        Stopped: Ctrl-C; all of them are saved.
    """
    waiting, began = [t for t in trainings if not t.done], time.monotonic()
    running: dict[Training, BaseProcess] = {}
    columns = (
        TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TextColumn("{task.fields[figures]}"),
        TimeElapsedColumn(), TextColumn("left"), TimeRemainingColumn(),
    )  # fmt: skip
    with Progress(
        *columns, console=CONSOLE, transient=True, disable=not CONSOLE.is_terminal, speed_estimate_period=SPEED_OVER
    ) as bars:
        shares = {t: _share(t) for t in waiting}  # of each that is done, by an attempt before as well
        all_of_them = bars.add_task(what, total=len(waiting), figures="")
        bars.update(all_of_them, completed=sum(shares.values()))  # the first jump tells no speed
        tasks = {t: bars.add_task(f"  {t.out.name}", total=None, figures="") for t in waiting}
        try:
            while waiting or running:
                while waiting and len(running) < at_once:
                    training = waiting.pop(0)
                    running[training] = _start(training)
                time.sleep(0.25)
                for training, process in list(running.items()):
                    step, total, figures = _where(training)
                    bars.update(tasks[training], completed=step, total=total, figures=figures)
                    status = process.exitcode
                    shares[training] = _share(training) if status is None else 1.0
                    bars.update(all_of_them, completed=sum(shares.values()))
                    if status is not None:
                        del running[training]
                        bars.remove_task(tasks[training])
                        if status == 130:
                            raise KeyboardInterrupt
                        if status or not training.done:
                            name = f"{training.out.parent.name}/{training.out.name}"
                            why = killed_by(status) if status < 0 else _last_line(training)
                            raise UserError(f"training {name} failed: {why}")
                        if not CONSOLE.is_terminal and len(shares) > 1:
                            done = len(shares) - len(waiting) - len(running)
                            taken = spell(time.monotonic() - began)
                            say(Alone(), f"  {what}: {done} of {len(shares)} trained after {taken}")
        except KeyboardInterrupt:
            raise Stopped("the trainings are saved; give the same command again to go on") from None
        finally:
            for process in running.values():
                if process.pid is not None and process.exitcode is None:
                    os.kill(process.pid, signal.SIGINT)
            for process in running.values():
                process.join()


def _start(training: Training) -> BaseProcess:
    config = training.out.with_name(training.out.name + ".toml")
    config.parent.mkdir(parents=True, exist_ok=True)
    config.write_text(to_toml(training.settings), encoding="utf-8")
    # forked, where the system can do that safely, from a process that has only imported what trainings need
    forked = sys.platform == "linux" and len(os.fsencode(tempfile.gettempdir())) <= LONGEST
    context = multiprocessing.get_context("forkserver" if forked else "spawn")
    context.set_forkserver_preload(["recognizer.training.nursery"])
    process = context.Process(target=_run, args=(config, training.out, _log(training)))  # type: ignore[attr-defined]
    script = sys.modules["__main__"]
    sys.modules["__main__"] = ModuleType("__main__")  # else a script that calls this is run again in each training
    try:
        process.start()
    finally:
        sys.modules["__main__"] = script
    return process  # type: ignore[no-any-return]


def _run(config: Path, out: Path, log: Path) -> None:
    """What the process of one training runs."""
    die_with_parent()
    begun_by = multiprocessing.parent_process()
    if begun_by and not begun_by.is_alive():  # killed just now, and its server with it, before they could tell this one
        return
    os.setsid()  # Ctrl-C reaches the process that asked for it alone, which passes it on once
    with log.open("ab") as told, open(os.devnull) as nothing:
        for standard, file in enumerate((nothing, told, told)):
            os.dup2(file.fileno(), standard)
    with one_line_errors():
        resume = (out / "settings.toml").is_file()
        train(load(TrainSettings, config, {}), out, resume)


def die_with_parent(parent: int | None = None) -> None:
    """Where the system can (Linux), end this process when its parent is killed: two must never write one run. One that
    was killed before this is told of no more, but where its process number is given."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(1, signal.SIGKILL)  # PR_SET_PDEATHSIG
        if parent is not None and os.getppid() != parent:
            os.kill(os.getpid(), signal.SIGKILL)


def _log(training: Training) -> Path:
    return training.out.with_name(training.out.name + ".log")


def _last_line(training: Training) -> str:
    lines = []
    with suppress(FileNotFoundError):  # it ended before it could write one
        lines = _log(training).read_text(errors="replace").strip().splitlines()
    if not lines:  # a log as well needs room
        where = training.out.parent
        return f"it said nothing; {shutil.disk_usage(where).free / 1e6:,.0f} MB are free in {where}"
    return lines[-1].removeprefix("error: ")


def _where(training: Training) -> tuple[int, int | None, str]:
    try:
        row = json.loads((training.out / "metrics.jsonl").read_text().splitlines()[-1])
        return row["step"], row["steps"], f"{row['pictures_per_second']:,.0f} images/s  exact {row['exact']:.3f}"
    except (OSError, ValueError, KeyError, IndexError):
        return 0, None, ""


def _share(training: Training) -> float:
    step, total, _ = _where(training)
    return step / (total or 1)
