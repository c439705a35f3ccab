"""Label pictures fast: what a reader sees is filled in, least sure first, and a person accepts or corrects it.

The manifest, `metadata.jsonl`, is what counts. Each answer is first a line of `labels.jsonl` beside the pictures, on
disk before the next picture is shown, and goes from there into the manifest, beside whatever else has been written
there meanwhile; what a kill left out is made up for at the next start.
"""

from __future__ import annotations

import heapq
import json
import os
import shlex
import shutil
import threading
import time
import unicodedata
from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path, PurePosixPath
from typing import Any

from recognizer.decode import Constraint
from recognizer.errors import UserError
from recognizer.images import PictureError
from recognizer.journal import Journal, locked
from recognizer.reader import Reader
from recognizer.readings import Reading
from recognizer.samples import csv_rows, is_inside, list_pictures, new_folder, read_manifest

JOURNAL = "labels.jsonl"
STATUSES = ("labelled", "unreadable", "undone", "written")
NO_ANSWER = "is no answer: mend the line or take it out"
LEASE = 120.0  # seconds for which a picture that one tab was given is given to no other
BATCH = 32  # pictures that the reader reads at a time
LATELY = 300.0  # seconds over which pictures a minute are counted
OFTEN = 1.0  # seconds between two writings of the manifest, at least,
SELDOM = 20.0  # and so many times as long as a writing takes
# characters that no one can see, and that pasting brings along; not the joiners, which some scripts need
UNSEEN = (
    "\u00ad\u200b\u200e\u200f\u202a\u202b\u202c\u202d\u202e\u2060\u2061\u2062\u2063\u2064\u2066\u2067\u2068\u2069\ufeff"
)

Row = dict[str, Any]


class Taken(Exception):
    """A picture was answered elsewhere since it was shown."""


def answers_in(path: Path) -> Journal:
    """A journal of answers.

    Raises:
        UserError: a line that is no answer.
    """
    journal = Journal(path, NO_ANSWER)
    for number, row in enumerate(journal.rows, 1):
        status = row.get("status")
        right = status == "written" or (isinstance(row.get("file_name"), str) and status in STATUSES)
        if not right or (status == "labelled" and not isinstance(row.get("text"), str)):
            raise UserError(f"{path}, line {number}, {NO_ANSWER}")
    return journal


def standing(rows: Sequence[Mapping[str, Any]]) -> dict[str, Mapping[str, Any]]:
    """The answer of each picture that stands: the last that was not taken back."""
    given: dict[str, list[Mapping[str, Any]]] = {}
    for row in rows:
        if row["status"] == "undone":
            if given.get(row["file_name"]):
                given[row["file_name"]].pop()
        elif row["status"] != "written":
            given.setdefault(row["file_name"], []).append(row)
    return {name: own[-1] for name, own in given.items() if own}


def fits(text: str) -> bool:
    """Whether a text can be a label: one line, no space around it, nothing that no one can see."""
    unseen = any(c in UNSEEN or unicodedata.category(c) in ("Cc", "Cs", "Zl", "Zp") for c in text)
    return bool(text) and text == text.strip() and not unseen


def read_doubts(path: Path) -> list[dict[str, Any]]:
    """The lines of an audit.

    Raises:
        UserError: no such file, or none that an audit wrote.
    """
    try:
        rows = [
            json.loads(line) for line in path.read_text(encoding="utf-8", errors="surrogateescape").split("\n") if line
        ]
        if any(not isinstance(row[name], str) for row in rows for name in ("file_name", "text")) or any(
            not isinstance(row.get("reasons", []), list) for row in rows
        ):
            raise TypeError
    except OSError as error:
        raise UserError(f"{path} cannot be read: {error.strerror}") from None
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
        raise UserError(f"{path} is no list that recognizer audit-labels wrote") from None
    return rows


def is_listed(folder: Path) -> bool:
    """Whether a folder lists its labels. One whose labels are in file names or shards cannot be reviewed: a list of
    what was answered alone would hide all others from whoever reads the folder next."""
    return any((folder / name).exists() for name in ("metadata.jsonl", "metadata.csv"))


def can_be_reviewed(data: Sequence[Path | str], label_pattern: str | None) -> bool:
    """Whether the labelling page can show labels in doubt of this data, as it is read."""
    return label_pattern is None and all(is_listed(Path(folder)) for folder in data)


