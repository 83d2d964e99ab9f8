"""``python -m benchmarks.paper.real``: SmolLM2-135M-Instruct taught by itself or a server; it can be resumed.

python -m benchmarks.paper.real --choose-tasks   # warm up a model on every candidate, write their scores
python -m benchmarks.paper.real                  # create the student, choose the rates, run the grid
python -m benchmarks.paper.real --variants trd_served   # also train the served teacher; one more hour

Rows are written to the work folder. When the grid is finished they are compared with the committed ones and replace
them.
"""

from __future__ import annotations

import argparse
import os
from pathlib import Path

from benchmarks.paper.real import choice, grid
from benchmarks.paper.real.runner import RealPlaces, run_cells
from benchmarks.paper.real.tasks import CANDIDATES
from benchmarks.paper.rows import read_rows
from benchmarks.paper.summary import merge

ROOT = Path(__file__).parents[3]
RESULTS = Path(__file__).parents[1] / "results"
ROWS_FILE = "real.jsonl"
MAX_TASKS = 1


def main() -> None:
    """Choose the tasks, or run what is missing."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--choose-tasks", action="store_true", help="run no grid")
    parser.add_argument("--candidates", nargs="+", default=list(CANDIDATES), choices=list(CANDIDATES))
    usual = [name for name in grid.VARIANTS if name != "trd_served"]
    parser.add_argument("--variants", nargs="+", default=usual, choices=list(grid.VARIANTS), help="of the grid")
    parser.add_argument("--processes", type=int, default=os.cpu_count() or 1, help="runs at a time, a thread each")
    parser.add_argument("--model", type=Path, default=ROOT / "models" / grid.STUDENT, help="made by `make models`")
    parser.add_argument("--results", type=Path, default=RESULTS)
    parser.add_argument("--work", type=Path, default=ROOT / "data" / "paper-real")
    options = parser.parse_args()
    candidates = options.results / "real_tasks.jsonl"
    to_choose = RealPlaces(options.model, options.work, candidates)
    if options.choose_tasks or not candidates.exists():
        run_cells([grid.warm_up_cell(task) for task in options.candidates], to_choose, num_processes=options.processes)
        rows = read_rows(candidates)
        page = choice.page(rows, choice.choose(rows, MAX_TASKS), options.model.name)
        (options.results / "real_tasks.md").write_text("\n".join(page) + "\n", encoding="utf-8")
    tasks = choice.choose(read_rows(candidates), MAX_TASKS)
    print(f"tasks: {', '.join(tasks) or 'no candidate is in range'}", flush=True)
    if not options.choose_tasks:
        places = RealPlaces(options.model, options.work, options.work / ROWS_FILE)
        makers = [grid.student_cell, *([grid.teacher_cell] if "trd_served" in options.variants else [])]
        run_cells([make(task) for task in tasks for make in makers], places, num_processes=options.processes)
        run_cells(grid.learning_rate_cells(tasks, options.variants), places, num_processes=options.processes)
        rates = grid.choose_rates(read_rows(places.rows))
        run_cells(grid.main_cells(tasks, rates, options.variants), places, num_processes=options.processes)
        for line in merge(options.results / ROWS_FILE, read_rows(places.rows)):
            print(line)


if __name__ == "__main__":
    main()
