"""How many labels does it take? Readers trained on growing parts of the labels, a power law through what they read, and
what it says of more labels, with its interval."""

from __future__ import annotations

import math
import shutil
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from pydantic import Field

from pipelines.ledger import Ledger, locked
from pipelines.run import (
    DataSettings,
    charset_for,
    check_kept,
    each_label_once,
    frame_for,
    jobs_of,
    open_run,
    read,
    see_start,
    start_hash,
    tell_copies,
)
from recognizer.errors import UserError
from recognizer.images import MAX_PIXELS
from recognizer.progress import Alone, say
from recognizer.readings import wilson
from recognizer.samples import Manifest, content_hash, merge, problem_table, read_manifest, split_apart, write_folder
from recognizer.settings import make
from recognizer.training.batches import Pictures
from recognizer.training.side_by_side import Training, train_side_by_side
from recognizer.training.train import TrainSettings, provenance, tell_leaks

Floats = NDArray[np.float64]
FEWEST = 20  # labels of the smallest part
MOST_HELD = 2000  # pictures that are held out to read, at most, where no test set is given
REPLICATES = 1000
FURTHEST = 30  # times the labels there are, beyond which no number is told
# the laws that are tried: their slopes, floors, and errors in the middle of the sizes as shares of what was seen there
SLOPES = np.linspace(0.0, 2.5, 41)
FLOORS = np.concatenate([[0.0], np.geomspace(0.001, 0.3, 20)])
MIDDLES = np.geomspace(0.3, 3.0, 60)
# how likely they are before anything is read: slopes about this one, so far from it, and floors that are on average
# this share of the least error seen; without it the likeliest law takes chance for a floor more often than not
SLOPE, SLOPE_SPREAD, FLOOR = 0.6, 0.5, 0.5


class ForecastSettings(DataSettings):
    """Everything that `practice forecast` can be told."""

    held_out: float = Field(0.3, gt=0, lt=1)  # share of data that is read, where there is no test
    sizes: tuple[int, ...] = ()  # of the parts; else all, a half, a quarter and an eighth
    seeds: int = Field(3, ge=1, le=50)  # parts drawn of each size
    target: float = Field(0.95, gt=0, lt=1)  # share read right that is asked for
    at: tuple[int, ...] = ()  # numbers of labels to say what to expect of, besides twice those there are
    effort: float = Field(0.5, gt=0, le=1)  # share of the pictures that `recognizer train` would show
    fold_case: bool = False  # count a reading as right whatever its case


# ------------------------------------------------------------------------------------------------------------ the law


@dataclass(frozen=True)
class Law:
    """Error rates after `n` labels, `level (n / middle)^-slope + floor`: one for each replicate of a bootstrap over
    held-out pictures and trainings, drawn by how well it bears the replicate out, and the one in their middle. `spread`
    holds what single trainings differed from that one by, as logarithms of ratios of error rates."""

    middle: float
    best: Floats  # (3,): level, slope, floor
    replicates: Floats  # (R, 3)
    spread: Floats

    def error(self, n: float | Floats, laws: Floats | None = None) -> Floats:
        """Error rates (..., N) after `n` labels (N,)."""
        return errors_of(self.best if laws is None else laws, np.atleast_1d(n) / self.middle)

    def accuracy(self, n: float, seed: int = 0) -> tuple[float, float, float]:
        """The share read right to expect of one training on `n` labels, and its 95 % interval."""
        rng = np.random.default_rng([seed, 23])
        errors = self.error(n, self.replicates)[:, 0] * np.exp(rng.choice(self.spread, len(self.replicates)))
        low, high = np.quantile(np.minimum(errors, 1), [0.025, 0.975])
        return float(1 - self.error(n)[0]), float(1 - high), float(1 - low)

    def needed(self, target: float) -> tuple[float, float, float]:
        """The labels that a share of `target` read right takes, and their 95 % interval; infinite where no number
        does."""

        def of(laws: Floats) -> Floats:
            level, slope, floor = laws.T
            room = 1 - target - floor
            with np.errstate(divide="ignore", invalid="ignore", over="ignore"):
                n = self.middle * (level / room) ** (1 / slope)
            flat = np.where(level <= room, 0.0, np.inf)
            return np.asarray(np.where(room <= 0, np.inf, np.where(slope > 0, n, flat)), np.float64)

        low, high = np.quantile(of(self.replicates), [0.025, 0.975], method="nearest")
        return float(of(self.best[None])[0]), float(low), float(high)


def errors_of(laws: Floats, times: Floats) -> Floats:
    """Error rates (..., N) by laws (..., 3) after so many times their middle's labels (N,)."""
    level, slope, floor = (laws[..., i, None] for i in range(3))
    return np.asarray(np.minimum(level * times**-slope + floor, 1.0))


