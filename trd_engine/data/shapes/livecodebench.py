"""Rows of LiveCodeBench: contest problems with public and private tests, by standard input or by a function.

Private tests come as base64 of zlib of a pickled string. Nothing is unpickled here: the pickle's instructions are
read, and a stream that holds anything but one string is refused.
"""

from __future__ import annotations

import base64
import binascii
import json
import pickletools
import zlib
from typing import Any

from trd_engine.data.shapes import fields
from trd_engine.data.shapes.fields import Row, RowError
from trd_engine.types import Problem

_MAX_BYTES = 256 * 2**20
"""Of one row's private tests, unpacked: more is a bomb."""
_HARMLESS = {"PROTO", "FRAME", "MEMOIZE", "BINPUT", "LONG_BINPUT", "PUT", "STOP"}
_KINDS = ("stdin", "functional")
_STRINGS = {"BINUNICODE", "BINUNICODE8", "SHORT_BINUNICODE", "UNICODE"}


def from_livecodebench_row(row: Row, row_id: str, task: str) -> Problem:
    """A row of (question_content, public_test_cases, private_test_cases, starter_code, metadata)."""
    question = fields.text(row, "problem", ("question_content", *fields.PROBLEM))
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
        raise RowError("field 'public_test_cases' is empty, and there are no private ones")
    kinds = {case.get("testtype", "stdin") for case in cases}
    inputs, outputs = ([str(case[name]) for case in cases] for name in ("input", "output"))
    if kinds == {"stdin"}:
        return {"kind": "stdio", "inputs": inputs, "outputs": outputs}
    if kinds != {"functional"}:
        raise RowError("field 'public_test_cases': testtype must be stdin or functional for all, private ones too")
    metadata = fields.parse_json(row.get("metadata") or {}, "metadata")
    name = metadata.get("func_name") if isinstance(metadata, dict) else None
    if not name:
        raise RowError("field 'metadata' must name the function in func_name, since the tests call it")
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
        raise RowError(f"field {name!r} must be a list of objects with input and output")
    for case in cases:
        if (kind := case.get("testtype", "stdin")) not in _KINDS:
            raise RowError(f"field {name!r}: testtype is {kind!r:.80}; write 'stdin' or 'functional', or leave it out")
    return list(cases)


def _unpacked(value: Any) -> Any:
    """The tests as JSON text, or as they are where they are not packed."""
    if not isinstance(value, str) or value.lstrip().startswith("["):
        return value
    try:
        unpacker = zlib.decompressobj()
        data = unpacker.decompress(base64.b64decode(value, validate=True), _MAX_BYTES)
        if unpacker.unconsumed_tail:
            raise RowError(f"field 'private_test_cases' unpacks to more than {_MAX_BYTES // 2**20} MiB")
        return json.loads(_only_string(data))
    except (binascii.Error, zlib.error, ValueError) as error:
        raise RowError(
            f"field 'private_test_cases' is neither JSON nor packed as LiveCodeBench packs: {error}"
        ) from None


def _only_string(pickled: bytes) -> str:
    """The one string that a pickle holds, without running it. Raises ValueError."""
    found = []
    for operation, argument, _ in pickletools.genops(pickled):
        if operation.name in _STRINGS:
            found.append(str(argument))
        elif operation.name not in _HARMLESS:
            raise ValueError(f"a pickle with {operation.name}, not of one string")
    if len(found) != 1:
        raise ValueError(f"a pickle of {len(found)} strings, not of one")
    return found[0]
