"""Extract the program from a completion, and compare its output with the expected one."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Mapping
from typing import Any

from trd_data.plain_json import allow_long_integers

_FENCE = re.compile(r"([ \t]*(?:(?:[-*+]|\d{1,9}[.)])[ \t]+)?)```[ \t]*([\w+-]*)")
_CLOSING_FENCE = re.compile(r"[ \t]*```[ \t]*")
_PYTHON = {"python", "python3", "py", "py3"}
_FUTURE = re.compile(r"^from __future__ import (?:\([^)]*\)|[^\n;]*)[^\n]*\n?", re.MULTILINE)
_INTEGER = re.compile(r"-?(?:0|[1-9]\d*)")
_TOLERANCE = 1e-6
"""Relative and absolute, if the expected number has a decimal point."""


def extract_program(text: str) -> str:
    """Return the last block fenced as Python, else the last without a language, else, if there is no fence at all, the
    whole text; "" for none."""
    blocks, has_fence = _fenced_blocks(text)
    # What a program prints is often shown after it, in a fence that names no language.
    labelled = [body for language, body in blocks if language in _PYTHON]
    candidates = labelled or [body for language, body in blocks if not language]
    if candidates:
        return candidates[-1].strip("\n")
    return "" if has_fence else text.strip()


def _fenced_blocks(text: str) -> tuple[list[tuple[str, str]], bool]:
    """Return (language, body) of each block that is opened and closed, and whether there is any fence at all.

    Each line loses as much space as stands before the fence: in an item of a list, all of the block is indented.
    This reads the lines once: with one fence after another, a search for pairs would take minutes.
    """
    blocks: list[tuple[str, str]] = []
    language: str | None = None
    body: list[str] = []
    indent = 0
    has_fence = False
    for line in text.split("\n"):
        fence = _FENCE.match(line)
        has_fence = has_fence or fence is not None
        if language is None:
            if fence is not None:
                language, body, indent = fence.group(2).lower(), [], len(fence.group(1).expandtabs(4))
        elif _CLOSING_FENCE.fullmatch(line):
            blocks.append((language, "".join(f"{each}\n" for each in body)))
            language = None
        else:
            body.append(_without_indent(line, indent))
    return blocks, has_fence


def _without_indent(line: str, width: int) -> str:
    """Return a line without up to `width` columns of space at its start."""
    if not width:
        return line
    content = line.lstrip(" \t")
    column = len(line[: len(line) - len(content)].expandtabs(4))
    return " " * max(0, column - width) + content


def complete_program(program: str, tests: Mapping[str, Any]) -> str:
    """Return the program with what it needs: a HumanEval prompt's imports and helpers, or its function's head."""
    preamble = tests.get("preamble", "")
    if not preamble:
        return program
    if re.search(rf"^\s*(?:async\s+)?def\s+{re.escape(tests['entry_point'])}\b", program, re.MULTILINE):
        # The prompt ends in a function of a docstring alone, which is valid and is replaced.
        return _futures_first(f"{preamble.rstrip()}\n\n{program}")
    return _futures_first(f"{preamble}{program}")


def same_output(expected: str, printed: str) -> bool:
    """Return whether two outputs are the same text except for space, or the same numbers if they have fractions."""
    wanted, given = expected.split(), printed.split()
    return len(wanted) == len(given) and all(map(_same_token, wanted, given))


def same_value(expected: Any, returned: str) -> bool:
    """Return whether a returned value, as JSON, is the expected one, which some data sets wrap in a list."""
    allow_long_integers()
    try:
        value = json.loads(returned)
        is_wrapped = isinstance(expected, list) and len(expected) == 1
        return _same(expected, value) or (is_wrapped and _same(expected[0], value))
    except (ValueError, RecursionError, OverflowError):
        # No JSON, lists too deep to read or to compare, an integer that no float can be near.
        return False


def _futures_first(source: str) -> str:
    """Return the source with its imports from `__future__` first, as Python requires."""
    found = "".join(match.group().rstrip("\n") + "\n" for match in _FUTURE.finditer(source))
    return found + _FUTURE.sub("", source) if found else source


def _same_token(wanted: str, given: str) -> bool:
    if wanted == given:
        return True
    if "." not in wanted and "e" not in wanted.lower():
        # 1.0 is the integer 1; 010 is not 10, which may be a text of digits.
        return given.rstrip("0") == f"{wanted}." and _INTEGER.fullmatch(wanted) is not None
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