def fit_law(sizes: Sequence[int], right: NDArray[np.bool_], seed: int = 0) -> Law:
    """The law through what readers read right, (sizes, trainings of each, held-out pictures) of booleans.

    The likelihood is that of as many independent pictures as were held out (all trainings read the same ones). Before
    it, slopes of about `SLOPE` and low floors are taken for likelier, as much as a few pictures weigh.

    Raises:
        UserError: fewer than two sizes.
    """
    n = np.asarray(sizes, np.float64)
    if len(n) < 2 or len(set(sizes)) < len(n):
        raise UserError("a law takes two sizes, and others are better: give more labels")
    trainings, held = right.shape[1:]
    middle = float(np.exp(np.log(n).mean()))
    wrong = 1 - right.mean(2)  # (sizes, trainings)
    least = 0.5 / held  # no part's error is surer than half a picture: those that were read say no more
    seen = np.exp(np.log(np.maximum(wrong.mean(1), least)).mean())
    at_middle, slope, floor = (x.ravel() for x in np.meshgrid(seen * MIDDLES, SLOPES, FLOORS, indexing="ij"))
    possible = at_middle >= floor
    level, slope, floor = (at_middle - floor)[possible], slope[possible], floor[possible]
    rates = level[:, None] * (n / middle) ** -slope[:, None] + floor[:, None]
    rates = np.clip(rates, least, 1 - least)
    log_wrong, log_right = np.log(rates), np.log1p(-rates)
    laws = np.stack([level, slope, floor], 1)
    prior = -0.5 * ((slope - SLOPE) / SLOPE_SPREAD) ** 2 - floor / (FLOOR * max(wrong.mean(1).min(), least))
    rng = np.random.default_rng([seed, 29])
    found = []
    for _ in range(REPLICATES // 50):  # a few at once, as memory goes
        pictures = rng.multinomial(held, np.full(held, 1 / held), 50) / held
        chosen = rng.integers(trainings, size=(50, len(n), trainings))
        own = np.stack([
            [right[s][chosen[r, s]].mean(0) @ pictures[r] for s in range(len(n))] for r in range(50)
        ])  # fmt: skip
        likely = held * (log_wrong @ (1 - own).T + log_right @ own.T) + prior[:, None]  # (laws, replicates)
        likely -= likely.max(0)
        any_likely = np.flatnonzero(likely.max(1) > -40)  # of the others none is drawn in a lifetime
        share = np.exp(likely[any_likely]).cumsum(0).T
        found += [int(any_likely[np.searchsorted(s, x * s[-1])]) for s, x in zip(share, rng.random(50), strict=True)]
    replicates = laws[found]
    # the one that is nearest to the middle of all where something was read and where something will be expected
    many = np.geomspace(n.min(), 4 * n.max(), 9)
    curves = np.log(errors_of(replicates, many / middle))
    best = found[int(np.abs(curves - np.median(curves, 0)).sum(1).argmin())]
    spread = np.log(np.maximum(wrong, least) / np.maximum(rates[best][:, None], least)).ravel()
    return Law(middle, laws[best], replicates, spread)


# ------------------------------------------------------------------------------------------------------------ the run


def forecast(settings: ForecastSettings, out: Path) -> Ledger:
    """Forecast into the run folder `out`, or go on where it was; `forecast.txt` and `forecast.png` there say what came
    of it. Gives the ledger of the finished run.

    Raises:
        UserError: settings or data that do not fit; everything so far is kept.
        Stopped: Ctrl-C; give the same command again to go on.
    """
    if settings.at and min(settings.at) < 1:
        raise UserError(f"at: {min(settings.at)} is no number of labels")
    if settings.sizes and (min(settings.sizes) < FEWEST or not 1 < len(settings.sizes) == len(set(settings.sizes))):
        raise UserError(f"sizes: at least two, each once, of {FEWEST} labels or more")
    open_run(settings, out, "at", "target")
    with locked(out):
        ledger = Ledger(out / "ledger.jsonl")
        prepare(settings, out, ledger)
        sizes = ledger["prepare"]["sizes"]
        if not all(f"read {n} {k}" in ledger for n in sizes for k in range(settings.seeds)):
            see_start(settings, ledger)
        held = read_manifest(out / "data" / "held").samples
        jobs = jobs_of(settings)
        torch.set_num_threads(jobs)
        trainings = {(n, k): _training(settings, ledger, out, n, k) for n in sizes for k in range(settings.seeds)}
        say(Alone(), f"training on {', '.join(map(str, sizes))} labels, {settings.seeds} times each")
        for n in sizes:
            train_side_by_side([trainings[n, k] for k in range(settings.seeds)], jobs, f"{n} labels")
            for k in range(settings.seeds):
                if f"read {n} {k}" in ledger:
                    continue
                readings = read(trainings[n, k].out, held)
                right = [_same(settings, s.text, r.text) for s, r in zip(held, readings, strict=True)]
                ledger.record(f"read {n} {k}", right=right)
            own = [np.mean(ledger[f"read {n} {k}"]["right"]) for k in range(settings.seeds)]
            say(Alone(), f"{n} labels: {', '.join(f'{x:.3f}' for x in own)} read right")
        law = law_of(settings, ledger)
        (out / "forecast.txt").write_text(in_words(settings, ledger, law), encoding="utf-8")
        plot(settings, ledger, law, out / "forecast.png")
    return ledger


def _same(settings: ForecastSettings, a: str, b: str) -> bool:
    return a.casefold() == b.casefold() if settings.fold_case else a == b


def prepare(settings: ForecastSettings, out: Path, ledger: Ledger) -> None:
    """Copy the held-out pictures, and the others in as many orders as there are seeds, into the run."""
    if "prepare" in ledger:
        return
    data, began = out / "data", time.monotonic()
    shutil.rmtree(data, ignore_errors=True)
    whole = merge([read_manifest(path, settings.label_pattern) for path in settings.data])
    if settings.limit:
        whole = whole.first(settings.limit)
    test = read_manifest(settings.test, settings.label_pattern) if settings.test else Manifest(())
    charset = charset_for(settings, (*whole, *test))
    frame = frame_for(settings, (*whole, *test))
    usable, usable_test = (Pictures(part.samples, charset, frame, MAX_PIXELS) for part in (whole, test))
    problems = [*whole.problems, *usable.problems, *test.problems, *usable_test.problems]
    say(Alone(), problem_table(problems, len(whole) + len(test) + len(whole.problems) + len(test.problems)))
    if settings.test:
        pool, held = each_label_once(usable.samples), list(usable_test.samples)
        tell_leaks(held, pool, "read", Alone())
        tell_copies(held)
    else:
        labelled = each_label_once(usable.samples)
        share = min(settings.held_out, MOST_HELD / max(len(labelled), 1))
        pool, held = split_apart(labelled, (1 - share, share), settings.seed)
    check_kept(settings, [*pool, *held])
    sizes = sorted(settings.sizes or {len(pool) // d for d in (8, 4, 2, 1) if len(pool) // d >= FEWEST})
    if len(sizes) < 2 or not held:
        raise UserError(
            f"{len(pool)} samples to train on and {len(held)} to read are too few: a forecast needs {2 * FEWEST} and 1"
        )
    if sizes[-1] > len(pool):
        raise UserError(f"sizes: {sizes[-1]} labels are more than the {len(pool)} that there are to train on")
    for k in range(settings.seeds):
        order = np.random.default_rng([settings.seed, k]).permutation(len(pool))
        write_folder([pool[i] for i in order], data / f"pool-{k}")
    write_folder(held, data / "held")
    ledger.record(
        "prepare", sizes=sizes, train=len(pool), held=len(held), charset=charset.characters, problems=len(problems),
        data_sha256=content_hash([*pool, *held]), start_sha256=start_hash(settings),
        provenance=provenance(), seconds=time.monotonic() - began,
    )  # fmt: skip


def _training(settings: ForecastSettings, ledger: Ledger, out: Path, n: int, k: int) -> Training:
    values: dict[str, Any] = {
        "threads": 1, "tracker": "none", "charset": ledger["prepare"]["charset"], "start": settings.start,
        "pictures": settings.pictures, "patience": 5, **settings.reader, "data": [str(out / "data" / f"pool-{k}")],
        "limit": n, "seed": settings.seed + k,
    }  # fmt: skip
    asked = make(TrainSettings, values, "reader settings")
    if asked.pictures is None:
        asked = asked.model_copy(update={"pictures": round(asked.pictures_for(n) * settings.effort)})
    return Training(asked, out / f"labels-{n}" / f"seed-{k}")


# ------------------------------------------------------------------------------------------------------------ results


def rights(settings: ForecastSettings, ledger: Ledger) -> NDArray[np.bool_]:
    """Which held-out pictures were read right, (sizes, seeds, pictures)."""
    sizes = ledger["prepare"]["sizes"]
    return np.array([[ledger[f"read {n} {k}"]["right"] for k in range(settings.seeds)] for n in sizes], np.bool_)


def law_of(settings: ForecastSettings, ledger: Ledger) -> Law:
    return fit_law(ledger["prepare"]["sizes"], rights(settings, ledger), settings.seed)


def in_words(settings: ForecastSettings, ledger: Ledger, law: Law) -> str:
    """The answer, for a person."""
    facts, right = ledger["prepare"], rights(settings, ledger)
    lines = [f"{facts['held']} pictures read" + (", ignoring case" if settings.fold_case else "") + ":"]
    for n, own in zip(facts["sizes"], right, strict=True):
        low, high = wilson(round(own.mean() * facts["held"]), facts["held"])
        each = ", ".join(f"{x:.3f}" for x in own.mean(1))
        lines.append(f"  {n:>7,} labels: {own.mean():.3f} ({low:.3f} to {high:.3f}) right; by training {each}")
    most = facts["sizes"][-1]
    now = right[-1].mean()
    twice = 2 * (facts.get("train", most) + (facts["held"] if settings.test is None else 0))  # of all that are there
    for n in dict.fromkeys((twice, *settings.at)):
        expected, low, high = law.accuracy(n, settings.seed)
        what = f"twice the labels, {n:,}," if n == twice else f"{n:,} labels"
        lines.append(
            f"With {what} expect {low:.3f} to {high:.3f} read right, most likely {expected:.3f} "
            f"({now:.3f} with {most:,})."
        )
    # more than was tried, as that did not reach it; and no number that far beyond it is known
    needed = [max(n, most) for n in law.needed(settings.target)]
    likely, fewest, largest = (n if n <= FURTHEST * most else math.inf for n in needed)
    asked = f"{100 * settings.target:g} %"
    if now >= settings.target:
        lines.append(f"{most:,} labels reach {asked} already.")
    elif math.isinf(needed[1]):
        lines.append(f"No number of labels like these reaches {asked}, as far as these trainings tell.")
    elif math.isinf(fewest):
        lines.append(f"To reach {asked} you need more than {_rounded(FURTHEST * most)} labels.")
    else:
        bound = (
            f"{_rounded(fewest)} to {_rounded(largest)}" if math.isfinite(largest) else f"{_rounded(fewest)} or more"
        )
        beyond = " (beyond ten times what was tried, a guess)" if likely > 10 * most else ""
        lines.append(
            f"To reach {asked} you need about {_rounded(likely)} labels ({bound}){beyond}." if math.isfinite(likely)
            else f"To reach {asked} you need {bound} labels: more cannot be told."
        )  # fmt: skip
    level, slope, floor = law.best
    lines.append(
        f"Law: error = {level:.3g} (labels / {law.middle:.0f})^-{slope:.2f} + {floor:.3g}. Intervals are 95 %, of "
        f"{REPLICATES} resamplings of pictures and trainings."
        + (" One training of each size says nothing of what chance does in training." if settings.seeds == 1 else "")
    )
    if settings.pictures is None and settings.effort < 1:
        lines.append(
            f"These trainings were short, {settings.effort:.0%} of the pictures that recognizer train shows: "
            "its readers read as well or better."
        )
    return "\n".join(lines) + "\n"


def _rounded(n: float) -> str:
    """A number of labels to two digits: more would claim too much."""
    if n < 1:
        return "1"
    digits = max(int(math.log10(n)) - 1, 0)
    return f"{round(n, -digits):,.0f}"


def plot(settings: ForecastSettings, ledger: Ledger, law: Law, path: Path) -> None:
    """Draw what was read wrong, the law, and its interval up to four times the labels, on logarithmic axes."""
    from matplotlib.figure import Figure
    from matplotlib.ticker import FuncFormatter, LogLocator

    sizes, right = ledger["prepare"]["sizes"], rights(settings, ledger)
    wrong, held = 1 - right.mean(2), ledger["prepare"]["held"]
    n = np.geomspace(sizes[0] * 0.8, sizes[-1] * 4, 60)
    intervals = np.array([law.accuracy(float(x), settings.seed) for x in n])
    figure = Figure(figsize=(7, 4.5), layout="constrained")
    axes = figure.subplots()
    axes.fill_between(n, 1 - intervals[:, 2], 1 - intervals[:, 1], color="#0072b2", alpha=0.15, linewidth=0,
                      label="95 % interval of a training")  # fmt: skip
    axes.plot(n, 1 - intervals[:, 0], color="#0072b2", label="power law")
    axes.plot(np.repeat(sizes, wrong.shape[1]), np.maximum(wrong.ravel(), 0.5 / held), "o", color="#d55e00",
              label="trainings")  # fmt: skip
    axes.axhline(
        1 - settings.target, color="#555555", linestyle="--", linewidth=1, label=f"{100 * settings.target:g} % right"
    )
    axes.axvline(sizes[-1], color="#999999", linestyle=":", linewidth=1)
    axes.set(xscale="log", yscale="log", xlabel="labels", ylabel="pictures read wrong")
    for axis, shown in ((axes.xaxis, "{:,.0f}"), (axes.yaxis, "{:.1%}")):
        axis.set_major_locator(LogLocator(10, (1, 2, 5)))
        axis.set_major_formatter(FuncFormatter(lambda x, _, shown=shown: shown.format(x)))
        axis.set_minor_formatter(FuncFormatter(lambda *_: ""))
    axes.grid(alpha=0.3)
    axes.legend(frameon=False)
    figure.savefig(path, dpi=150)
