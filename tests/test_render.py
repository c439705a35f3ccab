"""Rendered text: distance fields by brute force, layouts against the ink, weather against Pillow, and the stream."""

from __future__ import annotations

import io
import re
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from fontTools.fontBuilder import FontBuilder
from fontTools.pens.ttGlyphPen import TTGlyphPen
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont
from torch.nn import functional as F

from augment.glyphs import REACH, SHIPPED, TILE, Glyphs, _field, _small_capitals, font_files, load_glyphs
from augment.methods.render import Render, RenderSettings, draw, noise_bank, window
from augment.stream import BLOCK, LENGTHS, Stream, _shrinking, seen, with_marks
from augment.style import BANK, Dice, Style, keys_of, throw_style
from augment.weather import blurred, coarse, jpeg
from recognizer.charset import MARKS, NAMED, Charset
from recognizer.errors import UserError
from recognizer.images import Frame, grey_of, normalise, text_parts
from recognizer.training.batches import normalised

TEXTS = ["a", "0Oo1lI", "Wm9qgjy", "XHEAK", "123456789012"]
CPU = torch.device("cpu")


# ------------------------------------------------------------------------------------------------------------- glyphs


def test_distance_fields_equal_brute_force() -> None:
    rng = np.random.default_rng(0)
    side = 2 * TILE
    sheet = Image.new("1", (side, side))
    pen = ImageDraw.Draw(sheet)
    for _ in range(4):
        x, y, r = rng.uniform((20, 20, 3), (side - 20, side - 20, 15)).tolist()
        pen.ellipse((x - r, y - r, x + r, y + r), fill=1)
    mask = np.array(sheet)
    tile = _field(mask[None], np.array([1.0], np.float32))[0].numpy().astype(float)
    points = np.argwhere(np.ones_like(mask)).reshape(side, side, 2)
    solid, clear = np.argwhere(mask), np.argwhere(~mask)
    coarse_points = (points.reshape(TILE, 2, TILE, 2, 2)).transpose(0, 2, 1, 3, 4).reshape(-1, 2)
    to_solid = np.sqrt(((coarse_points[:, None] - solid) ** 2).sum(2).min(1))
    to_clear = np.sqrt(((coarse_points[:, None] - clear) ** 2).sum(2).min(1))
    distance = np.where(to_solid == 0, to_clear - 0.5, 0.5 - to_solid).reshape(TILE, TILE, 4).mean(2)
    expected = 127.5 + 127.5 * (distance / TILE / REACH).clip(-1, 1)
    near = np.abs(distance / TILE) < 0.8 * REACH  # beyond the reach distances are cut off, before they are averaged
    assert near.sum() > 200 and np.abs(tile - expected)[near].max() <= 1


def test_shipped_fonts_draw_every_letter_and_digit_and_come_with_their_licence() -> None:
    files = font_files(())
    assert len(files) == 10 and sum(f.stat().st_size for f in files) < 250_000
    glyphs = load_glyphs(tuple(files), Charset.named("letters+digits").characters)
    assert (glyphs.index >= 0).all()
    licence = (SHIPPED / "LICENSES.txt").read_text()
    assert "SIL OPEN FONT LICENSE Version 1.1" in licence
    assert all(f"{f.name.partition('-latin-')[0]}: " in licence for f in files)


def test_small_letters_that_are_capitals_are_left_out() -> None:
    def mask(character: str) -> np.ndarray:
        sheet = Image.new("L", (80, 80))
        ImageDraw.Draw(sheet).text((20, 15), character, 255, ImageFont.truetype(str(font_files(())[0]), 40))
        return np.asarray(sheet) > 127

    characters = "ADEGRadegr5"
    own = {i: mask(c) for i, c in enumerate(characters)}
    assert _small_capitals(own, characters) == []
    capitals = {i: mask(c.upper()) for i, c in enumerate(characters)}
    assert _small_capitals(capitals, characters) == [5, 6, 7, 8, 9]


