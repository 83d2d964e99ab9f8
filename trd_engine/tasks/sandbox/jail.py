"""The sandbox's own process: takes one program and its cases, runs each in a confined child, replies.

Started by `runner`. It reads one JSON request and leaves the machine (`confinement`).
"""

from __future__ import annotations

import json
import os
import secrets
import select
import signal
import sys
import time
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from trd_data.plain_json import allow_long_integers
from trd_engine.tasks.sandbox import cases, kernel
from trd_engine.tasks.sandbox.confinement import (
    Confinement,
    confine_program,
    counts_threads,
    enter_confinement,
)
from trd_engine.tasks.sandbox.drain import Drained, Pipe, WatchedScratch, drain
from trd_engine.tasks.sandbox.limits import Limits, empty_scratch
from trd_engine.tasks.sandbox.prelude import load_prelude

_ERROR_BYTES = 4000


@dataclass(frozen=True)
class _Jail:
    program: str
    confinement: Confinement
    limits: Limits
    scratch: str
    deadline: float
    """End of the time of all cases together, by the monotonic clock."""
    allow_threads: bool


def main() -> None:
    """Serve the request on standard input; every line on standard output is a reply."""
    kernel.die_with_parent()
    allow_long_integers()
    request = json.load(sys.stdin.buffer)
    limits = Limits(**request["limits"])
    confinement = Confinement(**request["confinement"])
    allow_threads = counts_threads(confinement)
    scratch = enter_confinement(confinement, request["root"], limits)
    sys.path.remove(request["package_root"])
    if any("entry_point" in case for case in request["cases"]):
        load_prelude()
    deadline = time.monotonic() + limits.total_seconds
    jail = _Jail(request["program"], confinement, limits, scratch, deadline, allow_threads)
    num_bytes_left = limits.total_output_bytes
    for case in request["cases"]:
        empty_scratch(Path(scratch))
        reply = _run(jail, case, min(limits.output_bytes, num_bytes_left))
        num_bytes_left -= len(reply["output"])
        print(json.dumps(reply), flush=True)  # noqa: T201 - the reply channel
        if reply["status"] != "ok":
            break


def _run(jail: _Jail, case: Mapping[str, Any], max_output_bytes: int) -> dict[str, Any]:
    """Run one case in a child process; return its status, what it printed or returned, and its error."""
    output, error = Pipe(max_output_bytes), Pipe(_ERROR_BYTES)
    result = Pipe(max(max_output_bytes, cases.KEY_BYTES))
    key_reader, key_writer = os.pipe()
    sys.stdout.flush()
    child = os.fork()
    if child == 0:
        descriptors = [_input_descriptor(case), output.writer, error.writer, result.writer, key_reader]
        _become_program(jail, case, descriptors)
    for descriptor in (output.writer, error.writer, result.writer, key_reader):
        os.close(descriptor)
    # Drawn only now: the child's memory is a copy of ours as it was at the fork.
    key = secrets.token_hex(cases.KEY_BYTES // 2).encode()
    with suppress(BrokenPipeError):
        os.write(key_writer, key)
    started = time.monotonic()
    deadline = min(started + jail.limits.wall_seconds, jail.deadline)
    watched = None if jail.confinement.namespaces != "none" else WatchedScratch(Path(jail.scratch), child)
    drained = drain([output, error, result], deadline, watched, jail.limits.scratch_bytes)
    if drained is Drained.ENDED and not _ends_by(child, deadline):
        drained = Drained.TIME_OUT  # it closed its pipes and lives on
    if drained is not Drained.ENDED:
        os.kill(child, signal.SIGKILL)
    _, status, usage = os.wait4(child, 0)
    os.close(key_writer)
    state = _status(os.waitstatus_to_exitcode(status), drained, usage.ru_utime + usage.ru_stime, jail.limits)
    return {
        "status": state,
        "output": (result if "entry_point" in case else output).text(),
        "passed": result.data == key,
        "error": error.text(),
    }


def _become_program(jail: _Jail, case: Mapping[str, Any], descriptors: list[int]) -> None:
    """Become the program, in the child: keep no descriptor but 0 to 4, add all layers, execute. Never returns."""
    code = cases.FAILED
    try:
        kernel.die_with_parent()
        # First out of the way of the numbers they are to have, then there.
        high = [os.dup2(descriptor, 100 + place) for place, descriptor in enumerate(descriptors)]
        for place, descriptor in enumerate(high):
            os.dup2(descriptor, place)
        os.closerange(len(descriptors), 4096)
        confine_program(jail.confinement, jail.scratch, jail.limits, allow_threads=jail.allow_threads)
        code = cases.run_case(jail.program, case)
    except BaseException as error:  # noqa: BLE001 - a fork must never return into its parent's code
        os.write(2, f"the sandbox failed: {error}".encode()[:_ERROR_BYTES])
    finally:
        os._exit(code)


def _ends_by(child: int, deadline: float) -> bool:
    """Wait for a child to end, without reaping it."""
    descriptor = os.pidfd_open(child)
    try:
        ready, _, _ = select.select([descriptor], [], [], max(0.0, deadline - time.monotonic()))
    finally:
        os.close(descriptor)
    return bool(ready)


def _input_descriptor(case: Mapping[str, Any]) -> int:
    descriptor = os.memfd_create("stdin")
    remaining = case.get("stdin", "").encode("utf-8", "surrogatepass")
    while remaining:
        remaining = remaining[os.write(descriptor, remaining) :]
    os.lseek(descriptor, 0, os.SEEK_SET)
    return descriptor


def _status(exit_code: int, drained: Drained, cpu_seconds: float, limits: Limits) -> str:
    if drained is not Drained.ENDED:
        return str(drained.value)
    if exit_code in (-signal.SIGXCPU, -signal.SIGKILL) and cpu_seconds >= limits.cpu_seconds - 0.5:
        return str(Drained.TIME_OUT.value)
    return "ok" if exit_code == 0 else f"exit code {exit_code}"
