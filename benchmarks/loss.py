"""Time and memory of the fused loss, compared with the dense loss, TRL's and Liger's.

    python -m benchmarks.loss --dtype fp32 --tokens 512 1024 2048 4096 8192

needs the extra `bench`. One thread. Times are of one forward and one backward pass. The contenders run
alternately within each repeat, so that other load affects all equally; the first repeat is not counted. CPU seconds
are those of the process, which other load affects less than wall time. Extra memory is the peak resident set minus
that of the inputs and libraries, including the gradients; each contender is measured in a separate process.
"""

from __future__ import annotations

import argparse
import csv
import ctypes
import gc
import os
import statistics
import subprocess
import sys
import time
from dataclasses import dataclass, field
from pathlib import Path

import torch

from benchmarks.loss_contenders import CONTENDERS, Inputs
from benchmarks.machine import describe_machine, say, status_kib

RESULTS = Path(__file__).parent / "results"
HIDDEN, VOCABULARY = 576, 49152  # SmolLM2-135M's
DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16}
MEMORY_TIMEOUT_SECONDS = 1800
LOSS_TOLERANCE = {"fp32": 1e-5, "bf16": 2e-2}


@dataclass
class Row:
    """Measurements of one contender at one size."""

    contender: str
    num_tokens: int
    dtype: str
    wall_seconds: list[float] = field(default_factory=list)
    cpu_seconds: list[float] = field(default_factory=list)
    loss: float = float("nan")
    extra_mib: float = float("nan")

    def run(self, inputs: Inputs, *, is_counted: bool) -> None:
        """Measure one repeat."""
        inputs.forget_gradients()
        wall_before, cpu_before = time.perf_counter(), time.process_time()
        loss = CONTENDERS[self.contender](inputs)
        wall, cpu = time.perf_counter() - wall_before, time.process_time() - cpu_before
        self.loss = float(loss)
        if is_counted:
            self.wall_seconds.append(wall)
            self.cpu_seconds.append(cpu)


def measure_times(num_tokens: int, dtype: str, repeats: int) -> list[Row]:
    """Measure all contenders at one size."""
    inputs = Inputs.random(num_tokens, HIDDEN, VOCABULARY, DTYPES[dtype])
    rows = [Row(name, num_tokens, dtype) for name in CONTENDERS]
    for repeat in range(repeats + 1):
        for row in rows:
            row.run(inputs, is_counted=repeat > 0)
            gc.collect()
        say(f"{dtype}, {num_tokens} tokens: repeat {repeat} of {repeats}")
    expected = rows[0].loss
    for row in rows:
        if not (row.loss != row.loss or abs(row.loss - expected) <= LOSS_TOLERANCE[dtype] * expected):
            raise SystemExit(f"{row.contender} has loss {row.loss}, but {rows[0].contender} {expected}: no comparison")
    return rows


def extra_mib(contender: str, num_tokens: int, dtype: str) -> float:
    """Return by how much the resident set's peak rises in the second call, in this process."""
    inputs = Inputs.random(num_tokens, HIDDEN, VOCABULARY, DTYPES[dtype])
    CONTENDERS[contender](inputs)
    inputs.forget_gradients()
    gc.collect()
    ctypes.CDLL("libc.so.6").malloc_trim(0)
    Path("/proc/self/clear_refs").write_text("5")  # resets the peak
    before = status_kib("VmRSS")
    CONTENDERS[contender](inputs)
    return (status_kib("VmHWM") - before) / 1024


def write_tables(rows: list[Row], header: list[str], name: str) -> None:
    """Write the CSV of all figures and the Markdown table of the ratios."""
    columns = [
        "dtype",
        "tokens",
        "contender",
        "cpu_s",
        "wall_s",
        "extra_mib",
        "cpu_vs_dense",
        "wall_vs_dense",
        "repeats",
    ]
    with (RESULTS / f"{name}.csv").open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(columns)
        writer.writerows(_figures(row, rows) for row in rows)
    lines = [*header, ""]
    for num_tokens in sorted({row.num_tokens for row in rows}):
        lines += [f"## {rows[0].dtype}, {num_tokens} tokens", ""]
        lines += ["| | CPU s | × dense | wall s | × dense | extra MiB |", "|---|---:|---:|---:|---:|---:|"]
        for row in (row for row in rows if row.num_tokens == num_tokens):
            _, _, contender, cpu, wall, mib, cpu_ratio, wall_ratio, _ = _figures(row, rows)
            lines.append(f"| {contender} | {cpu} | {cpu_ratio} | {wall} | {wall_ratio} | {mib} |")
        lines.append("")
    (RESULTS / f"{name}.md").write_text("\n".join(lines), encoding="utf-8")


def _figures(row: Row, rows: list[Row]) -> list[str | int]:
    (dense,) = [other for other in rows if other.contender == "dense" and other.num_tokens == row.num_tokens]
    cpu, wall = statistics.median(row.cpu_seconds), statistics.median(row.wall_seconds)
    return [
        row.dtype,
        row.num_tokens,
        row.contender,
        f"{cpu:.2f}",
        f"{wall:.2f}",
        f"{row.extra_mib:.0f}",
        f"{cpu / statistics.median(dense.cpu_seconds):.2f}",
        f"{wall / statistics.median(dense.wall_seconds):.2f}",
        len(row.cpu_seconds),
    ]


def main() -> None:
    """Measure, and write the tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--dtype", choices=DTYPES, default="fp32")
    parser.add_argument("--tokens", type=int, nargs="+", default=[2048])
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--memory-of", choices=CONTENDERS, help="only print this contender's extra MiB")
    parser.add_argument("--name", help="of the result files; default: loss_<dtype>")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    if arguments.memory_of:
        sys.stdout.write(f"{extra_mib(arguments.memory_of, arguments.tokens[0], arguments.dtype)}\n")
        return
    load_before = os.getloadavg()[0]
    rows: list[Row] = []
    for num_tokens in arguments.tokens:
        of_size = measure_times(num_tokens, arguments.dtype, arguments.repeats)
        for row in of_size:
            command = [sys.executable, "-m", "benchmarks.loss", "--memory-of", row.contender]
            command += ["--tokens", str(row.num_tokens), "--dtype", row.dtype]
            done = subprocess.run(command, capture_output=True, text=True, timeout=MEMORY_TIMEOUT_SECONDS, check=True)
            row.extra_mib = float(done.stdout)
            say(f"{row.contender}, {row.num_tokens} tokens: {row.extra_mib:.0f} MiB")
        rows += of_size
        # After each size: with emulated products the next size may take an hour.
        header = [
            "# Forward KL from hidden states, forward and backward",
            "",
            f"H {HIDDEN}, V {VOCABULARY}, one thread, medians of {arguments.repeats} repeats in turns after a warm-up.",
            *describe_machine(("torch", "trl", "liger-kernel", "transformers")),
            f"Load average before and after: {load_before:.1f}, {os.getloadavg()[0]:.1f}.",
        ]
        write_tables(rows, header, arguments.name or f"loss_{arguments.dtype}")


if __name__ == "__main__":
    main()
