"""The command `augment`: find what a reader misreads, and make labelled lookalikes of it."""

from __future__ import annotations

import json
import re
import shlex
import sys
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import replace
from itertools import zip_longest
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, cast

import typer

from recognizer.errors import MOST_THREADS, UserError, one_line_errors, quoted, see_writable

if TYPE_CHECKING:
    from PIL import Image

    from augment.method import Learner
    from recognizer.reader import Reader
    from recognizer.samples import Manifest, Sample

typer_app = typer.Typer(
    no_args_is_help=True, add_completion=False, pretty_exceptions_enable=False, rich_markup_mode=None,
    help="Find what a reader misreads, and make labelled lookalikes of exactly that.",
)  # fmt: skip

Pattern = Annotated[
    str | None, typer.Option("--label-pattern", help="Labels are in the file names, as in '{text}_{id}.png'.")
]
Sets = Annotated[list[str] | None, typer.Option("--set", help="A setting of the method, as name=value; repeatable.")]


def app() -> None:
    """The command, with one line for a user's mistake in place of a traceback."""
    with one_line_errors():
        typer_app()


@typer_app.command()
def methods() -> None:
    """List the methods that make pictures."""
    from augment.methods import METHODS

    for name, (_, what) in METHODS.items():
        print(f"{name:<12} {what}")
    print("my.module:Class your own, any class that keeps the contract of augment.method.Method")


@typer_app.command("mine-errors")
def mine_errors(
    model: Annotated[Path, typer.Option(help="A run's folder or a weights file.")],
    data: Annotated[list[Path], typer.Option(help="Labelled pictures; repeatable.")],
    out: Annotated[Path, typer.Option(help="A new folder.")],
    folds: Annotated[
        int, typer.Option(help="Read each part with a reader that was trained on the others, as --model was.", min=0)
    ] = 0,
    count: Annotated[
        int | None, typer.Option(help="Requests of each kind; else as many as there are samples.", min=1)
    ] = None,
    limit: Annotated[int | None, typer.Option(help="Use only the first so many samples.", min=1)] = None,
    seed: Annotated[int, typer.Option(help="Of everything random.", min=0)] = 0,
    jobs: Annotated[
        int, typer.Option(help="Trainings beside each other; one processor each.", min=1, max=MOST_THREADS)
    ] = 2,
    label_pattern: Pattern = None,
) -> None:
    """Find misread samples; write them, their confusions, a contact sheet and the requests that practice answers.

    Without --folds the samples should be ones that the model was not trained on: what a reader was trained on, it
    reads too well.
    """
    from augment.likeness import features_of
    from augment.looks import looks_of
    from augment.mining import mine, plan, read_out_of_folds, write_mined
    from augment.synthesize import as_shown
    from recognizer.data.label import how_to_review
    from recognizer.progress import CONSOLE
    from recognizer.samples import merge, problem_table, read_manifest
    from recognizer.training.evaluate import default_case

    # with folds, readers that an attempt before has trained are used again
    if out.exists() and (not out.is_dir() or {p.name for p in out.iterdir()} - ({"folds"} if folds else set())):
        raise UserError(f"{out} exists and is not empty: name a new folder")
    manifest = merge([read_manifest(path, label_pattern) for path in data])
    if limit:
        manifest = manifest.first(limit)
    samples, readings, problems = read_out_of_folds(model, manifest.samples, folds, out, seed, jobs)
    everything = [*manifest.problems, *problems]
    if everything:
        CONSOLE.print(problem_table(everything, len(manifest) + len(manifest.problems)), markup=False)
    if not samples:
        raise UserError(f"{manifest.source}: no sample is left to read")
    looks = looks_of(features_of(model, samples))
    mined = mine(samples, readings, looks=looks.tolist())
    vary, draw = plan(mined, samples, len(samples) if count is None else count, seed)
    known_as = default_case(samples)
    write_mined(mined, [*vary, *(as_shown(request, known_as) for request in draw)], out)
    wrong = sum(h.misread for h in mined.hard)
    how = f"out of {folds} folds" if folds else "by the model as it is"
    print(f"{wrong} of {mined.read} samples are misread {how}, {len(mined.hard) - wrong} nearly so: {out / 'hard'}")
    if mined.kinds:
        print("  " + ", ".join(f"{kind}: {n}" for kind, n in mined.kinds.most_common()))
    for (true, read), times in mined.confused.most_common(10):
        print(f"  {true or '(nothing)':>10} -> {read or '(nothing)':<10} {times}")
    if not mined.hard:
        print("  nothing is misread: the requests are for any sample")
    if mined.suspects:
        print(f"{len(mined.suspects)} labels are likely wrong, and were set aside: {out / 'suspects'}")
        for h in mined.suspects[:10]:
            print(f"  {h.sample.name}: {h.sample.text} is read {h.reading.text}, {-h.margin:.0f} nats likelier")
        print(how_to_review(data, label_pattern, out / "suspects.jsonl"))
    words = ["augment", "synthesize", "--method", "classical", "--requests", str(out / "requests.jsonl")]
    words += [word for path in data for word in ("--data", str(path))]
    words += ["--label-pattern", label_pattern] if label_pattern else []
    print(f"make pictures with: {shlex.join(words)} --out DIR")


