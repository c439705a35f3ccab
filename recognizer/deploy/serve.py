"""Read pictures over HTTP: concurrent requests share batches, and nothing that is sent can take the process down.

What is sent is opened as a picture and as nothing else: no path or URL in it is followed, and nothing of it is written
or logged unless `keep` says where.
"""

from __future__ import annotations

import asyncio
import ctypes
import hashlib
import hmac
import ipaddress
import json
import logging
import resource
import signal
import socket
import sys
import time
from collections.abc import AsyncGenerator, AsyncIterator, Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field
from functools import cache, partial
from pathlib import Path
from typing import Any, NamedTuple

import h11
import uvicorn
from fastapi import Depends, FastAPI, Request, Response
from fastapi.middleware.trustedhost import TrustedHostMiddleware
from fastapi.security import HTTPBearer
from fastapi_offline import FastAPIOffline
from PIL import Image
from prometheus_client import CONTENT_TYPE_LATEST, CollectorRegistry, Counter, Gauge, Histogram, generate_latest
from pydantic import BaseModel
from python_multipart.multipart import parse_options_header
from starlette.datastructures import UploadFile
from starlette.exceptions import HTTPException
from starlette.formparsers import MultiPartException, MultiPartParser
from starlette.requests import ClientDisconnect
from starlette.types import ASGIApp, Receive, Scope, Send
from uvicorn.protocols.http.h11_impl import H11Protocol

from recognizer.decode import Constraint
from recognizer.errors import UserError
from recognizer.images import Grey, PictureError
from recognizer.reader import Reader, find_model
from recognizer.readings import Reading
from recognizer.samples import ending_of

PAGE = Path(__file__).parent / "page"
FILES = {"try.css": "text/css", "try.js": "text/javascript"}
POLICY = "default-src 'none'; img-src blob:; connect-src 'self'; style-src 'self'; script-src 'self'"
LATENCIES = (0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1, 2, 5, 10, 30)  # seconds
LOOK = 1.0  # seconds between two looks whether the model's file has changed
HEADERS = 10.0  # seconds in which a request's headers must have come
CONNECTIONS, RESERVED = 4000, 64  # at once, and files that are kept for all else


@dataclass(frozen=True)
class Limits:
    """What a request may cost, and what all of them together may."""

    body: int = 10 * 2**20  # bytes of a request
    pixels: int = 4_000_000  # of a picture
    pictures: int = 64  # of a request
    seconds: float = 30  # to send a request, and to wait for its answer
    waiting: int = 1024  # pictures that are accepted and not yet read
    held: int = 128 * 2**20  # bytes of the requests that are being answered
    batch: int = 32
    company: float = 0.003  # seconds that a picture waits for others that are on their way


@dataclass(frozen=True)
class Keep:
    """Where pictures go that are read unsurely, to be labelled; no more than `most` in all, of `most_bytes`."""

    folder: Path
    below: float = 0.8  # of the confidence
    most: int = 10_000
    most_bytes: int = 2**30


class Fault(BaseModel):
    """What is wrong with a request or a picture."""

    kind: str
    detail: str


class Read(BaseModel):
    """What was read in a picture, or why it was not."""

    name: str | None = None
    text: str | None = None
    confidence: float | None = None
    characters: list[tuple[str, float]] | None = None
    error: Fault | None = None


class Answer(BaseModel):
    """One for each picture, in the order in which they were sent."""

    readings: list[Read]


class Refused(BaseModel):
    """A request that was refused."""

    error: Fault


class Refusal(Exception):
    """A request that is refused, with its status."""

    def __init__(self, status: int, kind: str, detail: str, after: int | None = None) -> None:
        super().__init__(detail)
        self.status, self.kind, self.detail, self.after = status, kind, detail, after


class Bounded(H11Protocol):
    """HTTP of which no header is waited for longer than `HEADERS`, however it comes: a request that has begun has
    limits of its own."""

    _late: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        self._wait()

    def data_received(self, data: bytes) -> None:
        super().data_received(data)
        if self.conn.their_state is h11.IDLE:  # half a header
            self._wait()
        else:
            self._came()

    def connection_lost(self, exc: Exception | None) -> None:
        self._came()
        super().connection_lost(exc)

    def _wait(self) -> None:
        if self._late is None:
            self._late = self.loop.call_later(HEADERS, self.transport.close)

    def _came(self) -> None:
        if self._late is not None:
            self._late.cancel()
            self._late = None