def how_to_review(data: Sequence[Path], label_pattern: str | None, doubts: Path) -> str:
    """What to type to look at labels in doubt: where the data lists none, a copy that does is made first."""
    if can_be_reviewed(data, label_pattern):
        words = ["recognizer", "label", *map(str, data), "--review", str(doubts)]
        return f"look at them with: {shlex.join(words)}"
    words = ["recognizer", "merge", *map(str, data)]
    words += ["--label-pattern", label_pattern] if label_pattern else []
    review = shlex.join(["--review", str(doubts)])
    return f"look at them with: {shlex.join(words)} --out FOLDER, and then recognizer label FOLDER {review}"


class Folder:
    """A folder of pictures: its manifest, and the journal of answers that are on their way there."""

    def __init__(self, root: Path) -> None:
        """Read both, and bring into the manifest what a kill kept from it.

        Raises:
            UserError: a line of the journal that is no answer, or of `metadata.csv` that is no row.
        """
        self.root = root
        self.journal = answers_in(root / JOURNAL)
        self.answers = standing(self.journal.rows)
        self.pending: dict[str, Mapping[str, Any]] = {}  # the last line of each picture that the manifest lacks
        for row in self.journal.rows:
            if row["status"] == "written":
                self.pending.clear()
            else:
                self.pending[row["file_name"]] = row
        if self.pending:
            self.write_manifest(self.pending)
            self.written(self.pending)
        self.rows = {name: row for name, row, _ in self._lines() if name is not None}
        self.texts = {s.name: s.text for s in read_manifest(root)} if is_listed(root) else {}

    def _lines(self) -> Iterator[tuple[str | None, Row, str]]:
        """The lines of the manifest on disk: the file that each names, None where it names none, what it says, and
        the line."""
        if (path := self.root / "metadata.jsonl").exists():
            for line in path.read_text(encoding="utf-8-sig", errors="surrogateescape").split("\n"):
                row = None
                with suppress(ValueError, RecursionError):
                    row = json.loads(line)
                row = row if isinstance(row, dict) else {}
                if line.strip():
                    yield _tidy(row.get("file_name")), row, line
        elif (path := self.root / "metadata.csv").exists():
            for number, cells in csv_rows(path):
                if isinstance(cells, str):
                    raise UserError(f"{path}, line {number}: {cells}")
                yield _tidy(cells.get("file_name")), dict(cells), _line(cells)

    def write_manifest(self, pending: Mapping[str, Mapping[str, Any]]) -> None:
        """Write `metadata.jsonl`, whole or not at all: its lines as they are on disk now, but for those of pictures
        that were answered since."""
        lines, written = [], set()
        for name, row, line in self._lines():
            if name is None or name not in pending:
                lines.append(line)
            elif name not in written:
                written.add(name)
                lines += _after(name, row, pending[name])
        for name in sorted(pending.keys() - written):
            lines += _after(name, None, pending[name])
        target = (self.root / "metadata.jsonl").resolve()  # where it is a link, what it leads to
        tmp = target.with_name(".metadata.jsonl.tmp")
        with tmp.open("w", encoding="utf-8", errors="surrogateescape", newline="\n") as file:
            file.write("".join(line + "\n" for line in lines))
            file.flush()
            os.fsync(file.fileno())
        tmp.replace(target)

    def written(self, these: Mapping[str, Mapping[str, Any]]) -> None:
        """Note that these lines are in the manifest."""
        self.pending = {name: row for name, row in self.pending.items() if these.get(name) is not row}
        if not self.pending:
            self.journal.append({"status": "written"})


def _tidy(name: object) -> str | None:
    """A file's name as manifests are read."""
    return Path(os.path.normpath(name)).as_posix() if isinstance(name, str) and name and "\0" not in name else None


def _line(row: Mapping[str, Any]) -> str:
    """A row as a line that can be written: as it is, or escaped where it holds what no UTF-8 can."""
    line = json.dumps(row, ensure_ascii=False)
    try:
        line.encode("utf-8", "surrogateescape")
    except UnicodeEncodeError:
        return json.dumps(row)
    return line


def _after(name: str, row: Row | None, answer: Mapping[str, Any]) -> list[str]:
    """The line of a picture after an answer, or none."""
    if answer["status"] == "unreadable":
        return []
    if answer["status"] == "undone":
        return [_line(answer["was"])] if answer["was"] else []
    return [_line({"file_name": name, **(row or answer.get("was") or {}), "text": answer["text"]})]


@dataclass
class Picture:
    """A picture that waits for an answer, or had one."""

    name: str
    path: Path
    folder: Folder
    label: str | None  # that it has now
    note: Mapping[str, Any]  # the row of an audit
    guess: Reading | None = None
    broken: str = ""  # why it cannot be opened
    answered: bool = False
    skips: int = 0
    version: int = 0  # changes with each answer
    tab: str = ""  # that it was given to,
    until: float = 0.0  # and how long it is that tab's


