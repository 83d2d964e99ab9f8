"""Which of the known shapes a row has, and the problem it holds."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any

from trd_engine.data.shapes import fields
from trd_engine.data.shapes.code import from_humaneval_row, from_mbpp_row, from_taco_row, from_tested_row
from trd_engine.data.shapes.evalplus import from_evalplus_row
from trd_engine.data.shapes.fields import Row, RowError
from trd_engine.data.shapes.livecodebench import from_livecodebench_row
from trd_engine.data.shapes.plain import from_chat_row, from_choice_row, from_entry_row, from_plain_row
from trd_engine.runtime.plain_json import plain_json
from trd_engine.tasks.choice import reference_letter
from trd_engine.types import Problem

Shape = Callable[[Row, str, str], Problem]
"""(row, id, task) to a problem; raises RowError."""

_CODE_SHAPES: tuple[tuple[frozenset[str], Shape], ...] = (
    (frozenset({"tests"}), from_tested_row),
    (frozenset({"input_output"}), from_taco_row),
    (frozenset({"public_test_cases"}), from_livecodebench_row),
    (frozenset({"entry_point", "base_input"}), from_evalplus_row),
    (frozenset({"entry_point", "test"}), from_humaneval_row),
    (frozenset({"test_list"}), from_mbpp_row),
)
"""The columns that give each shape away."""
_OWN_FIELDS = ("id", "problem", "answer", "solution", "messages", "choices", "metadata", "tests", "starter_code")
_READ_FIELDS = {
    *_OWN_FIELDS,
    *(
        *fields.PROBLEM,
        *fields.ANSWER,
        *fields.SOLUTION,
        *fields.ID,
        *fields.BENCHMARK,
        "options",
        "generated",
        "solutions",
    ),
    *(name for names, _ in _CODE_SHAPES for name in names),
    *("question_content", "private_test_cases", "canonical_solution", "plus_input", "atol", "contract"),
    *("test_setup_code", "test_imports", "text", "code"),
}
"""All that some shape reads."""


def to_problem(row: Row, number: int, task: str, columns: Mapping[str, str]) -> Problem:
    """The problem in a row; raises RowError. `columns` maps our field's name to the row's column."""
    row = _renamed(row, columns)
    row_id = fields.optional_text(row, fields.ID) or str(number)
    problem = _shape(row, task)(row, row_id, task)
    if task == "choice":
        problem = dataclasses.replace(problem, answer=_named_letter(problem.answer))
    return dataclasses.replace(problem, extra=plain_json(dict(problem.extra)), benchmark=fields.benchmark_name(row))


def require_known_fields(columns: Mapping[str, str]) -> None:
    """Raise `RowError` where `columns` maps a name that no shape reads, which would do nothing."""
    unknown = [field for field in columns if field not in _READ_FIELDS]
    if unknown:
        raise RowError(
            f"columns maps {', '.join(map(repr, unknown))}, which is no field of ours; there are "
            f"{', '.join(_OWN_FIELDS)} and the columns of known data sets; write our field first, then the row's column"
        )


def _shape(row: Row, task: str) -> Shape:
    there = {name for name, value in row.items() if value is not None}
    if task == "code":
        for columns, shape in _CODE_SHAPES:
            if columns <= there:
                return shape
        raise RowError(
            "field 'tests' is missing; task code needs tests, input_output (TACO), "
            "entry_point and test (HumanEval) or base_input (EvalPlus), test_list (MBPP) or public_test_cases "
            "(LiveCodeBench)"
        )
    if task == "reasoning_gym" or "generated" in there:
        return from_entry_row
    if "messages" in there:
        return from_chat_row
    if task == "choice" and there & {"choices", "options"}:
        return from_choice_row
    return from_plain_row


def _named_letter(answer: str) -> str:
    letter = reference_letter(answer)
    if letter is None:
        raise RowError(
            f"field 'answer' is {answer!r:.80}, which names no option; write the right one's letter, as in 'B', "
            "or give the options in a field 'choices'"
        )
    return letter


def _renamed(row: Row, columns: Mapping[str, str]) -> dict[str, Any]:
    """The row with mapped columns under our names, which take the place of columns so called."""
    for field, column in columns.items():
        if column not in row:
            there = ", ".join(map(repr, list(row)[:12])) or "none"
            raise RowError(f"field {field!r} is missing; columns maps it to {column!r}, the row has {there}")
    moved = set(columns.values())
    kept = {name: value for name, value in row.items() if name not in moved}
    return {**kept, **{field: row[column] for field, column in columns.items()}}
