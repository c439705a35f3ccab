"""What is in the data: sizes, lengths, characters, copies, leaks, light and colour; what of it bears on difficulty; and
whether there is a signal to learn at all, told by a baseline before anyone waits for a network."""

from __future__ import annotations

import math
import warnings
from collections import Counter
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from scipy import stats
from sklearn.exceptions import ConvergenceWarning
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import GroupKFold, cross_val_predict
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from sklearn.tree import DecisionTreeClassifier

from recognizer.data.copies import MOST, near_pairs
from recognizer.images import PictureError, open_picture
from recognizer.samples import Sample, printable

FEW = 10  # times that a character should be seen, to be learned
CROP = (12, 16)  # width and height of a character's crop
MOST_CROPS = 6000  # that a baseline learns from
SHUFFLES = 3  # of the labels, that a baseline is held against
SURE, FLAT, TELLING = 1e-3, 0.01, 60  # p of a signal, and of none where so many pictures or more were looked at


@dataclass(frozen=True)
class Finding:
    """One thing that a diagnosis says: what it saw, with its figure, and what to do about it. `bad` are those that
    spoil a training or a figure."""

    what: str
    advice: str
    bad: bool = False


@dataclass(frozen=True)
class Test:
    """What a feature has to do with being misread: its statistic, and p corrected for all tests that were made."""

    feature: str
    test: str
    statistic: float
    p: float
    told: str


@dataclass(frozen=True)
class Signal:
    """What a baseline reads of characters out of fold, beside the same baseline on shuffled labels."""

    crops: int
    pictures: int
    logistic: float
    tree: float
    shuffled: float
    p: float

    @property
    def enough(self) -> bool:
        """Whether there was anything to tell apart."""
        return not math.isnan(self.logistic)

    @property
    def found(self) -> bool:
        return self.p < SURE

    @property
    def none(self) -> bool:
        """Whether there is no signal, as far as so many pictures tell. Of a few, or near the bound, nobody knows."""
        return self.enough and self.p >= FLAT and self.pictures >= TELLING


@dataclass
class Described:
    """What is in some labelled pictures, those that can be opened."""

    samples: Sequence[Sample]
    unopened: int
    sizes: Counter[tuple[int, int]]
    lengths: Counter[int]
    characters: Counter[str]
    by_position: Mapping[int, Counter[str]]
    features: Mapping[str, NDArray[np.float64]]  # by name, one value a picture
    copies: Sequence[tuple[str, str, bool]]  # pairs of names, and whether their labels differ
    findings: list[Finding] = field(default_factory=list)


def features_of(picture: Image.Image, text: str) -> dict[str, float]:
    """What a person would see of a picture at once."""
    grey = np.asarray(picture.convert("L"), np.float64)
    hsv = np.asarray(picture.convert("HSV"), np.float64)
    edges = np.abs(np.diff(grey, axis=1)).mean() if grey.shape[1] > 1 else 0.0
    return {
        "width": float(picture.width), "height": float(picture.height), "characters": float(len(text)),
        "pixels a character": picture.width / max(len(text), 1), "brightness": float(grey.mean()),
        "contrast": float(np.subtract(*np.percentile(grey, [95, 5]))), "saturation": float(hsv[..., 1].mean() / 255),
        "edges": float(edges), "digits": float(sum(c.isdigit() for c in text) / max(len(text), 1)),
    }  # fmt: skip


