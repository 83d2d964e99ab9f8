"""Reading one field out of a row, under any of the names that data sets give it."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from typing import Any

from trd_engine.runtime.plain_json import allow_long_integers

Row = Mapping[str, Any]

PROBLEM = ("problem", "question", "prompt", "Problem", "Question", "query", "instruction", "input")
ANSWER = ("answer", "Answer", "final_answer", "expected_answer", "answerKey", "ground_truth", "target")
SOLUTION = ("solution", "Solution", "reference_solution", "rationale", "reasoning")
ID = ("id", "ID", "problem_id", "question_id", "unique_id", "task_id", "problem_idx", "uid")

BENCHMARK = ("benchmark", "data_source", "dataset")
_MAX_NAME = 80


class RowError(ValueError):
    """What is wrong with a row, in words that follow its number."""


def missing(field: str, looked_for: Sequence[str], row: Row) -> RowError:
    """The error of a field that a row lacks, with the names it may have and the ones there are."""
    there = ", ".join(map(repr, list(row)[:12])) or "none"
    names = " or ".join(map(repr, looked_for))
    return RowError(f"field {field!r} is missing; looked for {names}, the row has {there}; map it with columns")


def first_name(row: Row, names: Sequence[str]) -> str | None:
    """The first of `names` that the row has a value for; a column of numbers may have NaN where it has none."""
    return next((name for name in names if row.get(name) is not None and row[name] == row[name]), None)


def text(row: Row, field: str, names: Sequence[str]) -> str:
    """A field that must be there and must not be empty."""
    name = first_name(row, names)
    if name is None:
        raise missing(field, names, row)
    value = as_text(row[name], name)
    if not value.strip():
        raise RowError(f"field {name!r} is empty")
    return value


def optional_text(row: Row, names: Sequence[str]) -> str | None:
    """A field that may be absent or empty."""
    name = first_name(row, names)
    if name is None:
        return None
    value = as_text(row[name], name)
    return value if value.strip() else None


def tolerance(row: Row, name: str, default: float) -> float:
    """How far numbers may differ; a field that may be absent, or zero where none is meant."""
    if first_name(row, (name,)) is None:
        return default
    value = row[name]
    try:
        number = math.nan if isinstance(value, bool) else float(value)
    except (TypeError, ValueError):
        number = math.nan
    if not 0 <= number < math.inf:
        raise RowError(
            f"field {name!r} is {value!r:.80}, which is no tolerance; give a number such as {default}, or leave it out"
        )
    return number or default


def as_text(value: Any, name: str) -> str:
    """A scalar as text: 204.0, as Parquet gives an integer column with gaps, is "204"."""
    if isinstance(value, list) and len(value) == 1:
        value = value[0]
    if isinstance(value, float) and not math.isfinite(value):
        raise RowError(f"field {name!r} is {value}, which is no finite number; where it is meant, write it as text")
    if isinstance(value, float) and value.is_integer():
        value = int(value)
    if isinstance(value, str | bool | int | float):
        return str(value)
    raise RowError(f"field {name!r} must be text or a number, not {type(value).__name__}")


def as_texts(value: Any, name: str) -> list[str]:
    """A list of texts, also where the data set keeps the list as JSON in a string."""
    if isinstance(value, str):
        value = parse_json(value, name)
    if not isinstance(value, list) or not all(isinstance(item, str) for item in value):
        raise RowError(f"field {name!r} must be a list of strings")
    return value


def parse_json(value: Any, name: str) -> Any:
    """The value of a field that holds JSON as a string; a value of another type is taken as it is."""
    if not isinstance(value, str):
        return value
    allow_long_integers()
    try:
        return json.loads(value)
    except (ValueError, RecursionError) as error:
        raise RowError(f"field {name!r} is not valid JSON: {error}") from error


def benchmark_name(row: Row) -> str | None:
    """Which data set a row says it is of, where a file holds several; only the grouping of scores hangs on it."""
    name = first_name(row, BENCHMARK)
    value = row[name] if name is not None else None
    return value.strip()[:_MAX_NAME] or None if isinstance(value, str) else None