class Desk:
    """The pictures that are to be labelled, what was answered, and which comes next. For use from several threads.

    Args:
        review: rows of an audit: these pictures are shown, in that order, with the label that they have. Else those
            without a label are, the least sure first.

    Raises:
        UserError: a review of pictures whose folder does not list its labels.
    """

    def __init__(
        self, folders: Sequence[Path], review: Sequence[Mapping[str, Any]] | None = None, labeller: str = ""
    ) -> None:
        self.labeller, self.review = labeller, review is not None
        self.folders = [Folder(path) for path in dict.fromkeys(folders)]
        self.pictures: list[Picture] = []
        self.before = 0  # answered before
        self.outside = 0  # links to elsewhere, which no manifest may name
        rows, roots = review or (), [folder.root.resolve() for folder in self.folders]
        by_path = {row["path"]: row for row in rows if isinstance(row.get("path"), str)}
        by_name = {row["file_name"]: row for row in rows if not isinstance(row.get("path"), str)}
        # of pictures that lie elsewhere: the folders may be a copy, where each has its name and its label
        elsewhere = {
            (row["file_name"], row["text"]): row
            for path, row in by_path.items() if not any(Path(path).is_relative_to(root) for root in roots)
        }  # fmt: skip
        for folder in self.folders:
            resolved = folder.root.resolve()
            for path in list_pictures(folder.root):
                name = path.relative_to(folder.root).as_posix()
                note = by_path.get(str(path.resolve())) or by_name.get(name)
                for known in (name, str(PurePosixPath(name).with_suffix(""))):  # a copy of a shard's has got an ending
                    note = note or elsewhere.get((known, folder.texts.get(name, "")))
                if self.review and note is None:
                    continue
                if not is_inside(path, resolved):
                    self.outside += 1
                    continue
                answer, label = folder.answers.get(name), folder.texts.get(name)
                unreadable = answer is not None and answer["status"] == "unreadable" and label is None
                if self.review:  # what a review settled is settled, until its label is another one
                    done = answer is not None and bool(answer.get("review")) and (answer["text"] == label)
                else:
                    done = label is not None or unreadable
                if done:
                    self.before += 1
                else:
                    shown = label if label is not None or note is None else note["text"]
                    self.pictures.append(Picture(name, path, folder, shown, note or {}))
        for root in dict.fromkeys(p.folder.root for p in self.pictures if self.review and not is_listed(p.folder.root)):
            raise UserError(
                f"{root} has no metadata.jsonl or metadata.csv, and one with the answers of a review alone would hide "
                "its other labels: recognizer merge it into a folder first"
            )
        place = {id(row): k for k, row in enumerate(review or ())}
        self.pictures.sort(key=lambda p: place.get(id(p.note), 0))
        self._lock = threading.Lock()
        self._undo: dict[str, list[tuple[int, bool]]] = {}  # of each tab: which picture, and whether it was skipped
        self._lately: deque[float] = deque()

    def read(self, reader: Reader, constraint: Constraint | None = None, stop: threading.Event | None = None) -> None:
        """Fill in what a reader sees, a few pictures at a time; those that cannot be opened are not shown."""
        for k in range(0, len(self.pictures), BATCH):
            if stop is not None and stop.is_set():
                return
            part, greys = [], []
            for picture in self.pictures[k : k + BATCH]:
                try:
                    greys.append(reader.open(picture.path))
                    part.append(picture)
                except (PictureError, OSError) as error:
                    picture.broken = str(error)
            for picture, reading in zip(part, reader.read(greys, constraint), strict=True):
                picture.guess = reading

    def broken(self, i: int, why: str) -> None:
        """Note that a picture cannot be opened: it is shown no more."""
        self._picture(i).broken = why

    def _rank(self, own: tuple[int, Picture]) -> tuple[float, ...]:
        i, picture = own
        sure = picture.guess.confidence if picture.guess else 2.0  # what the reader has not come to yet is last
        return (picture.skips, i) if self.review else (picture.skips, sure, i)

    def next(self, tab: str, count: int = 3) -> list[Row]:
        """The next pictures of a tab, which for a while are no other's; skipped ones come after all others."""
        with self._lock:
            now = time.monotonic()
            free = (
                (i, p) for i, p in enumerate(self.pictures)
                if not p.answered and not p.broken and (p.tab in ("", tab) or p.until < now)
            )  # fmt: skip
            chosen = heapq.nsmallest(count, free, key=self._rank)
            for _, picture in chosen:
                picture.tab, picture.until = tab, now + LEASE
            return [self._shown(i) for i, _ in chosen]

    def _shown(self, i: int) -> Row:
        p, guess = self.pictures[i], self.pictures[i].guess
        return {
            "id": i, "name": p.name, "version": p.version, "label": p.label,
            "guess": guess.text if guess else "", "confidence": guess.confidence if guess else None,
            "characters": [[c, round(sure, 4)] for c, sure in guess.characters] if guess else [],
            "suggested": p.note.get("suggested", ""), "reasons": list(p.note.get("reasons", ())),
        }  # fmt: skip

    def answer(
        self, tab: str, i: int, version: int, text: str | None, seconds: float = 0.0, skip: bool = False
    ) -> None:
        """Take a label, or None from a person who cannot read it; it is on disk when this returns.

        Raises:
            Taken: the picture was answered elsewhere since it was shown.
            UserError: no such picture, a label that is none, or a journal that something else has changed.
        """
        if text is not None and not fits(text):
            raise UserError("a label is one line of text, without spaces around it and without unseen characters")
        with self._lock:
            picture = self._picture(i)
            if picture.version != version:
                raise Taken(picture.folder.answers.get(picture.name, {}).get("text") or "")
            if skip:
                picture.skips, picture.tab = picture.skips + 1, ""
            else:
                self._record(picture, "unreadable" if text is None else "labelled", text, seconds)
                picture.answered = True
                self._lately.append(time.monotonic())
            self._undo.setdefault(tab, []).append((i, skip))

    def undo(self, tab: str) -> Row | None:
        """Take a tab's last answer back, and show that picture again; None where there is none, or where another tab
        has answered that picture since."""
        with self._lock:
            while self._undo.get(tab):
                i, skipped = self._undo[tab][-1]
                picture = self.pictures[i]
                if picture.answered != skipped:
                    if skipped:
                        picture.skips -= 1
                    else:
                        self._record(picture, "undone", None, 0.0)
                        picture.answered = False
                    self._undo[tab].pop()
                    picture.tab, picture.until = tab, time.monotonic() + LEASE
                    return self._shown(i)
                self._undo[tab].pop()
            return None

    def _record(self, picture: Picture, status: str, text: str | None, seconds: float) -> None:
        folder, name = picture.folder, picture.name
        before = folder.answers[name]["was"] if status == "undone" else folder.rows.get(name)
        row = {
            "file_name": name, "status": status, "text": text, "was": before,
            "guess": picture.guess and picture.guess.text, "by": self.labeller, "seconds": round(seconds, 2),
            "review": self.review, "at": datetime.now(UTC).isoformat(timespec="seconds"),
        }  # fmt: skip
        folder.journal.append(row)
        folder.pending[name] = row
        if status == "undone":
            del folder.answers[name]
            folder.answers |= standing([r for r in folder.journal.rows if r.get("file_name") == name])
        else:
            folder.answers[name] = row
        picture.version += 1

    def _picture(self, i: int) -> Picture:
        if not 0 <= i < len(self.pictures):
            raise UserError(f"there is no picture {i}")
        return self.pictures[i]

    def path_of(self, i: int) -> Path:
        """Where a picture lies.

        Raises:
            UserError: no such picture.
        """
        return self._picture(i).path

    def state(self) -> Row:
        """How far it is: pictures to label, answered, broken and yet unread by the reader, and answers a minute."""
        with self._lock:
            now = time.monotonic()
            while self._lately and self._lately[0] < now - LATELY:
                self._lately.popleft()
            since = now - self._lately[0] if self._lately else 0.0
            answered = sum(p.answered for p in self.pictures)
            broken = sum(bool(p.broken) and not p.answered for p in self.pictures)
            return {
                "total": self.before + len(self.pictures), "answered": self.before + answered, "broken": broken,
                "unread": sum(p.guess is None and not p.broken and not p.answered for p in self.pictures),
                "a_minute": 60 * len(self._lately) / max(since, 5.0),
            }  # fmt: skip

    def write_manifests(self) -> None:
        """Bring what was answered into the manifests. One thread at a time; answers are taken meanwhile."""
        for folder in self.folders:
            with self._lock:
                pending = dict(folder.pending)
            if pending:
                folder.write_manifest(pending)
                with self._lock:
                    folder.written(pending)


