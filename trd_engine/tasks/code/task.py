"""Task `code`: the program in the completion must pass the problem's tests, run in the sandbox.

Off unless the operator sets TRD_ENABLE_CODE_TASKS=1: a completion's program counts as hostile,
and a sandbox is no reason to run one without need.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from trd_data.templates import CODE
from trd_engine.runtime.errors import SpecError
from trd_engine.tasks.code.answers import complete_program, extract_program, same_output, same_value
from trd_engine.tasks.protocol import Pair
from trd_engine.tasks.sandbox.confinement import Confinement
from trd_engine.tasks.sandbox.limits import Limits
from trd_engine.tasks.sandbox.runner import CaseResult, SandboxError, find_confinement, run_program
from trd_engine.tasks.verifier_pool.pool import TIME_OUT
from trd_engine.types import Problem, Verdict

ENABLING_VARIABLE = "TRD_ENABLE_CODE_TASKS"
_MAX_WORKERS = 4
_MAX_PROGRAM_CHARACTERS = 100_000
_MAX_SHOWN_CHARACTERS = 200


def load_code_task() -> CodeTask:
    """Return the task; raise SpecError unless the operator allows it and this machine can confine programs."""
    if os.environ.get(ENABLING_VARIABLE, "").strip() != "1":
        raise SpecError(
            "task: code runs programs that models write, and is disabled on this machine; "
            f"its operator can enable it with {ENABLING_VARIABLE}=1"
        )
    return CodeTask(find_confinement())


class CodeTask:
    """Runs tests by standard input and output, by value, by assert statements or by `check(candidate)`."""

    name = "code"
    prompts = CODE

    def __init__(self, confinement: Confinement, limits: Limits | None = None) -> None:
        self._confinement = confinement
        self._limits = limits or Limits()

    def verify(self, problem: Problem, completion_text: str) -> Verdict:
        """Correct if every test passes; the detail names the first that fails."""
        tests = problem.extra["tests"]
        program = extract_program(completion_text)
        if not program:
            return Verdict(False, "no program")
        if len(program) > _MAX_PROGRAM_CHARACTERS:
            return Verdict(False, "program too long")
        try:
            return self._run(complete_program(program, tests), tests)
        except (SandboxError, OSError) as error:  # OSError: this machine has no process or no room left for one
            return Verdict(False, f"error: {error}", "error")

    def verify_many(self, pairs: Sequence[Pair]) -> list[Verdict]:
        """Return verdicts in order, a few programs at a time."""
        if not pairs:
            return []
        with ThreadPoolExecutor(min(_MAX_WORKERS, os.cpu_count() or 1, len(pairs))) as threads:
            return list(threads.map(lambda pair: self.verify(*pair), pairs))

    def _run(self, program: str, tests: Mapping[str, Any]) -> Verdict:
        cases = make_cases(tests)
        results = run_program(program, cases, self._limits, self._confinement)
        for number, result in enumerate(results, start=1):
            failure = _failure(tests, number - 1, result)
            if failure is not None:
                ended = TIME_OUT if result.status == TIME_OUT else None
                return Verdict(False, f"test {number} of {len(cases)}: {failure}", ended)
        if len(results) < len(cases):
            detail = f"test {len(results) + 1} of {len(cases)}: error: the sandbox ended early"
            return Verdict(False, detail, "error")
        if not cases:
            return Verdict(False, "no tests")
        return Verdict(True, f"passed {len(cases)} tests")


def make_cases(tests: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Return what the sandbox runs for a problem's tests; expected outputs stay here."""
    if tests["kind"] == "stdio":
        return [{"stdin": given} for given in tests["inputs"]]
    if tests["kind"] == "call":
        return [{"entry_point": tests["entry_point"], "arguments": given} for given in tests["inputs"]]
    if tests["kind"] == "check":
        return [{"test": f"{tests['test']}\n\ncheck({tests['entry_point']})\n"}]
    setup = tests.get("setup", "")
    return [{"test": f"{setup}\n{each}\n"} for each in tests["asserts"]]


def _failure(tests: Mapping[str, Any], place: int, result: CaseResult) -> str | None:
    """Return why a test failed; None if it passed."""
    if result.status != "ok":
        return _shown(f"{result.status} {result.error}".strip())
    if tests["kind"] == "stdio":
        expected = tests["outputs"][place]
        return None if same_output(expected, result.output) else _shown(f"wrong output {result.output!r}")
    if tests["kind"] == "call":
        expected = tests["outputs"][place]
        return None if same_value(expected, result.output) else _shown(f"wrong value {result.output}")
    # A program that ends its process early exits with 0, but never gets to the test's last line.
    return None if result.passed else "the tests did not run to their end"


def _shown(text: str) -> str:
    return text if len(text) <= _MAX_SHOWN_CHARACTERS else text[:_MAX_SHOWN_CHARACTERS] + "…"
