"""An evolutionary search for looks in which rendered text is like given pictures, whose labels nobody need know.

A look is what the dice of `augment.style` show for a whole picture (paper, ink, font, waves, lines, noise, ...); what
they show for single characters stays free. Looks are bred: those go on whose pictures are near the given ones in what
the first layers of a reader, rows, greys and colours say, as seen from how much the given ones differ among themselves,
that a linear discriminator does not tell from them, and that the reader still reads.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from sklearn.covariance import ledoit_wolf
from torch import Tensor
from torch.nn import functional as F

from augment.glyphs import Glyphs
from augment.methods.render import draw
from augment.style import Dice, Floats, keys_of, throw_style
from recognizer.charset import Charset
from recognizer.training.batches import normalised
from recognizer.training.checkpoint import build, read_weights

Looks = Mapping[int, Floats]  # what dice show for N pictures (N, k), by the number of the throw
KEPT = 5  # of so many children one goes on
LAYERS = 2  # blocks of the trunk that are looked at: deeper ones see characters
ILLEGIBLE, CAPPED = 1.0, 20.0  # nats a character from which a made picture counts as less fit, and at most
APART, UNREAD = 0.3, 0.15  # what a discriminator's and a nat's word weigh beside the distance
SEEN = 2  # readings of a parent that are remembered
AT_ONCE, PIXELS = 200, 2_500_000  # pictures that are drawn or seen together, and pixels of them, at most
RIDGE = 1e-6  # of a mean variance, that a covariance has at least: pictures may hardly differ


class Led(Dice):
    """Dice that show for a whole picture what looks say, and for its characters and lines, and what looks lack, what
    those of keys would. `shown` holds all that was shown for whole pictures."""

    def __init__(self, keys: NDArray[np.uint64], looks: Looks) -> None:
        super().__init__(keys)
        self.shown = dict(looks)
        self._every, self._rows = keys, np.arange(len(keys))

    def throw(self, each: int = 0) -> Floats:
        return super().throw(each) if each else self.whole(1)[:, 0]

    def whole(self, each: int) -> Floats:
        if self._throws + 1 in self.shown:
            self._throws += 1
        else:
            own, self._keys = self._keys, self._every  # of all pictures, whichever these are
            new = super().throw(each)
            self.shown[self._throws], self._keys = new, own
        return self.shown[self._throws][self._rows]

    def of(self, rows: NDArray[np.int64]) -> Dice:
        some = Led(self._keys[rows], {})
        some.shown, some._every, some._rows = self.shown, self._every, self._rows[rows]
        some._throws = 2**20 + self._throws
        return some


def draw_in(
    looks: Looks, texts: Sequence[str], seeds: Sequence[int], size: tuple[int, int], glyphs: Glyphs,
    device: torch.device,
) -> tuple[list[Image.Image], dict[int, Floats]]:  # fmt: skip
    """RGB pictures of N texts in looks (N, k), what these lack by the seeds; and the looks with that."""
    pictures: list[Image.Image] = []
    whole: list[dict[int, Floats]] = []
    some = max(1, min(AT_ONCE, PIXELS // (size[0] * size[1])))
    for first in range(0, len(texts), some):
        part = slice(first, first + some)
        dice = Led(keys_of(texts[part], seeds[part]), {throw: shown[part] for throw, shown in looks.items()})
        style = throw_style(texts[part], seeds[part], size, glyphs, 1.0, dice)
        drawn = (draw(style, size, glyphs, 3, device, layout=False).pictures * 255).round().to(torch.uint8).cpu()
        pictures += [Image.fromarray(picture.permute(1, 2, 0).numpy()) for picture in drawn]
        whole.append(dice.shown)
    return pictures, {throw: np.concatenate([own[throw] for own in whole]) for throw in whole[0]}


def bred(looks: Looks, dice: Dice, count: int, anew: float, other: float, shift: float) -> dict[int, Floats]:
    """The looks of `count` children: each of one parent, of which some throws are another's, some new, and half of them
    shifted a little. `dice` are of as many pictures."""
    parents = len(next(iter(looks.values())))
    one, two = ((dice.throw() * parents).astype(int) for _ in range(2))
    found = {}
    for throw, shown in looks.items():
        own = shown[np.where(dice.throw() < other, two, one)]
        moved = own + np.where(dice.throw() < 0.5, shift, 0.0)[:, None] * 3**0.5 * (2 * dice.throw(own.shape[1]) - 1)
        kept = np.where((moved >= 0) & (moved < 1), moved, own)
        found[throw] = np.where((dice.throw() < anew)[:, None], dice.throw(own.shape[1]), kept)
    return found


class Eye:
    """What a reader's first layers, rows, greys and colours say of pictures, and how hard their texts are to read."""

    def __init__(self, weights: Path, device: torch.device) -> None:
        state, described = read_weights(weights)
        self._network = build(state, described).requires_grad_(False).to(device)
        self._charset, self._frame, self._head = Charset(described.charset), described.frame, described.head
        self._device = device

    def see(self, pictures: Sequence[Image.Image], texts: Sequence[str] | None = None) -> tuple[Floats, Floats]:
        """Features (N, F) of RGB pictures, and nats a character of the texts (N,), the best of their cases: of a text
        that the reader cannot spell as many as of most others, 0 where there are no texts or it can spell none."""
        greys = [torch.from_numpy(self._frame.fit(picture)) for picture in pictures]
        features: dict[int, Floats] = {}
        nats = np.full(len(pictures), np.nan)
        for width in {grey.shape[1] for grey in greys}:
            own = [i for i, grey in enumerate(greys) if grey.shape[1] == width]
            for first in range(0, len(own), AT_ONCE):
                some = own[first : first + AT_ONCE]
                seen, logits = self._look(torch.stack([greys[i] for i in some]).to(self._device))
                features |= dict(zip(some, seen, strict=True))
                if texts is not None and self._head != "fixed":
                    nats[some] = self._nats(logits.log_softmax(2), [texts[i] for i in some])
        inner = np.stack([features[i] for i in range(len(pictures))])
        known = nats[~np.isnan(nats)]
        nats = np.where(np.isnan(nats), np.median(known) if len(known) else 0.0, nats)
        return np.concatenate([inner, np.stack([_colours(picture) for picture in pictures])], 1), nats

    def _look(self, grey: Tensor) -> tuple[NDArray[np.float64], Tensor]:
        layers: list[Tensor] = []
        trunk, x = self._network.trunk, normalised(grey.float()[:, None])
        with torch.inference_mode(), ExitStack() as hooks:
            for layer in (trunk.stem, *trunk.blocks[:LAYERS]):
                hooks.callback(layer.register_forward_hook(lambda _, given, made: layers.append(made)).remove)
            logits = self._network(x)[self._head].float()
        parts = [f for y in layers for f in (y.mean((2, 3)), y.std((2, 3)))]
        parts += [layers[0].mean(3).flatten(1), x[:, 0].mean(2), x[:, 0].std(2)]
        parts += [torch.stack([(grey.flatten(1) < t).float().mean(1) for t in range(16, 256, 16)], 1)]
        return torch.cat(parts, 1).double().cpu().numpy(), logits

    def _nats(self, read: Tensor, texts: Sequence[str]) -> Floats:
        found = np.full(len(texts), np.nan)
        for case in (str, str.lower, str.upper):
            own = [i for i, text in enumerate(texts) if not self._charset.missing(case(text))]
            ids = [torch.tensor(self._charset.encode(case(texts[i]))) for i in own]
            if own:
                lengths = torch.tensor([len(i) for i in ids])
                frames = torch.full((len(own),), read.shape[1])
                targets = torch.cat(ids).to(read.device)
                loss = F.ctc_loss(read[own].transpose(0, 1), targets, frames, lengths, reduction="none").cpu() / lengths
                found[own] = np.fmin(found[own], loss.double().numpy().clip(max=CAPPED))
        return found


