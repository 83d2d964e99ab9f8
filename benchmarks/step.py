"""A training step, with rollout and update measured separately: TRL's `DistillationTrainer` and ours.

    python -m benchmarks.step

needs trl, which `pip install --no-deps trl==1.16.0` adds. Every contender runs in a separate process, with its own
peak resident set. Processes alternate, so that other load affects all equally. The first step of each process is not
counted. The losses of all contenders on the same tokens must agree.

No step with AdamW in fp32 holds less than

    4 · P · 4 + P · b      weights, their gradients and both moments in fp32, and the teacher in b bytes a weight,

all at the same time, because clipping needs every gradient's norm before the first update of a weight; the imported
libraries come on top. If this exceeds the target's share of TRL's peak, no implementation can reach the target, and
the table says so.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import statistics
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path

import torch

from benchmarks.machine import describe_machine, say
from benchmarks.step_contenders import CONTENDERS, Timings, Workload

RESULTS = Path(__file__).parent / "results"
NUM_WEIGHTS = 134_515_008
"""Number of weights P of the compared model."""
WORKLOADS = {
    "usual": Workload(8, (32, 96), 192, "fp32"),
    "small": Workload(2, (16, 48), 32, "fp32"),
    "usual-bf16": Workload(8, (32, 96), 192, "bf16"),
}
PROCESS_TIMEOUT_SECONDS = 1200
LOSS_TOLERANCE = {"fp32": 1e-4, "bf16": 2e-2}
STEP_TARGET, UPDATE_TARGET, MEMORY_TARGET = 2.0, 1.3, 0.6
SECONDS_A_STEP = {"usual": 60, "small": 10, "usual-bf16": 60}
"""Rough value for the printed estimate."""


@dataclass
class Row:
    """Measurements of one contender, over its processes."""

    contender: str
    rollout_seconds: list[float] = field(default_factory=list)
    update_seconds: list[float] = field(default_factory=list)
    peak_mib: list[float] = field(default_factory=list)
    losses: list[float] = field(default_factory=list)
    libraries_mib: float = 0.0
    """Resident set before any model is created."""

    def add(self, timings: Timings, peak_mib: float, libraries_mib: float) -> None:
        """Add the measurements of one process, without its first step."""
        self.libraries_mib = libraries_mib
        self.rollout_seconds += timings.rollout_seconds[1:]
        self.update_seconds += timings.update_seconds[1:]
        self.peak_mib.append(peak_mib)
        self.losses = timings.losses

    @property
    def figures(self) -> tuple[float, float, float, float]:
        """Medians: seconds of rollout, of update and of both, and peak MiB."""
        whole = [sum(pair) for pair in zip(self.rollout_seconds, self.update_seconds, strict=True)]
        lists = (self.rollout_seconds, self.update_seconds, whole, self.peak_mib)
        rollout, update, both, peak = (statistics.median(each) for each in lists)
        return rollout, update, both, peak


def _peak_mib() -> float:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def measure(workload_name: str, num_rounds: int, num_steps: int, num_threads: int) -> list[Row]:
    """Measure all contenders on one workload; their losses must agree."""
    rows = [Row(name) for name in CONTENDERS]
    for number in range(num_rounds):
        for row in rows:
            began = time.perf_counter()
            command = [sys.executable, "-m", "benchmarks.step", "--only", row.contender, "--workloads", workload_name]
            command += ["--steps", str(num_steps), "--threads", str(num_threads)]
            environment = {**os.environ, "OMP_NUM_THREADS": str(num_threads), "PYTHONWARNINGS": "ignore"}
            done = subprocess.run(
                command, capture_output=True, text=True, timeout=PROCESS_TIMEOUT_SECONDS, check=False, env=environment
            )
            if done.returncode != 0:
                raise SystemExit(f"{row.contender}:\n{done.stderr[-3000:]}")
            answer = json.loads(done.stdout.splitlines()[-1])
            row.add(Timings(**answer["timings"]), answer["peak_mib"], answer["libraries_mib"])
            seconds = time.perf_counter() - began
            say(f"{workload_name}, round {number + 1} of {num_rounds}, {row.contender}: {seconds:.0f} s, {row.figures}")
    tolerance = LOSS_TOLERANCE[WORKLOADS[workload_name].precision]
    for row in rows:
        worst = max(abs(a - b) / b for a, b in zip(row.losses, rows[0].losses, strict=True))
        if worst > tolerance:
            raise SystemExit(f"losses differ by {worst:.1e}: {row.losses} and {rows[0].losses}; no comparison")
    return rows


def section(workload_name: str, rows: Sequence[Row]) -> tuple[list[str], list[str]]:
    """Return a table of ratios to TRL's defaults and to TRL with tuned tiles; and what misses a target against the
    first."""
    workload = WORKLOADS[workload_name]
    peers = [row.figures for row in rows if row.contender.startswith("TRL")]
    worst = max(abs(a - b) / b for row in rows for a, b in zip(row.losses, rows[0].losses, strict=True))
    lines = [f"## {workload}, {workload.precision}", ""]
    lines += ["| | rollout s | update s | step s | steps/s | peak MiB | step, × TRL | update, × TRL | peak, × TRL |"]
    lines += ["|---|---:|---:|---:|---:|---:|---:|---:|---:|"]
    missed = []
    for row in rows:
        rollout, update, step, peak = row.figures
        ratios = [(peer[2] / step, peer[1] / update, peak / peer[3]) for peer in peers]
        cells = " | ".join(" / ".join(f"{ratio:.2f}" for ratio in both) for both in zip(*ratios, strict=True))
        seconds = f"{rollout:.2f} | {update:.2f} | {step:.2f} | {1 / step:.3f}"
        lines.append(f"| {row.contender} | {seconds} | {peak:,.0f} | {cells} |")
        of_step, of_update, of_peak = ratios[0]
        is_reached = of_step >= STEP_TARGET and of_update >= UPDATE_TARGET and of_peak <= MEMORY_TARGET
        if row.contender.startswith("ours") and not is_reached:
            missed.append(f"{workload_name}, {row.contender}: {of_step:.2f}, {of_update:.2f}, {of_peak:.2f}")
    weights_mib = NUM_WEIGHTS * (16 + (4 if workload.precision == "fp32" else 2)) / 2**20
    libraries_mib = next(row.libraries_mib for row in rows if row.contender.startswith("ours"))
    floor_mib, peer_mib = weights_mib + libraries_mib, rows[0].figures[3]
    reach = "within reach" if floor_mib < MEMORY_TARGET * peer_mib else "out of reach of any fp32 AdamW"
    lines += [
        "",
        f"Weights, gradients, moments and teacher are {weights_mib:,.0f} MiB, the libraries {libraries_mib:,.0f}: "
        f"{floor_mib:,.0f}, or {floor_mib / peer_mib:.2f} of TRL's peak, before any activation; "
        f"{MEMORY_TARGET} is {reach}.",
    ]
    lines += ["", f"Losses on the same tokens differ by at most {worst:.0e}, relative.", ""]
    return lines, missed


def main() -> int:
    """Run the command line; return 1 if a target is missed."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--workloads", nargs="+", choices=WORKLOADS, default=["usual", "small"])
    parser.add_argument("--rounds", type=int, default=2, help="processes a contender")
    parser.add_argument("--steps", type=int, default=2, help="of a process; the first is not counted")
    parser.add_argument("--threads", type=int, default=os.cpu_count() or 1)
    parser.add_argument("--only", choices=CONTENDERS, help="run this contender here, and print its figures")
    parser.add_argument("--out", type=Path, default=RESULTS / "step.md")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    if options.only:
        libraries_mib = _peak_mib()
        timings = CONTENDERS[options.only](WORKLOADS[options.workloads[0]], options.steps)
        print(json.dumps({"timings": asdict(timings), "peak_mib": _peak_mib(), "libraries_mib": libraries_mib}))
        return 0
    seconds = sum(SECONDS_A_STEP[name] for name in options.workloads) * options.rounds * options.steps * len(CONTENDERS)
    say(f"at most about {seconds / 60:.0f} minutes")
    load_before = os.getloadavg()[0]
    sections = [
        section(name, measure(name, options.rounds, options.steps, options.threads)) for name in options.workloads
    ]
    header = [
        "# A training step beside TRL's DistillationTrainer",
        "",
        "Random models of SmolLM2-135M's shape, all weights trained, forward KL over the whole vocabulary, AdamW; "
        f"{options.threads} threads.",
        f"Medians of {options.rounds} processes of {options.steps} steps, the first of each not counted. To reach: "
        f"step ≥ {STEP_TARGET} ×, update ≥ {UPDATE_TARGET} ×, peak ≤ {MEMORY_TARGET} ×.",
        "Ratios: to TRL at its default tiles / at tiles of 256 x 8192. The targets are held against the first.",
        *describe_machine(("torch", "transformers", "trl")),
        f"Load average before and after: {load_before:.1f}, {os.getloadavg()[0]:.1f}.",
        "",
    ]
    missed = [text for _, texts in sections for text in texts]
    ending = "Missed (step, update, peak): " + "; ".join(missed) if missed else "Every target is reached."
    lines = [*header, *(line for lines, _ in sections for line in lines), ending, ""]
    options.out.write_text("\n".join(lines), encoding="utf-8")
    return 1 if missed else 0


if __name__ == "__main__":
    sys.exit(main())