@contextmanager
def desk_of(
    folders: Sequence[Path], review: Sequence[Mapping[str, Any]] | None = None, labeller: str = ""
) -> Iterator[Desk]:
    """A desk that holds its folders for this process, and keeps their manifests written.

    Raises:
        UserError: no such folder, another process that labels it, or a journal that cannot be read.
    """
    stop = threading.Event()
    with ExitStack() as held:
        places = {root.resolve(): root for root in reversed(folders)}
        folders = list(dict.fromkeys(places[root.resolve()] for root in folders))  # each once, whatever it is called
        for root in folders:
            if not root.is_dir():
                raise UserError(f"{root}: no such folder")
            if above := next((own for place, own in places.items() if place in root.resolve().parents), None):
                raise UserError(f"{root} lies in {above}: name one of them, or each picture is asked for twice")
            held.enter_context(locked(root / JOURNAL))  # before it is read: what another adds must not be lost
        desk = Desk(folders, review, labeller)

        def keep_written() -> None:
            pause = OFTEN
            while not stop.wait(pause):
                began = time.monotonic()
                with suppress(OSError, UserError):  # a full disk, say: it is tried again, and told of at the end
                    desk.write_manifests()
                pause = max(OFTEN, SELDOM * (time.monotonic() - began))

        writer = threading.Thread(target=keep_written, daemon=True)
        writer.start()
        try:
            yield desk
        finally:
            stop.set()
            writer.join()
            desk.write_manifests()


