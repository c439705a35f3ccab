"""The diagnosis as a page: what is in the data, whether there is a signal, and how a reader fails, pictures first."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from recognizer.data.diagnose import Described, Signal, Test
from recognizer.data.failures import Failures
from recognizer.data.pages import Tile, read_pieces, templates, tile_of, write_page
from recognizer.readings import KINDS

OPENING, COPIES, WORST, UNSURE, TESTS = 5, 6, 18, 6, 12  # shown of each
MOST_POSITIONS = 12
LIKELY = 0.05  # p of a test that is shown
PLOT = 260  # height and width of the reliability diagram, pixels


@dataclass(frozen=True)
class Heat:
    """A table of counts, by name, each with a shade from 0 to 1."""

    columns: Sequence[str]
    rows: Sequence[tuple[str, Sequence[tuple[int, float]]]]


def write_diagnosis(path: Path, d: Described, found: Signal, f: Failures, reader: str, tests: Sequence[Test]) -> None:
    """Write the page, whole or not at all."""
    surest = {test.feature: test for test in reversed(tests) if test.p < LIKELY}  # one test of each feature
    named = {s.name: s for s in d.samples}
    page = templates().get_template("diagnosis.html").render(
        d=d, found=found, f=f, reader=reader, title=title_of(d, found, f),
        tests=sorted(surest.values(), key=lambda t: t.p)[:TESTS], findings=sorted(d.findings, key=lambda x: not x.bad),
        opening=[tile_of(s) for s in d.samples[:OPENING]], positions=positions_of(d), confused=confused_of(f),
        copies=[(tile_of(named[a]), tile_of(named[b]), differ)
                for a, b, differ in sorted(d.copies, key=lambda c: not c[2]) if a in named and b in named][:COPIES],
        light=light_of(d), wrong=[_read_tile(f, i) for i in f.surest_wrong(WORST)],
        unsure=[_read_tile(f, i) for i in f.least_sure(UNSURE)], kinds=[(k, f.kinds[k]) for k in KINDS if f.kinds[k]],
        PLOT=PLOT, isnan=math.isnan,
    )  # fmt: skip
    write_page(path, page)


def title_of(d: Described, found: Signal, f: Failures) -> str:
    """The page's headline: the worst thing that there is to say."""
    if f.collapse:
        return f"The reader has collapsed: {f.collapse.kind}"
    if found.none:
        return "No signal: pictures and labels do not belong together"
    if bad := sum(finding.bad for finding in d.findings):
        return f"{bad} thing{'s' if bad > 1 else ''} to mend, and {100 * f.scores.exact:.0f} % read without a fault"
    return f"{100 * f.scores.exact:.0f} % read without a fault"


def positions_of(d: Described) -> Heat:
    """Characters by position."""
    columns = sorted(d.characters)
    rows = []
    for k, own in sorted(d.by_position.items())[:MOST_POSITIONS]:
        most = max(own.values())
        rows.append((str(k + 1), [(own[c], own[c] / most) for c in columns]))
    return Heat(columns, rows)


def confused_of(f: Failures) -> Heat:
    """Written characters in rows, what they were read as in columns; shaded by the share of the row."""
    names, counts = f.matrix()
    rows = []
    for a in names:
        total = sum(counts[a, b] for b in names) or 1
        rows.append((a, [(counts[a, b], counts[a, b] / total) for b in names]))
    return Heat(names, rows)


def light_of(d: Described) -> Mapping[str, Any]:
    """Of light and colour the fifth, the middle and the ninety-fifth of a hundred."""
    return {
        name: tuple(np.percentile(d.features[name], [5, 50, 95]).tolist())
        for name in ("brightness", "contrast", "saturation") if name in d.features
    }  # fmt: skip


def _read_tile(f: Failures, i: int) -> Tile:
    sample, read, sure = f.samples[i], f.texts[i], f.readings[i].confidence
    return tile_of(sample, read_pieces(sample.text, read), f"label {sample.text}, {sure:.0%} sure", f", read as {read}")
