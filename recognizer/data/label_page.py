"""The labelling page, for this machine alone: behind a random address, on 127.0.0.1, with nothing from elsewhere."""

from __future__ import annotations

import io
import json
import secrets
import signal
import socket
import threading
import webbrowser
from contextlib import suppress
from functools import cache
from pathlib import Path
from typing import Annotated, Any

import uvicorn
from fastapi import FastAPI, HTTPException, Request, Response
from fastapi.exceptions import RequestValidationError
from fastapi.middleware.trustedhost import TrustedHostMiddleware
from fastapi.responses import JSONResponse
from pydantic import BaseModel, Field

from recognizer.data.label import Desk, Taken
from recognizer.decode import Constraint
from recognizer.errors import UserError
from recognizer.images import PictureError, open_picture
from recognizer.reader import Reader

PAGE = Path(__file__).parent / "page"
LARGEST = 1600  # pixels along a side of what is shown
POLICY = (
    "default-src 'none'; img-src 'self' data:; font-src 'self'; connect-src 'self'; style-src 'self'; script-src 'self'"
)
FILES = {"label.css": "text/css", "label.js": "text/javascript", "jetbrains-mono-latin-400-normal.woff2": "font/woff2"}

Tab = Annotated[str, Field(min_length=1, max_length=64)]


class Said(JSONResponse):
    """JSON in ASCII: a file's name need not be UTF-8."""

    def render(self, content: Any) -> bytes:
        return json.dumps(content).encode()


class Answer(BaseModel):
    """What a tab answers: a label, None where nobody could read it, or a skip."""

    tab: Tab
    id: int
    version: int
    text: str | None = Field(None, max_length=200)
    skip: bool = False
    seconds: float = Field(0.0, ge=0, le=1e6)


class Asked(BaseModel):
    """A tab that asks."""

    tab: Tab


def make_app(desk: Desk, token: str | None = None) -> FastAPI:
    """The page of a desk, below `/TOKEN/`; everything else is not found."""
    token = token or secrets.token_urlsafe(16)
    app = FastAPI(docs_url=None, redoc_url=None, openapi_url=None)
    app.state.token = token
    # a page elsewhere that has its own name lead to 127.0.0.1 is refused
    app.add_middleware(TrustedHostMiddleware, allowed_hosts=["127.0.0.1", "localhost"])

    @app.middleware("http")
    async def guarded(request: Request, call_next: Any) -> Response:
        first = request.url.path.split("/")[1]
        if not secrets.compare_digest(first.encode(), token.encode()):
            return Response(status_code=404)
        response: Response = await call_next(request)
        response.headers["Content-Security-Policy"] = POLICY
        response.headers["Referrer-Policy"] = "no-referrer"
        response.headers["X-Content-Type-Options"] = "nosniff"
        response.headers.setdefault("Cache-Control", "no-store")
        return response

    @app.exception_handler(UserError)
    async def refused(request: Request, error: UserError) -> Response:
        return Said({"detail": str(error)}, status_code=400)

    @app.exception_handler(RequestValidationError)  # FastAPI's own would send back what no UTF-8 can hold
    async def misunderstood(request: Request, error: RequestValidationError) -> Response:
        return Said({"detail": "that is no answer"}, status_code=422)

    @app.get(f"/{token}/")
    def page() -> Response:
        return Response(_file("label.html"), media_type="text/html; charset=utf-8")

    @app.get(f"/{token}/page/{{name}}")
    def file(name: str) -> Response:
        if name not in FILES:
            raise HTTPException(404)
        return Response(_file(name), media_type=FILES[name])

    @app.get(f"/{token}/picture/{{i}}")
    def picture(i: int) -> Response:
        try:
            shown = open_picture(desk.path_of(i).read_bytes(), "RGB")
        except (PictureError, OSError) as error:
            desk.broken(i, str(error))
            raise HTTPException(410, str(error)) from None
        shown.thumbnail((LARGEST, LARGEST))
        png = io.BytesIO()
        shown.save(png, "PNG")  # whatever it is on disk, the browser gets a picture and nothing else
        return Response(png.getvalue(), media_type="image/png", headers={"Cache-Control": "private, max-age=3600"})

    @app.post(f"/{token}/next")
    def following(asked: Asked) -> Response:
        return Said({"pictures": desk.next(asked.tab), "state": desk.state()})

    @app.post(f"/{token}/answer")
    def answer(given: Answer) -> Response:
        try:
            desk.answer(given.tab, given.id, given.version, given.text, given.seconds, given.skip)
        except Taken as taken:
            return Said({"label": str(taken), "state": desk.state()}, status_code=409)
        return Said({"state": desk.state()})

    @app.post(f"/{token}/undo")
    def undo(asked: Asked) -> Response:
        return Said({"picture": desk.undo(asked.tab), "state": desk.state()})

    return app


@cache
def _file(name: str) -> bytes:
    return (PAGE / name).read_bytes()


def serve(desk: Desk, reader: Reader, constraint: Constraint | None, port: int = 0, browser: bool = False) -> None:
    """Show the page until Ctrl-C, while the reader reads ahead.

    Raises:
        UserError: the port is taken.
    """
    with socket.socket() as listening:
        listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            listening.bind(("127.0.0.1", port))
            listening.listen(128)  # whoever follows the address at once waits, and is not refused
        except OSError as error:
            raise UserError(f"port {port} of 127.0.0.1: {error.strerror}") from None
        app, stop = make_app(desk), threading.Event()
        url = f"http://127.0.0.1:{listening.getsockname()[1]}/{app.state.token}/"
        reading = threading.Thread(target=desk.read, args=(reader, constraint, stop), daemon=True)
        reading.start()
        print(f"label at {url} and stop with Ctrl-C; every answer is saved at once", flush=True)
        if browser:
            webbrowser.open(url)
        # uvicorn takes signals while it runs, ends in order, and sends itself once more what it took
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
        server = uvicorn.Server(uvicorn.Config(app, log_level="warning", timeout_graceful_shutdown=2))
        with suppress(KeyboardInterrupt):
            server.run(sockets=[listening])
        stop.set()
        reading.join()
