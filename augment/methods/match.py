"""Rendered text in looks that match given pictures, which need no labels: what `augment.evolve` bred for them."""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import replace
from functools import cached_property
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import torch
from accelerate import Accelerator
from PIL import Image
from pydantic import Field

from augment.evolve import Eye, Population, Search, bred, draw_in
from augment.fit import alike, begin_folder, mark_of
from augment.generated import load, save
from augment.glyphs import font_files
from augment.method import FEWEST, Known, Request
from augment.methods.render import Render, RenderSettings
from augment.sheet import Cell, contact_sheet
from augment.style import LONGEST, MEANING, Dice, Floats, keys_of
from augment.synthesize import lengths_in, random_texts
from recognizer.charset import Charset
from recognizer.errors import MOST_THREADS, Stopped, UserError, quoted
from recognizer.images import PictureError, open_picture
from recognizer.progress import Alone, Bar, say
from recognizer.samples import Manifest, Sample, list_pictures
from recognizer.settings import Settings
from recognizer.training.checkpoint import find_start, find_weights, written
from recognizer.training.evaluate import default_case, no_device
from recognizer.training.train import Metrics, interruptible

DRAWN = 24  # pictures of each kind on a sheet
ANEW, OTHER, SHIFT = 0.003, 0.1, 0.01  # how far a made picture's look wanders from those that were bred
STATE = "population.npz"


class MatchFitSettings(Settings):
    """What the search can be told. The charset and the length are those of the labels, where there are labels."""

    unlabelled: tuple[str, ...] = ()  # folders of pictures without labels, or JSON files that list such pictures
    charset: str | None = None  # a name in charset.NAMED, or characters
    length: str | None = None  # 5, or 4-6
    model: str | None = None  # the reader that looks, a run; else the shipped one
    fonts: tuple[str, ...] = ()  # as the method `render` takes them
    most: int = Field(400, ge=FEWEST)  # pictures that are looked at, drawn by seed
    generations: int = Field(30, ge=1)
    children: int = Field(800, ge=20)
    seed: int = Field(0, ge=0, lt=2**31)
    threads: int = Field(0, ge=0, le=MOST_THREADS)  # of torch on a CPU; 0 leaves it as it is
    tracker: str = "tensorboard"  # any that Accelerate knows, or none


class MatchSettings(Settings):
    """Which looks."""

    fitted: str | None = None  # the folder that augment fit wrote


