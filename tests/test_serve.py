"""The server, as its clients see it: a process of its own, real requests, real faults."""

from __future__ import annotations

import concurrent.futures
import contextlib
import io
import json
import os
import resource
import shutil
import signal
import socket
import struct
import subprocess
import sys
import time
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

import httpx
import onnx
import pytest
from PIL import Image

from pipelines.scheme import write_scheme
from recognizer.deploy.serve import is_local
from recognizer.reader import Reader
from recognizer.samples import list_pictures, read_manifest

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser")
WEIGHTS = Path(__file__).resolve().parent.parent / "recognizer" / "weights"


class Server(NamedTuple):
    """A running server."""

    url: str
    process: subprocess.Popen[str]
    errors: Path

    def memory(self) -> int:
        """Resident bytes."""
        pages = int(Path(f"/proc/{self.process.pid}/statm").read_text().split()[1])
        return pages * resource.getpagesize()


@contextmanager
def serving(tmp_path: Path, *words: object, started: str = "pass") -> Iterator[Server]:
    code = f"import sys; {started}; from recognizer.cli import app; app()"
    command = [sys.executable, "-c", code, "serve", "--port", "0", *map(str, words)]
    errors = tmp_path / "errors.txt"
    with errors.open("w") as log, subprocess.Popen(command, stdout=subprocess.PIPE, stderr=log, text=True) as process:
        try:
            assert process.stdout is not None
            line = process.stdout.readline()
            assert line.startswith("reading at http"), errors.read_text()
            server = Server(line.split()[2].rstrip("/;"), process, errors)
            # it listens before it says so: a request waits until it is ready
            assert httpx.get(f"{server.url}/readyz", timeout=30).status_code == 200
            yield server
        finally:
            process.terminate()
            assert process.wait(timeout=30) == 0, errors.read_text()


@pytest.fixture(scope="module")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> list[tuple[bytes, str]]:
    """Pictures and what `predict` reads in them."""
    folder = tmp_path_factory.mktemp("pictures")
    write_scheme(folder, 8, 40, 0)
    reader = Reader()
    data = [s.read_bytes() for s in read_manifest(folder / "test")]
    return list(zip(data, [r.text for r in reader.read([reader.open(d) for d in data])], strict=True))


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    with serving(tmp_path_factory.mktemp("server"), "--max-bytes", 2_000_000, "--max-seconds", 2) as server:
        yield server
        assert server.errors.read_text() == "", "nothing is logged"


def post(server: Server, data: bytes, **more: str) -> httpx.Response:
    return httpx.post(f"{server.url}/v1/read", content=data, headers=more, timeout=30)


def test_a_picture_is_read_as_predict_reads_it(server: Server, pictures: list[tuple[bytes, str]]) -> None:
    for data, text in pictures[:5]:
        answer = post(server, data)
        assert answer.status_code == 200
        (reading,) = answer.json()["readings"]
        assert reading["text"] == text and 0 <= reading["confidence"] <= 1
        assert [c for c, _ in reading["characters"]] == list(text)


def test_many_in_one_form_come_back_in_order_with_their_names(
    server: Server, pictures: list[tuple[bytes, str]]
) -> None:
    files = [("any", (f"{i}é.png", data)) for i, (data, _) in enumerate(pictures)]
    answer = httpx.post(f"{server.url}/v1/read", files=files)
    assert [(r["name"], r["text"]) for r in answer.json()["readings"]] == [
        (f"{i}é.png", text) for i, (_, text) in enumerate(pictures)
    ]
    files.insert(1, ("any", ("words.txt", b"no picture")))
    mixed = httpx.post(f"{server.url}/v1/read", files=files)
    assert mixed.status_code == 200 and mixed.json()["readings"][1]["error"]["kind"] == "unreadable"
    assert [r.get("text") for r in mixed.json()["readings"]][2:] == [text for _, text in pictures[1:]]


