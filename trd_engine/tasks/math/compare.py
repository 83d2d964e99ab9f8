r"""Whether two final answers are equal: by notation, by exact arithmetic, part by part; the rest are questions.

One rule for per cent: the sign is a unit that may be left out, and it divides by a hundred. ``50\%`` equals 50 and 0.5,
``12.5\%`` equals 12.5 and 0.125; two answers with the sign are compared as they stand.

One rule for decimals: they are exact. A value that no decimal has, such as 1/3, is also right if it is cut off or
rounded at six or more digits.
"""

from __future__ import annotations

import re
from fractions import Fraction
from itertools import chain

from trd_engine.tasks.math.exact_values import exact_value, is_rounding
from trd_engine.tasks.math.normal_form import (
    as_number,
    contradicts_itself,
    differ_in_denial,
    differ_in_marks,
    differ_in_negation,
    differ_in_units,
    normalise,
    without_sizes,
    without_unit,
)
from trd_engine.tasks.math.spelling import spell
from trd_engine.tasks.math.structure import (
    AllOf,
    Matching,
    Question,
    Same,
    Structure,
    is_true,
    questions_of,
    take_apart,
)

_SPACE = re.compile(r"\s+")
_SPACES = re.compile(r"(?:\\[,;:! ] ?){3,}")
"""Long runs of space would cost the patterns more than linear time."""
_PERCENT = re.compile(r"\\?%$")
_WRAPPER = re.compile(r"\\(?:text|textbf|textit|mathrm|mathbf|mbox)\s*\{([^{}]*)\}")
_ARTICLE = re.compile(r"(?:the|an|a)\s+")
_ONLY_WORDS = re.compile(r"[^\W\d_]{2,}(?:[\s,'’-]+[^\W\d_]+)*")
_CURRENCY = re.compile(r"\\?\$\s*\d|[£€¥₹]")
_TWO_NUMBERS = re.compile(r"[-+]?[\d.]+(?: [\d.]+)+")
_MAX_UNORDERED = 20
_MAX_QUESTIONS = 16
"""Longer lists, and those with more questions, are left to math-verify as a whole."""


def compare(reference: str, answer: str) -> Question:
    """Return whether the answer equals the reference, or what math-verify has to say for that."""
    if reference == answer:
        return True
    reference, answer = (_SPACES.sub(" ", _SPACE.sub(" ", text)) for text in (reference, answer))
    if differ_in_denial(reference, answer) or _is_money_and_share(reference, answer):
        return False
    ours, theirs = spell(reference, reference=reference), spell(answer, reference=reference)
    whole = _compare_texts(ours, theirs)
    if isinstance(whole, bool):
        return whole
    try:
        one, other = (take_apart(without_sizes(text)) for text in (ours, theirs))
        by_parts = None if one.kind == other.kind == "single" else _compare(one, other)
    except RecursionError:  # nested deeper than any honest answer
        return False
    return whole if by_parts is None else by_parts


def _is_money_and_share(one: str, other: str) -> bool:
    return any(_CURRENCY.search(first) and _PERCENT.search(second) for first, second in ((one, other), (other, one)))


def value_of(text: str) -> Fraction | None:
    """Return the exact value of a text that is plain arithmetic, spelled as LaTeX."""
    normal = normalise(text)
    number = as_number(normal)
    return exact_value(normal) if number is None else number


def _compare_texts(reference: str, answer: str) -> bool | Same:
    if differ_in_units(reference, answer):
        return False
    ours, theirs = normalise(reference), normalise(answer)
    if ours and ours == theirs:
        return True
    if differ_in_marks(ours, theirs) or differ_in_negation(ours, theirs) or contradicts_itself(ours, theirs):
        return False
    equal = _equal_values(ours, theirs)
    if equal is None and _words(reference) == _words(answer) != "":
        return True
    return Same(without_unit(reference), without_unit(answer)) if equal is None else equal


