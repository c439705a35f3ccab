"""Two conditional GANs over layouts: `wgan`, with a gradient penalty, and `cgan`, the plain one it is measured against.

Gulrajani et al. 2017, "Improved Training of Wasserstein GANs", arXiv 1704.00028; Mirza and Osindero 2014, "Conditional
Generative Adversarial Nets", arXiv 1411.1784. That a reader's loss trains the generator as well, its gradient balanced
against the critic's, is ScrabbleGAN's (Fogel et al. 2020, arXiv 2003.10557). DiffAugment: Zhao et al. 2020, arXiv
2006.10738.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Mapping
from typing import ClassVar

import torch
from accelerate import Accelerator
from pydantic import Field
from torch import Tensor, nn
from torch.nn import functional as F

from augment.canvas import HEIGHT, Canvas
from augment.fit import FitSettings, Turn
from augment.generated import Generated
from augment.judge import Judge
from augment.networks import LATENT, Critic, Encoder, Generator
from recognizer.settings import Settings

AGREED = 0.3  # nats a character; under it a picture is most likely read as its text


class GanFit(FitSettings):
    """How a GAN is trained."""

    steps: int = Field(300, ge=1)  # from the shipped weights; with more, strokes come apart (docs/log.md)
    batch: int = Field(16, ge=2, le=4096)
    critic_steps: int = Field(5, ge=1)  # to each step of the generator
    penalty: float = Field(10.0, ge=0)  # on the gradient's distance from 1
    mismatch: float = Field(0.5, ge=0)  # weight of real pictures under the layout of others
    reading: float = Field(1.0, ge=0)  # the reader's gradient, as a multiple of the critic's
    anchor: float = Field(0.5, ge=0)  # and that towards the real picture of the same latent, where there is one


def penalty(
    critic: Callable[[Tensor, Tensor, Tensor], Tensor], real: Tensor, wrong: Tensor, canvas: Canvas
) -> tuple[Tensor, Tensor]:
    """The mean of (|gradient| - 1)^2 between real pictures and wrong ones under the real ones' layouts, and the
    gradients' norms."""
    share = torch.rand(len(real), 1, 1, 1, device=real.device, dtype=real.dtype)
    between = torch.lerp(real, wrong, share).requires_grad_(True)
    score = critic(between, canvas.characters, canvas.within)
    (gradient,) = torch.autograd.grad(score.sum(), between, create_graph=True)
    norms = gradient.flatten(1).norm(dim=1)
    return ((norms - 1) ** 2).mean(), norms


def augmented(pictures: Tensor, numbers: Tensor) -> Tensor:
    """DiffAugment's colour and cut-out, by numbers (N, 6) in [0, 1). Nothing is moved: the layout says where it is."""
    h, w = pictures.shape[2:]
    a, b, c, x, y, cut = numbers[:, :, None, None, None].unbind(1)
    pictures = pictures + (a - 0.5)
    mean = pictures.mean(1, keepdim=True)
    pictures = mean + (pictures - mean) * (2 * b)
    whole = pictures.mean((1, 2, 3), keepdim=True)
    pictures = whole + (pictures - whole) * (c + 0.5)
    columns, rows = torch.arange(w, device=pictures.device), torch.arange(h, device=pictures.device)[:, None]
    hole = ((columns - x * w).abs() < h / 4) & ((rows - y * h).abs() < h / 4) & (cut < 0.5)
    return torch.where(hole, torch.zeros_like(pictures), pictures)


def swapped(canvas: Canvas) -> Canvas:
    """The same layouts under others' pictures: the next one's."""
    return Canvas(canvas.pictures.roll(1, 0), *canvas[1:])


