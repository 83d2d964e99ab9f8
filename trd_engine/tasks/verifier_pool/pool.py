"""Call code that may hang, crash or be rewritten by a model's text, each call with a hard time limit.

A few child processes take requests, as JSON lines on pipes, and judge each in a separate fork, confined like a
program (`trd_engine.tasks.sandbox`). A fork that does not reply in time is killed; its request fails and the run
continues. A child that cannot start ends the run, since every answer would count as wrong. Works from any thread.
"""

from __future__ import annotations

import atexit
import json
import logging
import os
import queue
import selectors
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

from trd_engine.runtime.errors import SpecError, VerifierUnavailableError
from trd_engine.tasks.sandbox.confinement import Confinement
from trd_engine.tasks.sandbox.runner import find_confinement
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
_MAX_WORKERS = 16
"""Children of one process; each has some 70 MiB."""
_GRACE_SECONDS = 5.0
"""How much later than its limit a request's reply may come, before its child is replaced."""
TIME_OUT: Literal["time-out"] = "time-out"
UNCONFINED_VARIABLE = "TRD_ALLOW_UNCONFINED_VERIFIERS"


def verifier_confinement() -> Confinement | None:
    """Return the layers around a verifier; None if this machine has none that hold and its operator allows that.

    Raises SpecError if the operator does not.
    """
    try:
        return find_confinement()
    except SpecError as error:
        if os.environ.get(UNCONFINED_VARIABLE, "").strip() == "1":
            logging.getLogger(__name__).warning(
                "answers are evaluated without confinement, as %s=1 allows", UNCONFINED_VARIABLE
            )
            return None
        raise SpecError(
            f"task: {error}. Run it on such a machine, or, if you trust the models whose answers it judges, allow "
            f"unconfined verifiers with {UNCONFINED_VARIABLE}=1 in the worker's environment"
        ) from None


@dataclass(frozen=True)
class Request:
    """A call of a verifier."""

    body: dict[str, Any]
    """Read by the request's own process alone."""
    shared: dict[str, Any] | None = None
    """Loaded once for all requests that have the same: no answer may be in it."""


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
        # The processors are shared by all processes that torchrun has started on the machine.
        num_processors = len(os.sched_getaffinity(0)) // int(os.environ.get("LOCAL_WORLD_SIZE", "1"))
        self._num_workers = num_workers or max(1, min(_MAX_WORKERS, num_processors))
        self._workers = [_Worker(verifier, limit_seconds) for _ in range(self._num_workers)]
        self._idle: queue.LifoQueue[_Worker] = queue.LifoQueue()
        for worker in self._workers:
            self._idle.put(worker)

    def call(self, request: Request) -> Reply:
        """Return the reply to one request; waits for a free worker first. Raises `VerifierUnavailableError`."""
        worker = self._idle.get()
        try:
            return worker.call(request)
        finally:
            self._idle.put(worker)

    def map(self, requests: Sequence[Request]) -> list[Reply]:
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

    def call(self, request: Request) -> Reply:
        process = self._running()
        try:
            _send(process, request)
            reply = _receive(process, self._limit_seconds + _GRACE_SECONDS)
        except TimeoutError:
            self.stop()
            return Reply(failure=TIME_OUT)
        except (OSError, EOFError, ValueError) as error:
            self.stop()
            return Reply(failure=f"error: the verifier died: {error}")
        failure = reply.get("failure")
        return Reply(reply.get("value"), None if failure is None else str(failure))

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
        layers = verifier_confinement()
        root = tempfile.mkdtemp(prefix="trd-verifier-")
        layers_json = json.dumps(layers and asdict(layers))
        arguments = [str(_PACKAGE_ROOT), self._verifier, str(self._limit_seconds), layers_json, root]
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
        finally:
            with suppress(OSError):
                os.rmdir(root)  # noqa: PTH106 - a child that started has another root
        if problem is None:
            return self._process
        self.stop()
        if not is_last_try:
            return None
        raise VerifierUnavailableError(
            f"the verifier {self._verifier!r} does not start: {problem}; without it every answer would count as wrong. "
            "Repair the installation or free memory, then resume from the newest checkpoint"
        )


def _send(process: subprocess.Popen[bytes], request: Request) -> None:
    assert process.stdin is not None
    lines = json.dumps(request.shared).encode() + b"\n" + json.dumps(request.body).encode() + b"\n"
    while lines:  # unbuffered, a pipe may take a part
        lines = lines[process.stdin.write(lines) :]


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
    try:
        reply = json.loads(line)
    except RecursionError:
        raise ValueError("nested too deep") from None
    if not isinstance(reply, dict):
        raise ValueError("not an object")
    return reply
