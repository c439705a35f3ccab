"""Rendered pictures in the look of pictures without labels: a search over the dice that `render` throws.

    python benchmarks/looks.py --pictures DIR --charset upper+digits --length 4-6 --out OUT [--limit 300]
        [--generations 14] [--each 800] [--count 4000] [--fonts FILE ...] [--seed 0]

A look is what the dice show for a whole picture (paper, ink, font, waves, lines, noise, ...); what they show for single
characters stays free. Looks are bred: those go on whose pictures are near the given ones in what the first layers of
the default reader, rows and greys say, as seen from how much the given ones differ among themselves, that a
discriminator does not tell from them, and that the reader still reads. No label is used. `OUT/made` then holds
`--count` labelled pictures of these looks to train on, and `OUT/sheet.png` given ones above made ones. Prints a line
for each generation.
"""

from __future__ import annotations

import argparse
import time
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from sklearn.covariance import ledoit_wolf
from torch.nn import functional as F

from augment.glyphs import Glyphs, font_files, load_glyphs
from augment.methods.render import draw
from augment.sheet import Cell, contact_sheet
from augment.style import Dice, keys_of, throw_style
from augment.synthesize import random_texts
from recognizer.charset import NAMED, Charset
from recognizer.images import MAX_PIXELS, open_picture
from recognizer.samples import FolderWriter, list_pictures
from recognizer.training.batches import normalised
from recognizer.training.checkpoint import DEFAULT, build, read_weights

Floats = NDArray[np.float64]
Looks = dict[int, Floats]  # what dice show (N, k), by the number of the throw
LAYERS = 2  # blocks of the trunk that are looked at: deeper ones see characters
ILLEGIBLE = 1.0  # nats a character from which a made picture counts as less fit
AT_ONCE = 200


class Led(Dice):
    """Dice that show for a whole picture what looks say, and throw for these what they lack."""

    def __init__(self, keys: NDArray[np.uint64], looks: Looks, rng: np.random.Generator) -> None:
        super().__init__(keys)
        self._looks, self._rng, self._all, self._rows = looks, rng, len(keys), np.arange(len(keys))

    def throw(self, each: int = 0) -> Floats:
        fonts = each == 8 and self._throws == 2  # fonts tried for the whole text
        if each and not fonts:
            return super().throw(each)
        shown = self._led(max(each, 1))
        return shown if each else shown[:, 0]

    def bell(self) -> Floats:
        return np.asarray((self._led(4).sum(1) - 2) * 3**0.5)

    def of(self, rows: NDArray[np.int64]) -> Dice:
        some = Led(self._keys[rows], self._looks, self._rng)
        some._throws, some._all, some._rows = 2**20 + self._throws, self._all, self._rows[rows]
        return some

    def _led(self, each: int) -> Floats:
        self._throws += 1
        if self._throws not in self._looks:
            self._looks[self._throws] = self._rng.random((self._all, each))
        return self._looks[self._throws][self._rows]


def bred(looks: Looks, count: int, rng: np.random.Generator, anew: float, other: float, shift: float) -> Looks:
    """Looks of `count` children: each of one parent, of which some throws are the other parent's, some new, and half of
    them shifted a little."""
    parents = len(next(iter(looks.values())))
    one, two = rng.integers(parents, size=(2, count))
    found = {}
    for throw, shown in looks.items():
        parent = shown[np.where(rng.random(count) < other, two, one)]
        moved = parent + shift * rng.standard_normal(parent.shape) * (rng.random(count) < 0.5)[:, None]
        kept = np.where((moved >= 0) & (moved < 1), moved, parent)
        found[throw] = np.where((rng.random(count) < anew)[:, None], rng.random(parent.shape), kept)
    return found


def joined(a: Looks, b: Looks, count: int, rng: np.random.Generator) -> Looks:
    """The looks of both; what `b`, of `count` pictures, lacks is thrown."""
    return {
        throw: np.concatenate([shown, b[throw] if throw in b else rng.random((count, shown.shape[1]))])
        for throw, shown in a.items()
    }


