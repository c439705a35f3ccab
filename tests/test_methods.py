"""The contract of every method in the table, what is particular to the drawn and the classical ones, and the sheets."""

from __future__ import annotations

import fcntl
import hashlib
import io
import itertools
import json
import math
import os
import random
import shutil
import subprocess
import sys
import tempfile
import time
from functools import lru_cache
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from conftest import augment, draw_folder, refusal
from PIL import Image, ImageDraw, ImageFont

from augment.fidelity import exact_text, varies
from augment.method import Method, Request, Sources, write_requests
from augment.methods import METHODS, create, load_class, load_learner
from augment.methods.splice import between_strokes, ink_of
from augment.sheet import GAP, WIDEST, WRONG, Cell, contact_sheet
from augment.synthesize import answered_by, as_shown, random_texts, requests_for_sources, requests_for_texts, synthesize
from recognizer.charset import Charset
from recognizer.errors import Stopped, UserError
from recognizer.readings import LOST, marked
from recognizer.samples import FolderWriter, read_manifest

ROOT = Path(__file__).resolve().parent.parent
WHITE = (255, 255, 255)
SIZES = [(160, 60), (100, 35), (200, 50), (61, 27)]
TEXTS = ["aB3d", "0Oo1lI", "Wm9qg", "x"]
METHOD = pytest.mark.parametrize("name", METHODS)


def source_picture(text: str = "aB3dE", width: int = 120, height: int = 40) -> Image.Image:
    picture = Image.new("RGB", (width, height), (240, 245, 250))
    ImageDraw.Draw(picture).text((width / 8, height / 6), text, (30, 40, 90), ImageFont.load_default(height * 0.6))
    return picture


def requests_for(seed: int = 0) -> list[Request]:
    return [
        Request(text, seed + i, width, height, f"{i}.png")
        for i, (text, (width, height)) in enumerate(zip(TEXTS, SIZES, strict=True))
    ]


def make(method: Method, requests: list[Request]) -> list[bytes]:
    pictures = method.make(requests, [source_picture(r.text) for r in requests])
    return [picture.tobytes() for picture in pictures]


@lru_cache
def fitted() -> Path:
    """Where methods that learn learned from pictures of every character of `TEXTS`; once for all processes."""
    return Path(os.environ.get("FITTED") or tempfile.mkdtemp())


def stable_diffusion() -> Path:
    """A pipeline of the real classes, tiny and untrained, as save_pretrained writes it; once for all processes."""
    from diffusers import AutoencoderKL, DDIMScheduler, StableDiffusionImg2ImgPipeline, UNet2DConditionModel
    from transformers import CLIPTextConfig, CLIPTextModel, CLIPTokenizer

    folder = fitted() / "stable-diffusion"
    if folder.exists():
        return folder
    words = {c + end: 2 * i + k for i, c in enumerate("abcdefghijklmnopqrstuvwxyz0123456789") for k, end in
             enumerate(("", "</w>"))}  # fmt: skip
    words |= {"<|startoftext|>": len(words), "<|endoftext|>": len(words) + 1}
    size = len(words)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        text = CLIPTextConfig(
            vocab_size=size, hidden_size=16, intermediate_size=16, num_hidden_layers=1, num_attention_heads=2,
            max_position_embeddings=32, bos_token_id=size - 2, eos_token_id=size - 1, pad_token_id=size - 1,
        )  # fmt: skip
        pipeline = StableDiffusionImg2ImgPipeline(
            vae=AutoencoderKL(
                block_out_channels=(8, 8, 8, 8), down_block_types=("DownEncoderBlock2D",) * 4,
                up_block_types=("UpDecoderBlock2D",) * 4, latent_channels=4, norm_num_groups=4,
            ),
            unet=UNet2DConditionModel(
                sample_size=8, in_channels=4, out_channels=4, block_out_channels=(8, 16), layers_per_block=1,
                down_block_types=("DownBlock2D", "CrossAttnDownBlock2D"), attention_head_dim=4,
                up_block_types=("CrossAttnUpBlock2D", "UpBlock2D"), cross_attention_dim=16, norm_num_groups=4,
            ),
            text_encoder=CLIPTextModel(text), tokenizer=CLIPTokenizer(vocab=words, merges=[], model_max_length=32),
            scheduler=DDIMScheduler(steps_offset=1, clip_sample=False), safety_checker=None, feature_extractor=None,
            requires_safety_checker=False,
        )  # fmt: skip
    pipeline.save_pretrained(folder, safe_serialization=True)
    return folder


