"""The networks of the generators: small enough for a CPU, and conditioned on a layout, column by column."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from augment.canvas import HEIGHT

LATENT = 64  # numbers that say what a picture looks like, beside its text


class Columns(nn.Module):
    """Layouts, `characters` and `within` (N, W), to features (N, D, W)."""

    def __init__(self, classes: int, width: int) -> None:
        super().__init__()
        self.embed = nn.Embedding(classes, width)
        self.mix = nn.Conv1d(width + 3, width, 5, padding=2)

    def forward(self, characters: Tensor, within: Tensor) -> Tensor:
        held = (characters > 0).to(within.dtype)
        place = torch.stack([held, within, within.abs()], 1)
        x = torch.cat([self.embed(characters).transpose(1, 2), place], 1)
        return F.leaky_relu(self.mix(x), 0.2)


def at_width(features: Tensor, width: int) -> Tensor:
    """Features (N, D, W) averaged to a narrower width, as (N, D, 1, width)."""
    return F.adaptive_avg_pool1d(features, width)[:, :, None]


class Styled(nn.Module):
    """Twice as high and wide, with the layout added at that width and the latent as scale and shift of each channel."""

    def __init__(self, channels_in: int, channels: int, condition: int, grow: bool = True) -> None:
        super().__init__()
        self.grow = grow
        self.conv1 = nn.Conv2d(channels_in, channels, 3, padding=1)
        self.layout = nn.Conv2d(condition, channels, 1)
        self.style = nn.Linear(LATENT, 2 * channels)
        self.grain = nn.Parameter(torch.zeros(channels))
        self.norm = nn.GroupNorm(8, channels, affine=False)
        self.conv2 = nn.Conv2d(channels, channels, 3, padding=1)

    def forward(self, x: Tensor, layout: Tensor, z: Tensor, grain: Tensor) -> Tensor:
        if self.grow:
            x = F.interpolate(x, scale_factor=2.0, mode="nearest")
        x = self.conv1(x) + self.layout(at_width(layout, x.shape[3]))
        ratio = HEIGHT // x.shape[2]
        noise = F.avg_pool2d(grain, ratio) * ratio  # of deviation 1 again
        x = F.leaky_relu(x + self.grain[:, None, None] * noise, 0.2)
        scale, shift = self.style(z)[:, :, None, None].chunk(2, 1)
        x = self.norm(x) * (1 + scale) + shift
        return F.leaky_relu(self.conv2(x), 0.2)


class Generator(nn.Module):
    """A latent (N, LATENT), a layout (N, W) and grain (N, 1, HEIGHT, W) to pictures (N, 3, HEIGHT, W), -1 to 1."""

    def __init__(self, classes: int, channels: tuple[int, int, int] = (96, 64, 40), condition: int = 40) -> None:
        super().__init__()
        first, second, third = channels
        self.columns = Columns(classes, condition)
        self.start = nn.Conv1d(condition, first * 4, 3, padding=1)
        self.rows = nn.Parameter(torch.randn(1, first, 4, 1) * 0.1)
        self.blocks = nn.ModuleList([
            Styled(first, first, condition, grow=False), Styled(first, second, condition),
            Styled(second, third, condition),
        ])  # fmt: skip
        self.shuffle = nn.Conv2d(third, 64, 3, padding=1)
        self.out = nn.Conv2d(16, 3, 3, padding=1)

    def forward(self, z: Tensor, characters: Tensor, within: Tensor, grain: Tensor) -> Tensor:
        layout = self.columns(characters, within)
        n, _, w = layout.shape
        x = self.start(F.adaptive_avg_pool1d(layout, w // 8)).view(n, -1, 4, w // 8) + self.rows
        for block in self.blocks:
            x = block(x, layout, z, grain)
        x = F.leaky_relu(F.pixel_shuffle(self.shuffle(x), 2), 0.2)
        return torch.tanh(self.out(x))


class Critic(nn.Module):
    """Pictures (N, 3, HEIGHT, W) under their layouts (N, W) to one number each (N,). No norm: the gradient penalty is
    one of each picture alone (Gulrajani et al. 2017, arXiv 1704.00028, section 4)."""

    def __init__(self, classes: int, channels: tuple[int, int, int] = (24, 48, 96), condition: int = 32) -> None:
        super().__init__()
        first, second, third = channels
        self.columns = Columns(classes, condition)
        self.stem = nn.Conv2d(3, first, 5, 2, 2)
        self.layout = nn.ModuleList([nn.Conv2d(condition, c, 1) for c in channels])
        self.down = nn.ModuleList([nn.Conv2d(first, second, 4, 2, 1), nn.Conv2d(second, third, 4, 2, 1)])
        self.last = nn.Conv2d(third, third, 3, padding=1)
        self.score = nn.Linear(third, 1)
        self.match = nn.Conv1d(condition, third, 3, padding=1)

    def forward(self, pictures: Tensor, characters: Tensor, within: Tensor) -> Tensor:
        layout = self.columns(characters, within)
        x = self.stem(pictures)
        for k, own in enumerate(self.layout):
            x = F.leaky_relu(x + own(at_width(layout, x.shape[3])), 0.2)
            if k < len(self.down):
                x = self.down[k](x)
        x = F.leaky_relu(self.last(x), 0.2).mean(2)  # (N, C, W / 8)
        matched = (x * self.match(F.adaptive_avg_pool1d(layout, x.shape[2]))).sum(1).mean(1)  # Miyato and Koyama 2018
        return torch.add(self.score(x.mean(2))[:, 0], matched / x.shape[1] ** 0.5)


class Encoder(nn.Module):
    """Pictures (N, 3, HEIGHT, W) under their layouts to the mean and log variance of their latent, (N, LATENT) each."""

    def __init__(self, classes: int, channels: tuple[int, int, int] = (32, 64, 96), condition: int = 32) -> None:
        super().__init__()
        first, second, third = channels
        self.columns = Columns(classes, condition)
        self.stem = nn.Conv2d(3, first, 5, 2, 2)
        self.layout = nn.Conv2d(condition, first, 1)
        self.down = nn.Sequential(
            nn.LeakyReLU(0.2), nn.Conv2d(first, second, 4, 2, 1), nn.GroupNorm(8, second), nn.LeakyReLU(0.2),
            nn.Conv2d(second, third, 4, 2, 1), nn.GroupNorm(8, third), nn.LeakyReLU(0.2),
        )  # fmt: skip
        self.out = nn.Linear(2 * third, 2 * LATENT)

    def forward(self, pictures: Tensor, characters: Tensor, within: Tensor) -> tuple[Tensor, Tensor]:
        x = self.stem(pictures)
        x = self.down(x + self.layout(at_width(self.columns(characters, within), x.shape[3])))
        pooled = torch.cat([x.mean((2, 3)), x.std((2, 3))], 1)
        mean, log_variance = self.out(pooled).chunk(2, 1)
        return mean, log_variance.clamp(-8, 4)
