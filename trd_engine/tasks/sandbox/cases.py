"""The untrusted side: one case of a program, in a process that is already confined.

Nothing here decides anything. What leaves the process is compared outside, where the expected output is;
only a test script, which must share the program's process, says itself that it passed, with a key that it
reads after its last line. A program that sets out to fool its own test script can; it cannot do harm.
"""

from __future__ import annotations

import json
import os
import sys
import traceback
import types
from collections.abc import Mapping
from typing import Any

RESULT_DESCRIPTOR = 3
KEY_DESCRIPTOR = 4
KEY_BYTES = 32
FAILED = 70
"""Exit code of a case whose program raised."""


def run_case(program: str, case: Mapping[str, Any]) -> int:
    """Run the program on one case and return the exit code; its exception goes to standard error."""
    sys.stdin = open(0, encoding="utf-8", errors="replace", closefd=False)  # noqa: SIM115
    sys.stdout = open(1, "w", encoding="utf-8", errors="replace", closefd=False)  # noqa: SIM115
    sys.argv = ["program.py"]
    try:
        _dispatch(program, case)
    except SystemExit as exit_request:
        code = _exit_code(exit_request)
    except BaseException as error:  # noqa: BLE001 - whatever an untrusted program raises is its failure
        _report(error)
        code = FAILED
    else:
        code = 0
    return _flush(code)


def _dispatch(program: str, case: Mapping[str, Any]) -> None:
    module = types.ModuleType("__main__")
    sys.modules["__main__"] = module  # dataclasses and pickling look it up
    exec(compile(program, "program.py", "exec"), module.__dict__)
    if "test" in case:
        exec(compile(case["test"], "test.py", "exec"), module.__dict__)
        os.write(RESULT_DESCRIPTOR, os.read(KEY_DESCRIPTOR, KEY_BYTES))
    elif "entry_point" in case:
        value = _entry_point(module, case["entry_point"])(*case["arguments"])
        _write_all(json.dumps(value, default=_as_list).encode())


def _entry_point(module: types.ModuleType, name: str) -> Any:
    """A function of the program, or a method of the class `Solution`, as LeetCode has it."""
    if hasattr(module, name):
        return getattr(module, name)
    if hasattr(module, "Solution"):
        return getattr(module.Solution(), name)
    raise NameError(f"the program defines no {name}")


def _as_list(value: Any) -> Any:
    """Sets, ranges, iterators and arrays as JSON lists, numpy's numbers as Python's."""
    return value.item() if hasattr(value, "item") and getattr(value, "ndim", 0) == 0 else list(value)


def _write_all(data: bytes) -> None:
    while data:
        data = data[os.write(RESULT_DESCRIPTOR, data) :]


def _exit_code(request: SystemExit) -> int:
    if request.code is None or isinstance(request.code, int):
        return (request.code or 0) & 0xFF
    return 1


def _report(error: BaseException) -> None:
    try:
        last_line = traceback.format_exception_only(error)[-1].strip()
    except BaseException:  # noqa: BLE001 - an exception may be hostile in its own __str__
        last_line = type(error).__name__
    os.write(2, last_line.encode("utf-8", "replace")[-2000:])


def _flush(code: int) -> int:
    try:
        sys.stdout.flush()
    except BaseException:  # noqa: BLE001 - the program may have put anything in its place
        return code or FAILED
    return code