SEGMENTS = {"a": (1, 18, 7, 20), "b": (7, 11, 9, 18), "c": (7, 2, 9, 9), "d": (1, 0, 7, 2), "e": (0, 2, 2, 9),
            "f": (0, 11, 2, 18), "g": (1, 9, 7, 11)}  # left, low, right, high  # fmt: skip
LIT = {"0": "abcdef", "1": "bc", "2": "abged", "3": "abgcd", "4": "fgbc",
       "5": "afgcd", "6": "afgedc", "7": "abc", "8": "abcdefg", "9": "abcdfg"}  # fmt: skip


def display(path: Path, drawn: str = "abcdefg") -> Path:
    """A font whose digits are those of a display of segments, and its H the same as its 8; with some of them alone."""
    names = {ord(digit): f"digit{digit}" for digit in LIT} | {ord("H"): "H"}
    builder = FontBuilder(1000, isTTF=True)
    builder.setupGlyphOrder([".notdef", *names.values()])
    builder.setupCharacterMap(names)
    glyphs = {".notdef": TTGlyphPen(None).glyph()}
    for code, name in names.items():
        pen = TTGlyphPen(None)
        for segment in {*LIT.get(chr(code), LIT["8"])} & {*drawn}:
            left, low, right, high = (35 * x for x in SEGMENTS[segment])
            for i, corner in enumerate([(left, low), (left, high), (right, high), (right, low)]):
                (pen.lineTo if i else pen.moveTo)(corner)
            pen.closePath()
        glyphs[name] = pen.glyph()
    builder.setupGlyf(glyphs)
    table = builder.font["glyf"]
    builder.setupHorizontalMetrics({name: (400, getattr(table[name], "xMin", 0)) for name in glyphs})
    builder.setupHorizontalHeader(ascent=800, descent=-200)
    builder.setupNameTable({"familyName": "Segments", "styleName": "Regular"})
    builder.setupOS2()
    builder.setupPost()
    builder.save(path)
    return path


def test_digits_of_a_display_stand_in_a_whole_cell_whose_other_segments_shine_through(tmp_path: Path) -> None:
    usual = load_glyphs(tuple(font_files(())), "0123456789H")
    assert (usual.unlit < 0).all()
    glyphs = load_glyphs((display(tmp_path / "segments.ttf"),), "0123456789H")
    digits, letter = glyphs.index[0, :10], glyphs.index[0, 10]
    assert (glyphs.unlit[digits] == glyphs.index[0, 8]).all() and glyphs.unlit[letter] == -1
    assert np.unique(glyphs.half[digits], axis=0).shape == (1, 2) and np.unique(glyphs.middle[digits], axis=0).size == 2
    left, right = (glyphs.hull[glyphs.index[0, 1], :, 0].min(), glyphs.hull[glyphs.index[0, 8], :, 0].max())
    assert left > 0.1 and abs(glyphs.hull[glyphs.index[0, 1], :, 0].max() - right) < 0.02  # a 1 is lit on the right

    style = throw_style(["171"] * 400, range(400), (96, 32), glyphs, 0.0)
    shine = style.picture["unlit"] > 0
    assert 180 < shine.sum() < 300
    for around in ("rim", "shadow"):
        style.picture[around][:] = 0
    with_them = draw(style, (96, 32), glyphs, 1, CPU, layout=False).pictures
    style.picture["unlit"][:] = 0
    without = draw(style, (96, 32), glyphs, 1, CPU, layout=False).pictures
    apart = (with_them - without).abs().flatten(1)
    contrast = torch.from_numpy(np.abs(style.picture["ink"] - style.picture["paper"]))[shine]
    assert (apart[shine].amax(1) < 0.3 * contrast + 0.02).all() and (apart[shine].amax(1) > 0).all()
    assert not apart[~shine].any()


