"""What a person's mistake looks like, and how a command ends on one."""

from __future__ import annotations

import errno
import io
import os
import shlex
import signal
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

MOST_THREADS = 256  # that may be asked for: ten thousand take all memory before the first picture is read
DIED_AHEAD = "a process that loads ahead has died"
UNWRITTEN = "could not be written"  # as on a full disk: what `checkpoint.written` says
EXTRA_OF = {
    "torch": "train", "torchvision": "train", "accelerate": "train", "diffusers": "train", "captcha": "train",
    "safetensors": "train", "scipy": "train", "sklearn": "train", "onnx": "train", "onnxscript": "train",
    "webdataset": "train", "lmdb": "train", "matplotlib": "train", "jinja2": "train", "tensorboard": "train",
    "fastapi": "serve", "fastapi_offline": "serve", "h11": "serve", "prometheus_client": "serve",
    "python_multipart": "serve", "starlette": "serve", "uvicorn": "serve", "transformers": "sd",
}  # fmt: skip


class UserError(Exception):
    """Something that the user can mend. One line: the thing, its value, what to do."""


class MachineError(UserError):
    """What is not the fault of what was asked: a full disk, too little memory, pictures that are gone. The same command
    goes on with more, or once they are back."""


class Stopped(Exception):
    """The user pressed Ctrl-C and everything so far is kept. One line: how to go on."""


def quoted(path: Path) -> str:
    """A path as a shell takes it."""
    return shlex.quote(str(path))


def see_writable(option: str, file: Path) -> None:
    """See that a file can be put where an option says, before the work for it is done.

    Raises:
        UserError: a folder is there, or none to put it in.
    """
    if file.is_dir() or not file.absolute().parent.is_dir():
        why = "that is a folder" if file.is_dir() else "its folder is not there"
        raise UserError(f"{option} {file}: name a file; {why}")


def tells_of_the_machine(line: str) -> bool:
    """Whether that a command ended with this line is the fault of a full disk, or of too little memory."""
    said = (*map(os.strerror, (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.ENOMEM)), UNWRITTEN, DIED_AHEAD)
    return any(words.lower() in line.lower() for words in (*said, "out of memory", "MemoryError"))


def killed_by(status: int) -> str:
    """What ended a process that did not end of itself, in words, by its negative exit status."""
    name = signal.Signals(-status).name if -status in set(signal.Signals) else f"signal {-status}"
    return f"it was killed ({name})" + (": mostly there was too little memory" if name == "SIGKILL" else "")


def of_a_worker(error: BaseException) -> bool:
    """Whether this is how torch says that a process which loads ahead has died: anywhere in whatever is being done."""
    return isinstance(error, RuntimeError) and str(error).startswith("DataLoader worker")


@contextmanager
def one_line_errors() -> Iterator[None]:
    """End a command on a user's mistake with one line on standard error: 2 for a mistake, 130 for Ctrl-C. Names that
    are not UTF-8 are printed as the bytes that they are."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper) and stream.errors == "strict":
            stream.reconfigure(errors="surrogateescape" if stream.encoding == "utf-8" else "backslashreplace")
    try:
        yield
    except UserError as error:
        print(f"error: {' '.join(str(error).split())}", file=sys.stderr)
        raise SystemExit(2) from None
    except Stopped as stopped:
        print(f"stopped: {stopped}", file=sys.stderr)
        raise SystemExit(130) from None
    except KeyboardInterrupt:
        print("stopped: nothing was left half-written", file=sys.stderr)
        raise SystemExit(130) from None
    except SystemExit as ended:
        if ended.code == 130:  # typer's answer to Ctrl-C
            print("stopped: nothing was left half-written", file=sys.stderr)
        raise
    except ModuleNotFoundError as error:
        extra = EXTRA_OF.get((error.name or "").partition(".")[0])
        if extra is None:
            raise
        print(
            f"error: this command needs {error.name}, which is not installed: "
            f"in the clone of lookalike, pip install -e '.[{extra}]'",
            file=sys.stderr,
        )
        raise SystemExit(2) from None
    except RuntimeError as error:
        if not of_a_worker(error):
            raise
        from multiprocessing import active_children  # not on the way to what needs none

        active_children()  # reaps it: the end of each other would have torch tell of it again
        print(
            f"error: {DIED_AHEAD} ({' '.join(str(error).split())}): mostly there was too little "
            "memory; go on from the last checkpoint (--resume), or with fewer workers",
            file=sys.stderr,
        )
        raise SystemExit(2) from None
    except OSError as error:
        if error.errno is None:
            raise
        where = f": {error.filename}" if error.filename else ""
        print(f"error: {error.strerror or error}{where}", file=sys.stderr)
        raise SystemExit(2) from None
