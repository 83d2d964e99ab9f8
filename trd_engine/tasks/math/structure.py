r"""Lists, sets, tuples, intervals and unions: split here, so that their parts are compared one by one.

A list and a set have no order, and a set no repetitions; ``\pm`` makes two parts. Tuples and intervals have an order,
and the brackets of a pair tell whether its ends belong to it. What plain arithmetic cannot decide about two parts is a
question for math-verify.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Literal

from trd_engine.tasks.math.spelling import with_commas

_NAME = re.compile(r"^\s*([A-Za-z](?:_\{?\w+\}?)?|[A-Z]\([a-z]\))\s*(?:=(?![=])|\\in(?![A-Za-z]))\s*")
_THOUSANDS = re.compile(r"[+-]?\d{1,3}(?:,\d{3})+(?:\.\d+)?")
_UNION = re.compile(r"\\cup(?![A-Za-z])")
_SET_BUILDER = re.compile(r"\\mid(?![A-Za-z])|[|:]")


@dataclass(frozen=True)
class Structure:
    """An answer and its parts."""

    kind: Literal["single", "list", "set", "sequence", "union"]
    text: str
    parts: tuple[Structure, ...] = ()
    brackets: str = ""
    """Brackets of a sequence: "()", "[]", "(]" or "[)"."""
    name: str = ""
    """The letter that the answer gives a value: x in x=5."""


@dataclass(frozen=True)
class Same:
    """The question whether two texts are equal as mathematics."""

    reference: str
    answer: str


@dataclass(frozen=True)
class AllOf:
    """True if all parts are."""

    parts: tuple[Question, ...]


@dataclass(frozen=True)
class Matching:
    """True if every row can be paired with a different column in which it is true: a list without order."""

    rows: tuple[tuple[Question, ...], ...]


_MAX_DEPTH = 10
"""Most brackets within brackets; each level is searched separately."""
Question = bool | Same | AllOf | Matching


def take_apart(answer: str, depth: int = 0) -> Structure:
    """Return the structure of an answer in LaTeX, without ``\\left`` and ``\\right``."""
    text = answer.strip()
    if depth > _MAX_DEPTH:
        return Structure("single", text)
    found = _NAME.match(text)
    if found is not None and "=" not in text[found.end() :] and text[found.end() :]:
        inner = take_apart(text[found.end() :], depth + 1)
        return Structure(inner.kind, inner.text, inner.parts, inner.brackets, found.group(1))
    union = _split(text, _UNION)
    if len(union) > 1:
        return Structure("union", text, tuple(take_apart(part, depth + 1) for part in union))
    items = _items(with_commas(text))
    if len(items) > 1:
        return Structure(
            "list", text, tuple(part for item in items for part in _both_signs(take_apart(item, depth + 1)))
        )
    return _bracketed(items[0] if items else text, depth)


def _bracketed(text: str, depth: int) -> Structure:
    opening, inner, closing = _outer_brackets(text)
    if opening == "\\{" and not _SET_BUILDER.search(inner):
        items = [take_apart(item, depth + 1) for item in _split(inner, re.compile(","))]
        return Structure("set", text, tuple(part for item in items for part in _both_signs(item)))
    if opening in ("(", "["):
        items = [take_apart(item, depth + 1) for item in _split(with_commas(inner), re.compile(","))]
        if len(items) > 1:
            return _sequence(text, items, opening + closing)
        if opening + closing == "()" and items:
            return items[0]
    signs = _both_signs(Structure("single", text))
    return signs[0] if len(signs) == 1 else Structure("list", text, tuple(signs))


def _sequence(text: str, items: list[Structure], brackets: str) -> Structure:
    """Return a tuple or interval; two, if one of its items has both signs."""
    signed = [place for place, item in enumerate(items) if item.kind == "list"]
    if len(signed) != 1:
        return Structure("sequence", text, tuple(items), brackets)
    [place] = signed
    both = [[*items[:place], sign, *items[place + 1 :]] for sign in items[place].parts]
    return Structure("list", text, tuple(Structure("sequence", text, tuple(each), brackets) for each in both))


def _both_signs(part: Structure) -> list[Structure]:
    if part.kind == "list":
        return list(part.parts)
    if part.kind != "single" or "\\pm" not in part.text or part.text.count("\\pm") > 1:
        return [part]
    upper = part.text.replace("\\pm", "+").replace("\\mp", "-")
    lower = part.text.replace("\\pm", "-").replace("\\mp", "+")
    return [Structure("single", each.strip().removeprefix("+").strip(), name=part.name) for each in (upper, lower)]


def _items(text: str) -> list[str]:
    """Return the parts between commas; commas without a space may be those of one number's thousands."""
    parts = []
    for part in _split(text, re.compile(r",(?=\s)")):
        bare = part.strip()
        parts += [part] if _THOUSANDS.fullmatch(bare) else _split(part, re.compile(","))
    return [part.strip() for part in parts if part.strip()]


def _split(text: str, separator: re.Pattern[str]) -> list[str]:
    """Split where no bracket is open."""
    parts, start, depth, place = [], 0, 0, 0
    while place < len(text):
        found = separator.match(text, place) if depth == 0 else None
        if found is not None and found.end() > place:
            parts.append(text[start:place])
            start = place = found.end()
            continue
        step = 2 if text[place] == "\\" else 1
        bracket = text[place + step - 1 : place + step]
        depth += (bracket in ("(", "[", "{")) - (bracket in (")", "]", "}"))
        place += step
    return [*parts, text[start:]]


def _outer_brackets(text: str) -> tuple[str, str, str]:
    """Return the brackets around the whole text, and what is between them; three empty texts if there are none."""
    opening = "\\{" if text.startswith("\\{") else text[:1]
    closing = "\\}" if opening == "\\{" else text[-1:]
    ends = {"(": ")]", "[": ")]", "\\{": "\\}"}.get(opening)
    if ends is None or not text.endswith(closing) or (closing not in ends) or len(text) < 2:
        return "", "", ""
    inner, depth, place = text[len(opening) : len(text) - len(closing)], 0, 0
    while place < len(inner):
        step = 2 if inner[place] == "\\" else 1
        bracket = inner[place + step - 1 : place + step]
        depth += (bracket in ("(", "[", "{")) - (bracket in (")", "]", "}"))
        if depth < 0:
            return "", "", ""
        place += step
    return (opening, inner, closing) if depth == 0 else ("", "", "")


def questions_of(question: Question) -> Iterator[Same]:
    """Yield what math-verify has to answer."""
    if isinstance(question, Same):
        yield question
    elif isinstance(question, AllOf):
        for part in question.parts:
            yield from questions_of(part)
    elif isinstance(question, Matching):
        for row in question.rows:
            for cell in row:
                yield from questions_of(cell)


def is_true(question: Question, answers: Mapping[Same, bool]) -> bool:
    """Return the answer to a question, given those of math-verify."""
    if isinstance(question, bool):
        return question
    if isinstance(question, Same):
        return answers[question]
    if isinstance(question, AllOf):
        return all(is_true(part, answers) for part in question.parts)
    rows = [{place for place, cell in enumerate(row) if is_true(cell, answers)} for row in question.rows]
    return _has_matching(rows)


def _has_matching(rows: list[set[int]]) -> bool:
    """Return whether each row can be paired with a different column (Kuhn's augmenting paths)."""
    taken: dict[int, int] = {}

    def place(row: int, tried: set[int]) -> bool:
        for column in rows[row] - tried:
            tried.add(column)
            if column not in taken or place(taken[column], tried):
                taken[column] = row
                return True
        return False

    return all(place(row, set()) for row in range(len(rows)))
