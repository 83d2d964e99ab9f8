"""A Celery worker as an operator starts it, in a separate process."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path

from tests.worker.scripted_engine import Plan
from tests.worker.workbench import eventually

ROOT = Path(__file__).parents[2]

QUICK = {
    "TRD_LEASE_SECONDS": "2",
    "TRD_HEARTBEAT_SECONDS": "0.2",
    "TRD_PROGRESS_SECONDS": "0.05",
    "TRD_POLL_SECONDS": "0.3",
    "TRD_REAPER_SECONDS": "0.3",
    "TRD_CHECK_MACHINE": "0",  # it takes seconds of processor time
}


class WorkerProcess:
    """``celery -A … worker``, whose child plays a plan. Killed on leaving the context, if it still runs."""

    def __init__(self, environment: Mapping[str, str], log: Path, plan: Plan) -> None:
        self.log = log
        with log.open("wb") as file:
            self._process = subprocess.Popen(
                [sys.executable, "-m", "celery", "-A", "tests.faults.scripted_worker", "worker", "--loglevel=INFO"],
                cwd=ROOT,
                env={**os.environ, **QUICK, **environment, "SCRIPTED_PLAN": plan.to_json()},
                stdout=file,
                stderr=file,
                start_new_session=True,
            )

    def __enter__(self) -> WorkerProcess:
        return self

    def __exit__(self, *_: object) -> None:
        if self._process.poll() is None:
            self._process.kill()
        self._process.wait()

    @property
    def pid(self) -> int:
        """Process id of the worker."""
        return self._process.pid

    def output(self) -> str:
        """Return what it has printed so far."""
        return self.log.read_text(errors="replace")

    def wait_until_ready(self) -> None:
        """Wait until it listens to the broker."""
        eventually(lambda: " ready." in self.output() or self._process.poll() is not None, seconds=60)
        assert self._process.poll() is None, self.output()

    def terminate(self, *, seconds: float = 30) -> int:
        """Shut it down as a service manager does, and return its exit code."""
        self._process.send_signal(signal.SIGTERM)
        return self._process.wait(seconds)

    def kill(self) -> None:
        """Signal 9, to the worker alone."""
        self._process.kill()
        self._process.wait()