class Head:
    """Answer HEAD, which some health checks send, as GET is answered; the server leaves the body out."""

    def __init__(self, app: ASGIApp) -> None:
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http" and scope["method"] == "HEAD":
            scope = {**scope, "method": "GET"}
        await self.app(scope, receive, send)


class Waiting(NamedTuple):
    """A picture that waits to be read, by the reader that opened it."""

    grey: Grey
    reader: Reader
    reading: asyncio.Future[Reading]


class Figures:
    """What /metrics tells."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        of: dict[str, Any] = {"registry": self.registry}
        self.requests = Counter("lookalike_requests", "Answered requests.", ["status"], **of)
        self.pictures = Counter("lookalike_pictures", "Pictures sent.", ["outcome"], **of)
        self.batches = Histogram("lookalike_batch_pictures", "Pictures read together.",
                                 buckets=(1, 2, 4, 8, 16, 32, 64), **of)  # fmt: skip
        self.seconds = Histogram("lookalike_request_seconds", "From a request's headers to its answer.",
                                 buckets=LATENCIES, **of)  # fmt: skip
        self.waiting = Gauge("lookalike_waiting_pictures", "Pictures accepted and not yet read.", **of)
        self.held = Gauge("lookalike_held_bytes", "Bytes of the requests that are being answered.", **of)
        self.reloads = Counter("lookalike_reloads", "Times that the model was read anew.", ["outcome"], **of)
        self.kept = Counter("lookalike_kept_pictures", "Unsure pictures that were kept.", **of)
        self.unkept = Counter("lookalike_unkept_pictures", "Unsure pictures that could not be written.", **of)


@dataclass
class Service:
    """A reader, and what waits for it. All of it but reading and opening happens on one event loop."""

    model: Path | None
    limits: Limits = field(default_factory=Limits)
    keep: Keep | None = None
    constrain: Callable[[Reader], Constraint | None] = lambda reader: None
    threads: int = 1

    def __post_init__(self) -> None:
        self.reader, self.constraint = self._fresh()
        self._reloading, self._replaced = asyncio.Lock(), False
        self.figures = Figures()
        self.queue: asyncio.Queue[Waiting] = asyncio.Queue()
        self.accepted = 0  # pictures, from when they are accepted to when they are read
        self.coming = 0  # those of them that are being opened
        self.held = 0
        self.ready = False
        self._kept: set[str] = set()
        self._kept_bytes = 0
        self._pool = ThreadPoolExecutor(self.threads, "read")
        self._opening = ThreadPoolExecutor(self.threads, "open")
        self._file = self._stamp()
        if self.keep is not None:
            self.keep.folder.mkdir(parents=True, exist_ok=True)
            there = [p for p in self.keep.folder.iterdir() if p.suffix != ".jsonl" and p.is_file()]
            self._kept, self._kept_bytes = {p.stem for p in there}, sum(p.stat().st_size for p in there)

    # ----------------------------------------------------------------------------------------------------- its life

    @asynccontextmanager
    async def running(self) -> AsyncIterator[None]:
        """Read what waits for the length of a block; what was accepted is read before it ends."""
        tasks = [asyncio.create_task(self._read_on()) for _ in range(self.threads)]
        tasks.append(asyncio.create_task(self._look()))
        loop = asyncio.get_running_loop()
        with suppress(NotImplementedError, ValueError, RuntimeError):  # not on every system, nor in every thread
            loop.add_signal_handler(signal.SIGHUP, lambda: loop.create_task(self.reload()))
        self.ready = True
        try:
            yield
        finally:
            self.ready = False
            while self.accepted:
                await asyncio.sleep(0.01)
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)
            self._pool.shutdown()
            self._opening.shutdown()

    async def reload(self) -> bool:
        """Read the model's file anew. Requests that are under way keep the reader that they began with; where the file
        is no reader's, so do all others."""
        async with self._reloading:
            self._file = self._stamp()
            try:
                reader, constraint = await asyncio.get_running_loop().run_in_executor(None, self._fresh)
            except Exception as error:  # whatever a file may do that is no reader's
                said = str(error).splitlines()[0] if str(error) else type(error).__name__
                print(f"the model was not read anew: {said}", file=sys.stderr, flush=True)
                self.figures.reloads.labels("refused").inc()
                return False
            self.reader, self.constraint, self._replaced = reader, constraint, True
        self.figures.reloads.labels("taken").inc()
        return True

    def _fresh(self) -> tuple[Reader, Constraint | None]:
        """The reader of the model's file, and what it may read; one that cannot read is found out here."""
        reader = Reader(self.model, max_pixels=self.limits.pixels)
        reader.read([reader.frame.fit(Image.new("RGB", size, "white")) for size in ((60, 30), (200, 50))])
        return reader, self.constrain(reader)

    def _stamp(self) -> tuple[int, int, int] | None:
        try:
            found = find_model(self.model).stat()
        except (OSError, UserError):
            return None
        return found.st_mtime_ns, found.st_size, found.st_ino

    async def _look(self) -> None:
        while True:
            await asyncio.sleep(LOOK)
            if self._replaced:  # by now nobody reads with the reader before
                self._replaced = False
                await asyncio.get_running_loop().run_in_executor(None, give_back)
            if (now := self._stamp()) is not None and now != self._file:
                await self.reload()

    # ------------------------------------------------------------------------------------------------------ reading

    async def read(self, pictures: list[bytes]) -> list[Reading | PictureError]:
        """What each picture shows, or why it cannot be opened.

        Raises:
            Refusal: too many wait already.
        """
        if len(pictures) > self.limits.waiting:
            raise Refusal(413, "too many", f"no more than {self.limits.waiting} pictures may wait")
        if self.accepted + len(pictures) > self.limits.waiting:
            raise Refusal(503, "busy", f"{self.accepted} pictures wait to be read", after=1)
        self.accepted += len(pictures)
        self.figures.waiting.set(self.accepted)
        tasks = [asyncio.create_task(self._read_one(data)) for data in pictures]
        for task in tasks:
            task.add_done_callback(self._done)
        return list(await asyncio.gather(*tasks))

    def _done(self, _: asyncio.Task[Any]) -> None:
        self.accepted -= 1
        self.figures.waiting.set(self.accepted)

    async def _read_one(self, data: bytes) -> Reading | PictureError:
        loop, reader = asyncio.get_running_loop(), self.reader
        self.coming += 1
        try:
            grey = await loop.run_in_executor(self._opening, reader.open, data)
        except PictureError as error:
            self.figures.pictures.labels(error.kind).inc()
            return error
        finally:
            self.coming -= 1
        waiting = Waiting(grey, reader, loop.create_future())
        self.queue.put_nowait(waiting)
        reading = await waiting.reading
        self.figures.pictures.labels("read").inc()
        if self.keep is not None and reading.confidence < self.keep.below:
            await loop.run_in_executor(None, self._keep, self.keep, data)
        return reading

    async def _read_on(self) -> None:
        """Read what waits, together as far as it comes together."""
        loop = asyncio.get_running_loop()
        while True:
            batch = [await self.queue.get()]
            until = loop.time() + self.limits.company
            while len(batch) < self.limits.batch:
                if not self.queue.empty():
                    batch.append(self.queue.get_nowait())
                    continue
                left = until - loop.time()
                if left <= 0 or not self.coming:  # nobody else is on the way
                    break
                with suppress(TimeoutError):
                    batch.append(await asyncio.wait_for(self.queue.get(), left))
            batch = [w for w in batch if not w.reading.done()]  # whoever sent it may have gone
            for reader in dict.fromkeys(w.reader for w in batch):
                own = [w for w in batch if w.reader is reader]
                self.figures.batches.observe(len(own))
                constraint = self.constraint if reader is self.reader else self.constrain(reader)
                try:
                    read = partial(reader.read, batch=self.limits.batch)
                    readings = await loop.run_in_executor(self._pool, read, [w.grey for w in own], constraint)
                except Exception as error:  # one request's fault must not end all
                    print(f"a batch of {len(own)} could not be read: {error}", file=sys.stderr, flush=True)
                    for w in own:
                        if not w.reading.done():
                            w.reading.set_exception(Refusal(500, "not read", "the reader failed on this batch"))
                    continue
                for w, reading in zip(own, readings, strict=True):
                    if not w.reading.done():
                        w.reading.set_result(reading)

    def _keep(self, keep: Keep, data: bytes) -> None:
        """Write a picture as it was sent, once; a full disk is told, and ends nothing."""
        name = hashlib.sha256(data).hexdigest()[:24]
        if name in self._kept or len(self._kept) >= keep.most or self._kept_bytes + len(data) > keep.most_bytes:
            return
        self._kept.add(name)
        self._kept_bytes += len(data)
        path = keep.folder / f"{name}.{ending_of(name, data)}"
        tmp = path.with_name(f".{path.name}.tmp")
        try:
            keep.folder.mkdir(parents=True, exist_ok=True)  # whoever labels may have moved it away
            tmp.write_bytes(data)
            tmp.replace(path)
            self.figures.kept.inc()
        except OSError as error:
            tmp.unlink(missing_ok=True)
            self._kept.discard(name)
            self._kept_bytes -= len(data)
            self.figures.unkept.inc()
            print(f"{path} could not be kept: {error.strerror}", file=sys.stderr, flush=True)


