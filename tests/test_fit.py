"""Generators: their losses against closed forms, their layouts, and the life of a fit."""

from __future__ import annotations

import io
import json
import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from accelerate import Accelerator
from conftest import augment
from diffusers import DDPMScheduler, DPMSolverMultistepScheduler
from PIL import Image, ImageDraw, ImageFont
from safetensors.torch import load_file

from augment.canvas import (
    HEIGHT,
    Canvas,
    borders_of_boxes,
    canvas_width,
    columns,
    from_canvas,
    padded,
    paper_around,
    put_back,
    text_part,
    to_canvas,
)
from augment.fit import Drawings, aligner_for, mark_of
from augment.generated import SHIPPED, load
from augment.judge import Judge, grey_of, text_of
from augment.layout import Spacing
from augment.method import Request
from augment.methods import create, load_learner
from augment.methods.diffusion import NOISE, Denoiser, Drafter, LayoutPipeline, reading_lesson
from augment.methods.gan import augmented, penalty, swapped
from augment.methods.vae import divergence
from augment.networks import LATENT, Critic, Generator
from augment.stream import Canvases
from augment.synthesize import requests_for_texts, synthesize, with_pairs
from recognizer import images
from recognizer.charset import Charset
from recognizer.errors import UserError
from recognizer.images import open_picture
from recognizer.reader import Reader
from recognizer.samples import FolderWriter, Manifest, read_manifest, write_folder
from recognizer.training.checkpoint import TINY

CPU = torch.device("cpu")


def canvas(n: int = 4, width: int = 48) -> Canvas:
    ids = [[1, 2], [2, 1], [1, 1], [2, 2]][:n]
    borders = [np.array([4.0, 20.0, 40.0])] * n
    return Canvas(torch.rand(n, 3, HEIGHT, width) * 2 - 1, *columns(borders, ids, width), *padded(ids))


# -------------------------------------------------------------------------------------------------------------- losses


def test_the_penalty_of_a_linear_critic_is_known() -> None:
    weights = torch.randn(3, HEIGHT, 48, dtype=torch.float64)
    batch = canvas()
    real, fake = batch.pictures.double(), torch.rand(4, 3, HEIGHT, 48, dtype=torch.float64)
    value, norms = penalty(lambda x, c, w: (x * weights).sum((1, 2, 3)), real, fake, batch)
    assert torch.allclose(norms, weights.norm().expand(4))
    assert torch.allclose(value, (weights.norm() - 1) ** 2)
    value, _ = penalty(lambda x, c, w: (x * weights / weights.norm()).sum((1, 2, 3)), real, fake, batch)
    assert value < 1e-12


def test_the_penalty_reaches_the_critics_weights_through_its_condition() -> None:
    critic, batch = Critic(3), canvas()
    penalty(critic, batch.pictures, -batch.pictures, batch)[0].backward()
    for name, parameter in critic.named_parameters():
        if name not in ("score.bias", "last.bias"):  # a constant has no gradient in the picture
            assert parameter.grad is not None and parameter.grad.isfinite().all(), name
    assert critic.columns.embed.weight.grad is not None and critic.columns.embed.weight.grad.abs().sum() > 0


def test_the_divergence_of_a_normal_is_known() -> None:
    zero = torch.zeros(5, 8)
    assert divergence(zero, zero) == 0
    mean, log_variance = torch.full((5, 8), 1.5), torch.full((5, 8), -0.7)
    p, q = torch.distributions.Normal(1.5, float(np.exp(-0.35))), torch.distributions.Normal(0.0, 1.0)
    assert torch.allclose(divergence(mean, log_variance), torch.distributions.kl_divergence(p, q))


def test_augmentation_is_one_for_real_and_made_and_moves_nothing() -> None:
    batch, numbers = canvas(), torch.rand(4, 6)
    numbers[:, 5] = 1  # no hole
    changed = augmented(batch.pictures, numbers)
    assert torch.equal(augmented(batch.pictures, numbers), changed)
    for before, after in zip(batch.pictures.mean(1), changed.mean(1), strict=True):
        fit = np.polyfit(before.flatten().numpy(), after.flatten().numpy(), 1)
        assert np.allclose(np.polyval(fit, before.flatten().numpy()), after.flatten().numpy(), atol=1e-4)
    numbers[:, 5] = 0
    assert (augmented(batch.pictures, numbers) == 0).any()


class Spy(torch.nn.Module):
    """A judge that keeps what it is shown."""

    def __init__(self) -> None:
        super().__init__()
        self.seen: list[torch.Tensor] = []

    def forward(self, pictures: torch.Tensor, canvas: Canvas) -> tuple[torch.Tensor, torch.Tensor]:
        self.seen.append(pictures.detach())
        return pictures.square().mean((1, 2, 3)), pictures.mean((1, 2, 3))