@typer_app.command()
def fit(
    method: Annotated[str | None, typer.Option(help="A method that learns.", show_default=False)] = None,
    data: Annotated[
        list[Path] | None,
        typer.Option(help="Labelled pictures to learn from; repeatable. Without any: rendered text, to pretrain."),
    ] = None,
    unlabelled: Annotated[
        list[Path] | None,
        typer.Option(help="Pictures without labels to learn from, by a method that can (match); repeatable."),
    ] = None,
    charset: Annotated[str | None, typer.Option(help="What these show ('upper+digits').")] = None,
    length: Annotated[str | None, typer.Option(help="How many characters: 5, or 4-6.")] = None,
    out: Annotated[Path | None, typer.Option(help="A new folder, for --fitted of augment synthesize.")] = None,
    resume: Annotated[Path | None, typer.Option(help="Go on with this fit, exactly where it was.")] = None,
    limit: Annotated[int | None, typer.Option(help="Use only the first so many samples.", min=1)] = None,
    label_pattern: Pattern = None,
    sets: Sets = None,
) -> None:
    """Let a method learn from real pictures. Ctrl-C saves; --resume goes on."""
    from augment.methods import load_learner
    from recognizer.samples import merge, problem_table, read_manifest
    from recognizer.settings import make

    asked: dict[str, Any] = {
        "method": method, "data": [str(path.resolve()) for path in data or ()], "limit": limit,
        "label_pattern": label_pattern, "settings": _settings(sets),
    }  # fmt: skip
    for name in ("model", "start"):  # from whatever folder it is gone on with, and its reader looked for
        if isinstance(path := asked["settings"].get(name), str) and Path(path).exists():
            asked["settings"][name] = str(Path(path).resolve())
    loose = {
        "unlabelled": [str(path.resolve()) for path in unlabelled or ()] or None, "charset": charset, "length": length
    }  # fmt: skip
    asked["settings"] |= (loose := {name: value for name, value in loose.items() if value is not None})
    if resume is not None:
        if any(asked[name] for name in asked) or out is not None:
            raise UserError("--resume goes on with the fit's own settings: leave the other options out")
        out, file = resume, resume / "asked.json"
        try:
            asked = json.loads(file.read_text(encoding="utf-8"))
        except (OSError, ValueError):
            raise UserError(f"{resume} is no fit that can be resumed: it has no asked.json") from None
    elif method is None or out is None:
        raise UserError("say which method learns, and where it goes: --method NAME --out DIR")
    elif out.exists() and any(out.iterdir()):
        raise UserError(f"{out} exists and is not empty: name a new folder, or go on with --resume {quoted(out)}")
    cls = load_learner(asked["method"])
    for name in loose:
        if name not in cls.FitSettings.model_fields:
            raise UserError(f"--method {asked['method']} learns from labelled pictures alone: leave --{name} out")
    if loose and not asked["data"] and (limit or label_pattern):
        raise UserError("--limit and --label-pattern are of labelled pictures: leave them out, or --set most=N")
    manifest = merge([read_manifest(Path(d), asked["label_pattern"]) for d in asked["data"]]) if asked["data"] else None
    if manifest is not None and asked["limit"]:
        manifest = manifest.first(asked["limit"])
    if manifest is not None and manifest.problems:
        print(problem_table(manifest.problems, len(manifest) + len(manifest.problems)), file=sys.stderr)
    settings = make(cls.FitSettings, asked["settings"], f"settings of fit --method {asked['method']}")
    told = cls.fit(manifest, settings, out, asked)
    print(f"{out}: {told}\nmake pictures with: augment synthesize --method {asked['method']} --fitted {quoted(out)}")