def ready(name: str, **settings: Any) -> Method:
    """A method, fitted where it learns."""
    cls = load_class(name)
    if name == "sd":
        return create(name, {"weights": str(stable_diffusion()), "side": 64, "steps": 4, **settings})
    if not hasattr(cls, "fit"):
        return create(name, settings)
    folder = fitted() / name
    if not folder.exists():
        data = fitted() / "data"
        if not data.exists():
            render = {"difficulty": 0.2}
            asked = requests_for_texts([t + "aB" for t in TEXTS] * 8, (120, 40), 0)
            synthesize("render", render, asked, data)
        few = {
            "steps": 3,
            "generations": 1,
            "children": 20,
            "batch": 4,
            "start": "nothing",
            "tracker": "none",
            "threads": 1,
            "grids": 1,
        }
        known = {name: value for name, value in few.items() if name in cls.FitSettings.model_fields}
        cls.fit(read_manifest(data), cls.FitSettings(**known), folder)
    return create(name, {"fitted": str(folder), **settings})


def hashes(name: str) -> list[str]:
    return [hashlib.sha256(data).hexdigest() for data in make(ready(name), requests_for())]


# ----------------------------------------------------------------------------------------- the contract of all methods


@METHOD
def test_one_rgb_picture_of_the_asked_size_for_each_request(name: str) -> None:
    requests = requests_for()
    pictures = ready(name).make(requests, [source_picture(r.text) for r in requests])
    assert [(p.mode, p.size) for p in pictures] == [("RGB", (r.width, r.height)) for r in requests]
    assert all(len(p.getcolors(maxcolors=10**6) or ()) > 8 for p in pictures), "a picture is blank"
    assert ready(name).make([], []) == []


@METHOD
def test_same_request_same_picture_alone_in_a_batch_and_in_another_order(name: str) -> None:
    requests, method = requests_for(), ready(name)
    batch = make(method, requests)
    assert make(ready(name), requests) == batch
    assert make(method, requests[::-1]) == batch[::-1]
    assert [make(method, [request])[0] for request in requests] == batch


def test_same_request_same_picture_in_another_process_with_other_threads() -> None:
    code = "import json, test_methods as t; print(json.dumps({name: t.hashes(name) for name in t.METHODS}))"
    environment = os.environ | {
        "PYTHONPATH": f"{ROOT}{os.pathsep}{ROOT / 'tests'}",
        "OMP_NUM_THREADS": "3",
        "FITTED": str(fitted()),
    }
    before = {name: hashes(name) for name in METHODS}
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=True)
    assert json.loads(done.stdout) == before


@METHOD
def test_other_seed_other_picture(name: str) -> None:
    method = ready(name)
    assert all(a != b for a, b in zip(make(method, requests_for(0)), make(method, requests_for(100)), strict=True))


@METHOD
def test_sources_and_global_random_states_are_left_as_they_were(name: str) -> None:
    requests = requests_for()
    sources = [source_picture(r.text) for r in requests]
    before, method = [s.tobytes() for s in sources], ready(name)
    states = random.getstate(), repr(np.random.get_state()), torch.get_rng_state()
    method.make(requests, list(sources))
    assert [s.tobytes() for s in sources] == before
    assert random.getstate() == states[0]
    assert repr(np.random.get_state()) == states[1]
    assert torch.equal(torch.get_rng_state(), states[2])


@METHOD
def test_a_missing_source_is_refused_only_where_one_is_needed(name: str) -> None:
    request = Request("aB3d", 1, 120, 40)
    if load_class(name).needs_source:
        with pytest.raises(UserError, match="source"):
            ready(name).make([request], [None])
    else:
        assert ready(name).make([request], [None])[0].size == (120, 40)


@METHOD
def test_an_unknown_setting_is_refused_with_the_nearest(name: str) -> None:
    known = next(iter(load_class(name).Settings.model_fields))
    with pytest.raises(UserError, match=f"did you mean {known!r}"):
        create(name, {known + "x": 1})


