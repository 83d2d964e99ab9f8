"""The engine as a child process: command line, environment, start, stop and exit code."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Self

PACKAGES_DIR = Path(__file__).resolve().parent.parent
"""The folder that holds this package and its siblings."""

SUPERVISOR_VARIABLES = frozenset({"DATABASE_URL", "BROKER_URL", "STORAGE_URL", "TRD_API_KEY", "TRD_KEY_PEPPER"})
"""Variables that the engine does not need and must not be able to write into its log."""

STOP_FILE = "stop"
EXIT_CODE_FILE = "exit_code"


def engine_command(folder: Path, devices: int) -> list[str]:
    """Return the command line that runs the attempt in `folder`, with one process per device."""
    child = ["-m", "worker.engine_child", str(folder)]
    if devices == 1:
        return [sys.executable, *child]
    # Each job has its own rendezvous on a free local port. A failed rank fails the attempt: the supervisor retries it,
    # torchrun does not.
    launcher = ["-m", "torch.distributed.run", "--standalone", "--local-addr=127.0.0.1", "--max-restarts=0"]
    return [sys.executable, *launcher, f"--nproc-per-node={devices}", *child]


def child_environment(environment: Mapping[str, str]) -> dict[str, str]:
    """Return the environment without the supervisor's variables, and with our packages on the import path."""
    kept = {
        name: value
        for name, value in environment.items()
        # Without the store's credentials, and without the collector of traces, to which libraries might send their own.
        if name not in SUPERVISOR_VARIABLES and not name.startswith(("AWS_", "OTEL_"))
    }
    search_path = [str(PACKAGES_DIR), *filter(None, [kept.get("PYTHONPATH")])]
    return {**kept, "PYTHONPATH": os.pathsep.join(search_path), "PYTHONUNBUFFERED": "1"}


class StopRequest:
    """Whether the supervisor requested a stop: by SIGTERM, or by a file if a launcher runs in between."""

    def __init__(self, folder: Path) -> None:
        self._file = folder / STOP_FILE
        self._was_signalled = False
        signal.signal(signal.SIGTERM, self._on_signal)

    def __call__(self) -> bool:
        return self._was_signalled or self._file.exists()

    def _on_signal(self, *_: object) -> None:
        self._was_signalled = True


class EngineProcess:
    """A running child, leader of its own process group.

    One thread starts and watches it, and must outlive it: see `worker.bound_exec`.
    """

    def __init__(self, process: subprocess.Popen[bytes], folder: Path, *, is_launcher: bool) -> None:
        self._process = process
        self._folder = folder
        self._is_launcher = is_launcher

    @classmethod
    def start(cls, command: Sequence[str], folder: Path, *, devices: int = 1) -> Self:
        """Start `command` with its output appended to ``engine.log`` in `folder`. Raises OSError."""
        bound = [sys.executable, "-m", "worker.bound_exec", str(os.getpid()), *command]
        with (folder / "engine.log").open("ab") as log:
            process = subprocess.Popen(
                bound,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                env=child_environment(os.environ),
                start_new_session=True,
            )
        return cls(process, folder, is_launcher=devices > 1)

    @property
    def pid(self) -> int:
        """Process id of the child, and id of its process group."""
        return self._process.pid

    def poll(self) -> int | None:
        """Return None while the child runs, then its exit code, negative for a signal; processes it left are killed."""
        if self._process.returncode is None and self._has_exited():
            # Before the child is reaped: afterwards its id may belong to another process.
            self._signal_group(signal.SIGKILL)
            self._process.wait()
        return None if self._process.returncode is None else self._exit_code(self._process.returncode)

    def ask_to_stop(self) -> None:
        """Ask the child to stop at its next step boundary."""
        (self._folder / STOP_FILE).touch()
        # On SIGTERM torchrun kills its ranks soon after, so they watch for the file instead.
        if not self._is_launcher and not self._has_exited():
            self._process.send_signal(signal.SIGTERM)

    def kill(self) -> None:
        """Kill the whole process group; `poll` returns its exit code once it has ended."""
        if self._process.returncode is None:
            self._signal_group(signal.SIGKILL)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        """Kill the child if it still runs."""
        if self.poll() is None:
            self.kill()
            self._process.wait()

    def _has_exited(self) -> bool:
        """Return whether the child has ended, without reaping it."""
        if self._process.returncode is not None:
            return True
        return os.waitid(os.P_PID, self._process.pid, os.WEXITED | os.WNOHANG | os.WNOWAIT) is not None

    def _signal_group(self, number: signal.Signals) -> None:
        try:
            os.killpg(self._process.pid, number)
        except ProcessLookupError:
            return  # no process is left

    def _exit_code(self, process_code: int) -> int:
        """Return rank 0's exit code, which a launcher leaves in a file: torchrun turns every code into 0 or 1."""
        path = self._folder / EXIT_CODE_FILE
        if path.exists():
            return int(path.read_text(encoding="ascii"))
        return process_code
