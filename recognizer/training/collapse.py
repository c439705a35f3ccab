"""Name the ways in which a reader learns to say nothing, with the figure that shows it and what to try."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import NamedTuple

from recognizer.readings import all_characters

LOOKED_BACK = 5  # validations
FALLEN, RISEN = 0.1, 0.02  # of recall and precision, 0 to 1


class Collapse(NamedTuple):
    """What kind of collapse, the figure that shows it, and what to try."""

    kind: str
    figure: str
    advice: str

    def __str__(self) -> str:
        return f"{self.kind}: {self.figure}. Try: {self.advice}"


def find_collapse(
    truths: Sequence[str], read: Sequence[str], spread: float | None, before: Sequence[tuple[float, float]] = ()
) -> Collapse | None:
    """The collapse that readings of labelled pictures show, or None.

    `spread` is how much the frames' class probabilities differ from picture to picture: their standard deviation over
    the pictures, averaged over frames and summed over classes. It is about 0 where the pictures are not looked at, and
    None where it cannot be told. `before` holds precision and recall of characters at earlier validations of a
    training, the last one last.
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
    characters, written = Counter("".join(read)), Counter("".join(truths))
    common, often = characters.most_common(1)[0]
    if often / characters.total() >= max(0.9, 2 * written.most_common(1)[0][1] / written.total()):
        return Collapse(
            "majority class only",
            f"{often / characters.total():.0%} of the characters that are read are {common!r}, "
            f"{written[common] / written.total():.0%} of those that are there",
            "--loss balanced-ctc, a longer --pictures, and pictures that show the other characters",
        )
    now = all_characters(list(zip(truths, read, strict=True)))
    for precision, recall in before[-LOOKED_BACK:]:
        if recall - now.recall >= FALLEN and now.precision - precision >= RISEN:
            return Collapse(
                "ever more cautious",
                f"recall of characters fell from {recall:.0%} to {now.recall:.0%} while precision rose from "
                f"{precision:.0%} to {now.precision:.0%}: less and less is read",
                "a smaller --learning-rate; with --head fixed, --loss weighted-bce --pos-weight 3",
            )
    if spread is not None and spread < 0.02:
        return Collapse(
            "prior only",
            f"the outputs differ by {spread:.3f} from picture to picture: the pictures are not looked at",
            "look whether each label belongs to its picture (shuffled labels look so); a smaller --learning-rate",
        )
    return None
