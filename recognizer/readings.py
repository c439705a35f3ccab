"""What a model read, and how well: exact match, character error rate, confusions, intervals, calibration.

Pairs are (truth, read) texts. Counts of errors come from one minimal alignment of each pair; where several are minimal,
rapidfuzz picks.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from rapidfuzz.distance import Editop, Levenshtein

from recognizer.errors import UserError

Pair = tuple[str, str]
Confusion = tuple[str, str]
BEYOND_CHANCE = 0.05  # McNemar's p under which a difference is called real
LOST = "·"  # stands in a caption for a character that the reading left out


@dataclass(frozen=True, slots=True)
class Reading:
    """What a model read in one picture.

    Attributes:
        text: the text.
        confidence: that the whole text is right, 0 to 1.
        characters: each character of `text` with its own confidence, 0 to 1.
        nll: exact negative log-likelihood of the true label in nats, where that label is known.
        alternatives: the next most probable texts with their probabilities, where they were asked for.
    """

    text: str
    confidence: float
    characters: tuple[tuple[str, float], ...]
    nll: float | None = None
    alternatives: tuple[tuple[str, float], ...] = ()


def label_margin(reading: Reading, label: str) -> float:
    """Nats by which a label, of which the reading holds the `nll`, is likelier than the likeliest other text: under 0
    where it is misread. Where it is not, than all other texts together."""
    sure = min(max(reading.confidence, 1e-12), 1 - 1e-12)
    if reading.text != label:
        return -min(math.inf if reading.nll is None else reading.nll, 1000.0) - math.log(sure)
    return math.log(sure / (1 - sure))


def wilson(successes: int, n: int, z: float = 1.96) -> tuple[float, float]:
    """Score interval of a proportion; (0, 1) where n is 0.

    Source: Wilson, "Probable Inference, the Law of Succession, and Statistical Inference", JASA 1927.
    """
    if n == 0:
        return 0.0, 1.0
    share = successes / n
    centre = (share + z * z / (2 * n)) / (1 + z * z / n)
    half = z / (1 + z * z / n) * math.sqrt(share * (1 - share) / n + z * z / (4 * n * n))
    return max(0.0, centre - half), min(1.0, centre + half)


def exact_match(pairs: Sequence[Pair], fold_case: bool = False) -> float:
    """Share of pairs whose texts are equal, 0 to 1.

    Raises:
        UserError: no pairs.
    """
    return _equal(pairs, fold_case) / _some(pairs)


def character_error_rate(pairs: Sequence[Pair]) -> float:
    """Levenshtein edits of all pairs over characters of all truths; over 1 where too much is read.

    Raises:
        UserError: no pairs, or every truth is empty.
    """
    _some(pairs)
    characters = sum(len(truth) for truth, _ in pairs)
    if characters == 0:
        raise UserError(f"all {len(pairs)} true texts are empty: a character error rate needs at least one character")
    return sum(Levenshtein.distance(truth, read) for truth, read in pairs) / characters


def confusions(pairs: Sequence[Pair]) -> Counter[Confusion]:
    """How often each character was read as another: (truth, read), '' in place of one that was added or lost."""
    found: Counter[Confusion] = Counter()
    for truth, read in pairs:
        for edit in Levenshtein.editops(truth, read):
            found[
                "" if edit.tag == "insert" else truth[edit.src_pos],
                "" if edit.tag == "delete" else read[edit.dest_pos],
            ] += 1
    return found


def worst_confusions(pairs: Sequence[Pair], n: int = 10) -> list[tuple[Confusion, int]]:
    """The n most frequent confusions with their counts, equal ones in order of their characters."""
    return sorted(confusions(pairs).items(), key=lambda item: (-item[1], item[0]))[:n]


KINDS = (
    "one character for another", "case only", "lost", "lost beside its like", "added", "added beside its like",
    "two read as one", "one read as two",
)  # fmt: skip


class Slip(NamedTuple):
    """One error of a reading: which of `KINDS`, what stands there, and what was read of it. Where a character was lost
    or added beside its like, both of that pair stand there, or were read."""

    kind: str
    truth: str
    read: str


def slips(pairs: Sequence[Pair]) -> list[Slip]:
    """The errors of readings. Two edits that make one error (two read as one, one read as two) are one."""
    found: list[Slip] = []
    for truth, read in pairs:
        edits = list(Levenshtein.editops(truth, read))
        taken: set[int] = set()
        for i, edit in enumerate(edits):
            beside = next((j for j in (i - 1, i + 1) if _one_error(edit, edits, j) and j not in taken), None)
            if edit.tag == "replace" and beside is not None:
                taken |= {i, beside}
                other, own, seen = edits[beside], truth[edit.src_pos], read[edit.dest_pos]
                if other.tag == "delete":
                    at = min(edit.src_pos, other.src_pos)
                    found.append(Slip("two read as one", truth[at : at + 2], seen))
                else:
                    at = min(edit.dest_pos, other.dest_pos)
                    found.append(Slip("one read as two", own, read[at : at + 2]))
        for i, edit in enumerate(edits):
            if i in taken:
                continue
            if edit.tag == "replace":
                own, seen = truth[edit.src_pos], read[edit.dest_pos]
                same = own.casefold() == seen.casefold()
                found.append(Slip("case only" if same else "one character for another", own, seen))
            else:
                text, at = (truth, edit.src_pos) if edit.tag == "delete" else (read, edit.dest_pos)
                like = text[at] in text[max(at - 1, 0) : at] + text[at + 1 : at + 2]
                more, fewer = text[at] * (1 + like), text[at] * like
                kind, sides = ("lost", (more, fewer)) if edit.tag == "delete" else ("added", (fewer, more))
                found.append(Slip(kind + " beside its like" * like, *sides))
    return found


def error_kinds(pairs: Sequence[Pair]) -> Counter[str]:
    """How often readings went wrong in each of `KINDS`, the most frequent first."""
    return Counter(dict(Counter(slip.kind for slip in slips(pairs)).most_common()))


def _one_error(edit: Editop, edits: Sequence[Editop], j: int) -> bool:
    """Whether edit j adds or takes a character right beside the one that another replaces."""
    if not 0 <= j < len(edits) or edits[j].tag == "replace":
        return False
    at = (edit.src_pos, edits[j].src_pos) if edits[j].tag == "delete" else (edit.dest_pos, edits[j].dest_pos)
    return abs(at[0] - at[1]) == 1


def marked(truth: str, reading: str) -> tuple[str, tuple[bool, ...]]:
    """A caption that shows what was read, and which of its characters are wrong.

    A character of `truth` that the reading left out appears as a wrong `LOST`. The marks are the fewest that explain
    the difference (Levenshtein's edits).
    """
    caption, wrong, at = "", [], 0
    for edit in Levenshtein.editops(truth, reading):
        caption += reading[at : edit.dest_pos]
        wrong += [False] * (edit.dest_pos - at)
        caption += LOST if edit.tag == "delete" else reading[edit.dest_pos]
        wrong.append(True)
        at = edit.dest_pos + (edit.tag != "delete")
    caption += reading[at:]
    wrong += [False] * (len(reading) - at)
    return caption, tuple(wrong)


class CharacterScore(NamedTuple):
    """How well one character is read. Precision, recall, F1: 0 to 1, 0 where undefined. Support: times in the truth."""

    precision: float
    recall: float
    f1: float
    support: int


def per_character(pairs: Sequence[Pair]) -> dict[str, CharacterScore]:
    """The score of each character that stands in a truth or in a reading, sorted."""
    written = Counter(c for truth, _ in pairs for c in truth)
    read = Counter(c for _, text in pairs for c in text)
    right = written.copy()
    for (truth, _), count in confusions(pairs).items():
        right[truth] -= count
    return {c: _score(right[c], read[c], written[c]) for c in sorted(written.keys() | read.keys())}


def per_position(pairs: Sequence[Pair]) -> list[CharacterScore]:
    """The score of the characters in each position of the truths, from the first on. What was added before a character
    counts as read in its position, at the end of a text in the last one."""
    longest = max((len(truth) for truth, _ in pairs), default=0)
    right, read, written = ([0] * longest for _ in range(3))
    for truth, text in pairs:
        here = [1] * len(truth)
        for k in range(len(truth)):
            written[k] += 1
            read[k] += 1
        for edit in Levenshtein.editops(truth, text):
            if edit.tag == "insert":
                if truth:
                    read[min(edit.src_pos, len(truth) - 1)] += 1
                continue
            here[edit.src_pos] = 0
            read[edit.src_pos] -= edit.tag == "delete"
        for k, value in enumerate(here):
            right[k] += value
    return [_score(*counts) for counts in zip(right, read, written, strict=True)]


def all_characters(pairs: Sequence[Pair]) -> CharacterScore:
    """The score of all characters together, each occurrence counted once."""
    edits = confusions(pairs)
    written, read = sum(len(truth) for truth, _ in pairs), sum(len(text) for _, text in pairs)
    return _score(written - sum(n for (truth, _), n in edits.items() if truth), read, written)


def binary_accuracy(pairs: Sequence[Pair], classes: int) -> float:
    """The share of right answers to "does this class stand in this position?", over the positions of the longest truth
    and `classes`, one of which is nothing. What the field's older notes call accuracy: a reader that says nothing gets
    1 - 2 / classes of texts of one length.

    Raises:
        UserError: no pairs.
    """
    longest = max(len(truth) for truth, _ in pairs) if _some(pairs) else 0
    wrong = sum(truth[k : k + 1] != text[k : k + 1] for truth, text in pairs for k in range(longest))
    return 1 - 2 * wrong / max(len(pairs) * longest * classes, 1)


def _score(right: int, read: int, written: int) -> CharacterScore:
    return CharacterScore(
        precision=right / read if read else 0.0,
        recall=right / written if written else 0.0,
        f1=2 * right / (read + written) if read + written else 0.0,
        support=written,
    )


def mcnemar(right_a: Sequence[bool], right_b: Sequence[bool], mid: bool = False) -> float:
    """Exact two-sided p that two models, read on the same pictures in the same order, are equally often right; or the
    `mid` p, which is less cautious where they differ in few pictures: .031 where the exact one is .063, of five.

    Source: McNemar, "Note on the sampling error of the difference between correlated proportions", Psychometrika 1947;
        the exact binomial form. Mid-p: Fagerland, Lydersen and Laake, "The McNemar test for binary matched-pairs data",
        BMC Medical Research Methodology 2013.
    """
    pairs = list(zip(right_a, right_b, strict=True))
    only_a = sum(bool(a) and not b for a, b in pairs)
    only_b = sum(bool(b) and not a for a, b in pairs)
    n = only_a + only_b
    if only_a == only_b:
        return 1.0
    tail = sum(math.comb(n, k) for k in range(min(only_a, only_b) + 1))
    return (2 * tail - (math.comb(n, only_a) if mid else 0)) / (1 << n)


@dataclass(frozen=True, slots=True)
class Difference:
    """By how much the share read right differs, its 95 % interval, and a two-sided p."""

    mean: float
    low: float
    high: float
    p: float


def paired_difference(
    right_a: NDArray[np.bool_], right_b: NDArray[np.bool_], draws: int = 10_000, seed: int = 0
) -> Difference:
    """How much more often b is right than a, two models of S seeds each, read on the same pictures, (S, N) each.

    The interval is of a bootstrap that draws pictures and seeds both; p of a randomization test that swaps the two
    models picture by picture, their seeds together: it is of these very readers, as McNemar's (which it is with one
    seed each), and not of other seeds.

    Source: Fisher, "The Design of Experiments", 1935, section 21; Owen and Eckles, "Bootstrapping data arrays of
        arbitrary order", 2012.
    """
    rng = np.random.default_rng(seed)
    n, each = right_a.shape[1], right_b.mean(0) - right_a.mean(0)
    mean = float(each.mean())
    swaps = np.concatenate([(rng.integers(0, 2, (100, n)) * 2 - 1) @ each for _ in range(draws // 100)])
    p = (1 + int((np.abs(swaps) >= abs(each.sum()) - 1e-9).sum())) / (1 + len(swaps))
    drawn = []
    for _ in range(draws // 10):
        a, b = (right[rng.integers(0, len(right), len(right))].mean(0) for right in (right_a, right_b))
        drawn.append(float((b - a)[rng.integers(0, n, n)].mean()))
    low, high = np.quantile(drawn, (0.025, 0.975)).tolist()
    return Difference(mean, low, high, p)


@dataclass(frozen=True, slots=True)
class Scores:
    """What `recognizer evaluate` prints. Shares are 0 to 1; intervals are Wilson's at 95 %."""

    n: int
    exact: float
    exact_interval: tuple[float, float]
    exact_ignoring_case: float
    exact_ignoring_case_interval: tuple[float, float]
    character_error_rate: float
    worst_confusions: tuple[tuple[Confusion, int], ...]

    @classmethod
    def of(cls, pairs: Sequence[Pair]) -> Scores:
        """Score (truth, read) pairs.

        Raises:
            UserError: no pairs, or every truth is empty.
        """
        return cls(
            n=_some(pairs),
            exact=exact_match(pairs),
            exact_interval=wilson(_equal(pairs, fold_case=False), len(pairs)),
            exact_ignoring_case=exact_match(pairs, fold_case=True),
            exact_ignoring_case_interval=wilson(_equal(pairs, fold_case=True), len(pairs)),
            character_error_rate=character_error_rate(pairs),
            worst_confusions=tuple(worst_confusions(pairs)),
        )

    def to_dict(self) -> dict[str, Any]:
        """The same as plain JSON values; a confusion as {"truth", "read", "count"}."""
        return asdict(self) | {
            "exact_interval": list(self.exact_interval),
            "exact_ignoring_case_interval": list(self.exact_ignoring_case_interval),
            "worst_confusions": [{"truth": t, "read": r, "count": count} for (t, r), count in self.worst_confusions],
        }


