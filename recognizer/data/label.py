"""Label pictures fast: what a reader sees is filled in, least sure first, and a person accepts or corrects it.

Each answer is a line of `labels.jsonl` beside the pictures, on disk before the next picture is shown; the last line of
a picture counts. `metadata.jsonl`, the manifest, is written from it, and keeps all that it held before.
"""

from __future__ import annotations

import csv
import io
import json
import threading
import time
from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from recognizer.decode import Constraint
from recognizer.errors import UserError
from recognizer.images import PictureError
from recognizer.journal import Journal, locked
from recognizer.reader import Reader
from recognizer.readings import Reading
from recognizer.samples import list_pictures

JOURNAL = "labels.jsonl"
STATUSES = ("labelled", "unreadable", "undone")
NO_ANSWER = "is no answer: mend the line or take it out"
LEASE = 120.0  # seconds for which a picture that one tab was given is given to no other
BATCH = 32  # pictures that the reader reads at a time
LATELY = 300.0  # seconds over which pictures a minute are counted
OFTEN = 1.0  # seconds between two writings of the manifest


class Taken(Exception):
    """A picture was answered elsewhere since it was shown."""


def answers_in(path: Path) -> Journal:
    """A journal of answers.

    Raises:
        UserError: a line that is no answer.
    """
    journal = Journal(path, NO_ANSWER)
    for number, row in enumerate(journal.rows, 1):
        right = isinstance(row.get("file_name"), str) and row.get("status") in STATUSES
        if not right or (row["status"] == "labelled" and not isinstance(row.get("text"), str)):
            raise UserError(f"{path}, line {number}, {NO_ANSWER}")
    return journal


class Folder:
    """A folder of pictures: the answers in its journal, and its manifest."""

    def __init__(self, root: Path) -> None:
        """Read both.

        Raises:
            UserError: a line of its journal that is no answer.
        """
        self.root = root
        self.journal = answers_in(root / JOURNAL)
        self._lines = list(_manifest_lines(root))
        self.dirty = bool(self.journal.rows)  # a kill may have come before the manifest

    @property
    def answers(self) -> dict[str, Mapping[str, Any]]:
        """The last answer of each picture that was not taken back."""
        last = {row["file_name"]: row for row in self.journal.rows}
        return {name: row for name, row in last.items() if row["status"] != "undone"}

    @property
    def texts(self) -> dict[str, str]:
        """The labels that the manifest and the answers give; a picture that is listed with two texts has none."""
        given: dict[str, set[str]] = {}
        for name, line in self._lines:
            if name is not None:
                given.setdefault(name, set()).add(str(json.loads(line).get("text") or ""))
        texts = {name: own.pop() for name, own in given.items() if len(own) == 1}
        for name, row in self.answers.items():
            texts[name] = row["text"] if row["status"] == "labelled" else ""
        return {name: text for name, text in texts.items() if text}

    def write_manifest(self) -> None:
        """Write `metadata.jsonl`, whole or not at all: its lines as they were, but for those that were answered. A
        picture that nobody can read is in none."""
        answers, lines, written = self.answers, [], set()
        for name, line in self._lines:
            if name not in answers:
                lines.append(line)
            elif name not in written and answers[name]["status"] == "labelled":
                lines.append(json.dumps({**json.loads(line), "text": answers[name]["text"]}, ensure_ascii=False))
                written.add(name)
        for name in sorted(answers.keys() - written):
            if answers[name]["status"] == "labelled":
                lines.append(json.dumps({"file_name": name, "text": answers[name]["text"]}, ensure_ascii=False))
        tmp = self.root / ".metadata.jsonl.tmp"
        tmp.write_text("".join(line + "\n" for line in lines), encoding="utf-8", errors="surrogateescape")
        tmp.replace(self.root / "metadata.jsonl")


def _manifest_lines(root: Path) -> Iterator[tuple[str | None, str]]:
    """The lines of a folder's manifest, as JSON, with the file that each names, None where it names none."""
    path = root / "metadata.jsonl"
    if path.exists():
        for line in path.read_text(encoding="utf-8", errors="surrogateescape").splitlines():
            try:
                name = json.loads(line)["file_name"]
            except (ValueError, KeyError, TypeError):
                name = None
            yield (name if isinstance(name, str) else None), line
    elif (path := root / "metadata.csv").exists():
        for row in csv.DictReader(io.StringIO(path.read_text(encoding="utf-8-sig"), newline="")):
            yield row.get("file_name"), json.dumps({k: v for k, v in row.items() if k}, ensure_ascii=False)


