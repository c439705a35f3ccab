"""The command `recognizer`. Heavy imports stand inside the commands, so that --help costs nothing."""

from __future__ import annotations

import json
import math
import os
import sys
from collections.abc import Iterator, Sequence
from enum import StrEnum
from io import TextIOWrapper
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from recognizer.errors import MOST_THREADS, UserError, one_line_errors, quoted, see_writable

if TYPE_CHECKING:
    from recognizer.decode import Constraint
    from recognizer.reader import Reader
    from recognizer.readings import Reading, Scores
    from recognizer.training.train import TrainSettings

typer_app = typer.Typer(
    no_args_is_help=True, add_completion=False, pretty_exceptions_enable=False, rich_markup_mode=None,
    help="Read short, distorted text in pictures that you own or may read, and learn to from few labels.",
)  # fmt: skip


def app() -> None:
    """The command, with one line for a user's mistake in place of a traceback."""
    with one_line_errors():
        typer_app()


class Size(StrEnum):
    """A network's size, as the command line takes it."""

    tiny = "tiny"
    small = "small"
    base = "base"


class Form(StrEnum):
    """How an exported reader is stored and computed."""

    half = "half"
    full = "full"
    int8 = "int8"
    int8_dynamic = "int8-dynamic"


class Head(StrEnum):
    """What reads a network's features, as the command line takes it."""

    conv = "conv"
    lstm = "lstm"
    fixed = "fixed"


Model = Annotated[Path | None, typer.Option("--model", help="A run's folder or a file; else the default reader.")]
Pattern = Annotated[
    str | None, typer.Option("--label-pattern", help="Labels are in the file names, as in '{text}_{id}.png'.")
]
Sets = Annotated[list[str] | None, typer.Option("--set", help="Any other setting, as name=value; repeatable.")]
MaxPixels = Annotated[int, typer.Option(help="Refuse pictures with more pixels than this.", min=1)]


# ------------------------------------------------------------------------------------------------------------- train


@typer_app.command()
def train(
    data: Annotated[
        list[Path] | None, typer.Option("--data", help="Labelled pictures to train on; repeatable.", show_default=False)
    ] = None,
    out: Annotated[Path | None, typer.Option(help="A new folder for the run.")] = None,
    resume: Annotated[Path | None, typer.Option(help="Go on with this run, exactly where it was.")] = None,
    validation: Annotated[Path | None, typer.Option(help="Labelled pictures to validate on; else a tenth.")] = None,
    with_synthetic: Annotated[list[Path] | None, typer.Option(help="Made pictures; repeatable.")] = None,
    synthetic_share: Annotated[float | None, typer.Option(help="Made pictures' share of each batch; 0.25.")] = None,
    unlabelled: Annotated[
        list[Path] | None, typer.Option(help="Pictures without labels, to learn from sure readings of; repeatable.")
    ] = None,
    keep: Annotated[
        list[Path] | None, typer.Option(help="What --from was trained on and must go on reading; repeatable.")
    ] = None,
    start: Annotated[
        str | None, typer.Option("--from", help="Weights or run to start from, or 'nothing'; else the default reader.")
    ] = None,
    size: Annotated[Size | None, typer.Option(help="tiny is the fastest, base wants a GPU; else as the start.")] = None,
    head: Annotated[
        Head | None,
        typer.Option(help="conv reads best; lstm is the classic CRNN; fixed has so many places."),
    ] = None,
    loss: Annotated[
        str | None,
        typer.Option(help="ctc, focal-ctc or balanced-ctc; with --head fixed bce, weighted-bce or focal-bce."),
    ] = None,
    pos_weight: Annotated[float | None, typer.Option(help="Of what is there, in weighted-bce; 3.")] = None,
    alpha: Annotated[float | None, typer.Option(help="Share of what is there, in focal-bce; 0.25.")] = None,
    gamma: Annotated[float | None, typer.Option(help="How little easy ones count; 1 in focal-ctc, 2 in -bce.")] = None,
    adaptive_gamma: Annotated[
        bool | None, typer.Option("--adaptive-gamma", help="Gamma by likelihood: 5 under .2, else 3.")
    ] = None,
    charset: Annotated[
        str | None, typer.Option(help="Characters to read; else those of the labels, and of your reader to start from.")
    ] = None,
    limit: Annotated[int | None, typer.Option(help="Use only the first so many samples.")] = None,
    pictures: Annotated[int | None, typer.Option(help="Pictures to see in all; else by the number of labels.")] = None,
    batch: Annotated[int | None, typer.Option(help="Pictures in a step, of all processes together; 32.")] = None,
    learning_rate: Annotated[float | None, typer.Option(help="The cycle's peak; 0.002, from weights 0.003.")] = None,
    precision: Annotated[str | None, typer.Option(help="auto, no, fp16 or bf16.")] = None,
    seed: Annotated[int | None, typer.Option(help="Of everything random.")] = None,
    seeds: Annotated[int | None, typer.Option(help="Trainings, from --seed on, whose mean is kept.")] = None,
    threads: Annotated[int | None, typer.Option(help="Of torch on a CPU.", min=0, max=MOST_THREADS)] = None,
    tracker: Annotated[str | None, typer.Option(help="tensorboard, any other that Accelerate knows, or none.")] = None,
    label_pattern: Pattern = None,
    config: Annotated[Path | None, typer.Option(help="Settings as TOML; options here go over it.")] = None,
    sets: Sets = None,
) -> None:
    """Train a reader. Ctrl-C saves; --resume goes on."""
    from accelerate import PartialState

    from recognizer.settings import load
    from recognizer.training.losses import TOLD
    from recognizer.training.train import TrainSettings, check_told, resumed_settings

    given = {
        "data": _texts(data), "validation": _text(validation), "with_synthetic": _texts(with_synthetic),
        "synthetic_share": synthetic_share, "unlabelled": _texts(unlabelled), "keep": _texts(keep),
        "start": start, "size": size, "head": head, "loss": loss, "pos_weight": pos_weight,
        "alpha": alpha, "gamma": gamma, "adaptive_gamma": adaptive_gamma, "charset": charset, "limit": limit,
        "pictures": pictures, "batch": batch, "learning_rate": learning_rate, "precision": precision, "seed": seed,
        "seeds": seeds, "threads": threads, "tracker": tracker, "label_pattern": label_pattern,
    }  # fmt: skip
    if resume is not None:
        rest = {**given, "out": out, "config": config, "set": sets or None}
        others = ["from" if name == "start" else name for name, value in rest.items() if value is not None]
        if others:
            raise UserError(f"--resume goes on with the run's own settings: leave --{others[0].replace('_', '-')} out")
        settings, out = resumed_settings(resume), resume
    else:
        if not data and config is None:
            raise UserError("say what to train on: --data DIR")
        if out is None:
            raise UserError("say where the run goes: --out RUN")
        settings = load(TrainSettings, config, given, sets or ())
        for name in TOLD:  # also where it is told what it is told anyway
            if given[name] is not None:
                check_told(name, settings.loss_name())
        if synthetic_share is not None and not settings.with_synthetic:
            raise UserError("--synthetic-share is of the pictures of --with-synthetic DIR: give that as well")
    if settings.unlabelled:
        from recognizer.training.pseudo import train_with_unlabelled as run
    else:
        from recognizer.training.seeds import train_seeds as run
    scores = run(settings, out, resume=resume is not None)
    PartialState().destroy_process_group()
    if not PartialState().is_main_process:
        return
    print(f"validation: {_scores_line(scores)}")

    from recognizer.deploy.export import export as write_onnx

    write_onnx(out)
    print(
        f"the best weights are {out / 'weights.safetensors'}; "
        f"read with: recognizer predict --model {quoted(out)} PICTURE"
    )


