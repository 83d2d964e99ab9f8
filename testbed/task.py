"""The task: chained arithmetic modulo 100, worked line by line, and the errors a student makes.

Owns what is right, what a wrong attempt looks like, and which problems belong to which
split. Pure Python and deterministic: the same random generator state gives the same text.

A problem is a two-digit start and operations read from left to right, ``29+2*9#8+2*9``.
``a#d`` means ``2a + d`` and takes two lines, ``47#8`` -> ``94+8`` -> ``02``. A worked
solution rewrites what is left after every operation and ends in the boxed value.
"""

from __future__ import annotations

import hashlib
import random
from dataclasses import dataclass
from typing import Literal

NUM_OPERATIONS = 5
HASH_SHARE = 0.16
"""Chance that an operation is ``#``; 42 % of five-operation problems then have none."""

STYLES = ("\n", ";")
"""Separators that models write between lines."""
REFERENCE_STYLE = "|"
"""Separator of reference solutions, and of values alone; no student writes it: copying a reference would show."""
WAIT = "wait"
BOX_OPEN = "\\boxed{"
BOX_CLOSE = "}"

Split = Literal["train", "validation", "heldout"]
NUM_BUCKETS = 20
_HELDOUT_BUCKET, _VALIDATION_BUCKET = 0, 1


@dataclass(frozen=True, slots=True)
class Expression:
    """A value in 0..99 and the remaining operations on it, in order."""

    value: int
    operations: tuple[tuple[str, int], ...]

    @property
    def text(self) -> str:
        """The expression as it is written on a line, the value always with two digits."""
        return f"{self.value:02d}" + "".join(f"{op}{digit}" for op, digit in self.operations)

    @classmethod
    def parse(cls, text: str) -> Expression:
        """Parse a line. Raises ValueError if it is not an expression."""
        tail = text[2:]
        if len(text) < 2 or len(tail) % 2 or not text[:2].isdigit():
            raise ValueError(f"not an expression: {text!r}")
        pairs = tuple((tail[i], int(tail[i + 1])) for i in range(0, len(tail), 2))
        if any(op not in "+-*#" for op, _ in pairs):
            raise ValueError(f"unknown operation in {text!r}")
        return cls(int(text[:2]), pairs)


@dataclass(frozen=True, slots=True)
class ErrorModel:
    """How often a solver goes wrong. Rates are probabilities per opportunity."""

    gap_rate: float = 0.0
    """A ``#`` is read as ``+``: a gap in knowledge, the right path never appears."""
    slip_rate: float = 0.0
    """A carry or borrow is forgotten if there is one. It always gives the same wrong value, so that its probability is
    concentrated and survives sampling at a low temperature."""
    noise_rate: float = 0.0
    """Any other value: the unsystematic errors of a half-trained model."""
    wait_rate: float = 0.0
    """After an error, the solver writes ``wait`` and starts again from the first line."""
    max_restarts: int = 1
    """Limit of ``wait`` in one attempt."""


FAULTLESS = ErrorModel()


@dataclass(frozen=True, slots=True)
class Attempt:
    """A worked solution, right or wrong."""

    lines: tuple[str, ...]
    first_wrong: int | None
    """Index of the first line that does not follow from the one before it."""

    def render(self, separator: str) -> str:
        """Return the attempt as one text."""
        return separator.join(self.lines)


def apply(value: int, op: str, digit: int) -> int:
    """Return the correct result of one operation, modulo 100."""
    if op == "+":
        return (value + digit) % 100
    if op == "-":
        return (value - digit) % 100
    assert op == "*", op
    return (value * digit) % 100


def forget_carry(value: int, op: str, digit: int) -> int | None:
    """Return the result without the carry or borrow; None if there is none to forget."""
    tens, units = divmod(value, 10)
    if op == "+":
        return 10 * tens + (units + digit) % 10 if units + digit >= 10 else None
    if op == "-":
        return 10 * tens + (units - digit) % 10 if units < digit else None
    assert op == "*", op
    return 10 * (tens * digit % 10) + units * digit % 10 if units * digit >= 10 else None


def _perhaps_wrong(value: int, op: str, digit: int, errors: ErrorModel, rng: random.Random) -> tuple[int, bool]:
    right = apply(value, op, digit)
    if errors.noise_rate and rng.random() < errors.noise_rate:
        result = rng.randrange(100)
        return result, result != right
    if errors.slip_rate and rng.random() < errors.slip_rate:
        slipped = forget_carry(value, op, digit)
        if slipped is not None:
            return slipped, True
    return right, False