def _covariance(features: Floats) -> Floats:
    """Of (N, F) features, shrunk (Ledoit and Wolf 2004), (F, F)."""
    found = np.asarray(ledoit_wolf(features)[0])
    return found + (RIDGE * float(np.trace(found)) / len(found) + 1e-9) * np.eye(len(found))


def _colours(picture: Image.Image) -> Floats:
    """Mean and spread of two opponent colours of an RGB picture, and of how far it is from grey."""
    colours = np.asarray(picture, np.float64) / 255
    red, green, blue = colours.transpose(2, 0, 1)
    opponent = (red - green, blue - (red + green) / 2, colours.max(2) - colours.min(2))
    return np.array([f(own) for own in opponent for f in (np.mean, np.std)])


@dataclass(frozen=True)
class Population:
    """Looks that go on, the fittest first: how far from fit each was on the readings that are remembered, and how
    many those are."""

    looks: dict[int, Floats]
    score: Floats
    seen: Floats


class Search:
    """Breeds looks for given RGB pictures. `texts(seed, count)` are those that pictures are made of, `size` theirs."""

    def __init__(
        self, pictures: Sequence[Image.Image], texts: Callable[[int, int], list[str]], size: tuple[int, int],
        glyphs: Glyphs, eye: Eye, children: int, generations: int, seed: int, device: torch.device,
    ) -> None:  # fmt: skip
        self._texts, self._size, self._glyphs, self._eye, self._device = texts, size, glyphs, eye, device
        self._children, self._generations, self._seed = children, generations, seed
        real, _ = eye.see(pictures)
        self._middle, self._deviation = real.mean(0), real.std(0) + 0.02 * np.abs(real).mean() + 1e-4
        real = (real - self._middle) / self._deviation
        # what the discriminator does not learn, and does
        self._judged, self._judging = real[::3], np.delete(real, np.s_[::3], 0)
        self._whiten = np.linalg.cholesky(np.linalg.inv(_covariance(self._judging)))
        self.real = float(np.median(self._far(self._judged)))  # how far given pictures are themselves

    def _far(self, features: Floats) -> Floats:
        return np.asarray(np.sqrt(((features @ self._whiten) ** 2).mean(1)))

    def step(self, generation: int, parents: Population | None) -> tuple[Population, dict[str, float]]:
        """The parents of the next generation, the first from none, and figures: how far their pictures are from the
        given ones, beside how far these are themselves (`self.real`), how many nats a character of their text is
        unlikely by, and the share of pairs that a discriminator tells apart, .5 where it can tell nothing."""
        rng, kept = np.random.default_rng([self._seed, generation, 29]), self._children // KEPT
        wild = 1 - generation / max(self._generations - 1, 1)
        count = self._children if parents else 3 * self._children
        looks: dict[int, Floats] = {}
        score, seen = np.zeros(count), np.zeros(count)
        if parents is not None:
            dice = Dice(rng.integers(2**63, size=count).astype(np.uint64))
            looks = bred(parents.looks, dice, count, 0.001 + 0.007 * wild, 0.2, 0.005 + 0.02 * wild)
            looks = {throw: np.concatenate([own, parents.looks[throw]]) for throw, own in looks.items()}
            score, seen = np.concatenate([score, parents.score]), np.concatenate([seen, parents.seen])
        texts = self._texts(int(rng.integers(2**31)), len(seen))
        seeds = rng.integers(2**40, size=len(texts)).tolist()
        made, looks = draw_in(looks, texts, seeds, self._size, self._glyphs, self._device)
        features, nats = self._eye.see(made, texts)
        features = ((features - self._middle) / self._deviation).clip(-8, 8)
        far, (told, short) = self._far(features), self._told_apart(features, features[count:] if parents else features)
        now = far + APART * short + UNREAD * np.maximum(nats - ILLEGIBLE, 0)
        weight = np.minimum(seen, SEEN)
        now = (now + weight * score) / (1 + weight)
        best = np.argsort(now, kind="stable")[:kept]
        figures = {"far": float(np.median(far[best])), "nats": float(np.median(nats[best]))}
        figures["told_apart"] = float(told[best].mean())
        return Population({throw: own[best] for throw, own in looks.items()}, now[best], seen[best] + 1), figures

    def _told_apart(self, features: Floats, others: Floats) -> tuple[Floats, Floats]:
        """By a linear discriminator that learned given pictures and `others`: the share of given ones that are more
        like the given than each of N, and how far each falls short of their median, in their deviations."""
        mine = self._judging
        spread = _covariance(np.concatenate([mine - mine.mean(0), others - others.mean(0)]))
        axis = np.linalg.solve(spread, mine.mean(0) - others.mean(0))
        axis /= np.sqrt(axis @ spread @ axis)
        theirs, own = self._judged @ axis, features @ axis
        short = np.maximum(np.median(theirs) - own, 0) / max(theirs.std(), 0.3)
        return (theirs[:, None] > own[None]).mean(0), short
