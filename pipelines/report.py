"""What a practice run found: one HTML file for a person, pictures first, and a table for the terminal.

Both work at any stage of a run, also while it is being written, and change nothing in it but `report.html`.
"""

from __future__ import annotations

import json
import math
import re
import shlex
import tomllib
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from functools import cached_property
from itertools import pairwise
from pathlib import Path
from typing import Any

from rapidfuzz.distance import Hamming
from rich import box
from rich.console import Console
from rich.table import Table

from augment.fidelity import REFUSALS
from pipelines.ledger import Entry, enough, see_judged, time_left, to_come
from pipelines.portfolio import PARTS, UNLABELLED
from recognizer.data.pages import Piece, Tile, embedded, percent, pieces_of, read_pieces, templates, tile_of, write_page
from recognizer.errors import UserError
from recognizer.journal import locked as held
from recognizer.progress import spell
from recognizer.readings import BEYOND_CHANCE, Confusion, confusions
from recognizer.samples import Sample, read_manifest

# pictures shown of each kind
OPENING, HARD, LATER_HARD, EACH, REFUSED, CHANGED, SUSPECTS, LOOK = 6, 12, 6, 4, 12, 20, 24, 6
ROLES = ("before", "control", "after")
# runs of other commands than `practice run`, known by settings that each has
OTHERS = {
    "a beginning": {"charset", "count"},
    "a forecast": {"target", "effort"},
    "a comparison of losses": {"tail"},
    "a comparison": {"made", "seeds"},
}
WIDE = 160  # columns for tables, however few the terminal has: their cells must not be cut
PLOT = 300  # height of the curve in pixels
PANEL = 150  # that of a panel of what a training told
LEARNED = {"loss": "loss on what it trains on", "validation_nll": "nats by which labels that validate are unlikely"}
LEAST_SHOWN = 1e-4  # of these figures

Scores = Mapping[str, Any]  # recognizer.readings.Scores.to_dict


# ---------------------------------------------------------------------------------------------------- the run's folder


@dataclass(frozen=True)
class PracticeRun:
    """A run's folder as it lies on disk: its settings, and the ledger's entries by their step."""

    path: Path
    settings: Mapping[str, Any]
    steps: Mapping[str, Entry]

    @classmethod
    def open(cls, path: Path) -> PracticeRun:
        """Read settings and ledger.

        Raises:
            UserError: no practice run's folder, or a ledger with a broken line.
        """
        try:
            settings = tomllib.loads((path / "settings.toml").read_text(encoding="utf-8"))
        except (FileNotFoundError, NotADirectoryError):
            raise UserError(f"{path} is no practice run: it has no settings.toml") from None
        except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
            raise UserError(f"{path} is no practice run: its settings.toml cannot be read: {error}") from None
        if not {"data", "methods", "rounds", "folds"} <= settings.keys():
            raise UserError(f"{path} is no practice run: its settings.toml is another command's")
        steps = _entries(path / "ledger.jsonl", "step")
        if "baseline" in steps:
            see_judged(path, steps["baseline"])
        return cls(path, settings, steps)

    @cached_property
    def mined(self) -> list[int]:
        """The rounds whose pictures are made."""
        return sorted(int(m[1]) for step in self.steps if (m := re.fullmatch(r"round (\d+) mine", step)))

    @cached_property
    def rounds(self) -> list[int]:
        """The rounds that are finished."""
        return [n for n in self.mined if f"round {n}" in self.steps]

    @cached_property
    def next_step(self) -> str | None:
        """The first step that is not done; None where the run is finished."""
        planned = ["prepare", "baseline"]
        for n in range(1, self.settings["rounds"] + 1):
            planned += [f"round {n} mine"]
            if not enough(self.steps.get(f"round {n} mine", {"kept": 1})):
                break
            planned += [f"round {n}"]
            if not self.steps.get(f"round {n}", {"goes_on": True})["goes_on"]:
                break
        made = self.steps.get("round 1 mine", {"kept": 1})["kept"] > 0
        planned += ["settled"] * (made and self.steps.get("round 1", {"goes_on": True})["goes_on"])
        controls = made and bool(self.settings.get("controls"))
        planned += ["chosen"] + ["test"] * ("test" in self.settings) + ["controls trained", "controls"] * controls
        return next((step for step in planned if not self._done(step)), None)

    def _done(self, step: str) -> bool:
        """Whether a step is done; those of controls for all that are asked for now."""
        asked = set(self.settings.get("controls", ())) if step.startswith("controls") else set()
        done = self.steps.get(step, {})
        return step in self.steps and asked <= {*done.get("names", asked), *done.get("failed", ())}

    @property
    def control_is_before(self) -> bool:
        """Whether the control is the reader from before practice: of rounds that learned anew."""
        return str(self.steps.get("chosen", {}).get("control", "")).startswith("baseline")

    @property
    def longer(self) -> float:
        """How many times as long as the first readers the one learned that practice ended with."""
        return round(float(self.steps.get("settled", {}).get("longer", 1.0)), 1)

    @property
    def as_long(self) -> str:
        return "" if self.longer > 1 else " and as long"

    @property
    def resume(self) -> str:
        return f"practice run --resume {shlex.quote(str(self.path))}"

    def scores(self) -> tuple[str, dict[str, Scores]]:
        """The part that was read, `test` or `validation`, and the scores of each of `ROLES` that is there."""
        if "test" in self.steps:
            return "test", {role: self.steps["test"][role] for role in ROLES}
        found: dict[str, Scores] = {}
        if "baseline" in self.steps:
            found["before"] = self.steps["baseline"]["validation"]
        if self.rounds:
            found["control"] = self.steps[f"round {self.rounds[-1]}"]["control"]
            found["after"] = self.steps[f"round {self.rounds[-1]}"]["pupil"]
        if "chosen" in self.steps:
            chosen = self.steps["chosen"]
            found["after"] = chosen["validation"]
            found["control"] = chosen.get("control_validation") or found["control"]
        return "validation", found