# ---------------------------------------------------------------------------------------------------------- evaluate


@typer_app.command()
def evaluate(
    model: Annotated[Path, typer.Option(help="A run's folder or its weights file.")],
    data: Annotated[list[Path], typer.Option(help="Labelled pictures; repeatable.")],
    out: Annotated[Path | None, typer.Option(help="A file for every reading; else readings.jsonl.")] = None,
    limit: Annotated[int | None, typer.Option(help="Use only the first so many samples.", min=1)] = None,
    threads: Annotated[int, typer.Option(help="Of torch on a CPU.", min=1, max=MOST_THREADS)] = 1,
    label_pattern: Pattern = None,
    max_pixels: MaxPixels = 16_000_000,
) -> None:
    """Read labelled pictures and say how well: exact match, character error rate, confusions."""
    path = out or Path("readings.jsonl")
    see_writable("--out", path)
    import torch
    from accelerate import Accelerator

    from recognizer.progress import say
    from recognizer.readings import Scores, auroc, calibration_error
    from recognizer.samples import merge, problem_table, read_manifest
    from recognizer.training.evaluate import evaluate as read
    from recognizer.training.evaluate import no_device

    torch.set_num_threads(threads)
    accelerator = Accelerator(cpu=no_device())
    manifest = merge([read_manifest(path, label_pattern) for path in data])
    if limit:
        manifest = manifest.first(limit)
    pictures, outcome = read(model, manifest.samples, accelerator, max_pixels)
    problems = [*manifest.problems, *pictures.problems]
    say(accelerator, problem_table(problems, len(manifest) + len(manifest.problems)))
    if not len(pictures):
        raise UserError(f"{manifest.source}: no sample is left to read")
    if not accelerator.is_main_process:
        return
    pairs = [(s.text, r.text) for s, r in zip(pictures.samples, outcome.readings, strict=True)]
    rows = [
        {
            "file_name": s.name,
            "text": s.text,
            "read": r.text,
            "confidence": r.confidence,
            # a label without an alignment has an infinite one, which JSON has not
            "nll": r.nll if r.nll is not None and math.isfinite(r.nll) else None,
        }
        for s, r in zip(pictures.samples, outcome.readings, strict=True)
    ]
    print_scores(Scores.of(pairs))
    right, sure = [truth == read for truth, read in pairs], [r.confidence for r in outcome.readings]
    print(
        f"confidence            calibration error {calibration_error(sure, right):.3f}, AUROC {auroc(sure, right):.3f}"
    )
    if unknown := sum(problem.kind == "not in the charset" for problem in pictures.problems):
        print(f"unknown characters    in {unknown} more pictures; with these as misread, "
              f"exact match {sum(right) / (len(right) + unknown):.4f}")  # fmt: skip
    lines = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
    path.write_text(lines, encoding="utf-8", errors="surrogateescape")  # a file's name need not be UTF-8
    print(f"every reading is in {path}")


