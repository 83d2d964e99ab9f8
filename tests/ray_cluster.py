"""A Ray cluster of this machine's processes, with token authentication: a head without room, and nodes on disks of
their own."""

from __future__ import annotations

import os
import secrets
import signal
import subprocess
import sys
import tempfile
from pathlib import Path
from types import TracebackType
from typing import Self

from tests.servers import die_with_parent, free_port
from tests.worker.workbench import eventually

CHECKOUT = Path(__file__).parents[1]
START_SECONDS = 240
_START = [sys.executable, "-m", "ray.scripts.scripts", "start", "--block", "--node-ip-address=127.0.0.1"]
_FIRST_WORKER_PORT, _PORTS_PER_NODE = 33_000, 400


class RayNode:
    """The processes of one ``ray start``, in a separate process group."""

    def __init__(self, arguments: list[str], environment: dict[str, str], log: Path) -> None:
        with log.open("ab") as output:
            self._log_begins_at = output.tell()
            self._process = subprocess.Popen(
                [*_START, "--disable-usage-stats", *arguments],
                cwd=CHECKOUT,
                env=environment,
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=output,
                start_new_session=True,
                preexec_fn=die_with_parent,
            )
        self._log = log

    def wait_until_started(self) -> None:
        """Wait until Ray says so. Two raylets that start at the same moment could choose the same names, and abort."""

        def has_started() -> bool:
            log = self._log.read_bytes()[self._log_begins_at :].decode(errors="replace")
            assert self._process.poll() is None, log[-3000:]
            return "Ray runtime started" in log

        eventually(has_started, seconds=START_SECONDS)

    def kill(self) -> None:
        """Kill the whole machine, as far as Ray is concerned: signal 9 to every process of the group."""
        try:
            os.killpg(self._process.pid, signal.SIGKILL)
        except ProcessLookupError:
            return
        self._process.wait()


class RayCluster:
    """A head and the nodes that a test adds."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        folder.mkdir(parents=True, exist_ok=True)
        # Unix sockets lie below it, and their paths are limited to 107 bytes.
        self._sockets = tempfile.TemporaryDirectory(prefix="ray-", dir="/tmp", ignore_cleanup_errors=True)
        self._port = free_port()
        self._token = secrets.token_hex(24)
        self._num_started = 0
        self.nodes: dict[str, RayNode] = {}

    @property
    def environment(self) -> dict[str, str]:
        """What a process of the cluster, or a worker that uses it, is started with."""
        return {
            "RAY_ADDRESS": f"127.0.0.1:{self._port}",
            "RAY_AUTH_MODE": "token",
            "RAY_AUTH_TOKEN": self._token,
        }

    def start_head(self) -> None:
        """Start the head, which has no room for processes of a run, on its port."""
        head = ["--head", f"--port={self._port}", "--num-cpus=0", "--include-dashboard=false"]
        self._start("head", [*head, f"--temp-dir={self._sockets.name}", f"--ray-client-server-port={free_port()}"])

    def add_node(self, name: str, *, num_devices: int) -> None:
        """Start a node that joins the head."""
        self._start(name, [f"--address=127.0.0.1:{self._port}", f"--num-cpus={num_devices}"])

    def _start(self, name: str, arguments: list[str]) -> None:
        first = _FIRST_WORKER_PORT + self._num_started % 60 * _PORTS_PER_NODE
        self._num_started += 1
        ports = [f"--min-worker-port={first}", f"--max-worker-port={first + _PORTS_PER_NODE - 1}"]
        disk = self._folder / name
        disk.mkdir(exist_ok=True)
        environment = {name: value for name, value in os.environ.items() if name != "RAY_ADDRESS"} | {
            **{name: value for name, value in self.environment.items() if name != "RAY_ADDRESS"},
            "TRD_DATA_DIR": str(disk),
            "PYTHONPATH": str(CHECKOUT),
            "OMP_NUM_THREADS": "1",
        }
        memory = ["--object-store-memory=100000000", "--num-gpus=0"]
        self.nodes[name] = RayNode([*arguments, *ports, *memory], environment, self._folder / f"{name}.log")
        self.nodes[name].wait_until_started()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for node in reversed(self.nodes.values()):
            node.kill()
        self._sockets.cleanup()