def describe(samples: Sequence[Sample], held_out: Sequence[Sample] = ()) -> Described:
    """What is in the samples; `held_out` are those that must not be among them, as a test set."""
    opened: list[tuple[Sample, dict[str, float]]] = []
    for sample in samples:
        with suppress(PictureError):
            opened.append((sample, features_of(open_picture(sample.read_bytes(), "RGB"), sample.text)))
    texts = [s.text for s, _ in opened]
    positions: dict[int, Counter[str]] = {}
    for text in texts:
        for k, c in enumerate(text):
            positions.setdefault(k, Counter())[c] += 1
    names, n = (list(opened[0][1]) if opened else []), len(samples)
    pairs = near_pairs([*samples, *held_out])
    found = Described(
        [s for s, _ in opened], n - len(opened), Counter((int(f["width"]), int(f["height"])) for _, f in opened),
        Counter(map(len, texts)), Counter(c for t in texts for c in t), positions,
        {name: np.array([f[name] for _, f in opened]) for name in names},
        [(samples[i].name, samples[j].name, samples[i].text != samples[j].text) for i, j, _ in pairs if j < n],
    )  # fmt: skip
    found.findings += _findings(found)
    if (total := n + len(held_out)) > MOST:
        found.findings.append(Finding(
            f"copies were looked for among the first {MOST:,} of {total:,} pictures", "diagnose part of them: --limit"
        ))  # fmt: skip
    if leaks := {j for i, j, _ in pairs if i < n <= j}:
        found.findings.append(Finding(
            f"{len(leaks)} of {len(held_out)} pictures to test on are nearly the same as one to train on",
            "take them out of one of the two: what is read in them says nothing", True,
        ))  # fmt: skip
    return found


def _findings(d: Described) -> list[Finding]:
    found = []
    if d.unopened:
        found.append(Finding(f"{d.unopened} pictures cannot be opened", "recognizer check lists them", True))
    rare = sorted(c for c, n in d.characters.items() if n < FEW)
    if rare:
        told = ", ".join(f"{c!r} {d.characters[c]}" for c in rare[:12]) + (", ..." if len(rare) > 12 else "")
        found.append(Finding(
            f"{len(rare)} of {len(d.characters)} characters are seen fewer than {FEW} times: {told}",
            "label pictures that show them, or make some: augment synthesize --method splice or render",
        ))  # fmt: skip
    if d.characters and (ratio := max(d.characters.values()) / min(d.characters.values())) > 20:
        found.append(Finding(
            f"the commonest character is seen {ratio:.0f} times as often as the rarest",
            "try --loss balanced-ctc, and look at recall by character, not at exact match alone",
        ))  # fmt: skip
    for k, own in sorted(d.by_position.items()):
        (c, n), total = own.most_common(1)[0], own.total()
        if total > 20 and n == total:
            found.append(Finding(
                f"character {k + 1} is always {c!r}",
                "a reader learns that and not its shape: is it so where you will use it?",
            ))  # fmt: skip
    same = sum(not differ for *_, differ in d.copies)
    if differ := sum(differ for *_, differ in d.copies):
        found.append(Finding(
            f"{differ} pairs of nearly equal pictures have two labels", "recognizer audit-labels shows them", True
        ))  # fmt: skip
    if same:
        found.append(Finding(
            f"{same} pairs of pictures are nearly the same", "a split may put one to train and one to test: drop one"
        ))  # fmt: skip
    if len(d.lengths) > 1 and min(d.lengths.values()) == 1:
        once = sorted(k for k, n in d.lengths.items() if n == 1)
        found.append(Finding(
            f"labels of {', '.join(map(str, once))} characters are seen once", "are they right? recognizer audit-labels"
        ))  # fmt: skip
    low = [n for n, v in d.features.items() if n == "contrast" and v.size and np.median(v) < 40]
    if low:
        found.append(
            Finding("the pictures are pale: ink and paper differ by few grey levels", "check how they are saved")
        )
    return found


