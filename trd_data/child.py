"""``python -m trd_data.child REQUEST``: reads an untrusted file in a separate process, with limits.

A small file may decompress to any number of bytes, and some files make the library that reads them abort. The child
reads the file on its standard input and writes one JSON object: what it found, or why the file is refused. `limited`
starts a child and understands whatever becomes of it; the caller decides how to wait for it.

Requests: ``{"check": {...}}``, ``{"preview": {...}}``.
"""

from __future__ import annotations

import ctypes
import json
import os
import resource
import signal
import sys
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from trd_data.errors import DataFileError, FileTooLargeError, PromptError, RowError
from trd_data.templates import PreviewRequest

MAX_REPLY_BYTES = 2**24
"""Longest reply of a child. A check replies with at most a hundred errors, a preview with texts that were cut."""
_PACKAGE_ROOT = str(Path(__file__).resolve().parents[1])
_PR_SET_PDEATHSIG = 1  # <sys/prctl.h>


@dataclass(frozen=True)
class ChildLimits:
    """What one child may cost."""

    memory_bytes: int = 3 * 2**29
    """Address space, about 400 MiB of which the libraries take."""
    cpu_seconds: int = 300
    """Processor time."""
    wall_seconds: float = 600.0
    """Time from the start of the child to its reply; the parent kills it afterwards."""


def command(request: dict[str, Any], limits: ChildLimits) -> list[str]:
    """Return the command line of a child that answers `request`."""
    return [
        *(sys.executable, "-P", "-s", "-m", "trd_data.child"),
        json.dumps([request, asdict(limits), os.getpid()]),
    ]


def environment() -> dict[str, str]:
    """Return the environment of a child: nothing of the parent's, which holds keys and passwords."""
    # The system's allocator: others reserve address space far beyond what they use.
    return {
        "PYTHONPATH": _PACKAGE_ROOT,
        "ARROW_DEFAULT_MEMORY_POOL": "system",
        "OPENBLAS_NUM_THREADS": "1",
        "RAYON_NUM_THREADS": "1",
        "TOKENIZERS_PARALLELISM": "false",
    }


def parse_reply(content: bytes, status: int, limits: ChildLimits) -> Any:
    """Return what the child found, given what it wrote and its exit status.

    Raises `FileTooLargeError`, `RowError`, `PromptError`, or `DataFileError`, also for a child that was killed.
    """
    try:
        reply = json.loads(content)
    except ValueError:
        raise _ended_early(status, limits) from None
    for name, error in _ERRORS.items():
        if name in reply:
            raise error(*reply[name])
    return reply["found"]


_ERRORS: dict[str, Callable[..., Exception]] = {
    "too_large": FileTooLargeError,
    "unreadable": DataFileError,
    "wrong_row": RowError,
    "wrong_model": PromptError,
}


def _ended_early(status: int, limits: ChildLimits) -> DataFileError:
    if status in (-signal.SIGXCPU, -signal.SIGKILL):
        return FileTooLargeError(
            f"the file takes more than {limits.cpu_seconds} seconds of processor time, or {limits.wall_seconds:.0f} "
            "seconds in all, to read; split it"
        )
    ending = signal.Signals(-status).name if status < 0 else f"exit status {status}"
    return DataFileError(
        f"not a readable file: reading it crashes the reader ({ending}); write it again, Parquet with pyarrow for "
        "example"
    )


def main() -> None:
    """Answer the request of the parent about the file on standard input."""
    request, limits, parent_pid = json.loads(sys.argv[1])
    # The kernel kills this process when the thread that started it ends.
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
    if os.getppid() != parent_pid:  # it ended before
        os.kill(os.getpid(), signal.SIGKILL)
    os.nice(10)  # requests come first
    answer = _prepared(request)  # before the limits: loading libraries must not fail for them
    resource.setrlimit(resource.RLIMIT_AS, (limits["memory_bytes"],) * 2)
    resource.setrlimit(resource.RLIMIT_CPU, (limits["cpu_seconds"], limits["cpu_seconds"] + 5))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    resource.setrlimit(resource.RLIMIT_FSIZE, (0, 0))  # nothing is written but the reply, into a pipe
    sys.stdout.buffer.write(json.dumps(reply_to(answer, limits["memory_bytes"])).encode())


def reply_to(answer: Callable[[], Any], memory_bytes: int) -> dict[str, Any]:
    """Return the reply of a child whose work is `answer`; `memory_bytes` is its limit, for the message."""
    try:
        return {"found": answer()}
    except FileTooLargeError as error:
        return {"too_large": [str(error)]}
    except RowError as error:
        return {"wrong_row": [error.field, error.message]}
    except PromptError as error:
        return {"wrong_model": [str(error)]}
    except DataFileError as error:
        return {"unreadable": [str(error)]}
    except MemoryError:
        more = "write smaller row groups, or split it"
        return {"too_large": [f"the file needs more than {memory_bytes // 2**20} MiB of memory to read; {more}"]}
    except Exception as error:  # noqa: BLE001 - the boundary of the child: the file is at fault
        return {"unreadable": [f"not a readable file: {type(error).__name__}: {error}"[:500]]}


def _prepared(request: dict[str, Any]) -> Callable[[], Any]:
    """Load what the request needs, and return the function that answers it."""
    from trd_data.check import check_file
    from trd_data.formats import needs_arrow
    from trd_data.readers import RowLimits

    stream = sys.stdin.buffer
    if needs_arrow(stream):
        import pyarrow.parquet  # type: ignore[import-untyped]  # noqa: F401
    if "check" in request:
        check = request["check"]
        return lambda: asdict(check_file(stream, RowLimits(**check["limits"]), check["columns"]))
    from trd_data.preview import preview_rows

    preview = PreviewRequest(**request["preview"])
    return lambda: preview_rows(stream, preview)


if __name__ == "__main__":
    main()