def test_fonts_that_are_not_there_and_texts_that_no_font_draws_are_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no font file is there"):
        Render(RenderSettings(fonts=(str(tmp_path),)))
    (tmp_path / "broken.ttf").write_bytes(b"no font")
    with pytest.raises(UserError, match="no font in it"):
        Render(RenderSettings(fonts=(str(tmp_path),))).draw(["ab"], [0], (96, 32))
    (tmp_path / "broken.ttf").unlink()
    display(tmp_path / "empty.ttf", drawn="")  # whose every glyph is blank
    with pytest.raises(UserError, match="no font draws any of"):
        Render(RenderSettings(fonts=(str(tmp_path),))).draw(["18"], [0], (96, 32))
    render = Render(RenderSettings())
    with pytest.raises(UserError, match="no font draws '水'"):
        render.draw(["a水"], [0], (96, 32))
    for text in ("", "x" * 33):
        with pytest.raises(UserError, match="a picture shows 1 to 32"):
            render.draw([text], [0], (96, 32))


# -------------------------------------------------------------------------------------------------------------- style


def test_dice_depend_on_their_own_key_alone_and_are_even() -> None:
    keys = keys_of(["ab"] * 2000, range(2000))
    whole, half = Dice(keys), Dice(keys[1000:])
    for each in (0, 5, 64):
        a, b = whole.throw(each), half.throw(each)
        assert np.array_equal(a[1000:], b) and (a >= 0).all() and (a < 1).all()
        assert abs(a.mean() - 0.5) < 4 * (1 / 12 / a.size) ** 0.5
        assert abs(np.corrcoef(a.reshape(2000, -1)[:-1, 0], a.reshape(2000, -1)[1:, 0])[0, 1]) < 0.1
    assert len(np.unique(keys_of(["a", "b", "ab", "ba", "aa"], [0] * 5))) == 5


def test_no_difficulty_is_clean_print() -> None:
    glyphs = load_glyphs(tuple(font_files(())), "ABC")
    style = throw_style(["ABC"] * 300, range(300), (96, 32), glyphs, 0.0)
    p = style.picture
    for name in ("wave_x", "wave_y", "bend", "gradient", "cloud", "stripes", "dots", "holes", "blur", "grain", "jpeg"):
        assert not p[name].any(), name
    assert not style.lines.any() and not style.character["turn"].any()
    assert (np.abs(p["ink"] - p["paper"]) > 0.25).all()


# ------------------------------------------------------------------------------------------------------------ drawing


def test_boxes_hold_the_ink_of_each_character() -> None:
    glyphs = load_glyphs(tuple(font_files(())), "".join(sorted({*"".join(TEXTS)})))
    texts = [TEXTS[i % len(TEXTS)] for i in range(60)]
    style = throw_style(texts, range(60), (160, 48), glyphs, 0.0)
    for around in ("rim", "shadow"):  # the ink
        style.picture[around][:] = 0
    style.picture["weight"] = style.picture["weight"].clip(min=0)  # no hairline fades
    clean = draw(style, (160, 48), glyphs, 1, CPU)
    paper = clean.pictures.flatten(1).mode(1).values
    ink = (clean.pictures[:, 0] - paper[:, None, None]).abs() > 0.12
    for text, boxes, own in zip(texts, clean.boxes, ink, strict=True):
        assert boxes.isfinite().all(1).sum() == len(text)
        columns = own.any(0).nonzero()[:, 0]
        held = boxes[: len(text)]
        # the ink begins where the first box does and ends with the last, to 2 pixels: its edges are soft
        assert abs(float(columns.min()) - float(held[:, 0].min())) < 2
        assert abs(float(columns.max()) + 1 - float(held[:, 2].max())) < 2
        centres = (held[:, 0] + held[:, 2]) / 2
        assert (centres.diff() > 0).all()