def bears_on(features: Mapping[str, NDArray[np.float64]], texts: Sequence[str], wrong: Sequence[bool]) -> list[Test]:
    """Which features have to do with being misread: Welch's t test and Spearman's correlation of each number, a
    chi-square test of each length and of each character; p corrected by Holm's method. Surest first."""
    bad = np.asarray(wrong, bool)
    if bad.all() or not bad.any():
        return []
    tests: list[Test] = []
    for name, values in features.items():
        if np.ptp(values) == 0 or min(bad.sum(), (~bad).sum()) < 2:
            continue
        t = stats.ttest_ind(values[bad], values[~bad], equal_var=False)
        told = f"{values[bad].mean():.3g} where misread, {values[~bad].mean():.3g} where read"
        if math.isfinite(t.statistic):
            tests.append(Test(name, "t", float(t.statistic), float(t.pvalue), told))
        rho = stats.spearmanr(values, bad)
        tests.append(Test(name, "rank correlation", float(rho.statistic), float(rho.pvalue), told))
    traits: dict[str, NDArray[np.bool_]] = {}
    if len(lengths := set(map(len, texts))) > 1:
        traits |= {f"{n} characters": np.array([len(t) == n for t in texts]) for n in sorted(lengths)}
    traits |= {f"shows {c!r}": np.array([c in t for t in texts]) for c in sorted({c for t in texts for c in t})}
    for name, has in traits.items():
        table = np.array([[(has & bad).sum(), (has & ~bad).sum()], [(~has & bad).sum(), (~has & ~bad).sum()]])
        if table.sum(1).min() < 5:
            continue
        chi = stats.chi2_contingency(table)
        shares = table[:, 0] / table.sum(1)
        told = f"{shares[0]:.0%} misread with it, {shares[1]:.0%} without"
        if chi.expected_freq.min() < 5:  # too few for that distribution
            exact = stats.fisher_exact(table)
            tests.append(Test(name, "Fisher's exact", float(exact.statistic), float(exact.pvalue), told))
        else:
            tests.append(Test(name, "chi-square", float(chi.statistic), float(chi.pvalue), told))
    order = sorted(range(len(tests)), key=lambda i: tests[i].p)
    corrected, most = [], 0.0
    for rank, i in enumerate(order):
        most = max(most, min(1.0, tests[i].p * (len(tests) - rank)))
        corrected.append(Test(tests[i].feature, tests[i].test, tests[i].statistic, most, tests[i].told))
    return corrected


def print_described(
    d: Described, found: Signal, reader: str, wrong: Sequence[bool], tests: Sequence[Test], most: int = 8
) -> None:
    """What `recognizer diagnose` prints."""
    sizes = ", ".join(f"{w} x {h}: {n}" for (w, h), n in d.sizes.most_common(4)) + (", ..." if len(d.sizes) > 4 else "")
    print(f"pictures    {len(d.samples)}, of {len(d.sizes)} sizes: {sizes}")
    print(f"lengths     {', '.join(f'{k}: {n}' for k, n in sorted(d.lengths.items()))}")
    common = d.characters.most_common()
    print(f"characters  {len(common)}: {printable(''.join(sorted(d.characters)))}")
    if common:
        print(f"            commonest {_counted(common[:5])}; rarest {_counted(common[-5:])}")
    for name in ("brightness", "contrast", "saturation"):
        if name in d.features:
            low, middle, high = np.percentile(d.features[name], [5, 50, 95])
            print(f"{name:<11} {middle:.2f} in the middle, nine tenths from {low:.2f} to {high:.2f}")
    signal_or_not = (
        "there is a signal to learn" if found.found
        else "no signal: do pictures and labels belong together?" if found.none
        else f"{found.pictures} pictures are too few to tell whether there is a signal"
    )  # fmt: skip
    if found.enough:
        print(f"a baseline  {found.logistic:.1%} of {found.crops:,} characters told from crops of equal width,")
        print(f"            {found.tree:.1%} by a tree, {found.shuffled:.1%} where labels are shuffled:")
        print(f"            {signal_or_not} (p {_p(found.p)})")
    else:
        print(f"a baseline  needs two characters that {FEW} pictures each show: whether there is a signal is not told")
    if wrong:
        print(f"misread     by {reader}: {sum(wrong)} of {len(wrong)}, whatever their case")
    surest = {test.feature: test for test in reversed(tests) if test.p < 0.01}  # one test of each feature
    for test in sorted(surest.values(), key=lambda t: t.p)[:most]:
        print(f"            {test.feature}: {test.told} ({test.test} {test.statistic:.3g}, corrected p {_p(test.p)})")
    for finding in sorted(d.findings, key=lambda f: not f.bad):
        print(f"{'problem' if finding.bad else 'note':<11} {finding.what}")
        print(f"            {finding.advice}")


