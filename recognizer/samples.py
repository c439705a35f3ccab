"""Samples and manifests: read them in every layout that people keep labelled pictures in, and write them.

A label is text and stays text: `0012`, `1E23`, `NA`, `no` and `true` are never parsed. What cannot be used is set aside
as a `Problem` with its reason, and nothing is repaired or deleted.
"""

from __future__ import annotations

import csv
import fcntl
import glob
import hashlib
import json
import os
import re
import shutil
import stat
import sys
import tarfile
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, field, replace
from functools import cache
from pathlib import Path, PurePosixPath
from types import TracebackType
from typing import Any

from recognizer.charset import Charset, frames_needed
from recognizer.errors import UserError
from recognizer.images import MAX_PIXELS, Frame, Grey, PictureError, identify, open_picture

PICTURE_SUFFIXES = frozenset({
    ".apng", ".avif", ".bmp", ".dib", ".gif", ".j2k", ".jfif", ".jp2", ".jpe", ".jpeg", ".jpg", ".pbm", ".pcx",
    ".pgm", ".png", ".pnm", ".ppm", ".tga", ".tif", ".tiff", ".webp",
})  # fmt: skip

LISTS = ("metadata.jsonl", "metadata.csv", "data.mdb")  # of labels, in a folder
ASKED = ".asked"  # in a folder that is being written: what is written there

# why a sample is set aside -> what to do about it
REASONS = {
    "missing file": "put it back, or take it out of what names it",
    "outside the folder": "a file_name must stay below its manifest's folder",
    "unreadable": "open it in a viewer; save it again or take it out",
    "too large": "crop it, or raise the bound: --max-pixels N, or --set max_pixels=N",
    "bad line": "each line needs file_name and text, both strings",
    "listed twice": "one file_name with two texts: keep the right one",
    "no label in the name": "the file's name does not fit --label-pattern",
    "empty label": "type its text, or take it out",
    "not in the charset": "correct the label, or widen the charset",
    "too many characters": "the picture is too narrow for its label: check the label, or raise --set frame.max_width",
    "broken archive": "the rest of this file cannot be read; copy it again",
}


@dataclass(frozen=True, slots=True)
class Problem:
    """A sample that was set aside: its name, a key of `REASONS`, and what exactly was seen."""

    name: str
    kind: str
    detail: str


@dataclass(frozen=True, slots=True)
class Sample:
    """One picture and its text.

    The picture's bytes lie at `path`: the whole file, `size` bytes from `offset` (a member of a tar shard), or the
    value of `key` (an LMDB). `meta` holds what else the manifest says of it.
    """

    name: str
    text: str
    path: Path
    offset: int = 0
    size: int | None = None
    key: bytes | None = None
    meta: Mapping[str, Any] = field(default_factory=dict)

    def read_bytes(self) -> bytes:
        """The picture's file, undecoded.

        Raises:
            PictureError: the file is gone or shorter than its manifest says.
        """
        try:
            if self.key is not None:
                return _lmdb_get(self.path, self.key)
            if self.size is None:
                return self.path.read_bytes()
            with self.path.open("rb") as file:
                file.seek(self.offset)
                data = file.read(self.size)
        except FileNotFoundError:
            raise PictureError("missing file", f"no such file: {self.path}") from None
        except OSError as error:
            raise PictureError("unreadable", f"{error.strerror}: {self.path}") from None
        if len(data) < self.size:
            raise PictureError("unreadable", f"{self.path} ends before it")
        return data


@dataclass(frozen=True)
class Manifest:
    """Samples, in the order of their source, and what was set aside while reading it."""

    samples: tuple[Sample, ...]
    problems: tuple[Problem, ...] = ()
    source: str = ""

    def __len__(self) -> int:
        return len(self.samples)

    def __iter__(self) -> Iterator[Sample]:
        return iter(self.samples)

    @property
    def texts(self) -> list[str]:
        return [s.text for s in self.samples]

    def first(self, n: int) -> Manifest:
        """The first `n` samples (all where there are fewer)."""
        return replace(self, samples=self.samples[:n])


# ---------------------------------------------------------------------------------------------------------- reading


