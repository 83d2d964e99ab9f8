"""Plain JSON: values converted to it, what it may hold, and how deep it may nest."""

from __future__ import annotations

import json
import math
import re
import sys
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from decimal import Decimal
from typing import Any


class WrittenFloat(float):
    """A number of a JSON text that keeps the digits it was written with."""

    __slots__ = ("written",)
    written: str

    def __new__(cls, written: str) -> WrittenFloat:
        """Return the number that `written` stands for."""
        number = super().__new__(cls, written)
        number.written = str(written)
        return number


@dataclass(frozen=True)
class Unreadable:
    """A value of a file that Python cannot represent; a row that needs it is refused."""

    reason: str


def number_text(number: float | Decimal) -> str:
    """Return a number as people write it: 0.00001, not 1e-05, and without zeros at the end of its fraction.

    204.0, which Parquet makes of an integer in a column with gaps, is 204. The digits are those of the file, however
    many they are.
    """
    exact = Decimal(number.written if isinstance(number, WrittenFloat) else str(number))
    if abs(exact.adjusted()) > _MAX_PLAIN_EXPONENT:
        return f"{exact:e}"
    plain = f"{exact:f}"
    plain = plain.rstrip("0").rstrip(".") if "." in plain else plain
    return "0" if plain == "-0" else plain


_MAX_PLAIN_EXPONENT = 30
"""Numbers beyond 10 to this power, or its inverse, are written with an exponent."""

# A string that is not closed extends to the end: a pattern that could fail there would be tried again at each quote.
_BRACKETS = re.compile(rb'"(?:[^"\\]+|\\.)*"?|[\[{]|[\]}]', re.DOTALL)


def plain_json(value: Any) -> Any:
    """Return `value` in JSON's types; sets are sorted, because their order differs between processes."""
    if isinstance(value, dict):
        return {str(key): plain_json(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [plain_json(item) for item in value]
    if isinstance(value, set | frozenset):
        return sorted((plain_json(item) for item in value), key=lambda item: json.dumps(item, sort_keys=True))
    if isinstance(value, WrittenFloat):
        return float(value)
    if value is None or isinstance(value, str | int | float | bool):
        return value
    return str(value)


def agreed_json(value: Any) -> Any:
    """Return plain JSON in a form that does not depend on the file format.

    Parquet gives each object of a column the keys of all its objects, with null for those that the object lacks, and
    whole numbers as floats if the column has gaps or fractions.
    """
    if isinstance(value, dict):
        return {key: agreed_json(item) for key, item in value.items() if item is not None}
    if isinstance(value, list):
        return [agreed_json(item) for item in value]
    return int(value) if isinstance(value, float) and value.is_integer() else value


def finite(value: Any, instead: Callable[[float], str | None] = lambda number: None) -> Any:
    """Return `value` with every number that is not finite, however deep, replaced by None or by another value."""
    if isinstance(value, float) and not math.isfinite(value):
        return instead(value)
    if isinstance(value, Mapping):
        return {key: finite(item, instead) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [finite(item, instead) for item in value]
    return value


MAX_INTEGER_DIGITS = 50_000
"""Longest integer as text. Python's limit is 4,300, and contest problems have longer ones."""


def allow_long_integers() -> None:
    """Let this process and its forks read and write integers of `MAX_INTEGER_DIGITS` digits.

    Permanently: all threads share the limit, so none could lower it again without affecting another.
    """
    if 0 < sys.get_int_max_str_digits() < MAX_INTEGER_DIGITS:
        sys.set_int_max_str_digits(MAX_INTEGER_DIGITS)


def nests_deeper(content: bytes, max_depth: int) -> bool:
    """Return whether objects and lists nest deeper than `max_depth`, without parsing: a parser recurses per level."""
    if content.count(b"[") + content.count(b"{") <= max_depth:
        return False
    depth = 0
    for token in _BRACKETS.finditer(content):
        first = token.group()[0]
        if first in b"[{":
            depth += 1
            if depth > max_depth:
                return True
        elif first in b"]}":
            depth -= 1
    return False


def text_fault(text: str) -> str | None:
    """Return what makes `text` impossible to store, to continue the name of its field; None if nothing does."""
    if "\0" in text:
        return f"has \\u0000 at character {text.index(chr(0)) + 1}, which is not text; remove it"
    if text.isascii():  # known without looking at the characters
        return None
    try:
        text.encode()
    except UnicodeEncodeError as error:
        half = text[error.start].encode("unicode_escape").decode()
        return f"has {half} at character {error.start + 1}, half a surrogate pair; write the whole character"
    return None


def texts(value: Any) -> Iterator[str]:
    """Yield every string in a JSON value, keys included."""
    if isinstance(value, str):
        yield value
    elif isinstance(value, list | tuple):
        for item in value:
            yield from texts(item)
    elif isinstance(value, dict):
        for key, item in value.items():
            yield from texts(key)
            yield from texts(item)