def running(run: Path) -> bool:
    """Whether a process is at a run."""
    lock = run / "lock"
    if not lock.exists():
        return False
    try:
        with held(lock):
            return False
    except UserError:
        return True
    except OSError:  # one that this user may not write
        return False


def trained_last(run: Path) -> str:
    """Which training was last at work in a step that is not done, and how far it is; nothing where none was."""
    lines = {}
    for file in run.glob("**/metrics.jsonl"):
        if not any((file.parent / done).exists() for done in ("scores.json", "generator.safetensors")):
            lines[file] = file.stat().st_mtime
    if not lines:
        return ""
    file = max(lines, key=lambda f: lines[f])
    rows = list(_entries(file, "step").values())
    if not rows:
        return ""
    return f"{file.parent.relative_to(run)} at step {rows[-1]['step']:,} of {rows[-1]['steps']:,}"


def seen_in_training(run: Path) -> tuple[int, int]:
    """How many trainings of readers a run has begun, and how many pictures these were shown."""
    pictures = []
    for file in run.glob("**/metrics.jsonl"):
        if (file.parent / "asked.json").exists():  # a generator's fit
            continue
        with suppress(OSError, ValueError, KeyError):  # settings that are just being written
            batch = tomllib.loads((file.parent / "settings.toml").read_text(encoding="utf-8"))["batch"]
            pictures.append(max((row["step"] for row in _entries(file, "step").values()), default=0) * batch)
    return len(pictures), sum(pictures)


def _entries(path: Path, key: str) -> dict[str, Entry]:
    """A file's whole lines by their `key`; none where there is no file.

    Unlike `Ledger`, it mends nothing: a run may just be writing its last line.
    """
    lines = path.read_bytes().split(b"\n")[:-1] if path.exists() else []
    entries: dict[str, Entry] = {}
    for number, line in enumerate(lines, 1):
        try:
            entry = json.loads(line)
            entries[entry[key]] = entry
        except (ValueError, KeyError, TypeError):
            raise UserError(f"{path}, line {number}, is no {path.stem} entry") from None
    return entries


def _samples(path: Path) -> tuple[Sample, ...]:
    """What a folder of the run holds; nothing where someone has cleared it away."""
    try:
        return read_manifest(path).samples
    except UserError:
        return ()


# ------------------------------------------------------------------------------------------------------- the terminal


def print_status(run: Path) -> None:
    """Print where a run is, of practice, a beginning, a comparison or a forecast.

    Raises:
        UserError: no such run's folder.
    """
    settings, ledger = run / "settings.toml", run / "ledger.jsonl"
    names = set()
    with suppress(OSError, ValueError):
        names = set(tomllib.loads(settings.read_text(encoding="utf-8")))
    what = next((what for what, own in OTHERS.items() if own <= names), None)
    if what is None or {"rounds", "made"} <= names or not (ledger.exists() or (run / "lock").exists()):
        print_summary(run)
        return
    steps = list(_entries(ledger, "step"))
    print(f"{what}; done: {', '.join(steps) or 'nothing yet'}")
    if running(run):
        print("a process is at it")
    elif told := [run / name for name in ("table.md", "forecast.txt", "begin.txt") if (run / name).exists()]:
        print(f"it is finished: {told[0]}")
    else:
        command = {"a beginning": "begin", "a forecast": "forecast"}.get(
            what, "compare" + " --losses" * ("tail" in names)
        )
        print(f"go on with: practice {command} --resume {shlex.quote(str(run))}")
    if last := trained_last(run):
        print(f"training {last}")


