"""What a program's case is to it: a script with its own end, or a library with its benchmark's imports."""

from __future__ import annotations

import time
from typing import Any

import pytest

from trd_engine.tasks.sandbox.limits import MIB, Limits
from trd_engine.tasks.sandbox.runner import CaseResult, find_confinement, run_program

QUICK = Limits(cpu_seconds=2, wall_seconds=2.0, total_seconds=10.0, memory_bytes=512 * MIB)


def run_script(program: str, stdin: str = "") -> CaseResult:
    return run_program(program, [{"stdin": stdin}], QUICK, find_confinement())[0]


def call(program: str, entry_point: str, *arguments: Any) -> CaseResult:
    case = {"entry_point": entry_point, "arguments": list(arguments)}
    return run_program(program, [case], QUICK, find_confinement())[0]


def run_test(program: str, test: str) -> CaseResult:
    return run_program(program, [{"test": test}], QUICK, find_confinement())[0]


@pytest.mark.parametrize(
    ("program", "output"),
    [
        (
            "import sys, threading\nthreading.stack_size(2**25)\n"
            "def main():\n    import time\n    time.sleep(0.2)\n    print(input())\n"
            "threading.Thread(target=main).start()",
            "5\n",
        ),
        (
            "from concurrent.futures import ThreadPoolExecutor\n"
            "ThreadPoolExecutor(1).submit(lambda: (__import__('time').sleep(0.2), print(5)))",
            "5\n",
        ),
        (
            "import threading, time\n"
            "threading.Thread(target=lambda: (time.sleep(0.2), print(5))).start()\nraise SystemExit",
            "5\n",
        ),
        (
            "import threading, time\nthreading.Thread(target=time.sleep, args=(9,), daemon=True).start()\nprint(5)",
            "5\n",
        ),
        ("import atexit\natexit.register(print, 5)\nprint(4)", "4\n5\n"),
        (
            "import atexit, io, sys\nsys.stdout = io.StringIO()\n"
            "atexit.register(lambda: sys.__stdout__.write(sys.stdout.getvalue()))\nprint(5)",
            "5\n",
        ),
        ("import atexit, sys\natexit.register(print, 5)\nsys.exit()", "5\n"),
        ("import os\nout = os.fdopen(1, 'w')\nout.write('5\\n')", "5\n"),
        ("import io, sys\nsys.stdout = io.TextIOWrapper(sys.stdout.detach())\nprint(5)", "5\n"),
        ("import sys\nprint(5)\nsys.stdout.close()", "5\n"),
        ("class A:\n    def __del__(self): print(5)\na = A()", "5\n"),
    ],
)
def test_what_a_script_prints_at_its_end_is_its_output(program: str, output: str) -> None:
    result = run_script(program, "5\n")
    assert (result.status, result.output) == ("ok", output)


@pytest.mark.parametrize(
    "program",
    [
        "import threading, time\nthreading.Thread(target=time.sleep, args=(99,)).start()",
        "import atexit, time\natexit.register(time.sleep, 99)",
        "class A:\n    def __del__(self):\n        while True: pass\na = A()",
    ],
)
def test_a_script_that_never_comes_to_its_end_is_stopped(program: str) -> None:
    started = time.monotonic()
    assert run_script(program).status == "time-out"
    assert time.monotonic() - started < 6.0


def test_a_script_that_failed_has_its_end_too_and_fails() -> None:
    result = run_script("import atexit\natexit.register(print, 5)\n1 / 0")
    assert (result.status, result.output) == ("exit code 70", "5\n")
    assert result.error == "ZeroDivisionError: division by zero"


def test_the_sandboxs_own_settings_do_not_reach_a_program() -> None:
    program = "def f(x: int): pass\nprint(f.__annotations__)"
    assert run_script(program).output == "{'x': <class 'int'>}\n"
    assert run_test("def f(x): pass", "def g(x: int): pass\nassert g.__annotations__ == {'x': int}").passed
    future = "from __future__ import annotations\n"
    assert run_script(future + program).output == "{'x': 'int'}\n"


_LEETCODE = """
class Node:
    def __init__(self, value: int, next: Optional['Node'] = None): self.value = value

class Solution:
    def search(self, numbers: List[int], wanted: int) -> Dict[str, int]:
        seen, heap = defaultdict(int), list(numbers)
        heapq.heapify(heap)
        queue = deque(accumulate(numbers))
        seen["gcd"] = math.gcd(*numbers)
        seen["first"] = heappop(heap)
        seen["place"] = bisect_left(sorted(numbers), wanted)
        seen["sum"] = queue.pop()
        seen["inf"] = 1 if inf > 5 and pow(2, 3, 5) == 3 and string.digits and re.match("a", "a") else 0
        return seen
"""


def test_a_function_has_its_benchmarks_imports() -> None:
    result = call(_LEETCODE, "search", [6, 4, 8], 6)
    assert (result.status, result.error) == ("ok", "")
    assert result.output == '{"gcd": 2, "first": 4, "place": 1, "sum": 18, "inf": 1}'
    assert call("def f(n):\n    return float(np.sqrt(n))", "f", 4).output == "2.0"


@pytest.mark.parametrize(
    ("program", "output"),
    [
        ("def gcd(a, b):\n    return 'own'\ndef f():\n    return gcd(1, 2)", '"own"'),
        ("import random\ndef f():\n    return callable(random.random)", "true"),
        ("from __future__ import annotations\ndef f(x: Unknown = 1):\n    return x", "1"),
        ("def f():\n    return sorted(globals()) == sorted(set(globals()) - {'deque', 'List', 'math'})", "true"),
        ("def f(n=9000):\n    return n and f(n - 1)", "0"),
        ("def f():\n    return sys._getframe().f_lineno", "2"),
        ("class Solution:\n    def f(self) -> List[int]:\n        return [exit is not None]", "[true]"),
    ],
)
def test_a_functions_own_names_come_first(program: str, output: str) -> None:
    result = call(program, "f")
    assert (result.status, result.output, result.error) == ("ok", output, "")


def test_what_the_benchmark_imports_is_not_the_programs_function() -> None:
    assert call("def f(): pass", "reduce").error == "NameError: the program defines no reduce"


def test_scripts_import_what_they_use() -> None:
    assert "NameError" in run_script("print(deque([1]))").error


_GUARDED = "def f(): return 1\nif __name__ == '__main__':\n    import sys\n    print('main ran')\n    sys.exit(3)"


def test_the_main_block_runs_in_scripts_alone() -> None:
    assert run_script(_GUARDED).output == "main ran\n"
    assert call(_GUARDED, "f").output == "1"
    assert run_test(_GUARDED, "assert f() == 1").passed


def test_classes_of_a_tested_program_are_found_by_their_name() -> None:
    program = "import pickle\nfrom dataclasses import dataclass\n@dataclass\nclass A:\n    x: int\n"
    assert run_test(program, "assert pickle.loads(pickle.dumps(A(3))) == A(3)").passed


def test_a_main_block_of_the_test_is_a_part_of_the_test() -> None:
    guarded = "if __name__ == '__main__':\n    assert f() == {}"
    assert run_test(_GUARDED, guarded.format(1)).passed
    assert not run_test(_GUARDED, guarded.format(2)).passed