def read_manifest(path: Path | str, label_pattern: str | None = None) -> Manifest:
    """Read a manifest in whatever layout lies at `path`.

    In order: a folder with `metadata.jsonl` or `metadata.csv` (or that file itself), an STR-benchmark LMDB folder
    (`data.mdb`), where `label_pattern` is given a folder whose file names hold the label, and tar shards (one `.tar`,
    or a folder of them).

    Raises:
        UserError: nothing there, or no layout that is known.
    """
    path = Path(path)
    if label_pattern is not None:
        label_regex(label_pattern)  # a wrong one is told of, wherever the labels are
    if not path.exists():
        raise UserError(f"{path}: no such file or folder")
    if path.is_file() and path.name == "metadata.jsonl":
        return _manifest(_read_listed(path.parent, _json_rows(path)), path.parent)
    if path.is_file() and path.name == "metadata.csv":
        return _manifest(_read_listed(path.parent, csv_rows(path)), path.parent)
    if path.is_file() and path.suffix == ".tar":
        return _manifest(_read_shards([path]), path)
    if label_pattern is not None and (listed := next((n for n in LISTS if (path / n).exists()), None)):
        _tell_unused(path / listed)
    if not path.is_dir():
        raise UserError(f"{path} is no manifest: give a folder with metadata.jsonl or metadata.csv, or a .tar shard")
    if (path / "metadata.jsonl").exists():
        return _manifest(_read_listed(path, _json_rows(path / "metadata.jsonl")), path)
    if (path / "metadata.csv").exists():
        return _manifest(_read_listed(path, csv_rows(path / "metadata.csv")), path)
    if (path / "data.mdb").exists():
        return _manifest(_read_lmdb(path), path)
    if label_pattern is not None:
        return _manifest(_read_names(path, label_pattern), path)
    if shards := sorted(p for p in path.glob("*.tar") if p.is_file()):
        return _manifest(_read_shards(shards), path)
    raise UserError(
        f"{path} has no metadata.jsonl, metadata.csv, data.mdb or *.tar; "
        "where the file names hold the labels, say how: --label-pattern '{text}_{id}.png'"
    )


@cache
def _tell_unused(listed: Path) -> None:  # once, however often it is read
    print(f"{listed} lists the labels there: --label-pattern is not used", file=sys.stderr)


Found = Iterator[Sample | Problem]


def _manifest(found: Found, path: Path) -> Manifest:
    samples: dict[str, Sample] = {}
    problems: list[Problem] = []
    conflicts: set[str] = set()
    for item in found:
        if isinstance(item, Problem):
            problems.append(item)
        elif not item.text:
            problems.append(Problem(item.name, "empty label", "its text is empty"))
        elif any("\ud800" <= c <= "\udfff" for c in item.text):  # half a UTF-16 pair, or bytes that are not UTF-8
            problems.append(Problem(item.name, "bad line", f"text is {item.text!r}, which no UTF-8 can hold"))
        elif (before := samples.setdefault(item.name, item)).text != item.text:
            conflicts.add(item.name)
            problems.append(Problem(item.name, "listed twice", f"as {before.text!r} and as {item.text!r}"))
    kept = tuple(s for name, s in samples.items() if name not in conflicts)  # which of two texts is right, who knows
    return Manifest(kept, tuple(problems), str(path))


Row = tuple[int, Mapping[str, Any] | str]  # a line's number, and its cells or what is wrong with it


def _json_rows(path: Path) -> Iterator[Row]:
    with path.open(encoding="utf-8-sig", errors="surrogateescape") as file:
        for number, line in enumerate(file, 1):
            if not line.strip():
                continue
            try:
                row = json.loads(line)
            except (ValueError, RecursionError):
                row = None
            yield number, row if isinstance(row, dict) else "not a JSON object"


def csv_rows(path: Path) -> Iterator[Row]:
    with path.open(encoding="utf-8-sig", errors="surrogateescape", newline="") as file:
        reader = csv.DictReader(file, strict=True)
        while True:
            try:
                row = next(reader)
            except StopIteration:
                return
            except csv.Error as error:
                yield reader.reader.line_num, str(error)  # DictReader counts good rows
                continue
            if None in row:  # a label cut at its comma must not pass for a label
                yield reader.line_num, "more cells than the header: quote a label that holds a comma"
            elif any("\n" in cell or "\r" in cell for cell in row.values() if cell):
                yield reader.line_num, "a cell that goes on past the end of its line: does a quote stand alone?"
            else:
                yield reader.line_num, row


