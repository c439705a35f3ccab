"""Text to class ids and back. Class 0 is CTC's blank; class i is the i-th character of the charset."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from itertools import pairwise

from recognizer.errors import UserError

BLANK = 0
TOLD_FROM = 0.02  # share of further texts with a new character, to be told
DIGITS = "0123456789"
LOWER = "abcdefghijklmnopqrstuvwxyz"
UPPER = LOWER.upper()
MARKS = ".,-/:$€£%#+"  # of amounts, dates and serial numbers
NAMED = {
    "digits": DIGITS,
    "lower": LOWER,
    "upper": UPPER,
    "lower+digits": DIGITS + LOWER,
    "upper+digits": DIGITS + UPPER,
    "letters": UPPER + LOWER,
    "letters+digits": DIGITS + UPPER + LOWER,
    "digits+marks": DIGITS + MARKS,
    "letters+digits+marks": DIGITS + UPPER + LOWER + MARKS,
}


@dataclass(frozen=True)
class Charset:
    """An ordered set of characters, each one code point.

    Raises:
        UserError: empty, or a character stands in it twice.
    """

    characters: str
    _ids: dict[str, int] = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        if not self.characters:
            raise UserError("the charset is empty: give at least one character")
        ids = {c: i + 1 for i, c in enumerate(self.characters)}
        if len(ids) != len(self.characters):
            twice = sorted({c for c in self.characters if self.characters.count(c) > 1})
            raise UserError(f"the charset holds {twice[0]!r} more than once")
        object.__setattr__(self, "_ids", ids)

    @classmethod
    def named(cls, name: str) -> Charset:
        """A charset by its name in `NAMED`, else the characters of `name` themselves."""
        return cls(NAMED.get(name, name))

    @classmethod
    def of(cls, texts: Iterable[str]) -> Charset:
        """The characters of `texts`, sorted."""
        return cls("".join(sorted({c for text in texts for c in text})))

    def __len__(self) -> int:
        return len(self.characters)

    @property
    def classes(self) -> int:
        """Number of classes of a CTC head: the characters and the blank."""
        return len(self.characters) + 1

    def __contains__(self, character: object) -> bool:
        return character in self._ids

    def encode(self, text: str) -> list[int]:
        """Class ids of `text`.

        Raises:
            UserError: a character that the charset lacks.
        """
        try:
            return [self._ids[c] for c in text]
        except KeyError as missing:
            raise UserError(f"{text!r} holds {missing.args[0]!r}, which the charset lacks") from None

    def decode(self, ids: Sequence[int]) -> str:
        """Text of class ids without blanks (each 1 to len)."""
        return "".join(self.characters[i - 1] for i in ids)

    def missing(self, text: str) -> str:
        """The characters of `text` that are not in the charset, each once, in order."""
        return "".join(dict.fromkeys(c for c in text if c not in self._ids))


def newcomers(texts: Sequence[str]) -> float:
    """The share (0 to 1) of further texts like these that hold a character which none of these has.

    Of further characters as many are new as stand here once: Good 1953, "The Population Frequencies of Species and the
    Estimation of Population Parameters", Biometrika 40.
    """
    counts = Counter(c for text in texts for c in text)
    total = sum(counts.values())
    once = sum(n == 1 for n in counts.values())
    return 1 - (1 - once / total) ** (total / len(texts)) if total else 0.0


def tell_newcomers(texts: Sequence[str], charset: Charset | None = None) -> str:
    """A line on characters that labels are too few to show; nothing where they are enough. `charset` is what will be
    read, else what they show."""
    share = newcomers(texts)
    if share < TOLD_FROM:
        return ""
    own = Charset.of(texts)
    letters = "upper" if any(c in UPPER for c in own.characters) else "lower"
    so = "are not read" if charset in (None, own) else "are read only where the reader to start from reads it"
    return (
        f"the labels are few: about {share:.0%} of further pictures hold a character that none of them has, and {so}; "
        f"if you know which there are, say --charset, as labels write them ('{letters}+digits', or the characters)"
    )


def frames_needed(text: str) -> int:
    """The fewest frames on which CTC can write `text`: one a character, one blank between equal neighbours."""
    return len(text) + sum(a == b for a, b in pairwise(text))