def told_aside(test: Mapping[str, Any]) -> str:
    """What became of test pictures that count nowhere, and what the figure would be if those counted whose characters
    are unknown to the readers."""
    told = f"{test['set_aside']:,} test pictures could not be used by all readers, and count nowhere"
    if unknown := test.get("unknown", 0):
        whole = test["after"]["exact"] * test["after"]["n"] / (test["after"]["n"] + unknown)
        told += f"; {unknown:,} hold characters unknown to readers: with these as misread, after is {percent(whole)}"
    return told + "."


def print_summary(run: Path) -> None:
    """Print a practice run's scores, rounds and next step on standard output.

    Raises:
        UserError: no practice run's folder.
    """
    found = PracticeRun.open(run)
    console = Console(highlight=False, markup=False)
    console.width = max(console.width, WIDE)
    part, scores = found.scores()
    if scores:
        table = _plain_table(console, f"on {part}", "exact match", "95 % interval", "ignoring case", "CER", "n")
        for role, own in scores.items():
            table.add_row(
                role, percent(own["exact"]), interval(own), percent(own["exact_ignoring_case"]),
                f"{own['character_error_rate']:.3f}", f"{own['n']:,}",
            )  # fmt: skip
        console.print(table)
    if test := found.steps.get("test"):
        if test["set_aside"]:
            console.print(told_aside(test), soft_wrap=True)
        line = f"McNemar: after against before p {p_value(test['p_before'])}, against control p "
        console.print(line + p_value(test["p_control"]), soft_wrap=True)
    if controls := found.steps.get("controls"):
        table = _plain_table(console, "made pictures", "read right", "95 % interval", *controls_head(controls))
        for row in controls["rows"]:
            table.add_row(row["name"], *controls_cells(controls, row))
        console.print(table)
    if found.mined:
        table = _plain_table(console, "round", "pupil", "control", "kept of asked", "of what was held out")
        for n in found.mined:
            mine, done = found.steps[f"round {n} mine"], found.steps.get(f"round {n}")
            asked = sum(facts["asked"] for facts in mine["methods"].values())
            both = [percent(done["held_out"][role]["exact"]) for role in ("pupil", "control")] if done else ["-", "-"]
            table.add_row(str(n), *both, f"{mine['kept']:,} of {asked:,}", _outcome(mine, done))
        console.print(table)
    if found.next_step:
        how = "a process is at it" if running(found.path) else f"go on with: {found.resume}"
        console.print(f"the run is at step {found.next_step}; {how}", soft_wrap=True)
        if left := time_left(found.steps.values()):
            console.print(to_come(left), soft_wrap=True)
        if last := trained_last(found.path):
            console.print(f"training {last}", soft_wrap=True)
    else:
        console.print(f"the run is finished and keeps the reader of {found.steps['chosen']['reader']}")


def controls_head(controls: Entry) -> list[str]:
    """The columns of a table of controls: what each is compared with."""
    return [word for name in controls["against"] for word in (f"against {name}", "p")]


def controls_cells(controls: Entry, row: Entry) -> list[str]:
    """One control's figures: read right, its interval, and the differences, in points."""
    cells = [percent(sum(row["by_seed"]) / len(row["by_seed"])), interval({"exact_interval": row["interval"]})]
    for name in controls["against"]:
        d = row["against"].get(name)
        points = "" if d is None else " ({:+.1f} to {:+.1f})".format(100 * d["low"], 100 * d["high"])
        cells += ["", ""] if d is None else [f"{100 * d['mean']:+.1f}{points}", p_value(d["p"]).removeprefix("= ")]
    return cells


def _outcome(mine: Entry, done: Entry | None) -> str:
    if done is None:
        return "not trained yet" if enough(mine) else "made too little" if mine["kept"] else "made nothing"
    return "earned something" if done["goes_on"] else "read less than before" if done.get("lost") else "earned nothing"


def _plain_table(console: Console, first: str, *others: str) -> Table:
    table = Table(box=box.SIMPLE_HEAD if console.is_terminal else None, header_style="bold")
    table.add_column(first)
    for name in others:
        table.add_column(name, justify="right", no_wrap=True)
    return table


