"""Answer requests with pictures, each with its method, settings, seed and source in its metadata."""

from __future__ import annotations

import hashlib
import io
import json
import re
import traceback
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import astuple, replace
from itertools import chain, takewhile
from pathlib import Path
from types import MappingProxyType
from typing import Any

import numpy as np
from PIL import Image

from augment.method import Method, Request, Sources
from augment.methods import create, load_class
from recognizer.charset import Charset
from recognizer.errors import Stopped, UserError
from recognizer.images import PictureError, open_picture
from recognizer.progress import Alone, say
from recognizer.samples import FolderWriter, Manifest, Problem

BATCH = 64


def make(
    method: Method, requests: Sequence[Request], sources: Sources | None = None
) -> Iterator[tuple[Request, Image.Image]]:
    """Answer requests, a few at a time, in order.

    Raises:
        UserError: a source that is not there, or what the method refuses; an error in a user's own method, or pictures
            from it that are others than were asked for.
    """
    for k in range(0, len(requests), BATCH):
        group = requests[k : k + BATCH]
        given = [sources(r.source) if sources is not None and r.source is not None else None for r in group]
        try:
            pictures = method.make(group, given)
        except (UserError, Stopped, OSError, MemoryError):
            raise
        except Exception as error:  # one method must not cost a run the others
            if type(method).__module__.startswith("augment.methods."):
                raise
            at = traceback.extract_tb(error.__traceback__)[-1]
            raise UserError(f"{at.filename}, line {at.lineno}: {type(error).__name__}: {error}") from error
        if len(pictures) != len(group):
            raise UserError(f"{type(method).__name__} made {len(pictures)} pictures for {len(group)} requests")
        for request, picture in zip(group, pictures, strict=True):
            if (picture.mode, picture.size) != ("RGB", (request.width, request.height)):
                raise UserError(
                    f"{type(method).__name__} made {request.text!r} {picture.mode}, {picture.width} x {picture.height} "
                    f"pixels: asked for is RGB, {request.width} x {request.height}"
                )
            yield request, picture


def synthesize(
    name: str,
    settings: dict[str, Any],
    requests: Sequence[Request],
    out: Path,
    sources: Sources | None = None,
    each: Callable[[], object] = lambda: None,
) -> int:
    """Make one PNG a request into a new folder with `metadata.jsonl`; gives their number. Killed or interrupted, the
    same call goes on.

    Raises:
        UserError: nothing asked, the folder is taken, or what the method refuses. Nothing half-written is left.
        Stopped: Ctrl-C; what was made waits beside the folder.
    """
    if not requests:
        raise UserError("there is nothing to make: no requests")
    method, digest = create(name, settings), hashlib.sha256()
    named = sorted({r.source for r in requests if r.source is not None})
    hashes = {source: sources.hash_of(source) for source in named} if sources is not None else {}
    asked = [name, settings, [astuple(request) for request in requests], hashes]
    digest.update(json.dumps(asked).encode())
    try:
        with FolderWriter(out, digest.hexdigest()) as writer:
            pieces = getattr(method, "pieces", None)
            there = _there(method, requests, sources, writer)
            made = chain([None] * there, _as_png(make(method, requests[there:], sources)))
            for k, (request, data) in enumerate(zip(requests, made, strict=True)):
                about = {"method": name, "settings": settings, "seed": request.seed, "source": request.source}
                about |= {"source_sha256": known} if (known := hashes.get(request.source or "")) else {}
                about |= {says: True for says in ("exact_text", "needs_source") if getattr(method, says, False)}
                about |= {"why": request.why} | ({"pair": request.pair} if request.pair else {})
                about |= {"pieces": pieces(request)} if pieces else {}
                writer.add(_named(k), data, request.text, about)
                each()
    except KeyboardInterrupt:
        raise Stopped("the pictures so far are kept; give the same command again to go on") from None
    return len(requests)


def _named(k: int) -> str:
    return f"{k:06d}.png"


def _as_png(made: Iterable[tuple[Request, Image.Image]]) -> Iterator[bytes]:
    for _, picture in made:
        data = io.BytesIO()
        picture.save(data, "PNG", compress_level=1)
        yield data.getvalue()


def _there(method: Method, requests: Sequence[Request], sources: Sources | None, writer: FolderWriter) -> int:
    """How many pictures, the first ones, are there from a run that was killed. The last may be half a file; the one
    before is drawn again, and unless it comes out the same (of other weights it does not), none counts."""
    there = sum(1 for _ in takewhile(Path.is_file, (writer.path(_named(k)) for k in range(len(requests))))) - 1
    if there < 1:
        return 0
    (again,) = _as_png(make(method, requests[there - 1 : there], sources))
    return there if again == writer.path(_named(there - 1)).read_bytes() else 0


