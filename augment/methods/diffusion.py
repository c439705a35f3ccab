"""A small pixel-space diffusion model over layouts, as a pipeline of diffusers: pictures from text, or from real ones.

It begins with a draft, an autoencoder's picture of the text in a real picture's look, and adds what that lost: edges,
lines, grain (Pandey et al. 2022, "DiffuseVAE", arXiv 2201.00308). From noise alone small networks take very long to
learn letters.

Ho et al. 2020, arXiv 2006.11239, predicting velocity (Salimans and Ho 2022, arXiv 2202.00512) with min-SNR weights
(Hang et al. 2023, arXiv 2303.09556) and classifier-free guidance (Ho and Salimans 2022, arXiv 2207.12598), sampled by
DPM-Solver++ (Lu et al. 2022, arXiv 2211.01095). From a real picture: noised to a strength and denoised under its own
text, or under another (SDEdit, Meng et al. 2021, arXiv 2108.01073).
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Mapping
from functools import cached_property
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import torch
from accelerate import Accelerator
from diffusers import (
    ConfigMixin,
    DDPMScheduler,
    DiffusionPipeline,
    DPMSolverMultistepScheduler,
    ModelMixin,
    UNet2DModel,
)
from diffusers.configuration_utils import register_to_config
from numpy.typing import NDArray
from PIL import Image
from pydantic import Field
from torch import Tensor, nn
from torch.nn import functional as F

from augment.canvas import HEIGHT, Canvas, columns, from_canvas, put_back, text_part, to_canvas
from augment.fit import Turn, mark_of
from augment.generated import Generated, GeneratedSettings
from augment.judge import Judge
from augment.method import Request
from augment.methods.vae import VaeFit, VaeLearning
from augment.networks import LATENT, Columns, Encoder, Generator
from recognizer.errors import UserError
from recognizer.settings import Settings

STRENGTHS = (0.25, 0.5, 0.75, 1.0)  # how far a real picture is noised
SWAPPED = 0.75  # the least of them where a character is swapped
DRAFT = 0.8  # how far a draft is noised: so far that what is soft about it is lost, and its text is not yet
BEGUN = 0.6, 0.95  # how far drafts are noised whose reading is learned
STEPS = 8  # from noise alone; with 12 as much is read and looks alike
GUIDANCE = 2.0  # how far from what would be drawn without a layout; 1 is none
BESIDE = 2.0  # columns to each side of a swapped character that are painted with it
SNR = 20.0  # gamma of min-SNR; with the paper's 5, white stays grainy
TIMES = 1000  # of noise, from none to all
NOISE: dict[str, Any] = {
    "num_train_timesteps": TIMES,
    "beta_schedule": "squaredcos_cap_v2",
    "prediction_type": "v_prediction",
}
ALPHAS: Tensor = DDPMScheduler(**NOISE).alphas_cumprod
DRAFTED = 0.35  # how far pictures lie from their drafts, root mean square


class Denoiser(ModelMixin, ConfigMixin):  # type: ignore[misc]
    """Noisy pictures, 2 x 2 pixels as 12 channels (N, 12, HEIGHT / 2, W / 2), under layouts (N, W) and beside drafts of
    the same form, to velocities.

    The network adds to what would be best if pictures lay `DRAFTED` around their drafts, normally: at the start, its
    weights zero, the draft is drawn (as the skip of Karras et al. 2022, "Elucidating the Design Space", arXiv
    2206.00364, around a draft instead of zero).
    """

    @register_to_config  # type: ignore[untyped-decorator]
    def __init__(self, classes: int, channels: tuple[int, ...] = (32, 64, 96), condition: int = 24) -> None:
        super().__init__()
        self.columns = Columns(classes, condition)
        self.unet = UNet2DModel(
            in_channels=24 + condition, out_channels=12, block_out_channels=channels, layers_per_block=1,
            down_block_types=("DownBlock2D",) * (len(channels) - 1) + ("AttnDownBlock2D",),
            up_block_types=("AttnUpBlock2D",) + ("UpBlock2D",) * (len(channels) - 1), norm_num_groups=8,
            attention_head_dim=channels[-1] // 4,
        )  # fmt: skip
        nn.init.zeros_(self.unet.conv_out.weight)

    def forward(self, noisy: Tensor, timesteps: Tensor, characters: Tensor, within: Tensor, drafts: Tensor) -> Tensor:
        layout = F.avg_pool1d(self.columns(characters, within), 2)[:, :, None].expand(-1, -1, noisy.shape[2], -1)
        more: Tensor = self.unet(torch.cat([noisy, drafts, layout], 1), timesteps).sample
        alpha = ALPHAS.to(noisy)[timesteps.to(noisy.device)][:, None, None, None]
        scale, sigma = alpha.sqrt(), (1 - alpha).sqrt()
        known = scale * sigma * (1 - DRAFTED**2) / (alpha * DRAFTED**2 + 1 - alpha)
        return known * (noisy - scale * drafts) - sigma * drafts + more


class Drafter(ModelMixin, ConfigMixin):  # type: ignore[misc]
    """Latents (N, LATENT) and layouts (N, W) to drafts (N, 3, HEIGHT, W): an autoencoder's generator without grain."""

    @register_to_config  # type: ignore[untyped-decorator]
    def __init__(self, classes: int) -> None:
        super().__init__()
        self.generator: nn.Module = Generator(classes)

    @classmethod
    def of(cls, generator: nn.Module, classes: int) -> Drafter:
        """Drafts by a generator that there is."""
        with torch.device("meta"):  # no random weights that are thrown away at once
            drafter: Drafter = cls(classes)
        drafter.generator = generator
        return drafter

    def forward(self, latents: Tensor, characters: Tensor, within: Tensor) -> Tensor:
        return drafts_of(self.generator, latents, characters, within)