def interval(scores: Scores) -> str:
    low, high = scores["exact_interval"]
    return f"{100 * low:.1f} to {100 * high:.1f} %"


def p_value(p: float) -> str:
    return "< 0.0001" if p < 0.0001 else f"= {p:.2g}" if p < 0.1 else f"= {p:.2f}"


# ----------------------------------------------------------------------------------------------------------- the page


def write_report(run: Path) -> Path:
    """Write `run/report.html`, whole or not at all, and give its path.

    Raises:
        UserError: no practice run's folder, or a run that has done nothing yet.
    """
    found = PracticeRun.open(run)
    if not found.steps:
        raise UserError(f"{run} has nothing to report yet: begin it with: {found.resume}")
    environment = templates(Path(__file__).parent)
    environment.filters |= {
        "interval": interval, "p_value": p_value, "pairwise": pairwise, "spell": spell, "told_aside": told_aside
    }  # fmt: skip
    part, scores = found.scores()
    shown = [n for n in found.mined if enough(found.steps[f"round {n} mine"])] or found.mined
    page = environment.get_template("report.html").render(
        run=found, verdict=verdict(found), part=part, scores=scores, labels=_labels(found),
        axis=axis_of(list(scores.values())),
        opening=[tile_of(s) for s in _samples(found.path / "data" / "train")[:OPENING]],
        rounds=[hard_round(found, n) for n in dict.fromkeys(shown[:1] + shown[-1:])],
        doubted=suspects(found), changes=changes(found), curve=curve(found), confused=confused(found),
        learning=learning(found),
        cost=[(name_of(step), entry["seconds"]) for step, entry in found.steps.items()
              if "seconds" in entry and not step.startswith(("fit ", "made "))],  # which are part of other steps
        trainings=seen_in_training(run), provenance=_provenance(found),
        settings=(run / "settings.toml").read_text(encoding="utf-8"),
        quote=shlex.quote, name_of=name_of, enough=enough, PLOT=PLOT, PANEL=PANEL,
        controls_head=controls_head, controls_cells=controls_cells,
    )  # fmt: skip
    path = run / "report.html"
    write_page(path, page)
    return path


def name_of(step: str) -> str:
    """A step of the ledger as a person calls it."""
    names = {
        "prepare": "Open and split the pictures", "baseline": "Train the first readers",
        "controls trained": "Train the controls", "controls": "Read the test set with the controls",
        "settled": "End with what was practised", "chosen": "Choose the reader", "test": "Read the test set",
    }  # fmt: skip
    if match := re.fullmatch(r"round (\d+)( mine)?", step):
        what = "read out of fold, make, try and judge pictures" if match[2] else "train pupil and control"
        return f"Round {match[1]}: {what}"
    return names.get(step, step)


@dataclass(frozen=True)
class Verdict:
    """The page's title and the sentences under it."""

    title: str
    sentences: tuple[str, ...]


