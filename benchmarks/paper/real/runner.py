"""Runs the real model's cells that have no row yet, a process a core, and appends each row as it comes.

The chosen task's warm-up leaves its student below `RealPlaces.student`; the grid's cells begin from that.
"""

from __future__ import annotations

import json
import shutil
import time
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from benchmarks.machine import describe_machine
from benchmarks.paper.real.grid import RealCell, engine_spec, reference_answers
from benchmarks.paper.real.reference_server import serving_references
from benchmarks.paper.real.tasks import CANDIDATES, write_splits
from benchmarks.paper.rows import Row, make_row, read_rows
from benchmarks.paper.runner import run_pool


@dataclass(frozen=True)
class RealPlaces:
    """Where the grid reads and writes."""

    model: Path
    """The untrained model's folder."""
    work: Path
    """Problems, output folders of the runs (deleted once their row is written) and warmed-up students."""
    rows: Path
    """The JSONL file of finished runs."""

    @property
    def data(self) -> Path:
        """A folder of problems a task."""
        return self.work / "data"

    def student(self, task: str) -> Path:
        """The student of a task, once it is warmed up in all forms."""
        return self.work / "students" / task


def run_cells(cells: Sequence[RealCell], places: RealPlaces, *, num_processes: int) -> None:
    """Run what has no row yet. An interrupted grid goes on where it was; a failed run ends it, with its reason."""
    done = {row["id"] for row in read_rows(places.rows)}
    left = [cell for cell in cells if cell.id not in done]
    # A student that was not kept is made again, also where its row is committed.
    left += [
        cell for cell in cells if cell.makes_student and cell.id in done and not places.student(cell.task).exists()
    ]
    if not left:
        return
    for task in {cell.task for cell in left}:
        write_splits(CANDIDATES[task], places.data / task)
    machine = " ".join(describe_machine(["torch", "transformers"]))
    run_pool(left, partial(run_cell, places=places, machine=machine), places.rows, num_processes=num_processes)


def run_cell(cell: RealCell, places: RealPlaces, machine: str) -> Row:
    """One run of the engine, in this process; beside it, the endpoint that one variant asks."""
    from trd_engine.config import parse_config
    from trd_engine.train import run

    student = places.model if cell.is_warm_up else places.student(cell.task)
    out_dir = places.work / "runs" / cell.id
    shutil.rmtree(out_dir, ignore_errors=True)
    began_at = time.process_time()
    with serving_references(reference_answers(cell, places.data)) as url:
        run(parse_config(engine_spec(cell, data=places.data, student=student, reference_url=url)), out_dir)
    row = make_row(cell, out_dir, machine, time.process_time() - began_at)
    if cell.is_warm_up:
        row["samples"] = _first_samples(out_dir)
    if cell.makes_student:
        _keep_student(out_dir, places.student(cell.task))
    shutil.rmtree(out_dir)
    return row


def _first_samples(out_dir: Path) -> list[str]:
    """What the model before, and the student after, answers to the first problem."""
    evaluations = sorted((out_dir / "evaluations").glob("*"))
    return [json.loads(path.read_text(encoding="utf-8").split("\n", 1)[0])["text"] for path in evaluations]


def _keep_student(out_dir: Path, folder: Path) -> None:
    (merged,) = (out_dir / "checkpoints").glob("*/model")
    shutil.rmtree(folder, ignore_errors=True)
    folder.parent.mkdir(parents=True, exist_ok=True)
    merged.rename(folder)