def _read_listed(root: Path, rows: Iterator[Row]) -> Found:
    resolved_root = root.resolve()
    for number, row in rows:
        if isinstance(row, str):
            yield Problem(f"line {number}", "bad line", row)
            continue
        name, text = row.get("file_name"), row.get("text")
        if not isinstance(name, str) or not name or "\0" in name:
            yield Problem(f"line {number}", "bad line", f"file_name is {name!r}, not the name of a file")
            continue
        if not isinstance(text, str):
            yield Problem(name, "bad line", f"line {number}: text is {text!r}, not a string")
            continue
        path, tidy = root / name, Path(os.path.normpath(name))
        if tidy.is_absolute() or ".." in tidy.parts or not is_inside(path, resolved_root):
            yield Problem(name, "outside the folder", f"line {number} leads to {path}")
        elif not os.path.exists(path):  # Path.exists would raise on a name that is too long
            yield Problem(name, "missing file", f"line {number} names it")
        elif not path.is_file():
            yield Problem(name, "unreadable", f"line {number} names it, and it is no file")
        else:
            meta = {k: v for k, v in row.items() if k not in ("file_name", "text")}
            yield Sample(tidy.as_posix(), text, path, meta=meta)


def is_inside(path: Path, resolved_root: Path) -> bool:
    """Whether `path`, its symbolic links followed, stays below a folder that is resolved already."""
    try:
        return path.resolve().is_relative_to(resolved_root)
    except (OSError, RuntimeError, ValueError):  # a loop of links, or a name that no file system takes
        return False


def see_apart(out: Path, folders: Iterable[Path | str]) -> None:
    """See that what is to be written does not lie in a folder of pictures, of which it would be some.

    Raises:
        UserError: it does.
    """
    for folder in folders:
        if out.resolve().is_relative_to(Path(folder).resolve()):
            raise UserError(
                f"{out} lies among the pictures of {folder}, and its own would be some of them: name another"
            )


def label_regex(pattern: str) -> re.Pattern[str]:
    """A label pattern such as `{text}_{id}.png` as a regular expression with the group `text`.

    `{text}` is the label and any other `{name}` is passed over; each takes as little as it can. A pattern without an
    ending (a picture's, or `.{name}`) is held against the name without its own.

    Raises:
        UserError: no `{text}`, or more than one.
    """
    if pattern.count("{text}") != 1:
        raise UserError(f"--label-pattern {pattern!r} needs {{text}} once, as in '{{text}}_{{id}}.png'")
    parts = re.split(r"(\{[^{}]*\})", pattern)
    return re.compile(
        "".join("(?P<text>.+?)" if p == "{text}" else ".*?" if p[:1] + p[-1:] == "{}" else re.escape(p) for p in parts)
    )


def _read_names(root: Path, pattern: str) -> Found:
    regex, resolved_root = label_regex(pattern), root.resolve()
    last = PurePosixPath(pattern).suffix.lower()
    ended = last in PICTURE_SUFFIXES or (last != ".{text}" and re.fullmatch(r"\.\{[^{}]*\}", last))
    for path in list_pictures(root):
        match = regex.fullmatch(path.name if ended else path.stem)
        name = path.relative_to(root).as_posix()
        if not is_inside(path, resolved_root):
            yield Problem(name, "outside the folder", f"it leads to {path.resolve()}")
        elif match is None:
            yield Problem(name, "no label in the name", f"does not fit {pattern!r}")
        else:
            yield Sample(name, match["text"], path)


def list_pictures(root: Path) -> list[Path]:
    """All files below `root` with a picture's ending, sorted; hidden ones are left out, what only waits to be written
    to, as a pipe does, and runs of these programs: their pictures are copies or made.

    Raises:
        UserError: a folder that may not be read.
    """
    found = []

    def refused(error: OSError) -> None:
        raise UserError(f"{error.filename} cannot be read: {error.strerror}")

    for folder, folders, files in os.walk(root, onerror=refused):
        folders[:] = sorted(f for f in folders if not f.startswith(".") and not is_run(Path(folder, f)))
        for name in files:
            if not name.startswith(".") and (path := Path(folder, name)).suffix.lower() in PICTURE_SUFFIXES:
                with suppress(OSError):  # a link that leads nowhere is told of when it is opened
                    if not (stat.S_ISREG(mode := path.stat().st_mode) or stat.S_ISDIR(mode)):
                        continue
                found.append(path)
    return sorted(found)