def answered_by(
    name: str, settings: dict[str, Any], vary: Sequence[Request], draw: Sequence[Request], sources: Sources,
    known_as: Mapping[str, str] = MappingProxyType({}),
) -> list[Request]:  # fmt: skip
    """Which of two plans of equal length a method answers: the one that varies real pictures, the one that draws texts,
    or, where it can do both, in turn a text from nothing and a real picture: its pair's under the swapped text where
    there is one, so that one character is repainted, else one under its own. What is drawn from a font is drawn as the
    pictures show it: `known_as` tells the letters that they show in another case than their labels have. Texts that it
    cannot draw are left out."""
    cls: Any = load_class(name)
    if cls.needs_source:
        return list(vary)
    if cls.exact_text:
        draw = [as_shown(request, known_as) for request in draw]
    method = create(name, settings)
    if not getattr(cls, "takes_source", False):
        return drawable(method, draw)
    chosen = []
    for k, (own, drawn) in enumerate(zip(vary, draw, strict=True)):
        real = own if drawn.pair is None else drawn
        chosen += with_pairs(method, [real], sources, [drawn]) if k % 2 else [drawn]
    return drawable(method, chosen)


def drawable(method: Method, requests: Sequence[Request]) -> list[Request]:
    """Requests without those for texts that a method cannot draw, where it can tell."""
    can = getattr(method, "can_draw", lambda requests: [True] * len(requests))
    return [
        r for r, yes in zip(requests, can(requests) if requests else (), strict=True) if r.source is not None or yes
    ]


def with_pairs(
    method: Method, requests: Sequence[Request], sources: Sources, otherwise: Sequence[Request] | None = None
) -> list[Request]:
    """Requests as a method that takes sources answers them: a contrast pair is drawn from its picture, so that one
    character of it is repainted. What cannot be drawn from its picture is `otherwise`, or drawn from nothing."""
    can = getattr(method, "can_vary", lambda request, source: True)
    found = []
    for own, other in zip(requests, otherwise or [replace(r, source=None) for r in requests], strict=True):
        real = replace(own, source=own.source or own.pair)
        found.append(real if real.source is not None and can(real, sources(real.source)) else other)
    return found


def variable(method: Method, requests: Sequence[Request], sources: Sources) -> list[Request]:
    """Requests whose sources a method can vary; how many others there are is told.

    Raises:
        UserError: none is left.
    """
    can = getattr(method, "can_vary", lambda request, source: True)
    able: list[Request] = []
    lost: list[Request] = []
    for request in requests:
        varies = request.source is not None and can(request, sources(request.source))
        (able if varies else lost).append(request)
    if lost:
        told = f"{len(lost)} of {len(requests)} pictures cannot be varied under their labels, as {lost[0].source!r}"
        if not able:
            raise UserError(f"{told} that shows {lost[0].text!r}")
        say(Alone(), f"{told} that shows {lost[0].text!r}: they are left out")
    return able


def as_shown(request: Request, known_as: Mapping[str, str]) -> Request:
    """A request whose picture shows letters as pictures do, where these differ from labels."""
    shown = "".join(known_as.get(c, c) for c in request.text)
    return request if shown == request.text else replace(request, drawn=shown)


def requests_for_texts(texts: Sequence[str], size: tuple[int, int], seed: int) -> list[Request]:
    """A request for each text, at one size (width, height)."""
    return [Request(text, seed + i, *size) for i, text in enumerate(texts)]


def random_texts(charset: Charset, lengths: Sequence[int], count: int, seed: int) -> list[str]:
    """Texts of evenly drawn lengths and characters, with no space at either end: no picture shows it."""
    rng = np.random.default_rng([seed, 13])
    visible = [c for c in charset.characters if not c.isspace()]
    found = []
    for _ in range(count):
        text = rng.choice(list(charset.characters), int(rng.choice(lengths)))
        for end in (0, -1):
            if text[end].isspace() and visible:
                text[end] = rng.choice(visible)
        found.append("".join(text))
    return found


def lengths_in(length: str) -> list[int]:
    """The lengths of texts that "5" or "4-6" says.

    Raises:
        UserError: it is neither.
    """
    found = re.fullmatch(r"(\d{1,2})(?:-(\d{1,2}))?", length)
    low, high = (int(found[1]), int(found[2] or found[1])) if found else (0, 0)
    if not 1 <= low <= high:
        raise UserError(f"--length {length!r}: write 5, or 4-6")
    return list(range(low, high + 1))


def requests_for_sources(manifest: Manifest, count: int, seed: int) -> tuple[list[Request], list[Problem]]:
    """Requests that vary the pictures of a manifest, each under its own text: all of them in an order drawn by seed,
    then all in another. Those that cannot be opened are left out, and come as problems.

    Raises:
        UserError: no picture can be opened.
    """
    requests: list[Request] = []
    sizes: dict[str, tuple[int, int]] = {}
    broken: dict[str, Problem] = {}
    rng, turn = np.random.default_rng([seed, 17]), iter(np.zeros(0, np.int64))
    while len(requests) < count:
        if len(broken) == len({s.name for s in manifest}):
            raise UserError(f"{manifest.source} has no sample to vary")
        if (place := next(turn, None)) is None:
            turn = iter(rng.permutation(len(manifest)))
            continue
        sample = manifest.samples[place]
        if sample.name in broken:
            continue
        if sample.name not in sizes:
            try:
                sizes[sample.name] = open_picture(sample.read_bytes(), "L").size
            except PictureError as error:
                broken[sample.name] = Problem(sample.name, error.kind, str(error))
                continue
        requests.append(Request(sample.text, seed + len(requests), *sizes[sample.name], sample.name))
    return requests, list(broken.values())