def print_scores(scores: Scores) -> None:
    """What `recognizer evaluate` prints."""
    (low, high), (folded_low, folded_high) = scores.exact_interval, scores.exact_ignoring_case_interval
    print(f"pictures              {scores.n}")
    print(f"exact match           {scores.exact:.4f}   95 % interval {low:.4f} to {high:.4f}")
    print(f"  ignoring case       {scores.exact_ignoring_case:.4f}   {folded_low:.4f} to {folded_high:.4f}")
    print(f"character error rate  {scores.character_error_rate:.4f}")
    if scores.worst_confusions:
        print("worst confusions      true -> read, times")
    for (true, read), times in scores.worst_confusions:
        print(f"  {true or '(nothing)':>10} -> {read or '(nothing)':<10} {times}")


def _scores_line(scores: Scores) -> str:
    low, high = scores.exact_interval
    return (
        f"exact match {scores.exact:.3f} (95 % interval {low:.3f} to {high:.3f}, n = {scores.n}), "
        f"character error rate {scores.character_error_rate:.3f}"
    )


# -------------------------------------------------------------------------------------------- average, export, predict


@typer_app.command()
def average(
    models: Annotated[list[Path], typer.Argument(help="Runs or weights files, trained from one start.")],
    out: Annotated[Path, typer.Option(help="A new folder for their mean.")],
) -> None:
    """Make one reader of several trainings from one start: reads mostly better than each, in the time of one."""
    from recognizer.deploy.export import export as write_onnx
    from recognizer.training.average import average as mean_of

    mean_of(models, out)
    write_onnx(out)
    print(f"the mean of {len(models)} readers is in {out}; read with: recognizer predict --model {quoted(out)} PICTURE")


@typer_app.command()
def export(
    model: Annotated[Path, typer.Argument(help="A run's folder or a weights file.")],
    out: Annotated[Path | None, typer.Option(help="The file to write; else reader.onnx beside the weights.")] = None,
    form: Annotated[
        Form, typer.Option("--format", help="half: weights in half precision; int8: computed in 8 bits, wants --data.")
    ] = Form.half,
    data: Annotated[
        list[Path] | None, typer.Option(help="Pictures such as will be read, with labels: to calibrate and to compare.")
    ] = None,
    limit: Annotated[int, typer.Option(help="Use only the first so many samples.", min=1)] = 1000,
    label_pattern: Pattern = None,
) -> None:
    """Write the ONNX file that `recognizer predict` reads; with --data, and say what each format costs and reads."""
    import tempfile

    from recognizer.deploy.export import export as write_onnx
    from recognizer.deploy.export import measure, parted, verdict
    from recognizer.progress import Alone, say
    from recognizer.samples import merge, read_manifest

    samples = merge([read_manifest(path, label_pattern) for path in data or ()]).first(limit).samples if data else ()
    calibrated, compared = parted(samples)
    path, difference = write_onnx(model, out, form.value, calibrated)
    told = f"{path}: {path.stat().st_size:,} bytes"
    if not form.value.startswith("int8"):
        told += f"; largest difference from torch {difference:.1e} in log probability"
    print(told)
    if not samples:
        return
    say(Alone(), "writing the other formats")
    with tempfile.TemporaryDirectory() as folder:
        files = {
            other.value: path
            if other is form
            else write_onnx(model, Path(folder) / f"{other.value}.onnx", other.value, calibrated)[0]
            for other in (Form.full, Form.half, Form.int8, Form.int8_dynamic)
        }
        say(Alone(), f"reading {len(compared)} pictures with each of {len(files)} formats")
        rows = measure(files, compared)
    print("\nformat            bytes    right  read otherwise  ms alone  ms of 32")
    for row in rows:
        right = "" if row.right is None else f"{row.right:.3f}"
        print(
            f"{row.form:<13} {row.size:>9,} {right:>8} {row.differ:>7} of {row.n:<5} {row.alone:>8.2f} "
            f"{row.together:>9.2f}  {verdict(row, rows[0])}".rstrip()
        )
    print("one thread, a picture; right is whatever its case; compared with full")


@typer_app.command()
def predict(
    paths: Annotated[
        list[str] | None, typer.Argument(help="Pictures, folders, or - for one picture on standard input.")
    ] = None,
    model: Model = None,
    files_from: Annotated[
        Path | None,
        typer.Option(
            help="A file that lists pictures, one a line or ended by NUL; - is standard input.", allow_dash=True
        ),
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="A JSON list: file, text, confidence, characters.")] = False,
    as_csv: Annotated[bool, typer.Option("--csv", help="CSV with a header: file,text,confidence.")] = False,
    charset: Annotated[str | None, typer.Option(help="Read only these characters ('digits', '0123ABC').")] = None,
    length: Annotated[str | None, typer.Option(help="Read only texts of this length: 5, or 4-6.")] = None,
    pattern: Annotated[str | None, typer.Option(help="Read only texts of this form: LLLDDD, or U{2}\\-D{4}.")] = None,
    lexicon: Annotated[Path | None, typer.Option(help="Read only the words of this file, one a line.")] = None,
    n_best: Annotated[int, typer.Option(min=1, max=100, help="The most probable so many texts.")] = 1,
    min_confidence: Annotated[float, typer.Option(min=0, max=1, help="Abstain below this.")] = 0.0,
    threads: Annotated[
        int, typer.Option(help="Of ONNX Runtime; one is fastest for small pictures.", min=1, max=MOST_THREADS)
    ] = 1,
    max_pixels: MaxPixels = 16_000_000,
) -> None:
    """Read pictures: text and confidence, one line each. Needs no torch."""
    if as_json and as_csv:
        raise UserError("--json and --csv: choose one")
    from recognizer.reader import Reader, constraint_of
    from recognizer.samples import Problem, problem_table

    words = None if lexicon is None else read_lines("--lexicon", lexicon)
    if isinstance(sys.stdout, TextIOWrapper):  # a file's name need not be UTF-8; so escaped, it is JSON's own escape
        raw = not as_json and sys.stdout.encoding.lower().startswith("utf")
        sys.stdout.reconfigure(errors="surrogateescape" if raw else "backslashreplace")
    reader = Reader(model, threads, max_pixels)
    constraint = constraint_of(reader.charset, charset, length, pattern, words)
    reader.may_read(constraint)
    named = _pictures(paths or [], files_from)
    problems: list[Problem] = []
    write = _json_rows if as_json else _csv_rows if as_csv else _plain_rows
    total = write(_read_all(reader, named, constraint, n_best, min_confidence, problems))
    print(problem_table(problems, total), file=sys.stderr, end="\n" if problems else "")
    if problems and len(problems) == total:
        raise SystemExit(2)