def _counted(rows: Sequence[tuple[str, int]]) -> str:
    return ", ".join(f"{c} {n}" for c, n in rows)


def _p(p: float) -> str:
    return "< .001" if p < 0.001 else f"{p:.3f}"


# -------------------------------------------------------------------------------------------------------- is there any


def crops_of(sample: Sample) -> list[NDArray[np.float32]]:
    """As many crops of equal width as the label has characters, from where the ink begins to where it ends.

    No reader has part in it: one that is told a label finds what looks like it, even where the label is wrong.

    Raises:
        PictureError: it cannot be opened.
    """
    grey = np.asarray(open_picture(sample.read_bytes(), "L"), np.float32)
    ink = np.abs(grey - np.median(grey))
    columns = ink.mean(0)
    strong = np.flatnonzero(columns > 0.25 * columns.max()) if columns.max() > 0 else np.arange(grey.shape[1])
    first, last = int(strong[0]), int(strong[-1]) + 1
    edges = np.linspace(first, last, len(sample.text) + 1)
    crops = []
    for a, b in pairwise(edges.tolist()):
        a = min(a, grey.shape[1] - 1)
        box = (a, 0.0, min(max(b, a + 1), grey.shape[1]), float(grey.shape[0]))
        crop = np.asarray(Image.fromarray(ink).resize(CROP, Image.Resampling.BILINEAR, box), np.float32)
        crops.append((crop - crop.mean()).ravel() / max(float(crop.std()), 1e-3))
    return crops


def signal(samples: Sequence[Sample], seed: int = 0) -> Signal:
    """Whether characters can be told from crops at all: a logistic regression and a tree, out of fold, beside the same
    regression on labels that were shuffled among the pictures of each length. Pictures, not crops, are what is counted
    for p: two characters of one picture are no two witnesses."""
    rng = np.random.default_rng(seed)
    rows: list[NDArray[np.float32]] = []
    texts: list[str] = []
    owner: list[int] = []
    for i in rng.permutation(len(samples)).tolist():
        if len(rows) >= MOST_CROPS:
            break
        with suppress(PictureError):
            own = crops_of(samples[i])
            rows += own
            owner += [len(texts)] * len(own)
            texts.append(samples[i].text)
    held = Counter(c for t in texts for c in set(t))
    if sum(n >= FEW for n in held.values()) < 2:
        return Signal(len(rows), len(texts), math.nan, math.nan, math.nan, 1.0)
    x, groups = np.stack(rows), np.array(owner)
    folds = GroupKFold(5)

    def right(model: Any, labels: Sequence[str]) -> NDArray[np.float64]:
        """The share of each picture's characters that is read right out of fold."""
        y = np.array([c for t in labels for c in t])
        with warnings.catch_warnings():  # how far it converges is no matter: shuffled labels get as many steps
            warnings.simplefilter("ignore", ConvergenceWarning)
            hit = cross_val_predict(model, x, y, groups=groups, cv=folds) == y
        return np.bincount(groups, hit) / np.bincount(groups)

    def logistic() -> Any:
        return make_pipeline(StandardScaler(), LogisticRegression(C=0.01, max_iter=200))

    true = right(logistic(), texts)
    tree = right(DecisionTreeClassifier(max_depth=12, min_samples_leaf=5, random_state=seed), texts)
    null = []
    for _ in range(SHUFFLES):
        shuffled = list(texts)
        for n in set(map(len, texts)):
            places = [i for i, t in enumerate(texts) if len(t) == n]
            for i, j in zip(places, rng.permutation(places).tolist(), strict=True):
                shuffled[i] = texts[j]
        null.append(right(logistic(), shuffled))
    apart = true - np.mean(null, 0)
    p = (
        float(stats.ttest_1samp(apart, 0, alternative="greater").pvalue)
        if apart.std() > 0
        else float(apart.mean() <= 0)
    )
    return Signal(len(rows), len(texts), float(true.mean()), float(tree.mean()), float(np.mean(null)), p)
