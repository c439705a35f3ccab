"""Begin without a label: looks bred from pictures (augment/evolve.py), text drawn in them, and readings of oneself.

    breed looks; the reader to start from, told characters and lengths, reads the pictures
    -> [ take what is read surely for its label -> draw text in those looks -> train on both, from the start -> read ]
    each round, until hardly more is sure

Nothing here validates: what is kept is the last reader that is surer than the one before, and how right it is nobody
knows before somebody looks. Each round trains several readers; their mean reads, and together they say how sure it is.
"""

from __future__ import annotations

import json
import shutil
import time
from collections import Counter
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import numpy as np
import torch
from numpy.typing import NDArray
from pydantic import Field, model_validator

from augment.method import FEWEST
from augment.methods import create
from augment.methods.match import MatchFitSettings, see_drawn
from augment.sheet import Cell, contact_sheet
from augment.synthesize import lengths_in, random_texts, requests_for_texts, synthesize
from pipelines.ledger import Ledger, locked
from pipelines.run import (
    NEVER,
    DataSettings,
    fit_into,
    jobs_of,
    open_run,
    read_some,
    see_start,
    start_hash,
    tell_copies,
)
from pipelines.unlabelled import as_known_to, read_together, see_there, tell_broken
from recognizer.charset import Charset
from recognizer.decode import Constraint
from recognizer.deploy.export import export
from recognizer.errors import Stopped, UserError, quoted
from recognizer.images import PictureError, open_picture
from recognizer.progress import Alone, Bar, say
from recognizer.reader import Reader
from recognizer.readings import Reading, Scores, mcnemar
from recognizer.samples import Sample, content_hash, read_manifest, split_apart, write_folder
from recognizer.settings import make
from recognizer.training.average import NoMean, average
from recognizer.training.checkpoint import find_start, find_weights, read_weights, with_a_mean
from recognizer.training.pseudo import opens, read_files, surely, without_labels
from recognizer.training.side_by_side import Training, train_side_by_side
from recognizer.training.train import TrainSettings, provenance

if TYPE_CHECKING:
    from augment.method import Learner

SHOWN = 12_000  # pictures that a training sees
HELD = 10  # of so many made or taken pictures one validates
RARE = 0.25  # of an even share: a character that is read less often is drawn seldom,
SELDOM = 0.1  # and so often
MORE = 0.02  # of all pictures: a round that is sure of no more than so many others is the last, and is not kept
PARTS = ("train", "validation")
ON_SHEET = 48
HALF = 0.5  # of all pictures: where fewer are sure made ones validate, as sure ones are the easy ones then
AGAIN = 1_000_000  # added to a seed


class BeginSettings(DataSettings):
    """Everything that `practice begin` can be told."""

    data: tuple[str, ...] = ()  # none
    unlabelled: tuple[str, ...]  # folders of pictures
    charset: str  # a name in charset.NAMED, or characters, as pictures show them
    length: str  # 5, or 4-6
    count: int = Field(4000, ge=100)  # pictures to draw in a round
    rounds: int = Field(3, ge=0, le=20)  # of its own readings, at most
    starts: int = Field(2, ge=1, le=20)  # trainings of a round, whose mean reads
    unlabelled_confidence: float = Field(0.7, gt=0, lt=1)  # of readers together, to take what they read for a label
    made_share: float = Field(0.5, gt=0, lt=1)  # of each batch, beside readings; more while few are sure
    fit: dict[str, Any] = Field({})  # settings of `augment fit --method match`

    @model_validator(mode="after")
    def _own(self) -> BeginSettings:
        if self.data or self.limit is not None:
            raise ValueError("data and limit are of labels, and it begins without")
        for part, values in (("fit", self.fit), ("reader", self.reader)):
            if twice := values.keys() & {"charset", "length", "unlabelled"}:
                raise ValueError(f"{part}.{min(twice)}: it is told that by --{min(twice)}")
        if own := self.reader.keys() & {"data", "validation", "limit", "with_synthetic", "keep", "stream"}:
            raise ValueError(f"reader.{min(own)}: its readers learn of what it makes and reads alone")
        return self