def _words(text: str) -> str:
    """Return an answer in words without its capitals, article and full stop; "" for any other answer."""
    plain = _WRAPPER.sub(r"\1", text.replace("\\ ", " ")).strip(" .").casefold()
    return _ARTICLE.sub("", plain) if _ONLY_WORDS.fullmatch(plain) else ""


def _equal_values(ours: str, theirs: str) -> bool | None:
    """Compare two normal forms as exact values; None if one of them has none."""
    bare = [_PERCENT.sub("", normal) for normal in (ours, theirs)]
    values = [exact_value(normal) if as_number(normal) is None else as_number(normal) for normal in bare]
    one, other = values
    if one is None or other is None:
        # 3 4 is no value, and parsers would add or multiply.
        is_no_value = any(_TWO_NUMBERS.fullmatch(normal) for normal in (ours, theirs))
        return False if is_no_value and not (one is None and other is None) else None
    if one == other or is_rounding(bare[0], other) or is_rounding(bare[1], one):
        return True
    if (bare[0] != ours) == (bare[1] != theirs):
        return False
    return one == other / 100 if bare[1] != theirs else one / 100 == other


def _compare(one: Structure, other: Structure) -> Question | None:
    """Return the question that two structures pose; None if only math-verify can tell, from the whole."""
    kinds = {one.kind, other.kind}
    if kinds == {"single"}:
        return False if one.name and other.name and one.name != other.name else _compare_texts(one.text, other.text)
    if "single" in kinds:
        return _compare_with_single(one, other)
    if "union" in kinds:
        return _compare_unordered(one.parts, other.parts) is True or None
    if kinds <= {"list", "set"}:
        if "set" in kinds:
            return _compare_unordered(_distinct(one.parts), _distinct(other.parts))
        return _compare_unordered(one.parts, other.parts)
    if "set" in kinds:
        return False
    if len(one.parts) != len(other.parts):
        return False
    if kinds == {"sequence"} and len(one.parts) == 2 and one.brackets != other.brackets:
        return False
    parts = [_compare(ours, theirs) for ours, theirs in zip(one.parts, other.parts, strict=True)]
    known = [part for part in parts if part is not None]
    if False in known:
        return False
    return AllOf(tuple(known)) if len(known) == len(parts) else None


def _compare_with_single(one: Structure, other: Structure) -> Question | None:
    single, compound = (one, other) if one.kind == "single" else (other, one)
    if compound.kind == "set" and len(compound.parts) == 1:
        if "\\emptyset" in single.text:
            return False
        return _compare(one.parts[0], other) if compound is one else _compare(one, other.parts[0])
    # A relation or a formula may describe several values; a number is one.
    return False if value_of(single.text) is not None and compound.kind != "union" else None


def _compare_unordered(ours: tuple[Structure, ...], theirs: tuple[Structure, ...]) -> Question | None:
    if len(ours) != len(theirs):
        return False
    if len(ours) > _MAX_UNORDERED:
        return None
    cells = [[_compare(one, other) for other in theirs] for one in ours]
    if any(cell is None for cell in chain(*cells)):
        return None
    rows: list[list[Question]] = [[cell for cell in row if cell is not None] for row in cells]
    settled_columns = {column for row in rows for column, cell in enumerate(row) if cell is True}
    for row in rows:
        has_found = True in row
        for column, cell in enumerate(row):
            # What is certainly equal to one part is not asked about the others.
            if not isinstance(cell, bool) and (has_found or column in settled_columns):
                row[column] = False
    if not all(any(cell is not False for cell in row) for row in rows):
        return False
    matching = Matching(tuple(map(tuple, rows)))
    if len(list(questions_of(matching))) > _MAX_QUESTIONS:
        return None
    return matching if any(questions_of(matching)) else is_true(matching, {})


def _distinct(parts: tuple[Structure, ...]) -> tuple[Structure, ...]:
    found: list[Structure] = []
    for part in parts:
        if not any(_compare(part, other) is True for other in found):
            found.append(part)
    return tuple(found)