def verdict(run: PracticeRun) -> Verdict:
    """What may be said of a run: practice paid only where the test set says so beyond chance, twice."""
    part, scores = run.scores()
    if run.next_step:
        said = [f"Its next step is “{name_of(run.next_step)}”."]
        if run.rounds:
            held = run.steps[f"round {run.rounds[-1]}"]["held_out"]
            said.append(
                f"After round {run.rounds[-1]}, of {held['pupil']['n']:,} labelled pictures, each held out of a "
                f"training, pupils read {_count(held['pupil'])} without a fault and controls {_count(held['control'])}."
            )
        return Verdict("Practice is not finished", tuple(said))
    chosen, test = run.steps["chosen"], run.steps.get("test")
    before, control, after = (scores[role] for role in ROLES)
    of = f"Of {after['n']:,} {part} pictures"
    title = "Practice did not pay here"
    if not run.rounds:
        title, said = "Nothing was practised", ["No made picture was kept: the reader is as it was before."]
    elif chosen["reader"].startswith("baseline"):
        said = [
            f"{of} the reader from before practice reads {_count(after)} without a fault, and the run keeps it.",
            *[f"A control that trained on with the real pictures alone reads {_count(control)}."]
            * (not run.control_is_before),
            "What learned all that was practised read fewer validation pictures, beyond chance."
            if run.steps.get("settled", {}).get("reader")
            else "What practised read more than its control of the labels that were held out, but fewer than were read "
            "before practice, beyond chance."
            if any(run.steps[f"round {n}"].get("lost") for n in run.rounds)
            else "None that practised read more of the labels that were held out.",
        ]
    elif not chosen["practised"]:  # in runs from before practice kept nothing but what it began with
        said = [
            f"{of} a control that trained on with the real pictures alone reads {_count(after)} without a fault, "
            "and the run keeps it.",
            f"The reader from before practice reads {_count(before)}.",
            "None that practised read more of the labels that were held out.",
        ]
    else:
        beside = (
            f"{_count(before)} before it, when it was trained as often{run.as_long}, with the labels alone."
            if run.control_is_before
            else f"{_count(before)} before it, and the rounds' control, which saw as many pictures as their pupils and "
            f"none of them made, {_count(control)}."
        )
        said = [f"{of} the reader reads {_count(after)} without a fault after practice, {beside}"]
        if run.longer > 1:
            said.append(
                f"At the end it learned for {run.longer:.1f} times as long as the first readers, as is due to so many "
                "more real pictures; what the labels alone give in as long was not tried here."
            )
        if test is None:
            more = after["exact"] > max(before["exact"], control["exact"])
            title = f"Practice {'reads more' if more else 'shows no gain'} on validation, and no test set confirms it"
        elif test["p_before"] >= BEYOND_CHANCE:
            title = "Practice shows no gain beyond chance"
            said.append("On so many pictures the difference from before is within chance.")
        elif after["exact"] < before["exact"]:
            title = "Practice did harm here"
            said.append("It is worse than before, beyond chance.")
        elif test["p_control"] >= BEYOND_CHANCE or after["exact"] < control["exact"]:
            said.append(
                "It is better than before beyond chance, but not better than its control: "
                "training for longer explains as much as the made pictures do."
            )
        else:
            title = f"Practice paid, and learned {run.longer:.1f} times as long" if run.longer > 1 else "Practice paid"
            said.append(
                "The difference is beyond chance." if run.control_is_before else "Both differences are beyond chance."
            )
    if test and "alone" in test:
        said.append(
            "Before practice the reader is the mean of several trainings' weights; "
            f"one of them alone reads {_count(test['alone'])}."
        )
    if test is None:
        said.append("There is no test set: validation pictures chose the reader, so that these figures flatter it.")
    return Verdict(title, tuple(said))


def _count(scores: Scores) -> str:
    return f"{round(scores['exact'] * scores['n']):,} ({percent(scores['exact'])})"


def _labels(run: PracticeRun) -> dict[str, str]:
    """What each of `ROLES` is called beside its figure."""
    labels = {"before": "before practice", "control": "control", "after": "latest pupil"}
    if chosen := run.steps.get("chosen"):
        same = labels["before" if chosen["reader"].startswith("baseline") else "control"]
        labels["after"] = "after practice" if chosen["practised"] else f"kept: {same}"
    return labels


# ------------------------------------------------------------------------------------------------------------ pictures


@dataclass(frozen=True)
class HardCase:
    """A picture that was misread, and what was made of it and for it."""

    tile: Tile
    read: tuple[Piece, ...]
    right: bool
    hardness: float
    practised: str
    lookalikes: tuple[Tile, ...]
    refused: int  # of what was made from it
    drawn: tuple[Tile, ...]


@dataclass(frozen=True)
class HardRound:
    """The hardest pictures of a round, and what its judges refused, with (reason, what that says).

    `looks` has how many pictures look alike, how many of them are misread, and hard ones to show it. `gone` says that
    no hard picture is there.
    """

    number: int
    facts: Entry
    cases: tuple[HardCase, ...]
    refused: tuple[Tile, ...]
    reasons: tuple[tuple[str, str], ...]
    looks: tuple[tuple[int, int, tuple[Tile, ...]], ...]
    gone: bool


def suspects(run: PracticeRun) -> list[Tile]:
    """Pictures whose labels are likely wrong, by the last round that was mined, which tells of those before as well."""
    found = _samples(run.path / f"round-{run.mined[-1]}" / "mined" / "suspects") if run.mined else []
    return [tile_of(s, (), f"read {s.meta['read']}", f", read as {s.meta['read']}") for s in found[:SUSPECTS]]


