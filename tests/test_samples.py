"""Every layout read and written with its labels as they are, every reason to set a sample aside, splits and hashes."""

from __future__ import annotations

import csv
import hashlib
import io
import json
import os
import re
import string
import struct
import subprocess
import sys
import tarfile
import zlib
from collections.abc import Callable, Iterable
from pathlib import Path

import lmdb
import numpy as np
import pytest
import webdataset
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from recognizer.charset import BLANK, NAMED, Charset, frames_needed, newcomers, tell_newcomers
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
    members: dict[str, bytes] = {}
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
        (folder / "sub" / f"{label.replace('/', '')}__{i:03d}.png").write_bytes(picture(i))


LAYOUTS: dict[str, Callable[[Path, Iterable[str]], None]] = {
    "jsonl": as_jsonl,
    "csv": as_csv,
    "lmdb": as_lmdb,
    "webdataset": as_webdataset,
    "json tar": as_json_tar,
    "names": as_names,
}


def read_as(layout: str, folder: Path) -> Manifest:
    return read_manifest(folder, "{text}__{id}.png" if layout == "names" else None)


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


def test_a_broken_line_of_a_table_is_told_by_its_number(tmp_path: Path) -> None:
    (tmp_path / "metadata.csv").write_text('file_name,text\na.png,A\nb.png,"B"x\nc.png\n')
    assert [p.name for p in read_manifest(tmp_path).problems if p.kind == "bad line"] == ["line 3", "c.png"]