# --------------------------------------------------------------------------------------------------- several labellers


@dataclass(frozen=True)
class Merged:
    """What several labellers answered: the labels that they agree on, and what each said where they do not.

    `pictures` says where the pictures of both lie, beside one of the journals.
    """

    agreed: Mapping[str, str]
    alone: int  # of those, which one labeller alone saw
    unreadable: tuple[str, ...]
    disagreed: Mapping[str, Mapping[str, str]]  # a picture's name -> labeller -> text, "" where it was unreadable
    pictures: Mapping[str, Path]


def merge_answers(journals: Sequence[Path]) -> Merged:
    """Merge what several labellers answered for the same pictures.

    Raises:
        UserError: a journal that is none, or one that is named twice.
    """
    said: dict[str, dict[str, str]] = {}
    if len({path.resolve() for path in journals}) < len(journals):
        raise UserError("one labels.jsonl is named twice: it would agree with itself")
    found: dict[Path, Mapping[str, Mapping[str, Any]]] = {}
    for path in journals:
        if not path.is_file():
            raise UserError(f"{path}: no such file")
        found[path] = standing(answers_in(path).rows)
    names = {path: {str(row.get("by") or "") for row in rows.values()} for path, rows in found.items()}
    for path, rows in found.items():
        others = set[str]().union(*(own for other, own in names.items() if other != path))
        by = next(iter(names[path]), "") if len(names[path]) == 1 and not names[path] & others else ""
        for name, row in rows.items():
            if PurePosixPath(name).is_absolute() or ".." in PurePosixPath(name).parts:
                raise UserError(f"{path}: {name!r} leads out of its folder: take the line out")
            said.setdefault(name, {})[by or str(path)] = row.get("text") or ""
    agreed, unreadable, disagreed = {}, [], {}
    for name, own in sorted(said.items()):
        if len(set(own.values())) > 1:
            disagreed[name] = own
        elif text := next(iter(own.values())):
            agreed[name] = text
        else:
            unreadable.append(name)
    pictures: dict[str, Path] = {}
    for name in (*agreed, *disagreed):
        beside = ((path.parent / name, path.parent) for path, rows in found.items() if name in rows)
        if there := next((p for p, root in beside if p.is_file() and is_inside(p, root.resolve())), None):
            pictures[name] = there
    return Merged(agreed, sum(len(said[name]) == 1 for name in agreed), tuple(unreadable), disagreed, pictures)


def write_merged(merged: Merged, out: Path) -> None:
    """Write what labellers agree on as a labelled folder, and beside it the pictures that they disagree on and
    `disagreements.jsonl`, rows for a review. A picture that is not there is named all the same."""
    with new_folder(out) as tmp:
        _write_merged(merged, tmp)


def _write_merged(merged: Merged, out: Path) -> None:
    for name, path in merged.pictures.items():
        (out / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(path, out / name)
    rows = [{"file_name": name, "text": text} for name, text in merged.agreed.items()]
    doubts = []
    for name, said in merged.disagreed.items():
        first, *others = (text for text in dict.fromkeys(said.values()) if text)
        why = ", ".join(f"{by} says {text!r}" if text else f"{by} cannot read it" for by, text in said.items())
        doubts.append({"file_name": name, "text": first, "suggested": (others or [""])[0], "reasons": [why]})
    for file, lines in (("metadata.jsonl", rows), ("disagreements.jsonl", doubts)):
        text = "".join(_line(row) + "\n" for row in lines)
        (out / file).write_text(text, encoding="utf-8", errors="surrogateescape")
