"""From a CTC head's log-probabilities to text: greedy, exact probability, beam, and decoding under a known form.

Every function takes natural log-probabilities, float32 or float64, of shape (T, C) for one picture or (N, T, C) for
several: T frames, C classes, class 0 the blank, class i the i-th character of the charset. Text is a tuple of class
ids without blanks.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from recognizer.charset import BLANK, Charset
from recognizer.errors import UserError

LogProbs = npt.NDArray[np.floating[Any]]
Indices = npt.NDArray[np.intp]

KINDS: dict[str, Callable[[str], bool]] = {
    "L": str.isalpha,
    "U": str.isupper,
    "D": str.isdecimal,
    "A": lambda c: c.isalpha() or c.isdecimal(),
    ".": lambda c: True,
}
UNDERSTOOD = (
    "L letter, U upper-case letter, D digit, A letter or digit, . any character, [abc] or [a-z] a set, "
    r"\x the character x itself, and ?, {m} or {m,n} after any of these"
)
ITEM = re.compile(
    r"(?P<what>[LUDA.]|\\.|\[(?!\^)(?:\\.|[^]\\])+\])(?:(?P<maybe>\?)|\{(?P<low>[0-9]{1,3})(?:,(?P<high>[0-9]{1,3}))?\})?",
    re.DOTALL,
)
MEMBER = re.compile(r"\\?(?P<first>.)(?:-\\?(?P<last>.))?", re.DOTALL)
MOST_STATES = 100_000


class Path(NamedTuple):
    """A best path, collapsed: class ids, and for each the highest probability (0 to 1) of its class in its run."""

    ids: tuple[int, ...]
    confidences: tuple[float, ...]


def greedy(log_probs: LogProbs) -> list[Path]:
    """Best path decoding: the most probable class of each frame, repeats merged, blanks dropped (Graves et al. 2006).

    Args:
        log_probs: (N, T, C), T at least 1.
    """
    pictures, frames, _ = log_probs.shape
    best = log_probs.argmax(axis=2)
    starts = np.ones((pictures, frames), dtype=bool)
    np.not_equal(best[:, 1:], best[:, :-1], out=starts[:, 1:])
    runs = np.flatnonzero(starts)
    classes = best.ravel()[runs]
    written = classes != BLANK
    tops = np.exp(np.maximum.reduceat(log_probs.max(axis=2).ravel(), runs)[written]).tolist()
    ids = classes[written].tolist()
    ends = np.searchsorted(runs[written], np.arange(frames, (pictures + 1) * frames, frames)).tolist()
    return [Path(tuple(ids[a:b]), tuple(tops[a:b])) for a, b in zip([0, *ends], ends, strict=False)]


def sequence_probability(log_probs: LogProbs, ids: Sequence[int]) -> float:
    """Log P(text | picture), summed over all alignments, in nats; -inf where the text does not fit the frames.

    Args:
        log_probs: (T, C), T at least 1.
        ids: the text, without blanks; may be empty.
    """
    return float(sequence_probabilities(log_probs[None], [ids])[0])


def sequence_probabilities(log_probs: LogProbs, texts: Sequence[Sequence[int]]) -> npt.NDArray[np.float64]:
    """`sequence_probability` of N pictures at once, each with its own text: the forward variable alpha of CTC.

    Stays in the log domain: with rescaled probabilities a sure picture and another text underflow to -inf.

    Args:
        log_probs: (N, T, C), T at least 1.
        texts: N texts of any lengths, without blanks.

    Returns:
        (N,) log-probabilities in nats.

    Source: Graves et al., "Connectionist Temporal Classification", ICML 2006, section 4.1.
    """
    pictures, frames, _ = log_probs.shape
    lengths = np.array([len(text) for text in texts], dtype=np.intp)
    labels = np.zeros((pictures, 2 * int(lengths.max(initial=0)) + 1), dtype=np.intp)
    for row, text in zip(labels, texts, strict=True):
        row[1 : 2 * len(text) : 2] = text
    jump = np.full(labels.shape, -np.inf)
    jump[:, 3::2][labels[:, 3::2] != labels[:, 1:-2:2]] = 0.0
    emit = log_probs[np.arange(pictures)[:, None], np.arange(frames)[:, None, None], labels].astype(np.float64)

    # Two columns of -inf on the left stand for the states before the first, so that every shift is a plain slice.
    alpha = np.full((pictures, labels.shape[1] + 2), -np.inf)
    two_back, one_back, here = alpha[:, :-2], alpha[:, 1:-1], alpha[:, 2:]
    here[:, :2] = emit[0, :, :2]
    total = np.empty(labels.shape)
    for frame in emit[1:]:
        np.add(two_back, jump, out=total)
        np.logaddexp(total, one_back, out=total)
        np.logaddexp(total, here, out=total)
        np.add(total, frame, out=here)
    rows = np.arange(pictures)
    final: npt.NDArray[np.float64] = np.logaddexp(alpha[rows, 2 * lengths + 2], alpha[rows, 2 * lengths + 1])
    return final


def alignment(log_probs: LogProbs, ids: Sequence[int]) -> list[tuple[int, int]] | None:
    """The frames of each character in the most probable alignment of a text (first, and one past the last), by Viterbi
    over CTC's states; None where it has none: more characters than frames.

    Args:
        log_probs: (T, classes).
    """
    states = [0]
    for i in ids:
        states += [i, 0]
    score = np.full(len(states), -np.inf)
    score[: min(2, len(states))] = log_probs[0, states[:2]]
    can_jump = np.array([i > 1 and states[i] != 0 and states[i] != states[i - 2] for i in range(len(states))])
    came = np.zeros((len(log_probs), len(states)), np.intp)
    for t in range(1, len(log_probs)):
        step = np.concatenate([[-np.inf], score[:-1]])
        jump = np.where(can_jump, np.concatenate([[-np.inf, -np.inf], score[:-2]])[: len(states)], -np.inf)
        choices = np.stack([score, step, jump])
        came[t] = choices.argmax(0)
        score = choices.max(0) + log_probs[t, states]
    state = len(states) - 1
    if len(states) > 1 and score[-2] > score[-1]:
        state -= 1
    if score[state] == -np.inf:
        return None
    first, end = [0] * len(ids), [0] * len(ids)
    for t in range(len(log_probs) - 1, -1, -1):
        if state % 2:
            first[state // 2] = t
            end[state // 2] = end[state // 2] or t + 1
        state -= int(came[t, state])
    return list(zip(first, end, strict=True))


class Lattice(NamedTuple):
    """An automaton of Q states and E edges as `best_path` walks it: where the last frame may leave one standing.

    The first Q nodes are the states, on a blank; the A others are the arrivals, on a class: the distinct pairs of a
    state and a class by which it is entered, sorted.
    """

    node_state: Indices  # (Q + A,)
    node_class: Indices  # (Q + A,)
    first_arrival: Indices  # (Q + 1,) the arrivals at state q are first_arrival[q] to first_arrival[q + 1]
    source: Indices  # (E,) the state that each edge leaves; the edges are sorted by the arrival that they lead to
    first_edge: Indices  # (A + 1,) the edges to arrival a are first_edge[a] to first_edge[a + 1]
    echo: Indices  # (R,) the edges by whose class their source is entered as well
    echo_arrival: Indices  # (R,) by that arrival

    def before(self, node: int) -> Indices:
        """The nodes from which the next frame may come to stand on `node`, itself among them."""
        states = len(self.first_arrival) - 1

        def at(state: int) -> Indices:
            return np.append(state, np.arange(*self.first_arrival[state : state + 2]) + states)

        if node < states:
            return at(node)
        first, last = self.first_edge[node - states : node - states + 2]
        earlier = np.concatenate([at(state) for state in self.source[first:last].tolist()])
        return np.append(earlier[self.node_class[earlier] != self.node_class[node]], node)


@dataclass(frozen=True, eq=False)
class Constraint:
    """A deterministic finite automaton over class ids: the texts that a reading may be. State 0 is the start.

    Attributes:
        transitions: (Q, C) the next state, -1 where there is none; the blank's column is -1.
        accepting: (Q,) whether a text may end here. Every state leads to one where it may.
        description: what the constraint asks, for messages.
    """

    transitions: npt.NDArray[np.int32]
    accepting: npt.NDArray[np.bool_]
    description: str

    @classmethod
    def characters(cls, characters: str, charset: Charset) -> Constraint:
        """Texts of any length, the empty one too, of these characters only.

        Raises:
            UserError: no characters, or one that the charset lacks.
        """
        if not characters:
            raise UserError("the allowed characters are empty: name at least one")
        transitions = _no_transitions(1, charset)
        transitions[0, charset.encode(characters)] = 0
        return cls(transitions, np.ones(1, dtype=bool), f"characters {characters!r}")

    @classmethod
    def length(cls, length: str, charset: Charset) -> Constraint:
        """Texts of "5", or of "4-6", characters.

        Raises:
            UserError: `length` is neither form, is 0, is over 999, or runs backwards.
        """
        found = re.fullmatch(r"([0-9]{1,3})(?:-([0-9]{1,3}))?", length)
        low, high = (int(found[1]), int(found[2] or found[1])) if found else (0, 0)
        if not 1 <= low <= high:
            raise UserError(f"length {length!r} is not understood: write one number (5) or a range (4-6), 1 to 999")
        transitions = _no_transitions(high + 1, charset)
        transitions[:-1, 1:] = np.arange(1, high + 1)[:, None]
        return cls(transitions, np.arange(high + 1) >= low, f"length {length}")

    @classmethod
    def pattern(cls, pattern: str, charset: Charset) -> Constraint:
        r"""Texts of a form, such as `LLLDDD` or `U{2}\-D{1,4}`.

        | written           | stands for                                                         |
        |-------------------|--------------------------------------------------------------------|
        | `L` `U` `D` `A`   | a letter, an upper-case letter, a digit, a letter or digit         |
        | `.`               | any character of the charset                                       |
        | `[abc]` `[a-z]`   | one of a set; `\]`, `\\` and `\-` inside it stand for themselves   |
        | `\x`              | the character x itself, so `\L` is the letter L                    |
        | `?` `{m}` `{m,n}` | after any of these: at most once, m times, m to n times (to 999)   |

        Raises:
            UserError: anything else in the pattern, a part that must be there but that no character of the charset
                fits, or optional parts that overlap in more than 100,000 ways.
        """
        description = f"pattern '{pattern}'"  # not !r, which would double the backslashes
        places: list[tuple[frozenset[int], bool]] = []
        at = 0
        while at < len(pattern):
            item = ITEM.match(pattern, at)
            if item is None:
                x = pattern[at]
                raise UserError(
                    f"{description} is not understood from '{pattern[at:]}' on: "
                    f"for the character {x} itself write \\{x}; understood are {UNDERSTOOD}"
                )
            fits = _membership(item["what"], description)
            members = frozenset(i for i, c in enumerate(charset.characters, start=1) if fits(c))
            low = int(item["low"] or not item["maybe"])
            high = int(item["high"] or item["low"] or 1)
            if low > high:
                raise UserError(f"{description}: '{item[0]}' asks for at least {low} and at most {high}")
            if low and not members:
                raise UserError(f"{description} admits no text: no character of the charset fits {item['what']}")
            places += [(members, place >= low) for place in range(high)]
            at = item.end()
        if not places:
            raise UserError(f"{description} is empty; understood are {UNDERSTOOD}")
        return cls._from_places(places, charset, description)

    @classmethod
    def _from_places(cls, places: list[tuple[frozenset[int], bool]], charset: Charset, description: str) -> Constraint:
        """Subset construction over places (which classes, may it be left out).

        A state is the set of places that may come next, as the bits of an integer; the bit after the last is the end.
        """
        optional = sum(1 << i for i, (_, may_miss) in enumerate(places) if may_miss)
        classes_at: dict[int, list[int]] = {}
        for c in range(1, charset.classes):
            classes_at.setdefault(sum(1 << i for i, (members, _) in enumerate(places) if c in members), []).append(c)

        def past_optional(state: int) -> int:
            while (wider := state | (state & optional) << 1) != state:
                state = wider
            return state

        start = past_optional(1)
        numbers = {start: 0}
        edges: list[tuple[int, list[int], int]] = []
        queue = [start]
        for state in queue:
            for these, classes in classes_at.items():
                if not state & these:
                    continue
                target = past_optional((state & these) << 1)
                if target not in numbers:
                    if len(numbers) == MOST_STATES:
                        raise UserError(f"{description} is too ambiguous: give its optional parts fewer repeats")
                    numbers[target] = len(numbers)
                    queue.append(target)
                edges.append((numbers[state], classes, numbers[target]))
        transitions = _no_transitions(len(queue), charset)
        for source, classes, number in edges:
            transitions[source, classes] = number
        return cls(transitions, np.array([state >> len(places) == 1 for state in queue]), description)

    @classmethod
    def lexicon(cls, words: Sequence[str], charset: Charset) -> Constraint:
        """These words only.

        Raises:
            UserError: no words, or a word with a character that the charset lacks.
        """
        if not words:
            raise UserError("the lexicon is empty: give at least one word")
        children: list[dict[int, int]] = [{}]
        ends = set()
        for word in words:
            state = 0
            for c in charset.encode(word):
                if c not in children[state]:
                    children[state][c] = len(children)
                    children.append({})
                state = children[state][c]
            ends.add(state)
        transitions = _no_transitions(len(children), charset)
        for state, targets in enumerate(children):
            transitions[state, list(targets)] = list(targets.values())
        return cls(transitions, np.isin(np.arange(len(children)), list(ends)), f"a lexicon of {len(words)} words")

    def __and__(self, other: Constraint) -> Constraint:
        """The texts that both admit.

        Raises:
            UserError: there are none.
        """
        description = f"{self.description} and {other.description}"
        width = len(other.accepting)

        def following(pairs: Indices) -> Indices:
            mine, theirs = self.transitions[pairs // width], other.transitions[pairs % width]
            return np.where((mine >= 0) & (theirs >= 0), mine.astype(np.intp) * width + theirs, -1)

        known = fresh = np.zeros(1, dtype=np.intp)
        while fresh.size:
            targets = following(fresh)
            fresh = np.setdiff1d(targets[targets >= 0], known)
            known = np.union1d(known, fresh)
        accepting = self.accepting[known // width] & other.accepting[known % width]
        targets = following(known)
        transitions = np.where(targets >= 0, np.searchsorted(known, targets), -1)

        alive, before = accepting, np.zeros_like(accepting)
        while (alive != before).any():
            before = alive
            alive = alive | ((transitions >= 0) & alive[transitions]).any(axis=1)
        if not alive[0]:
            raise UserError(f"no text fits {description} at once: loosen one of them")
        number = np.append(np.where(alive, alive.cumsum() - 1, -1), -1).astype(np.int32)
        return Constraint(number[transitions[alive]], accepting[alive], description)

    def accepts(self, ids: Sequence[int]) -> bool:
        """Whether the text is one of those admitted."""
        state = 0
        for c in ids:
            state = int(self.transitions[state, c])
            if state < 0:
                return False
        return bool(self.accepting[state])

    def must_fit(self, frames: int) -> None:
        """Refuse a constraint no text of which can be written on so many frames.

        Raises:
            UserError: its shortest text, with a blank between equal neighbours, is longer than `frames`.
        """
        if best_path(np.zeros((frames, self.transitions.shape[1])), self) is None:
            raise UserError(
                f"no text of {self.description} fits the {frames} frames of a picture: ask for shorter text"
            )

    @cached_property
    def lattice(self) -> Lattice:
        """The edges in the order in which `best_path` needs them."""
        states, classes = self.transitions.shape
        source, label = np.nonzero(self.transitions >= 0)
        entered = self.transitions[source, label].astype(np.intp) * classes + label
        order = np.argsort(entered, kind="stable")
        source, label = source[order], label[order]
        arrivals, first_edge = np.unique(entered[order], return_index=True)
        arrival_state, arrival_class = np.divmod(arrivals, classes)
        same = source * classes + label
        echo = np.flatnonzero(np.isin(same, arrivals))
        return Lattice(
            node_state=np.concatenate([np.arange(states), arrival_state]),
            node_class=np.concatenate([np.full(states, BLANK), arrival_class]),
            first_arrival=np.searchsorted(arrival_state, np.arange(states + 1)),
            source=source,
            first_edge=np.append(first_edge, len(source)),
            echo=echo,
            echo_arrival=np.searchsorted(arrivals, same[echo]),
        )


def _no_transitions(states: int, charset: Charset) -> npt.NDArray[np.int32]:
    return np.full((states, charset.classes), -1, dtype=np.int32)


def _membership(what: str, description: str) -> Callable[[str], bool]:
    """Whether a character fits one part of a pattern, without its count."""
    if what in KINDS:
        return KINDS[what]
    if what.startswith("\\"):
        return what[1].__eq__
    spans = [(member["first"], member["last"] or member["first"]) for member in MEMBER.finditer(what[1:-1])]
    for first, last in spans:
        if first > last:
            raise UserError(f"{description}: the range {first}-{last} runs backwards")
    return lambda c: any(first <= c <= last for first, last in spans)


def best_path(log_probs: LogProbs, constraint: Constraint) -> tuple[int, ...] | None:
    """The text of the most probable alignment whose text the constraint admits: Viterbi over alignment x automaton.

    Args:
        log_probs: (T, C).

    Returns:
        Class ids, or None where no admitted text fits T frames (or where all that do have probability zero).
    """
    free = greedy(log_probs[None])[0].ids
    if constraint.accepts(free):
        return free
    lattice, states = constraint.lattice, len(constraint.accepting)
    arrival_state, echo_source = lattice.node_state[states:], lattice.source[lattice.echo]
    # reduceat cannot take an empty segment, and the start may have no arrival; every other state has one.
    entered = slice(int(lattice.first_arrival[1] == 0), None)
    arrivals, edges = lattice.first_arrival[:-1][entered], lattice.first_edge[:-1]
    numbers = np.arange(len(arrival_state))
    top, second = np.full((2, states), -np.inf)
    winner = np.full(states, -1)
    score = np.full((len(log_probs) + 1, len(lattice.node_state)), -np.inf)
    score[0, 0] = 0.0
    for frame, before, after in zip(log_probs, score, score[1:], strict=False):
        on_blank, on_class = before[:states], before[states:]
        top[entered] = np.maximum.reduceat(on_class, arrivals)
        after[:states] = np.maximum(on_blank, top)
        lead = after[:states][lattice.source]
        # The same class again is a new character only after a blank or another class: leave out the class itself.
        winner[entered] = np.maximum.reduceat(np.where(on_class == top[arrival_state], numbers, -1), arrivals)
        others = on_class.copy()
        others[winner[entered]] = -np.inf
        second[entered] = np.maximum.reduceat(others, arrivals)
        other = np.where(winner[echo_source] == lattice.echo_arrival, second[echo_source], top[echo_source])
        lead[lattice.echo] = np.maximum(on_blank[echo_source], other)
        after[states:] = np.maximum(on_class, np.maximum.reduceat(lead, edges))
        after += frame[lattice.node_class]

    final = np.where(constraint.accepting[lattice.node_state], score[-1], -np.inf)
    node = int(final.argmax())
    if final[node] == -np.inf:
        return None
    ids = []
    for before in score[-2::-1]:
        earlier = lattice.before(node)
        previous = int(earlier[before[earlier].argmax()])
        if node >= states and previous != node:
            ids.append(int(lattice.node_class[node]))
        node = previous
    return tuple(reversed(ids))


def beam(
    log_probs: LogProbs, width: int = 25, n_best: int = 1, constraint: Constraint | None = None
) -> list[tuple[tuple[int, ...], float]]:
    """Prefix beam search, the constraint held at every step, no language model.

    The texts found are scored anew by `sequence_probability`, for a beam loses alignments that left it on the way.
    Under a constraint the text of `best_path` is always among them: the answer is empty only where that is None.

    Args:
        log_probs: (T, C), T at least 1.
        width: prefixes kept after each frame.
        n_best: at most so many texts are returned.

    Returns:
        Texts as class ids with their exact log-probabilities in nats, the most probable first.

    Source: Graves et al. 2006, section 3.2; Hannun et al., "First-Pass Large Vocabulary Continuous Speech Recognition
        using Bi-Directional Recurrent DNNs", 2014, algorithm 1.
    """
    frames, classes = log_probs.shape
    prefixes: list[tuple[int, ...]] = [()]
    on_blank, on_class = np.zeros(1), np.full(1, -np.inf)
    states = np.zeros(1, dtype=np.intp)
    for frame in log_probs.astype(np.float64):
        last = np.array([prefix[-1] if prefix else BLANK for prefix in prefixes])
        total = np.logaddexp(on_blank, on_class)
        grown = total[:, None] + frame
        grown[np.arange(len(prefixes)), last] = on_blank + frame[last]  # a repeat needs a blank in between
        if constraint is not None:
            grown[constraint.transitions[states] < 0] = -np.inf
        # The blank's column holds the prefix that stays as it is; one that grows into another of the beam joins it.
        grown[:, BLANK] = on_class + frame[last]
        row_of = {prefix: row for row, prefix in enumerate(prefixes)}
        met = [(row_of[prefix[:-1]], row) for prefix, row in row_of.items() if prefix and prefix[:-1] in row_of]
        shorter, longer = np.array(met, dtype=np.intp).reshape(-1, 2).T
        grown[longer, BLANK] = np.logaddexp(grown[longer, BLANK], grown[shorter, last[longer]])
        grown[shorter, last[longer]] = -np.inf

        stay_blank = total + frame[BLANK]
        score = grown.copy()
        score[:, BLANK] = np.logaddexp(grown[:, BLANK], stay_blank)
        keep = np.argpartition(-score, min(width, score.size) - 1, axis=None)[:width]
        keep = keep[score.ravel()[keep] > -np.inf]
        rows, added = np.divmod(keep, classes)
        on_blank = np.where(added == BLANK, stay_blank[rows], -np.inf)
        on_class = grown.ravel()[keep]
        if constraint is not None:
            states = np.where(added == BLANK, states[rows], constraint.transitions[states[rows], added])
        prefixes = [
            prefixes[row] if c == BLANK else (*prefixes[row], c)
            for row, c in zip(rows.tolist(), added.tolist(), strict=True)
        ]

    if constraint is not None:
        prefixes = [prefix for prefix, state in zip(prefixes, states, strict=True) if constraint.accepting[state]]
        seed = best_path(log_probs, constraint)
        if seed is not None and seed not in prefixes:
            prefixes.append(seed)
    exact = sequence_probabilities(np.broadcast_to(log_probs, (len(prefixes), frames, classes)), prefixes)
    return sorted(zip(prefixes, exact.tolist(), strict=True), key=lambda found: -found[1])[:n_best]