def read_lines(option: str, path: Path) -> list[str]:
    """The lines of a text file, without empty ones.

    Raises:
        UserError: it cannot be read, or is no text.
    """
    try:
        return [line for line in path.read_text(encoding="utf-8-sig").splitlines() if line]
    except OSError as error:
        raise UserError(f"{option} {path}: {error.strerror}") from None
    except UnicodeDecodeError:
        raise UserError(f"{option} {path} is not UTF-8 text") from None


Row = dict[str, Any]


def _pictures(paths: Sequence[str], files_from: Path | None) -> list[tuple[str, Path | bytes]]:
    """What to read, by name. Folders are read whole, in order."""
    from recognizer.samples import list_pictures

    named: list[tuple[str, Path | bytes]] = []
    if files_from is not None:
        try:
            listed = sys.stdin.buffer.read() if str(files_from) == "-" else files_from.read_bytes()
        except OSError as error:
            raise UserError(f"--files-from {files_from}: {error.strerror}") from None
        lines = listed.removeprefix(b"\xef\xbb\xbf").split(b"\0") if b"\0" in listed else listed.splitlines()
        named += [(name, Path(name)) for name in map(os.fsdecode, lines) if name]
    for name in paths:
        if name == "-":
            named.append(("-", sys.stdin.buffer.read()))
        elif Path(name).is_dir():
            named += [(str(path), path) for path in list_pictures(Path(name))]
        else:
            named.append((name, Path(name)))
    if not named:
        raise UserError("no pictures to read: name files or folders, or give one on standard input as -")
    return named


def _read_all(
    reader: Reader, named: Sequence[tuple[str, Path | bytes]], constraint: Any, n_best: int, least: float, problems: Any
) -> Any:
    """A row for each picture, in order, 256 at a time."""
    from recognizer.images import PictureError
    from recognizer.samples import Problem

    for k in _bar(range(0, len(named), 256), len(named)):
        rows: list[Row] = []
        greys = []
        for name, source in named[k : k + 256]:
            try:
                greys.append(reader.open(source))
                rows.append({"file": name})
            except PictureError as error:
                problems.append(Problem(name, error.kind, str(error)))
                rows.append({"file": name, "error": f"{error.kind}: {error}"})
        readings = iter(reader.read(greys, constraint, n_best))
        for row in rows:
            yield row if "error" in row else row | _row(next(readings), n_best, least)


def _bar(starts: range, total: int) -> Iterator[int]:
    """Those numbers, with a bar where many pictures are read into a file; beside their own lines it would only jump."""
    if len(starts) < 2 or sys.stdout.isatty():
        yield from starts
        return
    from recognizer.progress import Alone, Bar

    with Bar(Alone(), "reading", total) as bar:
        for start in starts:
            yield start
            for _ in range(min(starts.step, total - start)):
                bar.advance()


def _row(reading: Reading, n_best: int, least: float) -> Row:
    sure = reading.confidence >= least
    row: Row = {
        "text": reading.text if sure else None,
        "confidence": round(reading.confidence, 6),
        "characters": [{"character": c, "confidence": round(p, 6)} for c, p in reading.characters],
    }
    if n_best > 1 and sure:
        ranked = [(reading.text, reading.confidence), *reading.alternatives]
        row["n_best"] = [{"text": text, "confidence": round(p, 6)} for text, p in ranked]
    return row


def _json_rows(rows: Any) -> int:
    total = 0
    for total, row in enumerate(rows, 1):
        whole = {"file": row["file"], "text": None, "confidence": None, "characters": []} | row
        print("[" if total == 1 else ",", json.dumps(whole, ensure_ascii=False), sep="\n" if total == 1 else "")
    print("]")
    return total


def _csv_rows(rows: Any) -> int:
    import csv

    writer = csv.writer(sys.stdout, lineterminator="\n")
    writer.writerow(["file", "text", "confidence"])
    total = 0
    for total, row in enumerate(rows, 1):  # noqa: B007
        for text, confidence in _ranked(row):
            writer.writerow([row["file"], text, confidence])
    return total


def _plain_rows(rows: Any) -> int:
    total = 0
    for total, row in enumerate(rows, 1):  # noqa: B007
        for text, confidence in _ranked(row):
            print(row["file"], text, f"{confidence:.4f}", sep="\t")
    return total


