"""What a worker finds out about its machine when it starts: the short form of ``trd doctor``, in a child process.

The findings are kept with the worker's row in the database, which it renews while it lives (`worker.reaper`), and so is
what it offers: it claims no other jobs.
"""

from __future__ import annotations

import json
import logging
import os
import subprocess
import sys
import threading
from contextlib import ExitStack, suppress
from pathlib import Path
from typing import Any

from contract.model_catalog import is_there
from contract.routing import Offer, endpoint_name
from worker.attempt import Slot
from worker.engine_process import child_environment
from worker.failures import public_text

logger = logging.getLogger(__name__)

CHECK_SECONDS = 180.0
"""A check that takes longer is ended, and reported as a failure."""
DEVICE_CHECK = "device kind"
"""The finding whose message is the kind of device."""
_DEVICE_FILES = Path("/dev")
_MEMORY_LIMITS = (Path("/sys/fs/cgroup/memory.max"), Path("/sys/fs/cgroup/memory/memory.limit_in_bytes"))


def start_machine_check(slot: Slot) -> threading.Thread:
    """Check the machine in a separate thread, and leave the findings in `slot.findings`.

    With a GPU no job starts meanwhile: an engine that measures free memory must not meet the check's process.
    """

    taken = ExitStack()
    if any(_DEVICE_FILES.glob("nvidia[0-9]*")):
        taken.enter_context(slot.taken())

    def check() -> None:
        with taken:
            slot.findings = check_machine(slot.settings.scratch_dir)
        for finding in slot.findings:
            if finding["status"] == "fail":
                logger.warning("%s: %s; %s", finding["check"], finding["message"], finding["remedy"])

    thread = threading.Thread(target=check, name="machine-check", daemon=True)
    thread.start()
    return thread


def check_machine(folder: Path) -> list[dict[str, Any]]:
    """Return the findings of the short checks; `folder` is where runs are written."""
    doctor = [sys.executable, "-m", "trd_engine", "doctor", "--quick", "--json", "--out", str(folder)]
    command = [sys.executable, "-m", "worker.bound_exec", str(os.getpid()), *doctor]
    try:
        done = subprocess.run(
            command,
            env=child_environment(os.environ),
            capture_output=True,
            text=True,
            timeout=CHECK_SECONDS,
            check=False,
        )
    except (OSError, subprocess.TimeoutExpired) as error:
        return [_no_doctor(public_text(error))]
    findings = [json.loads(line) for line in done.stdout.splitlines() if line.startswith("{")]
    return findings or [_no_doctor(done.stderr[-400:])]


def device_kind(slot: Slot) -> str | None:
    """Return the kind of device of this machine; None until it is known."""
    found = _device_finding(slot)
    return found["message"][:40] if found is not None else None


def offer_of(slot: Slot) -> Offer:
    """Return what this worker can run, as far as it is known now. Nothing is known of the machines of a Ray cluster but
    what its operator says."""
    settings, found, catalog = slot.settings, _device_finding(slot), slot.catalog()
    endpoints = map(endpoint_name, settings.teacher_endpoints)
    if settings.launcher == "ray":
        return Offer(
            queues=settings.queues,
            models=frozenset([*catalog, *endpoints]),
            num_nodes=settings.nodes,
            num_devices=settings.devices_per_node,
        )
    there = [name for name, entry in catalog.items() if is_there(entry)]
    return Offer(
        queues=settings.queues,
        models=frozenset([*there, *endpoints]),
        num_nodes=1,
        device_kind=device_kind(slot),
        host_bytes=host_bytes(),
        **(found["figures"] if found is not None else {}),
    )


def _device_finding(slot: Slot) -> dict[str, Any] | None:
    found = (one for one in slot.findings or () if one["check"] == DEVICE_CHECK and one["status"] == "pass")
    return next(found, None)


def host_bytes() -> int:
    """Return the memory of this machine, or the limit of the container if that is lower."""
    total = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    for limit in _MEMORY_LIMITS:
        with suppress(OSError, ValueError):  # the other version of cgroups, or "max"
            total = min(total, int(limit.read_text(encoding="ascii")))
    return total


def _no_doctor(reason: str) -> dict[str, Any]:
    remedy = "run trd doctor on the worker's machine"
    return {"check": "doctor", "status": "fail", "message": reason, "remedy": remedy}