@typer_app.command()
def synthesize(
    method: Annotated[str, typer.Option(help="A name that `augment methods` lists, or your own my.module:Class.")],
    out: Annotated[Path, typer.Option(help="A new folder for the pictures.")],
    requests: Annotated[Path | None, typer.Option(help="Requests that mine-errors wrote.")] = None,
    data: Annotated[list[Path] | None, typer.Option(help="The real pictures that are varied; repeatable.")] = None,
    texts: Annotated[Path | None, typer.Option(help="A file of texts to draw, one a line.")] = None,
    charset: Annotated[str | None, typer.Option(help="Draw random texts of these characters ('upper+digits').")] = None,
    length: Annotated[
        str | None, typer.Option(help="Their length: 5, or 4-6, which is the default.", show_default=False)
    ] = None,
    count: Annotated[int | None, typer.Option(help="How many pictures.", min=1)] = None,
    size: Annotated[
        str | None, typer.Option(help="Pixels of a drawn picture, width x height; 160x60.", show_default=False)
    ] = None,
    fitted: Annotated[Path | None, typer.Option(help="What augment fit wrote, of a method that learns.")] = None,
    seed: Annotated[int | None, typer.Option(help="Of everything random; 0.", min=0)] = None,
    label_pattern: Pattern = None,
    sets: Sets = None,
) -> None:
    """Make pictures: from requests, from texts, from a charset and lengths, or by varying real ones.

    A method that learned (--fitted) draws texts of the characters and lengths that it knows, unless told others.
    """
    from augment.method import Sources, read_requests
    from augment.methods import create, load_class
    from augment.synthesize import (
        drawable,
        lengths_in,
        random_texts,
        requests_for_sources,
        requests_for_texts,
        variable,
        with_pairs,
    )
    from augment.synthesize import synthesize as make
    from recognizer.charset import Charset
    from recognizer.cli import read_lines
    from recognizer.progress import Alone, Bar, say
    from recognizer.samples import Problem, merge, problem_table, read_manifest

    cls = load_class(method)
    values = _settings(sets) | ({} if fitted is None else {"fitted": str(fitted)})
    given = [n for n, v in {"--requests": requests, "--texts": texts, "--charset": charset}.items() if v is not None]
    if len(given) > 1:
        raise UserError(f"{given[0]} and {given[1]}: choose one")
    takes_source = cls.needs_source or getattr(cls, "takes_source", False)
    varies = takes_source and bool(data) and not given
    idle = [
        ("--data", data and not takes_source, f"--method {method} draws from nothing"),
        ("--size", size and varies, "a varied picture keeps its size"),
        ("--size", size and requests, "requests say their sizes"),
        ("--length", length and varies, "a varied picture keeps its text"),
        ("--length", length and (requests or texts), "the texts are there"),
        ("--seed", seed is not None and requests, "requests say their seeds"),
    ]
    for option, does_nothing, why in idle:
        if does_nothing:
            raise UserError(f"{why}: leave {option} out")
    manifest = merge([read_manifest(path, label_pattern) for path in data]) if data else None
    problems: list[Problem] = [] if manifest is None else list(manifest.problems)
    if cls.needs_source and manifest is None:
        raise UserError(f"--method {method} varies real pictures: say which with --data DIR")
    if requests is not None:
        takes = {True} if cls.needs_source else {False, takes_source and manifest is not None}
        asked = [r for r in read_requests(requests) if (r.source is not None) in takes]
        if count is not None and count > len(asked):
            raise UserError(f"{requests} holds {len(asked)} requests that {method} answers: --count {count} is more")
        asked = asked[:count]
        if takes_source and not cls.needs_source and manifest is not None:
            asked = with_pairs(create(method, values), asked, Sources(manifest))
    elif cls.needs_source or varies:
        if given:
            raise UserError(f"--method {method} keeps the text of the picture it varies: leave {given[0]} out")
        assert manifest is not None
        asked, broken = requests_for_sources(manifest, count or max(len(manifest), 1), seed or 0)
        problems += broken
        if not cls.needs_source:
            asked = variable(create(method, values), asked, Sources(manifest))
    else:
        known = cast("Learner", create(method, values)).known if fitted is not None else None
        shape = _size(size) if size is not None else known.size if known is not None else (160, 60)
        if texts is not None:
            lines = read_lines("--texts", texts)
            if count is not None and count > len(lines):
                raise UserError(f"{texts} holds {len(lines)} texts: --count {count} is more")
            asked = requests_for_texts(lines[:count], shape, seed or 0)
        elif charset is not None or known is not None:
            characters = Charset(known.characters) if known and charset is None else Charset.named(charset or "")
            lengths = lengths_in(length or "4-6") if length is not None or known is None else known.lengths
            asked = requests_for_texts(random_texts(characters, lengths, count or 100, seed or 0), shape, seed or 0)
        else:
            raise UserError("say what to draw: --requests FILE, --texts FILE, or --charset and --length")
    if problems and manifest is not None:
        print(problem_table(problems, len(manifest) + len(manifest.problems)), file=sys.stderr)
    if 0 < len(able := drawable(create(method, values), asked)) < len(asked):
        other = next(r.text for r, left in zip_longest(asked, able) if r != left)
        say(Alone(), f"{len(asked) - len(able)} of {len(asked)} texts are left out: {method} cannot draw {other!r}")
        asked = able
    with Bar(Alone(), f"making with {method}", len(asked)) as bar:
        sources = Sources(manifest) if manifest is not None else None
        n = make(method, values, asked, out, sources, bar.advance)
    print(f"{out}: {n} pictures")


