"""Runs the child that reads untrusted files, as the service does, and waits for it."""

from __future__ import annotations

import subprocess
import tempfile
from dataclasses import asdict
from typing import IO, Any

from trd_data.check import FileReport
from trd_data.child import ChildLimits, command, environment, parse_reply
from trd_data.readers import RowLimits
from trd_data.rows import ListedError


def ask(content: bytes | IO[bytes], request: dict[str, Any], limits: ChildLimits | None = None) -> Any:
    """Return what a child finds in `content`."""
    limits = limits or ChildLimits()
    with tempfile.TemporaryFile() as file:
        file.write(content if isinstance(content, bytes) else content.read())
        file.seek(0)
        done = subprocess.run(
            command(request, limits), stdin=file, capture_output=True, env=environment(), check=False, timeout=60
        )
    return parse_reply(done.stdout, done.returncode, limits)


def check(content: bytes, rows: RowLimits, limits: ChildLimits | None = None) -> FileReport:
    """Return the report on a file."""
    found = ask(content, {"check": {"limits": asdict(rows), "columns": None}}, limits)
    return FileReport(**{**found, "errors": [ListedError(**error) for error in found["errors"]]})
