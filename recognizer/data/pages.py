"""Pages for a person: one self-contained HTML file each, in one look, safe with strangers' texts and pictures."""

from __future__ import annotations

import base64
import io
import os
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path
from typing import Any

import jinja2
from markupsafe import Markup

from recognizer.errors import UserError
from recognizer.images import PictureError, open_picture
from recognizer.readings import marked
from recognizer.samples import Sample

HOUSE = Path(__file__).parent / "page"
LARGEST = (480, 128)  # width and height in pixels of an embedded picture: twice what a page shows

Piece = tuple[str, bool]  # a part of a text, and whether it is marked


def templates(*folders: Path) -> jinja2.Environment:
    """The templates of some folders, and what all pages share."""
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader([*folders, HOUSE]), autoescape=True, undefined=jinja2.StrictUndefined,
        trim_blocks=True, lstrip_blocks=True, finalize=_shown,
    )  # fmt: skip
    environment.filters["percent"] = percent
    return environment


def write_page(path: Path, page: str) -> None:
    """Write a page, whole or not at all.

    Raises:
        UserError: it cannot be written there.
    """
    tmp = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        tmp.write_text(page, encoding="utf-8")
        tmp.replace(path)
    except OSError as error:
        raise UserError(f"{path} cannot be written: {error.strerror}") from None
    finally:
        tmp.unlink(missing_ok=True)


def percent(share: float) -> str:
    return f"{100 * share:.1f} %"


@dataclass(frozen=True)
class Tile:
    """A picture as a data URI (None where it can no longer be opened), its alternative text and what stands below."""

    uri: str | None
    alt: str
    pieces: tuple[Piece, ...]
    note: str = ""


def tile_of(sample: Sample, pieces: Sequence[Piece] = (), note: str = "", about: str = "") -> Tile:
    """A sample's picture with its text below, or with `pieces` of one; `about` says more to those who cannot see it."""
    return Tile(embedded(sample), f"{sample.text}{about}", tuple(pieces) or ((sample.text, False),), note)


def embedded(sample: Sample) -> str | None:
    """A sample's picture as a JPEG data URI; None where it cannot be opened any more."""
    try:
        picture = open_picture(sample.read_bytes(), "RGB")
    except PictureError:
        return None
    picture.thumbnail(LARGEST)
    data = io.BytesIO()
    picture.save(data, "JPEG", quality=90)
    return "data:image/jpeg;base64," + base64.b64encode(data.getvalue()).decode()


def pieces_of(text: str, marks: Iterable[bool]) -> tuple[Piece, ...]:
    """A text cut where its marks change."""
    both = zip(text, marks, strict=True)
    return tuple(("".join(c for c, _ in run), mark) for mark, run in groupby(both, key=lambda pair: pair[1]))


def read_pieces(truth: str, read: str) -> tuple[Piece, ...]:
    """What was read, with its wrong characters marked."""
    return pieces_of(*marked(truth, read))


def _shown(value: Any) -> Any:
    """A stranger's text with control characters, direction marks and broken UTF-8 spelt out; all else as it is."""
    if not isinstance(value, str) or isinstance(value, Markup) or value.isprintable():
        return value
    return "".join(c if c.isprintable() or c == "\n" else ascii(c)[1:-1] for c in value)