def _ranked(row: Row) -> list[tuple[str, float]]:
    """What a row's lines say: nothing for a picture that could not be opened, an empty text for an abstention."""
    if "error" in row:
        return []
    if "n_best" in row and row["text"] is not None:
        return [(r["text"], r["confidence"]) for r in row["n_best"]]
    return [(row["text"] or "", row["confidence"])]


# -------------------------------------------------------------------------------------------------------------- data


@typer_app.command()
def check(
    data: Annotated[list[Path], typer.Argument(help="Labelled pictures.")],
    charset: Annotated[str | None, typer.Option(help="Characters that labels may hold.")] = None,
    height: Annotated[int, typer.Option(help="The reader's height in pixels.", min=8, max=1024)] = 32,
    label_pattern: Pattern = None,
    max_pixels: MaxPixels = 16_000_000,
) -> None:
    """Open every picture and hold every label against it; list what cannot be used, and why."""
    from collections import Counter

    from recognizer.charset import Charset, tell_newcomers
    from recognizer.data.label import fits
    from recognizer.images import STRIDE, Frame, PictureError
    from recognizer.progress import Alone, Bar
    from recognizer.samples import Problem, merge, printable, problem_table, read_manifest
    from recognizer.samples import check as check_sample

    manifest = merge([read_manifest(path, label_pattern) for path in data])
    allowed = Charset.named(charset) if charset else None
    longest = max((len(s.text) for s in manifest), default=1)
    frame = Frame.for_texts(longest, height)
    problems, good = list(manifest.problems), []
    with Bar(Alone(), "checking", len(manifest)) as bar:
        for sample in manifest:
            try:
                check_sample(sample, allowed, frame, STRIDE, max_pixels)
                good.append(sample)
            except PictureError as error:
                problems.append(Problem(sample.name, error.kind, str(error)))
            bar.advance()
    lengths = Counter(len(s.text) for s in good)
    print(f"{len(good)} samples can be used; lengths: {', '.join(f'{k}: {n}' for k, n in sorted(lengths.items()))}")
    print(f"characters: {Charset.of(s.text for s in good).characters if good else ''}")
    if allowed is None and (few := tell_newcomers([s.text for s in good])):
        print(few)
    if odd := [s for s in good if not fits(s.text)]:
        name, text = printable(odd[0].name), odd[0].text
        print(f"{len(odd)} labels have space around them or characters that nobody sees, as {name}: {text!a}")
    print(problem_table(problems, len(good) + len(problems)), end="\n" if problems else "")
    if not good:
        raise UserError(f"{manifest.source}: no sample is left")


@typer_app.command()
def split(
    data: Annotated[list[Path], typer.Argument(help="Labelled pictures.")],
    out: Annotated[Path, typer.Option(help="A new folder; its parts are train/ and test/.")],
    test: Annotated[float, typer.Option(min=0.0, max=1.0, help="The test part's share.")] = 0.2,
    seed: Annotated[int, typer.Option(help="Of the draw.")] = 0,
    shards: Annotated[bool, typer.Option(help="Write WebDataset tar shards in place of folders.")] = False,
    label_pattern: Pattern = None,
) -> None:
    """Split samples in two, alike in lengths and rare characters; the same ones every time."""
    from recognizer.samples import merge, problem_table, read_manifest, see_apart, split_apart

    if out.exists() and any(out.iterdir()):
        raise UserError(f"{out} exists and is not empty: name a new folder")
    manifest = merge([read_manifest(path, label_pattern) for path in data])
    parts = dict(zip(("train", "test"), split_apart(manifest.samples, (1 - test, test), seed), strict=True))
    for name, part in parts.items():
        if not part:
            raise UserError(f"{manifest.source}: no sample is left for {out / name}")
    if label_pattern:
        see_apart(out, data)
    for name, part in parts.items():
        _write(part, out / name, shards)
    if manifest.problems:
        print(problem_table(manifest.problems, len(manifest) + len(manifest.problems)), file=sys.stderr)


@typer_app.command()
def merge(
    data: Annotated[list[Path], typer.Argument(help="Labelled pictures, in any layout.")],
    out: Annotated[Path, typer.Option(help="A new folder.")],
    shards: Annotated[bool, typer.Option(help="Write WebDataset tar shards in place of a folder.")] = False,
    label_pattern: Pattern = None,
) -> None:
    """Copy samples of one or more places into one, and so from one layout into another."""
    from recognizer.samples import merge as merge_manifests
    from recognizer.samples import problem_table, read_manifest, see_apart

    manifest = merge_manifests([read_manifest(path, label_pattern) for path in data])
    if not len(manifest):
        raise UserError(f"{manifest.source}: no sample is left for {out}")
    if label_pattern:
        see_apart(out, data)
    _write(manifest.samples, out, shards)
    if manifest.problems:
        print(problem_table(manifest.problems, len(manifest) + len(manifest.problems)), file=sys.stderr)