@typer_app.command("filter")
def filter_made(
    made: Annotated[Path, typer.Option(help="Made pictures.")],
    data: Annotated[list[Path], typer.Option(help="Real labelled pictures that the judge did not train on.")],
    judge: Annotated[Path, typer.Option(help="The judging reader: a run or weights; not the pupil.")],
    out: Annotated[Path, typer.Option(help="A new folder for what is kept.")],
    copies_of: Annotated[
        Path | None, typer.Option(help="Training pictures that must not be copied; else those of --data.")
    ] = None,
    low: Annotated[
        float | None,
        typer.Option(help="Refuse what is easier than so many nats a character; else than the easiest tenth.", min=0),
    ] = None,
    label_pattern: Pattern = None,
) -> None:
    """Keep the made pictures that still show their text and copy no training picture; say what was refused, and why."""
    from accelerate import Accelerator

    from augment.fidelity import band_for, band_of, band_of_drawn, coverage_table, doubts, near_copies, refusal_table
    from augment.fidelity import judge as sort
    from augment.mining import hardness
    from recognizer.charset import Charset
    from recognizer.images import MAX_PIXELS
    from recognizer.samples import merge, problem_table, read_manifest, write_folder
    from recognizer.training.batches import Pictures
    from recognizer.training.checkpoint import find_weights, read_weights
    from recognizer.training.evaluate import MOST_TOLD, evaluate, no_device, shown_case

    if out.exists() and (not out.is_dir() or any(out.iterdir())):  # before the work, not after it
        raise UserError(f"{out} exists and is not empty: name a new folder")
    accelerator = Accelerator(cpu=no_device())
    manifest, real = read_manifest(made), merge([read_manifest(path, label_pattern) for path in data])
    train = read_manifest(copies_of, label_pattern) if copies_of is not None else real
    if problems := [*manifest.problems, *real.problems]:
        n = sum(len(m) + len(m.problems) for m in (manifest, real))
        print(problem_table(problems, n), file=sys.stderr)
    for own in (manifest, real):
        if not len(own):
            raise UserError(f"{own.source}: no sample is left")
    description = read_weights(judge)[1]
    looked_at = Pictures(real.samples[:MOST_TOLD], Charset.of(real.texts), description.frame, MAX_PIXELS)
    case = shown_case(find_weights(judge), looked_at)  # of a judge that reads pictures, where labels have another

    def as_read(samples: Sequence[Sample]) -> list[Sample]:
        return [replace(s, text="".join(case.get(c, c) for c in s.text)) for s in samples]

    pictures, outcome = evaluate(judge, as_read(manifest.samples), accelerator)
    known, known_outcome = evaluate(judge, as_read(real.samples), accelerator)
    if unread := [*pictures.problems, *known.problems]:
        print(problem_table(unread, len(manifest) + len(real)), file=sys.stderr)
    if not len(pictures) or not len(known):
        empty = manifest if not len(pictures) else real
        raise UserError(f"{empty.source}: no sample is left that the judge can read")
    varied, drawn = (f(known.samples, known_outcome.readings) for f in (band_of, band_of_drawn))
    hard = {s.name: (s.text, hardness(r, s.text)) for s, r in zip(known.samples, known_outcome.readings, strict=True)}
    bands = [band_for(s, hard, varied, drawn) for s in pictures.samples]
    bands = bands if low is None else [replace(band, low=low) for band in bands]
    copies = near_copies(pictures.samples, train.samples)
    judged = sort(pictures.samples, [[r] for r in outcome.readings], bands, copies)
    print(refusal_table(judged))
    kept_of, made_of = (
        Counter(str(s.meta.get("method", "pictures of no method")) for s in own)
        for own in (judged.kept, pictures.samples)
    )
    for line in doubts(kept_of, made_of):
        print(line)
    labelled = {s.name: s for s in manifest.samples}  # under the labels that they have
    kept = [labelled[s.name] for s in judged.kept]
    print(coverage_table(kept, Charset.of(real.texts).characters))
    if not kept:
        raise UserError("nothing is kept: look at the made pictures, and at the judge's score on real ones")
    write_folder(kept, out)


