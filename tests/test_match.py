"""Looks bred for pictures: what dice they lead, that the search finds a look, and the life of its fit."""

from __future__ import annotations

import hashlib
import json
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from conftest import augment, refusal
from PIL import Image

from augment.evolve import Eye, Led, Population, Search, bred, draw_in
from augment.glyphs import font_files
from augment.methods import create
from augment.methods.render import Render, RenderSettings
from augment.style import MEANING, Dice, keys_of, throw_style
from augment.synthesize import random_texts
from recognizer.charset import Charset
from recognizer.errors import UserError
from recognizer.samples import read_manifest
from recognizer.training.checkpoint import TINY

CPU = torch.device("cpu")
SIZE = (100, 32)
GLYPHS = Render(RenderSettings(difficulty=1.0)).glyphs(["ab"])
FEW = ["--set", "generations=2", "--set", "children=30", "--set", "tracker=none"]


def led(texts: list[str], seeds: list[int], looks: dict[int, np.ndarray]) -> tuple[dict, dict, dict]:  # type: ignore[type-arg]
    dice = Led(keys_of(texts, seeds), looks)
    style = throw_style(texts, seeds, SIZE, GLYPHS, 1.0, dice)
    return style.picture, style.character, dice.shown


def test_dice_that_are_led_by_nothing_show_what_others_do() -> None:
    texts, seeds = ["a1", "B2c", "dd"], [1, 2, 3]
    picture, character, _ = led(texts, seeds, {})
    plain = throw_style(texts, seeds, SIZE, GLYPHS, 1.0)
    assert all(np.array_equal(picture[k], v) for k, v in plain.picture.items())
    assert all(np.array_equal(character[k], v) for k, v in plain.character.items())


def test_a_look_gives_other_texts_the_same_paper_ink_and_font_and_leaves_characters_free() -> None:
    texts, seeds = ["abcab"] * 8, list(range(8))
    picture, character, shown = led(texts, seeds, {})
    again, other, _ = led(texts, [s + 100 for s in seeds], shown)
    for name in ("paper", "ink", "hollow", "weight", "wave_x", "wave_y_phase", "grain", "jpeg", "hue", "paper_hue"):
        assert np.array_equal(picture[name], again[name]), name
    assert not np.array_equal(character["turn"], other["turn"])
    fonts = [
        throw_style(texts, s, SIZE, GLYPHS, 1.0, Led(keys_of(texts, s), shown)).glyphs for s in (seeds, seeds[::-1])
    ]
    plain = [len({*row.tolist()}) == 3 for row in fonts[0]]  # of one font, not each of its own
    assert sum(plain) >= 4 and all(np.array_equal(a, b) for a, b, one in zip(*fonts, plain, strict=True) if one)


def test_what_dice_mean_is_raised_where_a_throw_is_added_or_moved() -> None:
    """A look that was bred holds what each throw shows: after a change another throw would be shown it."""
    shown = led(["ab", "abc"], [0, 1], {})[2]
    form = json.dumps(sorted((throw, own.shape[1]) for throw, own in shown.items()))
    assert (MEANING, hashlib.sha256(form.encode()).hexdigest()[:12]) == (2, "3700769596e3"), "raise MEANING, and this"


def test_children_have_what_their_parents_show_but_for_a_little() -> None:
    rng = np.random.default_rng(0)
    looks = {1: rng.random((5, 1)), 2: rng.random((5, 4)), 2**20 + 3: rng.random((5, 1))}
    dice = Dice(np.arange(400, dtype=np.uint64))
    same = bred(looks, dice, 400, 0.0, 0.0, 0.0)
    parent = (same[1] == looks[1].T).argmax(1)
    assert set(parent) == set(range(5)) and all(np.array_equal(same[k], v[parent]) for k, v in looks.items())
    moved = bred(looks, Dice(np.arange(400, dtype=np.uint64)), 400, 0.1, 0.3, 0.01)
    assert all(((own >= 0) & (own < 1)).all() for own in moved.values())
    near = np.abs(moved[2][:, None] - looks[2][None]).max(2).min(1) < 0.018
    assert 0.8 < near.mean() < 0.97, "a tenth is thrown anew"


def test_the_search_finds_white_ink_on_black() -> None:
    looks = led(["ab1"] * 2000, list(range(2000)), {})
    dark = np.flatnonzero((looks[0]["paper"] < 0.1) & (looks[0]["hollow"] == 0) & (looks[0]["ink"] > 0.8))[:1]
    assert len(dark)
    only = {throw: own[np.repeat(dark, 60)] for throw, own in looks[2].items()}
    charset = Charset.named("lower+digits")

    def texts(seed: int, count: int) -> list[str]:
        return random_texts(charset, [4, 5], count, seed)

    given, _ = draw_in(only, texts(1, 60), list(range(60)), SIZE, GLYPHS, CPU)
    search = Search(given, texts, SIZE, GLYPHS, Eye(TINY, CPU), 80, 6, 0, CPU)
    population: Population | None = None
    far = []
    for generation in range(6):
        population, figures = search.step(generation, population)
        far.append(figures["far"])
    assert population is not None and len(population.score) == 16 and (np.diff(population.score) >= 0).all()
    assert far[-1] < 0.75 * far[0] and far[-1] > 0.5 * search.real, far
    made, _ = draw_in(population.looks, texts(9, 16), list(range(16)), SIZE, GLYPHS, CPU)
    theirs, own, any_look = (
        np.array([np.asarray(p.convert("L")).mean() for p in some])
        for some in (given, made, draw_in({}, ["abcd"] * 100, list(range(100)), SIZE, GLYPHS, CPU)[0])
    )
    assert np.abs(own - theirs.mean()).mean() < 0.4 * np.abs(any_look - theirs.mean()).mean()