def test_hidden_files_and_other_endings_are_no_pictures(tmp_path: Path) -> None:
    for name in ("12_a.png", "34_b.JPG", ".56_c.png", "78_d.txt", ".cache/90_e.png", "z/11_f.jpeg"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_bytes(b"")
    assert [p.relative_to(tmp_path).as_posix() for p in list_pictures(tmp_path)] == [
        "12_a.png",
        "34_b.JPG",
        "z/11_f.jpeg",
    ]
    assert read_manifest(tmp_path, "{text}_{id}").texts == ["12", "34", "11"]


def test_pictures_of_a_run_inside_a_folder_are_none_of_its_own(tmp_path: Path) -> None:
    for name in ("1.png", "runs/2.png", "runs/practice/round-1/made/3.png", "looks/grids/4.png", "mine/5.png"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_bytes(b"")
    for name in (
        "runs/practice/settings.toml",
        "runs/practice/ledger.jsonl",
        "looks/settings.toml",
        "looks/asked.json",
    ):
        (tmp_path / name).write_text("")
    (tmp_path / "mine/settings.toml").write_text("")  # anybody's
    assert [p.name for p in list_pictures(tmp_path)] == ["1.png", "5.png", "2.png"]
    assert [p.name for p in list_pictures(tmp_path / "runs" / "practice")] == ["3.png"], "whoever names it means it"


def test_a_mark_of_byte_order_is_no_part_of_a_shards_label(tmp_path: Path) -> None:
    with tarfile.open(tmp_path / "a.tar", "w") as tar:
        for name, data in (("1.png", b"p"), ("1.txt", "\ufeffAB".encode())):
            member = tarfile.TarInfo(name)
            member.size = len(data)
            tar.addfile(member, io.BytesIO(data))
    assert read_manifest(tmp_path / "a.tar").texts == ["AB"]


def test_a_quote_that_stands_alone_takes_no_line_into_a_label(tmp_path: Path) -> None:
    for name in ("0.png", "1.png", "2.png"):
        (tmp_path / name).write_bytes(b"p")
    (tmp_path / "metadata.csv").write_text('file_name,text\n0.png,"A,B"\n1.png,"AB\n2.png,CD"\n')
    manifest = read_manifest(tmp_path)
    assert manifest.texts == ["A,B"]
    assert [(p.name, p.kind) for p in manifest.problems] == [("line 4", "bad line")]


def test_a_pattern_with_a_dot_and_no_ending_leaves_the_ending_out(tmp_path: Path) -> None:
    (tmp_path / "0001.AB.jpg").write_bytes(b"p")
    assert read_manifest(tmp_path, "{id}.{text}").texts == ["AB"]
    assert read_manifest(tmp_path, "{id}.{text}.jpg").texts == ["AB"]
    assert read_manifest(tmp_path, "{id}.{text}.{ending}").texts == ["AB"]


def test_a_list_that_wins_over_a_pattern_is_told_once(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "AB.jpg").write_bytes(b"p")
    assert read_manifest(tmp_path, "{text}").texts == ["AB"] and not capsys.readouterr().err
    (tmp_path / "metadata.jsonl").write_text("")
    for _ in range(2):
        assert not len(read_manifest(tmp_path, "{text}"))
    assert capsys.readouterr().err.count("metadata.jsonl lists the labels there: --label-pattern is not used") == 1


def test_hidden_members_of_a_shard_are_left_out(tmp_path: Path) -> None:
    write_tar(
        tmp_path / "a.tar", {"._1.png": b"mac", "1.png": picture(), "._1.txt": b"mac", "1.txt": b"12", "README": b"x"}
    )
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
        (folder / "gone.png").symlink_to("b.png")
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


HEADER = b"IHDR" + struct.pack(">IIBBBBB", 100_000, 100_000, 8, 0, 0, 0, 0)
HUGE = b"\x89PNG\r\n\x1a\n\0\0\0\r" + HEADER + zlib.crc32(HEADER).to_bytes(4, "big") + b"\0\0\0\0IDAT"
PAIR = {"1.png": picture(), "1.txt": b"12"}
KEY, LABEL = b"image-000000001", b"label-000000001"

# (reason, what happened) -> how to make it
SET_ASIDE: dict[tuple[str, str], Callable[[Path], None]] = {
    ("missing file", "listed and not there"): named("b.png"),
    ("missing file", "a link to nothing"): named("gone.png"),
    ("missing file", "a name too long for the file system"): named("x" * 5000),
    ("missing file", "a shard without the picture"): tarred({"1.txt": b"12"}),
    ("missing file", "a shard with two pictures"): tarred(PAIR | {"1.jpg": picture(form="JPEG")}),
    ("missing file", "an LMDB without the picture"): in_lmdb({b"num-samples": b"1", LABEL: b"12"}),
    ("outside the folder", "above it"): named("../secret.png"),
    ("outside the folder", "out and in again"): named("../set/a.png"),
    ("outside the folder", "a link out of it"): named("link.png"),
    ("outside the folder", "through a linked folder"): named("up/secret.png"),
    ("outside the folder", "a link to itself"): named("loop.png"),
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


@pytest.mark.parametrize(
    ("text", "width", "fits"),
    [
        ("1234567890123456", 64, True),  # 16 frames, 16 characters
        ("12345678901234567", 64, False),
        ("112345678901234", 64, True),  # 15 characters and a blank between equal ones
        ("1123456789012345", 64, False),
        ("11111111", 64, True),  # 8 characters, 7 blanks
        ("111111111", 64, False),
        ("12345678901234567", 65, True),  # padded to 80 pixels: 20 frames
    ],
)
def test_a_label_fits_to_the_last_frame(text: str, width: int, fits: bool, tmp_path: Path) -> None:
    path = tmp_path / "a.png"
    path.write_bytes(picture(width=width, height=32))
    try:
        grey = check(Sample("a.png", text, path), None, Frame(32, 64, 512), stride=4)
    except PictureError as error:
        assert not fits
        assert error.kind == "too many characters"
        assert f"needs {frames_needed(text)} frames, its picture gives 16" in str(error)
    else:
        assert fits
        assert grey.shape == (32, 64 if width == 64 else 80)


def test_check_opens_what_a_reader_sees(tmp_path: Path) -> None:
    as_jsonl(tmp_path, ["12"])
    (sample,) = read_manifest(tmp_path)
    with Image.open(tmp_path / "000.png") as whole:
        assert np.array_equal(check(sample, Charset("12"), Frame(), 4), Frame().fit(whole))
    with pytest.raises(PictureError, match="the bound is 10") as caught:
        check(sample, None, Frame(), 4, max_pixels=10)
    assert caught.value.kind == "too large"
    with pytest.raises(PictureError, match="'12' holds '2'") as caught:
        check(sample, Charset("1"), Frame(), 4)
    assert caught.value.kind == "not in the charset"


def test_a_picture_that_is_gone_since_it_was_listed(tmp_path: Path) -> None:
    for layout in ("jsonl", "webdataset"):
        (folder := tmp_path / layout).mkdir()
        LAYOUTS[layout](folder, ["12"])
        (sample,) = read_manifest(folder)
        sample.path.write_bytes(sample.path.read_bytes()[:600])
        if layout == "webdataset":
            with pytest.raises(PictureError, match="ends before it") as caught:
                sample.read_bytes()
            assert caught.value.kind == "unreadable"
        sample.path.unlink()
        with pytest.raises(PictureError, match="no such file") as caught:
            sample.read_bytes()
        assert caught.value.kind == "missing file"
    (folder := tmp_path / "lmdb").mkdir()
    as_lmdb(folder, ["12"])
    (sample,) = read_manifest(folder)
    with pytest.raises(PictureError, match="image-000000009") as caught:
        Sample(sample.name, "12", sample.path, key=b"image-000000009").read_bytes()
    assert caught.value.kind == "missing file"


# ----------------------------------------------------------------------------------------------------- broken archives


def test_a_shard_cut_anywhere_gives_no_wrong_label(tmp_path: Path) -> None:
    texts = ["123456", "abcdef", "ABCDEF"]
    members: dict[str, bytes] = {}
    for i, text in enumerate(texts):
        members |= {f"{i}.png": picture(i, 8, 8), f"{i}.txt": text.encode()}
    write_tar(tmp_path / "whole.tar", members)
    whole = (tmp_path / "whole.tar").read_bytes()
    end = len(whole.rstrip(b"\0"))
    for keep in range(0, end, 97):
        (tmp_path / "cut.tar").write_bytes(whole[:keep])
        manifest = read_manifest(tmp_path / "cut.tar")
        assert "broken archive" in [p.kind for p in manifest.problems], keep
        assert manifest.texts == texts[: len(manifest)]
        for i, sample in enumerate(manifest):
            assert sample.read_bytes() == picture(i, 8, 8)


def test_damage_in_the_middle_of_a_shard_is_told(tmp_path: Path) -> None:
    write_tar(tmp_path / "a.tar", PAIR | {"2.png": picture(), "2.txt": b"34"})
    data = (tmp_path / "a.tar").read_bytes()
    at = data.index(b"2.png")
    (tmp_path / "a.tar").write_bytes(data[:at] + b"\xff" * 200 + data[at + 200 :])
    manifest = read_manifest(tmp_path)
    assert manifest.texts == ["12"]
    assert [(p.name, p.kind) for p in manifest.problems] == [("a.tar", "broken archive")]


def test_one_broken_shard_does_not_cost_the_others(tmp_path: Path) -> None:
    as_webdataset(tmp_path, [str(i) for i in range(25)])
    (tmp_path / "000001.tar").write_bytes(b"")
    (tmp_path / "folder.tar").mkdir()
    manifest = read_manifest(tmp_path)
    assert manifest.texts == [str(i) for i in [*range(10), *range(20, 25)]]
    assert [(p.name, p.kind) for p in manifest.problems] == [("000001.tar", "broken archive")]


def test_a_member_of_negative_size_ends_the_reading(tmp_path: Path) -> None:
    write_tar(tmp_path / "a.tar", PAIR | {"2.png": picture()})
    data = bytearray((tmp_path / "a.tar").read_bytes())
    at = data.index(b"2.png")
    data[at + 124 : at + 136] = b"\xff" + (256**11 - 600).to_bytes(11, "big")
    data[at + 148 : at + 156] = b" " * 8
    data[at + 148 : at + 156] = b"%06o\0 " % sum(data[at : at + 512])
    (tmp_path / "a.tar").write_bytes(data)
    manifest = read_manifest(tmp_path)
    assert manifest.texts == ["12"]
    assert [p.kind for p in manifest.problems] == ["broken archive"]


def test_a_key_that_stands_twice_in_a_shard_is_set_aside(tmp_path: Path) -> None:
    with tarfile.open(tmp_path / "a.tar", "w") as tar:
        for name, data in (("1.png", picture(1)), ("1.txt", b"12"), ("2.png", picture(2)), ("2.txt", b"34")) * 2:
            info = tarfile.TarInfo(name)
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))
    manifest = read_manifest(tmp_path)
    assert manifest.texts == []
    assert [(p.name, p.kind) for p in manifest.problems] == [("a.tar/1", "listed twice"), ("a.tar/2", "listed twice")]


def test_problem_table_is_short_and_safe_to_print() -> None:
    assert problem_table([], 5) == ""
    problems = [Problem(f"{i}.png", "unreadable", "x") for i in range(5)]
    problems.append(Problem("\x1b[31m\udcff\n.png", "bad line", "y" * 500))
    table = problem_table(problems, 9)
    assert table.startswith("6 of 9 samples cannot be used and were set aside")
    assert "and 2 more" in table
    assert REASONS["unreadable"] in table
    assert table.isprintable() or set(c for c in table if not c.isprintable()) == {"\n"}
    assert max(map(len, table.splitlines())) < 250
    assert r"\x1b[31m\udcff\n.png" in table


# ------------------------------------------------------------------------------------------------- junk, by the dozen

JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from(["file_name", "text", "x"]), inner),
    max_leaves=6,
)
NAMES = (
    st.sampled_from(["a.png", "./a.png", "b.png", "../a.png", "", ".", "/", "a.png/b", "\0", "~", "x" * 300])
    | st.text()
)
ROWS = st.fixed_dictionaries({"file_name": NAMES | JSON, "text": st.text(max_size=6) | JSON}) | JSON
LINES = ROWS.map(lambda row: json.dumps(row).encode()) | st.binary(max_size=40)


