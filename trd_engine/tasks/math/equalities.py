r"""The arithmetic that a text claims, ``12 + 3 × 4 = 24``, computed again, exactly.

Only what cannot be misread is checked: both sides are plain numbers with + − × ÷ and brackets, and nothing else
touches them. ``2x + 3 = 7`` and ``x = 5`` say something else, and are passed over. What does not hold is wrong only
where the words around it leave no other reading (`equality_context`): ``3 + 5 = 1 (mod 7)`` is right.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from fractions import Fraction
from itertools import pairwise

from trd_engine.tasks.math.equality_context import counts_otherwise, says_something_else
from trd_engine.tasks.steps import StepCheck

_TOKEN = re.compile(
    r"(?P<number>\d{1,3}(?:,\d{3})+(?:\.\d+)?(?![\d.])|\d+(?:\.\d+)?|\.\d+)"
    r"|(?P<operator>[-+*/×÷·−()]|\\times(?![a-zA-Z])|\\cdot(?![a-zA-Z])|\\div(?![a-zA-Z]))"
    r"|(?P<equals>=)"
    r"|(?P<space>[ \t]+|\\[()\[\]]|\\,|\$)"
    r"|(?P<mark>[.,;:!?\n])"
    r"|(?P<other>.)",
    re.DOTALL,
)
_WRITTEN = {"×": "*", "·": "*", "\\times": "*", "\\cdot": "*", "÷": "/", "\\div": "/", "−": "-"}
MAX_SIDE_TOKENS = 60
"""Longer sides are passed over: nobody writes them, and a model's runaway text would cost time."""
MAX_DIGITS = 30


@dataclass(frozen=True)
class _Piece:
    kind: str
    text: str
    start: int
    end: int


@dataclass(frozen=True)
class _Side:
    pieces: tuple[_Piece, ...]
    is_clean: bool
    """Nothing that is no arithmetic touches it."""

    @property
    def start(self) -> int:
        return self.pieces[0].start

    @property
    def end(self) -> int:
        return self.pieces[-1].end

    @property
    def has_operator(self) -> bool:
        return any(piece.text in "+-*/" for piece in self.pieces[1:])

    @property
    def starts_with_operator(self) -> bool:
        """Perhaps the end of ``x - 3``, or a bullet before the text."""
        return self.pieces[0].text in "+-*/"


def check_equalities(text: str) -> StepCheck | None:
    """Each checkable equality is a step; None where there is none, so that nothing can be told."""
    starts: list[int] = []
    first_wrong = None
    counts_plainly: bool | None = None
    for left, right in _equalities(text):
        values = _values(left, right)
        if values is None:
            continue
        if not _are_equal((left, right), values):
            counts_plainly = not counts_otherwise(text) if counts_plainly is None else counts_plainly
            if not counts_plainly or _runs_on(values[0], right):
                continue
            if says_something_else(text, left.start, right.end, _ratio(*values)):
                continue
            first_wrong = len(starts) if first_wrong is None else first_wrong
        starts.append(left.start)
    return StepCheck(tuple(starts), first_wrong) if starts else None


def _equalities(text: str) -> Iterator[tuple[_Side, _Side]]:
    """Neighbouring sides of every chain ``a = b = c``."""
    chain: list[_Side] = []
    pieces: list[_Piece] = []
    touched = False
    for piece in _pieces(text):
        if piece.kind in ("number", "operator"):
            pieces.append(piece)
        elif piece.kind == "equals":
            chain.append(_Side(tuple(pieces), not touched))
            pieces, touched = [], False
        else:
            chain.append(_Side(tuple(pieces), not (touched or _is_attached(piece, pieces))))
            yield from _neighbours(chain)
            chain, pieces = [], []
            touched = piece.kind == "other" and text[piece.end : piece.end + 1].strip() != ""
    chain.append(_Side(tuple(pieces), not touched))
    yield from _neighbours(chain)


