"""Coverage-guided fuzzing of everything that reads what a stranger wrote (libFuzzer, by atheris).

    pip install atheris
    python benchmarks/fuzz.py TARGET --seconds 600 [--corpus DIR]

Targets: picture, manifest, shard, settings, weights, reader, about, body. An input may be refused with the errors that
are meant for it and with nothing else; it may take 10 seconds and 2 GB, write no file, and name none outside its
folder. What breaks one of these is left as `crash-...` beside the corpus folder.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import io
import json
import shutil
import sys
import tempfile
from collections.abc import AsyncGenerator, Callable
from pathlib import Path

import atheris
import onnx

# what compares arrays is left out: each array that a comparison makes is never freed where it is watched
WATCHED = ["recognizer", "PIL", "starlette.formparsers", "python_multipart", "tarfile", "csv"]
with atheris.instrument_imports(include=WATCHED, exclude=["recognizer.images", "recognizer.decode"]):
    import tarfile

    from PIL import Image
    from starlette.requests import Request

    from recognizer.deploy.serve import Limits, Refusal, _pictures
    from recognizer.errors import UserError
    from recognizer.images import Frame, PictureError, open_picture
    from recognizer.reader import Reader
    from recognizer.samples import read_manifest
    from recognizer.settings import load
    from recognizer.training.checkpoint import SHIPPED, build, read_weights
    from recognizer.training.train import TrainSettings

FRAMES = (Frame(trim=True), Frame(48, 96, 320))
FOLDER = Path(tempfile.mkdtemp(prefix="fuzz-"))
WHOLE = onnx.load(SHIPPED / "tiny.onnx")


def picture(data: bytes) -> None:
    with contextlib.suppress(PictureError):
        opened = open_picture(data, None, 200_000)
        for frame in FRAMES:
            grey = frame.fit(opened)
            assert grey.shape[0] == frame.height and grey.shape[1] % 16 == 0


def listed(name: str, data: bytes) -> None:
    """A manifest file of that name, alone in a folder."""
    (FOLDER / name).write_bytes(data)
    with contextlib.suppress(UserError):
        for sample in read_manifest(FOLDER):
            if sample.key is None:
                assert sample.path.resolve().is_relative_to(FOLDER.resolve()), f"{sample.path} lies outside"
            with contextlib.suppress(PictureError):
                sample.read_bytes()


def manifest(data: bytes) -> None:
    listed("metadata.csv" if data[:1] == b"\x01" else "metadata.jsonl", data[1:])


def shard(data: bytes) -> None:
    listed("a.tar", data)


def settings(data: bytes) -> None:
    path = FOLDER / "settings.toml"
    path.write_bytes(data)
    words = [w for w in data.decode("utf-8", "replace").splitlines() if "=" in w][:5]
    for config, sets in ((path, []), (None, words)):
        with contextlib.suppress(UserError):
            load(TrainSettings, config, {}, sets)


def weights(data: bytes) -> None:
    path = FOLDER / "weights.safetensors"
    path.write_bytes(data)
    with contextlib.suppress(UserError):
        build(*read_weights(path))


def reader(data: bytes) -> None:
    path = FOLDER / "reader.onnx"
    path.write_bytes(data)
    with contextlib.suppress(UserError):
        look(Reader(path))


def look(own: Reader) -> None:
    """What a reader that was opened must be able to do: see a picture. What its network then says is its own affair."""
    grey = own.open(Image.new("RGB", (90, 30), "white"))
    assert grey.shape[0] == own.frame.height
    with contextlib.suppress(Exception):  # ONNX Runtime's, of a network that contradicts itself
        own.read([grey])


def about(data: bytes) -> None:
    """A reader whose network is whole and whose description is not."""
    onnx.helper.set_model_props(WHOLE, {"lookalike": data.decode("utf-8", "replace")})
    path = FOLDER / "about.onnx"
    path.write_bytes(WHOLE.SerializeToString())
    with contextlib.suppress(UserError):
        look(Reader(path))


def body(data: bytes) -> None:
    kind, _, rest = data.partition(b"\n")
    scope = {"type": "http", "method": "POST", "headers": [(b"content-type", kind.replace(b"\r", b""))]}

    async def stream() -> AsyncGenerator[bytes, None]:
        for k in range(0, len(rest), 100):
            yield rest[k : k + 100]

    with contextlib.suppress(Refusal):
        asyncio.run(_pictures(Request(scope), stream(), Limits(pictures=8)))


TARGETS: dict[str, Callable[[bytes], None]] = {
    f.__name__: f for f in (picture, manifest, shard, settings, weights, reader, about, body)
}


def seeds(target: str) -> list[bytes]:
    """Inputs that are as they should be, to begin with."""
    if target == "picture":
        found = []
        for form in ("PNG", "JPEG", "GIF", "BMP", "WEBP", "TIFF", "PPM", "ICO"):
            data = io.BytesIO()
            Image.linear_gradient("L").resize((40, 16)).convert("RGB").save(data, form)
            found.append(data.getvalue())
        return found
    if target == "manifest":
        row = {"file_name": "a.png", "text": "0012"}
        return [b"\x00" + json.dumps(row).encode() + b"\n", b'\x01file_name,text\na.png,"1E23"\n']
    if target == "shard":
        data = io.BytesIO()
        with tarfile.open(fileobj=data, mode="w") as tar:
            for name, held in (("1.png", b"x"), ("1.txt", b"0012")):
                info = tarfile.TarInfo(name)
                info.size = len(held)
                tar.addfile(info, io.BytesIO(held))
        return [data.getvalue()]
    if target == "settings":
        return [b'batch = 32\nloss = "ctc"\n[vary]\nscale = 0.1\n', b"learning_rate = 1e-3\nframe.trim = false\n"]
    if target == "weights":
        return [(SHIPPED / "tiny.safetensors").read_bytes()]
    if target == "about":
        return [next(p.value for p in WHOLE.metadata_props if p.key == "lookalike").encode()]
    if target == "reader":
        return [(SHIPPED / "tiny.onnx").read_bytes()]
    form = b'--x\r\nContent-Disposition: form-data; name="a"; filename="b.png"\r\n\r\nzz\r\n--x--\r\n'
    return [b"multipart/form-data; boundary=x\n" + form, b"image/png\n\x89PNG"]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("target", choices=list(TARGETS))
    parser.add_argument("--seconds", type=int, default=600)
    parser.add_argument("--corpus", type=Path)
    given = parser.parse_args()
    corpus = given.corpus or Path(tempfile.mkdtemp(prefix=f"corpus-{given.target}-"))
    corpus.mkdir(parents=True, exist_ok=True)
    for k, seed in enumerate(seeds(given.target)):
        (corpus / f"seed-{k}").write_bytes(seed)
    run = TARGETS[given.target]

    def one(data: bytes) -> None:
        run(data)
        held = list(FOLDER.iterdir())
        assert len(held) <= 1, f"files were written: {held}"
        for path in held:
            path.unlink()

    longest = {"weights": 1_500_000, "reader": 1_500_000}.get(given.target, 20_000)
    flags = [
        f"-max_total_time={given.seconds}", "-timeout=10", "-rss_limit_mb=2048", f"-max_len={longest}",
        f"-artifact_prefix={corpus.parent}/", "-print_final_stats=1",
    ]  # fmt: skip
    atheris.Setup([sys.argv[0], str(corpus), *flags], one)
    try:
        atheris.Fuzz()
    finally:
        shutil.rmtree(FOLDER, ignore_errors=True)


if __name__ == "__main__":
    main()
