"""Task code: programs out of completions, against every kind of test."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from tests.trd_engine.rows import HUMANEVAL, MBPP, MBPP_PLUS, TACO_CALL, TACO_STDIO, load_rows
from trd_engine.runtime.errors import SpecError
from trd_engine.tasks.code.answers import extract_program, same_output, same_value
from trd_engine.tasks.code.task import CodeTask
from trd_engine.tasks.registry import load_task
from trd_engine.tasks.sandbox.limits import Limits
from trd_engine.tasks.sandbox.runner import find_confinement
from trd_engine.types import Problem, Verdict


@pytest.fixture(scope="module")
def task() -> CodeTask:
    return CodeTask(find_confinement(), Limits(wall_seconds=3.0))


def problem(kind: str, **tests: Any) -> Problem:
    return Problem("1", "?", "", extra={"tests": {"kind": kind, **tests}})


def fenced(program: str) -> str:
    return f"First, some thoughts.\n```python\n{program}\n```\nThat is all."


ADDING = problem("stdio", inputs=["1 2\n", "3 4\n"], outputs=["3\n", "7\n"])


def test_code_tasks_are_off_until_the_operator_turns_them_on(monkeypatch: pytest.MonkeyPatch) -> None:
    for value in (None, "0", "yes"):
        if value is not None:
            monkeypatch.setenv("TRD_ENABLE_CODE_TASKS", value)
        with pytest.raises(SpecError, match="its operator can enable it with TRD_ENABLE_CODE_TASKS=1"):
            load_task("code")
    monkeypatch.setenv("TRD_ENABLE_CODE_TASKS", "1")
    assert load_task("code").verify(ADDING, fenced("print(sum(map(int, input().split())))")).correct


@pytest.mark.parametrize("row", [TACO_STDIO, TACO_CALL, HUMANEVAL, MBPP, MBPP_PLUS])
def test_reference_solution_of_every_shape_passes_and_a_wrong_one_fails(
    task: CodeTask, row: dict[str, Any], tmp_path: Path
) -> None:
    [loaded] = load_rows(tmp_path, row, task="code")
    assert loaded.solution is not None
    assert task.verify(loaded, loaded.solution).correct
    wrong = loaded.solution.replace("a + b", "a - b")
    assert wrong != loaded.solution
    verdict = task.verify(loaded, wrong)
    assert not verdict.correct
    assert verdict.detail.startswith("test 1 of ")


@pytest.mark.parametrize(
    ("program", "verdict"),
    [
        ("a, b = map(int, input().split())\nprint(a + b)", Verdict(True, "passed 2 tests")),
        ("print(3)", Verdict(False, "test 2 of 2: wrong output '3\\n'")),
        ("print(1 / 0)", Verdict(False, "test 1 of 2: exit code 70 ZeroDivisionError: division by zero")),
        ("print(3", Verdict(False, "test 1 of 2: exit code 70 SyntaxError: '(' was never closed")),
        ("import sys\nprint(3)\nsys.exit(2)", Verdict(False, "test 1 of 2: exit code 2")),
        ("while True: pass", Verdict(False, "test 1 of 2: time-out", "time-out")),
    ],
)
def test_detail_says_what_went_wrong(task: CodeTask, program: str, verdict: Verdict) -> None:
    assert task.verify(ADDING, fenced(program)) == verdict


def test_program_that_ends_well_by_sys_exit_passes(task: CodeTask) -> None:
    assert task.verify(ADDING, fenced("import sys\nprint(sum(map(int, input().split())))\nsys.exit()")).correct


@pytest.mark.parametrize(
    "cheat",
    [
        "import os\nos._exit(0)",
        "import sys\nsys.exit(0)",
        "raise SystemExit",
        "def add(a, b):\n    import os\n    os._exit(0)",
        "def add(a, b):\n    raise SystemExit(0)",
        "import os\nos.write(3, b'passed' * 10)\nos.close(3)\ndef add(a, b): return 0",
        "import builtins\nbuiltins.AssertionError = SystemExit\ndef add(a, b): return 0",
        "print('passed')\ndef add(a, b): return 0",
        "import threading, os\ndef add(a, b): return 0\nos.kill(os.getppid(), 9)",
        "",
    ],
)
def test_tests_cannot_be_left_early(task: CodeTask, cheat: str, tmp_path: Path) -> None:
    for loaded in load_rows(tmp_path, HUMANEVAL, MBPP, task="code"):
        assert not task.verify(loaded, fenced(cheat)).correct


def test_humaneval_completion_may_be_the_bare_body(task: CodeTask, tmp_path: Path) -> None:
    [loaded] = load_rows(tmp_path, HUMANEVAL, task="code")
    assert task.verify(loaded, "```python\n    return a + b\n```").correct


def test_humaneval_prompt_brings_its_imports_and_helpers(task: CodeTask, tmp_path: Path) -> None:
    prompt = (
        'from typing import List\n\ndef twice(x):\n    return 2 * x\n\ndef add(a: int) -> List:\n    """Twice."""\n'
    )
    row = {**HUMANEVAL, "prompt": prompt, "test": "def check(candidate):\n    assert candidate(2) == [4]"}
    [loaded] = load_rows(tmp_path, row, task="code")
    assert task.verify(loaded, fenced("def add(a: int) -> List:\n    return [twice(a)]")).correct


@pytest.mark.parametrize(
    ("preamble", "program"),
    [
        (
            'import math\n\ndef f(x):\n    """Same."""\n',
            "from __future__ import annotations\n\ndef f(x: T) -> T:\n    return x",
        ),
        (
            'def f(x):\n    """Same."""\n',
            "# First\nfrom __future__ import (\n    annotations,\n)\ndef f(x):\n    return x",
        ),
        (
            '"""Doc."""\nfrom __future__ import annotations\ndef f(x):\n    """Same."""\n',
            "from __future__ import division\ndef f(x): return x",
        ),
        ('"""Doc."""\nfrom __future__ import annotations\ndef f(x: T):\n', "    return x"),
    ],
)
def test_programs_may_import_from_the_future(task: CodeTask, preamble: str, program: str) -> None:
    tests = {"entry_point": "f", "preamble": preamble, "test": "def check(f):\n    assert f(1) == 1"}
    assert task.verify(problem("check", **tests), fenced(program)) == Verdict(True, "passed 1 tests")


def test_long_integers_are_printed_returned_and_compared(task: CodeTask, tmp_path: Path) -> None:
    number, next_number = "1" + "0" * 4999 + "1", "1" + "0" * 4999 + "2"
    printing = problem("stdio", inputs=["5000\n"], outputs=[f"{number}\n"])
    assert task.verify(printing, fenced("print(10 ** int(input()) + 1)")).correct
    calls = f'"inputs": [[{number}]], "outputs": [{next_number}]'
    taco = {**TACO_CALL, "input_output": f'{{"fn_name": "f", {calls}}}'}
    own = f'{{"problem": "?", "tests": {{"kind": "call", "entry_point": "f", {calls}}}}}'
    for calling in load_rows(tmp_path, taco, own, task="code"):
        assert task.verify(calling, fenced("def f(x):\n    return x + 1")).correct
        assert not task.verify(calling, fenced("def f(x):\n    return x + 2")).correct
    assert "Exceeds the limit (50000 digits)" in task.verify(printing, fenced("print(10 ** 50000)")).detail


def test_values_are_compared_as_values(task: CodeTask) -> None:
    calls = problem("call", entry_point="f", inputs=[[2], [3]], outputs=[[[0, 1], 0.5], [[0, 1, 2], 0.3333333]])
    program = "def f(n):\n    return tuple([range(n), 1 / n])"
    assert task.verify(calls, fenced(program)) == Verdict(True, "passed 2 tests")
    assert task.verify(calls, fenced("def g(n): pass")).detail.endswith("NameError: the program defines no f")
    assert "Circular" in task.verify(calls, fenced("def f(n):\n    x = []\n    x.append(x)\n    return x")).detail


def test_many_programs_are_verified_side_by_side_and_in_order(task: CodeTask) -> None:
    right, wrong = fenced("print(sum(map(int, input().split())))"), fenced("print(0)")
    verdicts = task.verify_many([(ADDING, text) for text in (right, wrong, right, "")])
    assert [verdict.correct for verdict in verdicts] == [True, False, True, False]
    assert task.verify_many([]) == []


@pytest.mark.parametrize(
    ("text", "program"),
    [
        ("```python\na\n```\nor\n```py\nb\nc\n```", "b\nc"),
        ("```\na\n```", "a"),
        ("```python\na\n```\nRun it:\n```bash\npython a.py\n```", "a"),
        ("```python\na\n```\nSample output:\n```\n5\n```", "a"),
        ("```\n5\n```\nis wanted:\n```Python\na\n```", "a"),
        ("```\na\n```\nbetter:\n```\nb\n```", "b"),
        ("    ```python\n    a\n    ```", "a"),
        ("print(1)", "print(1)"),
        ("```python\nprint(1)", ""),
        ("```cpp\nint main() {}\n```", ""),
        ("", ""),
    ],
)
def test_program_is_the_last_python_block(text: str, program: str) -> None:
    assert extract_program(text) == program


@pytest.mark.parametrize(
    ("expected", "printed", "same"),
    [
        ("3\n", "3", True),
        ("1 2\n3\n", "1  2 \n\n3", True),
        ("0.333333", "0.33333333333", True),
        ("0.333333", "0.3334", False),
        ("YES", "yes", False),
        ("10", "10.0", True),
        ("1 -2", "1.0 -2.00", True),
        ("0", "0.", True),
        ("10", "10.5", False),
        ("10", "1.0", False),
        ("100", "10.0", False),
        ("010", "010.0", False),
        ("010", "10", False),
        ("10", "10.", True),
        ("abc", "abc.0", False),
        ("1 2", "1", False),
        ("nan.x", "0.1", False),
    ],
)
def test_outputs_are_compared_by_their_words(expected: str, printed: str, same: bool) -> None:
    assert same_output(expected, printed) is same


@pytest.mark.parametrize(
    ("expected", "returned", "same"),
    [
        (3, "3", True),
        ([3], "3", True),
        ([3], "[3]", True),
        (1, "true", False),
        (True, "true", True),
        (0.5, "0.50000000001", True),
        ("a", '"a"', True),
        ({"a": [1.0]}, '{"a": [1]}', True),
        ([1, 2], "[1]", False),
        (None, "", False),
    ],
)
def test_values_are_compared_by_type_and_content(expected: Any, returned: str, same: bool) -> None:
    assert same_value(expected, returned) is same
