"""What a program's case is to it."""

from __future__ import annotations

import time

import pytest

from trd_engine.tasks.sandbox.limits import MIB, Limits
from trd_engine.tasks.sandbox.runner import CaseResult, find_confinement, run_program

QUICK = Limits(cpu_seconds=2, wall_seconds=2.0, total_seconds=10.0, memory_bytes=512 * MIB)


def run_script(program: str, stdin: str = "") -> CaseResult:
    return run_program(program, [{"stdin": stdin}], QUICK, find_confinement())[0]


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
