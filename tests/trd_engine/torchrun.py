"""The engine under ``torchrun``, with gloo on this machine's CPU."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[2]


def run_engine(spec: dict[str, Any], out: Path) -> subprocess.CompletedProcess[str]:
    """Run the spec with one process for each of its devices; return the exit code and what was printed."""
    out.parent.mkdir(parents=True, exist_ok=True)
    path = out.parent / f"{out.name}.json"
    path.write_text(json.dumps(spec), encoding="utf-8")
    return subprocess.run(
        [*launcher(spec["devices"]), "trd_engine", "run", str(path), "--out", str(out)],
        cwd=ROOT,
        env={**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        timeout=400,
    )


def scene(module: str, name: str, *arguments: str, num_processes: int, **environment: str) -> subprocess.Popen[str]:
    """Start a scene of `rank_scenes` or `rank_runs` with torchrun."""
    return subprocess.Popen(
        [*launcher(num_processes), f"tests.trd_engine.{module}", name, *arguments],
        cwd=ROOT,
        env={**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT), **environment},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


def launcher(num_processes: int) -> list[str]:
    """Return the command line up to the name of the module."""
    if num_processes == 1:
        return [sys.executable, "-m"]
    options = ["--standalone", "--local-addr=127.0.0.1", f"--nproc-per-node={num_processes}"]
    return [sys.executable, "-m", "torch.distributed.run", *options, "-m"]