def give_back() -> None:
    """Give what was freed back to the system, where the C library keeps it and can be told."""
    with suppress(OSError, AttributeError):
        ctypes.CDLL(None).malloc_trim(0)


# ----------------------------------------------------------------------------------------------------------- over HTTP


def make_app(service: Service, token: str | None = None, host: str = "127.0.0.1") -> FastAPI:
    """The application. With a `token`, reading and figures need it; where `host` is this machine's alone, requests that
    name another are refused."""
    limits, figures = service.limits, service.figures

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        async with service.running():
            yield

    app: FastAPI = FastAPIOffline(
        title="lookalike", description="Reads short, distorted text in pictures.", version="1", lifespan=lifespan
    )
    if is_local(host):  # a page elsewhere that has its own name lead to 127.0.0.1 is refused
        app.add_middleware(TrustedHostMiddleware, allowed_hosts=["127.0.0.1", "localhost", "[::1]", host])
    app.add_middleware(Head)

    @app.exception_handler(Refusal)
    async def refused(request: Request, refusal: Refusal) -> Response:
        figures.requests.labels(str(refusal.status)).inc()
        headers = {"Retry-After": str(refusal.after)} if refusal.after else {}
        if refusal.status == 401:
            headers["WWW-Authenticate"] = "Bearer"
        if refusal.status in (408, 413):
            headers["Connection"] = "close"  # the rest of the body is not waited for
        return _json({"error": {"kind": refusal.kind, "detail": refusal.detail}}, refusal.status, headers)

    @app.exception_handler(HTTPException)  # no such page, or not by that method
    async def elsewhere(request: Request, error: HTTPException) -> Response:
        figures.requests.labels(str(error.status_code)).inc()
        kind = "not found" if error.status_code == 404 else "refused"
        return _json(
            {"error": {"kind": kind, "detail": str(error.detail)}}, error.status_code, dict(error.headers or {})
        )

    @app.exception_handler(Exception)
    async def failed(request: Request, error: Exception) -> Response:
        figures.requests.labels("500").inc()
        return _json({"error": {"kind": "failed", "detail": "the server failed; its log says how"}}, 500)

    def let_in(request: Request) -> None:
        scheme, _, given = request.headers.get("authorization", "").partition(" ")
        right = hmac.compare_digest(given.strip().encode(), (token or "").encode())
        if token is not None and not (right and scheme.lower() == "bearer"):
            raise Refusal(401, "unauthorized", "a bearer token is needed")

    # so that the page of the API asks for the token; let_in says what is wrong with it
    known = [] if token is None else [Depends(HTTPBearer(auto_error=False))]
    answers: dict[int | str, dict[str, Any]] = {
        status: {"model": Refused, "description": said} for status, said in {
            400: "The request cannot be understood.", 401: "A bearer token is needed.", 408: "Sent too slowly.",
            413: "Too many bytes or pictures.", 422: "None of the pictures can be opened.",
            503: "Too much waits already; see Retry-After.",
        }.items()
    }  # fmt: skip
    picture = {"schema": {"type": "string", "format": "binary"}}
    many = {"type": "object", "additionalProperties": {"type": "array", "items": picture["schema"]}}
    body = {"content": {"multipart/form-data": {"schema": many}, "application/octet-stream": picture}}

    @app.post(
        "/v1/read", response_model=Answer, responses=answers, openapi_extra={"requestBody": body}, tags=["reading"],
        summary="Read one picture or many: the body itself, or the files of a form.", dependencies=known,
    )  # fmt: skip
    async def read(request: Request) -> Response:
        let_in(request)
        began = time.monotonic()
        try:
            status, answer = await _answer(service, request)
        finally:
            figures.seconds.observe(time.monotonic() - began)
        figures.requests.labels(str(status)).inc()
        return _json(answer, status)

    @app.get("/healthz", tags=["state"], summary="Whether the process is alive.")
    async def healthz() -> Response:
        return _json({"status": "alive"})

    @app.get("/readyz", tags=["state"], summary="Whether a request would be accepted.")
    async def readyz() -> Response:
        ready = service.ready and service.accepted < limits.waiting
        return _json({"status": "ready" if ready else "busy"}, 200 if ready else 503)

    @app.get("/metrics", tags=["state"], summary="Figures for Prometheus.", dependencies=known)
    async def metrics(request: Request) -> Response:
        let_in(request)
        return Response(generate_latest(figures.registry), media_type=CONTENT_TYPE_LATEST)

    @app.get("/", include_in_schema=False)
    async def page() -> Response:
        return Response(_file("try.html"), media_type="text/html; charset=utf-8", headers=_guard())

    @app.get("/page/{name}", include_in_schema=False)
    async def file(name: str) -> Response:
        if name not in FILES:
            raise HTTPException(404, "no such page")
        return Response(_file(name), media_type=FILES[name], headers=_guard())

    return app