@typer_app.command()
def sheet(
    data: Annotated[Path, typer.Argument(help="Labelled pictures, real or made.")],
    out: Annotated[Path, typer.Option(help="The PNG file to write.")],
    model: Annotated[
        str | None, typer.Option(help="Show what this reader reads, wrong letters marked: a run, a file, or default.")
    ] = None,
    sources: Annotated[
        Path | None, typer.Option(help="Real pictures: each row begins with the one that its pictures were made of.")
    ] = None,
    borders: Annotated[
        bool,
        typer.Option("--borders", help="Draw in where the reader finds each character of the label."),
    ] = False,
    columns: Annotated[int, typer.Option(help="Pictures in a row.", min=1, max=50)] = 6,
    limit: Annotated[int, typer.Option(help="The first so many pictures.", min=1)] = 48,
    height: Annotated[int, typer.Option(help="Of each picture, in pixels.", min=8, max=512)] = 48,
    label_pattern: Pattern = None,
) -> None:
    """Draw a contact sheet: pictures with their labels, or with what a reader reads in them."""
    from augment.sheet import Cell, contact_sheet
    from recognizer.images import PictureError, open_picture
    from recognizer.progress import Alone, say
    from recognizer.reader import Reader
    from recognizer.readings import marked
    from recognizer.samples import read_manifest

    def opened(sample: Sample) -> Image.Image:
        try:
            return open_picture(sample.read_bytes())
        except PictureError as error:
            raise UserError(f"{sample.name!r} of {data} cannot be opened: {error.kind}, {error}") from None

    see_writable("--out", out)
    if out.exists() and not out.read_bytes().startswith(b"\x89PNG"):
        raise UserError(f"--out {out}: what is there is no contact sheet; name another file")
    reader = None if model is None else Reader(None if model == "default" else Path(model))
    manifest = read_manifest(data, label_pattern)
    draw_borders = _draw_borders(manifest, reader) if borders else None
    cells: dict[str | None, list[Cell]] = {}
    for sample in manifest.first(limit):
        picture = opened(sample)
        read = sample.text if reader is None else reader.read([reader.open(picture)])[0].text
        picture = picture if draw_borders is None else draw_borders(picture, sample.text, height)
        cells.setdefault(sample.meta.get("source") if sources else None, []).append(
            Cell(picture, *marked(sample.text, read))
        )
    rows = [(source, own[k : k + columns]) for source, own in cells.items() for k in range(0, len(own), columns)]
    if sources:  # a picture that was made of none stands beside any
        real = {s.name: s for s in read_manifest(sources, label_pattern)}
        others = iter([s for name, s in real.items() if name not in cells])
        if gone := [source for source in cells if source is not None and source not in real]:
            say(Alone(), f"{len(gone)} of the pictures that these were made of are not in {sources}, as {gone[0]!r}")
        for source, own in rows:
            if (first := next(others, None) if source is None else real.get(source)) is not None:
                own.insert(0, Cell(opened(first), first.text))
    contact_sheet([own for _, own in rows], out, height)
    print(f"{out}: {sum(map(len, cells.values()))} pictures")


