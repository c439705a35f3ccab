"""Arms of a comparison: the same reader, trained with the same compute on the same labels, each with other made
pictures or none, several seeds, read on the same test pictures."""

from __future__ import annotations

import math
import shutil
import time
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from augment.fidelity import doubts
from augment.likeness import coverage, features_of, frechet
from augment.method import Request, Sources
from augment.synthesize import answered_by, random_texts, requests_for_sources
from pipelines.portfolio import UNLABELLED
from pipelines.run import NEVER, Judges, Run, fitted, make_and_judge, read
from pipelines.unlabelled import how_sure, take
from recognizer.charset import Charset
from recognizer.errors import UserError
from recognizer.progress import Alone, say
from recognizer.readings import paired_difference, wilson
from recognizer.samples import Manifest, Sample, read_manifest, write_folder
from recognizer.training.side_by_side import Training

NONE = "none"  # the control: real pictures alone
ATTEMPTS = 4  # to make as many pictures as are asked for, where many are refused
MOST_LOOKED_AT = 2000  # pictures whose looks are compared
ENOUGH = 0.9  # an arm with a smaller share of the pictures that are asked for is not compared
HOPELESS = 0.1  # a method of whose pictures fewer are kept is asked for no more


@dataclass(frozen=True)
class Arms:
    """The arms of a run, by name, in `root/NAME`; their readers and what these read are in the run's ledger."""

    run: Run
    root: Path
    seeds: int
    share: float | None = None  # of each batch; else the run's

    def folder(self, name: str) -> Path:
        return self.root / name.replace(":", "-")

    def training(self, name: str, seed: int) -> Training:
        """The training of an arm's reader: with the pictures in its `kept/`, if any."""
        made, run = self.folder(name) / "kept", self.run
        return run.training(
            self.folder(name) / f"seed-{seed}", run.out / "data" / "train", run.settings.seed + seed,
            with_synthetic=[] if name == NONE else [str(made)],
            synthetic_share=self.share or run.settings.made_share, patience=NEVER,
        )  # fmt: skip

    def trainings(self, names: Sequence[str]) -> list[Training]:
        """The trainings of some arms, all seeds."""
        return [self.training(name, seed) for name in names for seed in range(self.seeds)]

    def make(self, name: str, wanted: Mapping[str, int], judges: Judges, reader: Path, number: int = 1) -> None:
        """Make an arm's pictures, so many of each method, until enough are kept or `ATTEMPTS` are made; the ledger says
        what came of it. Sources and texts are as the labels have them, none is mined. `reader` has learned the labels,
        for methods that learn; pictures without labels are taken as in a round `number`.

        Raises:
            UserError: none of the pictures was kept.
        """
        began, folder, run = time.monotonic(), self.folder(name), self.run
        shutil.rmtree(folder / "kept", ignore_errors=True)
        kept: list[Sample] = []
        made: list[Sample] = []
        refused: Counter[str] = Counter()
        every, passed, right, seconds = 0, 0, 0.0, 0.0
        for method, count in wanted.items():
            if method == UNLABELLED:
                taken, facts = take(run, count, [reader, *judges.readers], run.settings.seed, number, hard=False)
                made, kept = made + taken, kept + taken
                every, passed = every + facts["read"], passed + facts["sure"]
                refused.update(facts["refused"])
                right, seconds = right + facts["read_right"] * facts["read"], seconds + facts["seconds"]
                how = how_sure(facts["least"], run.settings)
                say(Alone(), f"  {method}: {len(taken)} of {count} taken, {facts['sure']} {how}")
                continue
            own, known = fitted(run, method, reader)
            mine: list[Sample] = []
            drawn = 0
            for attempt in range(ATTEMPTS if count else 0):
                share = len(mine) / drawn if drawn else 0.8
                more = min(round((count - len(mine)) / share) + 4, 2 * count + 4)
                asked = plain_requests(run, method, own, more, run.settings.seed + 10_000_000 * (attempt + 1), known)
                part = folder / "made" / str(attempt)
                judged, facts = make_and_judge(run, method, own, asked, part, judges)
                made += [Sample(f"{attempt}/{method}/{s.name}", s.text, s.path, meta=s.meta)
                         for s in read_manifest(part / method)]  # fmt: skip
                mine += [Sample(f"{attempt}/{s.name}", s.text, s.path, meta=s.meta) for s in judged.kept]
                refused.update(facts["refused"])
                right, seconds = right + facts["read_right"] * facts["asked"], seconds + facts["seconds"]
                drawn += len(asked)
                if len(mine) >= count or len(mine) < HOPELESS * drawn:
                    break
            every, passed = every + drawn, passed + len(mine)
            kept += mine[:count]
            say(Alone(), f"  {method}: {len(mine[:count])} kept, {drawn - len(mine)} of {drawn} refused")
            for line in doubts({method: len(mine)}, {method: drawn}):
                say(Alone(), f"  {line}")
        if not kept:
            raise UserError(f"{name}: none of {every} pictures was kept; look at {folder / 'made'}")
        write_folder(kept, folder / "kept")
        never = sorted({c for s in run.train for c in s.text} - {c for s in kept for c in s.text})
        run.ledger.record(
            f"made {name}", asked=every, passed=passed, kept=len(kept), wanted=sum(wanted.values()),
            refused=dict(refused), read_right=right / every, a_second=every / max(seconds, 1e-9),
            never_seen="".join(never), **likeness(run, made, judges.readers[0]), seconds=time.monotonic() - began,
        )  # fmt: skip

    def compared(self, names: Sequence[str]) -> list[str]:
        """The arms that readers train with: those with nearly as many pictures as were asked for."""
        made = {name: self.run.ledger.get(f"made {name}", {"kept": 1, "wanted": 1}) for name in names}
        return [name for name in names if made[name]["kept"] >= ENOUGH * made[name]["wanted"]]

    def read(self, names: Sequence[str], test: Sequence[Sample]) -> None:
        """Read the test pictures with every arm's readers, each once."""
        for name in names:
            for seed in range(self.seeds):
                if f"read {name} {seed}" not in self.run.ledger:
                    readings = read(self.training(name, seed).out, test)
                    texts = {t.name: r.text for t, r in zip(test, readings, strict=True)}
                    self.run.ledger.record(f"read {name} {seed}", readings=texts)

    def rights(self, names: Sequence[str], texts: Mapping[str, str], fold_case: bool) -> dict[str, NDArray[np.bool_]]:
        """Which test pictures each arm's readers read right, (seeds, pictures)."""

        def same(a: str, b: str) -> bool:
            return a.casefold() == b.casefold() if fold_case else a == b

        read_by = {(n, k): self.run.ledger[f"read {n} {k}"]["readings"] for n in names for k in range(self.seeds)}
        return {
            name: np.array([[same(t, read_by[name, k][s]) for s, t in texts.items()] for k in range(self.seeds)])
            for name in names
        }


