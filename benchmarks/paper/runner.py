"""Runs the cells without a row in parallel processes, and appends each row when it is finished."""

from __future__ import annotations

import json
import os
import shutil
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from contextlib import nullcontext
from dataclasses import dataclass
from functools import partial
from multiprocessing import get_context
from pathlib import Path
from typing import TypeVar

from benchmarks.machine import describe_machine
from benchmarks.paper.grid import NUM_HELDOUT, Cell, engine_spec
from benchmarks.paper.rows import Row, append_row, make_row, read_rows
from benchmarks.paper.sections import ALONE
from testbed.make_data import draw_rows

CellT = TypeVar("CellT", bound=Cell)


@dataclass(frozen=True)
class Places:
    """Where the grid reads and writes."""

    data: Path
    models: Path
    work: Path
    """Output folders of the runs; deleted once their row is written."""
    rows: Path
    """The JSONL file of finished runs."""
    samples: Path
    """Samples that several runs have in common; see `shared_samples`."""


def run_cells(cells: Sequence[Cell], places: Places, *, num_processes: int) -> None:
    """Run the cells without a row. An interrupted grid continues; a failed run ends it with its reason."""
    done = {row["id"] for row in read_rows(places.rows)}
    left = [cell for cell in cells if cell.id not in done]
    if not left:
        return
    write_problems(left, places.data)
    machine = " ".join(describe_machine(["torch", "transformers"]))
    run_pool(left, partial(run_cell, places=places, machine=machine), places.rows, num_processes=num_processes)


def run_pool(cells: Sequence[CellT], run: Callable[[CellT], Row], rows: Path, *, num_processes: int) -> None:
    """Run each cell in one of several processes, append its row when it is finished, and print the remaining time.

    `run` is pickled for the processes. An existing row is not written again.
    """
    done = {row["id"] for row in read_rows(rows)}
    print(f"{len(cells)} runs to do, {num_processes} at a time", flush=True)
    began = time.monotonic()
    # Each run has one thread: models of 0.4M parameters do not use a second one. `spawn` reads the variable again.
    os.environ["OMP_NUM_THREADS"] = "1"
    with ProcessPoolExecutor(num_processes, mp_context=get_context("spawn")) as pool:
        futures = [pool.submit(run, cell) for cell in cells]
        try:
            for number, future in enumerate(as_completed(futures), start=1):
                row = future.result()
                if row["id"] not in done:
                    append_row(rows, row)
                total = len(cells)
                after = row["after"]
                average = sum(after["num_correct"]) / len(after["num_correct"]) / after["k"]
                eta = (time.monotonic() - began) / number * (total - number)
                spent = json.dumps(row["seconds_by_phase"])
                print(
                    f"{number:>4}/{total}  avg@{after['k']} {average:.3f}  ETA {eta / 60:4.0f} min  {row['id']}",
                    spent,
                    sep="  ",
                    flush=True,
                )
        except BaseException:
            pool.shutdown(wait=False, cancel_futures=True)
            raise


def run_cell(cell: Cell, places: Places, machine: str) -> Row:
    """Run the engine in this process."""
    from benchmarks.paper.shared_samples import shared_samples
    from trd_engine.config import parse_config
    from trd_engine.training.loop import distil

    out_dir = places.work / cell.id
    shutil.rmtree(out_dir, ignore_errors=True)
    began = time.process_time()
    # A run whose seconds are compared draws all its samples itself.
    sharing = nullcontext() if cell.section in ALONE else shared_samples(places.samples)
    with sharing:
        distil(parse_config(engine_spec(cell, data=places.data, models=places.models)), out_dir)
    row = make_row(cell, out_dir, machine, time.process_time() - began)
    shutil.rmtree(out_dir)
    return row


def write_problems(cells: Sequence[Cell], folder: Path) -> None:
    """Write the problems of these cells; a larger training set begins with the smaller one."""
    folder.mkdir(parents=True, exist_ok=True)
    files = {f"train-{cell.num_train}": ("train", cell.num_train) for cell in cells}
    files |= {cell.split: (cell.split, NUM_HELDOUT) for cell in cells}
    for name, (split, num_problems) in files.items():
        lines = "".join(json.dumps(row) + "\n" for row in draw_rows(split, num_problems, seed=0))
        (folder / f"{name}.jsonl").write_text(lines, encoding="utf-8")
