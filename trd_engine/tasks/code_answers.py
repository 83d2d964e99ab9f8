"""The program in a completion, and when its output is the expected one."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Mapping
from typing import Any

from trd_engine.tasks.sandbox.limits import allow_long_integers

_FENCE = re.compile(r"^[ \t]*```[ \t]*([\w+-]*)[^\n]*\n(.*?)^[ \t]*```[ \t]*$", re.DOTALL | re.MULTILINE)
_OPEN_FENCE = re.compile(r"^[ \t]*```", re.MULTILINE)
_PYTHON = {"python", "python3", "py", "py3"}
_FUTURE = re.compile(r"^from __future__ import (?:\([^)]*\)|[^\n;]*)[^\n]*\n?", re.MULTILINE)
_TOLERANCE = 1e-6
"""Relative and absolute, where the expected number has a decimal point."""


def extract_program(text: str) -> str:
    """The last block fenced as Python, else the last without a language, else, where there is no fence at all, the
    whole text; "" for none."""
    blocks = [(language.lower(), str(body)) for language, body in _FENCE.findall(text)]
    # What a program prints is often shown after it, in a fence that names no language.
    labelled = [body for language, body in blocks if language in _PYTHON]
    candidates = labelled or [body for language, body in blocks if not language]
    if candidates:
        return candidates[-1].strip("\n")
    return "" if _OPEN_FENCE.search(text) else text.strip()


def complete_program(program: str, tests: Mapping[str, Any]) -> str:
    """The program with what it builds on: a HumanEval prompt's imports and helpers, or the head of its function."""
    preamble = tests.get("preamble", "")
    if not preamble:
        return program
    if re.search(rf"^\s*(?:async\s+)?def\s+{re.escape(tests['entry_point'])}\b", program, re.MULTILINE):
        # The prompt ends in a function of a docstring alone, which is valid and is replaced.
        return _futures_first(f"{preamble.rstrip()}\n\n{program}")
    return _futures_first(f"{preamble}{program}")


def same_output(expected: str, printed: str) -> bool:
    """Whether two outputs are the same text but for space, or the same numbers where they have fractions."""
    wanted, given = expected.split(), printed.split()
    return len(wanted) == len(given) and all(map(_same_token, wanted, given))


def same_value(expected: Any, returned: str) -> bool:
    """Whether a returned value, as JSON, is the expected one; some data sets wrap the latter in a list."""
    allow_long_integers()
    try:
        value = json.loads(returned)
    except ValueError:
        return False
    return _same(expected, value) or (isinstance(expected, list) and len(expected) == 1 and _same(expected[0], value))


def _futures_first(source: str) -> str:
    """The source with its imports from `__future__` where Python asks for them, before all else."""
    found = "".join(match.group().rstrip("\n") + "\n" for match in _FUTURE.finditer(source))
    return found + _FUTURE.sub("", source) if found else source


def _same_token(wanted: str, given: str) -> bool:
    if wanted == given:
        return True
    if "." not in wanted and "e" not in wanted.lower():
        return False
    try:
        return math.isclose(float(wanted), float(given), rel_tol=_TOLERANCE, abs_tol=_TOLERANCE)
    except ValueError:
        return False


def _same(wanted: Any, given: Any) -> bool:
    if isinstance(wanted, list) and isinstance(given, list):
        return len(wanted) == len(given) and all(map(_same, wanted, given))
    if isinstance(wanted, dict) and isinstance(given, dict):
        return wanted.keys() == given.keys() and all(_same(wanted[key], given[key]) for key in wanted)
    if isinstance(wanted, bool) or isinstance(given, bool):
        return wanted is given
    if isinstance(wanted, float) and isinstance(given, int | float):
        return math.isclose(wanted, given, rel_tol=_TOLERANCE, abs_tol=_TOLERANCE)
    return bool(wanted == given)