@typer_app.command()
def label(
    data: Annotated[list[Path], typer.Argument(help="Folders of pictures; those with labels are left alone.")],
    model: Model = None,
    review: Annotated[
        Path | None, typer.Option(help="What audit-labels or merge-labels wrote: look at these labels again.")
    ] = None,
    by: Annotated[str, typer.Option(help="Who labels; stands in each answer.")] = "",
    charset: Annotated[str | None, typer.Option(help="Guess only these characters ('digits', '0123ABC').")] = None,
    length: Annotated[str | None, typer.Option(help="Guess only texts of this length: 5, or 4-6.")] = None,
    pattern: Annotated[str | None, typer.Option(help="Guess only texts of this form: LLLDDD, or U{2}\\-D{4}.")] = None,
    port: Annotated[int, typer.Option(help="Of 127.0.0.1; else any that is free.", min=0, max=65535)] = 0,
    browser: Annotated[bool, typer.Option("--open", help="Open the page in a browser.")] = False,
) -> None:
    """Label pictures in a page on this machine: a reader fills in what it sees, you accept or correct it."""
    from recognizer.data.label import desk_of, read_doubts
    from recognizer.data.label_page import serve
    from recognizer.reader import Reader, constraint_of

    reader = Reader(model)
    constraint = constraint_of(reader.charset, charset, length, pattern)
    reader.may_read(constraint)
    rows = None if review is None else read_doubts(review)
    with desk_of(data, rows, by) as desk:
        if desk.outside:
            print(
                f"{desk.outside} pictures are links that lead out of their folder, and are not shown", file=sys.stderr
            )
        if not desk.pictures and not desk.before:
            what = "no picture is there" if rows is None else f"none of the {len(rows)} pictures of {review} is there"
            raise UserError(f"{', '.join(map(str, data))}: {what}")
        if not desk.pictures:
            raise UserError("every picture is answered" + (
                "; to look for wrong labels: recognizer audit-labels DIR --out AUDIT" if rows is None else ""
            ))  # fmt: skip
        serve(desk, reader, constraint, port, browser)
        state = desk.state()
    print(f"{state['answered']} of {state['total']} pictures are answered")


@typer_app.command()
def bench(
    paths: Annotated[list[Path] | None, typer.Argument(help="Pictures or folders; else some are drawn.")] = None,
    model: Model = None,
    seconds: Annotated[float, typer.Option(help="Of each measurement.", min=0.1)] = 3.0,
    limit: Annotated[int, typer.Option(help="Read only the first so many.", min=1)] = 1000,
) -> None:
    """Say how fast a reader reads here, file to text: alone and together, with one thread and with all."""
    from recognizer.deploy.bench import TOGETHER, drawn
    from recognizer.deploy.bench import bench as measure
    from recognizer.samples import list_pictures

    files = [file for path in paths or () for file in (list_pictures(path) if path.is_dir() else [path])][:limit]
    if paths and not files:
        raise UserError(f"{' '.join(map(str, paths))}: no picture is there")
    try:
        data = [file.read_bytes() for file in files] or drawn()
    except OSError as error:
        raise UserError(f"{error.filename}: {error.strerror}") from None
    found = measure(model, data, seconds)
    print(f"{'threads':<9}{'alone ms: median':>17}{'90 %':>8}{'99 %':>8}{'CPU':>8}{'a second':>10}"
          f"{f'{TOGETHER} at once: a second':>24}{'CPU ms':>8}")  # fmt: skip
    for own in found:
        low, high, highest = own.alone
        print(f"{own.threads:<9}{low:>17.2f}{high:>8.2f}{highest:>8.2f}{own.alone_cpu:>8.2f}{own.a_second:>10.0f}"
              f"{own.together:>24.0f}{own.together_cpu:>8.2f}")  # fmt: skip
    fastest = max(found, key=lambda own: own.together)
    left = len(data) - fastest.pictures
    unread = f" ({left} could not be opened)" if left else ""
    print(f"file to text, {fastest.pictures} pictures{unread}; fastest together with --threads {fastest.threads}; "
          "predict takes one unless told, serve one for each batch and as many batches at once as there are "
          "processors")  # fmt: skip


# ---------------------------------------------------------------------------------------------------------- compress

compress_app = typer.Typer(no_args_is_help=True, add_completion=False, help="Make a reader smaller, or faster.")
typer_app.add_typer(compress_app, name="compress")
Labelled = Annotated[list[Path], typer.Option("--data", help="Labelled pictures to train on; repeatable.")]
Compressed = Annotated[Path, typer.Option("--out", help="A folder; given again, the run goes on.")]
First = Annotated[int | None, typer.Option(help="Use only the first so many labels.", min=1)]
Held = Annotated[Path | None, typer.Option(help="Labelled pictures to validate on; else a tenth.")]
Seen = Annotated[int | None, typer.Option("--pictures", help="Pictures to see in all; else by the number of labels.")]


def _training(
    data: list[Path], pictures: int | None, limit: int | None, validation: Path | None, seed: int,
    label_pattern: str | None, sets: list[str] | None, **more: Any,
) -> TrainSettings:  # fmt: skip
    from recognizer.settings import load
    from recognizer.training.train import TrainSettings

    given = {
        "data": _texts(data), "pictures": pictures, "limit": limit, "validation": _text(validation), "seed": seed,
        "label_pattern": label_pattern, **more,
    }  # fmt: skip
    return load(TrainSettings, None, given, sets or ())


def _told(scores: Scores, out: Path) -> None:
    print(f"validation: {_scores_line(scores)}")
    print(f"read with: recognizer predict --model {quoted(out)} PICTURE")


@compress_app.command()
def distill(
    teacher: Annotated[list[str], typer.Option(help="Weights or a run, or 'default'; several teach their mean.")],
    data: Labelled,
    out: Compressed,
    unlabelled: Annotated[
        list[Path] | None, typer.Option(help="Pictures without labels, to be taught as the teacher reads them.")
    ] = None,
    student: Annotated[Size, typer.Option(help="What learns.")] = Size.tiny,
    pictures: Seen = None,
    limit: First = None,
    validation: Held = None,
    seed: Annotated[int, typer.Option(help="Of everything random.")] = 0,
    label_pattern: Pattern = None,
    sets: Sets = None,
) -> None:
    """Teach a smaller reader what a larger one reads, frame by frame."""
    from recognizer.deploy.compress import distill as teach

    settings = _training(
        data, pictures, limit, validation, seed, label_pattern, sets, teacher=teacher, size=student.value
    )
    _told(teach(settings, unlabelled or (), out), out)