def is_run(folder: Path) -> bool:
    """Whether a folder is a run of practice, or a fit of augment."""
    settings, *others = (os.path.exists(folder / name) for name in ("settings.toml", "ledger.jsonl", "asked.json"))
    return settings and any(others)  # Path.exists would raise where the folder may not be entered


def _read_shards(shards: Sequence[Path]) -> Found:
    """Index WebDataset tar shards: members of one key make one sample, its text in `.txt` or in `.json` as `text`.

    The shards are indexed once and their members read by offset, so that training can shuffle and resume exactly.
    """
    for shard in shards:
        members: dict[str, dict[str, tarfile.TarInfo]] = defaultdict(dict)
        twice: dict[str, str] = {}
        broken: Exception | None = None
        try:
            with tarfile.open(shard, "r:") as tar, shard.open("rb") as file:
                for member in tar:
                    if member.size < 0:  # tarfile would go back by it, and read the same header for ever
                        raise tarfile.ReadError("a member has a negative size")
                    pure = PurePosixPath(member.name)
                    stem, _, ending = pure.name.partition(".")
                    if not member.isfile() or not stem or not ending:
                        continue
                    key = str(pure.parent / stem)
                    if members[key].setdefault(ending.lower(), member) is not member:
                        twice[key] = ending
                file.seek(tar.offset)
                if file.read(tarfile.BLOCKSIZE) != tarfile.NUL * tarfile.BLOCKSIZE:  # tarfile takes it for the end
                    raise tarfile.ReadError(f"no member and no end mark at byte {tar.offset}")
        except (tarfile.TarError, OSError, ValueError) as error:
            broken = error
        if broken is not None:
            yield Problem(shard.name, "broken archive", str(broken))
        if not members:
            continue
        with shard.open("rb") as file:
            length = os.fstat(file.fileno()).st_size
            for key, parts in members.items():
                name = f"{shard.name}/{key}"
                if key in twice:
                    yield Problem(name, "listed twice", f"its .{twice[key]} stands twice in the shard")
                    continue
                pictures = [m for ending, m in parts.items() if "." + ending.rpartition(".")[2] in PICTURE_SUFFIXES]
                try:
                    text, meta = _shard_text(file.seek, file.read, parts)
                except (ValueError, RecursionError) as error:
                    yield Problem(name, "bad line", str(error))
                    continue
                if len(pictures) != 1:
                    yield Problem(name, "missing file", f"{len(pictures)} pictures under this key")
                elif pictures[0].offset_data + pictures[0].size > length:
                    yield Problem(name, "unreadable", "the shard ends before its picture does")
                else:
                    yield Sample(name, text, shard, pictures[0].offset_data, pictures[0].size, meta=meta)


def _shard_text(
    seek: Callable[[int], object], read: Callable[[int], bytes], parts: Mapping[str, tarfile.TarInfo]
) -> tuple[str, Mapping[str, Any]]:
    def content(ending: str) -> str:
        if parts[ending].size > 1_000_000:
            raise ValueError(f".{ending} has {parts[ending].size} bytes")
        seek(parts[ending].offset_data)
        data = read(parts[ending].size)
        if len(data) < parts[ending].size:  # a label must not be cut short
            raise ValueError(f"the shard ends before its .{ending} does")
        return data.decode("utf-8-sig")

    meta: Mapping[str, Any] = {}
    if "json" in parts:
        loaded = json.loads(content("json"))
        if not isinstance(loaded, dict):
            raise ValueError(".json is no object")
        meta = {k: v for k, v in loaded.items() if k != "text"}
        if "txt" not in parts:
            text = loaded.get("text")
            if not isinstance(text, str):
                raise ValueError(f"text is {text!r}, not a string")
            return text, meta
    if "txt" not in parts:
        raise ValueError("neither .txt nor .json holds its text")
    return re.sub(r"\r?\n\Z", "", content("txt")), meta


_LMDBS: dict[tuple[int, Path], Any] = {}


