"""Reads an untrusted Parquet file in a child process with limits on memory, processor time and wall-clock time.

A few bytes of Parquet may decompress to any number of bytes, and some files make its library abort. The child checks
the rows itself and replies with one JSON object of bounded size, so that the parent never holds what is in the file.
Any outcome that is not a reply of the child is an error that names what happened.
"""

from __future__ import annotations

import json
import os
import resource
import signal
import subprocess
import sys
import tempfile
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from itertools import islice
from pathlib import Path
from shutil import copyfileobj
from typing import IO, Any

from trd_data.errors import DataFileError, FileTooLargeError, RowError
from trd_data.problems import Problem
from trd_data.readers import RowLimits, read_parquet
from trd_data.rows import ListedError, RowChecker, RowReader, RowReport

MAX_CHILDREN = 2
"""Children of one process at a time; further files wait."""
_MAX_REPLY_BYTES = 2**28
_PACKAGE_ROOT = str(Path(__file__).resolve().parents[1])
_children = threading.BoundedSemaphore(MAX_CHILDREN)


@dataclass(frozen=True)
class ChildLimits:
    """What reading one file may cost."""

    memory_bytes: int = 3 * 2**29
    """Address space of the child, some 400 MiB of which its libraries take."""
    cpu_seconds: int = 120
    """Processor time of the child."""
    wall_seconds: float = 300.0
    """Time from the start of the child to its reply."""


def check_parquet(stream: IO[bytes], rows: RowLimits, limits: ChildLimits | None = None) -> RowReport:
    """Return what was found in the rows of a file; raises `DataFileError`."""
    reply = _ask(stream, {"rows": asdict(rows)}, limits or ChildLimits())
    return RowReport(**{**reply, "errors": [ListedError(**error) for error in reply["errors"]]})


def first_parquet_problems(
    stream: IO[bytes], task: str, count: int, limits: ChildLimits | None = None
) -> list[tuple[int, Problem]]:
    """Return number and problem, without `extra`, of the first rows; raises `DataFileError`, and RowError for a row
    that `task` cannot read."""
    reply = _ask(stream, {"task": task, "count": count}, limits or ChildLimits())
    if reply["error"] is not None:
        raise RowError(**reply["error"])
    return [(number, Problem(**problem)) for number, problem in reply["problems"]]


def _ask(stream: IO[bytes], request: dict[str, Any], limits: ChildLimits) -> Any:
    with _children, _as_local_file(stream) as file:
        process = subprocess.Popen(
            [sys.executable, "-P", "-s", "-m", "trd_data.parquet_child", json.dumps([request, asdict(limits)])],
            stdin=file,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            # The system's allocator: others reserve address space far beyond what they use.
            env={"PYTHONPATH": _PACKAGE_ROOT, "ARROW_DEFAULT_MEMORY_POOL": "system", "OPENBLAS_NUM_THREADS": "1"},
        )
        assert process.stdout is not None
        timer = threading.Timer(limits.wall_seconds, process.send_signal, [signal.SIGXCPU])
        timer.start()
        try:
            content = process.stdout.read(_MAX_REPLY_BYTES)
        finally:
            timer.cancel()
            process.kill()
            status = process.wait()
            process.stdout.close()
    return _parse_reply(content, status, limits)


def _parse_reply(content: bytes, status: int, limits: ChildLimits) -> Any:
    try:
        reply = json.loads(content)
    except ValueError:
        if status == -signal.SIGXCPU:
            raise FileTooLargeError(
                f"the Parquet file takes more than {limits.cpu_seconds} seconds to read; split it"
            ) from None
        ending = signal.Signals(-status).name if status < 0 else f"exit status {status}"
        raise DataFileError(
            f"not a readable Parquet file: reading it crashes the reader ({ending}); write it again, with pyarrow for "
            "example"
        ) from None
    if "too_large" in reply:
        raise FileTooLargeError(reply["too_large"])
    if "unreadable" in reply:
        raise DataFileError(reply["unreadable"])
    return reply["found"]


@contextmanager
def _as_local_file(stream: IO[bytes]) -> Iterator[IO[bytes]]:
    """Yield the stream, or a copy of it if it is not a file of this machine."""
    try:
        descriptor = stream.fileno()
    except (AttributeError, OSError):
        descriptor = None
    if descriptor is not None:
        place = os.lseek(descriptor, 0, os.SEEK_CUR)
        try:
            yield stream
        finally:  # the child shares the file's position, of which the stream's buffer knows nothing
            os.lseek(descriptor, place, os.SEEK_SET)
        return
    with tempfile.TemporaryFile() as copy:
        copyfileobj(stream, copy)
        copy.flush()
        yield copy


def main() -> None:
    """Answer the request of the parent about the file on standard input."""
    request, limits = json.loads(sys.argv[1])
    import pyarrow.parquet  # type: ignore[import-untyped]  # noqa: F401 - before the limits: loading libraries must not fail for them

    resource.setrlimit(resource.RLIMIT_AS, (limits["memory_bytes"],) * 2)
    resource.setrlimit(resource.RLIMIT_CPU, (limits["cpu_seconds"], limits["cpu_seconds"] + 5))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    reply: dict[str, Any]
    try:
        reply = {"found": _first_problems(request) if "task" in request else _report(RowLimits(**request["rows"]))}
    except FileTooLargeError as error:
        reply = {"too_large": str(error)}
    except DataFileError as error:
        reply = {"unreadable": str(error)}
    except MemoryError:
        reply = {
            "too_large": f"the Parquet file needs more than {limits['memory_bytes'] // 2**20} MiB of memory to read; "
            "write smaller row groups, or split it"
        }
    except Exception as error:  # noqa: BLE001 - the boundary of the child: the file is at fault
        reply = {"unreadable": f"not a readable Parquet file: {type(error).__name__}: {error}"[:500]}
    sys.stdout.buffer.write(json.dumps(reply).encode())


def _report(limits: RowLimits) -> dict[str, Any]:
    checker = RowChecker(limits)
    for row in read_parquet(sys.stdin.buffer):
        checker.add_unpacked(row)
    return asdict(checker.report)


def _first_problems(request: dict[str, Any]) -> dict[str, Any]:
    reader, problems = RowReader(request["task"]), []
    for row in islice(read_parquet(sys.stdin.buffer), request["count"]):
        try:
            problem = reader.problem(row)
        except RowError as error:
            return {"error": {"field": error.field, "message": f"row {row.number}: {error.message}"}}
        problems.append((row.number, {**asdict(problem), "extra": {}}))
    return {"error": None, "problems": problems}


if __name__ == "__main__":
    main()
