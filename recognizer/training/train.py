"""The training loop of the recognizer, top to bottom."""

from __future__ import annotations

import importlib
import itertools
import json
import math
import os
import platform
import signal
import subprocess
import time
import warnings
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, field, replace
from pathlib import Path
from types import FrameType
from typing import Any, Literal, Protocol, cast

import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState
from accelerate.utils import DataLoaderConfiguration, set_seed
from pydantic import Field
from torch import Tensor, nn
from torch.utils.data import DataLoader

from recognizer.charset import Charset, tell_newcomers
from recognizer.errors import MOST_THREADS, Stopped, UserError, quoted
from recognizer.images import MAX_PIXELS, Frame
from recognizer.journal import locked
from recognizer.progress import Bar, say
from recognizer.readings import Scores, all_characters, binary_accuracy, wilson
from recognizer.samples import (
    Manifest,
    Problem,
    Sample,
    each_once,
    hash_of_rows,
    known_by,
    merge,
    problem_table,
    read_manifest,
    rows_of,
    see_apart,
    shared_pictures,
    split_apart,
)
from recognizer.settings import Settings, load, see_utf8, to_toml
from recognizer.training import checkpoint
from recognizer.training.batches import (
    Batch,
    Pictures,
    Plan,
    StepSampler,
    Variation,
    collate,
    fetched,
    undisturbed,
    vary,
)
from recognizer.training.between import between, share_to_keep, started
from recognizer.training.calibrate import fit_temperature
from recognizer.training.collapse import find_collapse
from recognizer.training.evaluate import no_device, read_pictures, shown_case
from recognizer.training.losses import LOSSES, OF_POSITIONS, TOLD, Options, guidance, guide, rarity
from recognizer.training.model import SIZES, WHOLE, HeadName, Network
from recognizer.training.teach import Teachers, distillation, frame_of_teachers


class FrameSettings(Settings):
    """What a reader sees of a picture: bounds on its width, in pixels; 0 takes what the longest label needs."""

    longest: int = Field(default=0, ge=0)  # characters to have room for, where labels to come are longer
    min_width: int = Field(default=0, ge=0, le=4096)
    max_width: int = Field(default=512, ge=16, le=4096)
    trim: bool = True  # the reader sees only the part of a picture in which its text stands


class TrainSettings(Settings):
    """Everything that `recognizer train` can be told."""

    data: tuple[str, ...] = ()
    stream: str | None = None  # instead of data, my.module:Class, which draws labelled pictures without end
    stream_settings: dict[str, Any] = Field({})
    validation: str | None = None  # else a part of data
    validation_share: float = Field(0.1, gt=0, lt=1)
    with_synthetic: tuple[str, ...] = ()
    synthetic_share: float = Field(0.25, gt=0, lt=1)  # of each batch
    keep: tuple[str, ...] = ()  # what the start was trained on, and must go on reading
    keep_share: float = Field(0.25, gt=0, lt=1)  # of each batch
    unlabelled: tuple[str, ...] = ()  # folders of pictures to take sure readings of for labels (training/pseudo.py)
    unlabelled_rounds: int = Field(2, ge=1, le=10)
    unlabelled_confidence: float = Field(0.95, gt=0, lt=1)  # less, where a character has not its share so
    unlabelled_fewest: float = Field(0.2, ge=0, lt=1)  # share that is taken, if less sure; after a round, twice that
    unlabelled_share: float = Field(0.5, gt=0, lt=1)  # of each batch, where no other made samples are there
    label_pattern: str | None = None
    limit: int | None = Field(None, ge=1)  # use the first so many samples of data
    start: str = "default"  # the shipped reader; or nothing, a weights file, or a run
    charset: str | None = None  # a name in charset.NAMED, or characters; else those of `checkpoint.charset_of`
    size: Literal["tiny", "small", "base"] | None = None  # else that of the start; from nothing, tiny
    head: HeadName = "conv"
    # else ctc, and bce with a fixed head
    loss: Literal["ctc", "focal-ctc", "balanced-ctc", "bce", "weighted-bce", "focal-bce"] | None = None
    pos_weight: float = Field(3.0, gt=0)  # of weighted-bce
    alpha: float = Field(0.25, ge=0, le=1)  # of focal-bce
    gamma: float | None = Field(None, ge=0)  # of focal losses; else 1 in focal-ctc and 2 in focal-bce
    adaptive_gamma: bool = False  # in its place 5 where p is under .2, and 3 elsewhere
    # what leads the convolution head off CTC's plateau, from nothing
    bootstrap: Literal["guide+lstm", "guide", "lstm", "none"] = "guide+lstm"
    teacher: tuple[str, ...] = ()  # weights to learn from, frame by frame (training/teach.py)
    teach: float = Field(0.7, gt=0, le=1)  # the teachers' share of the loss
    pictures: int | None = Field(None, ge=1)  # seen in all; else by the number of labels
    batch: int = Field(32, ge=2, le=65536)
    learning_rate: float | None = Field(None, gt=0)  # the cycle's peak; else by where it starts
    # of the learning rate. cycle: one rise and fall; constant: a rise, and no fall; decay: a straight fall to nothing
    schedule: Literal["cycle", "constant", "decay"] = "cycle"
    warmup: float = Field(0.2, ge=0, lt=1)  # share of the run; a decay has none
    weight_decay: float = Field(0.01, ge=0)
    clip: float = Field(5.0, gt=0)
    blend: bool = True  # keep no more of what was learned than validation pictures bear (training/between.py)
    average: float = Field(0.02, ge=0, lt=1)  # share of the run that the weights' moving average looks back over
    validations: int = Field(25, ge=1)  # how often in a run
    patience: int = Field(15, ge=1)  # validations that are worse than the best before, once anything is read
    precision: Literal["auto", "no", "fp16", "bf16"] = "auto"
    seed: int = Field(0, ge=0, lt=2**32)
    # trainings, with the seeds `seed`, `seed` + 1, ..., whose weights' mean is kept (training/seeds.py)
    seeds: int = Field(1, ge=1, le=100)
    threads: int = Field(0, ge=0, le=MOST_THREADS)  # of torch on a CPU; 0 leaves it as it is
    workers: int = Field(0, ge=0, le=MOST_THREADS)  # processes that open pictures
    tracker: str = "tensorboard"  # any that Accelerate knows, or none
    checkpoint_seconds: float = Field(60, gt=0)
    max_pixels: int = Field(MAX_PIXELS, ge=1)
    frame: FrameSettings = Field(default_factory=FrameSettings)
    vary: Variation = Field(default_factory=Variation)

    def rate(self, fresh: bool) -> float:
        """The learning rate's peak, of a training from nothing or from weights."""
        return self.learning_rate or (2e-3 if fresh else 3e-3)

    def loss_name(self) -> str:
        """The loss that is taken.

        Raises:
            UserError: the head takes no such loss.
        """
        fixed = self.head == "fixed"
        name = self.loss or ("bce" if fixed else "ctc")
        if fixed and self.teacher:
            raise UserError("--head fixed has no frames to be taught: leave --teacher out")
        if (name in OF_POSITIONS) != fixed:
            fit = "of positions: give --head fixed with it" if not fixed else "CTC's: a fixed head takes bce losses"
            raise UserError(f"--loss {name} is {fit}")
        for option in TOLD:
            if getattr(self, option) != type(self).model_fields[option].default:
                check_told(option, name)
        if self.adaptive_gamma and self.gamma is not None:
            raise UserError("gamma is one number, or adapts: leave --gamma or --adaptive-gamma out")
        return name

    def pictures_for(self, n: int) -> int:
        """Pictures to see in all with `n` labelled ones: 60 passes, at least 40,000 and at most 2,000,000; of a stream
        as many as at most."""
        if self.stream:
            n = 2_000_000
        return self.pictures or min(max(60 * n, 40_000), 2_000_000)