async def _answer(service: Service, request: Request) -> tuple[int, dict[str, Any]]:
    """The status and the body of the answer to a request to read.

    Raises:
        Refusal: it cannot be answered.
    """
    limits, held = service.limits, 0

    def hold(more: int) -> None:
        nonlocal held
        held += more
        service.held += more
        service.figures.held.set(service.held)

    async def stream() -> AsyncGenerator[bytes, None]:
        size = 0
        async for chunk in request.stream():
            size += len(chunk)
            if size > limits.body:
                raise Refusal(413, "too large", f"the request holds more than {limits.body:,} bytes")
            if service.held + len(chunk) > max(limits.held, limits.body):
                raise Refusal(503, "busy", f"requests of {service.held:,} bytes are being answered", after=1)
            hold(len(chunk))
            yield chunk

    try:
        with suppress(ValueError):
            if int(request.headers.get("content-length", "0")) > limits.body:
                raise Refusal(413, "too large", f"the request holds more than {limits.body:,} bytes")
        try:
            async with asyncio.timeout(limits.seconds):
                names, pictures = await _pictures(request, stream(), limits)
        except TimeoutError:
            raise Refusal(408, "too slow", f"the request was not sent within {limits.seconds:g} seconds") from None
        except ClientDisconnect:
            raise Refusal(400, "cut off", "the request ended before all of it came") from None
        try:
            async with asyncio.timeout(limits.seconds):
                found = await service.read(pictures)
        except TimeoutError:
            raise Refusal(503, "too slow", f"no answer within {limits.seconds:g} seconds", after=5) from None
    finally:
        hold(-held)
    rows = [_row(name, own) for name, own in zip(names, found, strict=True)]
    if all(isinstance(own, PictureError) for own in found):
        return 422, {"error": rows[0]["error"], "readings": rows}
    return 200, {"readings": rows}


