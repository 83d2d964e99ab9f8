"""Conversion of values from data formats and generators to plain JSON."""

from __future__ import annotations

import json
import math
import sys
from collections.abc import Mapping
from typing import Any


def plain_json(value: Any) -> Any:
    """Convert to JSON types; sets are sorted, since their order differs between processes."""
    if isinstance(value, dict):
        return {str(key): plain_json(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [plain_json(item) for item in value]
    if isinstance(value, set | frozenset):
        return sorted((plain_json(item) for item in value), key=lambda item: json.dumps(item, sort_keys=True))
    if value is None or isinstance(value, str | int | float | bool):
        return value
    return str(value)


def agreed_json(value: Any) -> Any:
    """Plain JSON in the form that is the same from every format: Parquet gives each object of a column the keys of all
    of them, null where it has none, and whole numbers as floats where a column has gaps or fractions."""
    if isinstance(value, dict):
        return {key: agreed_json(item) for key, item in value.items() if item is not None}
    if isinstance(value, list):
        return [agreed_json(item) for item in value]
    return int(value) if isinstance(value, float) and value.is_integer() else value


def finite(value: Any) -> Any:
    """Replace all numbers that are not finite, at any depth, by None."""
    if isinstance(value, float) and not math.isfinite(value):
        return None
    if isinstance(value, Mapping):
        return {key: finite(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [finite(item) for item in value]
    return value


MAX_INTEGER_DIGITS = 50_000
"""Digits of an integer in text. Python's default is 4,300; some contest problems need longer ones."""


def allow_long_integers() -> None:
    """Allow `MAX_INTEGER_DIGITS` in this process and its forks.

    The limit stays raised: it applies to all threads, and lowering it again could break another thread's conversion.
    """
    if 0 < sys.get_int_max_str_digits() < MAX_INTEGER_DIGITS:
        sys.set_int_max_str_digits(MAX_INTEGER_DIGITS)