def likeness(run: Run, made: Sequence[Sample], reader: Path) -> dict[str, float]:
    """How like real pictures made ones are, in the eyes of a reader that was not trained on those: half of its own fold
    against as many made of other pictures, and against the other half, which is the least to hope for."""
    rng = np.random.default_rng(run.settings.seed)
    fold = [run.folds[0][i] for i in rng.permutation(len(run.folds[0]))]
    half = min(len(fold) // 2, MOST_LOOKED_AT)
    names = {s.name for s in fold[:half]}
    others = [s for s in made if s.meta.get("source") not in names]
    others = [others[i] for i in rng.permutation(len(others))[:half]]
    real, rest, looks = (features_of(reader, part) for part in (fold[:half], fold[half : 2 * half], others))
    if min(len(real), len(rest), len(looks)) < 2:
        return {"coverage": math.nan, "frechet": math.nan, "frechet_real": math.nan}
    return {
        "coverage": coverage(real, looks), "frechet": frechet(real, looks), "frechet_real": frechet(real, rest),
    }  # fmt: skip


def plain_requests(
    run: Run, name: str, settings: dict[str, Any], count: int, seed: int, known: str | None
) -> list[Request]:
    """Requests for one method: real pictures by chance under their own text, or random texts of the labels' characters,
    each of the length and at the size of one real picture; none of a label that practice set aside."""
    manifest = Manifest(run.trusted, source=str(run.out / "data" / "train"))
    varied, _ = requests_for_sources(manifest, count, seed)
    every = {c for s in run.train for c in s.text}
    held = {c for c in every if not c.isspace()} or every
    characters = Charset.of(["".join(sorted(held if known is None else held & set(known)))])
    drawn = [Request(random_texts(characters, [len(r.text)], 1, r.seed)[0], r.seed, r.width, r.height) for r in varied]
    return answered_by(name, settings, varied, drawn, Sources(manifest), run.known_as)


def difference_rows(right: Mapping[str, NDArray[np.bool_]], against: Sequence[str]) -> list[dict[str, Any]]:
    """How many test pictures each arm reads right, and how it differs from some of them: shares, 95 % intervals, p."""
    rows = []
    for name, own in right.items():
        n = own.shape[1]
        others = [other for other in against if other in right and other != name]
        rows.append({
            "name": name, "by_seed": own.mean(1).tolist(), "interval": wilson(round(own.mean() * n), n),
            "against": {other: asdict(paired_difference(right[other], own)) for other in others},
        })  # fmt: skip
    return rows


def difference_table(rows: Sequence[Mapping[str, Any]], against: Sequence[str]) -> list[str]:
    """Those rows as lines of Markdown."""
    lines = [
        "| method | read right, by seed | mean, 95 % interval | "
        + " | ".join(f"against {name}, 95 % interval | p" for name in against) + " |",
        "|---" * (3 + 2 * len(against)) + "|",
    ]  # fmt: skip
    for row in rows:
        (low, high), by_seed = row["interval"], row["by_seed"]
        cells = [row["name"], ", ".join(f"{x:.3f}" for x in by_seed)]
        cells.append(f"{sum(by_seed) / len(by_seed):.3f} ({low:.3f} to {high:.3f})")
        for other in against:
            cells += ["", ""]
            if (d := row["against"].get(other)) is not None:
                cells[-2] = f"{d['mean']:+.3f} ({d['low']:+.3f} to {d['high']:+.3f})"
                cells[-1] = f"{d['p']:.3f}" if d["p"] >= 0.001 else "< .001"
        lines.append("| " + " | ".join(cells) + " |")
    return lines