def hard_round(run: PracticeRun, number: int) -> HardRound:
    """What a round mined, made and refused, as far as its folders are still there."""
    folder, facts = run.path / f"round-{number}", run.steps[f"round {number} mine"]
    hard, kept = _samples(folder / "mined" / "hard"), _samples(folder / "kept")
    of_source: dict[str, list[Sample]] = {}
    for sample in kept:
        if source := sample.meta.get("source"):
            of_source.setdefault(source, []).append(sample)
    drawn = [s for s in kept if not s.meta.get("source")]
    refused = _refused(folder, facts["methods"])
    shown: Counter[str] = Counter()
    cases = []
    for sample in hard[: HARD if number == run.mined[0] else LATER_HARD]:
        read = str(sample.meta["read"])
        found = confusions([(sample.text, read)])
        wanted = "".join(dict.fromkeys(true or taken for true, taken in found))
        lookalikes = _in_turn(of_source.get(str(sample.meta["name"]), []))[:EACH]
        practising = _practising(drawn, sample.text, wanted, shown)
        case = HardCase(
            tile_of(sample, about=f", read as {read}"), read_pieces(sample.text, read), read == sample.text,
            float(sample.meta["hardness"]), wanted,
            tuple(tile_of(s, (), s.meta["method"], f", made by {s.meta['method']}") for s in lookalikes),
            sum(s.meta["source"] == sample.meta["name"] for s in refused),
            tuple(_drawn_tile(s, sample.text, wanted) for s in practising),
        )  # fmt: skip
        cases.append(case)
    reasons = tuple(pair for pair in REFUSALS.items() if any(s.meta["reason"] == pair[0] for s in refused))
    tiles = [
        tile_of(s, (), "{method}: {reason}, {detail}".format_map(s.meta), f", refused: {s.meta['reason']}")
        for s in _in_turn(refused)[:REFUSED]
    ]
    looks = [
        (n, misread, tuple(tile_of(s) for s in [s for s in hard if s.meta["look"] == look][:LOOK]))
        for look, (n, misread) in enumerate(facts.get("looks", []))
    ]
    return HardRound(
        number, facts, tuple(cases), tuple(tiles), reasons, tuple(looks) if len(looks) > 1 else (), not hard
    )


def _in_turn(samples: Sequence[Sample]) -> list[Sample]:
    """Samples with their methods taking turns."""
    turn: Counter[str] = Counter()
    turns = []
    for sample in samples:
        turn[sample.meta["method"]] += 1
        turns.append(turn[sample.meta["method"]])
    return [sample for _, sample in sorted(zip(turns, samples, strict=True), key=lambda pair: pair[0])]


def _practising(drawn: Sequence[Sample], text: str, wanted: str, shown: Counter[str]) -> list[Sample]:
    """Drawn pictures with most of the wanted characters; its own contrast pairs first, then what was shown least."""
    fitting = [s for s in drawn if set(s.text) & set(wanted)]
    fitting.sort(key=lambda s: (not _is_pair(s, text), shown[s.name], -len(set(s.text) & set(wanted))))
    shown.update(s.name for s in fitting[:EACH])
    return fitting[:EACH]


def _is_pair(sample: Sample, text: str) -> bool:
    """Whether a drawn picture shows `text` with one character swapped."""
    same_length = len(sample.text) == len(text)
    return sample.meta.get("why") == "contrast pair" and same_length and Hamming.distance(sample.text, text) == 1


def _drawn_tile(sample: Sample, text: str, wanted: str) -> Tile:
    method = sample.meta["method"]
    if _is_pair(sample, text):
        marks = [a != b for a, b in zip(sample.text, text, strict=True)]
        return tile_of(sample, pieces_of(sample.text, marks), f"{method}, contrast pair", f", drawn by {method}")
    how = ", found among the unlabelled" if method == UNLABELLED else f", drawn by {method}"
    return tile_of(sample, pieces_of(sample.text, [c in wanted for c in sample.text]), method, how)


def _refused(folder: Path, methods: Iterable[str]) -> list[Sample]:
    """A round's refused pictures with reason and detail in `meta`; none in a run from before these were kept."""
    found = []
    for part in PARTS:
        refused = _entries(folder / part / "refused.jsonl", "file_name")
        made = [(f"{method}/{s.name}", s) for method in methods for s in _samples(folder / part / "made" / method)]
        found += [replace(s, meta={**s.meta, **refused[name]}) for name, s in made if name in refused]
    return found


@dataclass(frozen=True)
class Change:
    """A test picture whose reading changed."""

    tile: Tile
    before: tuple[Piece, ...]
    after: tuple[Piece, ...]


@dataclass(frozen=True)
class Changes:
    """Readings that changed on test, in groups: title, how many there are, and the first of them."""

    groups: tuple[tuple[str, int, tuple[Change, ...]], ...]
    missing: str