def begin(settings: BeginSettings, out: Path) -> Ledger:
    """Begin into the run folder `out`, or go on where it was; gives the ledger of the finished run.

    Raises:
        UserError: settings or pictures that do not fit; everything so far is kept.
        Stopped: Ctrl-C; give the same command again to go on.
    """
    charset = Charset.named(settings.charset)
    lengths = lengths_in(settings.length)
    fit = make(MatchFitSettings, settings.fit, "settings of fit --method match")
    see_drawn(charset.characters, lengths, fit.fonts)
    if fit.model is not None:
        find_weights(Path(fit.model))
    open_run(settings, out)
    try:
        with locked(out):
            _begin(settings, out, charset, lengths)
    except KeyboardInterrupt:
        raise Stopped("all that is done is kept; give the same command again to go on") from None
    return Ledger(out / "ledger.jsonl")


def _begin(settings: BeginSettings, out: Path, charset: Charset, lengths: Sequence[int]) -> None:
    ledger = Ledger(out / "ledger.jsonl")
    if "round 0" in ledger and "start" not in ledger:
        raise UserError(f"{out} was begun by an earlier version: name a new folder")
    prepare(settings, out, ledger, charset)
    if "test" not in ledger if settings.test else "chosen" not in ledger:
        see_start(settings, ledger)
    torch.set_num_threads(jobs_of(settings))
    breed(settings, out, ledger)
    read_with_start(settings, out, ledger, charset)
    for number in range(settings.rounds + 1):
        if f"round {number}" not in ledger:
            train_round(settings, out, ledger, number, charset, lengths)
        if not goes_on(ledger, number):
            break
    finish(out, ledger)
    read_test(settings, out, ledger, charset)
    (out / "begin.txt").write_text(in_short(settings, out, ledger), encoding="utf-8")


def prepare(settings: BeginSettings, out: Path, ledger: Ledger, charset: Charset) -> None:
    """List the pictures without labels, but for those to test on."""
    if "prepare" in ledger:
        return
    test = read_manifest(settings.test, settings.label_pattern).samples if settings.test else ()
    if settings.test and not any(opens(s) for s in test):
        raise UserError(f"{settings.test}: no sample is left to test on")
    tell_copies(test)
    files = without_labels(settings.unlabelled, test, Alone())
    if len(files) < FEWEST:
        raise UserError(f"{len(files)} pictures without labels are too few: {FEWEST} are needed to begin with")
    (out / "data").mkdir(exist_ok=True)
    (out / "data" / "unlabelled.json").write_text(json.dumps([str(file.resolve()) for file in files]))
    ledger.record(
        "prepare", charset=charset.characters, unlabelled=len(files), start_sha256=start_hash(settings),
        provenance=provenance(),
        **({"test_sha256": content_hash(test)} if test else {}),
    )  # fmt: skip


def breed(settings: BeginSettings, out: Path, ledger: Ledger) -> None:
    """Breed looks for the pictures, into `out/looks`."""
    if "looks" in ledger:
        return
    began = time.monotonic()
    values = {"length": settings.length, "charset": settings.charset, "seed": settings.seed, **settings.fit}
    values["unlabelled"] = [str((out / "data" / "unlabelled.json").resolve())]
    said = fit_into(out / "looks", "match", (), values)
    ledger.record("looks", said=said, seconds=time.monotonic() - began)
    say(Alone(), f"looks: {said}; given pictures above made ones: {out / 'looks' / 'grids'}")


def read_with_start(settings: BeginSettings, out: Path, ledger: Ledger, charset: Charset) -> None:
    """Take what the reader to start from is sure of where it is told characters and lengths, into `out/start`; nothing
    where it does not know all the characters, as it reads others for them."""
    if "start" in ledger:
        return
    began, folder = time.monotonic(), out / "start"
    weights, _ = find_start(settings.start, settings.reader.get("size"))
    if weights is None or not set(charset.characters) <= set(read_weights(weights)[1].charset):
        ledger.record("start", read=0, sure=0, seconds=time.monotonic() - began)
        return
    folder.mkdir(exist_ok=True)
    reader = Reader(export(weights, folder / "reader.onnx")[0])
    form = Constraint.characters(charset.characters, reader.charset) & Constraint.length(
        settings.length, reader.charset
    )
    files: list[str] = json.loads((out / "data" / "unlabelled.json").read_text())
    see_there(files)
    found = {str(file): r for file, r in read_files(reader, [Path(f) for f in files], form, Alone()).items()}
    tell_broken(files, found)
    # not by `surely`: of a character that they never show it would take the likeliest reading, a wrong one
    named = [Sample(f, r.text, Path(f)) for f, r in found.items() if r.text]
    likely = np.array([found[s.name].confidence for s in named])
    sure = keep(found, named, likely, likely >= settings.unlabelled_confidence, folder)
    ledger.record("start", read=len(found), sure=sure, seconds=time.monotonic() - began)
    say(Alone(), f"start: {sure:,} of {len(found):,} pictures are read surely by the reader to start from")


