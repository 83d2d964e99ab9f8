"""What a shape of rows is, and how single fields are read, under any of the names that data sets give them."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from decimal import Decimal
from functools import lru_cache
from itertools import islice
from typing import Any
from uuid import UUID

from trd_data.errors import MissingFieldError, RowError
from trd_data.plain_json import Unreadable, WrittenFloat, allow_long_integers, number_text
from trd_data.problems import Problem

Row = Mapping[str, Any]

PROBLEM = ("problem", "question", "prompt", "Problem", "Question", "query", "instruction", "input")
ANSWER = ("answer", "Answer", "final_answer", "expected_answer", "answerKey", "ground_truth", "target")
SOLUTION = ("solution", "Solution", "reference_solution", "rationale", "reasoning")
ID = ("id", "ID", "problem_id", "question_id", "unique_id", "task_id", "problem_idx", "uid")

BENCHMARK = ("benchmark", "data_source", "dataset")
INPUT = ("input",)
"""Continues an instruction, as Alpaca has it."""
_MAX_NAME = 80
_PYTHON_LIST = re.compile(r"\s*[\[{]+\s*'")


@dataclass(frozen=True, eq=False)
class Shape:
    """A way to write problems as rows; docs/data.md lists all of them from here."""

    name: str
    """What users know it as."""
    columns: frozenset[str]
    """A row of this shape has a value in each."""
    read: Callable[[Row, str, str], Problem]
    """Reads (row, id, task) and raises RowError."""
    reads: tuple[tuple[str, ...], ...]
    """The columns that are read, beside `ID` and `BENCHMARK`; the first of each group that has a value counts."""
    tasks: str
    """Tasks that read it, for people."""
    ignores: tuple[str, ...] = ()
    """Columns of such data sets that are known, and not read."""
    recognised_by: str = ""
    """How it is recognised, beside its columns."""
    by_task: bool = False
    """Whether tasks may read different problems in the same row."""

    @lru_cache(maxsize=1000)  # noqa: B019 - shapes live as long as the process
    def columns_read(self, there: frozenset[str]) -> frozenset[str]:
        """Return those of a row's columns whose values make its problem."""
        firsts = (next((name for name in group if name in there), None) for group in (*self.reads, ID, BENCHMARK))
        read = {name for name in firsts if name is not None}
        return frozenset(read | set(INPUT) if "instruction" in read else read)


class FilledRow(dict[str, Any]):
    """The values of a row without its gaps."""

    def __init__(self, row: Row) -> None:
        """Leave out the gaps of `row`: null, and NaN, which a column of numbers has for it."""
        super().__init__({name: value for name, value in row.items() if has_value(row, name)})
        self.all_columns = list(row)
        """Columns of the row, or of the whole file."""


def wrong(name: str, value: object, reason: str) -> RowError:
    """Return the error of a field whose value is wrong; `reason` continues "name = value: "."""
    if isinstance(value, WrittenFloat):
        shown = value.written
    elif isinstance(value, str):
        shown = json.dumps(value[:100], ensure_ascii=False)
    else:  # encoded piece by piece, because only the first ones are shown; Parquet has types that JSON lacks
        shown = "".join(islice(json.JSONEncoder(ensure_ascii=False, default=str).iterencode(value), 60))
    shown = shown if len(shown) <= 60 else shown[:57] + "..."
    return RowError(name, f"{name} = {shown}: {reason}")


def missing(field: str, names: Sequence[str], row: Row) -> RowError:
    """Return the error of a field that a row lacks, with the row's fields and the names that would do."""
    columns = row.all_columns if isinstance(row, FilledRow) else list(row)
    there = ", ".join(columns[:10]) or "none"
    accepted = f"; accepted names: {', '.join(names)}" if len(names) > 1 else ""
    way_out = f'; or map a column to it: columns = {{"{field}": "NAME"}}, in the command line --column {field}=NAME'
    return MissingFieldError(
        field, f"{field}: this field is required; the row's fields: {there[:200]}{accepted}{way_out}"
    )