def changes(run: PracticeRun) -> Changes | None:
    """Which readings of the test set changed; None before it is read."""
    if "test" not in run.steps:
        return None
    rows = [r for r in run.steps["test"]["readings"] if r["before"] != r["after"]]
    groups = {
        "put right": [r for r in rows if r["after"] == r["text"]],
        "now wrong": [r for r in rows if r["before"] == r["text"]],
        "wrong before and after, otherwise": [r for r in rows if r["text"] not in (r["before"], r["after"])],
    }
    samples: dict[str, Sample] = {}
    missing, folder = "", run.settings["test"]
    try:
        samples = {s.name: s for s in read_manifest(folder, run.settings.get("label_pattern"))} if rows else {}
    except UserError as error:
        missing = f"The test pictures cannot be shown any more ({error}); what was read in them is in the ledger."
    shown = {
        title: tuple(_change(row, samples.get(row["file_name"])) for row in own[:CHANGED])
        for title, own in groups.items()
    }
    if not missing and any(change.tile.uri is None for own in shown.values() for change in own):
        missing = f"Some pictures are no longer in {folder}, or have another label there, and are left out."
    return Changes(tuple((title, len(own), shown[title]) for title, own in groups.items()), missing)


def _change(row: Mapping[str, str], sample: Sample | None) -> Change:
    text, before, after = row["text"], row["before"], row["after"]
    uri = embedded(sample) if sample is not None and sample.text == text else None
    tile = Tile(uri, f"{text}, read as {before} before and {after} after", ((text, False),))
    return Change(tile, read_pieces(text, before), read_pieces(text, after))


# -------------------------------------------------------------------------------------------------------- the figures


@dataclass(frozen=True)
class Mark:
    """A score on the curve: `x` in per cent of its width, `y` and its interval in pixels from its top."""

    role: str
    x: float
    y: float
    low: float
    high: float
    title: str


@dataclass(frozen=True)
class Curve:
    """Exact match by round. `ticks` are (y in pixels, label), `names` (x in per cent, label)."""

    ticks: tuple[tuple[float, str], ...]
    names: tuple[tuple[float, str], ...]
    marks: tuple[Mark, ...]
    lines: tuple[tuple[Mark, Mark], ...]
    border: float | None  # x in per cent between rounds and test


def axis_of(scores: Sequence[Scores]) -> tuple[float, float]:
    """The tenths of exact match between which all intervals lie, two of them at least."""
    low = min((math.floor(10 * float(own["exact_interval"][0])) / 10 for own in scores), default=0.0)
    high = max((math.ceil(10 * float(own["exact_interval"][1])) / 10 for own in scores), default=1.0)
    high = min(1.0, max(high, low + 0.2))
    return min(low, high - 0.2), high