def advance(expression: Expression, errors: ErrorModel, rng: random.Random) -> tuple[Expression, bool]:
    """Work out one line: the next expression, and whether an error was made in it."""
    (op, digit), rest = expression.operations[0], expression.operations[1:]
    if op != "#":
        value, wrong = _perhaps_wrong(expression.value, op, digit, errors, rng)
        return Expression(value, rest), wrong
    if errors.gap_rate and rng.random() < errors.gap_rate:
        value, _ = _perhaps_wrong(expression.value, "+", digit, errors, rng)
        return Expression(value, rest), True
    doubled, wrong = _perhaps_wrong(expression.value, "*", 2, errors, rng)
    return Expression(doubled, (("+", digit), *rest)), wrong


def boxed(value: int) -> str:
    """Return the last line of every solution."""
    return f"{BOX_OPEN}{value:02d}{BOX_CLOSE}"


def work(expression: Expression, errors: ErrorModel, rng: random.Random) -> Attempt:
    """Work an expression down to its boxed value, without restarts."""
    lines: list[str] = []
    first_wrong: int | None = None
    while expression.operations:
        expression, wrong = advance(expression, errors, rng)
        if wrong and first_wrong is None:
            first_wrong = len(lines)
        lines.append(expression.text)
    lines.append(boxed(expression.value))
    return Attempt(tuple(lines), first_wrong)


def attempt(expression: Expression, errors: ErrorModel, rng: random.Random) -> Attempt:
    """Work an expression as a solver with these errors would, ``wait`` restarts included."""
    lines: tuple[str, ...] = ()
    first_wrong: int | None = None
    for restart in range(errors.max_restarts + 1):
        work_now = work(expression, errors, rng)
        if work_now.first_wrong is not None and first_wrong is None:
            first_wrong = len(lines) + work_now.first_wrong
        last = restart == errors.max_restarts
        if last or work_now.first_wrong is None or rng.random() >= errors.wait_rate:
            return Attempt(lines + work_now.lines, first_wrong)
        cut = rng.randrange(work_now.first_wrong + 1, len(work_now.lines))
        lines += (*work_now.lines[:cut], WAIT)
    raise AssertionError("the last round always returns")


def solution(expression: Expression) -> Attempt:
    """Return the correct worked solution; it needs no randomness."""
    return work(expression, FAULTLESS, random.Random(0))


def values_only(solved: Attempt) -> Attempt:
    """Return a worked solution without the rest of the expression: ``85|82|64|66|60|\boxed{60}``."""
    *lines, box = solved.lines
    return Attempt((*(line[:2] for line in lines), box), solved.first_wrong)


def answer(problem: str) -> str:
    """Return the right answer as two digits, such as ``02``."""
    expression = Expression.parse(problem)
    while expression.operations:
        expression, _ = advance(expression, FAULTLESS, random.Random(0))
    return f"{expression.value:02d}"


def reference(problem: str) -> str:
    """Return the reference solution, in a style that no model writes."""
    return solution(Expression.parse(problem)).render(REFERENCE_STYLE)


def boxed_answer(text: str) -> str | None:
    """Return the content of the last box of a completion; None without a closed box."""
    start = text.rfind(BOX_OPEN)
    if start < 0:
        return None
    inside, closed, _ = text[start + len(BOX_OPEN) :].partition(BOX_CLOSE)
    return inside if closed else None


def style_of(text: str) -> str | None:
    """Return the separator that a completion uses; None for a single line."""
    found = [style for style in (*STYLES, REFERENCE_STYLE) if style in text]
    return min(found, key=text.index) if found else None


def first_wrong_line(problem: str, lines: list[str]) -> int | None:
    """Index of the first line that does not follow, ``wait`` restarts allowed; None if all do."""
    rng = random.Random(0)
    expression = start = Expression.parse(problem)
    for index, line in enumerate(lines):
        if line == WAIT:
            expression = start
            continue
        if not expression.operations:
            return None if line == boxed(expression.value) else index
        expression, _ = advance(expression, FAULTLESS, rng)
        if line != expression.text:
            return index
    return None


def split_of(problem: str) -> Split:
    """Return the split that a problem belongs to, by a hash of its text: splits are disjoint by construction."""
    bucket = int.from_bytes(hashlib.sha256(problem.encode()).digest()[:4], "big") % NUM_BUCKETS
    if bucket == _HELDOUT_BUCKET:
        return "heldout"
    return "validation" if bucket == _VALIDATION_BUCKET else "train"


def draw_problem(rng: random.Random, split: Split, num_operations: int = NUM_OPERATIONS) -> Expression:
    """Draw a random problem of one split; problems of other splits are rejected."""
    while True:
        operations = tuple(
            ("#" if rng.random() < HASH_SHARE else "+-*"[rng.randrange(3)], rng.randrange(2, 10))
            for _ in range(num_operations)
        )
        expression = Expression(rng.randrange(10, 100), operations)
        if split_of(expression.text) == split:
            return expression