def _lmdb(path: Path) -> Any:
    """The environment at `path`, opened once a process: LMDB forbids twice, and a fork must not share one."""
    import lmdb

    key = (os.getpid(), path)
    if key not in _LMDBS:
        try:
            _LMDBS[key] = lmdb.open(str(path), readonly=True, lock=False, readahead=False, max_readers=64)
        except lmdb.Error as error:
            raise UserError(f"{path} is no LMDB that can be opened: {error}") from None
        pages, there = _LMDBS[key].info()["last_pgno"] + 1, (path / "data.mdb").stat().st_size
        if (size := pages * _LMDBS[key].stat()["psize"]) > there:  # what is read beyond a file's end kills the process
            _LMDBS.pop(key).close()
            raise UserError(f"{path / 'data.mdb'} was cut off: {there:,} bytes of {size:,} are there")
    return _LMDBS[key]


def _lmdb_get(path: Path, key: bytes) -> bytes:
    import lmdb

    try:
        with _lmdb(path).begin() as transaction:
            value = transaction.get(key)
    except lmdb.Error as error:
        raise PictureError("unreadable", f"the LMDB is damaged: {error}") from None
    if value is None:
        raise PictureError("missing file", f"no {key.decode()} in {path}")
    return bytes(value)


def _read_lmdb(root: Path) -> Found:
    """The layout of the scene-text benchmarks: `num-samples`, then `image-%09d` and `label-%09d` from 1."""
    import lmdb

    try:
        yield from _entries_of(root)
    except lmdb.Error as error:
        yield Problem(root.name, "broken archive", str(error))


def _entries_of(root: Path) -> Found:
    with _lmdb(root).begin() as transaction:
        try:
            n = int(transaction.get(b"num-samples") or b"")
        except ValueError:
            raise UserError(f"{root} has no num-samples: it is no STR-benchmark LMDB") from None
        if n > transaction.stat()["entries"]:
            raise UserError(f"{root} says that it holds {n} samples, and holds {transaction.stat()['entries']} entries")
        for i in range(1, n + 1):
            name, key, label = f"image-{i:09d}", b"image-%09d" % i, transaction.get(b"label-%09d" % i)
            if label is None or transaction.get(key) is None:
                yield Problem(name, "missing file", "its picture or its label is not in the LMDB")
                continue
            try:
                yield Sample(name, bytes(label).decode("utf-8"), root, key=key)
            except UnicodeDecodeError:
                yield Problem(name, "bad line", "its label is not UTF-8")


# --------------------------------------------------------------------------------------------------------- checking


def check(sample: Sample, charset: Charset | None, frame: Frame, stride: int, max_pixels: int = MAX_PIXELS) -> Grey:
    """Open one sample as a reader does, grey (H, W) uint8, and hold its label against charset and width.

    `stride` is the number of pixels to a frame of the reader.

    Raises:
        PictureError: one of `REASONS`.
    """
    if charset is not None and (missing := charset.missing(sample.text)):
        raise PictureError("not in the charset", f"{sample.text!r} holds {missing!r}")
    grey = frame.fit(open_picture(sample.read_bytes(), None, max_pixels))
    frames = grey.shape[1] // stride
    if (needed := frames_needed(sample.text)) > frames:
        raise PictureError("too many characters", f"{sample.text!r} needs {needed} frames, its picture gives {frames}")
    return grey


def problem_table(problems: Sequence[Problem], total: int) -> str:
    """One table: each reason, how often, the first names, and what to do; the empty string where there is none."""
    if not problems:
        return ""
    counts = Counter(p.kind for p in problems)
    lines = [f"{len(problems)} of {total} samples cannot be used and were set aside (nothing was changed on disk):"]
    for kind, n in counts.most_common():
        lines.append(f"  {n:>6}  {kind}: {REASONS[kind]}")
        shown = [p for p in problems if p.kind == kind]
        lines += [f"          {printable(p.name)}: {printable(p.detail)}" for p in shown[:3]]
        if n > 3:
            lines.append(f"          and {n - 3} more")
    return "\n".join(lines)


