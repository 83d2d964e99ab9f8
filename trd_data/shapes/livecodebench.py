"""Rows of LiveCodeBench: contest problems with public and private tests, by standard input or by a function.

Private tests come as base64 of zlib of a pickled string. Nothing is unpickled here: the pickle's instructions are
read, and a pickle of anything but one string is refused.
"""

from __future__ import annotations

import base64
import binascii
import json
import pickletools
import zlib
from typing import Any

from trd_data.errors import RowError
from trd_data.problems import Problem
from trd_data.shapes import fields
from trd_data.shapes.fields import Row, wrong

_MAX_BYTES = 256 * 2**20
"""Limit on the decompressed private tests of one row, against decompression bombs."""
_HARMLESS = {"PROTO", "FRAME", "MEMOIZE", "BINPUT", "LONG_BINPUT", "PUT", "STOP"}
_MAX_INSTRUCTIONS = 20
"""Most instructions of a pickle: one string takes about five, and a kilobyte of zlib may stand for a million."""
_KINDS = ("stdin", "functional")
_STRINGS = {"BINUNICODE", "BINUNICODE8", "SHORT_BINUNICODE", "UNICODE"}


def from_livecodebench_row(row: Row, row_id: str, task: str) -> Problem:
    """Read a row of (question_content, public_test_cases, private_test_cases, starter_code, metadata)."""
    question = fields.problem_text(row, ("question_content", *fields.PROBLEM))
    starter = fields.optional_text(row, ("starter_code",)) or ""
    if starter:
        question = f"{question}\n\nBegin with this code:\n```python\n{starter.rstrip()}\n```"
    cases = _cases(row["public_test_cases"], "public_test_cases")
    if row.get("private_test_cases"):
        cases += _cases(_unpacked(row["private_test_cases"]), "private_test_cases")
    solution = fields.optional_text(row, fields.SOLUTION)
    return Problem(row_id, question, "", solution, {"tests": _tests(cases, row), "starter_code": starter})


def _tests(cases: list[dict[str, Any]], row: Row) -> dict[str, Any]:
    if not cases:
        raise RowError("public_test_cases", "public_test_cases: must not be empty if there are no private test cases")
    kinds = {case.get("testtype", "stdin") for case in cases}
    inputs, outputs = ([str(case[name]) for case in cases] for name in ("input", "output"))
    if kinds == {"stdin"}:
        return {"kind": "stdio", "inputs": inputs, "outputs": outputs}
    if kinds != {"functional"}:
        raise RowError(
            "public_test_cases",
            "public_test_cases: testtype must be the same, stdin or functional, for all public and private cases",
        )
    metadata = fields.parse_json(row.get("metadata") or {}, "metadata")
    name = metadata.get("func_name") if isinstance(metadata, dict) else None
    if not name:
        raise wrong("metadata", metadata, "must name the function that the tests call in func_name")
    return {
        "kind": "call",
        "entry_point": str(name),
        "inputs": [[_value(line) for line in given.splitlines() if line.strip()] for given in inputs],
        "outputs": [_value(given) for given in outputs],
    }


def _value(text: str) -> Any:
    return fields.parse_json(text, "public_test_cases")


def _cases(value: Any, name: str) -> list[dict[str, Any]]:
    cases = fields.parse_json(value, name)
    is_list = isinstance(cases, list) and all(isinstance(case, dict) for case in cases)
    if not is_list or any("input" not in case or "output" not in case for case in cases):
        raise wrong(name, cases, "must be a list of objects with input and output")
    for case in cases:
        if (kind := case.get("testtype", "stdin")) not in _KINDS:
            raise RowError(name, f"{name}: testtype = {kind!r:.80}: must be stdin or functional, or left out")
    return list(cases)


def _unpacked(value: Any) -> Any:
    """Return the packed tests as parsed JSON; tests that are not packed are returned as they are."""
    if not isinstance(value, str) or value.lstrip().startswith("["):
        return value
    try:
        unpacker = zlib.decompressobj()
        data = unpacker.decompress(base64.b64decode(value, validate=True), _MAX_BYTES)
        if unpacker.unconsumed_tail:
            raise RowError(
                "private_test_cases", f"private_test_cases: decompresses to more than {_MAX_BYTES // 2**20} MiB"
            )
        return json.loads(_only_string(data))
    except (binascii.Error, zlib.error, ValueError) as error:
        raise wrong(
            "private_test_cases", value, f"is neither JSON nor packed in LiveCodeBench's way: {error}"
        ) from None


def _only_string(pickled: bytes) -> str:
    """Return the one string in a pickle without running it; raises ValueError if there is anything else."""
    found = []
    for number, (operation, argument, _) in enumerate(pickletools.genops(pickled)):
        if number == _MAX_INSTRUCTIONS:
            raise ValueError("a pickle of many instructions, not of one string")
        if operation.name in _STRINGS:
            found.append(str(argument))
        elif operation.name not in _HARMLESS:
            raise ValueError(f"a pickle with {operation.name}, not of one string")
    if len(found) != 1:
        raise ValueError(f"a pickle of {len(found)} strings, not of one")
    return found[0]
