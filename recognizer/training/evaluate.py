"""Read labelled pictures with torch: what a model reads, how sure it is, and how likely it holds each true label."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Callable, Sequence
from math import ceil
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from accelerate import Accelerator
from accelerate.utils import gather_object

from recognizer.charset import Charset
from recognizer.errors import UserError
from recognizer.images import MAX_PIXELS, normalise
from recognizer.progress import Bar
from recognizer.reader import readings_of
from recognizer.readings import Reading
from recognizer.samples import Sample
from recognizer.training.batches import Pictures, collate
from recognizer.training.checkpoint import build, find_start, read_weights
from recognizer.training.losses import nll, positions
from recognizer.training.model import HeadName, Network

MOST_TOLD = 512  # pictures that tell in which case letters are shown


class Outcome(NamedTuple):
    """A reading of each picture, in order, and two figures of the outputs as a whole.

    `blank_rate` is the share of frames that say blank; `spread` as in `collapse.find_collapse`, None where no two
    pictures have one width.
    """

    readings: list[Reading]
    blank_rate: float
    spread: float | None


def no_device() -> bool:
    """Whether there is a CPU alone. Accelerate must be told, or each process of several would run alone, silently."""
    return not torch.accelerator.is_available()


@torch.inference_mode()
def read_pictures(
    network: Network, head: HeadName, pictures: Pictures, accelerator: Accelerator, batch: int = 128,
    each: Callable[[], object] = lambda: None,
) -> Outcome:  # fmt: skip
    """Read every picture once, shared among the processes and gathered on each. The network must be in eval mode.
    `each` is called after each picture of this process.

    Pictures of one width make a batch, so that no picture is padded for its neighbours and a reading depends on its
    picture alone.

    Raises:
        UserError: an output that is not finite.
    """
    groups = groups_of_one_width(pictures, batch)
    found: list[tuple[int, Reading]] = []
    blanks, frames, spreads = 0, 0, []
    with accelerator.split_between_processes(groups) as mine:
        for group in mine:
            logits, readings = _read_group(network, head, pictures, group, accelerator.device)
            found += zip(group, readings, strict=True)
            blanks += int((logits.argmax(-1) == 0).sum())
            frames += logits.shape[0] * logits.shape[1]
            for _ in group:
                each()
            if len(group) > 1:
                spreads.append(float(logits.softmax(-1).std(0).sum(-1).mean()))
    totals = [(found, blanks, frames, spreads)]
    if accelerator.num_processes > 1:
        totals = gather_object(totals)
    whole = dict(pair for part, *_ in totals for pair in part)
    all_spreads = [s for *_, part in totals for s in part]
    return Outcome(
        [whole[i] for i in range(len(pictures))],
        sum(t[1] for t in totals) / max(1, sum(t[2] for t in totals)),
        float(np.mean(all_spreads)) if all_spreads else None,
    )


class Decisions(NamedTuple):
    """Of a fixed head's yes-or-no decisions "this character stands in this position", each taken at one half: how many
    yes are right, are said, and should be; and of how many pictures so many texts are exactly right."""

    right: int
    said: int
    there: int
    exact: int
    n: int


@torch.inference_mode()
def decisions(weights: Path, samples: Sequence[Sample], max_pixels: int = MAX_PIXELS) -> Decisions:
    """What a fixed head decides on labelled pictures that can be used.

    Raises:
        UserError: no weights, those of another head, or no picture that can be used.
    """
    state, description = read_weights(weights)
    if description.head != "fixed":
        raise UserError(f"{weights} has a {description.head} head, which decides nothing by position")
    network, charset = build(state, description), Charset(description.charset)
    pictures = Pictures(samples, charset, description.frame, max_pixels)
    if not len(pictures):
        raise UserError(f"none of {len(samples)} pictures to read can be used")
    right = said = there = exact = 0
    for group in groups_of_one_width(pictures, 128):
        batch = collate([pictures[i] for i in group])
        logits = network(batch.pictures)["fixed"]
        own, truth = positions(logits, batch.targets, batch.lengths)
        yes, is_there = own[..., 1:] > 0, truth[..., 1:] > 0
        right += int((yes & is_there).sum())
        said += int(yes.sum())
        there += int(batch.lengths.sum())  # also of texts longer than the head
        readings = readings_of(logits.log_softmax(-1).numpy(), charset)
        exact += sum(r.text == pictures.samples[i].text for i, r in zip(group, readings, strict=True))
    return Decisions(right, said, there, exact, len(pictures))


def groups_of_one_width(pictures: Pictures, batch: int) -> list[list[int]]:
    """The places of all pictures in groups of at most `batch`, of one width each."""
    by_width: dict[int, list[int]] = defaultdict(list)
    for i, width in enumerate(pictures.widths):
        by_width[width].append(i)
    return [own[k : k + batch] for own in by_width.values() for k in range(0, len(own), batch)]


def evaluate(
    weights: Path, samples: Sequence[Sample], accelerator: Accelerator, max_pixels: int = MAX_PIXELS
) -> tuple[Pictures, Outcome]:
    """Read labelled samples with a weights file or a run: those that can be used, and what was read in them.

    Raises:
        UserError: no weights.
    """
    state, description = read_weights(weights)
    network = build(state, description).to(accelerator.device)
    charset, frame = Charset(description.charset), description.frame
    with Bar(accelerator, "opening", len(samples)) as bar:
        pictures = Pictures(samples, charset, frame, max_pixels, bar.advance)
    with Bar(accelerator, "reading", ceil(len(pictures) / accelerator.num_processes)) as bar:
        return pictures, read_pictures(network, description.head, pictures, accelerator, each=bar.advance)


@torch.inference_mode()
def shown_case(weights: Path, pictures: Pictures, most: int = MOST_TOLD) -> dict[str, str]:
    """The letters of a charset without case that its pictures show in the other case than its labels have.

    Labels are often lower-cased whatever the pictures show. A reader that tells the cases apart reads the pictures, and
    where it reads a label but for its case, each letter counts; the rest follow the majority.
    """
    charset = pictures.charset
    swapped = {c: c.swapcase() for c in charset.characters if len(c.swapcase()) == 1 and c.swapcase() != c}
    if any(other in charset for other in swapped.values()):
        return {}
    state, description = read_weights(weights)
    network, own = build(state, description), Charset(description.charset)
    votes: Counter[str] = Counter()
    for k in range(0, min(len(pictures), most), 32):
        members = range(k, min(k + 32, len(pictures), most))
        logits = network(collate([pictures[i] for i in members]).pictures)[description.head]
        for i, reading in zip(members, readings_of(logits.log_softmax(-1).numpy(), own), strict=True):
            label = pictures.samples[i].text
            if len(reading.text) == len(label) and reading.text.casefold() == label.casefold():  # ß is no ss
                votes.update({c: 1 if c == r else -1 for c, r in zip(label, reading.text, strict=True) if c in swapped})
    overall = sum(votes.values())
    return {c: other for c, other in swapped.items() if (votes[c] or overall) < 0 and other in own}


def default_case(samples: Sequence[Sample]) -> dict[str, str]:
    """`shown_case` of labelled samples, told by the default reader; nothing where none is installed."""
    start = find_start("default", None)[0]
    if start is None or not samples:
        return {}
    charset = Charset.of(s.text for s in samples)
    return shown_case(start, Pictures(samples[:MOST_TOLD], charset, read_weights(start)[1].frame, MAX_PIXELS))


def _read_group(
    network: Network, head: HeadName, pictures: Pictures, group: Sequence[int], device: torch.device
) -> tuple[torch.Tensor, list[Reading]]:
    items = [pictures[i] for i in group]
    x = torch.from_numpy(normalise(np.stack([item.grey for item in items]))[:, None])
    logits: torch.Tensor = network(x.to(device))[head].float()
    if not logits.isfinite().all():
        raise UserError("the reader's outputs are not finite: train it anew with a smaller --learning-rate")
    lengths = torch.tensor([len(item.ids) for item in items])
    targets = torch.zeros(len(items), int(lengths.max()), dtype=torch.long)
    for row, item in zip(targets, items, strict=True):
        row[: len(item.ids)] = torch.tensor(item.ids)
    likelihood = nll(logits, targets.to(device), lengths.to(device)).cpu()
    return logits, readings_of(logits.log_softmax(-1).cpu().numpy(), pictures.charset, likelihood.tolist())
