"""One machine's part of an attempt, as an actor of a Ray cluster: a folder on its disk, and the engine's processes.

The driver (`worker.launchers.ray_driver`) is its only caller. Only bytes, numbers and texts pass between them. If the
actor ends, the kernel ends the engine's processes.
"""

from __future__ import annotations

import fcntl
import json
import os
import shutil
import socket
import sys
import tempfile
from pathlib import Path
from typing import Any

import ray

from contract.settings import make_private_folder
from worker.engine_process import EngineProcess, engine_command

FOLDER = "ray-attempts"
"""Folder below TRD_DATA_DIR of the node, or below its folder for temporary files."""
_LOCK = ".lock"
_LOGS = {"events": Path("run/events.jsonl"), "log": Path("engine.log")}
"""Files that only grow, and that the driver follows."""


class NodeAgent:
    """The actor. All its methods run in one thread, to whose life the engine's processes are bound."""

    def __init__(self, name: str) -> None:
        """`name` is unique to the attempt and the node."""
        home = Path(os.environ.get("TRD_DATA_DIR") or tempfile.gettempdir()) / FOLDER
        make_private_folder(home)
        for stale in home.iterdir():
            if stale.name == name or not _is_in_use(stale):
                shutil.rmtree(stale, ignore_errors=True)
        self._folder = home / name
        make_private_folder(self._folder)
        self._lock = (self._folder / _LOCK).open("wb")  # held until this process ends
        fcntl.flock(self._lock, fcntl.LOCK_EX)
        self._engine: EngineProcess | None = None

    def meeting_place(self) -> tuple[str, int]:
        """Return this node's address, and a free port on which the engine's processes can meet."""
        with socket.socket() as listener:
            listener.bind(("", 0))
            return str(ray.util.get_node_ip_address()), listener.getsockname()[1]

    def write(self, name: str, content: bytes, offset: int) -> None:
        """Write a part of a file of the attempt's folder."""
        path = self._path(name)
        path.parent.mkdir(parents=True, exist_ok=True)
        with path.open("r+b" if offset else "wb") as file:
            file.seek(offset)
            file.write(content)

    def start(self, spec: dict[str, Any], replaced: dict[str, str], num_processes: int, meeting: list[str]) -> None:
        """Start the engine's processes of this node.

        `replaced` has the places of the worker's disk and their names in this folder. `meeting` is empty for a single
        node; else it has torchrun's options, which say where all processes meet.
        """
        places = {there: str(self._path(name)) for there, name in replaced.items()}
        document = json.dumps(_with_places(spec, places), indent=1)
        (self._folder / "spec.json").write_text(document + "\n", encoding="utf-8")
        command = engine_command(self._folder, num_processes)
        if meeting:
            torchrun = [sys.executable, "-m", "torch.distributed.run", "--max-restarts=0", *meeting]
            child = ["-m", "worker.engine_child", str(self._folder)]
            command = [*torchrun, f"--nproc-per-node={num_processes}", *child]
        # The engine gets no key of the cluster.
        command = ["env", "--unset=RAY_AUTH_TOKEN", "--unset=RAY_AUTH_TOKEN_PATH", *command]
        self._engine = EngineProcess.start(command, self._folder, devices=spec["devices"])

    def poll(self, events_from: int, log_from: int) -> tuple[int | None, bytes, bytes]:
        """Return the exit code, or None while the engine runs, and what was added to its events and its log."""
        assert self._engine is not None
        code = self._engine.poll()  # first: what it wrote before its end is then complete
        return code, self._added("events", events_from), self._added("log", log_from)

    def stop(self) -> None:
        """Ask the engine to stop at its next step boundary."""
        if self._engine is not None:
            self._engine.ask_to_stop()

    def files(self, name: str) -> list[tuple[str, int]]:
        """Return the names and sizes of a file, or of all files below a folder."""
        place = self._path(name)
        found = [place] if place.is_file() else sorted(path for path in place.rglob("*") if path.is_file())
        return [(path.relative_to(self._folder).as_posix(), path.stat().st_size) for path in found]

    def read(self, name: str, offset: int, num_bytes: int) -> bytes:
        """Return a part of a file."""
        with self._path(name).open("rb") as file:
            file.seek(offset)
            return file.read(num_bytes)

    def remove(self, name: str) -> None:
        """Remove a folder that the driver has copied."""
        shutil.rmtree(self._path(name), ignore_errors=True)

    def close(self) -> None:
        """End the engine and remove everything."""
        if self._engine is not None and self._engine.poll() is None:
            self._engine.kill()
        shutil.rmtree(self._folder, ignore_errors=True)

    def _path(self, name: str) -> Path:
        path = (self._folder / name).resolve()
        assert path.is_relative_to(self._folder.resolve()), f"{name} is outside the attempt's folder"
        return path

    def _added(self, kind: str, offset: int) -> bytes:
        path = self._folder / _LOGS[kind]
        return self.read(str(_LOGS[kind]), offset, 2**22) if path.exists() else b""


def _is_in_use(folder: Path) -> bool:
    """Return whether the actor that made the folder still lives."""
    try:
        with (folder / _LOCK).open("rb") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    except OSError:
        return False
    return False


def _with_places(node: Any, places: dict[str, str]) -> Any:
    """Return a JSON value in which paths of the worker's disk are those of this node's."""
    if isinstance(node, dict):
        return {key: _with_places(value, places) for key, value in node.items()}
    if isinstance(node, list):
        return [_with_places(value, places) for value in node]
    return places.get(node, node) if isinstance(node, str) else node