def drafts_of(generator: nn.Module, latents: Tensor, characters: Tensor, within: Tensor) -> Tensor:
    """What a generator draws without grain."""
    grain = latents.new_zeros(len(latents), 1, HEIGHT, characters.shape[1])
    return generator(latents, characters, within, grain)  # type: ignore[no-any-return]


class LayoutPipeline(DiffusionPipeline):  # type: ignore[misc]
    """Pictures under layouts, from nothing or from real pictures. Saved and read as every pipeline of diffusers."""

    def __init__(self, denoiser: Denoiser, drafter: Drafter, scheduler: DPMSolverMultistepScheduler) -> None:
        super().__init__()
        self.register_modules(denoiser=denoiser, drafter=drafter, scheduler=scheduler)

    @classmethod
    def from_pretrained(cls, path: str | Path, **_: Any) -> LayoutPipeline:
        """The pipeline that `save_pretrained` wrote; diffusers itself does not find components of others' code."""
        if not (Path(path) / "model_index.json").is_file():
            raise UserError(f"{path}: no pipeline is there")
        scheduler = DPMSolverMultistepScheduler.from_pretrained(str(path), subfolder="scheduler")
        denoiser = Denoiser.from_pretrained(str(path), subfolder="denoiser")
        return cls(denoiser, Drafter.from_pretrained(str(path), subfolder="drafter"), scheduler)

    @torch.no_grad()
    def __call__(
        self,
        characters: Tensor,
        within: Tensor,
        noise: Tensor,
        latents: Tensor | None = None,
        pictures: Tensor | None = None,
        strength: float = 1.0,
        steps: int = STEPS,
        guidance: float = GUIDANCE,
        lesson: Callable[[Tensor], Tensor] | None = None,
        repaint: Tensor | None = None,
    ) -> Tensor:
        """Pictures (N, 3, HEIGHT, W), -1 to 1.

        Args:
            characters, within: the layouts (N, W), as `augment.canvas` has them.
            noise: normal (N, 3, HEIGHT, W): all randomness there is.
            latents: what they look like (N, LATENT), as the autoencoder's encoder finds it; the average without.
            pictures: real ones (N, 3, HEIGHT, W) to begin from; the drafts without.
            strength: how far those are noised; at 1 nothing of them is left.
            guidance: how far from what it would draw without a layout; 1 is none. It guides how light each pixel is
                and not its colour, which it would drive beyond any that was seen.
            lesson: a gradient of the estimated pictures, to go against at each step.
            repaint: 1 in the columns (N, W) of `pictures` that may change, 0 in those that stay as they are (Lugmayr et
                al. 2022, "RePaint", arXiv 2201.09865, without its jumps back).

        Raises:
            UserError: a strength at which not one step would run.
        """
        run = min(int(steps * strength), steps)
        if run < 1:
            raise UserError(
                f"at strength {strength:g} none of {steps} steps runs: the picture would come back as it was"
            )
        self.scheduler.set_timesteps(steps, device=noise.device)
        timesteps = self.scheduler.timesteps[steps - run :]
        latents = noise.new_zeros(len(noise), LATENT) if latents is None else latents
        drafts = F.pixel_unshuffle(self.drafter(latents, characters, within), 2)
        x = F.pixel_unshuffle(noise, 2)
        if run < steps:
            begin = drafts if pictures is None else F.pixel_unshuffle(pictures, 2)
            self.scheduler.set_begin_index(steps - run)
            x = self.scheduler.add_noise(begin, x, timesteps[:1].expand(len(x)))
        none = torch.zeros_like(characters), torch.zeros_like(within), torch.zeros_like(drafts)
        kept = None
        if repaint is not None and pictures is not None:
            kept = F.pixel_unshuffle((1 - repaint)[:, None, None].expand_as(pictures), 2)
            clean, own = F.pixel_unshuffle(pictures, 2), F.pixel_unshuffle(noise, 2)
        for k, t in enumerate(timesteps):
            v = self.denoiser(x, t.expand(len(x)), characters, within, drafts)
            if guidance != 1:
                v = v + (guidance - 1) * lightness(v - self.denoiser(x, t.expand(len(x)), *none))
            if lesson is not None:
                alpha = self.scheduler.alphas_cumprod.to(x)[t] ** 0.5
                sigma = (1 - alpha**2) ** 0.5
                estimate = F.pixel_shuffle(alpha * x - sigma * v, 2)
                estimate = estimate - lesson(estimate)
                v = (alpha * x - F.pixel_unshuffle(estimate, 2)) / sigma
            x = self.scheduler.step(v, t, x).prev_sample
            if kept is not None:
                last = k + 1 == len(timesteps)
                there = clean if last else self.scheduler.add_noise(clean, own, timesteps[k + 1].expand(len(x)))
                x = torch.lerp(x, there, kept)
        return F.pixel_shuffle(x, 2).clamp(-1, 1)


