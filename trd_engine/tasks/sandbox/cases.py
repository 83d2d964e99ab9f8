"""The untrusted side: one case of a program, in a process that is already confined.

Nothing here decides anything. What leaves the process is compared outside, where the expected output is kept;
only a test script, which must share the program's process, says itself that it passed, with a key that it
reads after its last line. A program that sets out to fool its own test script can; it cannot do harm.
"""

from __future__ import annotations

import atexit
import gc
import json
import os
import sys
import threading
import traceback
import types
from collections.abc import Callable, Mapping
from contextlib import suppress
from typing import Any

from trd_engine.tasks.sandbox.prelude import RECURSION_LIMIT, builtin_names

RESULT_DESCRIPTOR = 3
KEY_DESCRIPTOR = 4
KEY_BYTES = 32
FAILED = 70
"""Exit code of a case whose program raised."""
_SCRIPT = "__main__"
_LIBRARY = "program"
"""What a program is called whose functions are tested: no block for `__main__` runs, nor does any grader run it."""


def run_case(program: str, case: Mapping[str, Any]) -> int:
    """Run the program on one case and return the exit code; its exception goes to standard error."""
    stdin = open(0, encoding="utf-8", errors="replace", closefd=False)  # noqa: SIM115
    stdout = open(1, "w", encoding="utf-8", errors="replace", closefd=False)  # noqa: SIM115
    vars(sys).update(stdin=stdin, __stdin__=stdin, stdout=stdout, __stdout__=stdout)
    sys.argv = ["program.py"]
    atexit._clear()  # what this process was to do at its own end
    module = types.ModuleType(_SCRIPT if "stdin" in case else _LIBRARY)
    # Both: pickling looks a class's module up by its name, and some tests look for __main__.
    sys.modules[module.__name__] = sys.modules["__main__"] = module
    try:
        _dispatch(module, program, case)
    except SystemExit as exit_request:
        code = _exit_code(exit_request)
    except BaseException as error:  # noqa: BLE001 - whatever an untrusted program raises is its failure
        _report(error)
        code = FAILED
    else:
        code = 0
    return _end_script(module, code) if "stdin" in case else _flush(code)


def _dispatch(module: types.ModuleType, program: str, case: Mapping[str, Any]) -> None:
    if "entry_point" in case:
        vars(module)["__builtins__"] = builtin_names(program)
        sys.setrecursionlimit(RECURSION_LIMIT)
    _execute(program, "program.py", module)
    if "test" in case:
        module.__name__ = _SCRIPT  # a test's own main block is a part of it
        _execute(case["test"], "test.py", module)
        os.write(RESULT_DESCRIPTOR, os.read(KEY_DESCRIPTOR, KEY_BYTES))
    elif "entry_point" in case:
        value = _entry_point(module, case["entry_point"])(*case["arguments"])
        data = json.dumps(value, default=_as_list).encode()
        while data:
            data = data[os.write(RESULT_DESCRIPTOR, data) :]


def _execute(source: str, name: str, module: types.ModuleType) -> None:
    # Not with this file's own imports from __future__.
    exec(compile(source, name, "exec", dont_inherit=True), vars(module))


def _end_script(module: types.ModuleType, code: int) -> int:
    """Do what Python does at a script's end, as far as it may print: threads, exit handlers, files left open."""
    _try(threading._shutdown)  # type: ignore[attr-defined]
    _try(atexit._run_exitfuncs)
    code = _flush(code)
    # What nobody holds any longer writes its buffer, if the program opened another file on descriptor 1.
    sys.stdout = sys.__stdout__
    names = vars(module)
    for name in list(names):
        if name != "__builtins__":
            names[name] = None
    _try(gc.collect)
    _try(lambda: sys.stdout.flush())
    return code


def _try(action: Callable[[], object]) -> None:
    with suppress(BaseException):
        action()


def _entry_point(module: types.ModuleType, name: str) -> Any:
    """Return a function of the program, or a method of the class `Solution`, as LeetCode has it."""
    if hasattr(module, name):
        return getattr(module, name)
    if hasattr(module, "Solution"):
        return getattr(module.Solution(), name)
    raise NameError(f"the program defines no {name}")


def _as_list(value: Any) -> Any:
    """Convert sets, ranges, iterators and arrays to JSON lists, and numpy's numbers to Python's."""
    return value.item() if hasattr(value, "item") and getattr(value, "ndim", 0) == 0 else list(value)


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
        if sys.stdout is not None and not getattr(sys.stdout, "closed", False):
            sys.stdout.flush()
    except BaseException:  # noqa: BLE001 - the program may have put anything in its place
        return code or FAILED
    return code