@pytest.mark.parametrize("name", ["vae", "diffusion"])
def test_texts_are_judged_in_the_look_of_another_picture(name: str) -> None:
    """Else a latent that tells of its text passes, and a new text in that look is not readable."""
    torch.manual_seed(0)
    batch, judge = canvas(), Spy()
    learning: Any = load_learner(name).learning(settings(name), 3, judge, ())
    drafting = learning if name == "vae" else learning.autoencoder
    with torch.no_grad():
        drafting.encoder.out.weight *= 30  # looks that differ
        drafting.encoder.out.bias[64:] = -1e3  # and hardly vary
        z, none = learning.latents(batch), torch.zeros(4, 1, HEIGHT, 48)
        own, rolled, halved = (drafting.generator(look, *batch[1:3], none) for look in (z, z.roll(1, 0), z.roll(2, 0)))
    noised: list[torch.Tensor] = []
    if name == "diffusion":
        learning.denoiser.register_forward_pre_hook(lambda _, given: noised.append(given[1]))
    for turn in learning.turns(lambda k: batch, Accelerator(cpu=True)):
        turn.loss.backward()
    first, last = judge.seen[0], judge.seen[-1]
    for judged, other, near in ((first, rolled, 0.2), (last, rolled if name == "vae" else halved, 0.5)):
        mine = own[: len(judged)]  # a denoiser leaves noise on its draft
        assert (judged - other[: len(judged)]).abs().mean() < near * (judged - mine).abs().mean()
    assert len(last) == (4 if name == "vae" else 2)
    if name == "diffusion":  # noised pictures as well; drafts only where they are told from these no more
        beyond = (judge.seen[1] - own).flatten(1)  # what is there beside the draft is of the picture itself
        assert (beyond @ (batch.pictures - own).flatten(1).T).argmax(1).tolist() == [0, 1, 2, 3]
        for _ in range(4):
            list(learning.turns(lambda k: batch, Accelerator(cpu=True)))
        pictures, drafts = torch.cat(noised[::2]), torch.cat(noised[1::2])
        assert len(pictures) == 20 and pictures.min() < 300 and len(drafts) == 10 and drafts.min() >= 600


def test_swapped_pictures_stand_under_layouts_of_others() -> None:
    batch = canvas()
    other = swapped(batch)
    assert torch.equal(other.pictures[1], batch.pictures[0]) and torch.equal(other.characters, batch.characters)


def test_a_judge_sees_the_grey_that_a_reader_sees() -> None:
    pictures = np.random.default_rng(0).integers(0, 256, (3, 16, 48, 3), dtype=np.uint8)
    pictures[:, 4:] = (250, 240, 200)
    seen = grey_of(torch.from_numpy(pictures).movedim(-1, 1).float())[:, 0]
    assert np.abs(seen.numpy() - [images.grey_of(p) for p in pictures]).max() <= 0.51


def test_a_judge_sees_the_part_of_a_picture_that_a_reader_sees() -> None:
    frame, pictures = images.Frame(32, 112, 112, trim=True), []
    for seed in range(4):
        picture = Image.new("L", (112, 32), 240)
        for x in range(20 + 5 * seed, 80, 6):
            picture.paste(30, (x, 6 + seed, x + 3, 20 + seed))
        pictures.append(picture)
    seen = text_of(torch.from_numpy(np.stack(pictures))[:, None].float(), frame)[:, 0].numpy()
    for own, picture in zip(seen, pictures, strict=True):
        ink = frame.fit(picture) < 128
        assert (own[:, :112] < 128)[ink].mean() > 0.9 and abs((own < 128).mean() - ink.mean()) < 0.05


def test_a_judge_knows_what_a_picture_shows(tmp_path: Path) -> None:
    texts = ["ABC5", "XK27", "hm4e", "RT9y"] * 4
    synthesize("render", {"difficulty": 0.0}, requests_for_texts(texts, (112, 32), 0), tmp_path / "data")
    charset = Charset.named("letters+digits")
    pictures = [s.read_bytes() for s in read_manifest(tmp_path / "data")]
    pixels = torch.from_numpy(np.stack([to_canvas(open_picture(p), 112) for p in pictures])).float() / 127.5 - 1
    ids = [charset.encode(t) for t in texts]
    judge = Judge(TINY, charset, {})
    right = Canvas(pixels, *columns([np.linspace(0, 112, 5)] * 16, ids, 112), *padded(ids))
    wrong = Canvas(pixels, *columns([np.linspace(0, 112, 5)] * 16, ids, 112), *padded(ids[1:] + ids[:1]))
    assert judge(pixels, right)[0].median() < 0.3 < 2 < judge(pixels, wrong)[0].median()
    noise = torch.randn_like(pixels)
    assert judge(pixels, right)[1].mean() < judge(pixels + noise, right)[1].mean(), "noise leaves no doubt"
    pixels.requires_grad_(True)
    judge(pixels, right)[0].sum().backward()
    assert pixels.grad is not None and pixels.grad.abs().sum() > 0
    assert not any(p.requires_grad for p in judge.parameters())


