"""Where an attempt's engine runs: `TRD_LAUNCHER` chooses.

A launcher is a command line, which `worker.engine_process.EngineProcess` starts, polls, stops and reads the log of:
the engine itself or torchrun (local), or the driver of a Ray cluster (ray). Whichever it is, it ends with the worker,
writes its events below the attempt's folder, stops when the folder has a file named stop, and exits with the engine's
code.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path

from worker.engine_process import engine_command
from worker.settings import WorkerSettings

CommandBuilder = Callable[[Path, int], list[str]]
"""Returns the command line for an attempt's folder and a number of devices."""


def launcher_of(settings: WorkerSettings) -> CommandBuilder:
    """Return the builder of the launcher that the operator has chosen."""
    if settings.launcher == "local":
        return engine_command
    driver = [sys.executable, "-m", "worker.launchers.ray_driver"]
    return lambda folder, _devices: [*driver, str(folder), str(settings.devices_per_node or sys.maxsize)]
