"""Runs the real model's cells without a row in parallel processes, and appends each row when it is finished.

The models trained before the grid, its student and its served teacher, are kept in folders of `RealPlaces`.
"""

from __future__ import annotations

import json
import shutil
import time
from collections.abc import Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from benchmarks.machine import describe_machine
from benchmarks.paper.real.grid import (
    ENDPOINTS,
    MAX_NEW_TOKENS,
    MAX_REFINE_TOKENS,
    TEACHER_SECTION,
    RealCell,
    engine_spec,
    reference_answers,
)
from benchmarks.paper.real.reference_server import serving_references
from benchmarks.paper.real.tasks import CANDIDATES, write_splits
from benchmarks.paper.rows import Row, make_row, read_rows
from benchmarks.paper.runner import run_pool
from benchmarks.vllm_server import serving_model

PACKAGES = ["torch", "transformers"]
"""Packages whose versions are in a row."""


@dataclass(frozen=True)
class RealPlaces:
    """Where the grid reads and writes."""

    model: Path
    """The untrained model's folder."""
    work: Path
    """Problems, output folders of the runs (deleted once their row is written), and the trained models."""
    rows: Path
    """The JSONL file of finished runs."""

    @property
    def data(self) -> Path:
        """One folder of problems per task."""
        return self.work / "data"

    def student(self, task: str) -> Path:
        """Return the folder of the task's student, warmed up in all forms."""
        return self.work / "students" / task

    def teacher(self, task: str) -> Path:
        """Return the folder of the task's served teacher."""
        return self.work / "teachers" / task

    def made_by(self, cell: RealCell) -> Path:
        """Return the folder for the model that `cell` trains."""
        return self.teacher(cell.task) if cell.section == TEACHER_SECTION else self.student(cell.task)


def run_cells(cells: Sequence[RealCell], places: RealPlaces, *, num_processes: int) -> None:
    """Run the cells without a row; those that need a server run one at a time after the others.

    An interrupted grid continues where it stopped; a failed run ends it with its reason.
    """
    done = {row["id"] for row in read_rows(places.rows)}
    left = [cell for cell in cells if cell.id not in done]
    # A missing model is trained again, even if its row is committed.
    left += [cell for cell in cells if cell.makes_model and cell.id in done and not places.made_by(cell).exists()]
    for task in {cell.task for cell in left}:
        write_splits(CANDIDATES[task], places.data / task)
    alone = [cell for cell in left if cell.needs_server]
    together = [cell for cell in left if not cell.needs_server]
    for part, packages, number in ((together, PACKAGES, num_processes), (alone, [*PACKAGES, "vllm"], 1)):
        if part:
            run = partial(run_cell, places=places, machine=" ".join(describe_machine(packages)))
            run_pool(part, run, places.rows, num_processes=number)


def run_cell(cell: RealCell, places: RealPlaces, machine: str) -> Row:
    """Run the engine in this process, together with the endpoint that some variants need."""
    from trd_engine.config import parse_config
    from trd_engine.training.loop import distil

    student = places.model if cell.is_warm_up else places.student(cell.task)
    out_dir = places.work / "runs" / cell.id
    shutil.rmtree(out_dir, ignore_errors=True)
    began_at = time.process_time()
    with _endpoint(cell, places) as url:
        distil(parse_config(engine_spec(cell, data=places.data, student=student, endpoint_url=url)), out_dir)
    row = make_row(cell, out_dir, machine, time.process_time() - began_at)
    if cell.is_warm_up:
        evaluations = sorted((out_dir / "evaluations").glob("*"))
        row["samples"] = [
            json.loads(path.read_text(encoding="utf-8").split("\n", 1)[0])["text"] for path in evaluations
        ]
    if cell.makes_model:
        folder = places.made_by(cell)
        (merged,) = (out_dir / "checkpoints").glob("*/model")
        shutil.rmtree(folder, ignore_errors=True)
        folder.parent.mkdir(parents=True, exist_ok=True)
        merged.rename(folder)
    shutil.rmtree(out_dir)
    return row


def _endpoint(cell: RealCell, places: RealPlaces) -> AbstractContextManager[str]:
    """Yield the URL of the endpoint that the cell's run needs; most need none."""
    if cell.needs_server:
        context = MAX_REFINE_TOKENS + MAX_NEW_TOKENS
        return serving_model(places.teacher(cell.task), name=ENDPOINTS[cell.variant], max_model_len=context)
    return serving_references(reference_answers(cell, places.data))