def counters(n: int = 200) -> tuple[Style, Glyphs]:
    """Pictures of 96 x 32 of counters of four wheels, without disturbance; `rolled` is of the last wheel."""
    glyphs = load_glyphs(tuple(font_files(())), NAMED["digits"])
    style = throw_style(["1234"] * n, range(n), (96, 32), glyphs, 0.3)
    disturbance = (
        "wave_x wave_y bend swing hollow rim shadow dots holes blur coarse grain levels jpeg cloud stripes blocks "
        "gradient brushed relief fade many tint worn hatched rough"
    )
    for name in disturbance.split():
        style.picture[name][:] = 0
    style.lines[:] = 0
    return style, glyphs


def test_characters_stand_in_windows_cut_into_a_housing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("augment.style.IN_CELLS", 1e9)
    style, glyphs = counters()
    p, c = style.picture, style.character
    p["cell_rim"][:] = 0
    assert p["cells"].all() and (np.diff(c["cell_x"], axis=1) >= 2 * p["cell_wide"][:, None] - 1e-9).all()
    assert (np.abs(c["x"] - c["cell_x"]) <= 0.1 * p["cell_wide"][:, None]).all()
    ids = np.full_like(style.glyphs, -1)
    ids[:, 0] = style.glyphs[:, 0]
    grey = draw(replace(style, glyphs=ids), (96, 32), glyphs, 1, CPU, layout=False).pictures[:, 0].numpy()
    y, x = np.mgrid[:32, :96] + 0.5
    across = np.abs(x - c["cell_x"][:, :1, None]) - p["cell_wide"][:, None, None]
    outside = np.maximum(across, np.abs(y - p["cell_y"][:, None, None]) - p["cell_high"][:, None, None]) > 0.5
    # of one character there is one window, and no ink outside it, however far its wheel is rolled
    assert all(
        np.abs(own[out] - housing).max() < 0.01 for own, out, housing in zip(grey, outside, p["housing"], strict=True)
    )
    paper = np.array([np.median(own[~out]) for own, out in zip(grey, outside, strict=True)])
    same = np.where(c["other"][:, 0] > 0, p["other_grey"], p["paper"])
    assert (np.abs(paper - same) < 0.02).mean() > 0.9


