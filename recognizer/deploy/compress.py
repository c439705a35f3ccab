"""Make a reader smaller: teach a small one (distill), take channels out (prune), or compute in 8 bits (quantize).

Each writes a run's folder: `weights.safetensors`, `reader.onnx` and `scores.json` beside the training that they come
from. Killed at any moment, the same command goes on.
"""

from __future__ import annotations

import json
import shutil
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from torch import Tensor

from recognizer.decode import Constraint
from recognizer.deploy.export import export
from recognizer.errors import Stopped, UserError
from recognizer.progress import Alone, say
from recognizer.reader import Reader
from recognizer.readings import Scores
from recognizer.training.batches import Pictures
from recognizer.training.checkpoint import (
    build,
    charset_of,
    find_weights,
    last_state,
    names_in,
    read_weights,
    save_weights,
    weights_hash,
    widths_of,
    write_whole,
)
from recognizer.training.evaluate import shown_case
from recognizer.training.pseudo import labelled_by, take_surest, without_labels
from recognizer.training.seeds import train_seeds
from recognizer.training.teach import frame_of_teachers
from recognizer.training.train import TrainSettings, see_run_apart

FEWEST = 8  # channels that are left anywhere
BEFORE = {"asked.json", "pruned.safetensors", "read", "read.tmp", "training"}  # what may be there before it is trained


def distill(settings: TrainSettings, unlabelled: Sequence[Path], out: Path) -> Scores:
    """Train a pupil as `settings` say, which name its teachers, into `out`. Pictures without labels are taught under
    what the first teacher reads in them. It reads the characters of the labels, and others that all teachers read whom
    pictures taught.

    Raises:
        UserError: nothing to teach, or as `train`.
        Stopped: Ctrl-C; the same command goes on.
    """
    if not settings.teacher:
        raise UserError("say who teaches: --teacher WEIGHTS")
    frame_of_teachers(settings.teacher)
    _open(out, {"unlabelled": list(map(str, unlabelled))}, settings)
    if unlabelled:
        read = out / "read"
        if not read.exists():
            _label(settings, unlabelled, read)
        settings = settings.model_copy(update={"with_synthetic": (*settings.with_synthetic, str(read))})
    return _trained(settings, out)


def prune(settings: TrainSettings, model: Path, keep: float, out: Path) -> Scores:
    """Take the channels of a reader that carry least out, `keep` of each kind are left, and train what is left as
    `settings` say, taught by the whole reader where these name no other teacher.

    Raises:
        UserError: weights of a recurrent head, or as `train`.
        Stopped: Ctrl-C; the same command goes on.
    """
    mark = weights_hash(model)
    _open(out, {"model": mark, "keep": keep}, settings)
    start = out / "pruned.safetensors"
    if not start.exists():
        state, description = read_weights(model)
        if description.head != "conv":
            raise UserError(f"{model} has a {description.head} head; channels are taken out of convolution heads alone")
        left = without(state, keep)
        before, after = (sum(t.numel() for t in s.values()) for s in (state, left))
        build(left, description)
        say(Alone(), f"{before:,} numbers before, {after:,} after: {after / before:.0%}")
        save_weights(start, left, replace(description, scores={}))
    teacher = settings.teacher or (str(find_weights(model)),)
    return _trained(settings.model_copy(update={"start": str(start), "teacher": teacher}), out)