@dataclass
class Progress:
    """Where a run is: what a checkpoint holds beside weights and optimizer."""

    step: int = 0
    best: tuple[float, float] = (0.0, float("-inf"))  # exact match, minus character error rate
    best_step: int = 0
    stale: int = 0
    done: bool = False
    level: float | None = None  # running mean of the loss while it is guided
    guidance: float = 0.0  # the guide's share of the loss
    losses: list[float] = field(default_factory=list)  # of the steps since the last validation
    characters: list[tuple[float, float]] = field(default_factory=list)  # precision and recall at each validation

    def state_dict(self) -> dict[str, Any]:
        return dict(vars(self))

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        vars(self).update(state)


class Average:
    """An exponential moving average of a network's weights and norms, which is what reads."""

    def __init__(self, network: nn.Module, horizon: float) -> None:
        self.shadow = {name: tensor.detach().clone() for name, tensor in network.state_dict().items()}
        self._horizon, self._updates = max(1.0, horizon), 0

    @torch.no_grad()
    def update(self, network: nn.Module) -> None:
        self._updates += 1
        decay = min(1 - 1 / self._horizon, self._updates / (9 + self._updates))
        for name, tensor in network.state_dict().items():
            if tensor.is_floating_point():
                self.shadow[name].lerp_(tensor, 1 - decay)
            else:
                self.shadow[name].copy_(tensor)

    def state_dict(self) -> dict[str, Any]:
        return {"shadow": self.shadow, "updates": self._updates}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self._updates = state["updates"]
        for name, tensor in state["shadow"].items():
            self.shadow[name].copy_(tensor)


PATIENCE = 10.0  # seconds that a run waits for what is left of another process's to end


class Stream(Protocol):
    """What draws labelled pictures without end, in place of data."""

    def __init__(self, charset: Charset, frame: Frame, seed: int, settings: dict[str, Any]) -> None: ...

    def batch(self, step: int, steps: int, places: range, device: torch.device) -> Batch:
        """What stands at some places of the batch of a step, from (seed, step, place) alone."""
        ...


@dataclass(frozen=True)
class Data:
    """What a run trains and validates on, after everything that cannot be used was set aside."""

    train: Pictures  # real ones, then made ones, then kept ones
    real: int
    kept: int
    validation: Pictures
    charset: Charset
    frame: Frame
    longest: int  # of the labels, and of those of the start
    problems: list[Problem]
    hash: str  # of what is in it, in any order
    order_hash: str  # of what trains and what validates, in order


