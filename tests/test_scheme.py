"""The embedded scheme: what it writes, and that a person could read it."""

from __future__ import annotations

import random
from itertools import combinations
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from pipelines.scheme import CHARACTERS, GLYPHS, LENGTHS, draw, write_scheme
from recognizer.errors import UserError
from recognizer.samples import content_hash, read_manifest


@pytest.fixture(scope="module")
def scheme(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("scheme")
    write_scheme(out, 120, 60, seed=3)
    return out


def test_two_folders_whose_texts_do_not_meet(scheme: Path) -> None:
    labelled, test = read_manifest(scheme / "labelled"), read_manifest(scheme / "test")
    assert (len(labelled), len(test)) == (120, 60)
    assert labelled.problems == test.problems == ()
    texts = labelled.texts + test.texts
    assert len(set(texts)) == len(texts)
    assert {len(text) for text in texts} == set(LENGTHS)
    assert set("".join(texts)) == set(CHARACTERS) == set(GLYPHS)
    for sample in (*labelled, *test):
        assert sample.text not in sample.name
        with Image.open(sample.path) as picture:
            assert (picture.format, picture.mode, picture.size) == ("JPEG", "RGB", (160, 60))


def test_same_seed_same_bytes(scheme: Path, tmp_path: Path) -> None:
    for name, seed in (("again", 3), ("other", 4)):
        write_scheme(tmp_path / name, 120, 60, seed)
    for part in ("labelled", "test"):
        assert content_hash(read_manifest(tmp_path / "again" / part)) == content_hash(read_manifest(scheme / part))
        assert content_hash(read_manifest(tmp_path / "other" / part)) != content_hash(read_manifest(scheme / part))
    with pytest.raises(UserError, match="name a new folder"):
        write_scheme(scheme, 1, 1)


def test_a_picture_hangs_on_its_text_and_seed_alone() -> None:
    first = draw("AB12", 7)
    random.seed(1)
    np.random.seed(1)  # noqa: NPY002 - the global state must not matter
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


def test_every_glyph_reads_as_itself_alone() -> None:
    """Mean pictures, one character in one place: each of a second lot is nearest to its own, or nearly always."""
    means, again = (
        {c: np.mean([ink_of(c, seed) for seed in seeds], axis=0) for c in CHARACTERS}
        for seeds in (range(16), range(16, 32))
    )
    nearest = {c: min(CHARACTERS, key=lambda o: float(((again[c] - means[o]) ** 2).sum())) for c in CHARACTERS}
    assert nearest == {c: c for c in CHARACTERS}
    for a, b in combinations(CHARACTERS, 2):
        assert np.abs(means[a] - means[b]).max() > 0.15, (a, b)


def ink_of(character: str, seed: int) -> np.ndarray:
    """Where ink lies in a picture of four of one character, columns averaged over the four, (30, 20) of 0 to 1."""
    grey = np.asarray(draw(character * 4, seed).convert("L").resize((80, 30)), dtype=np.float64)
    away = np.abs(grey - np.median(grey))
    return np.asarray((away / away.max()).reshape(30, 4, 20).mean(1))
