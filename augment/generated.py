"""What all methods that train have in common: pictures from a fitted generator, and fitting one."""

from __future__ import annotations

import json
from abc import ABC, abstractmethod
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import asdict
from functools import cached_property
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import torch
from accelerate.utils import set_seed
from numpy.typing import NDArray
from PIL import Image
from safetensors import SafetensorError, safe_open
from torch import Tensor, nn

from augment.canvas import HEIGHT, columns, from_canvas, on_canvas, paper_around, put_back, text_part
from augment.fit import Drawings, FitSettings, Learning, Source, aligner_for, fit, mark_of
from augment.judge import Judge
from augment.layout import Aligner, Spacing
from augment.method import FEWEST, Known, Request
from augment.networks import LATENT, Generator
from augment.stream import Canvases
from recognizer.charset import Charset
from recognizer.errors import UserError
from recognizer.images import Part
from recognizer.reader import Reader
from recognizer.samples import Manifest
from recognizer.settings import Settings
from recognizer.training.checkpoint import TINY, find_weights, save_tensors

FORMAT = 1
NARROWEST = 3  # pixels that a character takes on a canvas, at least
WHOLE: Part = (0.0, 0.0, 1.0, 1.0)
WANDER = 0.3  # how far from a real picture's latent, in deviations of those of all
SHIPPED = Path(__file__).parent / "weights"


class GeneratedSettings(Settings):
    """Which generator draws."""

    fitted: str | None = None  # the folder that augment fit wrote; else the shipped generator


def save(path: Path, networks: Mapping[str, Mapping[str, Tensor]], about: Mapping[str, Any]) -> None:
    """Write a generator's file, whole or not at all: matrices in half precision, what describes it in its metadata."""
    tensors = {
        f"{name}.{key}": (tensor.half() if tensor.ndim > 1 else tensor).detach().cpu().contiguous()
        for name, state in networks.items()
        for key, tensor in state.items()
    }
    save_tensors(path, tensors, {"lookalike-generator": json.dumps({"format": FORMAT, **about}, ensure_ascii=False)})


def load(path: Path, name: str, others: bool = False) -> tuple[dict[str, dict[str, Tensor]], dict[str, Any]]:
    """The networks' tensors, in float32, and the description of the generator of method `name` at `path`, a file or the
    folder that `augment fit` wrote; of any method where `others` will do.

    Raises:
        UserError: no such file, or not of this method.
    """
    path = path / "generator.safetensors" if path.is_dir() else path
    if not path.is_file():
        raise UserError(f"{path}: no such generator; augment fit --method {name} writes one")
    try:
        with safe_open(str(path), "pt") as file:
            about = json.loads((file.metadata() or {}).get("lookalike-generator", "null"))
            if not isinstance(about, dict) or about.get("format") != FORMAT:
                raise UserError(f"{path} holds no generator that this program can read")
            if about["method"] != name and not others:
                raise UserError(f"{path} was fitted for {about['method']}, not for {name}")
            states: dict[str, dict[str, Tensor]] = {}
            for key in file.keys():  # noqa: SIM118 (not a dict)
                network, _, rest = key.partition(".")
                states.setdefault(network, {})[rest] = file.get_tensor(key).float()
        return states, about
    except (SafetensorError, ValueError, KeyError, OSError) as error:
        raise UserError(f"{path} is no generator's file that can be read: {error}") from None