class Match:
    """Draws any text of its fonts' characters, up to `LONGEST` of them, in looks that were bred for other pictures."""

    Settings: ClassVar[type[Settings]] = MatchSettings
    FitSettings: ClassVar[type[MatchFitSettings]] = MatchFitSettings
    needs_source: ClassVar[bool] = False
    exact_text: ClassVar[bool] = True

    def __init__(self, settings: MatchSettings) -> None:
        self._path = None if settings.fitted is None else Path(settings.fitted)

    @cached_property
    def _loaded(self) -> tuple[dict[str, dict[str, torch.Tensor]], dict[str, Any]]:
        if self._path is None:
            raise UserError("match draws in looks that were bred for pictures: augment fit --method match first")
        states, about = load(self._path, "match")
        if about["meaning"] != MEANING:
            raise UserError(f"{self._path} was fitted by another version, which draws otherwise: fit it anew")
        if about["fonts"] != _fonts(about["settings"]["fonts"]):
            raise UserError(f"{self._path} was fitted with other fonts than lie there now: fit it anew")
        return states, about

    @cached_property
    def _looks(self) -> dict[int, Floats]:
        states, about = self._loaded
        below = float(np.nextafter(1, 0))  # single precision may have made it 1
        flat = {int(k): shown.double().numpy().clip(0, below) for k, shown in states["looks"].items()}
        return {throw: shown.reshape(about["looks"], -1) for throw, shown in flat.items()}

    @cached_property
    def _render(self) -> Render:
        return Render(RenderSettings(fonts=tuple(self._loaded[1]["settings"]["fonts"]), difficulty=1.0))

    @property
    def known(self) -> Known:
        """What it was fitted to."""
        known = self._loaded[1]["known"]
        return Known(known["characters"], tuple(known["lengths"]), tuple(known["size"]))

    def _shown(self, requests: Sequence[Request]) -> list[str]:
        known_as = self._loaded[1]["known_as"]
        return [r.drawn or "".join(known_as.get(c, c) for c in r.text) for r in requests]

    def can_draw(self, requests: Sequence[Request]) -> list[bool]:
        """Whether a request's text is short enough, and each of its characters drawn by one of the fonts, for each."""
        shown = self._shown(requests)
        return self._render.can_draw([replace(r, drawn=text) for r, text in zip(requests, shown, strict=True)])

    def make(self, requests: Sequence[Request], sources: Sequence[Image.Image | None]) -> list[Image.Image]:
        """One RGB picture for each request; `sources` is not used.

        Raises:
            UserError: nothing fitted, a text that is too long, or with a character that no font draws.
        """
        shown = self._shown(requests)
        pictures: dict[int, Image.Image] = {}
        for size in dict.fromkeys((r.width, r.height) for r in requests):
            own = [i for i, r in enumerate(requests) if (r.width, r.height) == size]
            texts, seeds = [shown[i] for i in own], [requests[i].seed for i in own]
            looks = bred(self._looks, Dice(keys_of(texts, seeds)), len(own), ANEW, OTHER, SHIFT)
            made, _ = draw_in(looks, texts, seeds, size, self._render.glyphs(texts), torch.device("cpu"))
            pictures |= zip(own, made, strict=True)
        return [pictures[i] for i in range(len(requests))]

    @classmethod
    def fit(
        cls, data: Manifest | None, settings: MatchFitSettings, out: Path, asked: Mapping[str, Any] | None = None
    ) -> str:
        """Breed looks for labelled pictures, or for ones without labels, into `out`, or go on where it was.

        Raises:
            UserError: pictures or settings that do not fit.
            Stopped: Ctrl-C; the search is saved.
        """
        if settings.threads:
            torch.set_num_threads(settings.threads)
        settings = settings.model_copy(update={"fonts": tuple(str(Path(font).resolve()) for font in settings.fonts)})
        pictures, charset, lengths, known_as = _given(data, settings)
        known = Known.of(["0" * n for n in lengths], [picture.size for picture in pictures])
        known = known._replace(characters=charset.characters)
        shown = [known_as.get(c, c) for c in charset.characters]
        see_drawn(shown, lengths, settings.fonts)
        glyphs = Render(RenderSettings(fonts=settings.fonts, difficulty=1.0)).glyphs(shown)

        def texts(seed: int, count: int) -> list[str]:
            asked = random_texts(charset, known.lengths, count, seed)
            return ["".join(known_as.get(c, c) for c in text) for text in asked]

        weights = find_weights(Path(settings.model)) if settings.model else find_start("default", None)[0]
        if weights is None:
            raise UserError("no reader is shipped here to look with: --set model=RUN")
        try:
            tracker = None if settings.tracker == "none" else settings.tracker
            accelerator = Accelerator(cpu=no_device(), log_with=tracker, project_dir=str(out / "log"))
        except ValueError as error:
            raise UserError(f"tracker {settings.tracker}: {error}") from None
        if accelerator.num_processes > 1:
            raise UserError("looks are bred in one process: start it without accelerate launch")
        told_of = json.dumps([*map(mark_of, pictures), known, known_as])
        begin_folder(accelerator, out, settings, hashlib.sha256(told_of.encode()).hexdigest(), asked)
        search = Search(
            pictures, texts, known.size, glyphs, Eye(weights, accelerator.device),
            settings.children, settings.generations, settings.seed, accelerator.device,
        )  # fmt: skip
        population, done = _saved(out / STATE)
        if population:
            say(accelerator, f"resumed {out} at generation {done} of {settings.generations}")
        metrics = Metrics(accelerator, out, settings.tracker, "looks", settings.model_dump(mode="json"), done)
        bar = Bar(accelerator, "breeding looks", settings.generations, done, settings.children)
        every = max(1, settings.generations // 8)
        with interruptible() as interrupted, bar:
            bar.note(f"given pictures are {search.real:.2f} from each other; made ones, by generation:")
            while done < settings.generations:
                began = time.monotonic()
                population, figures = search.step(done, population)
                done += 1
                seconds = round(time.monotonic() - began, 1)
                metrics.write(done, steps=settings.generations, seconds=seconds, real=search.real, **figures)
                bar.advance(**figures)
                if done % every == 0 or done == settings.generations:
                    told = "  ".join(f"{name} {value:.3f}" for name, value in figures.items())
                    bar.note(f"generation {done:>4}  {told}")
                    looks = {throw: own[:DRAWN] for throw, own in population.looks.items()}
                    shown = texts(done, min(DRAWN, len(population.score)))
                    made, _ = draw_in(looks, shown, list(range(len(shown))), known.size, glyphs, accelerator.device)
                    _sheet(pictures[:DRAWN], made, out / "grids" / f"{done:07d}.png")
                _save(out / STATE, population, done)  # at last: what a kill leaves untold is done again
                if interrupted and done < settings.generations:
                    accelerator.end_training()
                    raise Stopped(
                        f"at generation {done} of {settings.generations}; go on with: "
                        f"augment fit --resume {quoted(out)}"
                    )
        assert population is not None
        about = {
            "method": "match", "meaning": MEANING, "known": known._asdict(), "known_as": known_as,
            "fonts": _fonts(settings.fonts), "looks": len(population.score),
            "settings": settings.model_dump(mode="json"),
        }  # fmt: skip
        # flat ones keep single precision, in which a throw says which font of hundreds
        held = {str(throw): torch.from_numpy(own).float().flatten() for throw, own in population.looks.items()}
        save(out / "generator.safetensors", {"looks": held}, about)
        accelerator.end_training()
        return f"bred for {len(pictures)} pictures in {settings.generations} generations"


def see_drawn(shown: Sequence[str], lengths: Sequence[int], fonts: Sequence[str]) -> None:
    """See that characters, as pictures show them, and texts of such lengths can be drawn.

    Raises:
        UserError: they cannot.
    """
    drawn = Render(RenderSettings(fonts=tuple(fonts), difficulty=1.0)).can_draw([Request(c, 0, 8, 8) for c in shown])
    if not all(drawn):
        raise UserError(f"no font draws {shown[drawn.index(False)]!r}: set fonts to a file that does")
    if max(lengths) > LONGEST:
        raise UserError(f"a text of {max(lengths)} characters is too long: a picture shows 1 to {LONGEST}")


def _fonts(named: Sequence[str]) -> str:
    """What font files are known again by: a look says which one in their order."""
    files = [(file.name, file.stat().st_size) for file in font_files(tuple(named))]
    return hashlib.sha256(json.dumps(files).encode()).hexdigest()[:16]


def _files(named: str) -> list[Path]:
    """The pictures in a folder, or those that a JSON file lists."""
    path = Path(named)
    if not path.is_file():
        return list_pictures(path)
    try:
        return [Path(file) for file in json.loads(path.read_text(encoding="utf-8"))]
    except (OSError, ValueError, TypeError):
        raise UserError(f"{path} is no folder, and no JSON list of pictures") from None


def _given(
    data: Manifest | None, settings: MatchFitSettings
) -> tuple[list[Image.Image], Charset, list[int], dict[str, str]]:
    """The pictures to match, what labels they may have, and the letters that they show in another case."""
    samples = [*(data or ())]
    texts = [s.text for s in samples]
    known_as = default_case(samples)
    samples += [Sample(str(file), "", file) for named in settings.unlabelled for file in _files(named)]
    if not samples:
        raise UserError(
            f"no picture to match is in {' '.join(settings.unlabelled) or 'nothing'}: name a folder of them"
        )
    if not texts and (settings.charset is None or settings.length is None):
        raise UserError("pictures without labels: say what they show with --charset and --length")
    charset = Charset.of(texts) if settings.charset is None else Charset.named(settings.charset)
    lengths = [len(t) for t in texts] if settings.length is None else lengths_in(settings.length)
    kept: dict[str, Image.Image] = {}  # each once
    tried = 0
    for i in np.random.default_rng([settings.seed, 31]).permutation(len(samples)):
        if len(kept) == settings.most:
            break
        tried += 1
        with suppress(PictureError, OSError):
            picture = open_picture(samples[i].read_bytes(), "RGB")
            kept.setdefault(mark_of(picture), picture)
    usual = alike([picture.size for picture in kept.values()])
    opened = [picture for picture, fits in zip(kept.values(), usual, strict=True) if fits]
    if len(opened) < FEWEST:
        raise UserError(
            f"{len(opened)} of {len(samples)} pictures can be opened, are of one shape and there once: {FEWEST} must"
        )
    if left := tried - len(opened):
        say(
            Alone(),
            f"{left} pictures cannot be opened, are there twice or of another shape than most, and are left out",
        )
    return opened, charset, lengths, known_as


def _sheet(given: Sequence[Image.Image], made: Sequence[Image.Image], path: Path) -> None:
    """Given pictures, and below them made ones."""
    rows = [[Cell(p) for p in own[i : i + 6]] for own in (given, made) for i in range(0, len(own), 6)]
    contact_sheet(rows, path)


def _save(path: Path, population: Population, done: int) -> None:
    looks: dict[str, Any] = {f"look {throw}": own for throw, own in population.looks.items()}
    tmp = path.with_name(path.name + ".tmp")
    with written(path):
        with tmp.open("wb") as file:
            np.savez(file, done=done, score=population.score, seen=population.seen, **looks)
        tmp.replace(path)


def _saved(path: Path) -> tuple[Population | None, int]:
    """The population that a search goes on with, and how many generations it has behind it."""
    if not path.is_file():
        return None, 0
    with np.load(path) as held:
        looks = {int(name.removeprefix("look ")): held[name] for name in held.files if name.startswith("look ")}
        return Population(looks, held["score"], held["seen"]), int(held["done"])