def lightness(parts: Tensor) -> Tensor:
    """Of pictures (N, 12, H, W), whose channels are 2 x 2 pixels a colour, the mean of the three colours, in each."""
    red, green, blue = parts.chunk(3, 1)
    return ((red + green + blue) / 3).repeat(1, 3, 1, 1)


def reading_lesson(judge: Judge, canvas: Canvas, label: float, entropy: float) -> Callable[[Tensor], Tensor]:
    """A lesson for the pipeline: down in the label's loss, so that the text stays, and up in the reader's doubt, so
    that it is hard; each so much of a pixel's range at the pixel that it moves most."""

    def lesson(pictures: Tensor) -> Tensor:
        with torch.enable_grad():
            x = pictures.detach().requires_grad_(True)
            loss, doubt = judge(x, canvas)
            (down,) = torch.autograd.grad(loss.clamp(max=20).sum(), x, retain_graph=True)
            (up,) = torch.autograd.grad(doubt.sum(), x)
        scaled = [g / g.abs().amax((1, 2, 3), keepdim=True).clamp_min(1e-12) for g in (down, up)]
        return label * scaled[0] - entropy * scaled[1]

    return lesson


class DiffusionFit(VaeFit):
    """How the diffusion model is trained, and the autoencoder of its drafts beside it."""

    steps: int = Field(150, ge=1)  # with 300 strokes are nearer to real ones, and more of the text is broken
    unconditioned: float = Field(0.1, ge=0, lt=1)  # share of the pictures that are shown without layout and draft
    strokes: float = Field(0.05, ge=0)  # weight of a reader's losses in what the denoiser makes of noisy pictures
    drafts: bool = True  # the autoencoder learns as well; else it stays as it was at the start