def train(settings: TrainSettings, out: Path, resume: bool = False) -> Scores:
    """Train a recognizer into the run folder `out`: settings.toml, run.json, problems.jsonl, metrics.jsonl, TensorBoard
    events under log/, checkpoints/, the weights.safetensors that read best, and, once it is done, scores.json.

    A resumed run that is done trains no more. Gives the validation scores of the best weights.

    Raises:
        UserError: nothing to train on, settings that do not fit it, or a loss that is not finite.
        Stopped: Ctrl-C; the run is saved and can be resumed.
    """
    if settings.threads:
        torch.set_num_threads(settings.threads)
    settings.loss_name()
    see_utf8(str(out))
    kept = load(TrainSettings, out / "settings.toml", {}) if resume and (out / "settings.toml").is_file() else settings
    start, size = checkpoint.find_start(settings.start, kept.size)
    settings = settings.model_copy(update={"size": size})  # which a resumed run takes, whatever is the default by then
    accelerator = make_accelerator(settings, out)
    set_seed(settings.seed)
    before = characters_of(out) if resume and settings.charset is None else settings.charset
    data = read_data(settings.model_copy(update={"charset": before}), accelerator)
    with ExitStack() as held:
        if accelerator.is_main_process:
            if resume:
                held.enter_context(locked(out, PATIENCE))
            open_run(settings, out, data, resume)
            if not resume:
                held.enter_context(locked(out, PATIENCE))
        accelerator.wait_for_everyone()
        return train_on(settings, out, data, start, size, accelerator, resume)


