"""Prove the engine on a GPU within eight minutes: ``python -m benchmarks.gpu_check``.

For a bare machine with a GPU, torch and transformers, without vLLM and without a network. Each stage is a process with
a time limit, so that a crash or a hang ends one stage alone; the most valuable come first. Each prints a line of JSON,
and a table of measured and predicted figures follows. Exits with 1 if a stage did not pass.

`--device cpu --small` rehearses the same code at a small size, with time for a busy machine. It proves that the script
runs, and its figures say nothing.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import time
import traceback
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch

from benchmarks.gpu_check import arithmetic, models, runs
from benchmarks.gpu_check.figures import Case, Figure, Stage
from trd_engine.runtime.hardware import local_device

BUDGET_SECONDS = 450
"""No stage continues after this time."""
REHEARSAL_FACTOR = 5
"""Of all limits in a rehearsal."""
STAGES: dict[str, tuple[Stage, int]] = {
    "machine": (arithmetic.machine, 40),
    "loss values": (arithmetic.loss_values, 80),
    "packed rows": (models.packed_rows, 70),
    "loss time": (arithmetic.loss_time, 80),
    "large step": (models.large_step, 90),
    "sharding": (models.sharding, 60),
    "run": (runs.whole_run, 80),
    "faults": (runs.faults, 40),
    "updates": (runs.updates, 40),
    "Liger's time": (arithmetic.liger_time, 60),
}
"""Each stage with its limit in seconds, the most valuable first."""


@dataclass
class Result:
    """What became of a stage."""

    stage: str
    status: str
    """PASS, FAIL, or NOT TRIED if the time was over."""
    seconds: float
    figures: list[dict[str, Any]] = field(default_factory=list)
    error: str = ""


def run_stage(name: str, options: list[str], limit: float) -> Result:
    """Run a stage in a separate process."""
    started_at = time.monotonic()
    command = [sys.executable, "-m", "benchmarks.gpu_check", *options, "--stage", name]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=limit, check=False)
    except subprocess.TimeoutExpired:
        return Result(name, "FAIL", round(limit, 1), error=f"it took more than {limit:.0f} s")
    seconds = round(time.monotonic() - started_at, 1)
    if done.returncode:
        return Result(name, "FAIL", seconds, error=(done.stderr.strip() or f"exit code {done.returncode}")[-1500:])
    return Result(name, "PASS", seconds, figures=json.loads(done.stdout.splitlines()[-1]))


def run_all(names: list[str], options: list[str]) -> list[Result]:
    """Run the stages in order within the budget, and print a line of JSON for each."""
    factor = REHEARSAL_FACTOR if "--small" in options else 1
    ends_at = time.monotonic() + factor * BUDGET_SECONDS
    results = []
    for name in names:
        left = ends_at - time.monotonic()
        limit = min(factor * STAGES[name][1], left)
        result = Result(name, "NOT TRIED", 0.0) if left < 5 else run_stage(name, options, limit)
        print(json.dumps(asdict(result)), flush=True)
        results.append(result)
    return results


def summary(results: list[Result]) -> str:
    """Return one screen: each stage, then its figures as measured, predicted and their ratio."""
    lines = [f"{'':<44}{'measured':>12}{'predicted':>12}{'ratio':>8}"]
    for result in results:
        error = f"  {result.error.splitlines()[-1][:90]}" if result.error else ""
        lines.append(f"{result.status:<9} {result.stage}, {result.seconds:.0f} s{error}")
        for row in result.figures:
            figure = Figure(**row)
            name = f"    {figure.name}, {figure.unit}" if figure.unit else f"    {figure.name}"
            if figure.predicted is None:
                lines.append(f"{name:<44}{str(figure.measured)[:70]:>12}")
            else:
                ratio = float(figure.measured) / figure.predicted
                lines.append(f"{name:<44}{figure.measured:>12}{figure.predicted:>12.4g}{ratio:>8.2f}")
    return "\n".join(lines)


def main() -> int:
    """Run all stages, or one in this process."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--small", action="store_true", help="small sizes, for a rehearsal on a CPU")
    parser.add_argument("--only", nargs="+", choices=STAGES, default=list(STAGES))
    parser.add_argument("--stage", choices=STAGES, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.stage:
        with tempfile.TemporaryDirectory() as scratch:
            device = local_device(torch.device(arguments.device))  # with its number, which some of torch.cuda needs
            case = Case(device, arguments.small, Path(scratch))
            try:
                figures = STAGES[arguments.stage][0](case)
            except Exception:  # noqa: BLE001 - the boundary of a stage: whatever fails is its result
                traceback.print_exc()
                return 1
        print(json.dumps([asdict(figure) for figure in figures]))
        return 0
    options = ["--device", arguments.device, *(["--small"] if arguments.small else [])]
    results = run_all(arguments.only, options)
    print(summary(results))
    return int(any(result.status != "PASS" for result in results))


if __name__ == "__main__":
    sys.exit(main())