# -------------------------------------------------------------------------------------------------------------- layout


def test_columns_say_which_character_stands_where() -> None:
    characters, within = columns([np.array([2.0, 6.0, 8.0])], [[5, 7]], 10)
    assert characters[0].tolist() == [0, 0, 5, 5, 5, 5, 7, 7, 0, 0]
    assert within[0, 2:8].tolist() == pytest.approx([-0.75, -0.25, 0.25, 0.75, -0.5, 0.5])
    assert within[0, [0, 1, 8, 9]].tolist() == [0] * 4


def test_borders_of_boxes_run_between_them() -> None:
    boxes = np.array([[2, 0, 5, 9], [7, 0, 9, 9], [8.5, 0, 12, 9]], np.float32)
    assert borders_of_boxes(boxes).tolist() == [2, 6, 8.75, 12]


def test_texts_are_laid_out_as_real_ones_are() -> None:
    texts = ["il", "wm", "iw"] * 10
    borders = [np.array([10.0, 14.0, 18.0]), np.array([10.0, 30.0, 50.0]), np.array([10.0, 14.0, 34.0])] * 10
    spacing = Spacing.of(texts, borders, 64)
    rng = np.random.default_rng(0)
    for text in ("iwi", "wwwwww", "i", "m?"):
        for _ in range(20):
            own, near = spacing.lay_out(text, rng)
            assert len(own) == len(text) + 1 and 0 <= near < 30
            assert own[0] >= 0 and own[-1] <= 64 and (np.diff(own) > 0).all()
    steps = np.mean([np.diff(spacing.lay_out("iw", rng)[0]) for _ in range(50)], 0)
    assert steps[1] > 2 * steps[0]


def test_canvases_keep_pictures_and_sizes() -> None:
    assert [canvas_width(*size) for size in ((100, 40), (64, 32), (10, 100), (5000, 20))] == [80, 64, 16, 256]
    source = Canvases(Charset.named("letters+digits"), 3)
    one, other = source.batch(5, 0, 6, CPU), source.batch(5, 1, 6, CPU)
    again = Canvases(Charset.named("letters+digits"), 3).batch(5, 0, 6, CPU)
    assert all(torch.equal(a, b) for a, b in zip(one, again, strict=True))
    assert not torch.equal(one.pictures, other.pictures)
    assert one.pictures.min() >= -1 and one.pictures.max() <= 1 and one.pictures.shape[1:] == (3, HEIGHT, 96)
    for row, target, n in zip(one.characters, one.targets, one.lengths, strict=True):
        seen = torch.unique_consecutive(row[row > 0])
        expected = torch.unique_consecutive(target[:n])  # neighbours that are alike are one stretch
        assert torch.equal(seen, expected)
    assert from_canvas(one.pictures[:1], [(50, 20)])[0].size == (50, 20)


# ------------------------------------------------------------------------------------------------------ life of a fit


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Manifest:
    folder = tmp_path_factory.mktemp("fit") / "data"
    asked = requests_for_texts(["aB3", "Ba33", "3aB", "BB3a"] * 6, (80, 32), 0)
    synthesize("render", {"difficulty": 0.2}, asked, folder)
    return read_manifest(folder)


def settings(name: str, **changed: Any) -> Any:
    few = {
        "steps": 4, "batch": 4, "start": "nothing", "tracker": "none", "threads": 1, "grids": 2, "precision": "no",
        "checkpoint_seconds": 1e-3,
    }  # fmt: skip
    return load_learner(name).FitSettings(**few | changed)


@pytest.mark.parametrize("name", ["vae", "wgan", "diffusion"])
def test_a_fit_that_was_cut_off_goes_on_exactly(name: str, data: Manifest, tmp_path: Path) -> None:
    cls = load_learner(name)
    cls.fit(data, settings(name), tmp_path / "whole")
    # the same fit, cut off after two of four steps: what a kill leaves is its last checkpoint
    step = "augment.fit.Bar.advance"
    with pytest.MonkeyPatch.context() as patch:
        calls: list[int] = []

        def stop(self: Any, **figures: Any) -> None:
            calls.append(1)
            if len(calls) == 3:
                raise KeyboardInterrupt

        patch.setattr(step, stop)
        with pytest.raises(KeyboardInterrupt):
            cls.fit(data, settings(name), tmp_path / "cut")
    assert not (tmp_path / "cut" / "generator.safetensors").exists()
    assert [p.name for p in (tmp_path / "cut" / "checkpoints").iterdir()] == ["000000002"]
    cls.fit(data, settings(name), tmp_path / "cut")
    whole, cut = (load_file(tmp_path / run / "generator.safetensors") for run in ("whole", "cut"))
    assert whole.keys() == cut.keys() and all(torch.equal(whole[k], cut[k]) for k in whole)
    lines = [(tmp_path / run / "metrics.jsonl").read_text().splitlines() for run in ("whole", "cut")]
    rows = [[{k: v for k, v in json.loads(line).items() if k != "seconds"} for line in own] for own in lines]
    assert [row["step"] for row in rows[1]] == [2, 4] and rows[0] == rows[1]
    assert sorted(p.name for p in (tmp_path / "cut" / "grids").iterdir()) == ["0000002.png", "0000004.png"]