def curve(run: PracticeRun) -> Curve | None:
    """The curve of what judges rounds, with test at its right end; None before the baseline is read."""
    if "baseline" not in run.steps:
        return None
    columns: list[tuple[str, dict[str, Scores]]] = [("start", {"before": run.steps["baseline"]["held_out"]})]
    for n in run.rounds:
        held = run.steps[f"round {n}"]["held_out"]
        columns.append((str(n), {role: held[role] for role in ("control", "pupil")}))
    trained, border = len(columns), None
    if test := run.steps.get("test"):
        border = 100 * len(columns) / (len(columns) + 1)
        columns.append(("test", {"before": test["before"], "control": test["control"], "after": test["after"]}))
    every = [own for _, column in columns for own in column.values()]
    low, high = axis_of(every)

    def height(share: float) -> float:
        return round(PLOT * (high - share) / (high - low), 2)

    width = 100 / len(columns)
    apart = min(2.0, width / 4)  # so that the intervals of a column do not lie over each other
    marks: dict[tuple[str, int], Mark] = {}
    for i, (name, column) in enumerate(columns):
        for j, (role, own) in enumerate(column.items()):
            where = "test" if name == "test" else f"held out of a training, {'round ' * name.isdigit()}{name}"
            title = f"{role}, {where}"
            marks[role, i] = Mark(
                role, round((i + 0.5) * width + apart * (j - (len(column) - 1) / 2), 3), height(own["exact"]),
                height(own["exact_interval"][0]), height(own["exact_interval"][1]),
                f"{title}: {percent(own['exact'])}, 95 % interval {interval(own)}, n {own['n']:,}",
            )  # fmt: skip
    lines = [
        (marks["before" if i == 1 else role, i - 1], marks[role, i])
        for i in range(1, trained)
        for role in ("control", "pupil")
    ]
    step = 0.1 if high - low > 0.35 else 0.05
    ticks = [low + k * step for k in range(round((high - low) / step) + 1)]
    every_nth = -(-len(columns) // 12)
    names = [((i + 0.5) * width, name) for i, (name, _) in enumerate(columns) if i % every_nth == 0 or name == "test"]
    return Curve(
        tuple((height(tick), f"{100 * tick:.0f} %") for tick in ticks), tuple(names), tuple(marks.values()),
        tuple(lines), border,
    )  # fmt: skip


@dataclass(frozen=True)
class Panel:
    """One figure of trainings as they learned, on a scale of powers: `ticks` are (y in pixels, label), `lines` (role,
    what it is, points of x in per cent and y in pixels)."""

    title: str
    ticks: tuple[tuple[float, str], ...]
    lines: tuple[tuple[str, str, tuple[tuple[float, float], ...]], ...]


def learning(run: PracticeRun) -> tuple[int, list[Panel]]:
    """How the first training and the first that learned all anew went: how many pictures they saw, and a panel for each
    of `LEARNED`; none where nothing is trained, someone has cleared it away, or settings are just being written."""
    folders = {"before": ("the first training", run.path / "baseline")}
    reader = run.steps.get("settled", {}).get("reader") or ""
    if "settled" in reader:  # else a pupil, which learned for another while at another rate
        folders["after"] = ("learned anew with what was practised", run.path / reader.removesuffix("-mean"))
    rows = {
        role: [row for row in _entries(folder / "metrics.jsonl", "step").values() if {*LEARNED, "steps"} <= row.keys()]
        for role, (_, folder) in folders.items()
    }
    rows = {role: own for role, own in rows.items() if len(own) > 1}
    batch = 0
    for role in rows:
        with suppress(OSError, ValueError, KeyError):
            batch = tomllib.loads((folders[role][1] / "settings.toml").read_text(encoding="utf-8"))["batch"]
    if not batch:
        return 0, []
    steps, panels = max(row["steps"] for own in rows.values() for row in own), []
    for key, title in LEARNED.items():
        told = {role: [(row["step"], max(row[key], LEAST_SHOWN)) for row in own
                       if row[key] is not None and math.isfinite(row[key])]
                for role, own in rows.items()}  # fmt: skip
        figures = [figure for own in told.values() for _, figure in own]
        if not figures:
            continue
        low, high = math.floor(math.log10(min(figures))), math.ceil(math.log10(max(figures)))
        high = max(high, low + 1)

        def height(figure: float, low: int = low, high: int = high) -> float:
            return round(PANEL * (high - math.log10(figure)) / (high - low), 2)

        panels.append(Panel(
            title, tuple((height(10.0**k), f"{10.0**k:g}") for k in range(low, high + 1)),
            tuple((role, folders[role][0], tuple((round(100 * step / steps, 3), height(own)) for step, own in points))
                  for role, points in told.items()),
        ))  # fmt: skip
    return steps * batch, panels


@dataclass(frozen=True)
class Confused:
    """How often each character was read as another by two readers, worst first.

    A count is (times, whether at most): a ledger keeps the ten worst of each validation, and no more.
    """

    part: str
    rows: tuple[tuple[str, str, tuple[tuple[int, bool], ...]], ...]
    most: int


def confused(run: PracticeRun) -> Confused | None:
    """The ten worst confusions before and after together; None before anything is read."""
    part, scores = run.scores()
    both = [role for role in ("before", "after") if role in scores]
    if not both:
        return None
    counts: list[Counter[Confusion]] = []
    unlisted: list[int] = []
    for role in both:
        if part == "test":
            counts.append(confusions([(r["text"], r[role]) for r in run.steps["test"]["readings"]]))
            unlisted.append(0)
        else:
            listed = scores[role]["worst_confusions"]
            counts.append(Counter({(c["truth"], c["read"]): c["count"] for c in listed}))
            unlisted.append(listed[-1]["count"] if len(listed) == 10 else 0)
    total = sum(counts, Counter[Confusion]())
    worst = sorted(total, key=lambda pair: (-total[pair], pair))[:10]
    known = list(zip(counts, unlisted, strict=True))
    rows = tuple((*pair, tuple((own.get(pair, n), n > 0 and pair not in own) for own, n in known)) for pair in worst)
    return Confused(part, rows, max((n for *_, own in rows for n, _ in own), default=1))


def _provenance(run: PracticeRun) -> dict[str, str]:
    """Where the numbers come from: commit, versions, machine, and the hash of what the baseline trained on."""
    found = {k: str(v) for k, v in run.steps["prepare"]["provenance"].items()} if "prepare" in run.steps else {}
    trained = run.path / "baseline" / "run.json"
    if trained.is_file():
        found["data_sha256"] = str(json.loads(trained.read_text(encoding="utf-8")).get("data_sha256", "unknown"))
    return found