@pytest.fixture(scope="module")
def junk_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("junk")
    (folder / "a.png").write_bytes(picture())
    return folder


def hold_together(manifest: Manifest) -> None:
    """What is true of every manifest, however its source looks."""
    assert {p.kind for p in manifest.problems} <= set(REASONS)
    problem_table(manifest.problems, len(manifest))
    assert len({s.name for s in manifest}) == len(manifest)
    for sample in manifest:
        assert sample.text
        assert sample.text.encode()
        assert sample.read_bytes() == picture()
    assert re.fullmatch("[0-9a-f]{64}", content_hash(manifest))
    assert sum(map(len, split(manifest.samples, [1, 1]))) == len(manifest)


@settings(max_examples=80, deadline=None)
@given(lines=st.lists(LINES, max_size=6))
def test_a_manifest_of_junk_lines_is_read(junk_folder: Path, lines: list[bytes]) -> None:
    path = junk_folder / "metadata.jsonl"
    path.write_bytes(b"\n".join(lines))
    hold_together(read_manifest(path))


CELLS = st.text('ab",\n\r\0 ;', max_size=6) | NAMES.filter(str.isprintable)


@settings(max_examples=80, deadline=None)
@given(
    header=st.sampled_from(["file_name,text", "text,file_name,x", 'file_name,"te"xt', ""]),
    rows=st.lists(st.lists(CELLS)),
)
def test_a_table_of_junk_cells_is_read(junk_folder: Path, header: str, rows: list[list[str]]) -> None:
    path = junk_folder / "metadata.csv"
    lines = [header, *(",".join(row) for row in rows)]
    path.write_text("\n".join(lines), encoding="utf-8", errors="surrogatepass")
    hold_together(read_manifest(path))


