"""Hooks of schemathesis, loaded by its command line.

They write bodies of rows, and make requests name what is there, so that they get past the 404s and the refusals:
if `IDS_VARIABLE` gives a JSON file of ids by parameter, ``kept`` and ``expendable`` ones.
"""

from __future__ import annotations

import json
import os
import zlib
from functools import cache
from pathlib import Path
from typing import Any

import schemathesis

IDS_VARIABLE = "TRD_TEST_OBJECTS"

_SPEC = {"mode": "trd", "student": "tiny-student", "teacher": "tiny-teacher", "task": "exact"}
_LARGE = ("optim", "sampling", "refine", "prompts", "loss", "preset", "lora", "evaluation", "dataset")


@cache
def _known() -> dict[str, Any]:
    objects: dict[str, Any] = json.loads(Path(os.environ[IDS_VARIABLE]).read_text(encoding="utf-8"))
    return objects


def _pick(choices: list[str], value: object) -> str:
    """Pick one of them, the same for the same generated value: schemathesis shrinks and repeats."""
    return choices[zlib.crc32(repr(value).encode()) % len(choices)]


@schemathesis.serializer("application/jsonl", *(f"application/{name}" for name in ("jsonlines", "x-jsonlines")))
def write_rows(_context: Any, value: Any) -> bytes:
    """Write generated rows: bytes stay as they are; what is generated in place of text is text too."""
    return value if isinstance(value, bytes) else str(value).encode()


@schemathesis.hook
def map_path_parameters(context: Any, path_parameters: dict[str, Any] | None) -> dict[str, Any] | None:
    """Put objects that exist in the path; what is deleted is taken from a separate stock."""
    if IDS_VARIABLE not in os.environ:
        return path_parameters
    stock = _known()["expendable" if context.operation.method.lower() == "delete" else "kept"]
    given = dict(path_parameters or {})
    for name, value in given.items():
        kind = name if name != "name" else "model" if "models" in context.operation.path else "file"
        if kind in stock:
            given[name] = _pick(stock[kind], value)
    return given


@schemathesis.hook
def map_body(context: Any, body: Any) -> Any:
    """Return a generated spec with existing models and data, and without the parts that rarely go together."""
    if IDS_VARIABLE not in os.environ:
        return body
    operation = (context.operation.method.upper(), context.operation.path)
    if not isinstance(body, dict):
        return body
    dataset = _pick(_known()["kept"]["dataset_id"], body)
    kept = {name: value for name, value in body.items() if name not in _LARGE}
    if operation == ("POST", "/jobs"):
        return {**kept, **_SPEC, "dataset": dataset, "devices": 1, "rounds": 1, "teacher_update": {}}
    if operation == ("POST", "/jobs/{job_id}/clone"):
        return {"seed": zlib.crc32(repr(body).encode()) % 1000}
    if operation == ("POST", "/v1/fine_tuning/jobs"):
        method = {"type": "trd", "trd": {"teacher": "tiny-teacher", "task": "exact"}}
        return {"model": "tiny-student", "training_file": dataset, "method": method, "seed": 1}
    return body
