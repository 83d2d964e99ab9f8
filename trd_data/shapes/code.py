"""Rows of a programming problem and its tests: TACO, HumanEval and MBPP.

`Problem.extra["tests"]` is what the task `code` runs:
- {"kind": "stdio", "inputs": [...], "outputs": [...]}: a program, by standard input and output;
- {"kind": "call", "entry_point", "inputs": [[...], ...], "outputs": [...]}: a function, by its return value;
- {"kind": "assert", "setup", "asserts": [...]}: statements run after the program;
- {"kind": "check", "entry_point", "preamble", "test"}: a script that defines `check(candidate)`.
"""

from __future__ import annotations

from typing import Any

from trd_data.problems import Problem
from trd_data.shapes import fields
from trd_data.shapes.fields import Row, type_name, wrong

_NEEDED: dict[str, dict[str, type]] = {
    "stdio": {"inputs": list, "outputs": list},
    "call": {"entry_point": str, "inputs": list, "outputs": list},
    "assert": {"asserts": list},
    "check": {"entry_point": str, "test": str},
}
_OF_SOME_KINDS = ("inputs", "setup", "preamble")
"""Read wherever they are present, so that a null in one is removed."""
_PYTHON_FENCE = "```python\n{}\n```"


def from_taco_row(row: Row, row_id: str, task: str) -> Problem:
    """Read a row of (question, solutions, starter_code, input_output), also in the form of APPS."""
    question = fields.problem_text(row)
    starter = fields.optional_text(row, ("starter_code",))
    tests = tests_of_cases(fields.parse_json(row["input_output"], "input_output"), "input_output")
    if starter:
        question = f"{question}\n\nBegin with this code:\n{_PYTHON_FENCE.format(starter.rstrip())}"
    solutions = fields.as_texts(row["solutions"], "solutions") if row.get("solutions") else []
    solution = _PYTHON_FENCE.format(solutions[0].strip()) if solutions else fields.optional_text(row, fields.SOLUTION)
    return Problem(row_id, question, "", solution, {"tests": tests, "starter_code": starter or ""})


def from_humaneval_row(row: Row, row_id: str, task: str) -> Problem:
    """Read a row of (prompt, entry_point, test, canonical_solution)."""
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
    """Read a row of (text or prompt, code, test_list); MBPP+ also has a whole test script."""
    asserts = fields.as_texts(row["test_list"], "test_list")
    if not asserts:
        raise wrong("test_list", asserts, "must not be empty")
    setup = fields.optional_text(row, ("test_setup_code",)) or ""
    if row.get("test_imports"):
        setup = "\n".join([*fields.as_texts(row["test_imports"], "test_imports"), setup])
    whole_script = fields.optional_text(row, ("test",))
    tests = {"kind": "assert", "setup": setup, "asserts": [whole_script] if whole_script else asserts}
    question = fields.text(row, "problem", ("text", "prompt", "problem"))
    # The first assert is shown because only it gives the function's name and arguments.
    question = f"{question}\n\nYour code must pass this test:\n{_PYTHON_FENCE.format(asserts[0].strip())}"
    code = fields.optional_text(row, ("code",))
    return Problem(row_id, question, "", _PYTHON_FENCE.format(code.strip()) if code else None, {"tests": tests})


def from_tested_row(row: Row, row_id: str, task: str) -> Problem:
    """Read a row of (problem, tests), the tests in the form of this module."""
    tests = fields.parse_json(row["tests"], "tests")
    if not isinstance(tests, dict):
        raise wrong("tests", tests, f"must be an object, not {type_name(tests)}")
    # Parquet gives every row the keys of all kinds, and null for those that the row's kind lacks.
    tests = {name: value for name, value in tests.items() if value is not None or name not in _OF_SOME_KINDS}
    kind = tests.get("kind")
    if not isinstance(kind, str) or kind not in _NEEDED:
        raise wrong("tests", tests, f"must have a kind, one of {', '.join(_NEEDED)}")
    for name, kind_of_value in _NEEDED[kind].items():
        if not isinstance(tests.get(name), kind_of_value):
            raise wrong("tests", tests, f"kind {kind} needs {name!r}, {type_name(kind_of_value())}")
    for name in ("setup", "preamble"):
        if not isinstance(tests.get(name, ""), str):
            raise wrong("tests", tests, f"{name} must be a string, not {type_name(tests[name])}")
    if kind == "assert" and not (tests["asserts"] and all(isinstance(each, str) for each in tests["asserts"])):
        raise wrong("tests", tests, "kind assert needs 'asserts', a list of one or more statements")
    if "inputs" in tests:
        tests = {**tests, **_input_output(tests, "tests", kind)}
    problem = fields.problem_text(row)
    return Problem(row_id, problem, "", fields.optional_text(row, fields.SOLUTION), {"tests": tests})


def tests_of_cases(given: Any, field: str) -> dict[str, Any]:
    """Return the tests that TACO and APPS write as inputs, outputs and, for a function, fn_name."""
    if not isinstance(given, dict):
        raise wrong(field, given, f"must be an object, not {type_name(given)}")
    if given.get("fn_name"):
        return {"kind": "call", "entry_point": str(given["fn_name"]), **_input_output(given, field, "call")}
    return {"kind": "stdio", **_input_output(given, field, "stdio")}


def _input_output(given: dict[str, Any], field: str, kind: str) -> dict[str, list[Any]]:
    """Return inputs and outputs, equal in number, in the form that the task runs."""
    inputs, outputs = given.get("inputs"), given.get("outputs")
    if not isinstance(inputs, list) or not isinstance(outputs, list):
        raise wrong(field, given, "must have lists as inputs and outputs")
    if not inputs or len(inputs) != len(outputs):
        raise wrong(field, given, "must have as many outputs as inputs, and at least one")
    if kind == "call":
        return {"inputs": [_arguments(each, field) for each in inputs], "outputs": outputs}
    return {"inputs": list(map(_stream, inputs)), "outputs": list(map(_stream, outputs))}


def _arguments(given: Any, field: str) -> list[Any]:
    """Return the arguments of a call, which some rows keep as one JSON value per line."""
    if isinstance(given, str):
        return [fields.parse_json(line, field) for line in given.splitlines() if line.strip()]
    return given if isinstance(given, list) else [given]


def _stream(given: Any) -> str:
    """Return standard input or output, which some rows keep as a list of lines."""
    return "\n".join(map(str, given)) if isinstance(given, list) else str(given)
