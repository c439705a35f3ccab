"""Train several times from one start, each time with another seed, and keep the mean of the weights (average.py), which
reads in the time of one reader and, of few labels, mostly more than each."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from accelerate import Accelerator, PartialState

from recognizer.errors import Stopped, UserError, quoted
from recognizer.progress import say
from recognizer.readings import Scores
from recognizer.settings import is_dump, to_toml
from recognizer.training.average import NoMean, average
from recognizer.training.checkpoint import with_a_mean, write_whole
from recognizer.training.evaluate import evaluate, no_device
from recognizer.training.train import TrainSettings, as_good, read_data, train


def train_seeds(settings: TrainSettings, out: Path, resume: bool = False) -> Scores:
    """Train as often as `settings` have `seeds`, into `out/seed-S` of each, and make the mean of the weights the run's;
    where that reads less of the validation pictures than the interval of the best of them holds, the best one's.
    One seed is one training, into `out` itself.

    A killed run goes on where it was. Gives the validation scores of the weights that are kept.

    Raises:
        UserError: as `train`, or trainings from nothing, whose weights have no mean.
        Stopped: Ctrl-C; the run is saved and can be resumed.
    """
    if settings.seeds == 1:
        return train(settings, out, resume)
    if not with_a_mean(settings.start, settings.size, settings.head):
        raise UserError(
            "several seeds are of trainings from weights that have that head: what starts from nothing has no mean"
        )
    process = PartialState(cpu=no_device())
    open_folder(settings, out, resume, process)
    trainings: dict[Path, Scores] = {}
    for seed in ((settings.seed + k) % 2**32 for k in range(settings.seeds)):
        own, run = settings.model_copy(update={"seeds": 1, "seed": seed}), out / f"seed-{seed}"
        say(process, f"training {len(trainings) + 1} of {settings.seeds}, seed {seed}")
        with resumed_by(out):
            trainings[run] = train(own, run, (run / "settings.toml").is_file())
    best = max(trainings, key=lambda run: (trainings[run].exact, -trainings[run].character_error_rate))
    kept, scores, mean = best, trainings[best], out / "mean"
    if process.is_main_process:
        shutil.rmtree(mean, ignore_errors=True)  # of a run that was killed here
        with suppress(NoMean):  # so high a rate that they lie far from each other
            average(list(trainings), mean)
    process.wait_for_everyone()
    told = ", ".join(f"{own.exact:.3f}" for own in trainings.values()) + " by seed"
    if mean.exists():
        accelerator = Accelerator(cpu=no_device())
        held = read_data(settings, accelerator).validation.samples
        _, outcome = evaluate(mean, held, accelerator, settings.max_pixels)
        read = Scores.of([(s.text, r.text) for s, r in zip(held, outcome.readings, strict=True)])
        told += f", {read.exact:.3f} by their mean"
        if as_good(read, (scores.exact, -scores.character_error_rate)):
            kept, scores = mean, read
    if process.is_main_process:
        write_whole(kept / "scores.json", json.dumps(scores.to_dict(), indent=2) + "\n")
        keep(kept, out)
    say(process, f"validation: {told}; kept is {kept.name}")
    process.wait_for_everyone()
    return scores


def open_folder(settings: TrainSettings, out: Path, resume: bool, process: PartialState) -> None:
    """Make the folder of a run of several trainings, which its settings lie in.

    Raises:
        UserError: it holds something, and is not to be resumed.
    """
    # settings alone are of a run that ended before it had learned anything, as by a slip in them
    kept = out / "settings.toml"
    begun = {"settings.toml.tmp", *[kept.name] * is_dump(TrainSettings, kept)}
    if not resume and out.exists() and (not out.is_dir() or {p.name for p in out.iterdir()} - begun):
        raise UserError(f"{out} exists and is not empty: name a new folder, or go on with --resume {quoted(out)}")
    process.wait_for_everyone()
    if process.is_main_process:
        out.mkdir(parents=True, exist_ok=True)
        write_whole(kept, to_toml(settings))
    process.wait_for_everyone()


@contextmanager
def resumed_by(out: Path) -> Iterator[None]:
    """Have a training that is stopped say how the whole run goes on, not itself."""
    try:
        yield
    except Stopped as stopped:
        raise Stopped(f"{str(stopped).split(';')[0]}; go on with: recognizer train --resume {quoted(out)}") from None


def keep(run: Path, out: Path) -> None:
    """Make the weights and the scores of one training those of the run of several."""
    for name in ("weights.safetensors", "scores.json"):
        shutil.copy(run / name, out / f"{name}.tmp")
        (out / f"{name}.tmp").replace(out / name)
