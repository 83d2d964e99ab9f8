"""Child processes that a command starts and stops."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path

from client.errors import TrdError

STOP_SECONDS = 150.0
"""A worker gives the engine 60 seconds to finish its step and write a checkpoint, and needs as long to store it."""
TAIL_CHARACTERS = 600


def python_command(module: str, *arguments: str) -> list[str]:
    """Return the command ``python -m module …`` for this Python."""
    return [sys.executable, "-m", module, *arguments]


class ChildProcess:
    """One program with its log. It runs in a separate session: Ctrl-C in the terminal reaches it through us alone, and
    only once. If this process is killed, the kernel kills it."""

    def __init__(self, name: str, command: list[str], environment: Mapping[str, str], log: Path) -> None:
        self.log = log
        self._name = name
        self._command = python_command("worker.bound_exec", str(os.getpid()), *command)
        self._environment = environment
        self._process: subprocess.Popen[bytes] | None = None

    @property
    def is_running(self) -> bool:
        """Whether the process has started and not ended."""
        return self._process is not None and self._process.poll() is None

    def start(self) -> None:
        """Start the process; its output is appended to its log."""
        with self.log.open("ab") as output:
            self._process = subprocess.Popen(
                self._command,
                env=dict(self._environment),
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )

    def require_running(self) -> None:
        """Raise `TrdError` with the end of the log if it has ended."""
        if self._process is None or self._process.poll() is None:
            return
        tail = self.log.read_text(encoding="utf-8", errors="replace")[-TAIL_CHARACTERS:].strip()
        lines = "\n".join(f"  {line}" for line in tail.splitlines()[-6:])
        raise TrdError(
            f"the {self._name} ended with exit code {self._process.returncode}\n{lines}", hint=f"its log is {self.log}"
        )

    def ask_to_stop(self) -> None:
        """Send SIGTERM, as a service manager does."""
        assert self._process is not None, "the process was started"
        self._process.send_signal(signal.SIGTERM)

    def wait(self) -> None:
        """Wait until the process has ended, and kill it if that takes too long."""
        assert self._process is not None, "the process was started"
        try:
            self._process.wait(STOP_SECONDS)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
