"""``python -m benchmarks.paper``: run the grid and write the report.

python -m benchmarks.paper                 # the five variants and the controls; chooses the rates where none are kept
python -m benchmarks.paper --full          # chooses the rates, and runs four rounds and LoRA too
python -m benchmarks.paper --report-only   # docs/paper.md and its plots from the rows that are there
"""

from __future__ import annotations

import argparse
import os
from pathlib import Path

from benchmarks.paper import grid, learning_rates, report
from benchmarks.paper.rows import read_rows
from benchmarks.paper.runner import Places, run_cells

ROOT = Path(__file__).parents[2]
RESULTS = Path(__file__).parent / "results"
RATES_FILE = "learning_rates.json"


def main() -> None:
    """Run what is missing, then write the report from all rows."""
    options = _parser().parse_args()
    results: Path = options.results
    places = Places(options.work / "data", options.models, options.work / "runs", results / "runs.jsonl")
    if not options.report_only:
        _run(options, places)
    report.write(read_rows(places.rows), results, options.report)


def _run(options: argparse.Namespace, places: Places) -> None:
    results: Path = options.results
    results.mkdir(parents=True, exist_ok=True)
    rates_file = results / RATES_FILE
    if options.full or not rates_file.exists():
        run_cells(grid.learning_rate_cells(), places, num_processes=options.processes)
        learning_rates.write(rates_file, learning_rates.choose(read_rows(places.rows)))
    rates = learning_rates.read(rates_file)
    cells = [*grid.main_cells(rates), *grid.control_cells(rates)]
    if options.full:
        cells += [*grid.round_cells(rates), *grid.lora_cells(rates)]
    run_cells(cells, places, num_processes=options.processes)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--full", action="store_true", help="choose the learning rates, and run the whole grid")
    parser.add_argument("--report-only", action="store_true", help="run nothing")
    parser.add_argument("--processes", type=int, default=os.cpu_count() or 1, help="runs at a time, a thread each")
    parser.add_argument("--models", type=Path, default=ROOT / "testbed" / "models")
    parser.add_argument("--results", type=Path, default=RESULTS)
    parser.add_argument("--report", type=Path, default=ROOT / "docs" / "paper.md")
    parser.add_argument("--work", type=Path, default=ROOT / "data" / "paper")
    return parser


if __name__ == "__main__":
    main()
