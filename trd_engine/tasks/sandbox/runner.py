"""Our side of the sandbox: start it, give it a program and its cases, take its replies."""

from __future__ import annotations

import functools
import json
import os
import signal
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from trd_engine.runtime.errors import SpecError
from trd_engine.tasks.sandbox.attacks import successful_attacks
from trd_engine.tasks.sandbox.confinement import Confinement, candidates
from trd_engine.tasks.sandbox.limits import Limits, empty_scratch

_PACKAGE_ROOT = str(Path(__file__).resolve().parents[3])
_START = """\
import sys
sys.path.insert(0, sys.argv[1])
from trd_engine.tasks.sandbox.jail import main
main()
"""
_ENVIRONMENT = {
    "PATH": os.defpath,
    "LANG": "C.UTF-8",
    "HOME": "/nonexistent",
    "PYTHONHASHSEED": "0",  # a program that prints a set gets the same verdict every time
    "OMP_NUM_THREADS": "1",
    "OPENBLAS_NUM_THREADS": "1",
}
"""All that a program sees of the environment; nothing of ours is passed on."""
_START_SECONDS = 30.0


@dataclass(frozen=True)
class CaseResult:
    """What one case came to."""

    status: str
    """"ok", "time-out", "too much output", "exit code N"…"""
    output: str = ""
    """Standard output; of a call, its value as JSON."""
    passed: bool = False
    """Whether a test script ran to its end."""
    error: str = ""
    """The program's exception, or the end of its standard error."""


class SandboxError(RuntimeError):
    """The sandbox itself did not start; the program was not run."""


def run_program(
    program: str,
    cases: Sequence[Mapping[str, Any]],
    limits: Limits,
    confinement: Confinement,
) -> list[CaseResult]:
    """Return the results in the order of `cases`, up to the first that failed.

    A case is {"stdin"}, {"entry_point", "arguments"} or {"test"}. Raises SandboxError.
    """
    with tempfile.TemporaryDirectory(prefix="trd-sandbox-", ignore_cleanup_errors=True) as root:
        request = {
            "program": program,
            "cases": list(cases),
            "limits": asdict(limits),
            "confinement": asdict(confinement),
            "root": root,
            "package_root": _PACKAGE_ROOT,
        }
        try:
            output, errors = _serve(json.dumps(request).encode(), limits.total_seconds + _START_SECONDS)
        finally:
            with suppress(OSError):
                empty_scratch(Path(root))
    results = whole_replies(output)
    if cases and not results:
        raise SandboxError(f"the sandbox did not start: {errors.decode('utf-8', 'replace')[-500:].strip()}")
    return results


def whole_replies(output: bytes) -> list[CaseResult]:
    """Return the replies in a sandbox's output; the end of one that was killed while it wrote is none."""
    whole, _, _ = output.rpartition(b"\n")
    return [CaseResult(**json.loads(line)) for line in whole.splitlines()]


@functools.cache
def find_confinement() -> Confinement:
    """Return the strongest layers that this machine allows and that hold: each candidate is attacked first.

    Raises SpecError if none holds, with what went through.
    """
    reasons = []
    for confinement in candidates():
        try:
            breaches = successful_attacks(functools.partial(_attack, confinement))
        except SandboxError as error:
            reasons.append(f"{confinement}: {error}")
            continue
        if not breaches:
            return confinement
        reasons.append(f"{confinement}: {', '.join(breaches)} went through")
    raise SpecError(
        "programs and answers are evaluated in confined processes only, which needs Linux on x86_64 or aarch64 with "
        f"seccomp, and namespaces or Landlock; on this machine: {'; '.join(reasons) or 'none of it'}"
    )


def _attack(confinement: Confinement, program: str, arguments: Sequence[Any]) -> list[str]:
    case = {"entry_point": "attack", "arguments": list(arguments)}
    result = run_program(program, [case], Limits(), confinement)[0]
    if result.status != "ok":
        raise SandboxError(f"a harmless program failed: {result.status} {result.error}")
    breaches: list[str] = json.loads(result.output)
    return breaches


def _serve(request: bytes, limit_seconds: float) -> tuple[bytes, bytes]:
    """Return standard output and error of a sandbox, which is killed with all its processes if it takes too long."""
    with subprocess.Popen(
        [sys.executable, "-P", "-s", "-B", "-c", _START, _PACKAGE_ROOT],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        env=_ENVIRONMENT,
        cwd="/",
        start_new_session=True,
    ) as process:
        try:
            return process.communicate(request, timeout=limit_seconds)
        except subprocess.TimeoutExpired:
            _kill_group(process)
            return process.communicate()
        except BaseException:
            _kill_group(process)
            raise


def _kill_group(process: subprocess.Popen[bytes]) -> None:
    with suppress(ProcessLookupError, PermissionError):
        os.killpg(process.pid, signal.SIGKILL)