def test_the_command_fits_and_goes_on_with_its_own_settings(data: Manifest, tmp_path: Path) -> None:
    folder, run = data.source, tmp_path / "run"
    few = [w for k, v in settings("vae").model_dump(exclude_defaults=True).items() for w in ("--set", f"{k}={v}")]
    ended = augment("fit", "--method", "vae", "--data", folder, "--limit", 22, *few, "--out", run)
    assert ended.status == 0 and "fitted to 22 pictures in 4 steps" in ended.out, ended.err
    (run / "generator.safetensors").unlink()
    asked = json.loads((run / "asked.json").read_text())
    assert asked["data"] == [str(Path(folder).resolve())], "from whatever folder it is gone on with"
    ended = augment("fit", "--resume", run)
    assert ended.status == 0 and "fitted to 22 pictures" in ended.out and (run / "generator.safetensors").exists()
    ended = augment("synthesize", "--method", "vae", "--fitted", run, "--count", 3, "--out", tmp_path / "made")
    assert ended.status == 0, ended.err
    made = read_manifest(tmp_path / "made")
    assert [open_picture(m.read_bytes()).size for m in made] == [(80, 32)] * 3
    assert all(set(m.text) <= set("aB3") and len(m.text) in (3, 4) for m in made)
    for words, said in (
        (["--resume", run, "--limit", 3], "leave the other options out"),
        (["--resume", tmp_path / "made"], "is no fit that can be resumed"),
        (["--method", "vae", "--data", folder], "say which method learns, and where it goes"),
        (["--method", "vae", "--data", folder, "--out", run], "exists and is not empty"),
        (["--method", "vae", "--data", folder, "--out", tmp_path / "x", "--set", "stepps=1"], "mean 'steps'?"),
    ):
        ended = augment("fit", *words)
        assert ended.status == 2 and said in ended.err and ended.err.count("\n") == 1, ended.err


def test_a_fit_that_diverges_is_named_and_stopped(data: Manifest, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"the run diverged at step \d+: .* is .*; try learning_rate="):
        load_learner("wgan").fit(data, settings("wgan", learning_rate=1e6, steps=20), tmp_path / "run")
    assert not (tmp_path / "run" / "generator.safetensors").exists()


def test_a_fit_starts_from_another(data: Manifest, tmp_path: Path) -> None:
    cls = load_learner("cgan")
    cls.fit(data, settings("cgan"), tmp_path / "first")
    cls.fit(data, settings("cgan", start=str(tmp_path / "first"), steps=1, learning_rate=1e-9), tmp_path / "second")
    first, second = (load(tmp_path / run, "cgan")[0] for run in ("first", "second"))
    for network, state in first.items():
        for key, tensor in state.items():
            assert torch.allclose(second[network][key], tensor, atol=2e-3), key
    with pytest.raises(UserError, match="was fitted for cgan, not for wgan"):
        load(tmp_path / "first", "wgan")


def test_all_that_draw_by_an_autoencoders_generator_start_from_one(data: Manifest, tmp_path: Path) -> None:
    load_learner("vae").fit(data, settings("vae"), tmp_path / "vae")
    own = settings("wgan", start=str(tmp_path / "vae"), steps=1, learning_rate=1e-9)
    load_learner("wgan").fit(data, own, tmp_path / "wgan")
    first, second = load(tmp_path / "vae", "vae")[0], load(tmp_path / "wgan", "wgan")[0]
    for network in ("generator", "encoder"):
        assert all(torch.allclose(second[network][key], own, atol=2e-3) for key, own in first[network].items())
    assert torch.allclose(second["latents"]["mean"], first["latents"]["mean"], atol=0.02), "drawn near real pictures"
    load_learner("cgan").fit(data, settings("cgan"), tmp_path / "alone")
    assert set(load(tmp_path / "alone", "cgan")[0]) == {"generator", "critic"}
    own = settings("diffusion", start=str(tmp_path / "vae"), steps=1, drafts=False)
    load_learner("diffusion").fit(data, own, tmp_path / "diffusion")
    third = load(tmp_path / "diffusion", "diffusion")[0]
    assert all(torch.equal(third["generator"][key], own) for key, own in first["generator"].items()), "it only drafts"


READ = {"vae": 0.8, "wgan": 0.75, "cgan": 0.75, "diffusion": 0.2}  # augment/weights/README.md says what they reach


