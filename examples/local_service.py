"""API and worker as local processes, with a separate data folder and a free port of the loopback."""

from __future__ import annotations

import os
import secrets
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

from client import Client, ClientSettings, TrdError

START_SECONDS = 60.0
STOP_SECONDS = 30.0


class ServiceDiedError(RuntimeError):
    """A process of the service ended, or did not start in time; the message names its log."""


@dataclass(frozen=True)
class LocalService:
    """A running service."""

    client: Client
    """Client with an admin's key."""
    data_dir: Path
    url: str
    key: str
    """The admin's API key."""


@contextmanager
def local_service(data_dir: Path, *, settings: dict[str, str] | None = None) -> Iterator[LocalService]:
    """Start both processes with the embedded defaults, and stop them at the end.

    SIGTERM also stops both processes.
    `settings` are additional environment variables. Logs are ``api.log`` and ``worker.log`` in `data_dir`.
    """
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    data_dir.mkdir(parents=True, exist_ok=True)
    port, key = _free_port(), "trd_demo_" + secrets.token_urlsafe(24)
    environment = {**os.environ, "TRD_DATA_DIR": str(data_dir), "TRD_API_KEY": key, **(settings or {})}
    api = [sys.executable, "-m", "uvicorn", "service.app:app", "--port", str(port)]
    worker = [sys.executable, "-m", "celery", "-A", "worker.celery_app", "worker", "--loglevel", "INFO"]
    url = f"http://127.0.0.1:{port}"
    with ExitStack() as stack:
        client = stack.enter_context(Client(settings=ClientSettings(url=url, api_key=key)))
        stack.enter_context(_process(api, environment, data_dir / "api.log", lambda: _is_ready(client)))
        stack.enter_context(_process(worker, environment, data_dir / "worker.log", lambda: True))
        yield LocalService(client, data_dir, url, key)


@contextmanager
def _process(
    command: list[str], environment: dict[str, str], log: Path, is_ready: Callable[[], bool]
) -> Iterator[None]:
    with log.open("ab") as output:
        process = subprocess.Popen(command, env=environment, stdout=output, stderr=subprocess.STDOUT)
    try:
        deadline = time.monotonic() + START_SECONDS
        while not is_ready():
            if process.poll() is not None:
                raise ServiceDiedError(f"{log.stem} ended with {process.returncode}; see {log}")
            if time.monotonic() > deadline:
                raise ServiceDiedError(f"{log.stem} was not ready after {START_SECONDS:.0f} s; see {log}")
            time.sleep(0.2)
        yield
    finally:
        process.send_signal(signal.SIGTERM)
        try:
            process.wait(STOP_SECONDS)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


def _is_ready(client: Client) -> bool:
    try:
        return client.readiness().is_ready
    except TrdError:
        return False


def _free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        port: int = listener.getsockname()[1]
        return port
