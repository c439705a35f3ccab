"""Name the ways in which a reader learns to say nothing, with the figure that shows it and what to try."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import NamedTuple


class Collapse(NamedTuple):
    """What kind of collapse, the figure that shows it, and what to try."""

    kind: str
    figure: str
    advice: str

    def __str__(self) -> str:
        return f"{self.kind}: {self.figure}. Try: {self.advice}"


def find_collapse(truths: Sequence[str], read: Sequence[str], spread: float | None) -> Collapse | None:
    """The collapse that readings of labelled pictures show, or None.

    `spread` is how much the frames' class probabilities differ from picture to picture: their standard deviation over
    the pictures, averaged over frames and summed over classes. It is about 0 where the pictures are not looked at, and
    None where it cannot be told.
    """
    if len(truths) < 8:
        return None
    empty = sum(not text for text in read) / len(read)
    answer, times = Counter(read).most_common(1)[0]
    usual = Counter(truths).most_common(1)[0][1] / len(truths)
    if empty >= 0.99:
        return Collapse(
            "all blank",
            f"{empty:.0%} of the validation pictures are read as empty",
            "a longer --pictures, --set bootstrap=guide+lstm, a lower --learning-rate; and look whether the labels fit",
        )
    if times / len(read) >= max(0.9, 2 * usual):
        return Collapse(
            "one answer for everything",
            f"{times / len(read):.0%} of the validation pictures are read as {answer!r}",
            "a smaller --learning-rate, more varied labels, and look whether the labels fit",
        )
    if spread is not None and spread < 0.02:
        return Collapse(
            "prior only",
            f"the outputs differ by {spread:.3f} from picture to picture: the pictures are not looked at",
            "look whether each label belongs to its picture (shuffled labels look so); a smaller --learning-rate",
        )
    return None
