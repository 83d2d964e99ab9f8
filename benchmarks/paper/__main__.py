"""``python -m benchmarks.paper``: run the grid and write the report.

python -m benchmarks.paper                 # the five variants and the controls; chooses missing learning rates
python -m benchmarks.paper --full          # trains new models with two seeds, chooses the rates, runs all
python -m benchmarks.paper --sections support,loops   # only these
python -m benchmarks.paper --report-only   # docs/paper.md and its plots from the existing rows
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from benchmarks.paper import grid, report
from benchmarks.paper.rows import read_rows
from benchmarks.paper.runner import Places, run_cells
from benchmarks.paper.sections import (
    ALONE,
    DEFAULT_SECTIONS,
    SECTIONS,
    choose_rates,
    compared_cells,
    rate_cells,
    rate_key,
    read_rates,
    section_cells,
    write_rates,
)
from benchmarks.paper.summary import group, merge
from testbed.recipes import RECIPES

ROOT = Path(__file__).parents[2]
RESULTS = Path(__file__).parent / "results"
RATES_FILE, ROWS_FILE = "learning_rates.json", "runs.jsonl"


def main() -> None:
    """Run what is missing, merge the rows into the committed ones, and write the report from all."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--full", action="store_true", help="choose the learning rates, and run the whole grid")
    parser.add_argument("--sections", type=_sections, help=f"only these, separated by commas, of {', '.join(SECTIONS)}")
    parser.add_argument("--report-only", action="store_true", help="run nothing")
    parser.add_argument("--processes", type=int, default=os.cpu_count() or 1, help="runs at a time, a thread each")
    parser.add_argument("--models", type=Path, default=ROOT / "testbed" / "models")
    parser.add_argument("--results", type=Path, default=RESULTS)
    parser.add_argument("--report", type=Path, default=ROOT / "docs" / "paper.md")
    parser.add_argument("--work", type=Path, default=ROOT / "data" / "paper")
    options = parser.parse_args()
    committed = options.results / ROWS_FILE
    if not options.report_only:
        work = options.work
        places = Places(work / "data", options.models, work / "runs", work / ROWS_FILE, work / "samples")
        _run(options, places)
        for line in merge(committed, read_rows(places.rows)):
            print(line)
    report.write(read_rows(committed), options.results, options.report)


def _run(options: argparse.Namespace, places: Places) -> None:
    if options.full:
        places = replace(places, models=trained_models(options.work, seed=0))
    sections = options.sections or (SECTIONS if options.full else DEFAULT_SECTIONS)
    rates = _learning_rates(options, places, sections)
    cells = {name: section_cells(name, rates) for name in sections}
    together = [cell for name in sections if name not in ALONE for cell in cells[name]]
    run_cells(together, places, num_processes=options.processes)
    if options.full:
        other_models = replace(places, models=trained_models(options.work, seed=1))
        run_cells(grid.cells_of("other_models", rates), other_models, num_processes=options.processes)
    rows = [*read_rows(options.results / ROWS_FILE), *read_rows(places.rows)]
    for name in sections:
        if name in ALONE:
            run_cells(compared_cells(cells[name], group(rows)), places, num_processes=1)


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


def _learning_rates(options: argparse.Namespace, places: Places, sections: Sequence[str]) -> grid.LearningRates:
    path = options.results / RATES_FILE
    rates = read_rates(path)
    cells = [c for c in rate_cells(sections) if options.full or rate_key(c) not in rates]
    if cells:
        run_cells(cells, places, num_processes=options.processes)
        rates |= choose_rates(read_rows(places.rows))
        path.parent.mkdir(parents=True, exist_ok=True)
        write_rates(path, rates)
    return rates


def _sections(text: str) -> list[str]:
    names = text.split(",")
    unknown = [name for name in names if name not in SECTIONS]
    if unknown:
        raise argparse.ArgumentTypeError(f"unknown section {unknown[0]!r}; there are {', '.join(SECTIONS)}")
    return names


if __name__ == "__main__":
    main()
