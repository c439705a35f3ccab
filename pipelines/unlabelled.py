"""Pictures without labels, as one more method of practice: what several readers together are sure of is taken for its
label, the less sure the more often (Lee 2013, "Pseudo-Label"; that several readers judge is co-training's, Blum and
Mitchell 1998; what is sure goes by character, as in recognizer/training/pseudo.py)."""

from __future__ import annotations

import json
import time
from collections.abc import Collection, Container, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from pipelines.portfolio import UNLABELLED
from pipelines.run import Run, RunSettings, read_some
from recognizer.errors import MachineError, UserError
from recognizer.progress import Alone, say
from recognizer.readings import Reading
from recognizer.samples import Sample
from recognizer.training.checkpoint import read_weights
from recognizer.training.pseudo import lengths_of, limit, share_at_least, surely

MOST = 10  # times as many pictures as are asked for are read, at most
EVEN = 5  # the least sure of what is taken is drawn six times as often as the surest


class Together(NamedTuple):
    """What several readers read in pictures without labels: `read` what the first does, by file; `named` the pictures
    under that, where all can read them and it has a length that is known, how `likely` those texts are by all together,
    and for each other reader and picture whether it reads `alike`."""

    read: dict[str, Reading]
    named: list[Sample]
    likely: NDArray[np.float64]
    alike: list[bool]


def read_together(readers: Sequence[Path], files: Sequence[str], lengths: Container[int]) -> Together:
    """Read pictures with several readers: the first says what a picture shows, all together how likely that is, the
    mean of the probabilities of that text.

    Raises:
        MachineError: pictures that are there no more.
    """
    see_there(files)
    found = read_some(readers[0], as_known_to(readers[0], [Sample(f, "", Path(f)) for f in files]))
    named = [Sample(f, found[f].text, Path(f)) for f in files if f in found and len(found[f].text) in lengths]
    others = [read_some(reader, named) for reader in readers[1:]]
    named = [s for s in named if all(s.name in own for own in others)]
    # a confidence is the probability of what is read
    held = [[found[s.name].confidence, *(float(np.exp(-(own[s.name].nll or 0.0))) for own in others)] for s in named]
    tell_broken(files, found)
    likely = np.array(held).reshape(len(named), len(readers)).mean(1)
    return Together(found, named, likely, [own[s.name].text == s.text for own in others for s in named])


def see_there(files: Sequence[str]) -> None:
    """See that pictures are still there.

    Raises:
        MachineError: some are not.
    """
    if gone := [f for f in files if not Path(f).exists()]:
        raise MachineError(f"{gone[0]}: no such file; {len(gone)} of {len(files)} pictures without labels are gone")


def tell_broken(files: Sequence[str], found: Collection[str]) -> None:
    """Say how many pictures nothing was found in, for they cannot be opened.

    Raises:
        UserError: that is all of them, of some.
    """
    if files and not found:
        raise UserError(f"none of {len(files)} pictures without labels can be opened any more")
    if broken := len(files) - len(found):
        say(Alone(), f"  {broken} of {len(files)} pictures without labels cannot be opened, and are left out")


def as_known_to(reader: Path, samples: Sequence[Sample]) -> list[Sample]:
    """Samples under a label that a reader knows, whatever it is: what it cannot spell it would not read."""
    known = read_weights(reader)[1].charset[0]
    return [replace(s, text=known) for s in samples]


def take(
    run: Run, count: int, readers: Sequence[Path], seed: int, number: int, taken: Collection[str] = (),
    hard: bool = True,
) -> tuple[list[Sample], dict[str, Any]]:  # fmt: skip
    """So many unlabelled pictures with what is read in them for labels, or as many as are read surely enough, and what
    came of it, told as of a method's pictures.

    Args:
        readers: the first says what a picture shows, all together how sure that is: the mean of the probabilities of
            that text.
        number: of the round: after the first more may be taken that are not sure.
        taken: files that were taken before, as `meta["found"]` names them.
        hard: draw the less sure ones more often, else each alike.

    Raises:
        MachineError: pictures that the run lists are there no more.
    """
    began, rng = time.monotonic(), np.random.default_rng([seed, 19])
    files = [f for f in json.loads((run.out / "data" / "unlabelled.json").read_text()) if f not in taken]
    files = [files[i] for i in rng.permutation(len(files))[: MOST * count]]
    # a length that no label has is a character too many or too few, more often than a text of that length
    labelled = [*run.train, *run.validation]
    _, named, likely, alike = read_together(readers, files, lengths_of(labelled))
    shown = set().union(*(s.text for s in labelled))
    settings = run.settings
    fewest = share_at_least(settings.unlabelled_fewest, number)
    least = limit(likely, settings.unlabelled_confidence, fewest, len(taken), count)
    sure = np.flatnonzero(surely([s.text for s in named], likely, least, shown))
    doubt = 1 - likely[sure].clip(least) + (1 - least) / EVEN
    share = doubt / doubt.sum() if hard and len(sure) else None
    chosen = rng.choice(sure, min(count, len(sure)), replace=False, p=share) if len(sure) else sure
    samples = [
        replace(
            named[i], name=f"{k:06d}{Path(named[i].name).suffix.lower()}",
            meta={"method": UNLABELLED, "source": None, "found": named[i].name,
                  "confidence": round(float(likely[i]), 4), "least": least},
        )
        for k, i in enumerate(chosen.tolist())
    ]  # fmt: skip
    lacking = count - len(samples)
    return samples, {
        "asked": count, "kept": len(samples), "refused": {"too few are sure": lacking} if lacking else {},
        "read_right": sum(alike) / max(len(alike), 1), "read": len(files), "sure": len(sure), "least": least,
        "seconds": time.monotonic() - began,
    }  # fmt: skip


def relabelled(samples: Sequence[Sample], reader: Path, least: float) -> list[Sample]:
    """Pictures without labels as another reader reads them, those of which it is sure itself, as sure as those were by
    whom each was taken; none as shorter or longer than what was taken."""
    found, known = read_some(reader, samples), lengths_of(samples)
    named = [replace(s, text=found[s.name].text) for s in samples if s.name in found]
    by_limit: dict[float, list[Sample]] = {}
    for s in named:
        if len(s.text) in known:
            by_limit.setdefault(min(least, s.meta.get("least", least)), []).append(s)
    taken: list[Sample] = []
    for own, group in by_limit.items():
        sure = surely([s.text for s in group], [found[s.name].confidence for s in group], own)
        taken += [s for s, yes in zip(group, sure, strict=True) if yes]
    return taken


def guessed(made: Sample, settings: RunSettings) -> bool:
    """Whether a picture without a label was taken because too few were read as surely as settings ask for."""
    least = settings.unlabelled_confidence
    return bool(made.meta.get("least", least) < least)


def how_sure(least: float, settings: RunSettings) -> str:
    """What is said of pictures without labels that were read as likely as that."""
    return "are read surely" if least >= settings.unlabelled_confidence else f"are likelier than {least:.2f}"