def test_shipped_generators_draw_what_they_are_asked_for(tmp_path: Path) -> None:
    files = sorted(SHIPPED.glob("*.safetensors"))
    assert files and sum(file.stat().st_size for file in files) < 12_000_000
    card, reader = (SHIPPED / "README.md").read_text(), Reader()
    for file in files:
        name = file.stem
        assert f"`{name}.safetensors`" in card and not re.search(r'"/\w', json.dumps(load(file, name)[1])), (
            "no path of ours"
        )
        words = ["--charset", "letters+digits", "--length", "4-6", "--count", 40, "--size", "96x32", "--seed", 5]
        ended = augment("synthesize", "--method", name, *words, "--out", tmp_path / name)
        assert ended.status == 0, ended.err
        made = read_manifest(tmp_path / name)
        readings = reader.read([reader.open(s.path) for s in made])
        right = [r.text.casefold() == s.text.casefold() for r, s in zip(readings, made, strict=True)]
        assert np.mean(right) > READ[name], name


def test_only_the_part_with_the_text_is_learned_and_paper_is_drawn_around_it(tmp_path: Path) -> None:
    """Small text in a large picture: the canvas is the text's, and what is made stands where texts stood."""
    shade = np.linspace(250, 235, 160).astype(np.uint8)  # from the left to the right
    with FolderWriter(tmp_path / "wide") as writer:
        for k, text in enumerate(["aB3", "Ba33", "3aB", "BB3a"] * 6):
            page = Image.fromarray(np.repeat(shade[None], 96, 0)).convert("RGB")
            ImageDraw.Draw(page).text((45 + k % 5, 30), text, "black", ImageFont.load_default(30))
            pixels = io.BytesIO()
            page.save(pixels, "png")
            writer.add(f"{k}.png", pixels.getvalue(), text)
    wide = read_manifest(tmp_path / "wide")
    drawings = Drawings(wide, aligner_for(wide, None)[0], None, {}, 0)
    ink = (drawings.pictures.min(1) < 140).any(2)  # rows of the canvases, dark ones
    assert np.median(ink.sum(1)) > HEIGHT / 2
    first = np.array([own[0] for own in drawings.borders]) / drawings.width
    assert np.median(first) < 0.25, "a text begins near the left side of its canvas"
    load_learner("vae").fit(wide, settings("vae", steps=2), tmp_path / "run")
    method = create("vae", {"fitted": str(tmp_path / "run")})
    for made in method.make([Request("aB3", k, 320, 192) for k in range(4)], [None] * 4):
        grey = np.asarray(made.convert("L"), int)
        assert np.abs(np.diff(grey[:30], axis=0)).max() <= 20, "paper above, as it is beside the part"
        assert grey.std(0)[100:220].max() > 1


def test_a_part_is_put_back_and_paper_goes_on_around_it() -> None:
    rng = np.random.default_rng(0)
    page = np.full((60, 120, 3), 200.0) + np.linspace(0, 40, 120)[None, :, None] + rng.normal(0, 2, (60, 120, 1))
    page[20:40, 30:33] = 0  # a stroke
    page[10:20, 60:62] = 0  # and one that reaches the part's upper side
    page = Image.fromarray(page.clip(0, 255).astype(np.uint8))
    place = (20.0, 10.0, 100.0, 50.0)
    around = paper_around(page.crop((20, 10, 100, 50)), place, page.size, rng)
    left, right = np.asarray(around, float)[:, :20], np.asarray(around, float)[:, 100:]
    assert abs(left.mean() - 207) < 3 and abs(right.mean() - 234) < 3, "shaded as it is on that side"
    assert np.asarray(around)[:10].min() > 180, "no stroke is drawn out"
    assert 0.5 < np.asarray(around, float)[:8, 25:95].std(0).mean() < 4, "grain"
    back = np.asarray(put_back(page.crop((20, 10, 100, 50)), place, around), int)
    assert np.array_equal(back[10:50, 20:100], np.asarray(page, int)[10:50, 20:100])
    painted = np.zeros(80, np.float32)
    painted[40:] = 1
    half = np.asarray(put_back(Image.new("RGB", (80, 40)), place, page, painted), int)
    assert not half[10:50, 62:100].any() and np.array_equal(half[:, :58], np.asarray(page, int)[:, :58])


def test_what_no_generator_can_be_fitted_to_is_refused(data: Manifest, tmp_path: Path) -> None:
    cls = load_learner("vae")
    with pytest.raises(UserError, match="has 5 pictures: a method needs 20"):
        cls.fit(data.first(5), settings("vae"), tmp_path / "few")
    with FolderWriter(tmp_path / "torn") as writer:
        for k in range(30):
            writer.add(f"{k}.png", b"no picture", "aB3")
    with pytest.raises(UserError, match="0 of 30 pictures can be opened; 20 are needed"):
        cls.fit(read_manifest(tmp_path / "torn"), settings("vae"), tmp_path / "unopened")
    assert not (tmp_path / "unopened").exists()
    blank = tmp_path / "broken"
    blank.mkdir()
    (blank / "generator.safetensors").write_bytes(b"no weights")
    with pytest.raises(UserError, match="is no generator's file"):
        load(blank, "vae")
    with pytest.raises(UserError, match="no such generator"):
        load(tmp_path / "nowhere", "vae")


