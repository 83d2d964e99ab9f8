"""The shapes that rows come in, and what each must hold.

The engine reads the same shapes (`trd_engine.data`), and a test holds the two together: what is
accepted here trains there. A row is plain (problem, answer, solution, under the usual names), a chat
(``messages``), a choice (``choices`` or ``options``), or a programming problem with tests.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

Row = dict[str, Any]

PROBLEM = ("problem", "question", "prompt", "Problem", "Question", "query", "instruction", "input")
ANSWER = ("answer", "Answer", "final_answer", "expected_answer", "answerKey", "ground_truth", "target")
SOLUTION = ("solution", "Solution", "reference_solution", "rationale", "reasoning")
ID = ("id", "ID", "problem_id", "question_id", "unique_id", "task_id", "problem_idx", "uid")

MAX_ID_CHARACTERS = 100
"""What the trajectories' table holds."""
MAX_CHOICES = 26

_ENDS_IN_AN_ANSWER = re.compile(r"####|\\boxed\s*{|\\fbox\s*{")


@dataclass(frozen=True)
class FieldProblem:
    """One thing that is wrong with a row."""

    field: str | None
    """None: the row as a whole."""
    message: str


@dataclass(frozen=True)
class RowFindings:
    """What a row holds."""

    problems: list[FieldProblem]
    has_solution: bool
    row_id: str | None


def inspect_row(row: Row) -> RowFindings:
    """What is wrong with the row, and what of it matters later."""
    shape = _shape(row)
    row_id, id_problems = _row_id(row)
    return RowFindings([*shape.check(row), *id_problems], shape.has_solution(row), row_id)


@dataclass(frozen=True)
class _Shape:
    check: Callable[[Row], Iterator[FieldProblem]]
    has_solution: Callable[[Row], bool]


def _shape(row: Row) -> _Shape:
    there = {name for name, value in row.items() if value is not None}
    for columns, shape in _BY_COLUMNS:
        if columns <= there:
            return shape
    return _PLAIN


def is_programming(row: Row) -> bool:
    """True for a problem that is judged by tests."""
    return _shape(row) is _CODE


def _row_id(row: Row) -> tuple[str | None, list[FieldProblem]]:
    name = _first_name(row, ID)
    if name is None:
        return None, []
    value = row[name]
    if isinstance(value, bool) or not isinstance(value, str | int):
        return None, [_wrong(name, value, f"must be a string or an integer, not {type_name(value)}")]
    if not str(value).strip():
        return None, []  # as the engine takes it: a blank id is none
    if len(str(value)) > MAX_ID_CHARACTERS:
        return None, [_wrong(name, value, f"must have at most {MAX_ID_CHARACTERS} characters")]
    return str(value), []


def _check_plain(row: Row) -> Iterator[FieldProblem]:
    yield from _text(row, "problem", PROBLEM, numbers=False)
    solution = _first_name(row, SOLUTION)
    if solution is not None and not isinstance(row[solution], str):
        yield _wrong(solution, row[solution], f"must be a string, not {type_name(row[solution])}")
    answer = _first_name(row, ANSWER)
    if answer is not None and _is_blank(row[answer]):
        answer = None if _solution_ends_in_an_answer(row) else answer
    if answer is not None or not _solution_ends_in_an_answer(row):
        yield from _text(row, "answer", ANSWER, numbers=True)


def _solution_ends_in_an_answer(row: Row) -> bool:
    name = _first_name(row, SOLUTION)
    return name is not None and _is_text(row[name]) and _ENDS_IN_AN_ANSWER.search(row[name]) is not None


def _has_plain_solution(row: Row) -> bool:
    answer = _first_name(row, ANSWER)
    is_gsm8k = answer is not None and isinstance(row[answer], str) and "####" in row[answer]
    return is_gsm8k or _has_text(row, SOLUTION)


def _check_choice(row: Row) -> Iterator[FieldProblem]:
    yield from _text(row, "problem", PROBLEM, numbers=False)
    yield from _text(row, "answer", ANSWER, numbers=True)
    name = "choices" if row.get("choices") is not None else "options"
    options = from_json(row[name])
    num_options = _num_options(options)
    if num_options is None:
        yield _wrong(name, row[name], f"must be a list or an object, not {type_name(row[name])}")
    elif not 2 <= num_options <= MAX_CHOICES:
        yield FieldProblem(name, f"{name}: must have 2 to {MAX_CHOICES} options, not {num_options}")
    elif not _has_a_label_each(options):
        yield FieldProblem(name, f"{name}: label and text must be lists of the same length")


def _num_options(options: Any) -> int | None:
    if isinstance(options, dict) and isinstance(options.get("text"), list):
        return len(options["text"])
    return len(options) if isinstance(options, list | dict) else None


def _has_a_label_each(options: Any) -> bool:
    if not isinstance(options, dict) or not {"label", "text"} <= options.keys():
        return True
    labels, texts = options["label"], options["text"]
    return isinstance(labels, list) and isinstance(texts, list) and len(labels) == len(texts)


