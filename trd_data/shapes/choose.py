"""Finds the shape of a row and reads the problem in it."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from contextlib import suppress
from typing import Any

from trd_data.answers import reference_letter
from trd_data.errors import MissingFieldError, RowError
from trd_data.plain_json import plain_json
from trd_data.problems import Problem
from trd_data.shapes import fields
from trd_data.shapes.code import from_humaneval_row, from_mbpp_row, from_taco_row, from_tested_row
from trd_data.shapes.evalplus import from_evalplus_row
from trd_data.shapes.fields import Row
from trd_data.shapes.livecodebench import from_livecodebench_row
from trd_data.shapes.plain import from_chat_row, from_choice_row, from_entry_row, from_plain_row

Shape = Callable[[Row, str, str], Problem]
"""Reads (row, id, task) and raises RowError."""

MAX_ID_CHARACTERS = 100
"""The width of the column of problem ids in the database's tables."""

_CODE_SHAPES: tuple[tuple[frozenset[str], Shape], ...] = (
    (frozenset({"tests"}), from_tested_row),
    (frozenset({"input_output"}), from_taco_row),
    (frozenset({"public_test_cases"}), from_livecodebench_row),
    (frozenset({"entry_point", "base_input"}), from_evalplus_row),
    (frozenset({"entry_point", "test"}), from_humaneval_row),
    (frozenset({"test_list"}), from_mbpp_row),
)
"""The columns by which each shape is recognised, in the order in which they are tried."""
_OWN_FIELDS = ("id", "problem", "answer", "solution", "messages", "choices", "metadata", "tests", "starter_code")
_READ_FIELDS = {
    *(*_OWN_FIELDS, *fields.PROBLEM, *fields.ANSWER, *fields.SOLUTION, *fields.ID, *fields.BENCHMARK),
    *(name for names, _ in _CODE_SHAPES for name in names),
    *("options", "generated", "solutions", "question_content", "private_test_cases", "canonical_solution"),
    *("plus_input", "atol", "contract", "test_setup_code", "test_imports", "text", "code"),
}
"""All fields that some shape reads."""


def to_problem(row: Row, number: int, task: str | None, columns: Mapping[str, str]) -> Problem:
    """Return the problem in a row; raises RowError.

    `task`: None if it is not known yet, as at an upload: the row is then read for the task that its columns suggest.
    `columns` maps the names of our fields to the row's columns.
    """
    row = _renamed(row, columns)
    row_id = fields.optional_text(row, fields.ID) or str(number)
    if len(row_id) > MAX_ID_CHARACTERS:
        name = fields.first_name(row, fields.ID) or "id"
        raise fields.wrong(name, row_id, f"must have at most {MAX_ID_CHARACTERS} characters")
    problem = _read_for_any_task(row, row_id) if task is None else _read(row, row_id, task)
    return dataclasses.replace(problem, extra=plain_json(dict(problem.extra)), benchmark=fields.benchmark_name(row))


def require_known_fields(columns: Mapping[str, str]) -> None:
    """Raise `RowError` if `columns` maps a name that no shape reads, which would have no effect."""
    unknown = [field for field in columns if field not in _READ_FIELDS]
    if unknown:
        raise RowError(
            None,
            f"columns maps {', '.join(map(repr, unknown))}, which is not one of our fields: these are "
            f"{', '.join(_OWN_FIELDS)} and the columns of known data sets; write our field, then the row's column",
        )


def _read(row: Row, row_id: str, task: str) -> Problem:
    problem = _shape(row, task)(row, row_id, task)
    if task != "choice":
        return problem
    letter = reference_letter(problem.answer)
    if letter is None:
        name = fields.first_name(row, fields.ANSWER) or "answer"
        raise fields.wrong(
            name, problem.answer, "names no option; write the right option's letter, or give the options as choices"
        )
    return dataclasses.replace(problem, answer=letter)


def _read_for_any_task(row: Row, row_id: str) -> Problem:
    task = _suggested_task(row)
    try:
        return _read(row, row_id, task)
    except RowError as error:
        # For other tasks the answer of a row with options need not name one, and that of a generator's row may be null.
        if error.field in fields.ANSWER and (fallback := {"choice": "exact", "exact": "reasoning_gym"}.get(task)):
            with suppress(RowError):
                return _read(row, row_id, fallback)
        raise


def _suggested_task(row: Row) -> str:
    there = {name for name in row if fields.has_value(row, name)}
    if any(columns <= there for columns, _ in _CODE_SHAPES):
        return "code"
    # Task exact accepts every row of a chat or of a problem and its answer that task math accepts.
    return "choice" if there & {"choices", "options"} and "messages" not in there else "exact"


def _shape(row: Row, task: str) -> Shape:
    there = {name for name in row if fields.has_value(row, name)}
    if task == "code":
        for columns, shape in _CODE_SHAPES:
            if columns <= there:
                return shape
        raise MissingFieldError(
            "tests",
            "tests: this field is required; task code needs tests, input_output (TACO), entry_point and test "
            "(HumanEval) or base_input (EvalPlus), test_list (MBPP) or public_test_cases (LiveCodeBench)",
        )
    if task == "reasoning_gym" or "generated" in there:
        return from_entry_row
    if "messages" in there:
        return from_chat_row
    if task == "choice" and there & {"choices", "options"}:
        return from_choice_row
    return from_plain_row


def _renamed(row: Row, columns: Mapping[str, str]) -> dict[str, Any]:
    """Return the row with mapped columns under our names, in place of columns that already have these names."""
    for field, column in columns.items():
        if column not in row:
            there = ", ".join(map(repr, list(row)[:12])) or "none"
            raise RowError(field, f"{field}: columns maps it to {column!r}; the row has {there}")
    moved = set(columns.values())
    kept = {name: value for name, value in row.items() if name not in moved}
    return {**kept, **{field: row[column] for field, column in columns.items()}}
