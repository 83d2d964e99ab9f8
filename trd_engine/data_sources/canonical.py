"""Values as plain JSON, whatever a data format or a generator made them of."""

from __future__ import annotations

import json
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