def drawn(
    looks: Looks, texts: list[str], size: tuple[int, int], glyphs: Glyphs, rng: np.random.Generator
) -> list[Image.Image]:
    """Pictures of texts in looks (N, k), which are completed by what was thrown."""
    pictures = []
    for first in range(0, len(texts), AT_ONCE):
        some = texts[first : first + AT_ONCE]
        own = {throw: shown[first : first + AT_ONCE] for throw, shown in looks.items()}
        keys = keys_of(some, rng.integers(2**40, size=len(some)).tolist())
        style = throw_style(some, [0] * len(some), size, glyphs, 1.0, Led(keys, own, rng))
        shaded = draw(style, size, glyphs, 3, torch.device("cpu"), layout=False).pictures
        pictures += [Image.fromarray(p.permute(1, 2, 0).numpy()) for p in (shaded * 255).round().to(torch.uint8)]
        for throw, shown in own.items():
            if throw not in looks:
                looks[throw] = rng.random((len(texts), shown.shape[1]))
            looks[throw][first : first + AT_ONCE] = shown
    return pictures


class Eye:
    """What the default reader, rows and greys say of pictures, and how hard their texts are to read."""

    def __init__(self) -> None:
        state, described = read_weights(DEFAULT)
        self._network = build(state, described).eval()
        self._charset, self._frame = Charset(described.charset), described.frame

    @torch.inference_mode()
    def see(self, pictures: list[Image.Image], texts: list[str] | None = None) -> tuple[Floats, Floats]:
        """Features (N, F), and nats a character of the texts (N,), the better of their cases; 0 without texts."""
        greys = [torch.from_numpy(self._frame.fit(picture)) for picture in pictures]
        features: dict[int, Floats] = {}
        nats = np.zeros(len(pictures))
        for width in {grey.shape[1] for grey in greys}:
            own = [i for i, grey in enumerate(greys) if grey.shape[1] == width]
            for first in range(0, len(own), AT_ONCE):
                some = own[first : first + AT_ONCE]
                grey = torch.stack([greys[i] for i in some]).float()[:, None]
                x = normalised(grey)
                trunk = self._network.trunk
                layers = [x, trunk.stem(x)]
                for block in trunk.blocks:
                    layers.append(block(layers[-1]))
                parts = [f for y in layers[1 : 2 + LAYERS] for f in (y.mean((2, 3)), y.std((2, 3)))]
                parts += [layers[1].mean(3).flatten(1), x[:, 0].mean(2), x[:, 0].std(2)]
                parts += [torch.stack([(grey.flatten(1) < t).float().mean(1) for t in range(16, 256, 16)], 1)]
                features |= dict(zip(some, torch.cat(parts, 1).double().numpy(), strict=True))
                if texts is not None:
                    logits = self._network.heads["conv"](layers[-1].flatten(1, 2))
                    nats[some] = self._nats(logits.log_softmax(2), [texts[i] for i in some])
        return np.stack([features[i] for i in range(len(pictures))]), np.minimum(nats, 20)

    def _nats(self, read: torch.Tensor, texts: list[str]) -> Floats:
        found = []
        for case in (str, str.lower, str.upper):
            ids = [torch.tensor(self._charset.encode(case(t))) for t in texts]
            lengths = torch.tensor([len(i) for i in ids])
            frames = torch.full((len(texts),), read.shape[1])
            found.append(F.ctc_loss(read.transpose(0, 1), torch.cat(ids), frames, lengths, reduction="none") / lengths)
        return np.asarray(torch.stack(found).amin(0).double().numpy())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pictures", type=Path, required=True)
    parser.add_argument("--charset", required=True)
    parser.add_argument("--length", required=True)
    parser.add_argument("--fonts", nargs="*", default=[])
    parser.add_argument("--limit", type=int, default=300)
    parser.add_argument("--generations", type=int, default=14)
    parser.add_argument("--each", type=int, default=800)
    parser.add_argument("--count", type=int, default=4000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, required=True)
    given = parser.parse_args()
    torch.set_num_threads(1)
    given.out.mkdir(parents=True)
    rng, eye = np.random.default_rng(given.seed), Eye()
    charset = Charset(NAMED.get(given.charset, given.charset))
    low, _, high = given.length.partition("-")
    lengths = range(int(low), int(high or low) + 1)
    files = list_pictures(given.pictures)[: given.limit]
    pictures = [open_picture(file.read_bytes(), "RGB", MAX_PIXELS) for file in files]
    size = Counter(p.size for p in pictures).most_common(1)[0][0]
    glyphs = load_glyphs(
        tuple(font_files(tuple(given.fonts))), "".join(sorted({*NAMED["letters+digits"], *charset.characters}))
    )

    def texts(count: int) -> list[str]:
        return random_texts(charset, lengths, count, int(rng.integers(2**31)))

    real, _ = eye.see(pictures)
    middle, deviation = real.mean(0), real.std(0) + 0.02 * np.abs(real).mean() + 1e-4
    real = (real - middle) / deviation
    judged, judging = real[::3], np.delete(real, np.s_[::3], 0)  # what the discriminator does not learn, and does
    whiten = np.linalg.cholesky(np.linalg.inv(ledoit_wolf(judging)[0]))

    def far(features: Floats) -> Floats:
        return np.asarray(np.sqrt(((features @ whiten) ** 2).mean(1)))

    kept, score, seen = given.each // 5, np.empty(0), np.empty(0)
    print(f"the given pictures themselves: {np.median(far(judged)):.2f}", flush=True)
    pool: Looks = {}
    for generation in range(given.generations):
        start, calm = time.monotonic(), 1 - generation / max(given.generations - 1, 1)
        count = given.each if pool else 3 * given.each
        looks = bred(pool, count, rng, 0.01 + 0.06 * calm, 0.2, 0.02 + 0.08 * calm) if pool else {}
        shown = texts(count)
        made = drawn(looks, shown, size, glyphs, rng)
        if pool:
            again = texts(kept)
            shown, made = shown + again, made + drawn(pool, again, size, glyphs, rng)
            looks = joined(looks, pool, kept, rng)
        features, nats = eye.see(made, shown)
        features = ((features - middle) / deviation).clip(-8, 8)
        others = features[-kept:] if pool else features
        spread = ledoit_wolf(np.concatenate([judging - judging.mean(0), others - others.mean(0)]))[0]
        apart = np.linalg.solve(spread, judging.mean(0) - others.mean(0))
        apart /= np.sqrt(apart @ spread @ apart)
        theirs, own = judged @ apart, features @ apart
        short = np.maximum(np.median(theirs) - own, 0) / max(theirs.std(), 0.3)  # beyond it nothing is earned
        now = far(features) + 0.3 * short + 0.15 * np.maximum(nats - ILLEGIBLE, 0)
        before = np.concatenate([np.zeros(count), seen])
        weight = np.minimum(before, 2)
        now = (now + weight * np.concatenate([np.zeros(count), score])) / (1 + weight)
        best = np.argsort(now, kind="stable")[:kept]
        pool, score, seen = {throw: x[best] for throw, x in looks.items()}, now[best], before[best] + 1
        near, told = np.median(far(features[best])), (theirs[:, None] > own[best][None]).mean()
        took = time.monotonic() - start
        print(f"generation {generation}: as far as {near:.2f}, told apart {told:.3f}; {took:.0f} s", flush=True)
    arrays: dict[str, Any] = {str(throw): x for throw, x in pool.items()}
    np.savez(given.out / "looks.npz", **arrays)
    shown = texts(given.count)
    made = drawn(bred(pool, given.count, rng, 0.003, 0.1, 0.01), shown, size, glyphs, rng)
    with FolderWriter(given.out / "made") as folder:
        for i, (text, picture) in enumerate(zip(shown, made, strict=True)):
            picture.save(folder.path(f"{i:05}.png"))
            folder.add(f"{i:05}.png", None, text)
    shown_first = [*pictures[:24], *made[:60]]
    rows = [[Cell(picture) for picture in shown_first[i : i + 6]] for i in range(0, len(shown_first), 6)]
    contact_sheet(rows, given.out / "sheet.png")


if __name__ == "__main__":
    main()
