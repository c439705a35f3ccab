"""Every layout read and written with its labels as they are, every reason to set a sample aside, splits and hashes."""

from __future__ import annotations

import csv
import hashlib
import io
import json
import os
import re
import string
import subprocess
import sys
import tarfile
from collections import Counter
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import lmdb
import numpy as np
import pytest
import webdataset  # type: ignore[import-untyped]
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from recognizer.charset import BLANK, NAMED, Charset, frames_needed
from recognizer.errors import UserError
from recognizer.images import Frame, PictureError
from recognizer.samples import (
    REASONS,
    FolderWriter,
    Manifest,
    Problem,
    Sample,
    check,
    content_hash,
    label_regex,
    list_pictures,
    merge,
    problem_table,
    read_manifest,
    split,
    write_folder,
    write_shards,
)

ROOT = Path(__file__).resolve().parent.parent

# what parsers of tables and of YAML take for numbers, dates, booleans or nothing
LABELS = [
    "0012", "1E23", "1e5", "NA", "N/A", "nan", "no", "on", "true", "False", "null", "None", "0x1F", "007.50", "-5",
    "+1", "1_000", "12:30", "2024-01-02", "inf", " 12 ", "=1+1", "#1", "{text}", "a\\n", "it's", "ΩЖ", "日本", "é",
    "e\u0301", "😀", "\u202e12", "\u2028", "ß", "İ",
]  # fmt: skip
QUOTED = ["a,b", 'say "x"', "1,234", '"', ",", "tab\there"]


def picture(seed: int = 0, width: int = 48, height: int = 20, form: str = "PNG") -> bytes:
    pixels = np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, form)
    return buffer.getvalue()


def as_jsonl(folder: Path, labels: Iterable[str]) -> None:
    rows = []
    for i, label in enumerate(labels):
        (folder / f"{i:03d}.png").write_bytes(picture(i))
        rows.append(json.dumps({"file_name": f"{i:03d}.png", "text": label}, ensure_ascii=i % 2 == 0) + "\n")
    (folder / "metadata.jsonl").write_text("".join(rows), encoding="utf-8")


def as_csv(folder: Path, labels: Iterable[str]) -> None:
    with (folder / "metadata.csv").open("w", encoding="utf-8", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["file_name", "text"])
        for i, label in enumerate(labels):
            (folder / f"{i:03d}.png").write_bytes(picture(i))
            writer.writerow([f"{i:03d}.png", label])