@settings(max_examples=60, deadline=None)
@given(st.lists(st.tuples(st.integers(0, 4095), st.binary(min_size=1, max_size=8)), max_size=4), st.integers(0, 6000))
def test_a_damaged_shard_is_read(junk_folder: Path, damage: list[tuple[int, bytes]], keep: int) -> None:
    path = junk_folder / "damaged.tar"
    write_tar(path, {"1.png": b"x" * 700, "1.txt": b"12", "2.txt": b"34", "2.png": b"y" * 10})
    data = bytearray(path.read_bytes())
    for at, junk in damage:
        data[at : at + len(junk)] = junk
    path.write_bytes(data[:keep])
    manifest = read_manifest(path)
    assert {p.kind for p in manifest.problems} <= set(REASONS)
    for sample in manifest:
        sample.read_bytes()


@given(st.text(min_size=1).filter(lambda t: "_" not in t and "\n" not in t), st.text(string.ascii_letters))
def test_a_pattern_finds_the_label_that_was_put_in(text: str, other: str) -> None:
    for pattern, name in (
        ("{text}_{id}.png", f"{text}_{other}.png"),
        ("{id}_{text}.png", f"{other}_{text}.png"),
        ("{id}_{text}", f"{other}_{text}"),
        ("[{text}]+(x).png", f"[{text}]+(x).png"),
        ("{{text}}.png", f"{{{text}}}.png"),
    ):
        match = label_regex(pattern).fullmatch(name)
        assert match is not None
        assert match["text"] == text


