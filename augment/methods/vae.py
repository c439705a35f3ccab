"""A conditional variational autoencoder over layouts: what a picture looks like goes through a latent, its text not.

Kingma and Welling 2013, "Auto-Encoding Variational Bayes", arXiv 1312.6114. New pictures wander near a real one: its
latent and its layout, another text.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Mapping
from typing import ClassVar

import torch
from accelerate import Accelerator
from pydantic import Field
from torch import Tensor, nn

from augment.canvas import HEIGHT, Canvas
from augment.fit import FitSettings, Turn
from augment.generated import Generated
from augment.judge import Judge
from augment.networks import Encoder, Generator
from recognizer.settings import Settings


class VaeFit(FitSettings):
    """How the autoencoder is trained."""

    steps: int = Field(600, ge=1)  # on 300 pictures five minutes of a core (docs/methods.md)
    learning_rate: float = Field(1e-3, gt=0)
    prior: float = Field(0.002, ge=0)  # weight of the latent's divergence from its prior, nats a latent number
    edges: float = Field(1.0, ge=0)  # weight of differences between neighbouring pixels
    reading: float = Field(0.05, ge=0)  # weight of the reader's loss where looks are exchanged, nats a character


def edges(pictures: Tensor) -> tuple[Tensor, Tensor]:
    """Differences between neighbours along rows and columns."""
    return pictures[..., 1:] - pictures[..., :-1], pictures[..., 1:, :] - pictures[..., :-1, :]


def divergence(mean: Tensor, log_variance: Tensor) -> Tensor:
    """Of normal latents (N, D) from the standard normal, nats a number (appendix B of the paper)."""
    return 0.5 * (mean**2 + log_variance.exp() - 1 - log_variance).mean()


class VaeLearning:
    """A generator that decodes, an encoder, and a frozen reader."""

    shown = "generator"

    def __init__(self, settings: VaeFit, classes: int, judge: Judge) -> None:
        self.settings, self.judge = settings, judge
        self.generator, self.encoder = Generator(classes), Encoder(classes)
        self.networks: Mapping[str, nn.Module] = {"generator": self.generator, "encoder": self.encoder}
        parameters = [*self.generator.parameters(), *self.encoder.parameters()]
        self._optimizer = torch.optim.AdamW(parameters, settings.learning_rate, weight_decay=0.01)

    def optimizers(self) -> list[torch.optim.Optimizer]:
        return [self._optimizer]

    def sample(self, network: nn.Module, canvas: Canvas) -> Tensor:
        z = self.encoder(canvas.pictures, canvas.characters, canvas.within)[0]
        grain = torch.randn(len(z), 1, HEIGHT, canvas.pictures.shape[3], device=z.device)
        return network(z, canvas.characters, canvas.within, grain).float()  # type: ignore[no-any-return]

    def turns(self, batch: Callable[[int], Canvas], accelerator: Accelerator) -> Iterator[Turn]:
        s, canvas = self.settings, batch(0)
        self.judge.to(accelerator.device)
        with accelerator.autocast():
            z, mean, log_variance = self.drawn(canvas)
            grain = torch.randn_like(canvas.pictures[:, :1])
            made = self.generator(z, canvas.characters, canvas.within, grain)
            # in another's look: a latent that told of its text would spoil it
            other = self.generator(z.roll(1, 0), canvas.characters, canvas.within, grain)
        made = made.float()
        apart = (made - canvas.pictures).abs().mean()
        pairs = zip(edges(made), edges(canvas.pictures), strict=True)
        blur = torch.stack([(a - b).abs().mean() for a, b in pairs]).sum()
        prior = divergence(mean.float(), log_variance.float())
        reading = self.judge(other.float(), canvas)[0].clamp(max=20).mean()
        loss = apart + s.edges * blur + s.prior * prior + s.reading * reading
        parts = {"apart": apart, "edges": blur, "prior": prior, "reading": reading}
        figures = {name: part.item() for name, part in parts.items()}
        yield Turn(loss, self._optimizer, (self.generator, self.encoder), figures)

    def drawn(self, canvas: Canvas) -> tuple[Tensor, Tensor, Tensor]:
        """Latents (N, LATENT) drawn for pictures, and the mean and log variance of what they were drawn from."""
        mean, log_variance = self.encoder(canvas.pictures, canvas.characters, canvas.within)
        return mean + torch.randn_like(mean) * (log_variance / 2).exp(), mean, log_variance

    @torch.inference_mode()
    def latents(self, canvas: Canvas) -> Tensor:
        """The latents (N, LATENT) of pictures."""
        return self.encoder(canvas.pictures, canvas.characters, canvas.within)[0]  # type: ignore[no-any-return]


class Vae(Generated):
    """Wanders near real pictures."""

    name: ClassVar[str] = "vae"
    FitSettings: ClassVar[type[Settings]] = VaeFit

    @classmethod
    def learning(cls, settings: VaeFit, classes: int, judge: Judge, start: Collection[str]) -> VaeLearning:
        return VaeLearning(settings, classes, judge)
