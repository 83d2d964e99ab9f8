"""The engine as a child process: its command line, its environment, its start, stop and end."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Self

PACKAGES_DIR = Path(__file__).resolve().parent.parent
"""The folder that holds this package and its siblings."""

SUPERVISOR_VARIABLES = frozenset({"DATABASE_URL", "BROKER_URL", "STORAGE_URL", "TRD_API_KEY", "TRD_KEY_PEPPER"})
"""What the engine has no use for, and should not be able to spill into its log."""

STOP_FILE = "stop"
EXIT_CODE_FILE = "exit_code"


def engine_command(folder: Path, devices: int) -> list[str]:
    """The command line that runs the attempt in `folder`: one process a device."""
    child = ["-m", "worker.engine_child", str(folder)]
    if devices == 1:
        return [sys.executable, *child]
    # Each job has its own rendezvous on a free port of this machine; a failed rank fails the attempt, which
    # the supervisor tries again, torchrun does not.
    launcher = ["-m", "torch.distributed.run", "--standalone", "--local-addr=127.0.0.1", "--max-restarts=0"]
    return [sys.executable, *launcher, f"--nproc-per-node={devices}", *child]


def child_environment(environment: Mapping[str, str]) -> dict[str, str]:
    """The supervisor's environment without what is the supervisor's alone; our packages can be imported."""
    kept = {
        name: value
        for name, value in environment.items()
        if name not in SUPERVISOR_VARIABLES and not name.startswith("AWS_")  # the store's credentials
    }
    search_path = [str(PACKAGES_DIR), *filter(None, [kept.get("PYTHONPATH")])]
    return {**kept, "PYTHONPATH": os.pathsep.join(search_path), "PYTHONUNBUFFERED": "1"}


class EngineProcess:
    """A running child, leader of a process group of its own.

    Made and watched by one thread, which must outlive it: see `worker.bound_exec`.
    """

    def __init__(self, process: subprocess.Popen[bytes], folder: Path, *, is_launcher: bool) -> None:
        self._process = process
        self._folder = folder
        self._is_launcher = is_launcher

    @classmethod
    def start(cls, command: Sequence[str], folder: Path, *, devices: int = 1) -> Self:
        """Start `command`; what it prints goes to ``engine.log`` in `folder`. Raises OSError."""
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
        """Of the child, and of its process group."""
        return self._process.pid

    def poll(self) -> int | None:
        """The child's exit code once it has ended, negative for a signal; what it has left behind is killed."""
        if self._process.returncode is None and self._has_exited():
            # Before the child is reaped: after that its number may be given to another process.
            self._signal_group(signal.SIGKILL)
            self._process.wait()
        return None if self._process.returncode is None else self._exit_code(self._process.returncode)

    def ask_to_stop(self) -> None:
        """Ask for an end at the next boundary."""
        (self._folder / STOP_FILE).touch()
        # torchrun answers SIGTERM by killing its ranks soon after; they see the file instead.
        if not self._is_launcher and not self._has_exited():
            self._process.send_signal(signal.SIGTERM)

    def kill(self) -> None:
        """Kill the whole process group. `poll` tells when it is gone."""
        if self._process.returncode is None:
            self._signal_group(signal.SIGKILL)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Leave no child behind: one that still runs is killed."""
        if self.poll() is None:
            self.kill()
            self._process.wait()

    def _has_exited(self) -> bool:
        """True where it has ended and is not reaped yet."""
        if self._process.returncode is not None:
            return True
        return os.waitid(os.P_PID, self._process.pid, os.WEXITED | os.WNOHANG | os.WNOWAIT) is not None

    def _signal_group(self, number: signal.Signals) -> None:
        try:
            os.killpg(self._process.pid, number)
        except ProcessLookupError:
            return  # nobody is left

    def _exit_code(self, process_code: int) -> int:
        """torchrun turns every code into 0 or 1; rank 0 then leaves its own in a file."""
        path = self._folder / EXIT_CODE_FILE
        if self._is_launcher and path.exists():
            return int(path.read_text(encoding="ascii"))
        return process_code
