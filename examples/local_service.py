"""A service of one's own for an example: ``trd up`` with a separate data folder and a free port of the loopback."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from client import Client


class ServiceDiedError(RuntimeError):
    """The service did not start; ``trd up`` has written why."""


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
    """Start API and worker with the embedded defaults, and stop them at the end, after SIGTERM too.

    `settings` are additional environment variables. Logs are ``api.log`` and ``worker.log`` in `data_dir`.
    """
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    command = [sys.executable, "-m", "client.cli", "up", "--port", "0", "--data-dir", str(data_dir), "--json"]
    environment = {**os.environ, "TRD_API_KEY": "", **(settings or {})}  # not the key of another service
    with subprocess.Popen(command, env=environment, stdout=subprocess.PIPE) as process:
        try:
            assert process.stdout is not None, "asked for a pipe"
            if not (line := process.stdout.readline()):
                raise ServiceDiedError(f"the service did not start; its logs are in {data_dir}")
            started = json.loads(line)
            with Client(started["url"], started["api_key"]) as client:
                yield LocalService(client, data_dir, started["url"], started["api_key"])
        finally:
            process.send_signal(signal.SIGTERM)