def type_name(value: object) -> str:
    """Return what JSON calls the type of `value`, for messages."""
    kinds = {dict: "an object", list: "a list", str: "a string", bool: "a boolean", type(None): "null"}
    return kinds.get(type(value), "a number" if isinstance(value, int | float) else f"a {type(value).__name__}")


def has_value(row: Row, name: str) -> bool:
    """Return whether the row has a value in that field; a column of numbers has NaN for a gap."""
    value = row.get(name)
    return value is not None and not (isinstance(value, float) and value != value)


def first_name(row: Row, names: Sequence[str]) -> str | None:
    """Return the first of `names` that the row has a value for."""
    return next((name for name in names if has_value(row, name)), None)


def text(row: Row, field: str, names: Sequence[str]) -> str:
    """Return a field that is required and must not be empty."""
    name = first_name(row, names)
    if name is None:
        raise missing(field, names, row)
    value = as_text(row[name], name)
    if not value.strip():
        raise wrong(name, row[name], "must not be empty")
    return value


def problem_text(row: Row, names: Sequence[str] = PROBLEM) -> str:
    """Return the problem; an instruction is followed by its input, if it has one."""
    problem = text(row, "problem", names)
    if first_name(row, names) != "instruction":
        return problem
    given = optional_text(row, INPUT)
    return problem if given is None else f"{problem}\n\n{given}"


def optional_text(row: Row, names: Sequence[str]) -> str | None:
    """Return a field that may be absent or empty; None if it is."""
    name = first_name(row, names)
    if name is None:
        return None
    value = as_text(row[name], name)
    return value if value.strip() else None


def tolerance(row: Row, name: str, default: float) -> float:
    """Return by how much numbers may differ; `default` if the field is absent or zero."""
    if first_name(row, (name,)) is None:
        return default
    value = row[name]
    try:
        number = math.nan if isinstance(value, bool) else float(value)
    except (TypeError, ValueError):
        number = math.nan
    if not 0 <= number < math.inf:
        raise wrong(name, value, f"must be a number of 0 or more, such as {default}; or leave the field out")
    return number or default


def as_text(value: Any, name: str) -> str:
    """Return a scalar, or the only item of a list, as text."""
    if isinstance(value, list) and len(value) == 1:
        value = value[0]
    if isinstance(value, Unreadable):
        raise RowError(name, f"{name}: the value cannot be read: {value.reason}")
    if isinstance(value, bytes):
        try:
            return value.decode()
        except UnicodeDecodeError as error:
            raise wrong(name, value, f"must be text in UTF-8: {error.reason} at byte {error.start + 1}") from None
    if isinstance(value, float | Decimal) and not math.isfinite(value):
        raise wrong(name, value, "must be finite; if infinity is the answer, write it as a string")
    if isinstance(value, float | Decimal):
        return number_text(value)
    if isinstance(value, str | bool | int | UUID):
        return str(value)
    raise wrong(name, value, f"must be a string or a number, not {type_name(value)}")


def as_texts(value: Any, name: str) -> list[str]:
    """Return a list of strings, which may also be JSON in a string."""
    value = parse_json(value, name)
    if not isinstance(value, list) or not all(isinstance(item, str) for item in value):
        raise wrong(name, value, "must be a list of strings")
    return value


def parse_json(value: Any, name: str) -> Any:
    """Return the value of a field that may hold JSON as a string; a value of another type is returned as it is."""
    if isinstance(value, Unreadable):
        raise RowError(name, f"{name}: the value cannot be read: {value.reason}")
    if not isinstance(value, str):
        return value
    allow_long_integers()
    try:
        return json.loads(value)
    except (ValueError, RecursionError) as error:
        advice = "; write lists and objects within a cell with json.dumps" if _PYTHON_LIST.match(value) else ""
        raise wrong(name, value, f"is not valid JSON: {error}{advice}") from error


def benchmark_name(row: Row) -> str | None:
    """Return the data set that a row names as its source; it only decides how scores are grouped."""
    name = first_name(row, BENCHMARK)
    value = row[name] if name is not None else None
    return value.strip()[:_MAX_NAME] or None if isinstance(value, str) else None
