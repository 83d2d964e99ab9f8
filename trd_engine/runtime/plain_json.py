"""Values as plain JSON, whatever a data format or a generator made them of."""

from __future__ import annotations

import json
import math
import sys
from collections.abc import Mapping
from typing import Any


def plain_json(value: Any) -> Any:
    """`value` in JSON's own types; sets are sorted, since their order changes from process to process."""
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
    """`value` with every number that is not finite, however deep, made None."""
    if isinstance(value, float) and not math.isfinite(value):
        return None
    if isinstance(value, Mapping):
        return {key: finite(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [finite(item) for item in value]
    return value


MAX_INTEGER_DIGITS = 50_000
"""Of an integer as text. Python stops at 4,300, and contest problems ask for longer ones."""


def allow_long_integers() -> None:
    """Let this process and its forks read and write `MAX_INTEGER_DIGITS`.

    For good: the limit is one for all threads, and none could lower it again without cutting off another.
    """
    if 0 < sys.get_int_max_str_digits() < MAX_INTEGER_DIGITS:
        sys.set_int_max_str_digits(MAX_INTEGER_DIGITS)