def _check_chat(row: Row) -> Iterator[FieldProblem]:
    turns = row["messages"]
    if not isinstance(turns, list) or not all(isinstance(turn, dict) for turn in turns):
        yield _wrong("messages", turns, "must be a list of objects with role and content")
        return
    roles = [turn.get("role") for turn in turns if turn.get("role") not in ("system", "developer")]
    if roles not in (["user"], ["user", "assistant"]):
        yield FieldProblem("messages", f"messages: must be one user turn and one assistant turn, not {roles}"[:300])
        return
    contents = {turn["role"]: _content(turn.get("content")) for turn in turns}
    if None in contents.values():
        yield FieldProblem("messages", "messages: a turn's content must be text")
    elif not contents["user"].strip():  # type: ignore[union-attr]
        yield FieldProblem("messages", "messages: the user's turn must not be empty")
    elif not _has_text(row, ANSWER) and not (contents.get("assistant") or "").strip():
        yield FieldProblem("answer", "answer: this field is required where the assistant says nothing")


def _content(content: Any) -> str | None:
    """A turn's text, whole or in typed parts."""
    if isinstance(content, list):
        parts = [part.get("text") if isinstance(part, dict) else None for part in content]
        return "".join(map(str, parts)) if all(isinstance(part, str) for part in parts) else None
    return content if isinstance(content, str) else None


def _chat_has_solution(row: Row) -> bool:
    turns = row["messages"] if isinstance(row["messages"], list) else []
    said = [turn.get("content") for turn in turns if isinstance(turn, dict) and turn.get("role") == "assistant"]
    return any((_content(content) or "").strip() for content in said)


_TESTS: dict[str, type] = {
    "tests": dict,
    "input_output": dict,
    "test_list": list,
    "base_input": list,
    "plus_input": list,
    "public_test_cases": list,
}
"""Columns of a programming problem's tests, and what each holds."""


def _check_code(row: Row) -> Iterator[FieldProblem]:
    extra = {"test_list": "text", "public_test_cases": "question_content"}
    names = (*PROBLEM, *(name for column, name in extra.items() if column in row))
    yield from _text(row, "problem", names, numbers=False)
    for name, wanted in _TESTS.items():
        value = from_json(row.get(name))
        if value is not None and not isinstance(value, wanted):
            yield _wrong(name, row[name], f"must be {type_name(wanted())}, not {type_name(value)}")
        elif name not in ("input_output", "plus_input", "public_test_cases") and value is not None and not value:
            yield _wrong(name, row[name], "must not be empty")


def _code_has_solution(row: Row) -> bool:
    solutions = from_json(row.get("solutions"))
    has_list = isinstance(solutions, list) and bool(solutions)
    return has_list or _has_text(row, ("canonical_solution",)) or _has_text(row, ("code",)) or _has_text(row, SOLUTION)


_PLAIN = _Shape(_check_plain, _has_plain_solution)
_CODE = _Shape(_check_code, _code_has_solution)
_CHOICE = _Shape(_check_choice, lambda row: _has_text(row, SOLUTION))
_BY_COLUMNS: tuple[tuple[frozenset[str], _Shape], ...] = (
    (frozenset({"tests"}), _CODE),
    (frozenset({"input_output"}), _CODE),
    (frozenset({"public_test_cases"}), _CODE),
    (frozenset({"entry_point", "base_input"}), _CODE),
    (frozenset({"entry_point", "test"}), _CODE),
    (frozenset({"test_list"}), _CODE),
    (frozenset({"messages"}), _Shape(_check_chat, _chat_has_solution)),
    (frozenset({"choices"}), _CHOICE),
    (frozenset({"options"}), _CHOICE),
)
"""The columns that give each shape away, in the order in which they do."""


def _text(row: Row, field: str, names: Sequence[str], *, numbers: bool) -> Iterator[FieldProblem]:
    """What is wrong with a field that must be there."""
    name = _first_name(row, names)
    if name is None:
        there = ", ".join(map(str, list(row)[:10])) or "none"
        yield FieldProblem(field, f"{field}: this field is required; the row's fields: {there[:200]}")
        return
    value = row[name]
    is_number = numbers and isinstance(value, int | float) and not isinstance(value, bool)
    if not isinstance(value, str) and not is_number:
        wanted = "a string or a number" if numbers else "a string"
        yield _wrong(name, value, f"must be {wanted}, not {type_name(value)}")
    elif _is_blank(value):
        yield _wrong(name, value, "must not be empty")


def _first_name(row: Row, names: Sequence[str]) -> str | None:
    return next((name for name in names if row.get(name) is not None), None)


def _has_text(row: Row, names: Sequence[str]) -> bool:
    name = _first_name(row, names)
    return name is not None and _is_text(row[name])


def _is_text(value: object) -> bool:
    return isinstance(value, str) and not _is_blank(value)


def _is_blank(value: object) -> bool:
    return isinstance(value, str) and not value.strip()


def from_json(value: Any) -> Any:
    """The value of a field that some data keeps as JSON in a string."""
    if not isinstance(value, str):
        return value
    try:
        return json.loads(value)
    except (ValueError, RecursionError):
        return value


def _wrong(name: str, value: object, reason: str) -> FieldProblem:
    return FieldProblem(name, f"{name} = {_shown(value)}: {reason}")


def type_name(value: object) -> str:
    """What JSON calls it, for messages."""
    kinds = {dict: "an object", list: "a list", str: "a string", bool: "a boolean", type(None): "null"}
    return kinds.get(type(value), "a number" if isinstance(value, int | float) else f"a {type(value).__name__}")


def _shown(value: object) -> str:
    text = json.dumps(value, ensure_ascii=False, default=str)  # Parquet has values that JSON has not
    return text if len(text) <= 60 else text[:57] + "..."
