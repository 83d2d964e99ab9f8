"""Finds the shape of a row and reads the problem in it, for one task or for all."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

from trd_data.answers import reference_letter
from trd_data.errors import MissingFieldError, RowError
from trd_data.plain_json import plain_json
from trd_data.problems import Problem
from trd_data.shapes import fields, known, turns
from trd_data.shapes.choice import has_options
from trd_data.shapes.fields import FilledRow, Row, Shape

TASKS = ("math", "exact", "choice", "code", "reasoning_gym")
"""The tasks that read rows."""
MAX_ID_CHARACTERS = 100
"""The width of the column of problem ids in the database's tables."""

_OWN_FIELDS = ("id", "problem", "input", "answer", "solution", "messages", "choices", "metadata", "tests")
READ_COLUMNS = frozenset(
    {
        *(*fields.ID, *fields.BENCHMARK, *fields.INPUT),
        *(name for shape in known.ALL_SHAPES for names in (shape.columns, *shape.reads) for name in names),
    }
)
"""All columns that some shape reads."""


@dataclass(frozen=True)
class Reading:
    """What one row means to one task: a problem, or an error."""

    row: FilledRow
    """The row, mapped columns under our names."""
    there: frozenset[str]
    """Its columns that have a value."""
    shape: Shape | None
    """None if no shape fits."""
    problem: Problem | None
    error: RowError | None

    def required(self) -> Problem:
        """Return the problem; raises RowError."""
        if self.error is not None:
            raise self.error
        assert self.problem is not None
        return self.problem


def read_for(row: Row, number: int, task: str, columns: Mapping[str, str]) -> Reading:
    """Return what a row means to one task; raises RowError for a row that is wrong for all.

    `columns` maps the names of our fields to the row's columns, or to paths into objects and lists of them, such as
    ``reward_model.ground_truth``.
    """
    return _reading(*_prepared(row, number, columns), task, {})


def readings(row: Row, number: int, columns: Mapping[str, str]) -> dict[str, Reading]:
    """Return what a row means to each task, with `columns` as for `read_for`; raises RowError for a row that is wrong
    for all."""
    prepared = _prepared(row, number, columns)
    known_readings: dict[tuple[str, str], Reading] = {}
    return {task: _reading(*prepared, task, known_readings) for task in TASKS}


def suggested_reading(by_task: Mapping[str, Reading]) -> Reading:
    """Return the reading by the task that the row's columns suggest, or by another if only its answer does not fit
    that task: it need not name one of the row's options, and that of a generator's row may be null."""
    first = by_task["math"]
    task = _suggested_task(first.there, _has_turns(first.row))
    reading = by_task[task]
    fallback = {"choice": "exact", "exact": "reasoning_gym"}.get(task)
    if reading.error is not None and reading.error.field in fields.ANSWER and fallback is not None:
        return by_task[fallback] if by_task[fallback].error is None else reading
    return reading


def require_known_fields(columns: Mapping[str, str]) -> None:
    """Raise `RowError` if `columns` maps a name that no shape reads, which would have no effect."""
    unknown = [field for field in columns if field not in READ_COLUMNS]
    if unknown:
        raise RowError(
            None,
            f"columns maps {', '.join(map(repr, unknown))[:300]}, which is not one of our fields: these are "
            f"{', '.join(_OWN_FIELDS)} and the columns of known data sets; write our field, then the row's column",
        )


def columns_needed(columns: Mapping[str, str]) -> frozenset[str]:
    """Return the columns of a file that some shape reads, given the mapping."""
    return READ_COLUMNS | {name for path in columns.values() for name in (path, path.split(".")[0])}


def _reading(
    row: FilledRow, there: frozenset[str], row_id: str, task: str, known_readings: dict[tuple[str, str], Reading]
) -> Reading:
    shape = _shape(there, _has_turns(row), task)
    if shape is None:
        error = MissingFieldError(
            "tests",
            "tests: this field is required; task code needs tests, input_output (TACO), entry_point and test "
            "(HumanEval) or base_input (EvalPlus), test_list (MBPP) or public_test_cases (LiveCodeBench)",
        )
        return Reading(row, there, None, None, error)
    key = (shape.name, task if shape.by_task else "")
    reading = known_readings.get(key)
    if reading is None:
        reading = known_readings[key] = _read(row, there, row_id, task, shape)
    if task != "choice" or reading.problem is None:
        return reading
    letter = reference_letter(reading.problem.answer)
    if letter is None:
        name = fields.first_name(row, fields.ANSWER) or "answer"
        advice = "names no option; write the right option's letter, or give the options as choices"
        return Reading(row, there, shape, None, fields.wrong(name, reading.problem.answer, advice))
    return Reading(row, there, shape, dataclasses.replace(reading.problem, answer=letter), None)