class Ended:
    """Whether a form came to its closing boundary, as the parser does not ask."""

    def __init__(self, content_type: str) -> None:
        boundary = parse_options_header(content_type)[1].get(b"boundary", b"")
        self._closing, self._last, self.seen = b"--" + boundary + b"--", b"", False

    async def watch(self, stream: AsyncGenerator[bytes, None]) -> AsyncGenerator[bytes, None]:
        """The chunks of a stream, as they come."""
        async for chunk in stream:
            self._last = self._last[1 - len(self._closing) :] + chunk
            self.seen = self.seen or self._closing in self._last
            yield chunk


async def _pictures(
    request: Request, stream: AsyncGenerator[bytes, None], limits: Limits
) -> tuple[list[str | None], list[bytes]]:
    """The names and the bytes of the pictures in a request.

    Raises:
        Refusal: none, too many, or a form that cannot be understood.
    """
    names: list[str | None] = []
    pictures: list[bytes] = []
    if request.headers.get("content-type", "").lower().startswith("multipart/"):
        ended = Ended(request.headers["content-type"])
        parser = MultiPartParser(
            request.headers, ended.watch(stream), max_files=limits.pictures, max_fields=16, max_part_size=4096
        )
        parser.spool_max_size = limits.body + 1  # nothing that is sent goes to disk
        try:
            form = await parser.parse()
        except (MultiPartException, KeyError, ValueError, UnicodeError) as error:
            said = str(getattr(error, "message", error)) or "the form is broken"
            if "Too many files" in said:
                raise Refusal(413, "too many", f"a request may hold {limits.pictures} pictures") from None
            raise Refusal(400, "bad form", said[:200]) from None
        if not ended.seen:
            raise Refusal(400, "bad form", "it ends before its closing boundary")
        try:
            for _, value in form.multi_items():
                if isinstance(value, UploadFile):
                    names.append((value.filename or "")[:200] or None)
                    pictures.append(await value.read())
        finally:
            await form.close()
    else:
        data = b"".join([chunk async for chunk in stream])
        if data:
            names, pictures = [None], [data]
    if not pictures:
        raise Refusal(400, "no picture", "send a picture as the body, or some as the files of a form")
    return names, pictures