def printable(text: str) -> str:
    """Text for a terminal: control characters and broken UTF-8 from a stranger's file are escaped."""
    cleaned = "".join(c if c.isprintable() else c.encode("unicode_escape", "surrogatepass").decode() for c in text)
    return cleaned if len(cleaned) <= 160 else cleaned[:157] + "..."


# ---------------------------------------------------------------------------------------------------------- writing


class FolderWriter:
    """Write a folder with `metadata.jsonl` that appears whole or not at all.

    Everything goes to a neighbouring folder that is renamed when the block ends well, and removed when it does not.

    Args:
        asked: what is written, for work that takes long. Then the pictures that a killed or interrupted writer of the
            same left are there from the start (`path`), as are those of one that a full disk stopped; what writers of
            other things left is removed.

    Raises:
        UserError: the folder exists and is not empty.
    """

    def __init__(self, out: Path, asked: str | None = None) -> None:
        _see_new(out)
        self.out, self._work = out, new_folder(out, asked)
        self._rows: list[bytes] = []
        self._names = {"metadata.jsonl", ASKED}

    def __enter__(self) -> FolderWriter:
        self._tmp = self._work.__enter__()
        return self

    def path(self, name: str) -> Path:
        """Where a picture stands until the folder is whole."""
        return self._tmp / name

    def add(self, name: str, data: bytes | None, text: str, meta: Mapping[str, Any] | None = None) -> None:
        """Write one sample, or without `data` keep the picture that is there. `name` is relative; where two share it,
        the second gets a number."""
        pure = PurePosixPath(name)
        if pure.is_absolute() or ".." in pure.parts or not pure.name:
            raise UserError(f"{name!r} leaves the folder that is written")
        number = 2
        while str(pure) in self._names:
            pure = PurePosixPath(name).with_stem(f"{PurePosixPath(name).stem}-{number}")
            number += 1
        self._names.add(str(pure))
        if data is not None:
            path = self.path(str(pure))
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(data)
        row = {"file_name": str(pure), "text": text}
        row |= {k: v for k, v in (meta or {}).items() if k not in row}
        # surrogateescape: a file's name is bytes on Linux, and need not be UTF-8
        self._rows.append(json.dumps(row, ensure_ascii=False).encode("utf-8", "surrogateescape") + b"\n")

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        with ExitStack() as stack:
            stack.push(self._work)
            if error is not None:
                raise error
            (self._tmp / "metadata.jsonl").write_bytes(b"".join(self._rows))


def _see_new(out: Path) -> None:
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise UserError(f"{out} exists and is not empty: name a new folder")
    if Path.cwd().is_relative_to(out.resolve()):
        raise UserError(f"{out} is the folder that this command runs in: name a new folder")


@contextmanager
def new_folder(out: Path, asked: str | None = None) -> Iterator[Path]:
    """Where `out` is written before it is renamed: a hidden folder beside it, so on the same file system, and locked.
    What dead processes left there is removed, or taken up where it is what is `asked`.

    Raises:
        UserError: `out` is not empty, or cannot be replaced.
    """
    _see_new(out)
    resolved = out.resolve()
    tmp = resolved.with_name(f".{resolved.name}.{os.getpid()}.tmp")
    for left in _left(resolved):
        if asked is not None and not tmp.exists() and _asked(left) == asked:
            left.rename(tmp)
        else:
            shutil.rmtree(left, ignore_errors=True)
    tmp.mkdir(parents=True, exist_ok=True)
    held = os.open(tmp, os.O_RDONLY)
    try:
        fcntl.flock(held, fcntl.LOCK_EX)
        if asked is not None:
            (tmp / ASKED).write_text(asked, encoding="utf-8")
        yield tmp
        (tmp / ASKED).unlink(missing_ok=True)
        if resolved.exists():
            resolved.rmdir()
        tmp.rename(resolved)
    except BaseException as error:
        if asked is None or not isinstance(error, KeyboardInterrupt | OSError):
            shutil.rmtree(tmp, ignore_errors=True)
        raise
    finally:
        os.close(held)


def _left(out: Path) -> Iterator[Path]:
    """What processes that are no more left beside a folder that they wrote."""
    for path in sorted(out.parent.glob(f".{glob.escape(out.name)}.*.tmp")):
        if not re.fullmatch(r"[0-9]+", path.name[len(out.name) + 2 : -4]):
            continue
        with suppress(OSError):  # BlockingIOError: it is being written
            held = os.open(path, os.O_RDONLY | os.O_DIRECTORY)
            try:
                fcntl.flock(held, fcntl.LOCK_EX | fcntl.LOCK_NB)
                yield path
            finally:
                os.close(held)