@given(st.text("ab{}.*+?()[]\\^$|_-"), st.text("ab{}.*+?()[]\\^$|_-"))
def test_any_pattern_with_one_text_is_taken_at_its_word(before: str, after: str) -> None:
    pattern = before + "{text}" + after
    if pattern.count("{text}") != 1:
        return
    pieces = re.split(r"(\{[^{}]*\})", pattern)
    name = "".join("AB" if i % 2 and p == "{text}" else "" if i % 2 else p for i, p in enumerate(pieces))
    match = label_regex(pattern).fullmatch(name)
    assert match is not None
    assert match["text"]


@pytest.mark.parametrize("pattern", ["", "{id}.png", "{text}{text}", "{Text}.png", "{text"])
def test_a_pattern_without_one_text_is_refused(pattern: str, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="once, as in"):
        read_manifest(tmp_path, pattern)


# ---------------------------------------------------------------------------------------------------------- writing


@pytest.mark.parametrize("error", [RuntimeError, KeyboardInterrupt, SystemExit])
def test_a_writer_leaves_nothing_behind_when_its_block_raises(error: type[BaseException], tmp_path: Path) -> None:
    with pytest.raises(error), FolderWriter(tmp_path / "out") as writer:
        writer.add("deep/a.png", picture(), "12")
        raise error
    assert list(tmp_path.iterdir()) == []


def test_a_writer_leaves_nothing_behind_when_its_end_raises(tmp_path: Path) -> None:
    with pytest.raises(OSError), FolderWriter(tmp_path / "out") as writer:
        writer.add("a.png", picture(), "12")
        (tmp_path / "out").write_text("somebody else was here first")
    assert [p.name for p in tmp_path.iterdir()] == ["out"]


def test_nothing_is_seen_before_all_is_written(tmp_path: Path) -> None:
    with FolderWriter(tmp_path / "out") as writer:
        writer.add("a.png", picture(), "12")
        assert not (tmp_path / "out").exists()
    assert sorted(p.name for p in tmp_path.iterdir()) == ["out"]
    assert sorted(p.name for p in (tmp_path / "out").iterdir()) == ["a.png", "metadata.jsonl"]


def test_a_folder_that_holds_something_is_refused(tmp_path: Path) -> None:
    (tmp_path / "here").mkdir()
    (tmp_path / "here" / "precious").write_text("x")
    (tmp_path / "file").write_text("x")
    for out in (tmp_path / "here", tmp_path / "file"):
        with pytest.raises(UserError, match="name a new folder"):
            FolderWriter(out)
        with pytest.raises(UserError, match="name a new folder"):
            write_shards([], out)
    assert (tmp_path / "here" / "precious").read_text() == "x"


@pytest.mark.parametrize("write", [write_folder, write_shards])
def test_an_empty_folder_is_filled(write: Callable[..., None], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "source").mkdir()
    as_jsonl(tmp_path / "source", ["12"])
    manifest = read_manifest(tmp_path / "source")
    (tmp_path / "out").mkdir()
    (tmp_path / "link").symlink_to("elsewhere")
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path)
    for out in (tmp_path / "out", Path("link"), Path("new/deep")):
        write(manifest, out)
        assert content_hash(read_manifest(out)) == content_hash(manifest)