def train_round(
    settings: BeginSettings, out: Path, ledger: Ledger, number: int, charset: Charset, lengths: Sequence[int]
) -> None:
    """Draw, train, read the pictures and take what is sure; afterwards the ledger holds the round."""
    began, folder = time.monotonic(), out / f"round-{number}"
    before, step = (out / f"round-{number - 1}", f"round {number - 1}") if number else (out / "start", "start")
    taken, of_all = before / "taken", ledger[step]["sure"] / max(1, ledger[step]["read"])
    with_readings = ledger[step]["sure"] >= FEWEST
    read = [s.text for part in PARTS for s in read_manifest(taken / part)] if with_readings else []
    # the first round draws all characters alike: those that the start does not read may be there
    drawn = draw_round(settings, out, number, charset, lengths, read if number else [])
    learned: dict[str, Any] = {"data": [str(drawn / "train")], "validation": str(drawn / "validation")}
    if with_readings:
        learned |= {"with_synthetic": learned["data"], "synthetic_share": max(settings.made_share, 1 - of_all)}
        if number and of_all >= HALF:
            learned |= {"data": [str(taken / "train")], "validation": str(taken / "validation")}
        else:
            learned |= {"data": [str(taken / part) for part in PARTS]}
    readers = [training(settings, folder / f"seed-{k}", charset, lengths, k, learned) for k in range(starts(settings))]
    beside = f" and {len(read):,} readings" * with_readings
    say(Alone(), f"round {number}: training on {settings.count:,} made pictures{beside}")
    train_side_by_side(readers, jobs_of(settings), f"round {number}")
    reader = mean_of([t.out for t in readers], folder / "mean")
    files = json.loads((out / "data" / "unlabelled.json").read_text())
    found, sure = take(settings, files, [reader, *(t.out for t in readers if t.out != reader)], lengths, folder)
    was = readings_of(before) if ledger[step]["read"] else {}
    alike = float(np.mean([was[f] == text for f, text in found.items() if f in was])) if was else None
    ledger.record(
        f"round {number}", reader=str(reader.relative_to(out)), made=settings.count, read=len(found), sure=sure,
        alike=alike, seconds=time.monotonic() - began,
    )  # fmt: skip
    told = f"; {alike:.1%} are read as before" if alike is not None else ""
    say(Alone(), f"round {number}: {sure:,} of {len(found):,} pictures are read surely{told}")


def goes_on(ledger: Ledger, number: int) -> bool:
    """Whether a round took enough for another, and enough more than the one before."""
    return bool(ledger[f"round {number}"]["sure"] >= FEWEST and surer(ledger, number))


def surer(ledger: Ledger, number: int) -> bool:
    """Whether a round is sure of more pictures than the one before; so the first is."""
    if not number:
        return True
    own, before = (ledger[f"round {k}"] for k in (number, number - 1))
    return bool(own["sure"] - before["sure"] > MORE * own["read"])


def draw_round(
    settings: BeginSettings, out: Path, number: int, charset: Charset, lengths: Sequence[int], read: Sequence[str]
) -> Path:
    """A folder with a round's drawn pictures in `PARTS`. Characters that hardly any reading has are drawn seldom, all
    others alike."""
    seed, folder, own = (
        settings.seed + number * AGAIN,
        out / f"round-{number}" / "drawn",
        {"fitted": str(out / "looks")},
    )
    rare, rng = seldom_drawn(charset, read), np.random.default_rng([seed, 37])
    common = [c for c in charset.characters if c not in rare]
    texts = [
        "".join(str(rng.choice(common)) if c in rare and rng.random() > SELDOM else c for c in text)
        for text in random_texts(charset, lengths, settings.count, seed)
    ]
    if rare:
        say(Alone(), f"  hardly read, and seldom drawn: {' '.join(sorted(rare))}")
    asked = requests_for_texts(texts, cast("Learner", create("match", own)).known.size, seed)
    held = len(asked) // HELD
    for part, requests in zip(PARTS, (asked[held:], asked[:held]), strict=True):
        if not (folder / part).is_dir():
            with Bar(Alone(), "drawing", len(requests)) as bar:
                synthesize("match", own, requests, folder / part, None, bar.advance)
    return folder