@dataclass
class Picture:
    """A picture that waits for an answer, or had one."""

    name: str
    path: Path
    folder: Folder
    label: str | None  # that it has now
    note: Mapping[str, Any] = field(default_factory=dict)  # the row of an audit
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
    """

    def __init__(
        self, folders: Sequence[Path], review: Sequence[Mapping[str, Any]] | None = None, labeller: str = ""
    ) -> None:
        self.labeller, self.review = labeller, review is not None
        self.folders = [Folder(path) for path in dict.fromkeys(folders)]
        self.pictures: list[Picture] = []
        self.before = 0  # answered before
        notes = {row["file_name"]: row for row in review or ()}
        for folder in self.folders:
            answers, texts = folder.answers, folder.texts
            for path in list_pictures(folder.root):
                name = path.relative_to(folder.root).as_posix()
                if self.review and name not in notes:
                    continue
                answer = answers.get(name, {})
                done = answer.get("review", False) if self.review else name in texts or bool(answer)
                if done:
                    self.before += 1
                else:
                    self.pictures.append(Picture(name, path, folder, texts.get(name), notes.get(name, {})))
        place = {name: k for k, name in enumerate(notes)}
        self.pictures.sort(key=lambda p: place.get(p.name, 0))
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
                except PictureError as error:
                    picture.broken = f"{error.kind}: {error}"
            for picture, reading in zip(part, reader.read(greys, constraint), strict=True):
                picture.guess = reading

    def _rank(self, own: tuple[int, Picture]) -> tuple[float, ...]:
        i, picture = own
        sure = picture.guess.confidence if picture.guess else 2.0  # what the reader has not come to yet is last
        return (picture.skips, i) if self.review else (picture.skips, sure, i)

    def next(self, tab: str, count: int = 3) -> list[dict[str, Any]]:
        """The next pictures of a tab, which for a while are no other's; skipped ones come after all others."""
        with self._lock:
            now = time.monotonic()
            free = [
                (i, p) for i, p in enumerate(self.pictures)
                if not p.answered and not p.broken and (p.tab in ("", tab) or p.until < now)
            ]  # fmt: skip
            chosen = sorted(free, key=self._rank)[:count]
            for _, picture in chosen:
                picture.tab, picture.until = tab, now + LEASE
            return [self._shown(i) for i, _ in chosen]

    def _shown(self, i: int) -> dict[str, Any]:
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
            UserError: no such picture, or a label that is none.
        """
        if text is not None and (not text or text != text.strip() or not text.isprintable()):
            raise UserError("a label is one line of text, without spaces around it")
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

    def undo(self, tab: str) -> dict[str, Any] | None:
        """Take a tab's last answer back, and show that picture again; None where there is none, or where another tab
        has answered that picture since."""
        with self._lock:
            while self._undo.get(tab):
                i, skipped = self._undo[tab].pop()
                picture = self.pictures[i]
                if skipped and not picture.answered:
                    picture.skips -= 1
                elif not skipped and picture.answered:
                    self._record(picture, "undone", None, 0.0)
                    picture.answered = False
                else:
                    continue
                picture.tab, picture.until = tab, time.monotonic() + LEASE
                return self._shown(i)
            return None

    def _record(self, picture: Picture, status: str, text: str | None, seconds: float) -> None:
        row = {
            "file_name": picture.name, "status": status, "text": text, "guess": picture.guess and picture.guess.text,
            "by": self.labeller, "seconds": round(seconds, 2), "review": self.review,
            "at": datetime.now(UTC).isoformat(timespec="seconds"),
        }  # fmt: skip
        picture.folder.journal.append(row)
        picture.folder.dirty = True
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

    def state(self) -> dict[str, Any]:
        """How far it is: pictures in all, answered, broken and yet unread by the reader, and answers a minute."""
        with self._lock:
            now = time.monotonic()
            while self._lately and self._lately[0] < now - LATELY:
                self._lately.popleft()
            since = now - self._lately[0] if self._lately else 0.0
            answered = self.before + sum(p.answered for p in self.pictures)
            return {
                "total": self.before + len(self.pictures), "answered": answered,
                "broken": sum(bool(p.broken) for p in self.pictures),
                "unread": sum(p.guess is None and not p.broken for p in self.pictures),
                "a_minute": 60 * len(self._lately) / max(since, 5.0), "review": self.review,
            }  # fmt: skip

    def write_manifests(self) -> None:
        """Write the manifests of folders in which something was answered since."""
        for folder in self.folders:
            if folder.dirty:
                with self._lock:
                    folder.dirty = False
                    folder.write_manifest()


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
        for root in dict.fromkeys(folders):
            if not root.is_dir():
                raise UserError(f"{root}: no such folder")
            held.enter_context(locked(root / JOURNAL))  # before it is read: what another adds must not be lost
        desk = Desk(folders, review, labeller)

        def keep_written() -> None:
            while not stop.wait(OFTEN):
                desk.write_manifests()

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
    """What several labellers answered: the labels that they agree on, and what each said where they do not."""

    agreed: Mapping[str, str]
    unreadable: tuple[str, ...]
    disagreed: Mapping[str, Mapping[str, str]]  # a picture's name -> labeller -> text, "" where it was unreadable


def merge_answers(journals: Sequence[Path]) -> Merged:
    """Merge what several labellers answered for the same pictures.

    Raises:
        UserError: a journal that is none.
    """
    said: dict[str, dict[str, str]] = {}
    for path in journals:
        if not path.is_file():
            raise UserError(f"{path}: no such file")
        for row in answers_in(path).rows:
            own = said.setdefault(row["file_name"], {})
            own.pop(str(path), None)
            if row["status"] != "undone":
                own[str(path)] = row.get("text") or ""
    agreed, unreadable, disagreed = {}, [], {}
    for name, own in sorted(said.items()):
        if len(set(own.values())) > 1:
            disagreed[name] = own
        elif own and (text := next(iter(own.values()))):
            agreed[name] = text
        elif own:
            unreadable.append(name)
    return Merged(agreed, tuple(unreadable), disagreed)


def write_merged(merged: Merged, out: Path) -> None:
    """Write `metadata.jsonl`, of what labellers agree on, and `disagreements.jsonl`, rows for a review, into `out`."""
    out.mkdir(parents=True)
    rows = [{"file_name": name, "text": text} for name, text in merged.agreed.items()]
    doubts = []
    for name, said in merged.disagreed.items():
        first, *others = (text for text in dict.fromkeys(said.values()) if text)
        why = ", ".join(f"{by} says {text!r}" if text else f"{by} cannot read it" for by, text in said.items())
        doubts.append({"file_name": name, "text": first, "suggested": (others or [""])[0], "reasons": [why]})
    for file, lines in (("metadata.jsonl", rows), ("disagreements.jsonl", doubts)):
        text = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in lines)
        (out / file).write_text(text, encoding="utf-8", errors="surrogateescape")
