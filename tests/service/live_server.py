"""The application in a separate process, as an operator starts it."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

import httpx

from tests.servers import die_with_parent, free_port

CHECKOUT = Path(__file__).parents[2]
START_SECONDS = 60


@dataclass(frozen=True)
class LiveServer:
    """A running server."""

    url: str
    process: subprocess.Popen[bytes]
    log: Path


@contextmanager
def live_server(
    data_dir: Path, *, app: str = "service.app:app", log_level: str = "warning", **environment: str
) -> Iterator[LiveServer]:
    """Serve on a free port until the block ends; the server's own settings are `environment`'s."""
    port = free_port()
    log = data_dir.with_suffix(".log")
    env = {**os.environ, "TRD_DATA_DIR": str(data_dir), **environment}
    command = [sys.executable, "-m", "uvicorn", app, "--port", str(port), "--log-level", log_level]
    with log.open("ab") as output:
        process = subprocess.Popen(
            command, cwd=CHECKOUT, env=env, stdout=output, stderr=output, preexec_fn=die_with_parent
        )
    try:
        _wait_until_it_answers(f"http://127.0.0.1:{port}", process, log)
        yield LiveServer(f"http://127.0.0.1:{port}", process, log)
    finally:
        stop(process)


def _wait_until_it_answers(url: str, process: subprocess.Popen[bytes], log: Path) -> None:
    deadline = time.monotonic() + START_SECONDS
    with httpx.Client(timeout=5) as client:  # to make one for each look would cost more than the look
        while True:
            with suppress(httpx.TransportError):
                if client.get(f"{url}/healthz").status_code == 200:
                    return
            if process.poll() is not None or time.monotonic() > deadline:
                raise RuntimeError(f"the server did not start:\n{log.read_text()[-3000:]}")
            time.sleep(0.05)


def stop(process: subprocess.Popen[bytes]) -> None:
    """Stop the server as an operator does; kill it only if that takes too long."""
    if process.poll() is None:
        process.send_signal(signal.SIGTERM)
    try:
        process.wait(20)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()
        raise
