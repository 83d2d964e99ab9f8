"""Runs the real model's cells that have no row yet, a process a core, and appends each row as it comes.

What is taught before the grid, its student and its served teacher, is kept in folders of `RealPlaces`.
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
"""Whose versions a row names."""


@dataclass(frozen=True)
class RealPlaces:
    """Where the grid reads and writes."""

    model: Path
    """The untrained model's folder."""
    work: Path
    """Problems, output folders of the runs (deleted once their row is written), and the models that were taught."""
    rows: Path
    """The JSONL file of finished runs."""

    @property
    def data(self) -> Path:
        """A folder of problems a task."""
        return self.work / "data"

    def student(self, task: str) -> Path:
        """The student of a task, once it is warmed up in all forms."""
        return self.work / "students" / task

    def teacher(self, task: str) -> Path:
        """The served teacher of a task, once it is taught."""
        return self.work / "teachers" / task

    def made_by(self, cell: RealCell) -> Path:
        """Where the model goes that `cell` makes."""
        return self.teacher(cell.task) if cell.section == TEACHER_SECTION else self.student(cell.task)


def run_cells(cells: Sequence[RealCell], places: RealPlaces, *, num_processes: int) -> None:
    """Run what has no row yet; one at a time, after the others, what needs a server beside it.

    An interrupted grid goes on where it was; a failed run ends it, with its reason.
    """
    done = {row["id"] for row in read_rows(places.rows)}
    left = [cell for cell in cells if cell.id not in done]
    # A model that was not kept is made again, also where its row is committed.
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
    """One run of the engine, in this process; beside it, the endpoint that some variants ask."""
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
        row["samples"] = _first_samples(out_dir)
    if cell.makes_model:
        _keep_model(out_dir, places.made_by(cell))
    shutil.rmtree(out_dir)
    return row


def _endpoint(cell: RealCell, places: RealPlaces) -> AbstractContextManager[str]:
    """What answers the cell's run, by the URL that it yields; most runs ask nothing."""
    if cell.needs_server:
        context = MAX_REFINE_TOKENS + MAX_NEW_TOKENS
        return serving_model(places.teacher(cell.task), name=ENDPOINTS[cell.variant], max_model_len=context)
    return serving_references(reference_answers(cell, places.data))


def _first_samples(out_dir: Path) -> list[str]:
    """What the model before, and the student after, answers to the first problem."""
    evaluations = sorted((out_dir / "evaluations").glob("*"))
    return [json.loads(path.read_text(encoding="utf-8").split("\n", 1)[0])["text"] for path in evaluations]


def _keep_model(out_dir: Path, folder: Path) -> None:
    (merged,) = (out_dir / "checkpoints").glob("*/model")
    shutil.rmtree(folder, ignore_errors=True)
    folder.parent.mkdir(parents=True, exist_ok=True)
    merged.rename(folder)