def test_a_method_of_ones_own_loads(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "my_method.py").write_text(
        "from PIL import Image\n"
        "from recognizer.settings import Settings\n"
        "class Plain:\n"
        "    class Settings(Settings):\n"
        "        grey: int = 128\n"
        "    needs_source = False\n    exact_text = True\n"
        "    def __init__(self, settings):\n"
        "        self.settings = settings\n"
        "    def make(self, requests, sources):\n"
        "        return [Image.new('RGB', (r.width, r.height), (self.settings.grey,) * 3) for r in requests]\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    (picture,) = create("my_method:Plain", {"grey": 7}).make([Request("a", 0, 5, 4)], [None])
    assert picture.size == (5, 4) and picture.getpixel((0, 0)) == (7, 7, 7)
    synthesize("my_method:Plain", {}, [Request("ab", k, 40, 30) for k in range(2)], tmp_path / "made")
    (sample, _) = read_manifest(tmp_path / "made")
    assert exact_text(sample) and not varies(sample), "no reader judges what it says that it shows"
    with pytest.raises(UserError, match="did you mean 'grey'"):
        create("my_method:Plain", {"gray": 7})
    for wrong, told in (("my_method:Other", "Other"), ("no_such_module:X", "no_such_module"), ("captchas", "captcha")):
        with pytest.raises(UserError, match=told):
            create(wrong)


# -------------------------------------------------------------------------------------------------------------- splice


def cut_folder(folder: Path, texts: list[str], ink: tuple[int, int, int] = (0, 0, 0)) -> Path:
    """Cut pictures without a reader: each character is a bar of its own height, between borders 20 pixels apart."""
    with FolderWriter(folder) as writer:
        for k, text in enumerate(texts):
            picture = Image.new("RGB", (20 * len(text) + 20, 40), (250, 250, 250))
            for i, c in enumerate(text):
                ImageDraw.Draw(picture).rectangle((16 + 20 * i, 38 - 6 * int(c), 23 + 20 * i, 38), fill=ink)
            png = io.BytesIO()
            picture.save(png, "PNG")
            borders = [10.0 + 20 * i for i in range(len(text) + 1)]
            writer.add(f"{k}.png", png.getvalue(), text, {"borders": borders})
    return folder


def heights(picture: Image.Image, n: int) -> list[int]:
    """Of the n bars of a picture, by the darkest column of each part of it."""
    dark = np.asarray(picture.convert("L")) < 128
    inked = np.flatnonzero(dark.any(0))
    edges = np.linspace(inked[0] - 6, inked[-1] + 7, n + 1)
    return [int(dark[:, int(max(a, 0)) : int(b)].sum(0).max()) for a, b in pairwise(edges)]


def test_spliced_pieces_show_the_text_in_its_order(tmp_path: Path) -> None:
    folder = cut_folder(tmp_path / "cut", ["123", "451", "342"])
    method = create("splice", {"fitted": str(folder)})
    for seed, text in enumerate(["54321", "11", "2", "3333"]):
        (picture,) = method.make([Request(text, seed, 20 * len(text) + 20, 40)], [None])
        assert [round((n - 1) / 6) for n in heights(picture, len(text))] == [int(c) for c in text]


def test_a_spliced_picture_tells_of_which_samples_it_is(tmp_path: Path) -> None:
    inks = {(150, 0, 0): "12", (0, 110, 0): "12", (0, 0, 170): "21", (90, 0, 90): "21", (0, 80, 90): "12"}
    for k, (ink, text) in enumerate(inks.items()):
        cut_folder(tmp_path / str(k), [text], ink)
    with FolderWriter(tmp_path / "cut") as writer:
        for k in range(len(inks)):
            (s,) = read_manifest(tmp_path / str(k))
            writer.add(f"{k}.png", s.read_bytes(), s.text, {**s.meta, "source": f"of {k}.png"})
    requests = [Request(text, seed, 60 if len(text) == 2 else 80, 40) for seed, text in enumerate(["12", "212"] * 8)]
    synthesize("splice", {"fitted": str(tmp_path / "cut")}, requests, tmp_path / "made")
    several = 0
    for made in read_manifest(tmp_path / "made"):
        pixels = np.asarray(Image.open(io.BytesIO(made.read_bytes())).convert("RGB"), np.int64).reshape(-1, 3)
        apart = np.abs(pixels[:, None] - np.array(list(inks))).sum(2)  # a pixel of a bar's middle has its colour
        shown = {f"of {k}.png" for k in np.unique(apart.argmin(1)[apart.min(1) <= 6])}
        assert set(made.meta["pieces"]) == shown
        several += len(shown) > 1
    assert several > 4


def test_spliced_pieces_come_from_pictures_that_look_alike(tmp_path: Path) -> None:
    red, blue = (200, 0, 0), (0, 0, 200)
    folders = [cut_folder(tmp_path / name, ["12"] * 12, ink) for name, ink in (("red", red), ("blue", blue))]
    with FolderWriter(tmp_path / "both") as writer:
        for k, sample in enumerate(s for folder in folders for s in read_manifest(folder)):
            writer.add(f"{k}.png", sample.read_bytes(), sample.text, sample.meta)
    asked = [Request("1212", k, 100, 40) for k in range(20)]
    made = create("splice", {"fitted": str(tmp_path / "both")}).make(asked, [None] * 20)
    kinds = set()
    for picture in made:
        inked = np.asarray(picture)[np.asarray(picture.convert("L")) < 90].mean(0)
        kinds.add("red" if inked[0] > 150 > 50 > inked[2] else "blue" if inked[2] > 150 > 50 > inked[0] else "mixed")
    assert kinds == {"red", "blue"}


def test_ink_is_cut_where_there_is_least() -> None:
    pixels = np.full((60, 40, 3), 255, np.float32)
    rows = np.arange(20, 40)
    for row in rows:  # two slanted strokes, three pixels of paper between them, and a bar through both
        pixels[row, 6 + row // 4 : 12 + row // 4] = pixels[row, 15 + row // 4 : 22 + row // 4] = 0
    pixels[29:31, 10:30] = 0
    ink = ink_of(pixels - 255)
    path, crossed = between_strokes(ink, border=21.0, stray=4.8)
    assert (np.abs(path[rows] - (13.5 + rows // 4)) <= 1.5).all() and crossed == pytest.approx(2 / 60)
    path, crossed = between_strokes(ink, border=21.0, stray=0.0)
    assert (path == 21.5).all() and crossed > 0.15


def test_splice_refuses_what_it_cannot_show(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="first augment fit --method splice"):
        create("splice")
    method = create("splice", {"fitted": str(cut_folder(tmp_path / "cut", ["123"]))})
    with pytest.raises(UserError, match="no piece shows '9'"):
        method.make([Request("19", 0, 60, 40)], [None])
    uncut = tmp_path / "uncut"
    with FolderWriter(uncut) as writer:
        writer.add("a.png", (tmp_path / "cut" / "0.png").read_bytes(), "12")
    spoiled = [None, "1, 2", [1, 2], [1, "x", 3], [1, None, 3], [3, 2, 1], [1, math.nan, 3], {"a": 1}]
    for k, borders in enumerate(spoiled):
        with FolderWriter(tmp_path / f"spoiled-{k}") as writer:
            writer.add("a.png", (tmp_path / "cut" / "0.png").read_bytes(), "12", {"borders": borders})
    for folder in (uncut, *(tmp_path / f"spoiled-{k}" for k in range(len(spoiled)))):
        with pytest.raises(UserError, match="holds no cut pictures"):
            create("splice", {"fitted": str(folder)}).make([Request("1", 0, 60, 40)], [None])
    few = read_manifest(tmp_path / "cut")
    with pytest.raises(UserError, match="has 1 pictures: a method needs 20"):
        load_learner("splice").fit(few, load_learner("splice").FitSettings(), tmp_path / "out")
    with pytest.raises(UserError, match="does not learn"):
        load_learner("captcha")
    assert not (tmp_path / "out").exists()


# ------------------------------------------------------------------------------------------------------------- captcha


def test_captcha_refuses_what_its_fonts_cannot_draw() -> None:
    method = create("captcha")
    for text, told in (("ab漢d", "漢"), ("a\u0378b", "u0378"), ("a b", "' '"), ("a\tb", "t")):
        with pytest.raises(UserError, match="no font draws") as error:
            method.make([Request(text, 1, 120, 40)], [None])
        assert told in str(error.value)
    with pytest.raises(UserError, match="no such file"):
        create("captcha", {"fonts": ["missing.ttf"]})


def test_captcha_seeds_the_package_for_its_own_call_only() -> None:
    import captcha.image

    own = vars(captcha.image)["secrets"]
    with pytest.raises(UserError):
        create("captcha").make([Request("a", 1, 120, 40), Request("漢", 1, 120, 40)], [None, None])
    assert vars(captcha.image)["secrets"] is own
    assert captcha.image.ImageCaptcha().generate_image("a").tobytes() != (
        captcha.image.ImageCaptcha().generate_image("a").tobytes()
    )


def test_captcha_shrinks_a_long_text_and_settings_change_the_look() -> None:
    plain = {"dots": 0, "curves": 0}
    (long,) = create("captcha", plain).make([Request("m" * 14, 3, 100, 35)], [None])
    assert _ink(long).any(axis=1).sum() < 25  # smaller letters, not ones squeezed to bars
    sizes = [{"font_sizes": [20]}, {"font_sizes": [60]}]
    small, large = (create("captcha", plain | s).make([Request("H", 3, 100, 60)], [None])[0] for s in sizes)
    assert _ink(small).sum() * 3 < _ink(large).sum()
    with pytest.raises(UserError, match="font_sizes"):
        create("captcha", {"font_sizes": []})


def test_captcha_draws_no_text_that_could_not_be_read_there() -> None:
    method = create("captcha")
    asked = [Request("ABCDE", 0, width, 60) for width in (30, 50, 100, 160)] + [Request("A", 0, 30, 60)]
    assert method.can_draw(asked) == [False, False, True, True, True]
    with pytest.raises(UserError, match="'ABCDE' is too long to be read in 50 x 60 pixels"):
        method.make(asked[1:2], [None])
    for sizes, text, width in (([9], "ABCDE", 50), ([9, 120], "A", 30), ([18, 56], "ABCDEFGHJK", 160)):
        assert create("captcha", {"font_sizes": sizes}).can_draw([Request(text, 0, width, 60)]) == [True], (
            "as was asked"
        )


def test_random_texts_neither_begin_nor_end_with_a_space() -> None:
    texts = random_texts(Charset("1 "), [1, 3], 40, 0)
    assert all(t == t.strip() for t in texts) and any(" " in t for t in texts)
    assert {len(t) for t in texts} == {1, 3}


def test_captcha_ink_always_stands_out() -> None:
    requests = [Request("HM8", seed, 100, 40) for seed in range(60)]
    for picture in create("captcha").make(requests, [None] * 60):
        grey = np.asarray(picture.convert("L"), dtype=int)
        assert np.percentile(grey, 90) - np.percentile(grey, 5) > 30


# ----------------------------------------------------------------------------------------------------------- classical


def _ink(picture: Image.Image) -> np.ndarray:
    pixels = np.asarray(picture, dtype=int)
    paper = np.median(np.concatenate([pixels[0], pixels[-1]]), axis=0)
    return np.asarray(np.abs(pixels - paper).max(axis=2) > 60)


def test_classical_never_mirrors_unless_asked() -> None:
    source = Image.new("RGB", (120, 40), WHITE)
    ImageDraw.Draw(source).rectangle((8, 12, 36, 28), fill=(0, 0, 0))
    requests = [Request("b", seed, 120, 40, "b.png") for seed in range(50)]

    def on_the_left(settings: dict[str, object]) -> int:
        pictures = create("classical", settings).make(requests, [source] * 50)
        return sum(float(np.nonzero(_ink(p))[1].mean()) < 60 for p in pictures)

    assert on_the_left({}) == 50
    assert 10 < on_the_left({"flip": True}) < 40


def test_classical_keeps_all_ink_in_the_picture() -> None:
    source = Image.new("RGB", (120, 40), WHITE)  # four marks near the corners, as letters that fill their picture
    for x in (2, 110):
        for y in (2, 30):
            ImageDraw.Draw(source).rectangle((x, y, x + 7, y + 7), fill=(0, 0, 0))
    method = create("classical", {"noise": 0, "cutout": 0, "background": 0, "colour": 0, "jpeg": 0, "blur": 0})
    for picture in method.make([Request("x", seed, 120, 40, "x.png") for seed in range(50)], [source] * 50):
        dark = 1 - np.asarray(picture.convert("L"), dtype=float) / 255
        for part in (dark[:20, :60], dark[:20, 60:], dark[20:, :60], dark[20:, 60:]):
            assert part.sum() > 0.35 * 64


def test_classical_at_strength_zero_is_the_source() -> None:
    source = source_picture()
    (picture,) = create("classical", {"strength": 0}).make([Request("a", 1, *source.size, "a.png")], [source])
    assert np.abs(np.asarray(picture, dtype=int) - np.asarray(source, dtype=int)).max() <= 2


def test_classical_fills_corners_with_the_border_s_median() -> None:
    source = Image.new("RGB", (120, 40), (200, 120, 40))
    ImageDraw.Draw(source).text((30, 8), "abc", (0, 0, 0), ImageFont.load_default(20))
    method = create("classical", {"noise": 0, "background": 0, "colour": 0, "jpeg": 0, "blur": 0})
    for picture in method.make([Request("abc", seed, 120, 40, "a.png") for seed in range(20)], [source] * 20):
        for corner in ((0, 0), (119, 0), (0, 39), (119, 39)):
            assert picture.getpixel(corner) == (200, 120, 40)


@pytest.mark.parametrize("kind", ["affine", "perspective", "elastic", "colour", "background", "blur", "noise", "jpeg"])
def test_each_kind_of_classical_change_works_by_itself(kind: str) -> None:
    method = load_class("classical")
    others = {name: 0 for name, field in method.Settings.model_fields.items() if field.default == 1.0}
    changed = create("classical", others | {"strength": 1, kind: 1})
    source = source_picture()
    requests = [Request("a", seed, *source.size, "a.png") for seed in range(12)]
    moved = [
        np.abs(np.asarray(p, dtype=int) - np.asarray(source, dtype=int)).max()
        for p in changed.make(requests, [source] * 12)
    ]
    assert max(moved) > 8


def test_classical_takes_any_size_and_mode() -> None:
    method = create("classical", {"strength": 2})
    for size in ((1, 1), (2, 1), (1, 30), (300, 2)):
        for seed in range(6):
            request = Request("a", seed, 40, 20, "a.png")
            assert method.make([request], [Image.new("L", size, 90)])[0].size == (40, 20)


# -------------------------------------------------------------------------------------------------------------- sheets


@pytest.mark.parametrize(
    ("truth", "reading", "caption", "wrong"),
    [
        ("abc", "abc", "abc", "..."),
        ("abc", "axc", "axc", ".x."),
        ("abc", "ac", f"a{LOST}c", ".x."),
        ("ac", "abc", "abc", ".x."),
        ("abc", "", LOST * 3, "xxx"),
        ("", "ab", "ab", "xx"),
        ("0012", "O01", f"O01{LOST}", "x..x"),
    ],
)
def test_a_caption_marks_what_was_misread(truth: str, reading: str, caption: str, wrong: str) -> None:
    assert marked(truth, reading) == (caption, tuple(mark == "x" for mark in wrong))


def test_contact_sheet_shows_every_cell_and_colours_only_what_is_wrong(tmp_path: Path) -> None:
    red = Image.new("RGB", (40, 10), (255, 0, 0))
    rows = [[Cell(red, "abc"), Cell(red, *marked("abc", "abc"))], [Cell(red.convert("L"), *marked("abc", "a8c\n"))]]
    sheet = contact_sheet(rows, tmp_path / "sheet.png", height=48)
    assert (tmp_path / "sheet.png").read_bytes()[:8] == b"\x89PNG\r\n\x1a\n"
    with Image.open(tmp_path / "sheet.png") as written:
        assert written.tobytes() == sheet.tobytes()
    pixels = np.asarray(sheet)
    middle = sheet.height // 2
    is_red, is_wrong = (pixels == (255, 0, 0)).all(axis=2), _is(pixels, WRONG)
    assert is_red.sum() == 2 * 48 * 192
    assert not is_wrong[:middle].any() and is_wrong[middle:].sum() > 10
    assert sheet.width == 2 * 192 + 3 * GAP


def test_a_very_wide_picture_takes_no_more_of_a_sheet_than_memory_has() -> None:
    sheet = contact_sheet([[Cell(Image.new("RGB", (3000, 1)), "a"), Cell(Image.new("RGB", (400, 40)), "b")]], height=48)
    assert sheet.width == 48 * WIDEST + 480 + 3 * GAP


def _is(pixels: np.ndarray, colour: str) -> np.ndarray:
    rgb = [int(colour[i : i + 2], 16) for i in (1, 3, 5)]
    return np.asarray((pixels == rgb).all(axis=2))


def test_contact_sheet_refuses_what_it_cannot_show(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no picture"):
        contact_sheet([[], []])
    with pytest.raises(UserError, match="no such file"):
        contact_sheet([[Cell(source_picture(), "a")]], font=tmp_path / "missing.ttf")


def test_sheets_need_no_torch() -> None:
    code = "import sys, augment.sheet; assert not {'torch', 'torchvision', 'captcha'} & set(sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True, cwd=ROOT)


# ------------------------------------------------------------------------------------------------------------------ sd


def test_stable_diffusion_heeds_prompt_and_strength_and_the_shape_of_the_picture() -> None:
    request, source = [Request("ab3d", 1, 150, 40, "0.png")], [source_picture()]
    plain = ready("sd").make(request, source)[0]
    assert ready("sd", prompt="9 9 9 {text}").make(request, source)[0].tobytes() != plain.tobytes()
    low, high = (ready("sd", strengths=[s]).make(request, source)[0].tobytes() for s in (0.25, 1.0))
    assert low != high
    sizes = []
    method: Any = ready("sd", side=128)
    whole = method.pipeline.__call__

    class Seen:
        def __call__(self, **given: Any) -> Any:
            sizes.append(given["image"].size)
            return whole(**given)

    method.pipeline = Seen()
    assert method.make(request, [source_picture(width=150, height=40)])[0].size == (150, 40)
    assert sizes == [(128, 64)], "painted at multiples of 64, its shape kept as far as that goes"


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({}, "sd needs weights of Stable Diffusion on this machine: --set weights=DIR"),
        ({"weights": "no/such"}, "no pipeline of diffusers is there"),
        ({"weights": True}, "weights"),
        ({"weights": "PIPELINE", "strengths": [0.04]}, "at strength 0.04 none of 20 steps runs"),
        ({"weights": "PIPELINE", "prompt": "{word}"}, "write {text} where the text stands"),
    ],
)
def test_stable_diffusion_without_what_it_needs_says_so(settings: dict[str, Any], said: str) -> None:
    if settings.get("weights") == "PIPELINE":
        settings = settings | {"weights": str(stable_diffusion())}
    with pytest.raises(UserError) as raised:
        create("sd", settings)
    assert said in str(raised.value) and "\n" not in str(raised.value)


def test_stable_diffusion_opens_no_pickles_and_no_broken_folder(tmp_path: Path) -> None:
    from diffusers import StableDiffusionImg2ImgPipeline

    pipeline = StableDiffusionImg2ImgPipeline.from_pretrained(
        stable_diffusion(), safety_checker=None, requires_safety_checker=False
    )
    pipeline.save_pretrained(tmp_path / "pickled", safe_serialization=False)
    shutil.copytree(stable_diffusion(), tmp_path / "broken")
    (tmp_path / "broken/unet/diffusion_pytorch_model.safetensors").write_bytes(b"nothing")
    for name in ("pickled", "broken"):
        method = create("sd", {"weights": str(tmp_path / name)})
        with pytest.raises(UserError, match="is no Stable Diffusion pipeline that can be read") as raised:
            method.make([Request("ab3d", 1, 150, 40, "0.png")], [source_picture()])
        assert "\n" not in str(raised.value)


@pytest.mark.parametrize("name", ["captcha", "render"])
def test_letters_are_drawn_as_pictures_show_them_under_the_labels_case(name: str) -> None:
    asked = Request("ab3", 7, 120, 40)
    shown = as_shown(asked, {"a": "A", "b": "B"})
    assert (shown.text, shown.shown, as_shown(asked, {"x": "X"})) == ("ab3", "AB3", asked)
    method = create(name, {})
    (lower,), (upper,) = method.make([asked], [None]), method.make([shown], [None])
    assert lower.tobytes() != upper.tobytes()
    assert answered_by(name, {}, [], [asked], lambda source: source_picture(), {"a": "A", "b": "B"}) == [shown]


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--method", "captcha", "--charset", "digits", "--data", "{data}"], "draws from nothing: leave --data out"),
        (["--method", "classical", "--data", "{data}", "--size", "80x30"], "keeps its size: leave --size out"),
        (["--method", "classical", "--data", "{data}", "--length", "4"], "keeps its text: leave --length out"),
        (["--method", "captcha", "--texts", "{texts}", "--length", "4"], "the texts are there: leave --length out"),
        (["--method", "captcha", "--texts", "{texts}", "--count", "9"], "holds 2 texts: --count 9 is more"),
        (["--method", "captcha", "--requests", "{requests}", "--seed", "4"], "say their seeds: leave --seed out"),
        (["--method", "captcha", "--requests", "{requests}", "--size", "9x9"], "say their sizes: leave --size out"),
        (["--method", "captcha", "--requests", "{requests}", "--count", "9"], "holds 1 requests that captcha answers"),
    ],
)
def test_an_option_that_would_do_nothing_is_refused(words: list[str], said: str, tmp_path: Path) -> None:
    places = {name: str(tmp_path / name) for name in ("data", "texts", "requests")}
    synthesize("captcha", {}, requests_for_texts(["a1"], (60, 30), 0), tmp_path / "data")
    (tmp_path / "texts").write_text("12\n34\n")
    write_requests([Request("12", 0, 60, 30)], tmp_path / "requests")
    line = refusal(augment("synthesize", *(w.format(**places) for w in words), "--out", tmp_path / "out"))
    assert said in line and not (tmp_path / "out").exists()


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def test_a_killed_run_goes_on_from_the_pictures_that_it_made(tmp_path: Path) -> None:
    words = ["synthesize", "--method", "render", "--charset", "letters+digits", "--count", "300", "--seed", "3"]
    assert augment(*words, "--out", tmp_path / "whole").status == 0
    out = tmp_path / "out"
    with subprocess.Popen(
        [sys.executable, "-m", "augment.cli", *words, "--out", str(out)], cwd=ROOT, stderr=subprocess.DEVNULL
    ) as process:
        left = tmp_path / f".out.{process.pid}.tmp"
        while len(list(left.glob("*.png"))) < 40:
            assert process.poll() is None, "it ended before it could be killed"
            time.sleep(0.005)
        process.kill()
    made = {path.name: path.stat().st_mtime_ns for path in left.iterdir()}
    half = sorted(left.glob("*.png"))[-1]
    half.write_bytes(half.read_bytes()[:50])
    assert augment(*words, "--out", out).status == 0
    assert contents(out) == contents(tmp_path / "whole")
    again = [name for name in made if name.endswith("png") and (out / name).stat().st_mtime_ns != made[name]]
    assert again == [half.name], "only the one that was half written is made again"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["out", "whole"]


def test_a_stopped_run_does_not_go_on_with_what_was_made_of_other_sources(tmp_path: Path) -> None:
    data, steps = draw_folder(tmp_path / "data", ["01", "12", "23"] * 20, 0), itertools.count()

    def stop() -> None:
        if next(steps) == 50:
            raise KeyboardInterrupt

    manifest = read_manifest(data)
    asked, _ = requests_for_sources(manifest, 60, 0)
    with pytest.raises(Stopped, match="the pictures so far are kept"):
        synthesize("classical", {}, asked, tmp_path / "made", Sources(manifest), stop)
    assert len(list(tmp_path.glob(".made.*/*.png"))) >= 50
    first = asked[0].source
    assert first is not None
    (data / first).write_bytes((data / str(asked[1].source)).read_bytes())
    for name in ("made", "whole"):
        synthesize("classical", {}, asked, tmp_path / name, Sources(read_manifest(data)))
    assert contents(tmp_path / "made") == contents(tmp_path / "whole")


def test_what_another_command_left_is_removed_and_what_one_is_writing_is_not(tmp_path: Path) -> None:
    out, asked = tmp_path / "out", requests_for_texts(["ab", "cd", "ef", "gh"], (60, 30), 0)
    calls = iter(range(4))

    def interrupted() -> None:
        if next(calls) == 2:
            raise KeyboardInterrupt

    def pictures() -> list[str]:
        return sorted(path.name for path in tmp_path.rglob("*.png"))

    with pytest.raises(Stopped, match="same command again"):
        synthesize("captcha", {}, asked, out, each=interrupted)
    assert len(pictures()) == 3 and not out.exists()
    with pytest.raises(UserError, match="nothing to make"):
        synthesize("captcha", {}, [], out)
    assert len(pictures()) == 3
    (written := tmp_path / ".out.99999.tmp").mkdir()  # by another process, at this moment
    held = os.open(written, os.O_RDONLY)
    fcntl.flock(held, fcntl.LOCK_EX)
    synthesize("captcha", {}, asked[:2], out)
    assert sorted(path.name for path in tmp_path.iterdir()) == [".out.99999.tmp", "out"] and len(pictures()) == 2
    os.close(held)
    shutil.rmtree(out)
    synthesize("captcha", {}, asked[:2], out)
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


def test_pictures_of_other_weights_are_made_anew(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked = requests_for_texts(["ab", "cd", "ef", "gh"], (60, 30), 0)
    with monkeypatch.context() as patched:
        patched.setattr("augment.synthesize.make", lambda *_: ((r, Image.new("RGB", (60, 30))) for r in asked))
        calls = iter([None, None, None, KeyboardInterrupt()])

        def interrupted() -> None:
            if (error := next(calls)) is not None:
                raise error

        with pytest.raises(Stopped):
            synthesize("captcha", {}, asked, tmp_path / "out", each=interrupted)
    synthesize("captcha", {}, asked, tmp_path / "out")
    synthesize("captcha", {}, asked, tmp_path / "whole")
    assert contents(tmp_path / "out") == contents(tmp_path / "whole")


def test_a_sheet_shows_where_characters_are_found(tmp_path: Path) -> None:
    synthesize("render", {"difficulty": 0.1}, requests_for_texts(["AB3", "7K2"], (96, 32), 0), tmp_path / "data")
    for words in ([], ["--borders"]):
        out = tmp_path / f"sheet{len(words)}.png"
        ended = augment("sheet", tmp_path / "data", "--out", out, "--height", 32, *words)
        assert ended.status == 0, ended.err
    plain, lined = (np.asarray(Image.open(tmp_path / f"sheet{n}.png").convert("RGB"), int) for n in (0, 1))
    assert plain.shape == lined.shape
    marks = (lined == Image.new("RGB", (1, 1), WRONG).getpixel((0, 0))).all(2) & (plain != lined).any(2)
    assert (marks.sum(0) >= 32).sum() in range(6, 9), "four borders of each picture, from top to bottom"
