"""Every command of the README, as a user types it."""

from __future__ import annotations

import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest
from accelerate.state import AcceleratorState
from conftest import augment, practice, recognizer

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text(encoding="utf-8")
COMMANDS = [
    line
    for kind, block in re.findall(r"<!-- run -->\n```(sh|python)\n(.*?)```", README, re.DOTALL)
    for line in (block.strip().splitlines() if kind == "sh" else [f"python -c {shlex.quote(block)}"])
]
PROGRAMS = {"augment": augment, "practice": practice, "recognizer": recognizer}
SHORT = " --set reader.validations=2 --set reader.size=tiny"
# the same commands, with fewer pictures to draw and to train on, and a smaller reader
SMALLER = {
    "practice scheme": " --labelled 80 --test 30",
    "recognizer train": " --size tiny --pictures 256 --set validations=2 --threads 1",
    "recognizer audit-labels": " --from tiny --pictures 64 --folds 3 --jobs 1",
    "recognizer compress distill": " --pictures 256 --set validations=2",
    "recognizer compress prune": " --pictures 256 --set validations=2",
    "recognizer bench": " --seconds 0.2",
    "practice run": f" --pictures 256 --rounds 1 --folds 2 --set made=0.2 --set starts=2{SHORT}",
    "practice begin": " --pictures 64 --rounds 1 --set count=100 --set fit.generations=1 --set fit.children=30" + SHORT,
    "augment fit --method match": " --set generations=1 --set children=30",
    "practice forecast": f" --seeds 1 --set sizes=[20,60] --set pictures=64{SHORT}",
    "practice compare": f" --pictures 256 --seeds 1{SHORT}",
    "practice compare --losses": " --set tail=1 --set pos_weights=[1] --set focal=false",
}


def run(command: str, folder: Path) -> None:
    environment = {**os.environ, "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}", "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, shell=True, cwd=folder, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, f"{command}\n{done.stdout}\n{done.stderr}"


def test_every_command_block_is_run_or_sets_up() -> None:
    blocks = re.findall(r"(<!-- run -->\n)?```sh\n(.*?)```", README, re.DOTALL)
    others = [line for marked, block in blocks if not marked for line in block.strip().splitlines()]
    assert {shlex.split(line, comments=True)[0] for line in others} == {"make", "python3", "pip"}
    assert len(COMMANDS) > 12


def test_commands_smaller(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    typed = set()
    for command in COMMANDS:
        for start, more in SMALLER.items():
            if command.startswith(start):
                command = re.sub(r" --(labelled|test) \d+", "", command) + more
        program, *words = shlex.split(command)
        # the first of each, and what is a shell's or Python's, as processes of their own
        if ">" in words or program not in PROGRAMS or program not in typed:
            typed.add(program)
            run(command, tmp_path)
            continue
        AcceleratorState._reset_state(reset_partial_state=True)  # as in the next process
        ended = PROGRAMS[program](*words)
        assert ended.status == 0, f"{command}\n{ended.out}\n{ended.err}"
    assert (tmp_path / "runs/practice/report.html").stat().st_size > 10_000
    assert (tmp_path / "readings.json").stat().st_size > 100


@pytest.mark.slow
def test_commands_literally(tmp_path: Path) -> None:
    for command in COMMANDS:
        run(command, tmp_path)


@pytest.mark.slow
def test_make_practice(tmp_path: Path) -> None:
    """In a fresh clone, with nothing installed by hand."""
    run(f"git clone -q {ROOT} clone && make -C clone practice", tmp_path)
    assert (tmp_path / "clone/runs/practice/report.html").exists()
