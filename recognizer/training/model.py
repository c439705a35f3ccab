"""The network: an SE-ResNet trunk that halves a picture's width twice, and heads on its frames.

The convolution head sees a bounded stretch of the picture, so it learns characters and not strings, and its spikes
stand where the characters stand. The BiLSTM head is the classic CRNN (Shi et al. 2015, arXiv 1507.05717).
Squeeze-and-excitation: Hu et al. 2017, arXiv 1709.01507. The fixed-length head is the field's older scheme: so many
positions, each of a class or of none.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Literal, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

HeadName = Literal["conv", "lstm", "fixed"]
COLUMNS, PLACE = 4, 64  # columns of the picture that a fixed position gets, and features that say what stands there
BETWEEN = -1e4  # a logit of what cannot be


class Size(NamedTuple):
    """What a named size stands for: input height in pixels, channels of stem and blocks, widths of the heads."""

    height: int
    channels: tuple[int, ...]
    conv_head: int
    lstm_head: int
    fixed_head: int


SIZES = {
    "tiny": Size(32, (24, 48, 96, 96), 160, 96, 48),
    "small": Size(32, (32, 64, 128, 128, 160), 192, 128, 48),
    "base": Size(48, (32, 64, 128, 160, 160), 256, 160, 64),
}


class Widths(NamedTuple):
    """Inner channels of each block and of the head, where some were taken out; 0 is what the size says."""

    blocks: tuple[int, ...] = ()
    head: int = 0


WHOLE = Widths()


class SqueezeExcite(nn.Module):
    """Weigh channels by what the whole picture holds; (N, C, H, W) to the same."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.down = nn.Linear(channels, channels // 8)
        self.up = nn.Linear(channels // 8, channels)

    def forward(self, x: Tensor) -> Tensor:
        gate = torch.sigmoid(self.up(F.relu(self.down(x.mean((2, 3))))))
        return x * gate[:, :, None, None]


class Block(nn.Module):
    """Two 3x3 convolutions with a shortcut; (N, C, H, W) to (N, D, H / stride, W / stride)."""

    def __init__(self, channels_in: int, channels: int, stride: tuple[int, int], inner: int = 0) -> None:
        super().__init__()
        inner = inner or channels
        self.conv1 = nn.Conv2d(channels_in, inner, 3, stride, 1, bias=False)
        self.norm1 = nn.BatchNorm2d(inner)
        self.conv2 = nn.Conv2d(inner, channels, 3, 1, 1, bias=False)
        self.norm2 = nn.BatchNorm2d(channels)
        self.gate = SqueezeExcite(channels)
        self.shortcut: nn.Module = nn.Identity()
        if channels_in != channels or stride != (1, 1):
            self.shortcut = nn.Sequential(
                nn.AvgPool2d(stride, stride) if stride != (1, 1) else nn.Identity(),
                nn.Conv2d(channels_in, channels, 1, bias=False),
                nn.BatchNorm2d(channels),
            )

    def forward(self, x: Tensor) -> Tensor:
        y = F.relu(self.norm1(self.conv1(x)))
        y = self.gate(self.norm2(self.conv2(y)))
        return F.relu(y + self.shortcut(x))


class Trunk(nn.Module):
    """Pictures (N, 1, H, W), W a multiple of 4, to features (N, F, T) with T = W / 4."""

    def __init__(self, size: Size, inner: tuple[int, ...] = ()) -> None:
        super().__init__()
        first, *rest = size.channels
        self.stem = nn.Sequential(
            nn.Conv2d(1, first, 3, 1, 1, bias=False), nn.BatchNorm2d(first), nn.ReLU(), nn.MaxPool2d(2)
        )
        blocks = []
        rows, before = size.height // 2, first
        for i, channels in enumerate(rest):
            stride = (2, 2) if i == 0 else (2, 1) if rows > 3 else (1, 1)
            rows //= stride[0]
            blocks.append(Block(before, channels, stride, inner[i] if inner else 0))
            before = channels
        self.blocks = nn.Sequential(*blocks)
        self.features = before * rows

    def forward(self, x: Tensor) -> Tensor:
        return self.blocks(self.stem(x)).flatten(1, 2)  # type: ignore[no-any-return]


class ConvHead(nn.Module):
    """Features (N, F, T) to logits (N, T, classes); a frame sees two frames to each side."""

    def __init__(self, features: int, width: int, classes: int) -> None:
        super().__init__()
        self.body = nn.Sequential(
            nn.Conv1d(features, width, 3, 1, 1, bias=False), nn.BatchNorm1d(width), nn.ReLU(),
            nn.Conv1d(width, width, 3, 1, 1, bias=False), nn.BatchNorm1d(width), nn.ReLU(), nn.Dropout(0.1),
        )  # fmt: skip
        self.classify = nn.Linear(width, classes)

    def forward(self, features: Tensor) -> Tensor:
        return self.classify(self.body(features).transpose(1, 2))  # type: ignore[no-any-return]


class LstmHead(nn.Module):
    """Features (N, F, T) to logits (N, T, classes); every frame sees the whole picture."""

    def __init__(self, features: int, width: int, classes: int) -> None:
        super().__init__()
        self.rnn = nn.LSTM(features, width, bidirectional=True, batch_first=True)
        self.classify = nn.Linear(2 * width, classes)

    def forward(self, features: Tensor) -> Tensor:
        return self.classify(self.rnn(features.transpose(1, 2))[0])  # type: ignore[no-any-return]


class FixedHead(nn.Module):
    """Features (N, F, T) to logits (N, 2 P - 1, classes) of P positions, each of which sees the whole picture.

    Between two positions stands a frame that can only be blank, so that what is read is read as CTC's is: a position
    that holds nothing says blank, and equal neighbours stay two. `losses.positions` takes the positions out.
    """

    def __init__(self, features: int, width: int, classes: int, positions: int) -> None:
        super().__init__()
        self.positions = positions
        self.body = nn.Sequential(nn.Conv1d(features, width, 3, 1, 1, bias=False), nn.BatchNorm1d(width), nn.ReLU())
        self.place = nn.Linear(width * COLUMNS * positions, PLACE * positions)
        self.rest = nn.Sequential(nn.ReLU(), nn.Dropout(0.1))
        self.classify = nn.Linear(PLACE, classes)
        # every class as likely as its share at first, or what is not there would drown what is (Lin et al. 2017, 3.3)
        nn.init.constant_(self.classify.bias, -math.log(classes - 1))

    def forward(self, features: Tensor) -> Tensor:
        columns = F.interpolate(self.body(features), size=COLUMNS * self.positions, mode="linear", align_corners=False)
        held = self.rest(self.place(columns.flatten(1))).view(-1, self.positions, PLACE)
        logits = self.classify(held)
        blank = torch.full_like(logits, BETWEEN)
        blank[..., 0] = 0.0
        return torch.stack([logits, blank], 2).flatten(1, 2)[:, :-1]


class Network(nn.Module):
    """A trunk and one or two heads. `forward` gives each head's logits (N, T, classes) by its name."""

    def __init__(
        self, size: str, heads: tuple[HeadName, ...], classes: int, positions: int = 0, widths: Widths = WHOLE
    ) -> None:
        super().__init__()
        form = SIZES[size]
        self.trunk = Trunk(form, widths.blocks)
        features = self.trunk.features
        make: dict[HeadName, Callable[[], nn.Module]] = {
            "conv": lambda: ConvHead(features, widths.head or form.conv_head, classes),
            "lstm": lambda: LstmHead(features, form.lstm_head, classes),
            "fixed": lambda: FixedHead(features, form.fixed_head, classes, positions),
        }
        self.heads = nn.ModuleDict({h: make[h]() for h in heads})

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        features = self.trunk(x)
        return {name: head(features) for name, head in self.heads.items()}
