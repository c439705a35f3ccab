"""The embedded scheme: what it writes, and that a person could read it."""

from __future__ import annotations

import random
from itertools import combinations
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from pipelines import scheme
from pipelines.scheme import CHARACTERS, GLYPHS, LENGTHS, draw, write_scheme
from recognizer.errors import UserError
from recognizer.samples import content_hash, list_pictures, read_manifest


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("scheme")
    write_scheme(out, 60, 30, seed=3)
    return out


def test_two_folders_whose_texts_do_not_meet(written: Path) -> None:
    labelled, test = read_manifest(written / "labelled"), read_manifest(written / "test")
    assert (len(labelled), len(test)) == (60, 30)
    assert labelled.problems == test.problems == ()
    texts = labelled.texts + test.texts
    assert len(set(texts)) == len(texts)
    assert {len(text) for text in texts} == set(LENGTHS)
    assert set("".join(texts)) == set(CHARACTERS) == set(GLYPHS)
    for sample in (*labelled, *test):
        assert sample.text not in sample.name
        with Image.open(sample.path) as picture:
            assert (picture.format, picture.mode, picture.size) == ("JPEG", "RGB", (160, 60))


def test_same_seed_same_bytes(written: Path, tmp_path: Path) -> None:
    for name, seed in (("again", 3), ("other", 4)):
        write_scheme(tmp_path / name, 60, 30, seed)
    for part in ("labelled", "test"):
        assert content_hash(read_manifest(tmp_path / "again" / part)) == content_hash(read_manifest(written / part))
        assert content_hash(read_manifest(tmp_path / "other" / part)) != content_hash(read_manifest(written / part))
    with pytest.raises(UserError, match="name a new folder"):
        write_scheme(written, 1, 1)


def test_pictures_without_labels_are_others_and_change_no_labelled_one(written: Path, tmp_path: Path) -> None:
    write_scheme(tmp_path, 60, 30, seed=3, n_unlabelled=20)
    for part in ("labelled", "test"):
        assert content_hash(read_manifest(tmp_path / part)) == content_hash(read_manifest(written / part))
    loose = list_pictures(tmp_path / "unlabelled")
    assert len(loose) == 20 and not list((tmp_path / "unlabelled").glob("**/*.json*"))
    labelled = {s.read_bytes() for part in ("labelled", "test") for s in read_manifest(tmp_path / part)}
    assert len(labelled | {path.read_bytes() for path in loose}) == 110
    assert not (written / "unlabelled").exists()


def test_a_picture_hangs_on_its_text_and_seed_alone() -> None:
    first = draw("AB12", 7)
    random.seed(1)
    np.random.seed(1)
    draw("XYZ99", 8)
    assert draw("AB12", 7).tobytes() == first.tobytes()
    assert len({draw(text, seed).tobytes() for text in ("AB12", "AB13") for seed in (7, 8)}) == 4


@pytest.mark.parametrize("text", ["", "ABC", "ABCDEFG", "abcd", "AB 1", "ÄBCD"])
def test_what_it_does_not_draw(text: str) -> None:
    with pytest.raises(UserError, match="the scheme draws 4 to 6 of"):
        draw(text, 0)


def test_ink_stands_out_from_paper() -> None:
    for seed in range(40):
        grey = np.asarray(draw("H8MW", seed).convert("L"), dtype=np.float64)
        dark, light = np.percentile(grey, [4, 96])
        assert light - dark > 60


def test_no_two_glyphs_are_alike() -> None:
    """Each glyph upright in one place: of the ink of any two, at least three tenths are in one of them alone."""
    ink = {}
    for character in CHARACTERS:
        middle = np.array([GLYPHS[character][0] / 2, 0.5])
        lines = [(line - middle) * 40 + (80, 30) for line in scheme._outline(character)]
        ink[character] = scheme._cover(*scheme._ink(lines, [40.0] * len(lines), weight=1.0, nib=-0.4))
    for a, b in combinations(CHARACTERS, 2):
        shared = np.minimum(ink[a], ink[b]).sum() / np.maximum(ink[a], ink[b]).sum()
        assert shared < 0.7, (a, b, shared)
