"""JSON in which no object has a key twice: of two values one would be lost without a word."""

from __future__ import annotations

import json
import math
import re
from collections import Counter
from typing import Any, NoReturn


class DuplicateKeyError(ValueError):
    """An object has a key twice."""


_TOKENS = re.compile(r'"(?:[^"\\]|\\.)*"|[{}\[\]:,]')


def loads_unique(text: str) -> Any:
    """Return the value of a JSON text; raise ValueError, also for NaN and infinity, and `DuplicateKeyError` with the
    key and its lines."""
    try:
        return json.loads(
            text, object_pairs_hook=unique_object, parse_float=finite_float, parse_constant=refuse_constant
        )
    except DuplicateKeyError:
        raise _located(text) from None


def unique_object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """Return an object; raise `DuplicateKeyError` if a key stands in it twice, of which one would be lost."""
    found = dict(pairs)
    if len(found) < len(pairs):
        counts = Counter(name for name, _ in pairs)
        twice = next(name for name in found if counts[name] > 1)
        raise DuplicateKeyError(f"the key {json.dumps(twice)[:80]} stands in an object twice; keep one")
    return found


def finite_float(text: str) -> float:
    """Return a number; raise ValueError for one like 1e400, which becomes infinity."""
    number = float(text)
    if math.isinf(number):
        raise ValueError(f"{text:.40} is too large for a number")
    return number


def refuse_constant(name: str) -> NoReturn:
    """Raise ValueError, for NaN and infinity."""
    raise ValueError(f"{name} is not a JSON value")


def _located(text: str) -> DuplicateKeyError:
    """Find the first key of `text`, which is JSON up to there, that its object has already."""
    open_objects: list[dict[str, int]] = []
    string, at, line, counted = "", 0, 1, 0
    for token in _TOKENS.finditer(text):
        found = token.group()
        if found in "{[":
            open_objects.append({})
        elif found in "}]":
            open_objects.pop()
        elif found == ":":
            key, line, counted = json.loads(string), line + text.count("\n", counted, at), at
            if key in open_objects[-1]:
                before = open_objects[-1][key]
                return DuplicateKeyError(f"key {key!r} in line {line} is there already, in line {before}; keep one")
            open_objects[-1][key] = line
        elif found != ",":
            string, at = found, token.start()
    raise AssertionError("the parser found a key twice")