def calibration_error(confidences: Sequence[float], right: Sequence[bool], bins: int = 10) -> float:
    """Expected calibration error over bins of equal mass: mean distance of confidence from share right, 0 to 1.

    Equal confidences share a bin, so that the order of the readings makes no difference.

    Raises:
        UserError: no readings.

    Source: Naeini et al., "Obtaining Well Calibrated Probabilities Using Bayesian Binning", AAAI 2015, with bins of
        equal mass.
    """
    n = _some(confidences)
    scores, hits = np.asarray(confidences, dtype=np.float64), np.asarray(right, dtype=np.float64)
    bin_of = np.searchsorted(np.sort(scores), scores) * bins // n
    return float(np.abs(np.bincount(bin_of, scores - hits)).sum() / n)


def auroc(confidences: Sequence[float], right: Sequence[bool]) -> float:
    """Chance that a right reading has a higher confidence than a wrong one, ties half; nan where all are alike.

    Source: Hanley and McNeil, "The meaning and use of the area under a ROC curve", Radiology 1982 (Mann-Whitney's U).
    """
    scores, hits = np.asarray(confidences, dtype=np.float64), np.asarray(right, dtype=bool)
    wrong = np.sort(scores[~hits])
    if not hits.any() or not len(wrong):
        return math.nan
    below = np.searchsorted(wrong, scores[hits], side="left") + np.searchsorted(wrong, scores[hits], side="right")
    return float(below.mean() / (2 * len(wrong)))


def _equal(pairs: Sequence[Pair], fold_case: bool) -> int:
    if fold_case:
        return sum(truth.casefold() == read.casefold() for truth, read in pairs)
    return sum(truth == read for truth, read in pairs)


def _some(readings: Sequence[object]) -> int:
    if not len(readings):
        raise UserError("there are no readings to score: give at least one labelled picture")
    return len(readings)
