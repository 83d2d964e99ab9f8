"""Models trained from scratch for the grid, a folder a seed; what is there already is not trained again."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

from testbed.recipes import RECIPES


def trained_models(work: Path, *, seed: int) -> Path:
    """The folder of all the testbed's models of one seed (about 35 minutes of one core where they are not there)."""
    folder = work / f"models-{seed}"
    if all((folder / name / "training.json").exists() for name in RECIPES):
        return folder
    print(f"training {len(RECIPES)} models, seed {seed}, in {folder}", flush=True)
    # A process of its own: it sets the number of threads, and goes on from its own checkpoints after an interruption.
    command = [sys.executable, "-m", "testbed.train_models", "all", "--out", str(folder), "--seed", str(seed)]
    subprocess.run(command, check=True, env={**os.environ, "OMP_NUM_THREADS": "1"})
    return folder