def _is_attached(piece: _Piece, before: list[_Piece]) -> bool:
    """True where what ends a side changes what the side says: ``= 3x``."""
    return piece.kind == "other" and bool(before) and before[-1].end == piece.start


def _neighbours(chain: list[_Side]) -> Iterator[tuple[_Side, _Side]]:
    if chain[0].pieces and not chain[0].starts_with_operator:
        yield from pairwise(chain)
    else:
        yield from pairwise(chain[1:])


def _pieces(text: str) -> Iterator[_Piece]:
    for match in _TOKEN.finditer(text):
        kind = str(match.lastgroup)
        if kind != "space":
            yield _Piece(kind, _WRITTEN.get(match.group(), match.group()), match.start(), match.end())


def _values(left: _Side, right: _Side) -> tuple[Fraction, Fraction] | None:
    """The sides' values; None where it is no equality of plain arithmetic."""
    sides = (left, right)
    if not all(s.is_clean and 0 < len(s.pieces) <= MAX_SIDE_TOKENS for s in sides):
        return None
    if not any(s.has_operator for s in sides):
        return None
    first, second = (_Reader(s.pieces).value() for s in sides)
    return None if first is None or second is None else (first, second)


def _are_equal(sides: tuple[_Side, _Side], values: tuple[Fraction, Fraction]) -> bool:
    return values[0] == values[1] or abs(values[0] - values[1]) <= _rounding(sides, values)


def _runs_on(value: Fraction, right: _Side) -> bool:
    """Whether the right side computes on from the left one's value: ``5 + 3 = 8 × 2 = 16`` is careless, not wrong."""
    first = right.pieces[0]
    return first.kind == "number" and right.has_operator and Fraction(first.text.replace(",", "")) == value


def _ratio(first: Fraction, second: Fraction) -> Fraction | None:
    """The greater to the smaller; None where one is zero or they differ in sign."""
    return max(first / second, second / first) if first * second > 0 else None


def _rounding(sides: tuple[_Side, _Side], values: tuple[Fraction, Fraction]) -> Fraction:
    """One unit in the last decimal written, where a side's exact value does not fit in so many decimals."""
    texts = [piece.text for side in sides for piece in side.pieces]
    unit = 10 ** max(len(text.partition(".")[2]) for text in texts)
    return Fraction(1, unit) if any((value * unit).denominator > 1 for value in values) else Fraction(0)


class _Reader:
    """Reads one side by the rules of precedence; a side that breaks them has no value."""

    def __init__(self, pieces: tuple[_Piece, ...]) -> None:
        self._texts = [piece.text for piece in pieces]
        self._place = 0

    def value(self) -> Fraction | None:
        """The exact value; None where the side is no expression, or divides by zero."""
        try:
            value = self._sum()
        except (ValueError, ZeroDivisionError):
            return None
        return value if self._place == len(self._texts) else None

    def _sum(self) -> Fraction:
        value = self._product()
        while (sign := self._take("+", "-")) is not None:
            value = value + self._product() if sign == "+" else value - self._product()
        return value

    def _product(self) -> Fraction:
        value = self._factor()
        while (sign := self._take("*", "/")) is not None:
            value = value * self._factor() if sign == "*" else value / self._factor()
        return value

    def _factor(self) -> Fraction:
        if self._take("-") is not None:
            return -self._factor()
        if self._take("(") is not None:
            value = self._sum()
            if self._take(")") is None:
                raise ValueError("a bracket is not closed")
            return value
        text = self._texts[self._place] if self._place < len(self._texts) else ""
        self._place += 1
        digits = text.replace(",", "")
        if len(digits) > MAX_DIGITS:
            raise ValueError("too many digits")
        return Fraction(digits)

    def _take(self, *wanted: str) -> str | None:
        text = self._texts[self._place] if self._place < len(self._texts) else ""
        if text not in wanted:
            return None
        self._place += 1
        return text