class Generated(ABC):
    """Pictures of a fitted generator."""

    name: ClassVar[str]
    Settings: ClassVar[type[Settings]] = GeneratedSettings
    needs_source: ClassVar[bool] = False
    exact_text: ClassVar[bool] = False

    def __init__(self, settings: GeneratedSettings) -> None:
        self._path = Path(settings.fitted) if settings.fitted else SHIPPED / f"{self.name}.safetensors"

    @cached_property
    def _loaded(self) -> tuple[dict[str, dict[str, Tensor]], dict[str, Any]]:
        return load(self._path, self.name)

    @property
    def about(self) -> dict[str, Any]:
        """What its file says of it."""
        return self._loaded[1]

    @cached_property
    def charset(self) -> Charset:
        return Charset(self.about["charset"])

    @cached_property
    def spacing(self) -> Spacing:
        s = self.about["spacing"]
        return Spacing(s["width"], tuple(s["texts"]), tuple(map(tuple, s["borders"])), s["widths"])

    @cached_property
    def parts(self) -> list[Part]:
        """Which parts of the pictures that its spacing keeps it was fitted to, as shares of their sides."""
        return self.about.get("parts") or [WHOLE] * len(self.spacing.texts)

    @property
    def known(self) -> Known:
        """What it was fitted to."""
        known = self.about["known"]
        return Known(known["characters"], tuple(known["lengths"]), tuple(known["size"]))

    @classmethod
    def build(cls, classes: int) -> nn.Module:
        """The network that makes pictures."""
        return Generator(classes)

    @cached_property
    def network(self) -> nn.Module:
        """That network, with its weights."""
        return self.part_network(self.about["shown"], self.build)

    def part_network(self, name: str, build: Callable[[int], nn.Module]) -> nn.Module:
        """One of the networks in its file, by name."""
        with torch.device("meta"):  # no random weights, from anyone's random state, that are thrown away at once
            network = build(self.charset.classes)
        try:
            network.load_state_dict(self._loaded[0][name], assign=True)
        except (RuntimeError, KeyError) as error:
            raise UserError(
                f"{self._path} does not fit its description: {str(error).splitlines()[-1].strip()}"
            ) from None
        return network.eval()

    def shown(self, text: str) -> list[int]:
        """The classes that show a text.

        Raises:
            UserError: a character that the generator never saw.
        """
        known_as = self.about["known_as"]
        characters = [known_as.get(c, c) for c in text]
        lacking = [c for c, s in zip(text, characters, strict=True) if s not in self.charset]
        if lacking or not text:
            raise UserError(f"{text!r}: {self.name} never saw {lacking[0]!r}" if lacking else "a text is empty")
        if len(text) * NARROWEST > self.spacing.width:
            raise UserError(f"{text!r}: {len(text)} characters are too many for {self.spacing.width} pixels")
        return self.charset.encode("".join(characters))

    def can_draw(self, requests: Sequence[Request]) -> list[bool]:
        """Whether the generator knows a request's characters, and has room for them, for each."""

        def shows(text: str) -> bool:
            with suppress(UserError):
                return bool(self.shown(text))
            return False

        return [shows(r.text) for r in requests]

    def layout_of(self, request: Request, source: Image.Image) -> NDArray[np.float64]:
        """Borders (L + 1,) of a request's source, at the generator's width, under the request's text: known of pictures
        that it was fitted to, found by a reader in others.

        Raises:
            UserError: the text does not fit: another length than the source's, or no room for it.
        """
        if (mark := mark_of(source.convert("RGB"))) in self.about["marks"]:
            k = self.about["marks"].index(mark)
            if len(own := self.spacing.texts[k]) != len(request.text):
                raise UserError(f"{request.source!r} shows {own!r} and cannot be made to show {request.text!r}")
            return np.array(self.spacing.borders[k])
        (found,) = self._aligner.find([source], [request.text])
        borders = None if found is None else on_canvas(found.borders, text_part(source), self.spacing.width)
        if borders is None:
            raise UserError(f"{request.source!r} has no room for {request.text!r}")
        return borders

    @cached_property
    def _aligner(self) -> Aligner:
        model = self.about["settings"]["model"]
        return Aligner(Reader(Path(model)) if model else Reader(), {} if model else self.about["known_as"])

    def judge(self) -> Judge:
        """The reader that judged while it was fitted."""
        model = self.about["settings"]["model"]
        return Judge(find_weights(Path(model)) if model else TINY, self.charset, self.about["known_as"])

    def make(self, requests: Sequence[Request], sources: Sequence[Image.Image | None]) -> list[Image.Image]:
        """One RGB picture for each request.

        Raises:
            UserError: a character that the generator never saw, or a source that cannot show the text.
        """
        with one_thread(), torch.no_grad():
            return [self.draw(r, s) for r, s in zip(requests, sources, strict=True)]

    def latent(self, near: int, rng: np.random.Generator) -> Tensor:
        """A latent (1, LATENT): near that of a real picture, where there are latents of those."""
        z = torch.from_numpy(rng.standard_normal((1, LATENT), np.float32))
        if (real := self._loaded[0].get("latents")) is not None:
            z = real["mean"][near] + WANDER * real["deviation"] * z
        return z

    def draw(self, request: Request, source: Image.Image | None) -> Image.Image:
        """The picture of one request."""
        rng, ids = request.rng(), self.shown(request.text)
        borders, near = self.spacing.lay_out(request.text, rng)
        z = self.latent(near, rng)  # of the picture whose layout it has
        grain = torch.from_numpy(rng.standard_normal((1, 1, HEIGHT, self.spacing.width), np.float32))
        picture = self.network(z, *columns([borders], [ids], self.spacing.width), grain)
        return self.framed(picture, near, request, rng)

    def framed(self, picture: Tensor, near: int, request: Request, rng: np.random.Generator) -> Image.Image:
        """A picture (1, 3, HEIGHT, W) of -1 to 1 in a request's size: where the text of a real one stands in that, with
        paper around it."""
        size = (request.width, request.height)
        left, top, right, bottom = self.parts[near]
        place = (left * size[0], top * size[1], right * size[0], bottom * size[1])
        part = from_canvas(picture, [(self.spacing.width, HEIGHT)])[0]
        return put_back(part, place, paper_around(part, place, size, rng))

    # --------------------------------------------------------------------------------------------------------- fitting

    @classmethod
    @abstractmethod
    def learning(cls, settings: Any, classes: int, judge: Judge, start: Collection[str]) -> Learning:
        """What is trained; `start` are the networks of where it starts, by name."""

    @classmethod
    def fit(
        cls, data: Manifest | None, settings: FitSettings, out: Path, asked: Mapping[str, Any] | None = None
    ) -> str:
        """Fit to labelled pictures, or without any to rendered text, into `out`, or go on where it was.

        Raises:
            UserError: data or settings that do not fit, or a run that diverges.
            Stopped: Ctrl-C; the run is saved.
        """
        start = cls._start(settings)
        charset = Charset(start[1]["charset"]) if start else Charset.named("letters+digits")
        source: Source
        known_as: dict[str, str] = {}
        marks: list[str] = []
        parts: list[Part] = []  # of rendered text all
        if data is None:
            if settings.model:
                raise UserError("rendered text is judged by the shipped reader: leave model out")
            source = rendered = Canvases(charset, settings.seed, settings.fonts)
            spacing, known, told, mark = rendered.spacing, rendered.known, "rendered text", ""
        else:
            if len(data) < FEWEST:
                raise UserError(f"{data.source} has {len(data)} pictures: a method needs {FEWEST} to learn from")
            aligner, known_as = aligner_for(data, settings.model)
            # from nothing, what no picture shows is not known
            source = drawings = Drawings(data, aligner, charset if start else None, known_as, settings.seed)
            charset = drawings.charset
            spacing, known, marks, mark = drawings.spacing, drawings.known, drawings.marks, drawings.hash
            parts = drawings.parts
            told = f"{len(drawings)} pictures" + (f", {drawings.left_out} left out" if drawings.left_out else "")
        set_seed(settings.seed)
        judge = Judge(find_weights(Path(settings.model)) if settings.model else TINY, charset, known_as)
        learning = cls.learning(settings, charset.classes, judge, start[0] if start else ())
        try:
            if start:
                same = start[1]["method"] == cls.name
                for name, network in learning.networks.items():
                    if same or name in start[0]:  # a vae's generator has no critic
                        network.load_state_dict(start[0][name])
        except (RuntimeError, KeyError) as error:
            raise UserError(f"start {settings.start!r} does not fit: {str(error).splitlines()[-1].strip()}") from None
        about = {
            "method": cls.name, "charset": charset.characters, "known_as": known_as, "spacing": asdict(spacing),
            "known": known._asdict(), "shown": learning.shown, "marks": marks, "parts": parts,
            "settings": settings.model_dump(mode="json"),
        }  # fmt: skip

        def finish(average: Mapping[str, Tensor]) -> None:
            states = {name: network.state_dict() for name, network in learning.networks.items()}
            if (encode := getattr(learning, "latents", None)) is not None and "encoder" in learning.networks:
                device = next(learning.networks[learning.shown].parameters()).device
                found = encode(source.kept(device)).cpu()
                states["latents"] = {"mean": found, "deviation": found.std(0)}
            save(out / "generator.safetensors", states | {learning.shown: dict(average)}, about)

        fit(learning, source, settings, out, finish, mark, asked)
        return f"fitted to {told} in {settings.steps} steps"

    @classmethod
    def _start(cls, settings: FitSettings) -> tuple[dict[str, dict[str, Tensor]], dict[str, Any]] | None:
        if settings.start == "nothing":
            return None
        path = SHIPPED / f"{cls.name}.safetensors" if settings.start == "default" else Path(settings.start)
        return load(path, cls.name, others=True)


@contextmanager
def one_thread() -> Iterator[None]:
    """Torch on one thread, as pictures are drawn one at a time: what sums round to depends on the batch and on the
    threads, and the same request must give the same picture."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)