def _asked(folder: Path) -> str | None:
    with suppress(OSError, UnicodeDecodeError):
        return (folder / ASKED).read_text(encoding="utf-8")
    return None


def write_folder(samples: Iterable[Sample], out: Path) -> None:
    """Copy samples, bytes unchanged, into a new folder with `metadata.jsonl`.

    Raises:
        UserError: one of them cannot be read; nothing is left behind.
    """
    with FolderWriter(out) as writer:
        for sample in samples:
            data = _copied(sample)
            name = PurePosixPath(sample.name)
            if sample.size is not None or sample.key is not None:  # a shard's or LMDB's key has no ending
                name = PurePosixPath(f"{name}.{ending_of(sample.name, data)}")
            writer.add(str(name), data, sample.text, sample.meta)


def _copied(sample: Sample) -> bytes:
    try:
        return sample.read_bytes()
    except PictureError as error:
        raise UserError(f"{sample.name}: {error.kind}, {error}; mend it or take its line out") from None


def ending_of(name: str, data: bytes) -> str:
    """The ending, without its dot, under which a shard's reader knows a picture: its file's own, else its format's."""
    if (own := PurePosixPath(name).suffix.lower()) in PICTURE_SUFFIXES:
        return own[1:]
    try:
        with identify(data) as picture:
            found = (picture.format or "").lower()
    except Exception:  # unreadable bytes are copied as they are, for the reader to set aside
        return "png"
    found = {"jpeg": "jpg", "mpo": "jpg", "jpeg2000": "jp2", "tiff": "tif"}.get(found, found)
    return found if f".{found}" in PICTURE_SUFFIXES else "png"


def write_shards(samples: Iterable[Sample], out: Path, per_shard: int = 10_000) -> None:
    """Copy samples into WebDataset tar shards `out/000000.tar`, ...: picture, `.txt`, and `.json` for the rest.

    Raises:
        UserError: `out` exists and is not empty.
    """
    import webdataset

    with new_folder(out) as tmp, webdataset.ShardWriter(str(tmp / "%06d.tar"), maxcount=per_shard, verbose=0) as writer:
        for i, sample in enumerate(samples):
            data = _copied(sample)
            # a reader takes one line end off a .txt: a label's own must not be the one
            text = sample.text + "\n" * sample.text.endswith("\n")
            row: dict[str, Any] = {"__key__": f"{i:09d}", ending_of(sample.name, data): data, "txt": text}
            if sample.meta:
                row["json"] = dict(sample.meta)
            writer.write(row)


# --------------------------------------------------------------------------------------------- split, merge and hash


def split(samples: Sequence[Sample], shares: Sequence[float], seed: int = 0) -> list[list[Sample]]:
    """Split samples by `shares` (normalised), stratified by length and by character, rarest first.

    The same samples and seed give the same parts whatever the samples' order. The order is that of iterative
    stratification (Sechidis et al. 2011, "On the stratification of multi-label data", algorithm 1), where the labels of
    a sample are its characters and its length. But a sample goes where most of all its labels is wanting, not of its
    rarest one alone: with that rule a part of one fifth got none of a character that occurs twice, and a third more or
    less than its share of a frequent one.

    Raises:
        UserError: no share is positive.
    """
    if not shares or min(shares) < 0 or sum(shares) <= 0:
        raise UserError(f"shares {list(shares)} must be positive numbers")
    want = {p: share / sum(shares) for p, share in enumerate(shares) if share > 0}
    order = sorted(range(len(samples)), key=lambda i: _draw(seed, samples[i]))
    rank = {i: r for r, i in enumerate(order)}
    # in a fixed order: a sum of floats depends on it. The last one, which all share, holds the parts to their sizes
    traits: list[list[str | int]] = [[*sorted(set(s.text)), len(s.text), ""] for s in samples]
    having: dict[str | int, set[int]] = defaultdict(set)
    for i, own in enumerate(traits):
        for trait in own:
            having[trait].add(i)
    lack = {trait: dict.fromkeys(want, 1.0) for trait in having}  # of what a part is to have of a trait, the share
    cost = {trait: {p: 1 / (w * len(members)) for p, w in want.items()} for trait, members in having.items()}
    part = [-1] * len(samples)
    while having:
        trait = min(having, key=lambda t: (len(having[t]), isinstance(t, int), str(t)))
        for i in sorted(having.pop(trait), key=rank.__getitem__):
            best = max(want, key=lambda p: (sum(lack[t][p] for t in traits[i]), want[p], -p))
            part[i] = best
            for other in traits[i]:
                lack[other][best] -= cost[other][best]
                if other in having:
                    having[other].discard(i)
        having = {t: members for t, members in having.items() if members}
    return [[s for i, s in enumerate(samples) if part[i] == p] for p in range(len(shares))]


