"""Models trained from scratch for the grid, one folder per seed; existing ones are not trained again."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

from testbed.recipes import RECIPES


def trained_models(work: Path, *, seed: int) -> Path:
    """Return the folder of the testbed's models of one seed; training them takes about 35 minutes of one core."""
    folder = work / f"models-{seed}"
    if all((folder / name / "training.json").exists() for name in RECIPES):
        return folder
    print(f"training {len(RECIPES)} models, seed {seed}, in {folder}", flush=True)
    # A separate process: it sets the number of threads, and continues from its checkpoints after an interruption.
    command = [sys.executable, "-m", "testbed.train_models", "all", "--out", str(folder), "--seed", str(seed)]
    subprocess.run(command, check=True, env={**os.environ, "OMP_NUM_THREADS": "1"})
    return folder