def test_requests_at_once_share_batches_and_none_gets_anothers_answer(
    server: Server, pictures: list[tuple[bytes, str]]
) -> None:
    with httpx.Client(limits=httpx.Limits(max_connections=64)) as client:

        def ask(i: int) -> tuple[str, str]:
            data, text = pictures[i % len(pictures)]
            return client.post(f"{server.url}/v1/read", content=data, timeout=30).json()["readings"][0]["text"], text

        with concurrent.futures.ThreadPoolExecutor(48) as pool:
            found = list(pool.map(ask, range(400)))
    assert all(read == text for read, text in found)
    figures = httpx.get(f"{server.url}/metrics").text
    batches = [float(line.split()[-1]) for line in figures.splitlines() if line.startswith("lookalike_batch_pictures_")]
    told = dict(line.rsplit(" ", 1) for line in figures.splitlines() if not line.startswith("#"))
    assert batches and float(told["lookalike_batch_pictures_sum"]) / float(told["lookalike_batch_pictures_count"]) > 1.5
    assert float(told["lookalike_waiting_pictures"]) == float(told["lookalike_held_bytes"]) == 0


def bomb() -> bytes:
    """A PNG of 30,000 x 30,000 pixels in 900 bytes or so."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = struct.pack(">IIBBBBB", 30_000, 30_000, 1, 0, 0, 0, 0)
    return (
        b"\x89PNG\r\n\x1a\n"
        + chunk(b"IHDR", header)
        + chunk(b"IDAT", zlib.compress(bytes(10**6)))
        + chunk(b"IEND", b"")
    )


SVG = b'<svg xmlns="http://www.w3.org/2000/svg"><image href="file:///etc/passwd"/></svg>'


@pytest.mark.parametrize(
    ("what", "status", "kind"),
    [
        (b"", 400, "no picture"), (b"some text", 422, "unreadable"), (SVG, 422, "unreadable"),
        (bomb(), 422, "too large"),
        (b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n", 422, "unreadable"), (bytes(2_000_001), 413, "too large"),
        (b"http://127.0.0.1/picture.png", 422, "unreadable"), (b"/etc/hostname", 422, "unreadable"),
    ],
)  # fmt: skip
def test_what_is_no_picture_is_refused_in_words(server: Server, what: bytes, status: int, kind: str) -> None:
    answer = post(server, what)
    assert (answer.status_code, answer.json()["error"]["kind"]) == (status, kind), answer.text
    assert answer.headers["content-type"] == "application/json" and answer.json()["error"]["detail"]


def test_broken_forms_truncated_pictures_and_ten_thousand_files_harm_nothing(
    server: Server, pictures: list[tuple[bytes, str]]
) -> None:
    data, text = pictures[0]
    assert post(server, data[: len(data) // 2]).status_code == 422
    form = {"content-type": "multipart/form-data; boundary=x"}
    for body in (
        b"--x\r\n",
        b"--y\r\n\r\n--y--",
        b"--x\r\nContent-Disposition: form-data; name=a; filename=b\r\n\r\nzz",
    ):
        assert 400 <= httpx.post(f"{server.url}/v1/read", content=body, headers=form).status_code < 500
    no_boundary = httpx.post(f"{server.url}/v1/read", content=b"--x", headers={"content-type": "multipart/form-data"})
    assert no_boundary.status_code == 400 and no_boundary.json()["error"]["kind"] == "bad form"
    part = b'--x\r\nContent-Disposition: form-data; name="p"; filename="a.png"\r\n\r\nz\r\n'
    many = httpx.post(f"{server.url}/v1/read", content=part * 10_000 + b"--x--\r\n", headers=form)
    assert many.status_code == 413 and many.json()["error"]["kind"] == "too many"
    whole = b'--x\r\nContent-Disposition: form-data; name="p"; filename="a.png"\r\n\r\n' + data + b"\r\n"
    cut = httpx.post(f"{server.url}/v1/read", content=whole + part, headers=form)
    assert cut.status_code == 400 and cut.json()["error"]["detail"] == "it ends before its closing boundary"
    ended = httpx.post(f"{server.url}/v1/read", content=whole + b"--x--", headers=form)
    assert ended.status_code == 200 and ended.json()["readings"][0]["text"] == text
    fields = httpx.post(f"{server.url}/v1/read", data={"a": "no file"}, files={"b": ("", b"")})
    assert 400 <= fields.status_code < 500
    (reading,) = post(server, data).json()["readings"]
    assert reading["text"] == text


def test_memory_comes_back(server: Server, pictures: list[tuple[bytes, str]]) -> None:
    large = io.BytesIO()
    Image.effect_noise((1900, 2000), 80).save(large, "JPEG", quality=30)
    rubbish = [bomb(), large.getvalue()[:1_900_000], bytes(1_900_000), b"x" * 1_000_000]

    def go() -> None:
        with concurrent.futures.ThreadPoolExecutor(8) as pool:
            list(pool.map(lambda i: post(server, rubbish[i % 4]).status_code, range(80)))

    go()
    before = server.memory()
    for _ in range(3):
        go()
    assert server.memory() < before + 60 * 2**20
    assert post(server, pictures[0][0]).status_code == 200


def test_who_sends_too_slowly_is_let_go(server: Server) -> None:
    host, port = server.url.removeprefix("http://").split(":")
    with socket.create_connection((host, int(port))) as slow:
        slow.sendall(b"POST /v1/read HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Length: 1000\r\n\r\nabc")
        slow.settimeout(10)
        assert slow.recv(4096).startswith(b"HTTP/1.1 408 ")


def test_who_sends_no_header_to_its_end_is_let_go(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with serving(tmp_path, started="import recognizer.deploy.serve as s; s.HEADERS = 0.5") as server:
        host, port = server.url.removeprefix("http://").split(":")
        with socket.create_connection((host, int(port))) as drop:  # a byte now and then is no excuse
            for byte in b"GET /healthz HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\n":
                try:
                    drop.sendall(bytes([byte]))
                except OSError:
                    break
                time.sleep(0.05)
            with contextlib.suppress(OSError):
                assert drop.recv(4096) == b""
        for begun in (b"", b"GET /he", b"GET /healthz HTTP/1.1\r\nHost: 127.0.0.1\r\nX: "):
            with socket.create_connection((host, int(port))) as slow:
                slow.sendall(begun)
                slow.settimeout(5)
                assert slow.recv(4096) == b"", begun
        with socket.create_connection((host, int(port))) as endless:  # a header without end is not held
            with contextlib.suppress(OSError):
                for _ in range(40):
                    endless.sendall(b"x" * 100_000)
            endless.settimeout(5)
            with contextlib.suppress(OSError):
                assert b"400" in (endless.recv(4096) or b"400")
        with httpx.Client() as client:  # a connection that is kept is not cut off between its requests
            for _ in range(3):
                assert client.get(f"{server.url}/healthz").status_code == 200
                time.sleep(0.7)


def test_nobody_but_this_machine_is_answered_unless_told(server: Server) -> None:
    assert httpx.get(f"{server.url}/healthz", headers={"host": "evil.example"}).status_code == 400
    assert httpx.head(f"{server.url}/healthz", headers={"host": "evil.example"}).status_code == 400
    assert server.url.startswith("http://127.0.0.1:")
    assert is_local("127.0.0.1") and is_local("::1") and is_local("localhost") and not is_local("0.0.0.0")
    assert not is_local("evil.example")


def test_its_pages_load_nothing_from_elsewhere(server: Server) -> None:
    page = httpx.get(server.url)
    assert page.status_code == 200 and "http" not in page.text.replace("http-equiv", "")
    assert "default-src 'none'" in page.headers["content-security-policy"]
    for name in ("try.css", "try.js"):
        assert httpx.get(f"{server.url}/page/{name}").status_code == 200
    assert httpx.get(f"{server.url}/page/..%2fserve.py").status_code == 404
    for answer, status in ((httpx.get(f"{server.url}/page/x"), 404), (httpx.put(f"{server.url}/v1/read"), 405)):
        assert answer.status_code == status and answer.json()["error"]["detail"], "in the form of all refusals"
    for place in ("", "/healthz", "/docs"):
        head = httpx.head(server.url + place)
        assert head.status_code == 200 and not head.content, "as health checks ask"
    assert httpx.head(f"{server.url}/v1/read").status_code == 405
    docs = httpx.get(f"{server.url}/docs").text
    assert "https://" not in docs and "swagger" in docs
    paths = httpx.get(f"{server.url}/openapi.json").json()["paths"]
    assert {"/v1/read", "/healthz", "/readyz", "/metrics"} == set(paths)
    assert {"200", "400", "401", "408", "413", "422", "503"} <= set(paths["/v1/read"]["post"]["responses"])


@pytest.mark.skipif(CHROMIUM is None, reason="no chromium is installed")
def test_the_page_reads_what_is_chosen(server: Server, pictures: list[tuple[bytes, str]], tmp_path: Path) -> None:
    from playwright.sync_api import sync_playwright

    chosen = []
    for i, (data, _) in enumerate(pictures[:3]):
        (tmp_path / f"{i}.jpg").write_bytes(data)
        chosen.append(tmp_path / f"{i}.jpg")
    (tmp_path / "note.png").write_text("no picture")
    with sync_playwright() as browsers:
        browser = browsers.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox", "--disable-gpu"])
        page = browser.new_page()
        wrong: list[str] = []
        page.on("console", lambda said: wrong.append(said.text) if said.type == "error" else None)
        page.goto(server.url)
        page.set_input_files("#files", [*chosen, tmp_path / "note.png"])
        page.wait_for_selector("#read li:nth-child(4)")
        items = [item.inner_text() for item in page.query_selector_all("#read li")][::-1]
        assert page.eval_on_selector_all("#read img", "all => all.map(i => i.naturalWidth > 0)").count(True) == 3
        page.screenshot(path=tmp_path / "page.png", full_page=True)
        browser.close()
    assert [item.split("\n")[0] for item in items[:3]] == [text for _, text in pictures[:3]]
    assert items[3].startswith("unreadable: ") and not wrong


def test_over_the_bound_a_request_is_put_off(tmp_path: Path, pictures: list[tuple[bytes, str]]) -> None:
    with serving(tmp_path, "--waiting", 3, "--threads", 1) as server:
        files = [("p", (f"{i}", data)) for i, (data, _) in enumerate(pictures[:4])]
        never = httpx.post(f"{server.url}/v1/read", files=files)
        assert never.status_code == 413 and "retry-after" not in never.headers
        with concurrent.futures.ThreadPoolExecutor(24) as pool:
            found = list(
                pool.map(lambda _: httpx.post(f"{server.url}/v1/read", files=files[:3], timeout=30), range(60))
            )
        late = [answer for answer in found if answer.status_code == 503]
        assert late and {answer.status_code for answer in found} == {200, 503}
        assert all(int(a.headers["retry-after"]) >= 1 and a.json()["error"]["kind"] == "busy" for a in late)


def test_a_token_opens_reading_and_figures(tmp_path: Path, pictures: list[tuple[bytes, str]]) -> None:
    (tmp_path / "token").write_text("s3cret\n")
    with serving(tmp_path, "--token-file", tmp_path / "token") as server:
        for headers in ({}, {"authorization": "Bearer wrong"}, {"authorization": "s3cret"},
                        {"authorization": "Basic s3cret"}, {"authorization": "Bearer"}):  # fmt: skip
            refused = post(server, pictures[0][0], **headers)
            assert refused.status_code == 401 and refused.headers["www-authenticate"] == "Bearer"
        assert httpx.get(f"{server.url}/metrics").status_code == 401
        assert httpx.get(f"{server.url}/healthz").status_code == 200
        for scheme in ("Bearer", "bearer"):
            assert post(server, pictures[0][0], authorization=f"{scheme} s3cret").status_code == 200
        api = httpx.get(f"{server.url}/openapi.json").json()
        assert api["components"]["securitySchemes"]["HTTPBearer"]["scheme"] == "bearer"
        assert api["paths"]["/v1/read"]["post"]["security"] and "security" not in api["paths"]["/healthz"]["get"]


def test_unsure_pictures_are_kept_once_as_they_were_sent(tmp_path: Path, pictures: list[tuple[bytes, str]]) -> None:
    kept = tmp_path / "kept"
    with serving(tmp_path, "--keep-uncertain", kept, "--below", 0.9) as server:
        sure = {}
        for data, _ in pictures * 2:
            sure[data] = post(server, data).json()["readings"][0]["confidence"]
    unsure = {data for data, confidence in sure.items() if confidence < 0.9}
    assert 0 < len(unsure) < len(sure)
    assert {p.read_bytes() for p in kept.iterdir()} == unsure and {p.suffix for p in kept.iterdir()} == {".jpg"}
    assert len(list_pictures(kept)) == len(unsure), "recognizer label finds them"


def test_what_is_kept_goes_on_where_its_folder_was_moved_away(
    tmp_path: Path, pictures: list[tuple[bytes, str]]
) -> None:
    kept = tmp_path / "kept"
    with serving(tmp_path, "--keep-uncertain", kept, "--below", 1) as server:
        for k, (data, _) in enumerate(pictures[:4]):
            assert post(server, data).status_code == 200
            if k == 1:
                kept.rename(tmp_path / "moved")
        assert "lookalike_unkept_pictures_total 0.0" in httpx.get(f"{server.url}/metrics").text
        assert [len(list((tmp_path / name).iterdir())) for name in ("moved", "kept")] == [2, 2]


def test_a_bound_on_pixels_may_be_as_small_as_ones_pictures(tmp_path: Path, pictures: list[tuple[bytes, str]]) -> None:
    small = io.BytesIO()
    Image.open(io.BytesIO(pictures[0][0])).resize((60, 20)).save(small, "PNG")
    with serving(tmp_path, "--max-pixels", 1200) as server:
        assert post(server, small.getvalue()).status_code == 200
        assert post(server, pictures[0][0]).json()["error"]["kind"] == "too large"


def test_what_is_kept_has_a_bound(tmp_path: Path, pictures: list[tuple[bytes, str]]) -> None:
    kept, most = tmp_path / "kept", 3 * max(len(data) for data, _ in pictures)
    started = f"import recognizer.deploy.serve as s; s.Keep.__init__.__defaults__ = (1.0, 10_000, {most})"
    with serving(tmp_path, "--keep-uncertain", kept, "--below", 1, started=started) as server:
        for data, _ in pictures:
            assert post(server, data).status_code == 200
    assert 0 < sum(p.stat().st_size for p in kept.iterdir()) <= most and len(list(kept.iterdir())) < len(pictures)


def test_a_new_model_is_taken_up_without_a_failed_request(tmp_path: Path, pictures: list[tuple[bytes, str]]) -> None:
    model = tmp_path / "reader.onnx"
    shutil.copy(WEIGHTS / "reader.onnx", model)
    tiny = Reader(WEIGHTS / "tiny.onnx")
    by_tiny = [r.text for r in tiny.read([tiny.open(data) for data, _ in pictures])]
    differ = [i for i, (_, text) in enumerate(pictures) if by_tiny[i] != text]
    assert differ
    with serving(tmp_path, "--model", model) as server, httpx.Client() as client:
        answers: list[tuple[int, int, str]] = []

        def ask(i: int) -> None:
            answer = client.post(f"{server.url}/v1/read", content=pictures[i % len(pictures)][0], timeout=30)
            answers.append((i % len(pictures), answer.status_code, answer.json()["readings"][0]["text"]))

        with concurrent.futures.ThreadPoolExecutor(8) as pool:
            first = [pool.submit(ask, i) for i in range(200)]
            shutil.copy(WEIGHTS / "tiny.onnx", tmp_path / "broken")
            own = onnx.load(tmp_path / "broken")
            about = json.loads(own.metadata_props[0].value)
            for broken in ({"height": 48}, {"min_width": 10**9, "max_width": 10**10}, {"height": "32"}):
                told = about | {"frame": about["frame"] | broken}
                onnx.helper.set_model_props(own, {"lookalike": json.dumps(told)})
                onnx.save(own, tmp_path / "broken")
                (tmp_path / "broken").replace(model)
                time.sleep(2)
            shutil.copy(WEIGHTS / "tiny.onnx", tmp_path / "new")
            (tmp_path / "new").replace(model)
            deadline = time.monotonic() + 20
            while time.monotonic() < deadline:
                data, _ = pictures[differ[0]]
                if (
                    client.post(f"{server.url}/v1/read", content=data).json()["readings"][0]["text"]
                    == by_tiny[differ[0]]
                ):
                    break
                time.sleep(0.1)
            concurrent.futures.wait(first)
            done = [pool.submit(ask, i) for i in range(100)]
            concurrent.futures.wait(done)
        assert len(answers) == 300 and {status for _, status, _ in answers} == {200}
        assert all(text in (pictures[i][1], by_tiny[i]) for i, _, text in answers)
        assert all(text == by_tiny[i] for i, _, text in answers[-100:])
        os.kill(server.process.pid, signal.SIGHUP)
        time.sleep(0.5)
        figures = client.get(f"{server.url}/metrics").text
        assert 'lookalike_reloads_total{outcome="refused"} 3.0' in figures
        assert 'lookalike_reloads_total{outcome="taken"} 2.0' in figures
        assert "was not read anew" in server.errors.read_text()


def test_what_was_accepted_is_answered_before_it_stops(tmp_path: Path, pictures: list[tuple[bytes, str]]) -> None:
    with serving(tmp_path, "--threads", 1) as server, httpx.Client() as client:
        files = [("p", (f"{i}", data)) for i, (data, _) in enumerate(pictures[:32])]

        def ask() -> httpx.Response:
            return client.post(f"{server.url}/v1/read", files=files, timeout=30)

        with concurrent.futures.ThreadPoolExecutor(6) as pool:
            waiting = [pool.submit(ask) for _ in range(6)]
            deadline = time.monotonic() + 10
            while "lookalike_waiting_pictures 0.0" in client.get(f"{server.url}/metrics").text:
                assert time.monotonic() < deadline
            server.process.send_signal(signal.SIGTERM)
            found = []
            for job in waiting:
                try:
                    found.append(job.result())
                except httpx.TransportError:  # it came after the end
                    continue
        assert found and all(answer.status_code == 200 for answer in found)
        texts = [text for _, text in pictures[:32]]
        assert all([r["text"] for r in answer.json()["readings"]] == texts for answer in found)
        assert server.process.wait(timeout=30) == 0


@pytest.mark.parametrize(
    ("words", "line"),
    [
        (["--model", "nowhere"], "nowhere"),
        (["--token-file", "nowhere"], "nowhere"),
        (["--token-file", __file__], "one line of ASCII is needed"),
        (["--pattern", "["], "pattern"),
        (["--host", "203.0.113.9"], "203.0.113.9, port 0"),
        (["--host", "a..b"], "a..b, port 0"),
    ],
)
def test_a_mistake_is_one_line(words: list[str], line: str) -> None:
    command = [sys.executable, "-m", "recognizer.cli", "serve", "--port", "0", *words]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=60)
    assert done.returncode == 2 and line in done.stderr and "Traceback" not in done.stderr
    assert json.dumps(done.stdout) == '""'


def test_it_needs_no_torch() -> None:
    code = "import sys, recognizer.deploy.serve; print({'torch', 'accelerate', 'onnx'} & set(sys.modules))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "set()"