def without(state: Mapping[str, Tensor], keep: float) -> dict[str, Tensor]:
    """The tensors of a convolution reader without the inner channels that carry least, of each block and of the head.

    What a channel carries: the norm of the filter that makes it, times its scale in the norm behind it, times the norm
    of the filters that take it up (Li et al. 2017, "Pruning Filters for Efficient ConvNets", arXiv 1608.08710, with
    what comes before and after).
    """
    left = dict(state)

    def take(maker: str, norm: str, takers: Sequence[str]) -> None:
        made = left[f"{maker}.weight"]
        carried = made.flatten(1).norm(dim=1)
        scale = left[f"{norm}.weight"].abs() / (left[f"{norm}.running_var"] + 1e-5).sqrt()
        for taker in takers:
            weight = left[f"{taker}.weight"]
            carried = carried * weight.transpose(0, 1).flatten(1).norm(dim=1)
        n = len(made)
        kept = (carried * scale).topk(max(round(keep * n), min(FEWEST, n))).indices.sort().values
        left[f"{maker}.weight"] = made[kept]
        for part in ("weight", "bias", "running_mean", "running_var"):
            left[f"{norm}.{part}"] = left[f"{norm}.{part}"][kept]
        for taker in takers:
            left[f"{taker}.weight"] = left[f"{taker}.weight"][:, kept]

    for k in range(len(widths_of(state).blocks)):
        take(f"trunk.blocks.{k}.conv1", f"trunk.blocks.{k}.norm1", [f"trunk.blocks.{k}.conv2"])
    take("heads.conv.body.0", "heads.conv.body.1", ["heads.conv.body.3"])
    take("heads.conv.body.3", "heads.conv.body.4", ["heads.conv.classify"])
    return left


def _open(out: Path, asked: Mapping[str, Any], settings: TrainSettings) -> None:
    """Make the folder, or see that what lies in it was asked for in the same words."""
    told = json.dumps({"asked": asked, "settings": settings.model_dump(mode="json")}, indent=1) + "\n"
    kept = out / "asked.json"
    if kept.is_file():
        if kept.read_text(encoding="utf-8") == told:
            return
        trainings = [out / "training", *(out / "training").glob("seed-*")]
        learned = any(last_state(run) or (run / "scores.json").exists() for run in trainings)
        if learned or {p.name for p in out.iterdir()} - BEFORE:
            raise UserError(f"{out} was begun with other settings (see {kept}): name a new folder")
        shutil.rmtree(out)  # it failed before anything was learned
    see_run_apart(out, settings)
    if out.exists() and (not out.is_dir() or {p.name for p in out.iterdir()} - {"asked.json.tmp"}):
        raise UserError(f"{out} exists and holds something else: name a new folder")
    out.mkdir(parents=True, exist_ok=True)
    write_whole(kept, told)


def _trained(settings: TrainSettings, out: Path) -> Scores:
    run = out / "training"
    try:
        scores = train_seeds(settings, run, resume=(run / "settings.toml").is_file())
    except Stopped as stopped:
        raise Stopped(f"{str(stopped).split(';')[0]}; give the same command again to go on") from None
    export(run)
    for name in ("weights.safetensors", "scores.json", "reader.onnx"):
        shutil.copy(run / name, out / f"{name}.tmp")
        (out / f"{name}.tmp").replace(out / name)
    return scores


def _label(settings: TrainSettings, folders: Sequence[Path], out: Path) -> None:
    """Write the pictures of some folders under what the first teacher reads in them, in the characters and the case of
    the labels."""
    labelled = labelled_by(settings)
    files = without_labels(folders, labelled, Alone(), settings.max_pixels)
    teacher = Path(settings.teacher[0])
    charset = charset_of((s.text for s in labelled), [Path(t) for t in settings.teacher], settings.charset)
    opened = Pictures(labelled[:512], charset, read_weights(teacher)[1].frame, settings.max_pixels)
    case = shown_case(teacher, opened)
    with tempfile.TemporaryDirectory() as folder:
        onnx, _ = export(teacher, Path(folder) / "teacher.onnx")
        reader = Reader(onnx, max_pixels=settings.max_pixels)
    names = dict(zip(names_in(reader.charset, charset.characters, case), charset.characters, strict=True))
    known = "".join(name for name in names if name in reader.charset)
    tmp = out.with_name("read.tmp")
    shutil.rmtree(tmp, ignore_errors=True)
    kept = take_surest(reader, files, 0.0, tmp, constraint=Constraint.characters(known, reader.charset), known_as=names)
    if not kept:
        raise UserError(f"--unlabelled: {teacher} reads nothing in {len(files)} pictures")
    tmp.replace(out)