class GanLearning:
    """A generator, a critic and a frozen reader. `wasserstein` says which of the two losses.

    `paired`: it starts where there is an autoencoder's encoder. Then the latent of a made picture is the one that the
    encoder, frozen, finds in the real picture beside it (as in Larsen et al. 2016, "Autoencoding beyond pixels", arXiv
    1512.09300). Both share paper and ink, and the critic estimates what else is different. With latents of their own
    the noise of that estimate is ten times what it estimates (docs/log.md).
    """

    shown = "generator"

    def __init__(self, settings: GanFit, classes: int, judge: Judge, paired: bool, wasserstein: bool) -> None:
        self.settings, self.judge, self.wasserstein = settings, judge, wasserstein
        self.generator, self.critic = Generator(classes), Critic(classes)
        encoder = {"encoder": Encoder(classes).requires_grad_(False)} if paired else {}
        self.networks: Mapping[str, nn.Module] = {"generator": self.generator, "critic": self.critic, **encoder}
        betas = (0.0, 0.9) if wasserstein else (0.5, 0.999)
        rate = settings.learning_rate
        self._for_generator = torch.optim.Adam(self.generator.parameters(), rate, betas)
        self._for_critic = torch.optim.Adam(self.critic.parameters(), rate, betas)

    def optimizers(self) -> list[torch.optim.Optimizer]:
        return [self._for_generator, self._for_critic]

    def sample(self, network: nn.Module, canvas: Canvas) -> Tensor:
        n, w = canvas.characters.shape
        device = canvas.characters.device
        z, grain = torch.randn(n, LATENT, device=device), torch.randn(n, 1, HEIGHT, w, device=device)
        if (encoder := self.networks.get("encoder")) is not None:
            with torch.no_grad():
                mean, log_variance = encoder(canvas.pictures, canvas.characters, canvas.within)
            z = mean + z * (log_variance / 2).exp()
        return network(z, canvas.characters, canvas.within, grain).float()  # type: ignore[no-any-return]

    @torch.inference_mode()
    def latents(self, canvas: Canvas) -> Tensor:
        """The latents (N, LATENT) of pictures, where there is an encoder."""
        return self.networks["encoder"](canvas.pictures, canvas.characters, canvas.within)[0]  # type: ignore[no-any-return]

    def turns(self, batch: Callable[[int], Canvas], accelerator: Accelerator) -> Iterator[Turn]:
        s = self.settings
        self.judge.to(accelerator.device)
        for k in range(s.critic_steps):
            canvas = batch(k)
            with torch.no_grad(), accelerator.autocast():
                fake = self.sample(self.generator, canvas)
            numbers = torch.rand(len(fake), 6, device=fake.device)
            real, fake = augmented(canvas.pictures, numbers), augmented(fake, numbers)
            others = augmented(swapped(canvas).pictures, numbers)
            characters, within = canvas.characters.repeat(3, 1), canvas.within.repeat(3, 1)
            on_real, on_fake, on_other = self.critic(torch.cat([real, fake, others]), characters, within).chunk(3)
            if self.wasserstein:
                # of all that is called wrong: else the score of real pictures under others' layouts runs off
                other = torch.rand(len(fake), 1, 1, 1, device=fake.device) < s.mismatch / (1 + s.mismatch)
                estimate = on_real.mean() - (on_fake.mean() + s.mismatch * on_other.mean()) / (1 + s.mismatch)
                towards, norms = penalty(self.critic, real, torch.where(other, others, fake), canvas)
                loss = -estimate + s.penalty * towards
                figures = {"estimate": estimate.item(), "penalty": towards.item(), "gradient": norms.mean().item()}
            else:
                wrong = F.softplus(on_fake).mean() + s.mismatch * F.softplus(on_other).mean()
                loss = F.softplus(-on_real).mean() + wrong / (1 + s.mismatch)
                figures = {"told apart": float(torch.cat([on_real > 0, on_fake < 0]).float().mean())}
            yield Turn(loss, self._for_critic, (self.critic,), figures | {"critic": loss.item()})

        canvas = batch(s.critic_steps)
        with accelerator.autocast():
            fake = self.sample(self.generator, canvas)
        seen = augmented(fake, torch.rand(len(fake), 6, device=fake.device))
        score = self.critic(seen, canvas.characters, canvas.within)
        adversarial = -score.mean() if self.wasserstein else F.softplus(-score).mean()
        (pull,) = torch.autograd.grad(adversarial, fake, retain_graph=True)
        reading, _ = self.judge(fake, canvas)
        (lesson,) = torch.autograd.grad(reading.clamp(max=20).mean(), fake, retain_graph=True)
        balance = pull.std() / lesson.std().clamp_min(1e-12)
        figures = {
            "reading": reading.mean().item(), "agreed": (reading < AGREED).float().mean().item(),
            "log balance": balance.log10().item(),
        }  # fmt: skip
        together = pull + s.reading * balance * lesson
        if "encoder" in self.networks:
            away = (fake - canvas.pictures).detach()
            together = together + s.anchor * pull.std() / away.std().clamp_min(1e-12) * away
            figures["apart"] = away.abs().mean().item()
        yield Turn(fake, self._for_generator, (self.generator,), figures, together)


class Wgan(Generated):
    """A conditional WGAN-GP."""

    name: ClassVar[str] = "wgan"
    FitSettings: ClassVar[type[Settings]] = GanFit

    @classmethod
    def learning(cls, settings: GanFit, classes: int, judge: Judge, start: Collection[str]) -> GanLearning:
        return GanLearning(settings, classes, judge, "encoder" in start, wasserstein=True)


class PlainFit(GanFit):
    """How the plain GAN is trained: one step each, and no penalty."""

    critic_steps: int = Field(1, ge=1)


class Cgan(Generated):
    """A conditional GAN without a gradient penalty: the control."""

    name: ClassVar[str] = "cgan"
    FitSettings: ClassVar[type[Settings]] = PlainFit

    @classmethod
    def learning(cls, settings: GanFit, classes: int, judge: Judge, start: Collection[str]) -> GanLearning:
        return GanLearning(settings, classes, judge, "encoder" in start, wasserstein=False)