def test_a_counter_shows_the_digits_that_come_next_and_before(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("augment.style.IN_CELLS", 1e9)
    style, glyphs = counters()
    on = (style.picture["wheels"] > 0)[:, None] & (style.glyphs >= 0)
    assert 0.4 < on.mean() < 0.8 and (style.beside[~on] == -1).all()
    places = {int(glyphs.index[f, k]): (f, k) for f in range(len(glyphs.index)) for k in range(10)}
    for row, j in np.argwhere(on).tolist():
        font, digit = places[int(style.glyphs[row, j])]
        further = 1 if style.character["rolled"][row, j] < 0 else -1
        assert places[int(style.beside[row, j])] == (font, (digit + further) % 10)
    away = style.character["beside_y"] - style.character["y"]
    assert np.array_equal(away > 0, style.character["rolled"] < 0)
    shown = draw(style, (96, 32), glyphs, 1, CPU, layout=False).pictures
    none = draw(replace(style, beside=np.full_like(style.beside, -1)), (96, 32), glyphs, 1, CPU, layout=False).pictures
    differ = (shown != none).flatten(1).any(1).numpy()
    assert not differ[~on.any(1)].any() and differ[on.any(1)].mean() > 0.5
    letters = throw_style(["ABCD"] * 50, range(50), (96, 32), load_glyphs(tuple(font_files(())), "ABCD0"), 1.0)
    assert letters.picture["cells"].all() and (letters.beside == -1).all()


def test_boxes_hold_the_ink_of_letters_that_are_turned_and_bent_to_other_quadrangles() -> None:
    glyphs = load_glyphs(tuple(font_files(())), "AHgvQ7")
    texts = list("AHgvQ7") * 30
    style = throw_style(texts, range(180), (96, 64), glyphs, 0.0)
    for around in ("rim", "shadow", "hollow", "weight"):
        style.picture[around][:] = 0
    dice = np.random.default_rng(0)
    for name, most in (("turn", 0.6), ("shear", 0.4), ("tilt", 0.3), ("twist", 0.5), ("keel", 0.5)):
        style.character[name][:] = dice.uniform(-most, most, (180, 1))
    style.character["cap"][:], style.character["x"][:], style.character["y"][:] = 28, 48, 32
    drawn = draw(style, (96, 64), glyphs, 1, CPU)
    paper = drawn.pictures.flatten(1).mode(1).values
    ink = (drawn.pictures[:, 0] - paper[:, None, None]).abs() > 0.12
    off = []
    for box, own in zip(drawn.boxes[:, 0], ink, strict=True):
        columns, rows = own.any(0).nonzero()[:, 0], own.any(1).nonzero()[:, 0]
        seen = torch.stack([columns.min(), rows.min(), columns.max() + 1, rows.max() + 1])
        off.append((box - seen).abs())
    assert torch.stack(off).quantile(0.95, 0).max() < 2


def test_boxes_follow_the_bending() -> None:
    glyphs = load_glyphs(tuple(font_files(())), "H")
    style = throw_style(["H"] * 40, range(40), (96, 32), glyphs, 0.0)
    flat = draw(style, (96, 32), glyphs, 1, CPU)
    style.picture["wave_x"][:], style.picture["wave_x_kx"][:], style.picture["wave_x_ky"][:] = 5.0, 0.0, 0.0
    style.picture["wave_x_phase"][:] = 0.25  # a shift of everything by 5 pixels to the left
    bent = draw(style, (96, 32), glyphs, 1, CPU)
    moved = flat.boxes[:, 0, [0, 2]] - 5
    inside = (moved[:, 0] > 0) & (moved[:, 1] < 96)
    assert inside.sum() > 20
    torch.testing.assert_close(bent.boxes[inside, 0][:, [0, 2]], moved[inside], atol=0.05, rtol=0)
    torch.testing.assert_close(bent.pictures[inside, :, :, 10:80], flat.pictures[inside, :, :, 15:85], atol=0.1, rtol=0)


@pytest.mark.parametrize("size", [(160, 60), (112, 32)])
def test_a_picture_depends_on_its_request_alone(size: tuple[int, int]) -> None:
    rng = np.random.default_rng(3)
    texts = ["".join(rng.choice(list("aB3dE0OlWmg9"), 1 + k % 12)) for k in range(160)]
    seeds = [5000 + k for k in range(160)]
    together = Render(RenderSettings()).draw([*texts, "éñ"], [*seeds, 0], size).pictures
    for some in (range(0, 160, 4), range(1, 160, 5)):
        for k in some:
            assert torch.equal(Render(RenderSettings()).draw([texts[k]], [seeds[k]], size).pictures[0], together[k])
    few = Render(RenderSettings()).draw(texts[40:57], seeds[40:57], size).pictures
    assert torch.equal(few, together[40:57])


def test_grey_pictures_are_the_luminance_of_coloured_ones() -> None:
    render, texts = Render(RenderSettings()), TEXTS * 4
    coloured = render.draw(texts, range(20), (120, 40), difficulty=0.0).pictures
    grey = render.draw(texts, range(20), (120, 40), channels=1, difficulty=0.0).pictures
    luminance = (coloured * torch.tensor([0.299, 0.587, 0.114])[:, None, None]).sum(1, keepdim=True)
    assert coloured.std(1).max() > 0.1, "nothing is coloured"
    torch.testing.assert_close(luminance, grey, atol=0.02, rtol=0)


@pytest.mark.parametrize("size", [(16, 8), (31, 17), (700, 60), (64, 520)])
def test_any_size_can_be_drawn(size: tuple[int, int]) -> None:
    drawn = Render(RenderSettings()).draw(["a7K"] * 30, range(30), size)
    assert drawn.pictures.shape == (30, 3, size[1], size[0])
    assert drawn.pictures.isfinite().all() and drawn.pictures.min() >= 0 and drawn.pictures.max() <= 1


def test_windows_of_noise_wrap_around() -> None:
    bank = noise_bank("even", CPU)
    at = torch.tensor([0.0, BANK**2 - 1])
    found = window(bank, at, 3, 5)
    torch.testing.assert_close(found[0], bank[:3, :5])
    torch.testing.assert_close(found[1], bank[BANK - 1 : BANK + 2, BANK - 1 : BANK + 4])
    torch.testing.assert_close(found[1][1:, 1:], bank[:2, :4])
    assert window(bank, at, 7, 9, zoom=2).shape == (2, 7, 9)
    assert window(bank, at, 3, 2 * BANK).shape == (2, 3, 2 * BANK)


# ------------------------------------------------------------------------------------------------------------ weather


def test_jpeg_loses_what_libjpeg_loses() -> None:
    rng = np.random.default_rng(0)
    x, y = np.meshgrid(np.arange(48), np.arange(32))
    picture = (128 + 90 * np.sin(x / 5) * np.cos(y / 4) + rng.normal(0, 12, (32, 48))).clip(0, 255).astype(np.uint8)
    for quality in (15, 40, 60, 90):
        file = io.BytesIO()
        Image.fromarray(picture).save(file, "JPEG", quality=quality)
        expected = np.asarray(Image.open(file), float)
        ours = jpeg(torch.from_numpy(picture)[None, None].float() / 255, torch.tensor([float(quality)]))[0, 0].numpy()
        assert np.abs(255 * ours - expected).mean() < 1.0, quality
        assert np.abs(255 * ours - picture).mean() > 0.5 or quality == 90


def test_blur_keeps_what_is_even_and_has_the_asked_deviation() -> None:
    point = torch.zeros(2, 1, 41, 41)
    point[:, :, 20, 20] = 1
    deviation = torch.tensor([0.8, 2.0])
    soft = blurred(point, deviation)
    torch.testing.assert_close(soft.sum((1, 2, 3)), torch.ones(2))
    away = (torch.arange(41) - 20.0) ** 2
    spread = (soft.sum(2) * away).sum(2)[:, 0].sqrt()
    torch.testing.assert_close(spread, deviation, atol=0.3, rtol=0)
    torch.testing.assert_close(
        blurred(torch.full((1, 1, 9, 9), 0.3), torch.tensor([1.5])), torch.full((1, 1, 9, 9), 0.3)
    )


def test_coarse_pictures_keep_their_size_and_mean() -> None:
    pictures = torch.rand(3, 1, 30, 60, generator=torch.Generator().manual_seed(0))
    for blocky in (True, False):
        found = coarse(pictures, 3.0, blocky)
        assert found.shape == pictures.shape and found.std() < 0.6 * pictures.std()
        torch.testing.assert_close(found.mean(), pictures.mean(), atol=0.01, rtol=0)


# ------------------------------------------------------------------------------------------------------------- stream


def stream(seed: int = 0, characters: str = "letters+digits", **settings: object) -> Stream:
    return Stream(Charset.named(characters), Frame(32, 96, 512), seed, settings)


def cut(**settings: object) -> Stream:
    return Stream(Charset.named("digits"), Frame(32, 96, 512, trim=True), 0, settings)


def test_a_stream_follows_from_seed_step_and_place_alone() -> None:
    whole = stream()
    first = [whole.batch(k, 100, range(8), CPU) for k in range(2 * BLOCK)]
    part = stream().batch(BLOCK + 1, 100, range(4, 8), CPU)
    torch.testing.assert_close(part.pictures, first[BLOCK + 1].pictures[4:], atol=0, rtol=0)
    assert part.lengths.tolist() == first[BLOCK + 1].lengths[4:].tolist()
    again = whole.batch(1, 100, range(8), CPU)
    torch.testing.assert_close(again.pictures, first[1].pictures, atol=0, rtol=0)
    other = stream(1).batch(0, 100, range(8), CPU)
    assert other.pictures.shape != first[0].pictures.shape or not torch.equal(other.pictures, first[0].pictures)
    assert not torch.equal(first[0].pictures, first[1].pictures)


def test_a_stream_that_other_processes_throw_is_the_same() -> None:
    own, theirs = stream(), stream(workers=2)
    for step in (*range(2 * BLOCK), 0, 5 * BLOCK):  # in turn, again from the start, and further on
        here, there = (source.batch(step, 100, range(8), CPU) for source in (own, theirs))
        assert all(torch.equal(a, b) for a, b in zip(here, there, strict=True)), step


def test_parts_are_resized_as_interpolate_does_with_antialiasing() -> None:
    pictures = torch.rand(3, 1, 40, 90, generator=torch.Generator().manual_seed(0))
    first, last = torch.tensor([0.0, 7.0, 20.0]), torch.tensor([90.0, 81.0, 29.0])
    resized = pictures[:, 0] @ _shrinking(first, last, 90, 48).mT
    for picture, a, b, found in zip(pictures, first.int(), last.int(), resized, strict=True):
        part = F.interpolate(picture[None, :, :, a:b], (40, 48), mode="bilinear", antialias=True)
        torch.testing.assert_close(found, part[0, 0], atol=1e-5, rtol=0)


def test_a_stream_shows_every_character_and_length_and_its_labels_are_ids_of_the_charset() -> None:
    charset = Charset.named("letters+digits")
    own, shown, lengths = stream(), set(), set()
    for step in range(0, 12 * BLOCK, BLOCK):
        batch = own.batch(step, 100, range(32), CPU)
        assert batch.pictures.shape[0] == 32 and batch.pictures.shape[2] == 32 and batch.pictures.shape[3] % 16 == 0
        for ids, n in zip(batch.targets, batch.lengths, strict=True):
            assert (ids[:n] > 0).all() and not ids[n:].any()
            shown |= set(charset.decode(ids[:n].tolist()))
            lengths.add(int(n))
    assert shown == set(charset.characters) and lengths >= {3, 4, 5, 6, 7, 8} and lengths <= set(LENGTHS)


def test_letters_in_relief_have_a_bright_and_a_dark_side_where_the_light_says() -> None:
    glyphs = load_glyphs(tuple(font_files(())), "HE")
    style = throw_style(["HE"] * 40, range(40), (96, 32), glyphs, 0.0)
    p = style.picture
    for name in ("rim", "shadow", "hollow"):
        p[name][:] = 0
    p["paper"][:], p["relief"][:], p["relief_ink"][:], p["relief_y"][:] = 0.5, 0.3, 0.0, 0.0
    p["relief_x"][:] = np.where(np.arange(40) < 20, 1.0, -1.0)
    pictures = draw(style, (96, 32), glyphs, 1, CPU, layout=False).pictures[:, 0]
    bright, dark = (pictures > 0.6).float(), (pictures < 0.4).float()
    assert (bright.sum((1, 2)) > 5).all() and (dark.sum((1, 2)) > 5).all() and (pictures == 0.5).float().mean() > 0.5
    at = torch.arange(96.0)
    apart = (bright.sum(1) @ at) / bright.sum((1, 2)) - (dark.sum(1) @ at) / dark.sum((1, 2))
    assert apart[:20].mean() < -1 < 1 < apart[20:].mean()


def test_colours_are_seen_in_torch_as_in_numpy() -> None:
    rng = np.random.default_rng(0)
    noisy = rng.integers(0, 256, (4, 16, 48, 3)).astype(np.uint8)
    drawn = (Render(RenderSettings()).draw(TEXTS, range(5), (96, 32)).pictures * 255).round().byte()
    for pictures in (noisy, drawn.permute(0, 2, 3, 1).numpy()):
        found = seen(torch.from_numpy(pictures).permute(0, 3, 1, 2).float() / 255) * 255
        apart = found[:, 0].numpy() - np.stack([grey_of(picture) for picture in pictures]).astype(np.float32)
        assert np.abs(apart).max() <= 1.01 and (np.abs(apart) > 0.5).mean() < 0.01


def test_a_share_of_a_stream_is_drawn_by_the_captcha_package() -> None:
    rendered, packaged, mixed = (
        stream(package=share, easy=1).batch(0, 10, range(24), CPU) for share in (0.0, 1.0, 0.5)
    )
    assert torch.equal(rendered.targets, packaged.targets) and torch.equal(rendered.targets, mixed.targets)
    own = [torch.equal(a, b) for a, b in zip(mixed.pictures, rendered.pictures, strict=True)]
    theirs = [torch.equal(a, b) for a, b in zip(mixed.pictures, packaged.pictures, strict=True)]
    assert all(a != b for a, b in zip(own, theirs, strict=True)) and 5 < sum(theirs) < 19


def test_a_share_of_a_stream_is_cut_to_the_part_with_the_text() -> None:
    """As a reader's frame cuts the pictures that it will read: of those, as good as nothing is left to cut off."""
    shown = {share: cut(trimmed=share, easy=0.0, climb=1.0).batch(0, 1000, range(32), CPU) for share in (0.0, 0.5, 1.0)}
    assert torch.equal(shown[0.0].targets, shown[1.0].targets)

    def left(share: float) -> NDArray[np.float64]:
        own = shown[share].pictures
        low, high = own.amin((1, 2, 3), keepdim=True), own.amax((1, 2, 3), keepdim=True)
        parts = text_parts((255 * (own - low) / (high - low)).byte()[:, 0].numpy())
        return (parts[:, 2] - parts[:, 0]) * (parts[:, 3] - parts[:, 1])

    assert left(0.0).mean() < 0.75 < 0.9 < np.median(left(1.0)), (left(0.0).mean(), np.median(left(1.0)))
    mixed = [torch.equal(a, b) for a, b in zip(shown[0.5].pictures, shown[1.0].pictures, strict=True)]
    assert 6 < sum(mixed) < 26


def test_marks_stand_in_amounts_and_codes_where_the_charset_holds_them() -> None:
    dice = Dice(np.arange(4000, dtype=np.uint64))
    plain = ["AB12CD"] * 4000
    found = with_marks(dice, plain, set(NAMED["letters+digits+marks"]), 10)
    marked = [text for text in found if text != "AB12CD"]
    assert 0.1 < len(marked) / 4000 < 0.16 and {c for text in marked for c in text} >= set(MARKS)
    assert max(map(len, found)) == 10 and all(set(text) & set(MARKS) or text.isdigit() for text in marked)
    amounts = [text for text in marked if re.fullmatch(r"[$€£]?\d{1,3}([.,]?\d{3})?([.,-]\d\d)?[$€£]?", text)]
    assert len(amounts) > len(marked) / 3
    # nothing is written that cannot be drawn, and nothing changes where no mark can be
    few = with_marks(dice, plain, set("AB12CD-"), 10)
    assert {c for text in few for c in text} == set("AB12CD-") and with_marks(dice, plain, set("AB12CD"), 10) == plain


def test_a_stream_of_a_charset_of_ones_own() -> None:
    batch = stream(characters="#+7").batch(0, 10, range(16), CPU)
    assert set(batch.targets.unique().tolist()) == {0, 1, 2, 3}
    with pytest.raises(UserError, match="no font draws any"):
        stream(characters="水火")
    with pytest.raises(UserError, match="did you mean 'climb'"):
        stream(clim=1)


def test_pictures_are_normalised_in_torch_as_in_numpy() -> None:
    greys = np.random.default_rng(0).integers(0, 256, (6, 1, 32, 48)).astype(np.uint8)
    greys[3:] = 255 - greys[3:] // 9  # little contrast; then ink brighter than paper
    greys[4, :, :, :40] = 3
    greys[5] = 77
    torch.testing.assert_close(
        normalised(torch.from_numpy(greys).float()), torch.from_numpy(normalise(greys)), atol=1e-5, rtol=1e-5
    )