def _row(name: str | None, found: Reading | PictureError) -> dict[str, Any]:
    own: dict[str, Any] = {} if name is None else {"name": name}
    if isinstance(found, PictureError):
        return own | {"error": {"kind": found.kind, "detail": str(found)[:200]}}
    return own | {"text": found.text, "confidence": found.confidence, "characters": found.characters}


def _json(content: Any, status: int = 200, headers: dict[str, str] | None = None) -> Response:
    # in ASCII: a file's name need not be UTF-8
    return Response(json.dumps(content), status, headers, "application/json")


def _guard() -> dict[str, str]:
    return {
        "Content-Security-Policy": POLICY, "X-Content-Type-Options": "nosniff", "Referrer-Policy": "no-referrer",
        "Cache-Control": "no-cache",
    }  # fmt: skip


@cache
def _file(name: str) -> bytes:
    return (PAGE / name).read_bytes()


def connections() -> int:
    """How many connections may be open at once: each takes a file of those that the system grants this process."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft != resource.RLIM_INFINITY and soft < CONNECTIONS + RESERVED:
        wanted = CONNECTIONS + RESERVED if hard == resource.RLIM_INFINITY else min(hard, CONNECTIONS + RESERVED)
        with suppress(ValueError, OSError):
            resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))
            soft = wanted
    return CONNECTIONS if soft == resource.RLIM_INFINITY else max(min(CONNECTIONS, soft - RESERVED), 1)


def is_local(host: str) -> bool:
    """Whether an address is that of this machine alone."""
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def serve(service: Service, host: str = "127.0.0.1", port: int = 8000, token: str | None = None) -> None:
    """Answer until SIGTERM or Ctrl-C; everything that was accepted by then is answered first.

    Raises:
        UserError: the address cannot be had.
    """
    try:
        family = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0][0]
        listening = socket.socket(family, socket.SOCK_STREAM)
        listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listening.bind((host, port))
        listening.listen(1024)
    except (OSError, UnicodeError) as error:
        said = getattr(error, "strerror", None) or error
        raise UserError(f"{host}, port {port}: {said}") from None
    with listening:
        at = f"[{host}]" if ":" in host else host
        if not is_local(host) and token is None:
            print("anyone who reaches this machine may have pictures read: see --token-file", file=sys.stderr)
        print(f"reading at http://{at}:{listening.getsockname()[1]}/; stop with Ctrl-C", flush=True)
        logging.getLogger("python_multipart").setLevel(logging.CRITICAL)  # a broken form is its sender's matter
        app = make_app(service, token, host)
        config = uvicorn.Config(
            app, log_level="warning", access_log=False, timeout_keep_alive=15, h11_max_incomplete_event_size=65536,
            server_header=False, http=Bounded, limit_concurrency=connections(),
        )  # fmt: skip
        # uvicorn takes signals while it runs, ends in order, and sends itself once more what it took
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
        with suppress(KeyboardInterrupt):
            uvicorn.Server(config).run(sockets=[listening])
