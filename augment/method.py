"""The contract that every generator keeps: requests go in, as many pictures come out.

A method answers each request with one RGB picture of the asked size. The same request gives the same picture, whatever
else is asked in the same call, and a source is never changed.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, ClassVar, NamedTuple, Protocol

import numpy as np
from PIL import Image

from recognizer.errors import UserError
from recognizer.images import MAX_PIXELS, PictureError, open_picture
from recognizer.samples import Manifest, Sample, known_by
from recognizer.settings import Settings

FEWEST = 20  # pictures that a method can learn from


@dataclass(frozen=True, slots=True)
class Request:
    """One picture to make: the text it must show, a seed, its size in pixels, and the real picture that it varies.

    `source` is the name of a sample; None where the method draws from nothing. `why` says what it is for. Where the
    text is a sample's with one character swapped for what it is taken for, `pair` names that sample. `drawn` is what
    its picture shows, where labels have another case than pictures.
    """

    text: str
    seed: int
    width: int
    height: int
    source: str | None = None
    why: str = ""
    pair: str | None = None
    drawn: str | None = None

    @property
    def shown(self) -> str:
        """What a method that draws from a font writes."""
        return self.drawn or self.text

    def rng(self) -> np.random.Generator:
        """The generator of all randomness in answering this request."""
        return np.random.default_rng([self.seed, *self.text.encode("utf-32-le")])


class Method(Protocol):
    """What makes pictures.

    `Settings` is its own settings class. `needs_source` says that it varies real pictures. `exact_text` says that its
    pictures show their text by construction (drawn from a font), so that no reader need judge whether they do: one that
    never saw the font would refuse them all. One that draws from a real picture where a request names one, and from
    nothing where it does not, says `takes_source = True`. One that puts pieces of samples together names these,
    `pieces(request)`, so that what came of a wrong label can be found. One that may lack a text's characters has
    `can_draw(requests)`, a boolean for each, so that practice asks it for no such text.
    """

    Settings: ClassVar[type[Settings]]
    needs_source: ClassVar[bool]
    exact_text: ClassVar[bool]

    def __init__(self, settings: Any) -> None: ...

    def make(self, requests: Sequence[Request], sources: Sequence[Image.Image | None]) -> list[Image.Image]:
        """One RGB picture for each request, in order, `request.width` x `request.height` pixels.

        `sources[i]` is the RGB picture of `requests[i].source`, or None where it names none.

        Raises:
            UserError: a text that the method cannot show, or a source missing that it needs.
        """
        ...


class Known(NamedTuple):
    """What a method learned from: the labels' characters and lengths, and its pictures' usual size in pixels."""

    characters: str
    lengths: tuple[int, ...]
    size: tuple[int, int]

    @classmethod
    def of(cls, texts: Sequence[str], sizes: Sequence[tuple[int, int]]) -> Known:
        if not texts:
            raise UserError("a method that learned from no picture cannot draw any")
        lengths = tuple(sorted(len(t) for t in texts))
        return cls("".join(sorted({*"".join(texts)})), lengths, Counter(sizes).most_common(1)[0][0])


class Learner(Method, Protocol):
    """A method that learns from real pictures first: `augment fit` writes what its setting `fitted` then names."""

    FitSettings: ClassVar[type[Settings]]

    @classmethod
    def fit(cls, data: Manifest | None, settings: Any, out: Path, asked: Mapping[str, Any] | None = None) -> str:
        """Learn from labelled pictures into `out`, or go on where it was; gives a line that says what came of it.
        `asked` is what the command was asked for, to be kept for going on.

        Raises:
            UserError: data or settings that do not fit. Nothing half-written is left.
        """
        ...

    @property
    def known(self) -> Known:
        """What it learned from."""
        ...


def write_requests(requests: Iterable[Request], path: Path) -> None:
    """Write requests as JSON lines."""
    path.write_text("".join(json.dumps(asdict(r)) + "\n" for r in requests), encoding="utf-8")


def read_requests(path: Path) -> list[Request]:
    """Read requests from JSON lines.

    Raises:
        UserError: no such file, or a line that is no request.
    """
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except (FileNotFoundError, IsADirectoryError, UnicodeDecodeError):
        raise UserError(f"{path}: no requests can be read there") from None
    requests = []
    for number, line in enumerate(lines, 1):
        try:
            request = Request(**json.loads(line))
            numbers = (request.seed, request.width, request.height)
            fits = isinstance(request.text, str) and request.text and all(isinstance(n, int) for n in numbers)
            fits = fits and len(request.shown) == len(request.text)
            (request.text + request.shown).encode("utf-8")  # a lone surrogate is no text
            size_fits = min(request.width, request.height) > 0 and request.width * request.height <= MAX_PIXELS
            if not fits or not size_fits or request.seed < 0:
                raise ValueError
        except (TypeError, ValueError):
            raise UserError(f"{path}, line {number}: not a request (text, seed, width, height, source)") from None
        requests.append(request)
    return requests


class Sources:
    """The pictures of a manifest's samples, by name."""

    def __init__(self, manifest: Manifest) -> None:
        self._samples = {s.name: s for s in manifest}
        self._where = manifest.source

    def __call__(self, name: str) -> Image.Image:
        """The RGB picture of a sample.

        Raises:
            UserError: the manifest lacks it, or it cannot be opened.
        """
        try:
            return open_picture(self._sample(name).read_bytes(), "RGB")
        except PictureError as error:
            raise UserError(f"the request's source {name!r} cannot be opened: {error.kind}, {error}") from None

    def hash_of(self, name: str) -> str | None:
        """SHA-256 of a sample's file; None where it cannot be read."""
        return known_by(self._sample(name))

    def _sample(self, name: str) -> Sample:
        if name not in self._samples:
            raise UserError(f"the request's source {name!r} is not in {self._where}")
        return self._samples[name]
