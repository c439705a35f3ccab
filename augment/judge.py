"""A frozen reader that tells a generator whether its pictures show their text, with gradients."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from augment.canvas import Canvas
from recognizer.charset import Charset
from recognizer.images import COLOUR, LUMA, OTHER_WAY, STRIDE, Frame, text_parts
from recognizer.training.batches import normalised
from recognizer.training.checkpoint import build, read_weights


class Judge(nn.Module):
    """Reads pictures (N, 3, HEIGHT, W) of -1 to 1 whose texts are in a generator's `charset`.

    `known_as` names characters of the reader's by what the generator calls them, where labels have another case than
    pictures.
    """

    table: Tensor

    def __init__(self, weights: Path, charset: Charset, known_as: Mapping[str, str]) -> None:
        super().__init__()
        state, description = read_weights(weights)
        own = Charset(description.charset)
        self.network, self.head, self.frame = (
            build(state, description).requires_grad_(False),
            description.head,
            description.frame,
        )
        back = {shown: label for label, shown in known_as.items()}
        ids = [0] + [own.encode(c if c in own else back.get(c, own.characters[0]))[0] for c in charset.characters]
        self.register_buffer("table", torch.tensor(ids), persistent=False)

    def forward(self, pictures: Tensor, canvas: Canvas) -> tuple[Tensor, Tensor]:
        """CTC a character, and the mean entropy of the frames, nats (N,) each."""
        grey = grey_of((pictures * 0.5 + 0.5) * 255)
        h, w = grey.shape[2:]
        width = -(-self.frame.width_of(w, h) // STRIDE) * STRIDE
        if self.frame.trim:
            grey = text_of(grey, self.frame)
        elif (h, w) != (self.frame.height, width):
            grey = F.interpolate(grey, (self.frame.height, width), mode="bilinear", align_corners=False)
        self.network.eval()
        logits = self.network(normalised(grey))[self.head]
        held = logits.float().log_softmax(-1)
        frames = torch.full_like(canvas.lengths, held.shape[1])
        # of a text that has no alignment the loss is 0, not infinite: its gradient would be no number
        loss = F.ctc_loss(
            held.transpose(0, 1),
            self.table[canvas.targets],
            frames,
            canvas.lengths,
            reduction="none",
            zero_infinity=True,
        )
        return loss / canvas.lengths, -(held.exp() * held).sum(-1).mean(1)


def text_of(greys: Tensor, frame: Frame) -> Tensor:
    """Of grey pictures (N, 1, H, W) of 0 to 255 the parts in which their texts stand, as a reader with that frame sees
    them, with gradients; all at the width of the middle one."""
    seen = greys.detach()[:, 0].clamp(0, 255).round().byte().cpu().numpy()
    parts = text_parts(seen)
    h, w = greys.shape[2:]
    wide, tall = np.median((parts[:, 2:] - parts[:, :2]) * (w, h), 0).tolist()
    width = -(-frame.width_of(wide, tall) // STRIDE) * STRIDE
    left, top, right, bottom = torch.from_numpy(parts).to(greys).unbind(1)
    none = torch.zeros_like(left)
    across = torch.stack([right - left, none, left + right - 1], 1)
    down = torch.stack([none, bottom - top, top + bottom - 1], 1)
    grid = F.affine_grid(torch.stack([across, down], 1), [len(greys), 1, frame.height, width], align_corners=False)
    return F.grid_sample(greys, grid, mode="bilinear", padding_mode="border", align_corners=False)


def grey_of(pictures: Tensor) -> Tensor:
    """What `recognizer.images.grey_of` makes of pictures (N, 3, H, W) of 0 to 255, with gradients (N, 1, H, W)."""
    paper = pictures.detach().flatten(2).median(2).values[..., None, None]
    luma = torch.tensor(LUMA, device=pictures.device)[:, None, None]
    apart = pictures - paper
    brighter, darker = apart.amax(1, keepdim=True), apart.amin(1, keepdim=True)
    far = [own.detach().clamp(min=0).square().sum((1, 2, 3), keepdim=True) for own in (brighter, -darker)]
    bright = far[0] > far[1]
    telling, other = torch.where(bright, brighter, darker), torch.where(bright, darker, brighter)
    telling = torch.where(other.abs() > 2 * telling.abs() + OTHER_WAY, other, telling)
    telling = telling + (paper * luma).sum(1, keepdim=True)
    luminance = (pictures * luma).sum(1, keepdim=True)
    return (COLOUR * telling + (1 - COLOUR) * luminance).clamp(0, 255)
