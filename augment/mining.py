"""Find what a reader misreads, or nearly, and write the requests that practice on it needs."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from augment.method import Request, write_requests
from augment.sheet import Cell, contact_sheet
from recognizer.errors import UserError
from recognizer.images import open_picture
from recognizer.readings import Confusion, Reading, confusions, error_kinds, label_margin, marked, slips
from recognizer.samples import FolderWriter, Problem, Sample

if TYPE_CHECKING:
    from recognizer.training.train import TrainSettings

NEAR = 0.8  # a sample whose label is held less likely than this is nearly misread
SUSPECT = 9.0  # nats by which another text is likelier than a label that is likely wrong itself,
SURE = 0.9  # where that text is read with this confidence at least
RAREST = 4.0  # times as often as its equals a rare character or look is practised, at most
MOST = 0.1  # of a plan, that one picture is the source of


@dataclass(frozen=True)
class Hard:
    """A sample that is misread or nearly so. `hardness` is nats a character of its label's likelihood; `look` is the
    cluster that its picture belongs to, 0 where none were told apart; `doubted` says that its label was likely wrong
    when it was mined before."""

    sample: Sample
    reading: Reading
    hardness: float
    look: int = 0
    doubted: bool = False

    @property
    def misread(self) -> bool:
        return self.reading.text != self.sample.text

    @property
    def margin(self) -> float:
        """Nats by which its label is likelier than another text."""
        return label_margin(self.reading, self.sample.text)

    @property
    def suspect(self) -> bool:
        """Whether its label is likely wrong: another text is read surely, and far more likely, or was before, and it
        still is not read."""
        return self.misread and (self.doubted or self.contradicted)

    @property
    def contradicted(self) -> bool:
        return self.reading.confidence >= SURE and self.margin <= -SUSPECT


@dataclass(frozen=True)
class Mined:
    """What mining found.

    Attributes:
        hard: hard samples, misread ones first, then the hardest first.
        suspects: misread samples whose labels are likely wrong, the likeliest first. They count nowhere else: practice
            on a wrong label teaches it.
        confused: which characters were read as which.
        taken_for: what was read as what: one character as another, two as one, one as two, and a pair of like ones as
            one of them, or one as such a pair.
        kinds: how often readings went wrong in each of `readings.KINDS`.
        read: how many samples were read.
        looks: how many of all samples have each look.
    """

    hard: tuple[Hard, ...]
    suspects: tuple[Hard, ...]
    confused: Counter[Confusion]
    kinds: Counter[str]
    read: int
    looks: Counter[int]
    taken_for: Counter[Confusion]


def by_look(mined: Mined) -> list[tuple[int, int]]:
    """How many samples each look has, and how many of them are misread, labels that are likely wrong aside."""
    misread = Counter(h.look for h in mined.hard if h.misread)
    return [(n, misread[look]) for look, n in sorted(mined.looks.items())]


def hardness(reading: Reading, text: str) -> float:
    """Nats a character of the true label; bounded where the label has no alignment at all."""
    assert reading.nll is not None
    return min(reading.nll / len(text), 50.0)


def mine(
    samples: Sequence[Sample], readings: Sequence[Reading], near: float = NEAR, looks: Sequence[int] | None = None,
    doubted: Collection[str] = (),
) -> Mined:  # fmt: skip
    """Rank what was misread, or whose label was held less likely than `near`, misread ones first, then by hardness and
    margin; `looks[i]` is the cluster of `samples[i]`. Likely label errors are set aside, and so is what is `doubted`
    (names) since it was mined before, until its label is read."""
    looks = [0] * len(samples) if looks is None else [int(look) for look in looks]
    all_read = [
        Hard(sample, reading, hardness(reading, sample.text), look, sample.name in doubted)
        for sample, reading, look in zip(samples, readings, looks, strict=True)
    ]
    trusted = [h for h in all_read if not h.suspect]
    hard = [h for h in trusted if h.misread or (h.reading.nll or 0.0) > -np.log(near)]
    hard.sort(key=lambda h: (not h.misread, -h.hardness, h.margin, h.sample.name))
    suspects = sorted((h for h in all_read if h.suspect), key=lambda h: (h.margin, h.sample.name))
    pairs = [(h.sample.text, h.reading.text) for h in trusted]
    return Mined(
        tuple(hard), tuple(suspects), confusions(pairs), error_kinds(pairs), len(samples), Counter(looks),
        Counter((slip.truth, slip.read) for slip in slips(pairs) if slip.truth and slip.read),
    )  # fmt: skip


def plan(mined: Mined, samples: Sequence[Sample], count: int, seed: int) -> tuple[list[Request], list[Request]]:
    """Requests for practice, `count` that vary a real picture and `count` that draw a new text.

    Sources are drawn by hardness, so that what is misread comes most often, and by how rare their look is. None is a
    suspect, and of none comes more than about a tenth: where few are hard, the others have the rest. New texts have the
    lengths of the labels and characters drawn by how often they are misread and how rarely they are seen; half of those
    drawn from a sample with a confused character, or two that were read as one, are its text with that swapped for what
    it was taken for (`swapped`).

    Raises:
        UserError: no samples.
    """
    if not samples:
        raise UserError("there is no sample to plan practice from")
    rng = np.random.default_rng([seed, 11])
    wrong = {h.sample.name for h in mined.suspects}
    trusted = [s for s in samples if s.name not in wrong] or list(samples)
    weight = {h.sample.name: 0.2 + min(h.hardness, 3.0) for h in mined.hard}
    for h in mined.hard:
        weight[h.sample.name] *= min(RAREST, (mined.read / len(mined.looks) / mined.looks[h.look]) ** 0.5)
    share = np.array([weight.get(s.name, 0.0) for s in trusted])
    share = (share / max(share.sum(), 1e-9)).clip(max=MOST)
    left = max(1 - float(share.sum()), 0.0)  # rounding may have made it less
    share += left * (share == 0) / max((share == 0).sum(), 1)
    drawn = rng.choice(len(trusted), (2, count), p=share / share.sum())
    sizes = {i: open_picture(trusted[i].read_bytes(), "L").size for i in np.unique(drawn).tolist()}

    seen = Counter(c for s in trusted for c in s.text)
    missed: Counter[str] = Counter()
    taken_for: dict[str, Counter[str]] = {}
    for (true, _), times in mined.confused.items():
        if true:
            missed[true] += times
    for (true, read), times in mined.taken_for.items():
        if set(read) <= set(seen) and not any(map(str.isspace, read)):
            taken_for.setdefault(true, Counter())[read] += times
    # a space at any place of a text, or at its end, is nothing that a label has
    alphabet = sorted(c for c in seen if not c.isspace()) or sorted(seen)
    mean = sum(seen[c] for c in alphabet) / len(alphabet)
    character_weight = np.array(
        [(1 + 10 * missed[c] / seen[c]) * min(RAREST, (mean / seen[c]) ** 0.5) for c in alphabet]
    )
    character_weight /= character_weight.sum()
    lengths = [len(s.text) for s in trusted]
    possible = {*lengths}

    vary, draw, whys = [], [], ("any sample", "hard sample")
    for k in range(count):
        source = trusted[drawn[0, k]]
        width, height = sizes[int(drawn[0, k])]
        vary.append(
            Request(source.text, int(rng.integers(2**31)), width, height, source.name, whys[source.name in weight])
        )
        width, height = sizes[int(drawn[1, k])]
        source, text, why, pair = trusted[drawn[1, k]], None, "contrast pair", trusted[drawn[1, k]].name
        groups = {(i, source.text[i:j]) for i in range(len(source.text)) for j in (i + 1, i + 2)}
        places = sorted((i, own) for i, own in groups if own in taken_for)
        if places and rng.random() < 0.5:
            i, own = places[int(rng.integers(len(places)))]
            others = taken_for[own]
            swap = str(rng.choice(list(others), p=np.array(list(others.values())) / others.total()))
            more = str(rng.choice(alphabet, p=character_weight)) if len(swap) < len(own) else ""
            text = swapped(source.text, i, own, swap, more, possible)
        if text is None:
            text = "".join(rng.choice(alphabet, int(rng.choice(lengths)), p=character_weight))
            why, pair = "weighted characters", None
        draw.append(Request(text, int(rng.integers(2**31)), width, height, None, why, pair))
    return vary, draw


def swapped(text: str, i: int, own: str, swap: str, more: str, lengths: Collection[int]) -> str | None:
    """A text with what stands at i swapped, as long as a label is: else with `more` at an end, or an end's character
    cut off, the end that is farther from it. None where that would cut the swap or bare a space."""
    end = i + len(swap)
    found = text[:i] + swap + text[i + len(own) :]
    if len(found) in lengths:
        return found
    late = i > len(found) - end
    if more:
        return more + found if late else found + more
    cuts = [found[1:]] * (i > 0) + [found[:-1]] * (end < len(found))
    cuts = [cut for cut in (cuts if late else cuts[::-1]) if cut == cut.strip() or found != found.strip()]
    return cuts[0] if cuts else None


def read_out_of_folds(
    model: Path, samples: Sequence[Sample], folds: int, out: Path, seed: int = 0, jobs: int = 2
) -> tuple[list[Sample], list[Reading], list[Problem]]:
    """Read samples: those that can be used, what was read in each, and what was set aside.

    With `folds`, each part is read by a reader trained on the others, with the settings of `model` from where `model`
    started, or, where `model` learned from rendered text alone, with the defaults from there; they go to `out/folds`,
    and what is there already is used again. Without, `model` itself reads.

    Raises:
        UserError: no weights, or too few samples for the folds.
    """
    from recognizer.training.folds import folds_of, read_folds, train_folds

    if not folds:
        samples, readings, problems = read_folds([model], [samples])
    else:
        parts = folds_of(samples, folds, seed)
        readers = train_folds(fold_settings(model, samples), parts, out / "folds", jobs)
        samples, readings, problems = read_folds(readers, parts)
    return samples, [own for (own,) in readings], problems


def fold_settings(model: Path, samples: Sequence[Sample]) -> TrainSettings:
    """How readers out of fold are trained: as `model` was, or, where it learned from rendered text alone, from it.

    Where `model` started from weights that had learned these samples, as those were, and so on.

    Raises:
        UserError: no weights, or settings in them that this program does not know.
    """
    from recognizer.progress import Alone, say
    from recognizer.settings import make
    from recognizer.training.checkpoint import read_weights
    from recognizer.training.folds import MOST_STARTS, learned_of
    from recognizer.training.train import TrainSettings

    first = model
    for _ in range(MOST_STARTS):
        _, description = read_weights(model)
        start = str(description.settings.get("start", "nothing"))
        if start in ("nothing", "default") or not learned_of(start, samples):
            break
        model = Path(start)
    if model != first:
        say(Alone(), f"{first} started from what had learned these pictures: the folds are trained as {model} was")
    about = {**description.settings, "charset": description.charset}
    if description.settings.get("stream"):
        # the size as well: as a training writes it down, so that its readers are known again
        about = {"start": str(model), "size": description.size, "charset": description.charset}
    return make(TrainSettings, about, f"settings in {model}")


def write_mined(
    mined: Mined, requests: Sequence[Request], out: Path, files: Mapping[str, str] | None = None
) -> None:  # fmt: skip
    """Write `hard/` and, where there are any, `suspects/` (samples, and what was read in them) and
    `suspects.jsonl` (for `recognizer label --review`), `confusions.json`, `requests.jsonl` and `sheet.png` into
    `out`. `files` are the user's own of samples that were copied, by name."""
    out.mkdir(parents=True, exist_ok=True)
    for name, found in (("hard", mined.hard), *[("suspects", mined.suspects)] * bool(mined.suspects)):
        with FolderWriter(out / name) as writer:
            for h in found:
                about: dict[str, Any] = {
                    "read": h.reading.text, "confidence": h.reading.confidence, "nll": h.reading.nll,
                    "hardness": h.hardness, "margin": h.margin, "look": h.look, "name": h.sample.name,
                }  # fmt: skip
                writer.add(h.sample.name, h.sample.read_bytes(), h.sample.text, about)
    if mined.suspects:
        doubts = [
            {"file_name": h.sample.name, **({"path": path} if (path := file_of(h.sample, files)) else {}),
             "text": h.sample.text, "suggested": h.reading.text,
             "confidence": round(h.reading.confidence, 4), "score": round(-h.margin, 3),
             "reasons": [f"read {'surely' if h.contradicted else 'surely before'}, {-h.margin:.0f} nats likelier"]}
            for h in mined.suspects
        ]  # fmt: skip
        lines = [json.dumps(row, ensure_ascii=False) + "\n" for row in doubts]
        (out / "suspects.jsonl").write_text("".join(lines), encoding="utf-8", errors="surrogateescape")
    rows = [{"true": true, "read": read, "times": n} for (true, read), n in mined.confused.most_common()]
    (out / "confusions.json").write_text(json.dumps(rows, ensure_ascii=False, indent=1) + "\n", encoding="utf-8")
    write_requests(requests, out / "requests.jsonl")
    if mined.hard:
        cells = [hard_cell(h) for h in mined.hard[:60]]
        contact_sheet([cells[i : i + 6] for i in range(0, len(cells), 6)], out / "sheet.png")


def file_of(sample: Sample, files: Mapping[str, str] | None) -> str | None:
    """The user's own file of a sample, or of one that was copied from it."""
    return str(sample.path.resolve()) if files is None else files.get(sample.name)


def hard_cell(h: Hard) -> Cell:
    """A hard sample as a cell of a contact sheet: its picture, its label, and what was read with its errors marked."""
    caption, wrong = marked(h.sample.text, h.reading.text)
    before = f"{h.sample.text}: "
    return Cell(open_picture(h.sample.read_bytes(), "RGB"), before + caption, (False,) * len(before) + wrong)