def _read(row: FilledRow, there: frozenset[str], row_id: str, task: str, shape: Shape) -> Reading:
    try:
        problem = shape.read(row, row_id, task)
        benchmark = fields.benchmark_name(row)
        if problem.extra or benchmark is not None:
            problem = dataclasses.replace(problem, extra=plain_json(dict(problem.extra)), benchmark=benchmark)
        return Reading(row, there, shape, problem, None)
    except RowError as error:
        return Reading(row, there, shape, None, error)
    except (ArithmeticError, AttributeError, LookupError, RecursionError, TypeError, ValueError) as error:
        # A combination of types that no shape expects is an error of the row as well.
        message = f"cannot be read as {shape.name} by task {task}: {type(error).__name__}: {error}"[:300]
        return Reading(row, there, shape, None, RowError(None, message))


@lru_cache(maxsize=1000)
def _suggested_task(there: frozenset[str], has_turns: bool) -> str:
    if any(shape.columns <= there for shape in known.CODE_SHAPES):
        return "code"
    # Task exact accepts every row of a chat or of a problem and its answer that task math accepts.
    return "choice" if _shape(there, has_turns, "choice") is known.CHOICE else "exact"


def _has_turns(row: Row) -> bool:
    return isinstance(row.get("prompt"), list)


@lru_cache(maxsize=5000)  # the rows of a file have few sets of columns
def _shape(there: frozenset[str], has_turns: bool, task: str) -> Shape | None:
    """Return the shape of a row, given its columns and whether its prompt is a list of turns."""
    if task == "code":
        shapes = (*known.CODE_SHAPES, known.VERL)
        return next((shape for shape in shapes if shape.columns <= there), None)
    if task == "reasoning_gym" or "generated" in there:
        return known.ENTRY
    problem = next((name for name in fields.PROBLEM if name in there), None)
    is_of = {
        known.MESSAGES: "messages" in there,
        known.SHAREGPT: "conversations" in there and problem is None,
        known.VERL: known.VERL.columns <= there,
        known.TRL: "prompt" in there and (has_turns or "completion" in there),
        known.CHOICE: task == "choice" and has_options(there),
        known.ALPACA: problem == "instruction" and bool(there & {"input", "output"}),
    }
    return next((shape for shape, is_this in is_of.items() if is_this), known.PLAIN)


def _prepared(row: Row, number: int, columns: Mapping[str, str]) -> tuple[FilledRow, frozenset[str], str]:
    """Return the row, mapped columns under our names, its columns that have a value, and its id."""
    row = FilledRow(_renamed(row, columns) if columns else row)
    for name in turns.MAY_HOLD_TURNS & row.keys():
        row[name] = turns.parse_turns(row[name], name)
    row_id = fields.optional_text(row, fields.ID) or str(number)
    if len(row_id) > MAX_ID_CHARACTERS:
        name = fields.first_name(row, fields.ID) or "id"
        raise fields.wrong(name, row_id, f"must have at most {MAX_ID_CHARACTERS} characters")
    return row, frozenset(row), row_id


def _renamed(row: Row, columns: Mapping[str, str]) -> dict[str, Any]:
    """Return the row with mapped columns under our names, in place of columns that already have these names."""
    moved = set(columns.values())
    kept = {name: value for name, value in row.items() if name not in moved}
    return {**kept, **{field: _at_path(row, path, field) for field, path in columns.items()}}


def _at_path(row: Row, path: str, field: str) -> Any:
    """Return what a row has under a column's name, or at a path into its objects and lists."""
    if path in row:
        return row[path]
    value: Any = row
    for step in path.split("."):
        if isinstance(value, str):
            value = fields.parse_json(value, field)
        if isinstance(value, Mapping) and step in value:
            value = value[step]
        elif isinstance(value, list) and step.isdecimal() and int(step) < len(value):
            value = value[int(step)]
        else:
            there = list(value) if isinstance(value, Mapping) else fields.type_name(value)
            shown = ", ".join(map(repr, there[:12])) if isinstance(there, list) else there
            where = "the row" if value is row else "what it is a part of"
            raise RowError(field, f"{field}: columns maps it to {path!r}; {where} has {shown or 'none'}"[:300])
    return value