@pytest.mark.parametrize("write", [write_folder, write_shards])
def test_the_folder_we_stand_in_is_not_replaced(
    write: Callable[..., None], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    for out in (Path("."), tmp_path):
        with pytest.raises(UserError, match="name a new folder"):
            write([], out)
    assert list(tmp_path.iterdir()) == []


def test_names_that_collide_get_a_number(tmp_path: Path) -> None:
    names = ["a.png", "a.png", "a-2.png", "sub/a.png", "./a.png", "metadata.jsonl"]
    with FolderWriter(tmp_path / "out") as writer:
        for i, name in enumerate(names):
            writer.add(name, picture(i), str(i))
    manifest = read_manifest(tmp_path / "out")
    assert [s.name for s in manifest] == ["a.png", "a-2.png", "a-2-2.png", "sub/a.png", "a-3.png", "metadata-2.jsonl"]
    assert [s.read_bytes() for s in manifest] == [picture(i) for i in range(len(names))]


@pytest.mark.parametrize("name", ["../a.png", "/a.png", "sub/../../a.png", "", ".", ".."])
def test_a_name_that_leaves_the_folder_is_refused(name: str, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="leaves the folder"), FolderWriter(tmp_path / "out") as writer:
        writer.add(name, picture(), "12")
    assert list(tmp_path.iterdir()) == []


def test_a_name_that_is_not_utf_8_is_kept(tmp_path: Path) -> None:
    (tmp_path / "source").mkdir()
    (tmp_path / "source" / os.fsdecode(b"12_\xff.png")).write_bytes(picture())
    manifest = read_manifest(tmp_path / "source", "{text}_{id}.png")
    assert manifest.texts == ["12"]
    write_folder(manifest, tmp_path / "out")
    again = read_manifest(tmp_path / "out")
    assert [s.name for s in again] == [s.name for s in manifest]
    assert content_hash(again) == content_hash(manifest)


@pytest.mark.parametrize("form", ["PNG", "JPEG", "GIF", "TIFF", "BMP", "WEBP", "JPEG2000", "PPM", "MPO", "SGI"])
def test_any_format_passes_through_shards_and_lmdb(form: str, tmp_path: Path) -> None:
    (folder := tmp_path / "lmdb").mkdir()
    data = picture(form=form)
    write_lmdb(folder, {b"num-samples": b"1", KEY: data, LABEL: b"12"})
    write_shards(read_manifest(folder), tmp_path / "shards")
    write_folder(read_manifest(tmp_path / "shards"), tmp_path / "out")
    (sample,) = read_manifest(tmp_path / "out")
    assert (sample.text, sample.read_bytes()) == ("12", data)
    assert list_pictures(tmp_path / "out") == [sample.path]
    if form in ("PNG", "GIF", "BMP"):
        assert sample.path.suffix == f".{form.lower()}"


def test_an_unreadable_picture_is_copied_for_the_next_reader_to_set_aside(tmp_path: Path) -> None:
    one(b"no picture")(tmp_path)
    write_shards(read_manifest(tmp_path), tmp_path / "shards")
    assert [p.kind for p in set_aside(tmp_path / "shards")] == ["unreadable"]


@pytest.mark.parametrize("write", [write_folder, write_shards])
def test_a_copy_that_fails_leaves_nothing_behind(write: Callable[..., None], tmp_path: Path) -> None:
    gone = Sample("gone.png", "12", tmp_path / "gone.png")
    with pytest.raises(UserError, match="missing file"):
        write([gone], tmp_path / "out")
    assert list(tmp_path.iterdir()) == []


# ------------------------------------------------------------------------------------------- split, merge and hash


def named_samples(texts: Iterable[str]) -> list[Sample]:
    return [Sample(f"{i}.png", text, Path(f"{i}.png")) for i, text in enumerate(texts)]


def random_texts(n: int, seed: int = 0, rare: str = "Q") -> list[str]:
    """Texts of 4 to 6 digits, where each of `rare` stands in two of them."""
    rng = np.random.default_rng(seed)
    texts = ["".join(rng.choice(list(string.digits), rng.integers(4, 7))) for _ in range(n)]
    for i, character in enumerate(rare * 2):
        texts[i] = character + texts[i][1:]
    return texts


def test_parts_are_disjoint_and_complete_and_of_their_shares() -> None:
    samples = named_samples(random_texts(203))
    for shares, sizes in (([0.8, 0.1, 0.1], (162, 20, 20)), ([3, 1], (152, 51)), ([1, 0], (203, 0)), ([5], (203,))):
        parts = split(samples, shares)
        assert sorted(s.name for part in parts for s in part) == sorted(s.name for s in samples)
        for part, size in zip(parts, sizes, strict=True):
            assert abs(len(part) - size) <= (3 if 0 < size < 203 else 0)
            assert [samples.index(s) for s in part] == sorted(samples.index(s) for s in part)


@pytest.mark.parametrize("shares", [(0.5, 0.5), (0.8, 0.2)])
@pytest.mark.parametrize("seed", range(4))
def test_rare_characters_stand_in_both_parts_and_the_frequent_keep_their_shares(
    seed: int, shares: tuple[float, float]
) -> None:
    samples = named_samples(random_texts(200, seed, rare="QXZÄ"))
    for part, share in zip(split(samples, shares, seed), shares, strict=True):
        assert set("QXZÄ") | set(string.digits) <= {c for s in part for c in s.text}
        for length in (4, 5, 6):
            ours, all_of_it = (sum(len(s.text) == length for s in some) for some in (part, samples))
            assert abs(ours - share * all_of_it) <= 2
        for digit in string.digits:
            ours, all_of_it = (sum(digit in s.text for s in some) for some in (part, samples))
            assert abs(ours - share * all_of_it) <= 3


def test_the_order_does_not_matter_and_the_seed_does() -> None:
    samples = named_samples(random_texts(120))
    parts = [{s.name for s in part} for part in split(samples, [0.7, 0.3], seed=5)]
    for shift in range(1, 6):
        mixed = [samples[i] for i in np.random.default_rng(shift).permutation(len(samples))]
        assert [{s.name for s in part} for part in split(mixed, [0.7, 0.3], seed=5)] == parts
    assert [{s.name for s in part} for part in split(samples, [0.7, 0.3], seed=6)] != parts


SPLIT_IN_A_PROCESS = """
from pathlib import Path
from recognizer.samples import Sample, split
texts = [f"{i % 10}{i * 7 % 10}{i * 3 % 10}" + "ab"[: i % 3] for i in range(60)]
samples = [Sample(f"{i}.png", t, Path("x")) for i, t in enumerate(texts)]
print([[s.name for s in part] for part in split(samples, [0.6, 0.4])])
"""


def test_every_process_splits_alike() -> None:
    said = {
        subprocess.run(
            [sys.executable, "-c", SPLIT_IN_A_PROCESS],
            env={**os.environ, "PYTHONHASHSEED": seed},
            cwd=ROOT,
            check=True,
            capture_output=True,
        ).stdout
        for seed in ("1", "2", "3")
    }
    assert len(said) == 1


def test_the_length_5_is_not_the_character_5() -> None:
    """Both are as rare as each other here: which comes first must not hang on the samples' order."""
    samples = named_samples(["abcd5", "abc5", "abcde", "abcd", "bcda", "cdab", "dabc"])
    parts = [{s.name for s in part} for part in split(samples, [1, 1])]
    for turn in range(1, len(samples)):
        turned = samples[turn:] + samples[:turn]
        assert [{s.name for s in part} for part in split(turned, [1, 1])] == parts


@given(
    st.lists(st.text("ab5", min_size=1, max_size=6), max_size=25), st.lists(st.integers(0, 4), min_size=1, max_size=4)
)
def test_any_split_is_a_partition(texts: list[str], shares: list[int]) -> None:
    samples = named_samples(texts)
    if not sum(shares):
        with pytest.raises(UserError, match="positive"):
            split(samples, shares)
        return
    parts = split(samples, shares)
    assert sorted(s.name for part in parts for s in part) == sorted(s.name for s in samples)
    assert all(share or not part for share, part in zip(shares, parts, strict=True))


@pytest.mark.parametrize("shares", [[], [0], [1, -1], [-1, 2]])
def test_shares_that_are_none(shares: list[float]) -> None:
    with pytest.raises(UserError, match="must be positive"):
        split(named_samples(["12"]), shares)


def test_merge_tells_same_names_apart(tmp_path: Path) -> None:
    for folder, labels in (("one", ["12", "34"]), ("two", ["56"])):
        (tmp_path / folder).mkdir()
        as_jsonl(tmp_path / folder, labels)
    with (tmp_path / "two" / "metadata.jsonl").open("a") as file:
        file.write("junk\n")
    merged = merge([read_manifest(tmp_path / folder) for folder in ("one", "two")])
    assert [(s.name, s.text) for s in merged] == [("0/000.png", "12"), ("001.png", "34"), ("1/000.png", "56")]
    assert [p.kind for p in merged.problems] == ["bad line"]
    assert merged.source == f"{tmp_path / 'one'} + {tmp_path / 'two'}"
    write_folder(merged, tmp_path / "out")
    assert content_hash(read_manifest(tmp_path / "out")) == content_hash(merged)
    # a folder that was merged already, and more of its names
    again = merge([read_manifest(tmp_path / folder) for folder in ("one", "out", "two")])
    assert [s.name for s in again] == ["0/0/000.png", "0/001.png", "0/000.png", "1/001.png", "1/000.png", "2/000.png"]
    assert [s.text for s in again] == ["12", "34", "12", "34", "56", "56"]


def test_the_hash_is_of_pictures_and_texts_alone(tmp_path: Path) -> None:
    hashes = set()
    for name, labels in (("a", ["12", "34"]), ("b", ["34", "12"]), ("c", ["12", "35"]), ("d", ["12"])):
        (tmp_path / name).mkdir()
        as_jsonl(tmp_path / name, labels)
        manifest = read_manifest(tmp_path / name)
        assert content_hash(reversed(manifest.samples)) == content_hash(manifest)
        hashes.add(content_hash(manifest))
    assert len(hashes) == 4


# ---------------------------------------------------------------------------------------------------------- charset


@given(st.text(min_size=1).map(lambda t: "".join(dict.fromkeys(t))), st.data())
def test_encode_and_decode(characters: str, data: st.DataObject) -> None:
    charset = Charset(characters)
    text = data.draw(st.text(list(characters)))
    ids = charset.encode(text)
    assert charset.decode(ids) == text
    assert all(BLANK < i <= len(charset) for i in ids)
    assert charset.classes == len(charset) + 1 == len(characters) + 1
    assert charset.missing(text) == ""
    assert set(Charset.of([text]).characters) == set(text) if text else True


def test_charset_by_name_and_by_characters() -> None:
    assert Charset.named("digits").characters == "0123456789"
    assert Charset.named("abc").characters == "abc"
    assert Charset.of(["ba", "0a"]).characters == "0ab"
    assert len(Charset.named("upper+digits")) == 36
    for name in NAMED:
        assert len(set(NAMED[name])) == len(Charset.named(name))
    assert "a" in Charset("abc")
    assert "d" not in Charset("abc")
    assert Charset("ab") == Charset("ab") != Charset("ba")
    assert len({Charset("ab"), Charset("ab")}) == 1


def test_what_no_charset_is() -> None:
    with pytest.raises(UserError, match="empty"):
        Charset("")
    with pytest.raises(UserError, match="'a' more than once"):
        Charset("aba")
    with pytest.raises(UserError, match="'a1' holds '1'"):
        Charset("ab").encode("a1")
    assert Charset("ab").missing("x1ax2") == "x12"


def drawn_texts(rng: np.random.Generator, n: int, shares: np.ndarray) -> list[str]:
    letters = list(NAMED["upper+digits"])
    return ["".join(rng.choice(letters, int(rng.integers(3, 7)), p=shares)) for _ in range(n)]


@pytest.mark.parametrize("labels", [8, 15, 30, 60])
@pytest.mark.parametrize("falling", [0.0, 1.0])
def test_new_characters_are_foretold(labels: int, falling: float) -> None:
    shares = np.arange(1, 37) ** -falling
    told, true = [], []
    for k in range(150):
        rng = np.random.default_rng(k)
        texts = drawn_texts(rng, labels, shares / shares.sum())
        told.append(newcomers(texts))
        known = {c for text in texts for c in text}
        true.append(np.mean([not set(text) <= known for text in drawn_texts(rng, 100, shares / shares.sum())]))
    assert np.mean(told) == pytest.approx(np.mean(true), rel=0.15, abs=0.004)


def test_labels_that_are_too_few_for_their_characters_are_told() -> None:
    assert newcomers([]) == 0 and tell_newcomers([]) == tell_newcomers(["1212", "1221"]) == ""
    assert newcomers(["1213"]) == 1 - 0.5**4
    assert "about 94% of further pictures" in tell_newcomers(["1213"])


@given(st.text("ab", max_size=12))
def test_frames_needed_is_the_shortest_path_that_collapses_to_the_text(text: str) -> None:
    path: list[str] = []
    for character in text:
        path += ["-"] * (path[-1:] == [character]) + [character]
    assert frames_needed(text) == len(path)