def test_a_generator_overfits_a_few_pictures(data: Manifest) -> None:
    """Truth of training: a decoder told which of eight pictures it is, and their layouts, draws them."""
    torch.manual_seed(0)
    source = Canvases(Charset.named("letters+digits"), 0)
    batch = source.batch(0, 0, 8, CPU)
    network, z, grain = Generator(63), torch.randn(8, 64), torch.randn(8, 1, HEIGHT, 96)
    optimizer = torch.optim.Adam(network.parameters(), 3e-3)
    for _ in range(120):
        apart = (network(z, batch.characters, batch.within, grain) - batch.pictures).abs().mean()
        optimizer.zero_grad()
        apart.backward()
        optimizer.step()
    flat = (batch.pictures - batch.pictures.mean((2, 3), keepdim=True)).abs().mean()
    assert apart < 0.75 * flat


# ----------------------------------------------------------------------------------------------------------- diffusion


class Oracle(torch.nn.Module):
    """Knows the one clean picture there is, and so its velocity at any noise."""

    def __init__(self, clean: torch.Tensor) -> None:
        super().__init__()
        self.clean = torch.nn.functional.pixel_unshuffle(clean, 2)
        self.alphas = DDPMScheduler(**NOISE).alphas_cumprod
        self.calls = 0

    def forward(self, noisy: torch.Tensor, t: torch.Tensor, *layouts: torch.Tensor) -> torch.Tensor:
        self.calls += 1
        alpha = self.alphas[t[0]] ** 0.5
        sigma = (1 - alpha**2) ** 0.5
        noise = (noisy - alpha * self.clean) / sigma
        return alpha * noise - sigma * self.clean


def oracle_pipeline(clean: torch.Tensor) -> tuple[Any, Oracle]:
    oracle = Oracle(clean)
    pipeline = LayoutPipeline(Denoiser(3, (16, 16), 8), Drafter(3), DPMSolverMultistepScheduler(**NOISE))
    pipeline.denoiser = oracle
    return pipeline, oracle


def test_sampling_with_a_perfect_denoiser_draws_its_picture() -> None:
    batch = canvas(2)
    pipeline, oracle = oracle_pipeline(batch.pictures[:1])
    for steps in (6, 12, 20):
        oracle.calls = 0
        noise = torch.randn(1, 3, HEIGHT, 48)
        made = pipeline(batch.characters[:1], batch.within[:1], noise, steps=steps, guidance=1)
        assert oracle.calls == steps
        assert (made - batch.pictures[:1]).abs().mean() < 0.02


@pytest.mark.parametrize("drafted", [False, True], ids=["picture", "draft"])
@pytest.mark.parametrize(("strength", "runs"), [(0.25, 2), (0.5, 4), (0.75, 6), (1.0, 8)])
def test_strength_says_how_many_steps_run_from_a_real_picture_or_a_draft(
    strength: float, runs: int, drafted: bool
) -> None:
    batch = canvas(2)
    pipeline, oracle = oracle_pipeline(batch.pictures[:1])
    noise, layout = torch.randn(1, 3, HEIGHT, 48), (batch.characters[:1], batch.within[:1])
    real = None if drafted else batch.pictures[:1]
    made = pipeline(*layout, noise, None, real, strength, guidance=1)
    assert oracle.calls == runs and (made - batch.pictures[:1]).abs().mean() < 0.02
    pipeline, _ = oracle_pipeline(torch.zeros(1, 3, HEIGHT, 48))
    pipeline.denoiser.forward = lambda noisy, t, c, w, d: torch.zeros_like(noisy)  # keeps what it is given, shrunk
    begun = pipeline.drafter(torch.zeros(1, LATENT), *layout) if drafted else batch.pictures[:1]
    kept = pipeline(*layout, noise * 0, None, real, strength, guidance=1)
    if strength == 1:  # nothing of that is left
        assert not kept.any()
    else:
        assert torch.corrcoef(torch.stack([kept.flatten(), begun.flatten()]))[0, 1] > 0.99


def test_a_strength_without_a_step_is_refused() -> None:
    batch = canvas(2)
    pipeline, _ = oracle_pipeline(batch.pictures[:1])
    noise = torch.randn(1, 3, HEIGHT, 48)
    with pytest.raises(UserError, match=r"at strength 0.05 none of 8 steps runs"):
        pipeline(batch.characters[:1], batch.within[:1], noise, None, batch.pictures[:1], 0.05)


