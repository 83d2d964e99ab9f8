"""``python -m trd_engine doctor``: every check in turn, each with its result and what to do.

A check that cannot be made is reported as not tried, with the reason; it never passes in silence.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict
from pathlib import Path

from trd_engine.config import load_config
from trd_engine.doctor import machine_checks
from trd_engine.doctor.findings import FailedError, Finding, Machine, Measured, NotTriedError
from trd_engine.runtime.errors import EngineError
from trd_engine.runtime.hardware import choose_device

Check = Callable[[Machine], str | Measured]

QUICK_CHECKS: dict[str, Check] = {
    "device": machine_checks.check_device,
    "device kind": machine_checks.check_device_kind,
    "GPU health": machine_checks.check_gpu_health,
    "kernel log": machine_checks.check_kernel_log,
    "compiler": machine_checks.check_compiler,
    "caches": machine_checks.check_caches,
    "limits": machine_checks.check_limits,
    "disk": machine_checks.check_disk,
    "host memory": machine_checks.check_host_memory,
}


def slow_checks() -> dict[str, Check]:
    """Return the checks that `quick` leaves out. Their modules load the whole engine, which takes seconds."""
    from trd_engine.doctor import engine_checks, estimate

    return {
        "spec": engine_checks.check_spec,
        "estimate": estimate.check_estimate,
        "loss": engine_checks.check_loss,
        "packing": engine_checks.check_packing,
        "verifier": engine_checks.check_verifier,
        "out of memory": engine_checks.check_out_of_memory,
        "device assert": engine_checks.check_device_assert,
        "run": engine_checks.check_run,
        "sync": engine_checks.check_sync,
        "all-reduce": machine_checks.check_all_reduce,
        "sharding": engine_checks.check_sharding,
    }


def examine(folder: Path, spec: Path | None = None, *, quick: bool = False) -> Iterator[Finding]:
    """Yield a finding per check. `quick`: only those that take no more than a second."""
    try:
        device = choose_device("auto")
    except EngineError as error:
        yield Finding("device", "fail", str(error), "see the message")
        return
    try:
        config = None if spec is None else load_config(spec)
    except EngineError as error:
        yield Finding("spec", "fail", str(error), "see the message")
        return
    machine = Machine(device, folder, config)
    for name, check in (QUICK_CHECKS if quick else QUICK_CHECKS | slow_checks()).items():
        yield from _findings(name, check, machine)


def _findings(name: str, check: Check, machine: Machine) -> Iterator[Finding]:
    started_at = time.monotonic()
    try:
        found = check(machine)
        measured = found if isinstance(found, Measured) else Measured(found, {})
        yield Finding(name, "pass", measured.message, seconds=_since(started_at), figures=measured.figures)
    except NotTriedError as reason:
        yield Finding(name, "not tried", str(reason), seconds=_since(started_at))
    except FailedError as fault:
        yield Finding(name, "fail", str(fault), fault.remedy, _since(started_at))
    except Exception as error:  # noqa: BLE001 - the boundary of a check: whatever fails is a finding
        remedy = "see the message" if isinstance(error, EngineError) else "report it, with the output of --json"
        yield Finding(name, "fail", f"{type(error).__name__}: {error}"[:1000], remedy, _since(started_at))


def _since(started_at: float) -> float:
    return round(time.monotonic() - started_at, 2)


def main(folder: Path, spec: Path | None, *, quick: bool, as_json: bool) -> int:
    """Print the findings as they are made; return 1 if one is a failure."""
    has_failed = False
    for finding in examine(folder, spec, quick=quick):
        has_failed |= finding.status == "fail"
        if as_json:
            print(json.dumps(asdict(finding)), flush=True)  # noqa: T201
            continue
        print(f"{finding.status:<9}  {finding.check:<13}  {finding.message}", flush=True)  # noqa: T201
        if finding.remedy:
            print(f"{'':<26}what to do: {finding.remedy}", flush=True)  # noqa: T201
    return int(has_failed)
