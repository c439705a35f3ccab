"""Run several trainings beside each other, each in a process of its own, with nested progress bars.

On a CPU two trainings of one thread each finish sooner than one of two threads, and a training that fails takes nothing
down with it. A training that was killed goes on where it was when it is asked for again.
"""

from __future__ import annotations

import ctypes
import json
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from recognizer.errors import Stopped, UserError, one_line_errors
from recognizer.progress import CONSOLE, SPEED_OVER, Alone, say, spell
from recognizer.settings import load, to_toml
from recognizer.training.train import TrainSettings, train


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
    running: dict[Training, subprocess.Popen[bytes]] = {}
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
                    shares[training] = 1.0 if process.poll() is not None else _share(training)
                    bars.update(all_of_them, completed=sum(shares.values()))
                    if process.poll() is not None:
                        del running[training]
                        bars.remove_task(tasks[training])
                        if process.returncode == 130:
                            raise KeyboardInterrupt
                        if process.returncode or not training.done:
                            name = f"{training.out.parent.name}/{training.out.name}"
                            raise UserError(f"training {name} failed: {_last_line(training)}")
                        if not CONSOLE.is_terminal and len(shares) > 1:
                            done = len(shares) - len(waiting) - len(running)
                            taken = spell(time.monotonic() - began)
                            say(Alone(), f"  {what}: {done} of {len(shares)} trained after {taken}")
        except KeyboardInterrupt:
            raise Stopped("the trainings are saved; give the same command again to go on") from None
        finally:
            for process in running.values():
                process.send_signal(signal.SIGINT)
            for process in running.values():
                process.wait()


def _start(training: Training) -> subprocess.Popen[bytes]:
    config = training.out.with_name(training.out.name + ".toml")
    config.parent.mkdir(parents=True, exist_ok=True)
    config.write_text(to_toml(training.settings), encoding="utf-8")
    with _log(training).open("ab") as log:
        return subprocess.Popen(
            [sys.executable, "-m", "recognizer.training.side_by_side", str(config), str(training.out)],
            stdin=subprocess.DEVNULL, stdout=log, stderr=log, preexec_fn=die_with_parent,
            start_new_session=True,  # Ctrl-C reaches this process alone, which passes it on once
        )  # fmt: skip


def die_with_parent() -> None:
    """Where the system can (Linux), end a training whose parent was killed: two must never write one run."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(1, signal.SIGKILL)  # PR_SET_PDEATHSIG


def _log(training: Training) -> Path:
    return training.out.with_name(training.out.name + ".log")


def _last_line(training: Training) -> str:
    lines = _log(training).read_text(errors="replace").strip().splitlines()
    return lines[-1].removeprefix("error: ") if lines else "it said nothing"


def _where(training: Training) -> tuple[int, int | None, str]:
    try:
        row = json.loads((training.out / "metrics.jsonl").read_text().splitlines()[-1])
        return row["step"], row["steps"], f"{row['pictures_per_second']:,.0f} images/s  exact {row['exact']:.3f}"
    except (OSError, ValueError, KeyError, IndexError):
        return 0, None, ""


def _share(training: Training) -> float:
    step, total, _ = _where(training)
    return step / (total or 1)


def main(config: str, out: str) -> None:
    """What the process of one training runs."""
    run = Path(out)
    with one_line_errors():
        resume = (run / "settings.toml").is_file()
        train(load(TrainSettings, Path(config), {}), run, resume)


if __name__ == "__main__":
    main(*sys.argv[1:])
