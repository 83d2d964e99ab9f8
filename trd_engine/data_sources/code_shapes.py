"""Rows of a programming problem and its tests: TACO, HumanEval(+), MBPP(+).

`Problem.extra["tests"]` is what the task `code` runs:
- {"kind": "stdio", "inputs": [...], "outputs": [...]}: a program, by standard input and output;
- {"kind": "call", "entry_point", "inputs": [[...], ...], "outputs": [...]}: a function, by its value;
- {"kind": "assert", "setup", "asserts": [...]}: statements run after the program;
- {"kind": "check", "entry_point", "preamble", "test"}: a script that defines `check(candidate)`.
"""

from __future__ import annotations

from typing import Any

from trd_engine.data_sources import fields
from trd_engine.data_sources.fields import Row, RowError
from trd_engine.types import Problem

_PYTHON_FENCE = "```python\n{}\n```"


def from_taco_row(row: Row, row_id: str, task: str) -> Problem:
    """A row of (question, solutions, starter_code, input_output), also in APPS' form."""
    question = fields.text(row, "problem", fields.PROBLEM)
    starter = fields.optional_text(row, ("starter_code",))
    tests = _taco_tests(fields.parse_json(row["input_output"], "input_output"))
    if starter:
        question = f"{question}\n\nBegin with this code:\n{_PYTHON_FENCE.format(starter.rstrip())}"
    solutions = fields.as_texts(row["solutions"], "solutions") if row.get("solutions") else []
    solution = _PYTHON_FENCE.format(solutions[0].strip()) if solutions else fields.optional_text(row, fields.SOLUTION)
    return Problem(row_id, question, "", solution, {"tests": tests, "starter_code": starter or ""})


def from_humaneval_row(row: Row, row_id: str, task: str) -> Problem:
    """A row of (prompt, entry_point, test, canonical_solution)."""
    prompt = fields.text(row, "problem", ("prompt",))
    body = fields.optional_text(row, ("canonical_solution",))
    tests = {
        "kind": "check",
        "entry_point": fields.text(row, "entry_point", ("entry_point",)),
        "preamble": prompt,
        "test": fields.text(row, "test", ("test",)),
    }
    question = f"Complete this function:\n{_PYTHON_FENCE.format(prompt.rstrip())}"
    solution = _PYTHON_FENCE.format((prompt + body).strip()) if body else None
    return Problem(row_id, question, "", solution, {"tests": tests})


def from_mbpp_row(row: Row, row_id: str, task: str) -> Problem:
    """A row of (text or prompt, code, test_list); MBPP+ brings a whole test script besides."""
    asserts = fields.as_texts(row["test_list"], "test_list")
    if not asserts:
        raise RowError("field 'test_list' is empty")
    setup = fields.optional_text(row, ("test_setup_code",)) or ""
    if row.get("test_imports"):
        setup = "\n".join([*fields.as_texts(row["test_imports"], "test_imports"), setup])
    whole_script = fields.optional_text(row, ("test",))
    tests = {"kind": "assert", "setup": setup, "asserts": [whole_script] if whole_script else asserts}
    question = fields.text(row, "problem", ("text", "prompt", "problem"))
    # The first assert is shown: without it nobody can know the function's name and arguments.
    question = f"{question}\n\nYour code must pass this test:\n{_PYTHON_FENCE.format(asserts[0].strip())}"
    code = fields.optional_text(row, ("code",))
    return Problem(row_id, question, "", _PYTHON_FENCE.format(code.strip()) if code else None, {"tests": tests})


def from_tested_row(row: Row, row_id: str, task: str) -> Problem:
    """A row of (problem, tests), the tests in the form of this module."""
    tests = fields.parse_json(row["tests"], "tests")
    kinds = {
        "stdio": {"inputs", "outputs"},
        "call": {"entry_point", "inputs", "outputs"},
        "assert": {"asserts"},
        "check": {"entry_point", "test"},
    }
    kind = tests.get("kind") if isinstance(tests, dict) else None
    if kind not in kinds:
        raise RowError(f"field 'tests' must be an object whose kind is one of {', '.join(kinds)}, not {kind!r}")
    if lacking := kinds[kind] - tests.keys():
        raise RowError(f"field 'tests' of kind {kind} lacks {', '.join(sorted(lacking))}")
    problem = fields.text(row, "problem", fields.PROBLEM)
    return Problem(row_id, problem, "", fields.optional_text(row, fields.SOLUTION), {"tests": tests})


def _taco_tests(given: Any) -> dict[str, Any]:
    if not isinstance(given, dict) or not {"inputs", "outputs"} <= given.keys():
        raise RowError("field 'input_output' must have inputs and outputs")
    inputs, outputs = given["inputs"], given["outputs"]
    if not isinstance(inputs, list) or not isinstance(outputs, list) or len(inputs) != len(outputs):
        raise RowError("field 'input_output' must have as many outputs as inputs")
    if not inputs:
        raise RowError("field 'input_output' has no tests")
    if given.get("fn_name"):
        return {"kind": "call", "entry_point": str(given["fn_name"]), "inputs": inputs, "outputs": outputs}
    return {"kind": "stdio", "inputs": list(map(_stream, inputs)), "outputs": list(map(_stream, outputs))}


def _stream(given: Any) -> str:
    """Standard input or output, which some rows keep as a list of lines."""
    return "\n".join(map(str, given)) if isinstance(given, list) else str(given)