@compress_app.command()
def prune(
    model: Annotated[Path, typer.Option(help="A run's folder or a weights file.")],
    data: Labelled,
    out: Compressed,
    keep: Annotated[float, typer.Option(help="Share of the inner channels that is left.", min=0.05, max=1)] = 0.5,
    pictures: Seen = None,
    limit: First = None,
    validation: Held = None,
    seed: Annotated[int, typer.Option(help="Of everything random.")] = 0,
    label_pattern: Pattern = None,
    sets: Sets = None,
) -> None:
    """Take the channels out that carry least, and train what is left, taught by the whole reader."""
    from recognizer.deploy.compress import prune as take_out

    settings = _training(data, pictures, limit, validation, seed, label_pattern, sets)
    _told(take_out(settings, model, keep, out), out)


@compress_app.command()
def quantize(
    model: Annotated[Path, typer.Option(help="A run's folder or a weights file.")],
    data: Annotated[list[Path], typer.Option(help="Pictures such as will be read, with labels; repeatable.")],
    out: Annotated[Path, typer.Option(help="The ONNX file to write.")],
    label_pattern: Pattern = None,
) -> None:
    """Compute in 8 bits, in the ranges that your pictures reach: export --format int8."""
    export(model, out, Form.int8, data, 1000, label_pattern)


