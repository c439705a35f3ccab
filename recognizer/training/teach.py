"""Learn from another reader frame by frame, not from labels alone.

Hinton et al. 2015, "Distilling the Knowledge in a Neural Network", arXiv 1503.02531, for the frames of CTC: teacher and
pupil look at the same picture and divide it into the same frames. Several teachers teach their mean.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import torch
from torch import Tensor, nn

from recognizer.charset import Charset
from recognizer.errors import UserError
from recognizer.images import Frame
from recognizer.training.checkpoint import build, names_in, read_weights


def frame_of_teachers(teachers: Sequence[str]) -> Frame:
    """What all teachers see of a picture.

    Raises:
        UserError: no weights, or teachers that do not see the same.
    """
    frames = [read_weights(Path(teacher))[1].frame for teacher in teachers]
    if len(set(frames)) > 1:
        raise UserError("the teachers do not see pictures alike: train them with the same frame")
    return frames[0]


class Teachers:
    """Readers that teach, each of which must know every character of `charset`, by its own name or by what it is
    `known_as` to that teacher: labels often have another case than pictures.

    Raises:
        UserError: no weights, ones of a fixed-length head, or a character that a teacher does not know.
    """

    def __init__(
        self, teachers: Sequence[str], charset: Charset, known_as: Sequence[Mapping[str, str]], device: torch.device
    ) -> None:
        self._networks: list[tuple[nn.Module, str, Tensor]] = []
        for teacher, known in zip(teachers, known_as, strict=True):
            state, description = read_weights(Path(teacher))
            own = Charset(description.charset)
            names = names_in(own, charset.characters, known)
            if description.head == "fixed":
                raise UserError(f"{teacher} has a fixed head, which has no frames to teach")
            if unknown := "".join(n for n in names if n not in own):
                raise UserError(f"{teacher} does not know {unknown!r} and cannot teach it")
            rows = torch.tensor([0, *own.encode("".join(names))], device=device)
            network = build(state, description).requires_grad_(False).to(device)
            self._networks.append((network.to(memory_format=torch.channels_last), description.head, rows))

    @torch.no_grad()
    def __call__(self, pictures: Tensor) -> Tensor:
        """Log probabilities (N, T, classes) of normalised pictures, in the classes of the pupil."""
        taught = [network(pictures)[head][..., rows].float().log_softmax(-1) for network, head, rows in self._networks]
        return torch.stack(taught).logsumexp(0).log_softmax(-1)


def distillation(logits: Tensor, taught: Tensor, lengths: Tensor) -> Tensor:
    """What the frames of logits (N, T, classes) lack of the teachers' log probabilities, (N,): the Kullback-Leibler
    divergence, summed over a picture's frames, in nats a character."""
    own = logits.float().log_softmax(-1)
    return (taught.exp() * (taught - own)).sum((1, 2)) / lengths