def as_lmdb(folder: Path, labels: Iterable[str]) -> None:
    entries: dict[bytes, bytes] = {}
    for i, label in enumerate(labels):
        entries[b"image-%09d" % (i + 1)] = picture(i)
        entries[b"label-%09d" % (i + 1)] = label.encode()
    write_lmdb(folder, entries | {b"num-samples": str(len(entries) // 2).encode()})


def write_lmdb(folder: Path, entries: dict[bytes, bytes]) -> None:
    with lmdb.open(str(folder), map_size=1 << 22) as environment, environment.begin(write=True) as transaction:
        for key, value in entries.items():
            transaction.put(key, value)


def as_webdataset(folder: Path, labels: Iterable[str]) -> None:
    with webdataset.ShardWriter(str(folder / "%06d.tar"), maxcount=10, verbose=0) as writer:
        for i, label in enumerate(labels):
            writer.write({"__key__": f"{i:03d}", "png": picture(i), "txt": label})


def as_json_tar(folder: Path, labels: Iterable[str]) -> None:
    members = {}
    for i, label in enumerate(labels):
        members |= {f"./set/{i:03d}.png": picture(i), f"./set/{i:03d}.json": json.dumps({"text": label}).encode()}
    write_tar(folder / "all.tar", members)


def write_tar(path: Path, members: dict[str, bytes]) -> None:
    with tarfile.open(path, "w") as tar:
        for name, data in members.items():
            info = tarfile.TarInfo(name)
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))


def as_names(folder: Path, labels: Iterable[str]) -> None:
    (folder / "sub").mkdir()
    for i, label in enumerate(labels):
        (folder / "sub" / f"{label.replace('/', '')}_{i:03d}.png").write_bytes(picture(i))


LAYOUTS: dict[str, Callable[[Path, Iterable[str]], None]] = {
    "jsonl": as_jsonl,
    "csv": as_csv,
    "lmdb": as_lmdb,
    "webdataset": as_webdataset,
    "json tar": as_json_tar,
    "names": as_names,
}


def read_as(layout: str, folder: Path) -> Manifest:
    return read_manifest(folder, "{text}_{id}.png" if layout == "names" else None)


# ---------------------------------------------------------------------------------------------------------- reading


@pytest.mark.parametrize("layout", LAYOUTS)
def test_labels_stay_text_in_every_reader_and_writer(layout: str, tmp_path: Path) -> None:
    labels = [label.replace("/", "") for label in LABELS] if layout == "names" else LABELS + QUOTED
    (source := tmp_path / "source").mkdir()
    LAYOUTS[layout](source, labels)
    manifest = read_as(layout, source)
    assert manifest.problems == ()
    assert manifest.source == str(source)
    expected = {hashlib.sha256(picture(i)).digest(): label for i, label in enumerate(labels)}
    assert {hashlib.sha256(s.read_bytes()).digest(): s.text for s in manifest} == expected
    if layout != "names":  # sorted by name, so by label, there
        assert manifest.texts == labels

    write_folder(manifest, tmp_path / "folder")
    write_shards(read_manifest(tmp_path / "folder"), tmp_path / "shards", per_shard=7)
    write_folder(read_manifest(tmp_path / "shards"), tmp_path / "again")
    assert len(list((tmp_path / "shards").glob("*.tar"))) == -(-len(labels) // 7)
    for copy in ("folder", "shards", "again"):
        again = read_manifest(tmp_path / copy)
        assert again.problems == ()
        assert again.texts == manifest.texts
        assert content_hash(again) == content_hash(manifest)


def test_labels_that_end_a_line_survive_too(tmp_path: Path) -> None:
    labels = ["a\n", "a\r\n", "a\r", "\n", "a\n\n", "a\nb"]
    as_jsonl(tmp_path, labels)
    write_shards(read_manifest(tmp_path), tmp_path / "shards")
    assert read_manifest(tmp_path / "shards").texts == labels


@pytest.mark.parametrize("end", ["", "\n", "\r\n"])
def test_one_line_end_after_a_shard_label_is_no_part_of_it(end: str, tmp_path: Path) -> None:
    write_tar(tmp_path / "a.tar", {"1.png": picture(), "1.txt": f"0012{end}".encode()})
    assert read_manifest(tmp_path / "a.tar").texts == ["0012"]


def test_the_named_file_is_the_one_that_is_read(tmp_path: Path) -> None:
    as_csv(tmp_path, ["from csv"])
    as_jsonl(tmp_path, ["from jsonl"])
    assert read_manifest(tmp_path).texts == ["from jsonl"]
    assert read_manifest(tmp_path / "metadata.jsonl").texts == ["from jsonl"]
    assert read_manifest(str(tmp_path / "metadata.csv")).texts == ["from csv"]


def test_more_than_a_text_is_kept_as_meta(tmp_path: Path) -> None:
    (tmp_path / "a.png").write_bytes(picture())
    row = {"file_name": "a.png", "text": "12", "source": "kept", "depth": {"a": [1, None, 0.5]}}
    (tmp_path / "metadata.jsonl").write_text("\ufeff" + json.dumps(row) + "\n\n", encoding="utf-8")
    meta = {"source": "kept", "depth": {"a": [1, None, 0.5]}}
    assert [s.meta for s in read_manifest(tmp_path)] == [meta]
    write_shards(read_manifest(tmp_path), tmp_path / "shards")
    assert [s.meta for s in read_manifest(tmp_path / "shards")] == [meta]
    write_folder(read_manifest(tmp_path / "shards"), tmp_path / "again")
    assert [(s.text, s.meta) for s in read_manifest(tmp_path / "again")] == [("12", meta)]


def test_meta_cannot_change_what_a_copy_says(tmp_path: Path) -> None:
    meta = {"file_name": "elsewhere.png", "text": "wrong", "note": 1}
    write_tar(tmp_path / "a.tar", {"1.png": picture(), "1.txt": b"right", "1.json": json.dumps(meta).encode()})
    write_folder(read_manifest(tmp_path / "a.tar"), tmp_path / "out")
    (sample,) = read_manifest(tmp_path / "out")
    assert (sample.text, sample.meta) == ("right", {"note": 1})
    assert sample.read_bytes() == picture()


def test_names_that_mean_one_file_are_one_name(tmp_path: Path) -> None:
    (tmp_path / "sub").mkdir()
    (tmp_path / "sub" / "a.png").write_bytes(picture())
    names = ["sub/a.png", "./sub/a.png", "sub//a.png", "sub/../sub/a.png"]
    write_rows(tmp_path, *({"file_name": n, "text": "12"} for n in names))
    manifest = read_manifest(tmp_path)
    assert [s.name for s in manifest] == ["sub/a.png"]
    write_folder(manifest, tmp_path / "out")
    assert content_hash(read_manifest(tmp_path / "out")) == content_hash(manifest)


def test_a_symlink_that_stays_below_the_folder_is_followed(tmp_path: Path) -> None:
    (tmp_path / "a.png").write_bytes(picture())
    (tmp_path / "b.png").symlink_to("a.png")
    write_rows(tmp_path, {"file_name": "b.png", "text": "12"})
    assert read_manifest(tmp_path).texts == ["12"]


def test_hidden_files_and_other_endings_are_no_pictures(tmp_path: Path) -> None:
    for name in ("12_a.png", "34_b.JPG", ".56_c.png", "78_d.txt", ".cache/90_e.png", "z/11_f.jpeg"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_bytes(b"")
    assert [p.relative_to(tmp_path).as_posix() for p in list_pictures(tmp_path)] == ["12_a.png", "34_b.JPG", "z/11_f.jpeg"]
    assert read_manifest(tmp_path, "{text}_{id}").texts == ["12", "34", "11"]


def test_hidden_members_of_a_shard_are_left_out(tmp_path: Path) -> None:
    write_tar(tmp_path / "a.tar", {"._1.png": b"mac", "1.png": picture(), "._1.txt": b"mac", "1.txt": b"12", "README": b"x"})
    manifest = read_manifest(tmp_path)
    assert (manifest.texts, manifest.problems) == (["12"], ())


def test_first_is_bounded(tmp_path: Path) -> None:
    as_jsonl(tmp_path, ["1", "2", "3"])
    manifest = read_manifest(tmp_path)
    assert manifest.first(2).texts == ["1", "2"]
    assert len(manifest.first(9)) == 3


@pytest.mark.parametrize(
    ("make", "says"),
    [
        (lambda p: None, "no such file or folder"),
        (lambda p: p.mkdir(), "--label-pattern"),
        (lambda p: p.write_text("x"), "no manifest"),
    ],
)
def test_no_layout_that_is_known(make: Callable[[Path], object], says: str, tmp_path: Path) -> None:
    make(tmp_path / "here")
    with pytest.raises(UserError, match=says):
        read_manifest(tmp_path / "here")


def test_lmdbs_that_are_none(tmp_path: Path) -> None:
    for name, entries, says in (
        ("empty", {b"x": b"y"}, "no num-samples"),
        ("word", {b"num-samples": b"many"}, "no num-samples"),
        ("lies", {b"num-samples": b"1000000000000"}, "holds 1 entries"),
    ):
        (tmp_path / name).mkdir()
        write_lmdb(tmp_path / name, entries)
        with pytest.raises(UserError, match=says):
            read_manifest(tmp_path / name)
    (tmp_path / "text").mkdir()
    (tmp_path / "text" / "data.mdb").write_text("x" * 5000)
    with pytest.raises(UserError, match="no LMDB that can be opened"):
        read_manifest(tmp_path / "text")


# ------------------------------------------------------------------------------------------- every reason, with a file


def write_rows(folder: Path, *rows: object) -> None:
    (folder / "metadata.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")


def one(data: bytes, text: str = "12", name: str = "a.png") -> Callable[[Path], None]:
    """A folder with one picture of these bytes."""

    def make(folder: Path) -> None:
        (folder / name).write_bytes(data)
        write_rows(folder, {"file_name": name, "text": text})

    return make


def listed(*rows: object) -> Callable[[Path], None]:
    """A folder with a good a.png, one outside it, links, and these rows."""

    def make(folder: Path) -> None:
        (folder / "a.png").write_bytes(picture())
        (folder.parent / "secret.png").write_bytes(picture())
        (folder / "link.png").symlink_to(folder.parent / "secret.png")
        (folder / "loop.png").symlink_to("loop.png")
        (folder / "up").symlink_to("..")
        (folder / "folder.png").mkdir()
        write_rows(folder, *rows)

    return make


def named(name: object, text: object = "12") -> Callable[[Path], None]:
    return listed({"file_name": name, "text": text})


def raw(data: bytes, name: str = "metadata.jsonl") -> Callable[[Path], None]:
    def make(folder: Path) -> None:
        (folder / "a.png").write_bytes(picture())
        (folder / name).write_bytes(data)

    return make


def tarred(members: dict[str, bytes], keep: int | None = None) -> Callable[[Path], None]:
    def make(folder: Path) -> None:
        write_tar(folder / "a.tar", members)
        if keep is not None:
            (folder / "a.tar").write_bytes((folder / "a.tar").read_bytes()[:keep])

    return make


def unlisted(name: str) -> Callable[[Path], None]:
    def make(folder: Path) -> None:
        (folder / name).write_bytes(picture())

    return make


def in_lmdb(entries: dict[bytes, bytes]) -> Callable[[Path], None]:
    return lambda folder: write_lmdb(folder, entries)


HUGE = b"\x89PNG\r\n\x1a\n\0\0\0\rIHDR" + (100_000).to_bytes(4, "big") * 2 + b"\x08\0\0\0\0" + bytes(4)
PAIR = {"1.png": picture(), "1.txt": b"12"}
KEY, LABEL = b"image-000000001", b"label-000000001"

# (reason, what happened) -> how to make it
SET_ASIDE: dict[tuple[str, str], Callable[[Path], None]] = {
    ("missing file", "listed and not there"): named("b.png"),
    ("missing file", "a link to nothing"): named("loop.png"),
    ("missing file", "a name too long for the file system"): named("x" * 5000),
    ("missing file", "a shard without the picture"): tarred({"1.txt": b"12"}),
    ("missing file", "a shard with two pictures"): tarred(PAIR | {"1.jpg": picture(form="JPEG")}),
    ("missing file", "an LMDB without the picture"): in_lmdb({b"num-samples": b"1", LABEL: b"12"}),
    ("outside the folder", "above it"): named("../secret.png"),
    ("outside the folder", "out and in again"): named("../set/a.png"),
    ("outside the folder", "a link out of it"): named("link.png"),
    ("outside the folder", "through a linked folder"): named("up/secret.png"),
    ("outside the folder", "an absolute path"): named("/etc/passwd"),
    ("unreadable", "half a PNG"): one(picture()[:-100]),
    ("unreadable", "half a JPEG"): one(picture(form="JPEG")[:-200], name="a.jpg"),
    ("unreadable", "no bytes"): one(b""),
    ("unreadable", "text named .png"): one(b"12\n"),
    ("unreadable", "a folder named .png"): named("folder.png"),
    ("unreadable", "a shard cut in a picture"): tarred({"1.txt": b"12", "1.png": picture()}, keep=2000),
    ("too large", "a bomb"): one(HUGE),
    ("bad line", "a number for a label"): named("a.png", 12),
    ("bad line", "nothing for a label"): named("a.png", None),
    ("bad line", "a truth for a label"): named("a.png", True),
    ("bad line", "no label"): listed({"file_name": "a.png"}),
    ("bad line", "no name"): listed({"text": "12"}),
    ("bad line", "an empty name"): named(""),
    ("bad line", "a NUL in a name"): named("a\0.png"),
    ("bad line", "no object"): listed(["a.png", "12"]),
    ("bad line", "no JSON"): raw(b'{"file_name": "a.png", "text": "12"\n'),
    ("bad line", "deep JSON"): raw(b"[" * 100_000),
    ("bad line", "half a UTF-16 pair"): raw(b'{"file_name": "a.png", "text": "\\ud800"}\n'),
    ("bad line", "a label in another coding"): raw('{"file_name": "a.png", "text": "é"}\n'.encode("latin-1")),
    ("bad line", "a comma that is not quoted"): raw(b"file_name,text\na.png,1,234\n", "metadata.csv"),
    ("bad line", "a short row"): raw(b"file_name,text\na.png\n", "metadata.csv"),
    ("bad line", "a stray quote"): raw(b'file_name,text\na.png,"1"2\n', "metadata.csv"),
    ("bad line", "an endless cell"): raw(b'file_name,text\na.png,"12\n', "metadata.csv"),
    ("bad line", "other columns"): raw(b"path,label\na.png,12\n", "metadata.csv"),
    ("bad line", "a shard without a label"): tarred({"1.png": picture()}),
    ("bad line", "a shard's number for a label"): tarred({"1.png": picture(), "1.json": b'{"text": 12}'}),
    ("bad line", "a shard's list for a row"): tarred({"1.png": picture(), "1.json": b"[]"}),
    ("bad line", "a shard's label in another coding"): tarred({"1.png": picture(), "1.txt": b"\xff"}),
    ("bad line", "a shard's endless label"): tarred({"1.png": picture(), "1.txt": b"1" * 1_000_001}),
    ("bad line", "a shard cut in a label"): tarred({"1.png": b"x" * 512, "1.txt": b"123456"}, keep=512 * 3 + 3),
    ("bad line", "an LMDB label in another coding"): in_lmdb({b"num-samples": b"1", KEY: b"x", LABEL: b"\xff"}),
    ("listed twice", "with two texts"): listed(*({"file_name": "a.png", "text": t} for t in ("12", "34"))),
    ("listed twice", "under two spellings"): listed(
        {"file_name": "a.png", "text": "12"}, {"file_name": "./a.png", "text": "34"}
    ),
    ("no label in the name", "no separator"): unlisted("12.png"),
    ("empty label", "nothing typed"): named("a.png", ""),
    ("empty label", "an empty .txt"): tarred({"1.png": picture(), "1.txt": b"\n"}),
    ("not in the charset", "a letter among digits"): named("a.png", "1B"),
    ("too many characters", "one over"): one(picture(width=64, height=32), "12345678901234567"),
    ("too many characters", "repeats need a blank"): one(picture(width=64, height=32), "11" + "2345" * 3 + "23"),
    ("broken archive", "no tar"): raw(b"x" * 2000, "a.tar"),
    ("broken archive", "no bytes"): raw(b"", "a.tar"),
}


def set_aside(folder: Path) -> list[Problem]:
    """All that reading and checking sets aside, 16 frames to the narrowest picture."""
    manifest = read_manifest(folder, "{text}_{id}" if (folder / "12.png").exists() else None)
    found = list(manifest.problems)
    for sample in manifest:
        try:
            check(sample, Charset.named("digits"), Frame(32, 64, 512), stride=4)
        except PictureError as error:
            found.append(Problem(sample.name, error.kind, str(error)))
    return found


@pytest.mark.parametrize(("kind", "what"), SET_ASIDE, ids=[" - ".join(k) for k in SET_ASIDE])
def test_what_is_set_aside_and_why(kind: str, what: str, tmp_path: Path) -> None:
    (folder := tmp_path / "set").mkdir()
    SET_ASIDE[kind, what](folder)
    before = {p: p.read_bytes() for p in folder.rglob("*") if p.is_file()}
    problems = [p for p in set_aside(folder) if p.kind != "broken archive" or kind == "broken archive"]
    assert [p.kind for p in problems] == [kind]
    assert problems[0].detail
    assert problem_table(problems, 1).count("\n") == 2
    assert {p: p.read_bytes() for p in folder.rglob("*") if p.is_file() and p.name != "lock.mdb"} == {
        p: data for p, data in before.items() if p.name != "lock.mdb"
    }


def test_every_reason_is_provoked() -> None:
    assert {kind for kind, _ in SET_ASIDE} == set(REASONS)


def test_a_label_fits_to_the_last_frame() -> None:
    def kind(text: str, width: int = 64) -> str | None:
        sample = Sample("a.png", text, Path("a.png"))
        try:
            grey = check_bytes(sample, picture(width=width, height=32))
        except PictureError as error:
            return error.kind
        assert grey.shape[0] == 32
        return None

    def check_bytes(sample: Sample, data: bytes) -> Any:
        class InMemory(Sample):
            def read_bytes(self) -> bytes:
                return data

        return check(InMemory(sample.name, sample.text, sample.path), None, Frame(32, 64, 512), stride=4)

    assert kind("1234567890123456") is None  # 16 frames, 16 characters
    assert kind("12345678901234567") == "too many characters"
    assert kind("112345678901234") is None  # 15 characters and one blank between equals
    assert kind("1123456789012345") == "too many characters"
    assert kind("11111111") is None  # 8 characters, 7 blanks
    assert kind("111111111") == "too many characters"
    assert kind("12345678901234567", width=65) is None  # padded to 80 pixels