def test_guidance_goes_beyond_what_the_layout_changes() -> None:
    class Two(torch.nn.Module):
        def forward(self, noisy: torch.Tensor, t: Any, characters: torch.Tensor, *_: Any) -> torch.Tensor:
            return torch.full_like(noisy, 2.0 if characters.any() else 1.0)

    seen = []
    for guidance in (0.0, 1.0, 2.0):
        pipeline = LayoutPipeline(Denoiser(3, (16, 16), 8), Drafter(3), DPMSolverMultistepScheduler(**NOISE))
        pipeline.denoiser = Two()
        batch = canvas(1)
        step = pipeline.scheduler.step
        own: list[float] = []

        def spied(v: torch.Tensor, *rest: Any, step: Any = step, own: list[float] = own, **named: Any) -> Any:
            own.append(float(v.mean()))
            return step(v, *rest, **named)

        pipeline.scheduler.step = spied
        pipeline(batch.characters, batch.within, torch.randn(1, 3, HEIGHT, 48), steps=3, guidance=guidance)
        seen.append(set(own))
    assert seen == [{1.0}, {2.0}, {3.0}]


def test_guidance_leaves_colours_as_they_are() -> None:
    class Coloured(torch.nn.Module):
        def forward(self, noisy: torch.Tensor, t: Any, characters: torch.Tensor, *_: Any) -> torch.Tensor:
            shift = torch.tensor([0.4, 0.1, 0.1]) if characters.any() else torch.tensor([0.1, 0.2, 0.0])
            return torch.nn.functional.pixel_unshuffle(shift[None, :, None, None].expand(1, 3, HEIGHT, 48), 2)

    batch, seen = canvas(1), []
    for guidance in (1.0, 4.0):
        pipeline = LayoutPipeline(Denoiser(3, (16, 16), 8), Drafter(3), DPMSolverMultistepScheduler(**NOISE))
        pipeline.denoiser = Coloured()
        noise = torch.zeros(1, 3, HEIGHT, 48)
        made = pipeline(batch.characters, batch.within, noise, steps=3, guidance=guidance)
        seen.append(made.mean((0, 2, 3)))
    lighter = seen[1] - seen[0]
    assert lighter.abs().min() > 0.01 and torch.allclose(lighter, lighter.mean().expand(3), atol=1e-5)


def test_a_pipeline_is_saved_and_read_back(tmp_path: Path) -> None:
    batch = canvas(2)
    pipeline = LayoutPipeline(Denoiser(3, (16, 32), 8), Drafter(3), DPMSolverMultistepScheduler(**NOISE))
    pipeline.save_pretrained(tmp_path / "pipe")
    again = LayoutPipeline.from_pretrained(tmp_path / "pipe")
    noise = torch.randn(2, 3, HEIGHT, 48)
    one, other = (p(batch.characters, batch.within, noise, steps=3) for p in (pipeline, again))
    assert torch.equal(one, other) and again.scheduler.config.prediction_type == "v_prediction"
    with pytest.raises(UserError, match="no pipeline is there"):
        LayoutPipeline.from_pretrained(tmp_path)


def test_a_lesson_pulls_towards_the_text_or_towards_doubt() -> None:
    charset = Charset.named("letters+digits")
    drawn = Canvases(charset, 4).batch(0, 0, 8, CPU)
    judge = Judge(TINY, charset, {})
    loss, doubt = judge(drawn.pictures, drawn)
    read = drawn.pictures - reading_lesson(judge, drawn, 0.05, 0.0)(drawn.pictures)
    hard = drawn.pictures - reading_lesson(judge, drawn, 0.0, 0.05)(drawn.pictures)
    assert judge(read, drawn)[0].mean() < loss.mean() and judge(hard, drawn)[1].mean() > doubt.mean()
    assert (read - drawn.pictures).abs().max() <= 0.0501


def test_a_request_with_a_source_keeps_its_layout_and_may_change_its_text(data: Manifest, tmp_path: Path) -> None:
    cls = load_learner("diffusion")
    cls.fit(data, settings("diffusion", steps=2), tmp_path / "run")
    method = create("diffusion", {"fitted": str(tmp_path / "run"), "strengths": [0.25], "steps": 4, "guidance": 1})
    sample = data.samples[0]
    source = open_picture(sample.read_bytes())
    swapped_text = sample.text[:-1] + ("a" if sample.text[-1] != "a" else "B")
    for text in (sample.text, swapped_text):
        (made,) = method.make([Request(text, 1, 80, 32, sample.name)], [source])
        alike = np.corrcoef(np.asarray(made, float).ravel(), np.asarray(source, float).ravel())[0, 1]
        assert made.size == (80, 32) and alike > 0.3, "a quarter of the noise hides the source"
    led = create("diffusion", {"fitted": str(tmp_path / "run"), "strengths": [0.25], "steps": 4, "label": 0.02})
    asked = Request(sample.text, 1, 80, 32, sample.name)
    assert led.make([asked], [source])[0].tobytes() != method.make([asked], [source])[0].tobytes()
    with pytest.raises(UserError, match="is not there"):
        method.make([Request(sample.text, 1, 80, 32, sample.name)], [None])
    twin = open_picture(data.samples[1].read_bytes())  # under the other's name
    (made,) = method.make([Request(data.samples[1].text, 1, 80, 32, sample.name)], [twin])
    assert np.corrcoef(np.asarray(made, float).ravel(), np.asarray(twin, float).ravel())[0, 1] > 0.3
    with pytest.raises(UserError, match="cannot be made to show"):
        method.make([Request(sample.text + "a", 1, 80, 32, sample.name)], [source])
    with pytest.raises(UserError, match=r"at strength 0\.1 none of 4 steps runs"):
        create("diffusion", {"fitted": str(tmp_path / "run"), "strengths": [0.1], "steps": 4})