def split_apart(samples: Sequence[Sample], shares: Sequence[float], seed: int = 0) -> list[list[Sample]]:
    """`split`, with equal pictures in one part: what is read in a part was in no other."""
    copies: dict[str | int, list[Sample]] = defaultdict(list)
    for i, sample in enumerate(samples):
        copies[known_by(sample) or i].append(sample)
    groups = {id(own[0]): own for own in copies.values()}
    parts = split([own[0] for own in groups.values()], shares, seed)
    return [[s for first in part for s in groups[id(first)]] for part in parts]


def shared_pictures(held: Sequence[Sample], train: Sequence[Sample]) -> list[Sample]:
    """Those of `held` whose pictures, byte for byte, are among those to train on as well."""
    known = {known_by(s) for s in train} - {None}
    return [s for s in held if known_by(s) in known]


def each_once(samples: Sequence[Sample], but: Sequence[Sample]) -> list[Sample]:
    """Samples without a second one of a picture, byte for byte, and without those whose pictures are among `but`."""
    seen, left = {known_by(s) for s in but} - {None}, []
    for sample in samples:
        if (own := known_by(sample)) not in seen:
            left.append(sample)
            seen |= {own} - {None}
    return left


def without_copies(samples: Sequence[Sample]) -> list[Sample]:
    """Samples without a second one of a picture, byte for byte, under the same label: it tells nothing more."""
    seen, left = set[tuple[str, str]](), []
    for sample in samples:
        if (own := known_by(sample)) is None or (own, sample.text) not in seen:
            left.append(sample)
            seen |= {(own, sample.text)} if own else set()
    return left


def picture_hash(sample: Sample) -> str:
    """SHA-256 of a picture's bytes."""
    return hashlib.sha256(sample.read_bytes()).hexdigest()


def known_by(sample: Sample) -> str | None:
    """`picture_hash`, or nothing where the picture cannot be read."""
    with suppress(PictureError):
        return picture_hash(sample)
    return None


def _draw(seed: int, sample: Sample) -> bytes:
    return hashlib.sha256(f"{seed}\0{sample.name}\0{sample.text}".encode("utf-8", "surrogateescape")).digest()


def merge(manifests: Sequence[Manifest]) -> Manifest:
    """All samples of several manifests, each under a name of its own: those that two of them share get their manifest's
    number in front, as often as it takes."""
    names = Counter(s.name for m in manifests for s in m)
    taken, samples = set(names), []
    for i, manifest in enumerate(manifests):
        for sample in manifest:
            if names[name := sample.name] > 1:
                while name in taken:
                    name = f"{i}/{name}"
                taken.add(name)
            samples.append(replace(sample, name=name))
    problems = tuple(p for m in manifests for p in m.problems)
    return Manifest(tuple(samples), problems, " + ".join(m.source for m in manifests))


def content_hash(samples: Iterable[Sample]) -> str:
    """SHA-256 over the sorted hashes of (picture bytes, text): the same whatever the names, layout and order. Pictures
    that cannot be read count with their texts."""
    return hash_of_rows(sorted(rows_of(samples)))


def rows_of(samples: Iterable[Sample]) -> list[str]:
    """The hash and the text of each sample, in order."""
    return [(known_by(s) or "") + "\0" + s.text for s in samples]


def hash_of_rows(rows: Iterable[str]) -> str:
    """SHA-256 over `rows_of` some samples."""
    return hashlib.sha256("\n".join(rows).encode()).hexdigest()