class DiffusionLearning:
    """A denoiser, and the autoencoder that drafts for it."""

    shown = "denoiser"

    def __init__(self, settings: DiffusionFit, classes: int, judge: Judge) -> None:
        self.settings, self.classes = settings, classes
        self.denoiser = Denoiser(classes)
        self.autoencoder = VaeLearning(settings, classes, judge)
        self.networks: Mapping[str, nn.Module] = {"denoiser": self.denoiser, **self.autoencoder.networks}
        self._optimizer = torch.optim.AdamW(self.denoiser.parameters(), settings.learning_rate, weight_decay=0.01)
        self._noise = DDPMScheduler(**NOISE)
        self.latents = self.autoencoder.latents

    def optimizers(self) -> list[torch.optim.Optimizer]:
        return [self._optimizer, *self.autoencoder.optimizers()]

    def sample(self, network: nn.Module, canvas: Canvas) -> Tensor:
        drafter = Drafter.of(self.networks["generator"], self.classes)
        pipeline = LayoutPipeline(network, drafter, DPMSolverMultistepScheduler(**NOISE))  # type: ignore[arg-type]
        noise = torch.randn_like(canvas.pictures)
        return pipeline(canvas.characters, canvas.within, noise, self.latents(canvas), strength=DRAFT)

    def turns(self, batch: Callable[[int], Canvas], accelerator: Accelerator) -> Iterator[Turn]:
        if self.settings.drafts:
            yield from self.autoencoder.turns(batch, accelerator)
        canvas = batch(0)
        n, device = len(canvas.pictures), canvas.pictures.device
        clean = F.pixel_unshuffle(canvas.pictures, 2)
        noise, t = torch.randn_like(clean), torch.randint(0, TIMES, (n,), device=device)
        noisy, velocity = self._noise.add_noise(clean, noise, t), self._noise.get_velocity(clean, noise, t)
        shown = torch.rand(n, 1, device=device) >= self.settings.unconditioned
        with accelerator.autocast():
            with torch.no_grad():
                z = self.autoencoder.drawn(canvas)[0]
                drafts = drafts_of(self.networks["generator"], z, canvas.characters, canvas.within)
            drafts = F.pixel_unshuffle(drafts.float() * shown[:, :, None, None], 2)
            guess = self.denoiser(noisy, t, canvas.characters * shown, canvas.within * shown, drafts).float()
        apart = (guess - velocity).square().mean((1, 2, 3))
        alpha = self._noise.alphas_cumprod.to(device)[t]
        signal = 1 / (1 - alpha)  # to noise, and 1: a velocity's own weight, so that the most noise counts as well
        loss = (apart * signal.clamp(max=SNR) / signal).mean()
        figures = {"velocity": apart.mean().item()}
        if self.settings.strokes:
            own = (self._reading(canvas, noisy, guess, t) * shown[:, 0]).mean()
            exchanged = self._exchanged(canvas, z, accelerator).mean()
            loss = loss + self.settings.strokes * (own + exchanged)
            figures |= {"denoised reading": own.item(), "exchanged reading": exchanged.item()}
        yield Turn(loss, self._optimizer, (self.denoiser,), figures | {"loss": loss.item()})

    def _reading(self, canvas: Canvas, noisy: Tensor, velocity: Tensor, t: Tensor) -> Tensor:
        """A reader's loss, nats a character (N,), of what is seen in noisy pictures."""
        alpha = self._noise.alphas_cumprod.to(noisy.device)[t][:, None, None, None]
        estimate = F.pixel_shuffle(alpha.sqrt() * noisy - (1 - alpha).sqrt() * velocity, 2)
        self.autoencoder.judge.to(noisy.device)
        loss: Tensor = self.autoencoder.judge(estimate, canvas)[0]
        return loss.clamp(max=20)

    def _exchanged(self, canvas: Canvas, z: Tensor, accelerator: Accelerator) -> Tensor:
        """The same of drafts of half of the batch's texts in the looks of the other half, noised as far as sampling
        begins. Of drafts that are less noised the denoiser would draw what a reader reads and what looks like no
        picture: it tells them from noised pictures, of which it learns the look."""
        half = Canvas(*(part[: max(1, len(z) // 2)] for part in canvas))
        n, layout = len(half.pictures), (half.characters, half.within)
        with accelerator.autocast():
            with torch.no_grad():
                drafts = F.pixel_unshuffle(drafts_of(self.networks["generator"], z[-n:], *layout).float(), 2)
            t = torch.randint(int(BEGUN[0] * TIMES), int(BEGUN[1] * TIMES), (n,), device=z.device)
            noisy = self._noise.add_noise(drafts, torch.randn_like(drafts), t)
            velocity = self.denoiser(noisy, t, *layout, drafts).float()
        return self._reading(half, noisy, velocity, t)


class DiffusionSettings(GeneratedSettings):
    """How pictures are drawn."""

    steps: int = Field(STEPS, ge=1, le=100)
    guidance: float = Field(GUIDANCE, ge=0)
    draft: float = Field(DRAFT, gt=0, le=1)  # how far a draft is noised; less, and what is soft about it stays
    strengths: tuple[float, ...] = Field(STRENGTHS, min_length=1)  # of a picture that has a source, one by chance
    label: float = Field(0.0, ge=0)  # how hard a reader pulls towards the text, a step
    entropy: float = Field(0.0, ge=0)  # and towards what it is unsure of


class Diffusion(Generated):
    """Draws by diffusion. A request with a source is drawn from it, under its text or another of the same length."""

    name: ClassVar[str] = "diffusion"
    FitSettings: ClassVar[type[Settings]] = DiffusionFit
    Settings: ClassVar[type[Settings]] = DiffusionSettings
    takes_source: ClassVar[bool] = True

    def __init__(self, settings: DiffusionSettings) -> None:
        super().__init__(settings)
        self.settings = settings
        for strength in (settings.draft, *settings.strengths):
            if not 0 < strength <= 1 or int(settings.steps * strength) < 1:
                raise UserError(f"at strength {strength:g} none of {settings.steps} steps runs")

    @classmethod
    def learning(cls, settings: DiffusionFit, classes: int, judge: Judge, start: Collection[str]) -> DiffusionLearning:
        return DiffusionLearning(settings, classes, judge)

    @classmethod
    def build(cls, classes: int) -> nn.Module:
        network: nn.Module = Denoiser(classes)
        return network

    @cached_property
    def pipeline(self) -> LayoutPipeline:
        """The pipeline, to be saved with `save_pretrained` or used by itself."""
        drafter = Drafter.of(self.part_network("generator", Generator), self.charset.classes)
        return LayoutPipeline(self.network, drafter, DPMSolverMultistepScheduler(**NOISE))  # type: ignore[arg-type]

    @cached_property
    def _encoder(self) -> nn.Module:
        return self.part_network("encoder", Encoder)

    @cached_property
    def _judge(self) -> Judge:
        return self.judge()

    def can_vary(self, request: Request, source: Image.Image) -> bool:
        """Whether a request's source can be drawn from, under the request's text."""
        try:
            self.layout_of(request, source)
            return bool(self.shown(request.text))
        except UserError:
            return False

    def draw(self, request: Request, source: Image.Image | None) -> Image.Image:
        """The picture of one request; from its source, where it has one."""
        rng, ids, width = request.rng(), self.shown(request.text), self.spacing.width
        (borders, near), real, repaint = self.spacing.lay_out(request.text, rng), None, None
        strength = self.settings.draft
        latent, part = self.latent(near, rng), None
        if request.source is not None:
            if source is None:
                raise UserError(f"{request.source!r}, which {request.text!r} is drawn from, is not there")
            borders = self.layout_of(request, source)
            part = text_part(source)
            real = torch.from_numpy(to_canvas(source, width, part)).float()[None] / 127.5 - 1
            latent = self._encoder(real, *columns([borders], [ids], width))[0]
            strengths = self.settings.strengths
            if request.pair is not None:  # what was there must go
                strengths = tuple(s for s in strengths if s >= SWAPPED) or (max(strengths),)
            strength = float(rng.choice(strengths))
            repaint = self._swapped(request, source, borders)
        characters, within = columns([borders], [ids], width)
        noise = torch.from_numpy(rng.standard_normal((1, 3, HEIGHT, width), np.float32))
        s, lesson = self.settings, None
        if s.label or s.entropy:
            canvas = Canvas(noise, characters, within, torch.tensor([ids]), torch.tensor([len(ids)]))
            lesson = reading_lesson(self._judge, canvas, s.label, s.entropy)
        picture = self.pipeline(characters, within, noise, latent, real, strength, s.steps, s.guidance, lesson, repaint)
        if part is None or source is None:
            return self.framed(picture, near, request, rng)
        painted = None if repaint is None else repaint[0].numpy()
        whole = put_back(from_canvas(picture, [(width, HEIGHT)])[0], part, source, painted)
        return whole.resize((request.width, request.height), Image.Resampling.BICUBIC)

    def _swapped(self, request: Request, source: Image.Image, borders: NDArray[np.float64]) -> Tensor | None:
        """The columns (1, W) of the characters that a request swaps in a picture whose text is known, 1 there and 0
        elsewhere; None where all of it is to be painted."""
        mark = mark_of(source.convert("RGB"))
        if request.pair is None or mark not in self.about["marks"]:
            return None
        own = self.spacing.texts[self.about["marks"].index(mark)]
        columns = np.arange(self.spacing.width) + 0.5
        change = np.zeros(len(columns), bool)
        for i, (a, b) in enumerate(zip(own, request.text, strict=True)):
            if a != b:
                change |= (columns >= borders[i] - BESIDE) & (columns <= borders[i + 1] + BESIDE)
        return torch.from_numpy(change).float()[None] if change.any() else None