def test_a_label_that_a_generator_never_saw_costs_the_others_nothing(data: Manifest, tmp_path: Path) -> None:
    load_learner("diffusion").fit(data, settings("diffusion", steps=2), tmp_path / "run")
    some = [*data.samples[:5], replace(data.samples[5], text=data.samples[5].text[:-1] + "-")]
    write_folder(some, tmp_path / "some")
    ended = augment(
        "synthesize", "--method", "diffusion", "--fitted", tmp_path / "run", "--data", tmp_path / "some",
        "--count", 6, "--set", "steps=4", "--out", tmp_path / "made",
    )  # fmt: skip
    told = " ".join(ended.err.split())
    assert (
        ended.status == 0
        and f"1 of 6 pictures cannot be varied under their labels, as {some[5].name!r} that shows {some[5].text!r}"
        in told
    ), ended.err
    assert sorted(s.text for s in read_manifest(tmp_path / "made")) == sorted(s.text for s in some[:5])


def test_a_contrast_pair_repaints_one_character_alone(data: Manifest, tmp_path: Path) -> None:
    cls = load_learner("diffusion")
    cls.fit(data, settings("diffusion", steps=2), tmp_path / "run")
    method = create("diffusion", {"fitted": str(tmp_path / "run"), "strengths": [0.25, 0.75], "steps": 4})
    sample = next(s for s in data if len(s.text) == 4)
    source = open_picture(sample.read_bytes())
    swapped = Request(sample.text[:-1] + "a", 1, 80, 32, None, "contrast pair", sample.name)
    (asked,) = with_pairs(method, [swapped], lambda name: source)
    assert asked.source == sample.name
    (made,) = method.make([asked], [source])
    apart = np.abs(np.asarray(made, int) - np.asarray(source, int)).max((0, 2))
    left, _, right, _ = text_part(source)
    on_canvas = method.spacing.borders[method.about["marks"].index(mark_of(source))][3]
    border = left + on_canvas * (right - left) / method.spacing.width
    assert apart[: int(border) - 4].max() == 0, "what was not swapped stays as it is"
    assert apart[int(border) + 2 :].max() > 20
    assert with_pairs(method, [replace(swapped, text="aB3aB")], lambda name: source)[0].source is None


def test_pictures_of_another_shape_are_left_out_or_refused(data: Manifest, tmp_path: Path) -> None:
    def stretched(folder: Path, some: slice) -> Manifest:
        folder.mkdir()
        with FolderWriter(folder / "data") as writer:
            for k, sample in enumerate(data):
                picture = open_picture(sample.read_bytes())
                if k in range(len(data))[some]:
                    picture = picture.resize((500, 32))
                png = io.BytesIO()
                picture.save(png, "PNG")
                writer.add(f"{k}.png", png.getvalue(), sample.text)
        return read_manifest(folder / "data")

    few = stretched(tmp_path / "few", slice(0, 2))
    for name in ("vae", "splice"):
        cls = load_learner(name)
        how = settings("vae", steps=2) if name == "vae" else cls.FitSettings(least_sure=0.0)
        told = cls.fit(few, how, tmp_path / "few" / name)
        assert "22 pictures, 2 left out" in told or "22 of 24 pictures are cut" in told, told
        with pytest.raises(UserError, match="wildly different shapes, 80 x 32 to 500 x 32 pixels, and only"):
            cls.fit(stretched(tmp_path / name, slice(0, 9)), how, tmp_path / name / "out")
    assert not (tmp_path / "splice" / "out").exists()


def test_from_nothing_no_character_is_known_that_no_picture_shows(data: Manifest, tmp_path: Path) -> None:
    load_learner("cgan").fit(data, settings("cgan", steps=2), tmp_path / "run")
    method = create("cgan", {"fitted": str(tmp_path / "run")})
    assert set(method.charset.characters) == set("aB3")
    with pytest.raises(UserError, match="cgan never saw 'x'"):
        method.make([Request("x", 0, 80, 32)], [None])