def seldom_drawn(charset: Charset, read: Sequence[str]) -> set[str]:
    """The characters that readings have hardly any of: pictures may show none. Without readings none is known."""
    seen = Counter("".join(read))
    return {c for c in charset.characters if seen[c] < RARE * seen.total() / len(charset)}


def starts(settings: BeginSettings) -> int:
    """Trainings of a round: one where what comes of several has no mean."""
    own = make(TrainSettings, dict(settings.reader), "reader settings")
    return settings.starts if with_a_mean(settings.start, own.size, own.head) else 1


def training(
    settings: BeginSettings, out: Path, charset: Charset, lengths: Sequence[int], k: int, learned: dict[str, Any]
) -> Training:
    """The `k`th training of a round, with the settings of `recognizer train` that name what is `learned`."""
    values = {
        "threads": 1, "tracker": "none", "charset": charset.characters, "start": settings.start, "patience": NEVER,
        "pictures": settings.pictures or SHOWN, **settings.reader, **learned, "seed": settings.seed + k * AGAIN,
    }  # fmt: skip
    values["frame"] = {"longest": max(lengths), **values.get("frame", {})}
    return Training(make(TrainSettings, values, "reader settings"), out)


def mean_of(readers: Sequence[Path], mean: Path) -> Path:
    """The mean of readers' weights; the first of them where they have none."""
    shutil.rmtree(mean, ignore_errors=True)
    if len(readers) == 1:
        return readers[0]
    try:
        average(readers, mean)
    except NoMean as none:
        say(Alone(), f"the first reader goes on alone: {none}")
        return readers[0]
    return mean


def take(
    settings: BeginSettings, files: Sequence[str], readers: Sequence[Path], lengths: Sequence[int], folder: Path
) -> tuple[dict[str, str], int]:
    """What the first reader reads in each picture, and how many are read surely: those lie in `PARTS` of
    `folder/taken`, all readings in `folder/readings.jsonl`, as `keep` writes them."""
    found, named, likely, _ = read_together(readers, files, lengths)
    taken = surely([s.text for s in named], likely, settings.unlabelled_confidence)
    return {f: r.text for f, r in found.items()}, keep(found, named, likely, taken, folder)


