"""Call code that may hang or crash on a model's text, each call with a hard time limit.

A few child processes answer requests one after another, as JSON lines on pipes. A child that does not answer in time is
killed and replaced; its request fails and the run continues. A child that cannot start ends the run, since every answer
would count as wrong. Works from any thread.
"""

from __future__ import annotations

import atexit
import json
import os
import queue
import selectors
import subprocess
import sys
import threading
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from trd_engine.runtime.errors import VerifierUnavailableError
from trd_engine.types import Verdict

_PACKAGE_ROOT = Path(__file__).resolve().parents[3]
_START = (
    "import sys; sys.path.insert(0, sys.argv[1]); "
    "from trd_engine.tasks.verifier_pool.child import main; main(sys.argv[2:])"
)
_ENVIRONMENT = {
    "PATH": os.defpath,
    "LANG": "C.UTF-8",
    "OMP_NUM_THREADS": "1",
    "OPENBLAS_NUM_THREADS": "1",
    "PYTHONHASHSEED": "0",  # what a library makes out of a set must be the same in every process
}
"""The whole environment of a child; no secret is passed on."""
_START_SECONDS = 120.0
"""Importing sympy takes seconds on a busy machine."""
_MAX_WORKERS = 4
TIME_OUT: Literal["time-out"] = "time-out"


@dataclass(frozen=True)
class Reply:
    """The result of a call: a value, or the reason why there is none ("time-out", "error: …")."""

    value: Any = None
    failure: str | None = None

    def failed_verdict(self) -> Verdict | None:
        """Return the verdict if there is no value; None if there is one."""
        if self.failure is None:
            return None
        return Verdict(False, self.failure, TIME_OUT if self.failure == TIME_OUT else "error")


class GuardedPool:
    """Child processes for one verifier, started at their first use."""

    def __init__(self, verifier: str, limit_seconds: float, num_workers: int | None = None) -> None:
        self._num_workers = num_workers or min(_MAX_WORKERS, os.cpu_count() or 1)
        self._workers = [_Worker(verifier, limit_seconds) for _ in range(self._num_workers)]
        self._idle: queue.LifoQueue[_Worker] = queue.LifoQueue()
        for worker in self._workers:
            self._idle.put(worker)

    def call(self, request: dict[str, Any]) -> Reply:
        """Return the reply to one request; waits for a free worker first. Raises `VerifierUnavailableError`."""
        worker = self._idle.get()
        try:
            return worker.call(request)
        finally:
            self._idle.put(worker)

    def map(self, requests: Sequence[dict[str, Any]]) -> list[Reply]:
        """Return one reply a request, in order."""
        if len(requests) <= 1:
            return [self.call(request) for request in requests]
        with ThreadPoolExecutor(min(self._num_workers, len(requests))) as threads:
            return list(threads.map(self.call, requests))

    def close(self) -> None:
        """End the children. Later calls start new ones."""
        workers = [self._idle.get() for _ in range(self._num_workers)]
        for worker in workers:
            worker.stop()
            self._idle.put(worker)


_pools: dict[tuple[str, float], GuardedPool] = {}
_pools_lock = threading.Lock()


def shared_pool(verifier: str, limit_seconds: float) -> GuardedPool:
    """Return the pool of this process for a verifier; ended at exit."""
    with _pools_lock:
        key = verifier, limit_seconds
        if key not in _pools:
            _pools[key] = GuardedPool(verifier, limit_seconds)
            atexit.register(_pools[key].close)
        return _pools[key]


class _Worker:
    """One child process, which is started again after it was killed."""

    def __init__(self, verifier: str, limit_seconds: float) -> None:
        self._verifier = verifier
        self._limit_seconds = limit_seconds
        self._process: subprocess.Popen[bytes] | None = None

    def call(self, request: dict[str, Any]) -> Reply:
        process = self._running()
        try:
            _send(process, request)
            reply = _receive(process, self._limit_seconds)
        except TimeoutError:
            self.stop()
            return Reply(failure=TIME_OUT)
        except (OSError, EOFError, ValueError) as error:
            self.stop()
            return Reply(failure=f"error: the verifier died: {error}")
        return Reply(reply.get("value"), reply.get("failure"))

    def stop(self) -> None:
        process, self._process = self._process, None
        if process is None:
            return
        process.kill()
        process.wait()
        for pipe in (process.stdin, process.stdout):
            assert pipe is not None
            pipe.close()

    def _running(self) -> subprocess.Popen[bytes]:
        if self._process is not None and self._process.poll() is not None:
            self.stop()
        if self._process is None:
            # Try twice: the machine may have had no room for a process at that moment.
            self._process = self._started() or self._started(is_last_try=True)
        assert self._process is not None
        return self._process

    def _started(self, *, is_last_try: bool = False) -> subprocess.Popen[bytes] | None:
        """Return a child that is ready; None if it is not, or raise `VerifierUnavailableError` on the last try."""
        arguments = [str(_PACKAGE_ROOT), self._verifier, str(self._limit_seconds)]
        try:
            self._process = subprocess.Popen(
                [sys.executable, "-P", "-s", "-c", _START, *arguments],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=subprocess.DEVNULL,
                bufsize=0,
                env=_ENVIRONMENT,
                start_new_session=True,
            )
            greeting = _receive(self._process, _START_SECONDS)
            problem = greeting.get("failure")
        except TimeoutError:
            problem = f"no sign of life in {_START_SECONDS:.0f} s"
        except (OSError, EOFError, ValueError) as error:
            problem = str(error)
        if problem is None:
            return self._process
        self.stop()
        if not is_last_try:
            return None
        raise VerifierUnavailableError(
            f"the verifier {self._verifier!r} does not start: {problem}; without it every answer would count as wrong. "
            "Repair the installation or free memory, then resume from the newest checkpoint"
        )


def _send(process: subprocess.Popen[bytes], request: dict[str, Any]) -> None:
    assert process.stdin is not None
    process.stdin.write(json.dumps(request).encode() + b"\n")


def _receive(process: subprocess.Popen[bytes], limit_seconds: float) -> dict[str, Any]:
    """Return the next line of the child, as JSON; raises TimeoutError, EOFError or ValueError."""
    assert process.stdout is not None
    deadline = time.monotonic() + limit_seconds
    line = b""
    with selectors.DefaultSelector() as selector:
        selector.register(process.stdout, selectors.EVENT_READ)
        while not line.endswith(b"\n"):
            if not selector.select(max(0.0, deadline - time.monotonic())):
                raise TimeoutError
            part = os.read(process.stdout.fileno(), 65536)
            if not part:
                raise EOFError(f"exit code {process.wait()}")
            line += part
    reply = json.loads(line)
    if not isinstance(reply, dict):
        raise ValueError("not an object")
    return reply