@typer_app.command()
def serve(
    model: Model = None,
    host: Annotated[str, typer.Option(help="Address to listen at; else this machine alone hears.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(help="0 is any that is free.", min=0, max=65535)] = 8000,
    token_file: Annotated[
        Path | None, typer.Option(help="A file that holds the token which requests must bear.")
    ] = None,
    threads: Annotated[
        int, typer.Option(help="Batches read at once; 0 is one a processor.", min=0, max=MOST_THREADS)
    ] = 0,
    batch: Annotated[int, typer.Option(help="Pictures read together, at most.", min=1)] = 32,
    waiting: Annotated[int, typer.Option(help="Pictures that may wait; over it a request is put off.", min=1)] = 1024,
    max_bytes: Annotated[int, typer.Option(help="Of a request.", min=1)] = 10 * 2**20,
    max_pictures: Annotated[int, typer.Option(help="Of a request.", min=1)] = 64,
    max_seconds: Annotated[float, typer.Option(help="To send a request and to wait for its answer.", min=0.01)] = 30,
    max_pixels: MaxPixels = 4_000_000,
    keep_uncertain: Annotated[
        Path | None, typer.Option(help="Keep pictures that are read unsurely here, for recognizer label.")
    ] = None,
    below: Annotated[float, typer.Option(help="What is unsure.", min=0, max=1)] = 0.8,
    charset: Annotated[str | None, typer.Option(help="Read only these characters ('digits', '0123ABC').")] = None,
    length: Annotated[str | None, typer.Option(help="Read only texts of this length: 5, or 4-6.")] = None,
    pattern: Annotated[str | None, typer.Option(help="Read only texts of this form: LLLDDD, or U{2}\\-D{4}.")] = None,
) -> None:
    """Read pictures over HTTP: POST /v1/read, and a page to try it. A new model file is taken up at once."""
    from recognizer.deploy.serve import Keep, Limits, Service
    from recognizer.deploy.serve import serve as answer
    from recognizer.reader import constraint_of

    def constrain(reader: Reader) -> Constraint | None:
        constraint = constraint_of(reader.charset, charset, length, pattern)
        reader.may_read(constraint)
        return constraint

    token = None
    if token_file is not None:
        try:
            token = token_file.read_text(encoding="utf-8").strip()
        except (OSError, UnicodeDecodeError) as error:
            raise UserError(f"{token_file}: {error}") from None
        if not token or not token.isascii() or len(token.split()) > 1:
            raise UserError(f"{token_file} holds no token: one line of ASCII is needed")
    limits = Limits(max_bytes, max_pixels, max_pictures, max_seconds, waiting, batch=batch)
    keep = None if keep_uncertain is None else Keep(keep_uncertain, below)
    each = threads or (len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1)
    answer(Service(model, limits, keep, constrain, each), host, port, token)


@typer_app.command("merge-labels")
def merge_labels(
    journals: Annotated[list[Path], typer.Argument(help="labels.jsonl of several labellers of the same pictures.")],
    out: Annotated[Path, typer.Option(help="A new folder: metadata.jsonl, and what they disagree on.")],
) -> None:
    """Merge what several people labelled: what they agree on, and a table of what they do not."""
    from recognizer.data.label import merge_answers, write_merged
    from recognizer.samples import printable

    if len(journals) < 2:
        raise UserError("name the labels.jsonl of two labellers or more")
    if out.exists():
        raise UserError(f"{out} exists: name a new folder")
    merged = merge_answers(journals)
    write_merged(merged, out)
    print(f"{len(merged.agreed)} pictures have one label, {merged.alone} of them of one labeller alone")
    print(f"{len(merged.unreadable)} are unreadable to all who saw them")
    print(f"{len(merged.disagreed)} are disagreed on{':' if merged.disagreed else ''}")
    for name, said in merged.disagreed.items():
        print(f"  {printable(name)}  " + "  ".join(f"{by}: {text or '(unreadable)'}" for by, text in said.items()))
    if merged.disagreed:
        print(f"settle them with: recognizer label {quoted(out)} --review {quoted(out / 'disagreements.jsonl')}")
    if missing := len(merged.agreed) + len(merged.disagreed) - len(merged.pictures):
        print(f"{missing} of the pictures are not beside their labels.jsonl: copy them to {out}")
    print(f"train with: recognizer train --data {quoted(out)} --out RUN")


@typer_app.command()
def diagnose(
    data: Annotated[list[Path], typer.Argument(help="Labelled pictures.")],
    test: Annotated[
        list[Path] | None, typer.Option(help="Labelled pictures to test on, which must not be among these; repeatable.")
    ] = None,
    model: Model = None,
    report: Annotated[Path | None, typer.Option(help="Write all of it as one HTML file as well.")] = None,
    limit: Annotated[int | None, typer.Option(help="Use only the first so many samples.", min=1)] = None,
    label_pattern: Pattern = None,
) -> None:
    """Say what is in the data, whether there is a signal to learn, and how a reader fails on them."""
    from recognizer.data.diagnose import bears_on, describe, print_described, signal
    from recognizer.data.failures import failures_of, print_failures, trained_by
    from recognizer.reader import Reader
    from recognizer.samples import merge, problem_table, read_manifest

    if report is not None:
        see_writable("--report", report)
    opened = Reader(model)  # a wrong one is told of before the work
    manifest = merge([read_manifest(path, label_pattern) for path in data])
    if limit:
        manifest = manifest.first(limit)
    held_out = merge([read_manifest(path, label_pattern) for path in test or ()])
    if problems := [*manifest.problems, *held_out.problems]:
        print(problem_table(problems, len(manifest) + len(held_out) + len(problems)), file=sys.stderr)
    if not len(manifest):
        raise UserError(f"{manifest.source}: no sample is left")
    described = describe(manifest.samples, held_out.samples)
    if not described.samples:
        raise UserError(f"{manifest.source}: no picture can be opened")
    reader, found = "the default reader" if model is None else str(model), signal(manifest.samples)
    failed = failures_of(opened, described.samples, trained_by(model))
    tests = bears_on(described.features, [s.text for s in described.samples], failed.wrong)
    print_described(described, found, reader, failed.wrong, tests)
    print_failures(failed, reader)
    if report is not None:
        from recognizer.data.diagnosis import write_diagnosis

        write_diagnosis(report, described, found, failed, reader, tests)
        print(f"report: {report}")


@typer_app.command("audit-labels")
def audit_labels(
    data: Annotated[list[Path], typer.Argument(help="Labelled pictures.")],
    out: Annotated[Path, typer.Option(help="A folder for the list and for the readers.")],
    start: Annotated[
        str, typer.Option("--from", help="Weights or run that the readers start from, or 'nothing'.")
    ] = "default",
    folds: Annotated[int, typer.Option(help="Readers; each learns all parts but two.", min=3)] = 5,
    pictures: Annotated[int | None, typer.Option(help="Pictures that a reader sees; else by labels.", min=1)] = None,
    jobs: Annotated[
        int, typer.Option(help="Trainings beside each other; one processor each.", min=1, max=MOST_THREADS)
    ] = 2,
    show: Annotated[int, typer.Option(help="Print the first so many.", min=0)] = 20,
    seed: Annotated[int, typer.Option(help="Of everything random.")] = 0,
    label_pattern: Pattern = None,
) -> None:
    """List the labels that look wrong, the surest first. Nothing is changed: look at them with label --review."""
    from recognizer.data.audit import audit, write_doubts
    from recognizer.data.copies import MOST
    from recognizer.data.label import how_to_review
    from recognizer.samples import merge, printable, problem_table, read_manifest, see_apart

    manifest = merge([read_manifest(path, label_pattern) for path in data])
    see_apart(out, data)
    if manifest.problems:
        print(problem_table(manifest.problems, len(manifest) + len(manifest.problems)), file=sys.stderr)
    found, problems = audit(manifest, out, jobs, start, folds, pictures, seed)
    write_doubts(found, out / "audit.jsonl")
    print(f"{len(found)} of {len(manifest)} labels are doubted; they are in {out / 'audit.jsonl'}, the surest first")
    for doubt in found[:show]:
        name, why = printable(doubt.sample.name), printable("; ".join(doubt.reasons))
        print(f"  {doubt.score:>5.1f}  {name}  labelled {doubt.sample.text!r}: {why}")
    if found:
        print(how_to_review(data, label_pattern, out / "audit.jsonl"))
    if len(manifest) > MOST:
        print(f"pictures that are nearly the same were looked for among the first {MOST:,} alone")
    if problems:
        print(problem_table(problems, len(manifest)), file=sys.stderr)


def _write(samples: Sequence[Any], out: Path, shards: bool) -> None:
    from recognizer.samples import write_folder, write_shards

    (write_shards if shards else write_folder)(samples, out)
    print(f"{out}: {len(samples)} samples")


def _text(path: Path | None) -> str | None:
    return None if path is None else str(path)


def _texts(paths: list[Path] | None) -> list[str] | None:
    return [str(path) for path in paths] if paths else None


if __name__ == "__main__":
    app()