def keep(
    found: Mapping[str, Reading],
    named: Sequence[Sample],
    likely: NDArray[np.float64],
    taken: NDArray[np.bool_],
    folder: Path,
) -> int:
    """Write what was `found`, by file, and those pictures, under what is read in them, that are `taken`; gives how many
    these are."""
    sure = np.flatnonzero(taken).tolist()
    shutil.rmtree(folder / "taken", ignore_errors=True)
    chosen = [
        replace(named[i], name=f"{k:06d}{Path(named[i].name).suffix.lower()}", meta={"found": named[i].name})
        for k, i in enumerate(sure)
    ]
    for part, own in zip(PARTS, split_apart(chosen, (HELD - 1, 1)), strict=True):
        write_folder(own, folder / "taken" / part)
    sureness = {s.name: float(p) for s, p in zip(named, likely, strict=True)}
    rows = [{"file_name": f, "text": r.text, "confidence": round(sureness.get(f, 0.0), 4)} for f, r in found.items()]
    (folder / "readings.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return len(sure)


def readings_of(folder: Path) -> dict[str, str]:
    """What a round or the start read, by file."""
    rows = map(json.loads, (folder / "readings.jsonl").read_text(encoding="utf-8").splitlines())
    return {row["file_name"]: row["text"] for row in rows}


def kept_round(ledger: Ledger) -> int:
    """The number of the round whose reader is kept: the last one, if it is surer than the one before, else that."""
    last = max(int(e["step"].split()[1]) for e in ledger if e["step"].startswith("round "))
    return last if surer(ledger, last) else last - 1


def finish(out: Path, ledger: Ledger) -> None:
    """Make the reader of the round that is kept the run's, and show what it reads, the surest first."""
    if "chosen" in ledger:
        return
    number = kept_round(ledger)
    own = ledger[f"round {number}"]
    shutil.copy(out / own["reader"] / "weights.safetensors", out / "weights.safetensors.tmp")
    (out / "weights.safetensors.tmp").replace(out / "weights.safetensors")
    export(out)
    rows = (out / f"round-{number}" / "readings.jsonl").read_text(encoding="utf-8").splitlines()
    told = sorted(map(json.loads, rows), key=lambda row: -row["confidence"])
    cells = []
    for row in (told[i] for i in np.linspace(0, len(told) - 1, min(ON_SHEET, len(told))).astype(int)):
        with suppress(PictureError, OSError):
            picture = open_picture(Path(row["file_name"]).read_bytes(), "RGB")
            sure = f" {row['confidence']:.2f}" if row["confidence"] else ""  # of another length than was told
            cells.append(Cell(picture, row["text"] + sure))
    if cells:
        contact_sheet([cells[i : i + 6] for i in range(0, len(cells), 6)], out / "readings.png")
    ledger.record("chosen", reader=own["reader"])


def read_test(settings: BeginSettings, out: Path, ledger: Ledger, charset: Charset) -> None:
    """Read the test set, once: with the start, with the first round's reader, and with the one that is kept. Case is
    ignored where the charset has one case alone."""
    if "test" in ledger or settings.test is None:
        return
    samples = read_manifest(settings.test, settings.label_pattern).samples
    if content_hash(samples) != ledger["prepare"]["test_sha256"]:
        raise UserError(f"{settings.test} has changed since the run began: put it back, or start a new run")
    start, _ = find_start(settings.start, settings.reader.get("size"))
    readers = {"start": start, "first": out / ledger["round 0"]["reader"], "last": out / ledger["chosen"]["reader"]}
    found = {role: read_some(path, as_known_to(path, samples)) for role, path in readers.items() if path is not None}
    usable = [s for s in samples if all(s.name in own for own in found.values())]
    if not usable:
        raise UserError(f"{settings.test}: no sample is left to test on")
    one_case = charset.characters in (charset.characters.lower(), charset.characters.upper())
    fold = str.casefold if one_case else str
    pairs = {role: [(fold(s.text), fold(own[s.name].text)) for s in usable] for role, own in found.items()}
    right = {role: [a == b for a, b in own] for role, own in pairs.items()}
    ledger.record(
        "test", set_aside=len(samples) - len(usable), **{role: Scores.of(own).to_dict() for role, own in pairs.items()},
        p_first=mcnemar(right["first"], right["last"]), readings=[
            {"file_name": s.name, "text": s.text, **{role: own[s.name].text for role, own in found.items()}}
            for s in usable
        ],
    )  # fmt: skip


ROLES = {
    "start": "the reader it starts from",
    "first": "after the first round",
    "last": "after its own readings",
}


def in_short(settings: BeginSettings, out: Path, ledger: Ledger) -> str:
    """What came of it and what to do next, for a person."""
    number = kept_round(ledger)
    own, after = ledger[f"round {number}"], f"round {number + 1}"
    rounds = f"{number} rounds of its own readings" if number else "the first round"
    lines = [
        f"{own['sure']:,} of {own['read']:,} pictures are read surely after {rounds}; "
        f"look at some: {out / 'readings.png'}",
    ]
    if after in ledger:
        lines[0] += f"\n{after} was not surer by enough ({ledger[after]['sure']:,}), and is not kept"
    if test := ledger.get("test", {}):
        lines[0] += f"\n{test['first']['n']:,} test pictures, read right:"
        for role, what in ROLES.items():
            if role in test and (role != "last" or number):
                low, high = test[role]["exact_interval"]
                lines.append(f"  {what:<32} {test[role]['exact']:.3f} ({low:.3f} to {high:.3f})")
        if number:
            lines.append(f"  own readings against the first round: McNemar p {test['p_first']:.2g}")
    else:
        lines.append("How many are read right nobody knows yet: no label was there to tell.")
    folders = [quoted(Path(folder)) for folder in settings.unlabelled]
    both = " ".join(f"{option} {folder}" for option in ("--data", "--unlabelled") for folder in folders)
    lines += [
        f"read with: recognizer predict --model {quoted(out)} PICTURE",
        f"label some, the least sure first: recognizer label {' '.join(folders)} --model {quoted(out)}",
        f"then practise with these: practice run --from {quoted(out)} {both} --out RUN",
    ]
    return "\n".join(lines) + "\n"
