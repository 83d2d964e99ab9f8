"""Files and functions stay small enough to be read at once."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from functools import cache
from pathlib import Path

CHECKOUT = Path(__file__).parents[2]
PACKAGES = (
    *("client", "contract", "service", "worker", "trd_data", "trd_estimate", "trd_engine"),
    *("migrations", "testbed", "examples", "benchmarks"),
)
MAX_FILE_LINES = 400
MAX_SESSION_LINES = 250
"""The session holds the stages of a run; what a stage does belongs into the stage's room."""
MAX_FUNCTION_LINES = 60
MAX_PARAMETERS = 7

Function = ast.FunctionDef | ast.AsyncFunctionDef


def sources() -> Iterator[Path]:
    for package in PACKAGES:
        yield from sorted((CHECKOUT / package).rglob("*.py"))


@cache
def functions() -> list[tuple[Path, Function]]:
    """Return all functions and their files."""
    nodes = ((path, node) for path in sources() for node in ast.walk(ast.parse(path.read_text())))
    return [(path, node) for path, node in nodes if isinstance(node, Function)]


def num_parameters(function: Function) -> int:
    """Count the parameters that a call may give without naming them; keyword-only ones explain themselves."""
    named = [*function.args.posonlyargs, *function.args.args]
    return len([argument for argument in named if argument.arg not in ("self", "cls")])


def test_files_can_be_read_at_once() -> None:
    long = {
        str(path.relative_to(CHECKOUT)): n
        for path in sources()
        if (n := len(path.read_text().splitlines())) > MAX_FILE_LINES
    }
    assert long == {}


def test_the_session_leaves_the_work_to_the_rooms() -> None:
    session = CHECKOUT / "trd_engine" / "training" / "session.py"
    assert len(session.read_text().splitlines()) <= MAX_SESSION_LINES


def test_functions_fit_on_a_screen() -> None:
    long = {
        f"{path.relative_to(CHECKOUT)}:{function.lineno} {function.name}": lines
        for path, function in functions()
        if (lines := (function.end_lineno or 0) - function.lineno + 1) > MAX_FUNCTION_LINES
    }
    assert long == {}


def is_kernel(function: Function) -> bool:
    """Return whether it is a Triton kernel, which takes its pointers and constants one by one and is launched by
    keywords."""
    return any(ast.unparse(decorator) == "triton.jit" for decorator in function.decorator_list)


def test_calls_give_few_arguments_by_position() -> None:
    many = {
        f"{path.relative_to(CHECKOUT)}:{function.lineno} {function.name}": count
        for path, function in functions()
        if (count := num_parameters(function)) > MAX_PARAMETERS and not is_kernel(function)
    }
    assert many == {}