def _draw_borders(manifest: Manifest, reader: Reader | None) -> Callable[[Image.Image, str, int], Image.Image]:
    """What draws the borders of a picture's characters into it, at a height in pixels, as a reader finds them."""
    from PIL import Image, ImageDraw

    from augment.layout import Aligner
    from augment.sheet import WRONG
    from recognizer.reader import DEFAULT, Reader
    from recognizer.training.evaluate import default_case

    own = reader or Reader()
    aligner = Aligner(own, default_case(manifest.samples) if own.path == DEFAULT else {})

    def drawn(picture: Image.Image, text: str, height: int) -> Image.Image:
        (layout,) = aligner.find([picture], [text])
        if layout is None:
            return picture
        scale = height / picture.height
        large = picture.resize((max(round(picture.width * scale), 1), height), Image.Resampling.BICUBIC)
        for x in (layout.borders * scale).tolist():
            ImageDraw.Draw(large).line([(x, 0), (x, height)], WRONG)
        return large

    return drawn


def _settings(sets: Sequence[str] | None) -> dict[str, Any]:
    """The values of --set, as JSON where they are JSON."""
    values: dict[str, Any] = {}
    for item in sets or ():
        name, equals, text = item.partition("=")
        if not equals:
            raise UserError(f"--set {item!r}: write name=value")
        try:
            values[name] = json.loads(text)
        except ValueError:
            values[name] = text
    return values


def _size(size: str) -> tuple[int, int]:
    found = re.fullmatch(r"(\d{1,4})x(\d{1,4})", size)
    width, height = (int(found[1]), int(found[2])) if found else (0, 0)
    if not (8 <= width <= 4096 and 8 <= height <= 4096):
        raise UserError(f"--size {size!r}: write width x height in pixels, as in 160x60")
    return width, height


if __name__ == "__main__":
    app()