def train_on(
    settings: TrainSettings,
    out: Path,
    data: Data,
    start: Path | None,
    size: str,
    accelerator: Accelerator,
    resume: bool,
) -> Scores:
    """`train`, once the run's folder and its data are open."""
    bootstrapping = start is None and settings.head == "conv" and settings.bootstrap != "none"
    heads: tuple[HeadName, ...] = (settings.head,)
    if bootstrapping and "lstm" in settings.bootstrap:
        heads = ("conv", "lstm")
    widths = WHOLE if start is None else checkpoint.widths_of(checkpoint.read_weights(start)[0])
    network = Network(size, heads, data.charset.classes, data.longest, widths)
    network.to(memory_format=torch.channels_last)  # convolutions this small are a fifth faster so, on a CPU too
    if start is None and settings.start == "default":
        say(accelerator, f"no {size!r} reader is installed to start from: it starts from nothing")
    if start is not None:
        case = shown_case(start, data.train)
        drawn = {name: tensor.clone() for name, tensor in network.state_dict().items()}
        say(accelerator, checkpoint.start_from(network, start, data.charset, case))
        began_from = started(network, drawn)

    total = steps_of(settings, data)
    every = max(1, total // settings.validations)
    rate = settings.rate(start is None)
    optimizer = torch.optim.AdamW(weight_groups(network, settings.weight_decay), lr=rate)
    schedule = schedule_of(optimizer, settings, rate, total)
    network, optimizer = accelerator.prepare(network, optimizer)
    bare: Network = accelerator.unwrap_model(network)
    average = Average(bare, settings.average * total)
    progress = Progress(guidance=float(bootstrapping and "guide" in settings.bootstrap))
    # the schedule is not prepared: a prepared one steps once a process
    accelerator.register_for_checkpointing(schedule, average, progress)
    if resume and (state := checkpoint.last_state(out)) is not None:
        accelerator.load_state(str(state))
        say(accelerator, f"resumed {out} at step {progress.step} of {total}")
    config = settings.model_dump(mode="json")
    metrics = Metrics(accelerator, out, settings.tracker, "recognizer", config, progress.step)

    batches = make_batches(settings, data, accelerator, progress.step, total)
    known = [data.charset.encode(s.text) for s in data.train.samples]
    if not known and settings.loss == "balanced-ctc":
        raise UserError("--loss balanced-ctc weighs by how often labels hold a character, and a stream has none")
    weights = rarity(known, data.charset.classes) if known else None
    told = Options(settings.pos_weight, settings.alpha, settings.gamma, settings.adaptive_gamma, weights)
    loss_of = LOSSES[settings.loss_name()]
    teachers = None
    if settings.teacher:
        cases = [shown_case(Path(teacher), data.train) for teacher in settings.teacher]
        teachers = Teachers(settings.teacher, data.charset, cases, accelerator.device)
    saved, began, first = time.monotonic(), time.monotonic(), progress.step

    with interruptible() as interrupted, Bar(accelerator, "training", total, progress.step, settings.batch) as bar:
        for batch in batches if not progress.done else ():
            step = progress.step
            network.train()
            # dropout and variation follow from (seed, step, process): a resumed run needs no generator's state
            place = hash((settings.seed, step, accelerator.process_index)) % 2**63
            torch.manual_seed(place)
            pictures = vary(batch.pictures, settings.vary, torch.Generator().manual_seed(place))
            with accelerator.autocast():
                logits = network(pictures)
            losses = {h: loss_of(logits[h], batch.targets, batch.lengths, told).mean() for h in heads}
            reading_loss = losses[settings.head].detach()
            if progress.guidance:
                now = float(accelerator.reduce(reading_loss, "mean"))
                progress.level = now if progress.level is None else 0.95 * progress.level + 0.05 * now
                progress.guidance = guidance(progress.level, data.charset.classes)
                lead = guide(logits["conv"], batch.targets, batch.lengths, pictures).mean()
                losses["conv"] = torch.lerp(losses["conv"], lead, progress.guidance)
            if teachers is not None:
                with accelerator.autocast():
                    taught = teachers(pictures)
                lesson = distillation(logits[settings.head], taught, batch.lengths).mean()
                losses[settings.head] = torch.lerp(losses[settings.head], lesson, settings.teach)
            loss = torch.stack(list(losses.values())).sum()
            accelerator.backward(loss)
            accelerator.clip_grad_norm_(network.parameters(), settings.clip)
            optimizer.step()
            schedule.step()
            optimizer.zero_grad()
            average.update(bare)
            progress.step += 1

            progress.losses.append(float(reading_loss))
            if not all_finite(accelerator, float(loss.detach())):
                raise UserError(
                    f"the loss is {float(loss.detach())} at step {step}: "
                    f"try --learning-rate {rate / 4:g} (practice: --set reader.learning_rate=...) in a new folder"
                    + (f"; the best weights so far are kept in {out}" if progress.best_step else "")
                )
            blank_rate = float((logits[settings.head].detach().argmax(-1) == 0).float().mean())
            bar.advance(loss=progress.losses[-1], blank=blank_rate)

            if progress.step % every == 0 or progress.step == total:
                with averaged(bare, average):
                    outcome = read_pictures(bare, settings.head, data.validation, accelerator)
                texts = [s.text for s in data.validation.samples]
                read = [r.text for r in outcome.readings]
                scores = Scores.of(pairs := list(zip(texts, read, strict=True)))
                seen, late = all_characters(pairs), progress.step > total // 3
                alarm = find_collapse(texts, read, outcome.spread, progress.characters) if late else None
                progress.characters.append((seen.precision, seen.recall))
                mean_loss = sum(progress.losses) / len(progress.losses)
                progress.losses.clear()
                metrics.write(
                    progress.step,
                    steps=total,
                    loss=mean_loss,
                    validation_nll=finite_mean([r.nll for r in outcome.readings]),
                    exact=scores.exact,
                    exact_ignoring_case=scores.exact_ignoring_case,
                    cer=scores.character_error_rate,
                    precision=seen.precision,
                    recall=seen.recall,
                    binary_accuracy=binary_accuracy(pairs, data.charset.classes),
                    blank_rate=outcome.blank_rate,
                    spread=outcome.spread,
                    learning_rate=schedule.get_last_lr()[0],
                    seconds=round(time.monotonic() - began, 1),
                    pictures_per_second=round((progress.step - first) * settings.batch / (time.monotonic() - began), 1),
                    **({"alarm": str(alarm)} if alarm else {}),
                )
                bar.note(
                    f"step {progress.step:>6}  loss {mean_loss:.3f}  "
                    f"exact {scores.exact:.3f}  CER {scores.character_error_rate:.3f}  blank {outcome.blank_rate:.2f}"
                    + (f"\n  collapse? {alarm}" if alarm else "")
                )
                if as_good(scores, progress.best):
                    progress.best = max(progress.best, (scores.exact, -scores.character_error_rate))
                    progress.best_step, progress.stale = progress.step, 0
                    if accelerator.is_main_process:
                        description = checkpoint.Description(
                            size, settings.head, data.charset.characters, data.frame,
                            {"validation": scores.to_dict(), "step": progress.step}, settings.model_dump(mode="json"),
                        )  # fmt: skip
                        own = {k: v for k, v in average.shadow.items() if reads(k, settings.head)}
                        checkpoint.save_weights(out / "weights.safetensors", own, description)
                elif progress.best[0] > 0:
                    progress.stale += 1
                progress.done = progress.stale >= settings.patience or progress.step == total

            stop = any_process(accelerator, bool(interrupted))
            if progress.done or stop or due(accelerator, saved, settings.checkpoint_seconds):
                checkpoint.save_state(accelerator, out, progress.step)
                saved = time.monotonic()
            if stop and not progress.done:
                accelerator.end_training()
                raise Stopped(
                    f"at step {progress.step} of {total}; go on with: recognizer train --resume {quoted(out)}"
                )
            if progress.done:
                break

    def loaded() -> tuple[dict[str, Tensor], checkpoint.Description]:
        """The weights file, as it is, in the network."""
        accelerator.wait_for_everyone()
        best, description = checkpoint.read_weights(out)
        bare.load_state_dict({**bare.state_dict(), **{k: v.to(accelerator.device) for k, v in best.items()}})
        bare.eval()
        return best, description

    best, description = loaded()
    if "temperature" not in description.scores:
        blended: dict[str, float] = {}
        if start is not None and settings.blend and not settings.stream:
            share = share_to_keep(bare, settings.head, began_from, best, data.validation, accelerator)
            if share < 1:
                say(accelerator, f"keeps {100 * share:.0f} % of the way that it went: there it reads validation best")
            best, blended = between(began_from, best, share), {"learned": share}
            bare.load_state_dict({**bare.state_dict(), **best})
        temperature = fit_temperature(bare, settings.head, data.validation)
        for name in ("weight", "bias"):  # so that whoever reads the weights has it
            best[f"heads.{settings.head}.classify.{name}"] /= temperature
        accelerator.wait_for_everyone()
        if accelerator.is_main_process:
            said = {**description.scores, **blended, "temperature": temperature}
            checkpoint.save_weights(out / "weights.safetensors", best, replace(description, scores=said))
        loaded()  # halves, as they are stored
    outcome = read_pictures(bare, settings.head, data.validation, accelerator)
    pairs = list(zip([s.text for s in data.validation.samples], [r.text for r in outcome.readings], strict=True))
    scores = Scores.of(pairs)
    if accelerator.is_main_process:
        checkpoint.write_whole(out / "scores.json", json.dumps(scores.to_dict(), indent=2) + "\n")
    metrics.close()
    return scores


# ----------------------------------------------------------------------------------------------------- the run's parts


def taken_precision(asked: str, best: str | None = None) -> str | None:
    """What to ask of Accelerate where `auto` is asked: the `best`, but nothing (None) in a process that has settled
    what it computes in."""
    if asked != "auto":
        return asked
    return None if AcceleratorState._shared_state else best or best_precision()


def check_told(option: str, loss: str) -> None:
    """See that a loss asks for an option of losses.

    Raises:
        UserError: it does not, and the option would do nothing.
    """
    if loss not in TOLD[option]:
        raise UserError(f"--loss {loss} has no {option}: that is one of {' and '.join(sorted(TOLD[option]))}")


def make_accelerator(settings: TrainSettings, out: Path) -> Accelerator:
    """Accelerate's, with the device's best precision and the tracker that was asked for."""
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", message=".*no supported trackers")  # said below, in one line
            accelerator = Accelerator(
                cpu=no_device(),
                mixed_precision=taken_precision(settings.precision),
                log_with=None if settings.tracker == "none" else settings.tracker,
                project_dir=str(out / "log"),
                # `batch` is that of all processes together
                dataloader_config=DataLoaderConfiguration(split_batches=True),
                step_scheduler_with_optimizer=False,
            )
    except ValueError as error:
        raise UserError(f"--precision {settings.precision}, --tracker {settings.tracker}: {error}") from None
    if settings.tracker != "none" and not accelerator.log_with:
        raise UserError(f"--tracker {settings.tracker}: it is not installed")
    if settings.batch % accelerator.num_processes:
        raise UserError(f"--batch {settings.batch} cannot be shared evenly among {accelerator.num_processes} processes")
    return accelerator


def best_precision() -> Literal["no", "fp16", "bf16"]:
    """Half precision where the device has it. Emulated, as on most CPUs, it is slower than float32."""
    if torch.cuda.is_available():
        return "bf16" if torch.cuda.is_bf16_supported() else "fp16"
    native: dict[str, Any] = getattr(torch.cpu, "get_capabilities", dict)()
    return "bf16" if native.get("avx512_bf16") or native.get("amx_bf16") else "no"


def tell_leaks(held: Sequence[Sample], train: Sequence[Sample], what: str, who: Any, bearable: float = 0.5) -> int:
    """How many of the pictures to `what` are among those to train on; told where there are any.

    Raises:
        UserError: a `bearable` share of them is, or more: what is read in them tells nothing.
    """
    leaks = shared_pictures(held, train)
    if leaks:
        told = f"{len(leaks)} of {len(held)} pictures to {what} are among those to train on, as {leaks[0].name}"
        if len(leaks) >= bearable * len(held):
            raise UserError(f"{told}: give others")
        say(who, f"{told}: figures will flatter by as much")
    return len(leaks)


def made_of_others(made: Sequence[Sample], held: Sequence[Sample], own: Sequence[Sample]) -> list[Sample]:
    """Made pictures without those that vary one that validates. Where a made one does not say the hash of its source,
    name and text tell which it was, but for those of `own` samples: other folders may have the same names."""
    if not made:
        return []
    pictures = set(map(known_by, held)) - {None}
    shown = {(s.name, s.text) for s in held} - {(s.name, s.text) for s in own}
    return [
        s for s in made
        if (of not in pictures if (of := s.meta.get("source_sha256")) else (s.meta.get("source"), s.text) not in shown)
    ]  # fmt: skip


def read_data(settings: TrainSettings, accelerator: Accelerator) -> Data:
    """Read, check, split and open everything that the settings name.

    Raises:
        UserError: nothing to train or validate on is left, or the labels do not fit the charset asked for.
    """
    if settings.stream is None and not settings.data:
        raise UserError("say what to train on: --data DIR")
    if settings.stream is not None and (settings.data or settings.with_synthetic):
        raise UserError("a stream stands in place of data: leave --data and --with-synthetic out")
    if settings.stream is not None and (settings.validation is None or settings.charset is None):
        raise UserError("with a stream, say what to validate on (--validation DIR) and which --charset to read")
    real = merge([read_manifest(p, settings.label_pattern) for p in settings.data])
    if settings.limit:
        real = real.first(settings.limit)
    made = merge([read_manifest(p) for p in settings.with_synthetic])
    earlier = merge([read_manifest(p, settings.label_pattern) for p in settings.keep])
    given = read_manifest(settings.validation, settings.label_pattern) if settings.validation else Manifest(())
    shares = (1 - settings.validation_share, settings.validation_share)
    kept = each_once(earlier.samples, but=real.samples)
    old, old_held = split_apart(kept, shares, seed=0) if kept else ([], [])
    if settings.validation is not None:
        held: Sequence[Sample] = given.samples
        own: Sequence[Sample] = real.samples
    else:
        own, held = split_apart(real.samples, shares, seed=0) if len(real) else ([], [])
    drawn = made_of_others(made.samples, [*held, *old_held], [*own, *old])
    if len(drawn) < len(made):
        say(accelerator, f"{len(made) - len(drawn)} of {len(made)} made pictures vary one to validate on: left out")
    made = replace(made, samples=tuple(drawn))
    held = [*held, *(replace(s, name=f"keep/{s.name}") for s in old_held)]
    manifests = (real, made, earlier, given)
    labels = [s.text for s in (*own, *held, *old)]
    if not any(labels):
        unread = [p for m in manifests for p in m.problems]
        say(accelerator, problem_table(unread, len(unread)))
        raise UserError(f"{' '.join(settings.data)}: no sample is left to train on")
    longest = max(settings.frame.longest, *map(len, (*labels, *(s.text for s in made))))
    start, size = checkpoint.find_start(settings.start, settings.size)
    teachers = [Path(teacher) for teacher in settings.teacher]
    charset = checkpoint.charset_of(labels, teachers or ([start] if start else []), settings.charset)
    if settings.head == "fixed" and start is not None:
        longest = max(longest, checkpoint.positions_of(checkpoint.read_weights(start)[0]))
    if settings.head == "fixed" and longest > (most := checkpoint.MOST_POSITIONS):
        raise UserError(f"a label holds {longest} characters, a fixed head has {most} places at most")
    form = SIZES[size]
    frame = Frame.for_texts(longest, form.height, settings.frame.max_width, settings.frame.trim)
    # from weights, pictures are at least as wide as those read them, and wide enough for narrow letters: 144 against 96
    # pixels at a height of 32 gave .79 for .70 on kcaptcha, 300 labels, and .90 for .82 on kelab, 100 (docs/log.md)
    seen = max(checkpoint.read_weights(start)[1].frame.min_width, 9 * form.height // 2) if start is not None else 0
    least = settings.frame.min_width or max(frame.min_width, seen)
    frame = replace(frame, min_width=min(least, frame.max_width))
    if settings.teacher:
        frame = frame_of_teachers(settings.teacher)  # or the lesson would be of other frames
        if frame.height != form.height:
            raise UserError(f"a {size!r} reader sees pictures {form.height} pixels high, its teacher {frame.height}")

    with Bar(accelerator, "opening", len(own) + len(made) + len(old) + len(held)) as bar:

        def opened(samples: Sequence[Sample]) -> Pictures:
            return Pictures(samples, charset, frame, settings.max_pixels, bar.advance)

        parts = [opened(own), opened(made.samples), opened(old)]
        validation = opened(held)
    problems = [p for m in manifests for p in m.problems] + [p for part in (*parts, validation) for p in part.problems]
    if problems:
        n = len(own) + len(held) + len(made) + len(old) + sum(len(m.problems) for m in manifests)
        say(accelerator, problem_table(problems, n))
    if not len(validation) or (settings.stream is None and not len(parts[0])):
        what = "validate" if len(parts[0]) or settings.stream else "train"
        where = settings.validation if what == "validate" and settings.validation else " ".join(settings.data)
        raise UserError(f"{where}: no sample is left to {what} on")
    # what is held of data has no copy there; whoever looks at what a network learns by heart validates on all of it
    learned = [s for part in (parts if settings.validation else parts[1:2]) for s in part.samples]
    tell_leaks(validation.samples, learned, "validate on", accelerator, math.inf)
    count = [len(part) for part in parts]
    what = f"{count[0]} real and {count[1]} made samples" + (f" and {count[2]} kept ones" if count[2] else "")
    if settings.charset is None:
        say(accelerator, tell_newcomers(labels, charset))
    unseen = "".join(sorted(set(charset.characters).difference(*labels, *(s.text for s in made))))
    say(
        accelerator,
        f"{'samples without end' if settings.stream else what} to train on, {len(validation)} to validate; "
        f"{len(charset)} characters{f', {unseen} in no label' if unseen and not settings.stream else ''}, "
        f"labels of up to {longest}",
    )
    train = Pictures.joined(parts)
    rows = [rows_of(part.samples) for part in (train, validation)]
    hashes = hash_of_rows(sorted(itertools.chain(*rows))), hash_of_rows(map(hash_of_rows, rows))
    return Data(train, count[0], count[2], validation, charset, frame, longest, problems, *hashes)


def make_batches(
    settings: TrainSettings, data: Data, accelerator: Accelerator, step: int, total: int
) -> Iterable[Batch]:
    """The batches of steps `step` to `total`, this process's part of each.

    Raises:
        UserError: a stream that cannot be loaded.
    """
    if settings.stream is None:
        plan = Plan(
            data.train.widths,
            data.real,
            settings.batch,
            settings.synthetic_share,
            settings.seed,
            data.kept,
            settings.keep_share,
        )
        sampler = StepSampler(plan, step, total)
        loader = DataLoader(
            data.train, batch_sampler=sampler, collate_fn=collate, num_workers=settings.workers,
            worker_init_fn=undisturbed,
        )  # fmt: skip
        return fetched(cast("Iterable[Batch]", accelerator.prepare(loader)))
    module, _, name = settings.stream.partition(":")
    try:
        cls: type[Stream] = getattr(importlib.import_module(module), name)
    except (ImportError, AttributeError, ValueError) as error:
        raise UserError(f"stream {settings.stream!r} cannot be loaded: {error}") from None
    stream = cls(data.charset, data.frame, settings.seed, settings.stream_settings)
    each = settings.batch // accelerator.num_processes
    places = range(accelerator.process_index * each, (accelerator.process_index + 1) * each)
    return (stream.batch(k, total, places, accelerator.device) for k in range(step, total))


def steps_of(settings: TrainSettings, data: Data) -> int:
    """How many batches a run trains on."""
    return max(1, settings.pictures_for(data.real) // settings.batch)


def begins_from(settings: TrainSettings) -> str:
    """SHA-256 over the weights that a run starts from, and those that teach it.

    Raises:
        UserError: one of them is no weights file.
    """
    start, _ = checkpoint.find_start(settings.start, settings.size)
    read = [*([start] if start else []), *map(Path, settings.teacher)]
    return hash_of_rows(map(checkpoint.weights_hash, read))


def open_run(settings: TrainSettings, out: Path, data: Data, resume: bool) -> None:
    """Make the run folder, or see that the one to resume holds the same data.

    Raises:
        UserError: the folder is taken, lies among its own data, or what it learns from is not the same any more.
    """
    facts = out / "run.json"
    read = {
        "data_sha256": data.hash, "order_sha256": data.order_hash, "start_sha256": begins_from(settings),
        "steps": steps_of(settings, data), "charset": data.charset.characters,
    }  # fmt: skip
    if resume:
        try:
            before = dict(json.loads(facts.read_text()))
        except (OSError, ValueError, TypeError):
            before = {}
        if before.get("data_sha256", data.hash) != data.hash:
            older = "" if "order_sha256" in before else ", or an earlier version began it and took other made pictures"
            raise UserError(
                f"{out} cannot be resumed: its pictures or labels have changed since{older}; start a new run"
            )
        if before.get("order_sha256", data.order_hash) != data.order_hash:  # their names say what validates
            raise UserError(
                f"{out} cannot be resumed: its pictures stand in another order or have other names, and so others may "
                "validate; put that back, or start a new run"
            )
        if before.get("start_sha256", read["start_sha256"]) != read["start_sha256"]:
            raise UserError(
                f"{out} cannot be resumed: the weights that it starts from, or that teach it, are others than when it "
                "began; put them back, or start a new run"
            )
        if before.get("steps", read["steps"]) != read["steps"]:
            raise UserError(
                f"{out} cannot be resumed: it began with {before['steps']:,} steps, and its settings ask for "
                f"{read['steps']:,}; put pictures and batch back, or start a new run"
            )
    elif out.exists() and (not out.is_dir() or not ended_at_first(out)):
        raise UserError(f"{out} exists and is not empty: name a new folder, or go on with --resume {quoted(out)}")
    if not resume:
        see_run_apart(out, settings)
    out.mkdir(parents=True, exist_ok=True)
    checkpoint.write_whole(out / "settings.toml", to_toml(settings))
    rows = [json.dumps({"file_name": p.name, "reason": p.kind, "detail": p.detail}) + "\n" for p in data.problems]
    checkpoint.write_whole(out / "problems.jsonl", "".join(rows))
    checkpoint.write_whole(out / "run.json", json.dumps(provenance() | read, indent=2) + "\n")


def see_run_apart(out: Path, settings: TrainSettings) -> None:
    """See that a run does not lie among pictures whose names are their labels.

    Raises:
        UserError: it does.
    """
    if settings.label_pattern:
        see_apart(out, [*settings.data, *settings.keep, *([settings.validation] if settings.validation else [])])


def ended_at_first(out: Path) -> bool:
    """Whether all that is in a folder is what a run leaves that ended before it had learned anything, as by a slip."""
    there = {p.name for p in out.iterdir()} - {"settings.toml.tmp"}
    return not there or there == {"settings.toml", "problems.jsonl", "run.json"}


def characters_of(out: Path) -> str | None:
    """The characters that a run to go on with reads, whatever its labels and its start tell by then; None where nothing
    says so."""
    with suppress(OSError, ValueError, KeyError, TypeError):
        return str(json.loads((out / "run.json").read_text())["charset"])
    with suppress(UserError):  # a run from before that was kept
        return checkpoint.read_weights(out)[1].charset
    return None


def provenance() -> dict[str, Any]:
    """Commit, versions and machine: what it takes to say where a number came from."""
    commit = ""
    with suppress(OSError):  # there need be no git
        commit = subprocess.run(
            ["git", "describe", "--always", "--dirty"],
            cwd=Path(__file__).parent,
            capture_output=True,
            text=True,
            check=False,
        ).stdout.strip()
    return {
        "commit": commit or "unknown",
        "python": platform.python_version(),
        "torch": torch.__version__,
        "machine": f"{platform.machine()}, {os.cpu_count()} processors",
        "device": torch.cuda.get_device_name() if torch.cuda.is_available() else "cpu",
    }


def resumed_settings(out: Path) -> TrainSettings:
    """The settings of a run, to go on with.

    Raises:
        UserError: no run's folder.
    """
    if not (out / "settings.toml").is_file():
        raise UserError(f"{out} is no run that can be resumed: it has no settings.toml")
    settings = load(TrainSettings, out / "settings.toml", {})
    if "trim" not in settings.frame.model_fields_set:  # a run from before there was such a thing
        settings = settings.model_copy(update={"frame": settings.frame.model_copy(update={"trim": False})})
    return settings


def schedule_of(
    optimizer: torch.optim.Optimizer, settings: TrainSettings, rate: float, total: int
) -> torch.optim.lr_scheduler.LRScheduler:
    """The learning rate by step of `total`, `rate` at its highest."""
    if settings.schedule == "cycle":
        # OneCycleLR divides by its steps less one
        warmup = settings.warmup and max(settings.warmup, min(2 / total, 0.9))
        return torch.optim.lr_scheduler.OneCycleLR(optimizer, rate, total_steps=total, pct_start=warmup)
    if settings.schedule == "decay":
        return torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: 1 - step / total)
    rising = max(1, round(settings.warmup * total))
    return torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: min(1.0, (step + 1) / rising))


def as_good(scores: Scores, best: tuple[float, float]) -> bool:
    """Whether weights read as well as the best before (exact match, minus character error rate), as far as so few
    pictures can tell: no less than its 95 % interval holds. Later weights are then the better ones: the learning rate
    has come down since, and of many readings of ten pictures one is right in all of them by chance (docs/log.md)."""
    if scores.exact == 0:
        return (0.0, -scores.character_error_rate) >= best
    return scores.exact >= wilson(round(best[0] * scores.n), scores.n)[0]


def weight_groups(network: Network, decay: float) -> list[dict[str, Any]]:
    """Parameters in two groups: matrices, which decay, and norms and biases, which do not."""
    matrices = [p for p in network.parameters() if p.ndim > 1]
    others = [p for p in network.parameters() if p.ndim <= 1]
    return [{"params": matrices, "weight_decay": decay}, {"params": others, "weight_decay": 0.0}]


def reads(name: str, head: str) -> bool:
    """Whether a tensor takes part in reading with `head`."""
    return not name.startswith("heads.") or name.startswith(f"heads.{head}.")


@contextmanager
def averaged(network: Network, average: Average) -> Iterator[None]:
    """The network with its averaged weights, in eval mode, for the length of a block."""
    own = {name: tensor.clone() for name, tensor in network.state_dict().items()}
    network.load_state_dict(average.shadow)
    network.eval()
    try:
        yield
    finally:
        network.load_state_dict(own)
        network.train()


@contextmanager
def interruptible() -> Iterator[list[int]]:
    """A list that stays empty until Ctrl-C or SIGTERM; a second one ends the process as usual."""
    seen: list[int] = []
    before: dict[int, Any] = {}

    def note(number: int, _: FrameType | None) -> None:
        seen.append(number)
        signal.signal(number, before[number])

    for watched in (signal.SIGINT, signal.SIGTERM):
        before[watched] = signal.signal(watched, note)
    try:
        yield seen
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def any_process(accelerator: Accelerator, flag: bool) -> bool:
    """Whether any process says so: all of them save, stop or go on together."""
    if accelerator.num_processes == 1:
        return flag
    flags: Tensor = accelerator.reduce(torch.tensor(float(flag), device=accelerator.device))
    return bool(flags > 0)


def due(accelerator: Accelerator, since: float, seconds: float) -> bool:
    return any_process(accelerator, time.monotonic() - since >= seconds)


def all_finite(accelerator: Accelerator, loss: float) -> bool:
    return not any_process(accelerator, not torch.tensor(loss).isfinite())


def finite_mean(values: Sequence[float | None]) -> float | None:
    """The mean of what is finite; a label without an alignment has an infinite likelihood."""
    finite = [v for v in values if v is not None and v != float("inf")]
    return sum(finite) / len(finite) if finite else None


class Metrics:
    """metrics.jsonl, a line a validation, and the tracker. Lines after the step resumed from are taken out first."""

    def __init__(
        self, accelerator: Accelerator, out: Path, tracker: str, project: str, config: Mapping[str, Any], step: int
    ) -> None:
        self._accelerator, self._path, self._tracker = accelerator, out / "metrics.jsonl", tracker
        if accelerator.is_main_process and self._path.exists():
            *lines, _ = self._path.read_text().split("\n")  # the last was cut off where it does not end
            kept = "".join(line + "\n" for line in lines if json.loads(line)["step"] <= step)
            self._path.with_name("metrics.jsonl.tmp").write_text(kept)
            self._path.with_name("metrics.jsonl.tmp").replace(self._path)
        if tracker != "none":
            flat = {k: v for k, v in config.items() if isinstance(v, int | float | str)}
            accelerator.init_trackers(project, config=flat)

    def write(self, step: int, **values: Any) -> None:
        if self._accelerator.is_main_process:
            with self._path.open("a") as file:
                file.write(json.dumps({"step": step, **values}, allow_nan=False) + "\n")
        numbers = {k: v for k, v in values.items() if isinstance(v, int | float)}
        self._accelerator.log(numbers, step=step)

    def show(self, name: str, pictures: Tensor, step: int) -> None:
        """Pictures (N, 3, H, W) of 0 to 1, where the tracker shows any."""
        if self._accelerator.is_main_process and self._tracker == "tensorboard":
            self._accelerator.get_tracker("tensorboard").log_images({name: pictures.clamp(0, 1).numpy()}, step=step)

    def close(self) -> None:
        """End the trackers; not the group of processes, as end_training does: another training may follow."""
        for tracker in self._accelerator.trackers:
            tracker.finish()