# ------------------------------------------------------------------------------------------------------------ the fit


@pytest.fixture(scope="module")
def loose(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Pictures without labels, of two shapes and one that is none, in a folder of folders."""
    folder = tmp_path_factory.mktemp("loose")
    (folder / "more").mkdir()
    for i, picture in enumerate(draw_in({}, ["k2m"] * 30, list(range(30)), (90, 32), GLYPHS, CPU)[0]):
        picture.save(folder / ("more" if i % 2 else ".") / f"{i}.png")
    Image.new("RGB", (20, 90)).save(folder / "tall.png")
    (folder / "broken.png").write_bytes(b"no picture")
    return folder


def words(loose: Path, out: Path, *more: str) -> list[str]:
    return ["fit", "--method", "match", "--unlabelled", str(loose), "--charset", "upper+digits", "--length", "2-3",
            "--out", str(out), *FEW, *more]  # fmt: skip


def test_it_is_fitted_to_pictures_without_labels_and_draws_what_was_told(loose: Path, tmp_path: Path) -> None:
    ended = augment(*words(loose, tmp_path / "looks"))
    assert ended.status == 0, ended.err
    assert "bred for 30 pictures in 2 generations" in ended.out
    assert "2 pictures cannot be opened, are there twice or of another shape" in ended.err
    rows = [json.loads(line) for line in (tmp_path / "looks/metrics.jsonl").read_text().splitlines()]
    assert [(row["step"], row["steps"]) for row in rows] == [(1, 2), (2, 2)] and rows[0]["real"] > 0
    with Image.open(tmp_path / "looks/grids/0000002.png") as sheet:
        assert sheet.width > 500
    ended = augment("synthesize", "--method", "match", "--fitted", tmp_path / "looks", "--count", 40, "--out",
                    tmp_path / "made")  # fmt: skip
    assert ended.status == 0, ended.err
    made = read_manifest(tmp_path / "made").samples
    assert {len(s.text) for s in made} == {2, 3} and all(
        c in Charset.named("upper+digits") for s in made for c in s.text
    )
    for sample in made:
        with Image.open(sample.path or "") as picture:
            assert picture.size == (90, 32)


def test_labels_in_another_case_than_pictures_stay_as_they_are_and_are_drawn_as_pictures_show_them(
    tmp_path: Path,
) -> None:
    texts = random_texts(Charset.named("upper"), [4], 40, 3)
    plain = Render(RenderSettings(difficulty=0.1))
    drawn = plain.draw(texts, list(range(40)), (110, 32)).pictures
    (tmp_path / "data").mkdir()
    for i, picture in enumerate((drawn * 255).byte()):
        Image.fromarray(picture.permute(1, 2, 0).numpy()).save(tmp_path / f"data/{i}.png")
    rows = [json.dumps({"file_name": f"{i}.png", "text": t.lower()}) + "\n" for i, t in enumerate(texts)]
    (tmp_path / "data/metadata.jsonl").write_text("".join(rows))
    ended = augment("fit", "--method", "match", "--data", tmp_path / "data", "--out", tmp_path / "looks", *FEW)
    assert ended.status == 0, ended.err
    method = create("match", {"fitted": str(tmp_path / "looks")})
    assert method.known.lengths == (4,) * 40 and method.known.characters.islower()  # type: ignore[attr-defined]
    assert method._shown([r for r in requests("gate")]) == ["GATE"]  # type: ignore[attr-defined]


def requests(text: str) -> list:  # type: ignore[type-arg]
    from augment.method import Request

    return [Request(text, 0, 110, 32)]


def wait_for(file: Path, process: subprocess.Popen[Any]) -> None:
    until = time.monotonic() + 120
    while not file.exists() and time.monotonic() < until and process.poll() is None:
        time.sleep(0.02)
    assert file.exists() and process.poll() is None, "it ended, or came to nothing"


def test_killed_in_the_middle_it_goes_on_to_the_same_looks(loose: Path, tmp_path: Path) -> None:
    more = ["--set", "generations=5"]
    assert augment(*words(loose, tmp_path / "whole", *more)).status == 0
    command = [sys.executable, "-m", "augment.cli"]
    cut = tmp_path / "cut"
    process = subprocess.Popen(
        [*command, *words(loose, cut, *more)], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    )
    wait_for(cut / "population.npz", process)
    process.kill()
    process.wait()
    assert not (cut / "generator.safetensors").exists()
    done = subprocess.run([*command, "fit", "--resume", str(cut)], capture_output=True, text=True, check=False)
    assert done.returncode == 0 and f"resumed {cut} at generation" in done.stderr, done.stderr
    assert (cut / "generator.safetensors").read_bytes() == (tmp_path / "whole/generator.safetensors").read_bytes()
    steps = [json.loads(line)["step"] for line in (cut / "metrics.jsonl").read_text().splitlines()]
    assert steps == [1, 2, 3, 4, 5]


def test_ctrl_c_ends_with_the_line_that_goes_on(loose: Path, tmp_path: Path) -> None:
    command = [sys.executable, "-m", "augment.cli", *words(loose, tmp_path / "cut", "--set", "generations=500")]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    wait_for(tmp_path / "cut/population.npz", process)
    process.send_signal(signal.SIGINT)
    _, err = process.communicate()
    assert process.returncode == 130
    assert err.splitlines()[-1].endswith(f"go on with: augment fit --resume {tmp_path / 'cut'}"), err


def test_what_cannot_be_matched_is_refused_in_one_line(loose: Path, tmp_path: Path) -> None:
    def refused(*own: object) -> str:
        ended = augment("fit", "--out", tmp_path / "looks", *own)
        last = ended._replace(err=ended.err.splitlines()[-1])  # after what pictures are left out, where some are
        return refusal(last)

    few = tmp_path / "few"
    few.mkdir()
    Image.new("RGB", (9, 9)).save(few / "a.png")
    told = ["--charset", "digits", "--length", "4"]
    assert "1 of 1 pictures can be opened, are of one shape and there once: 20 must" in refused(
        "--method", "match", "--unlabelled", few, *told
    )
    assert "no picture to match" in refused("--method", "match", *told)
    assert "say what they show with --charset and --length" in refused("--method", "match", "--unlabelled", loose)
    assert "--length '4to6'" in refused(
        "--method", "match", "--unlabelled", loose, "--charset", "digits", "--length", "4to6"
    )
    cyrillic = refused("--method", "match", "--unlabelled", loose, "--charset", "Ѭ", "--length", "4", *FEW)
    assert "no font draws 'Ѭ'" in cyrillic
    long = refused("--method", "match", "--unlabelled", loose, "--charset", "digits", "--length", "40", *FEW)
    assert "a picture shows 1 to 32" in long
    labelled_only = refused("--method", "vae", "--unlabelled", loose)
    assert labelled_only == "--method vae learns from labelled pictures alone: leave --unlabelled out"
    made = augment("synthesize", "--method", "match", "--charset", "digits", "--out", tmp_path / "made")
    assert refusal(made).endswith("augment fit --method match first")


def test_pictures_that_hardly_differ_can_be_matched_and_equal_ones_count_once(tmp_path: Path) -> None:
    for folder in ("equal", "near"):
        (tmp_path / folder).mkdir()
        for i in range(25):
            picture = Image.new("RGB", (60, 24), "white")
            picture.putpixel((i if folder == "near" else 0, 3), (0, 0, 0))
            picture.save(tmp_path / folder / f"{i}.png")
    told = ["--charset", "digits", "--length", "3", "--out", tmp_path / "looks", *FEW]
    refused = refusal(augment("fit", "--method", "match", "--unlabelled", tmp_path / "equal", *told))
    assert "1 of 25 pictures" in refused
    ended = augment("fit", "--method", "match", "--unlabelled", tmp_path / "near", *told)
    assert ended.status == 0 and "bred for 25 pictures" in ended.out, ended.err


def test_looks_whose_fonts_are_others_by_now_are_refused(loose: Path, tmp_path: Path) -> None:
    fonts, mine = font_files(()), tmp_path / "fonts"
    mine.mkdir()
    shutil.copy(fonts[0], mine)
    ended = augment(*words(loose, tmp_path / "looks", "--set", f'fonts=["{mine}"]'))
    assert ended.status == 0, ended.err
    create("match", {"fitted": str(tmp_path / "looks")}).make(requests("AB"), [None])
    shutil.copy(fonts[1], mine)
    with pytest.raises(UserError, match="other fonts"):
        create("match", {"fitted": str(tmp_path / "looks")}).make(requests("AB"), [None])


def test_a_text_that_the_reader_cannot_spell_is_as_legible_as_most() -> None:
    pictures = draw_in({}, ["ab12"] * 4, list(range(4)), SIZE, GLYPHS, CPU)[0]
    _, nats = Eye(TINY, CPU).see(pictures, ["ab12", "zzzz", "Ѭb12", "ab12"])
    assert nats[1] > nats[0] and nats[2] == np.median(nats[[0, 1, 3]])


def test_looks_of_a_version_whose_dice_meant_something_else_are_refused(
    loose: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert augment(*words(loose, tmp_path / "looks")).status == 0
    monkeypatch.setattr("augment.methods.match.MEANING", MEANING + 1)
    ended = augment("synthesize", "--method", "match", "--fitted", tmp_path / "looks", "--out", tmp_path / "made")
    assert "was fitted by another version" in refusal(ended)
