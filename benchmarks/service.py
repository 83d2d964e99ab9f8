"""The service compared with a minimal FastAPI application; with much data, many streams and large files.

    python -m benchmarks.service

needs PostgreSQL and Redis, and temporarily 15 GB of disk. It starts and stops every server itself, on free ports of
127.0.0.1 and with one worker process each. On SQLite and on PostgreSQL it measures

throughput  POST /jobs and GET /jobs/{id} against `benchmarks.service_floor`, alternately
volume      the first page of GET /jobs, and one job's metrics, with much and with little data, alternately
streams     500 clients of event streams while events are written; no client may miss an event
download    a checkpoint's file and archive, with the server's resident memory
"""

from __future__ import annotations

import argparse
import os
import sys
import tempfile
import time
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path

from benchmarks.machine import describe_machine, say
from benchmarks.service_cases import CASES, NUM_CONNECTIONS, NUM_ROUNDS, Section
from benchmarks.service_data import Volume
from benchmarks.service_site import Site

RESULTS = Path(__file__).parent / "results"
MINUTES = {"throughput": 0.8, "volume": 3.0, "streams": 0.6, "download": 0.4}
"""Result for one kind of database, at a million jobs."""


def measure(kind: str, cases: Sequence[str], volume: Volume) -> list[Section]:
    """Run all cases on one kind of database."""
    sections = []
    for case in cases:
        began = time.perf_counter()
        with ExitStack() as running:
            folder = Path(running.enter_context(tempfile.TemporaryDirectory(prefix="trd-benchmark-")))
            sections.append(CASES[case](Site(kind, folder, running), volume))
        say(f"{kind}, {case}: {time.perf_counter() - began:.0f} s")
        say("\n".join(sections[-1].lines))
    return sections


def write_table(sections: Sequence[Section], header: Sequence[str], path: Path) -> None:
    """Return all sections and the missed targets."""
    lines = [*header, ""]
    for section in sections:
        lines += [f"## {section.title}", "", *section.lines, ""]
    missed = [text for section in sections for text in section.missed]
    lines += ["Missed: " + "; ".join(missed) if missed else "Every target is reached.", ""]
    path.write_text("\n".join(lines), encoding="utf-8")


def main() -> int:
    """Run the command line; return 1 if a target is missed."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cases", nargs="+", choices=CASES, default=list(CASES))
    parser.add_argument("--databases", nargs="+", choices=["sqlite", "postgresql"], default=["sqlite", "postgresql"])
    parser.add_argument("--jobs", type=int, default=1_000_000, help="stored in the case volume; ten points each")
    parser.add_argument("--out", type=Path, default=RESULTS / "service.md")
    options = parser.parse_args()
    num_minutes = sum(MINUTES[case] for case in options.cases) * len(options.databases)
    say(f"about {num_minutes:.0f} minutes")
    load_before = os.getloadavg()[0]
    volume = Volume(options.jobs, 10 * options.jobs)
    sections = [section for kind in options.databases for section in measure(kind, options.cases, volume)]
    header = [
        "# The service over HTTP",
        "",
        f"One uvicorn process, {NUM_CONNECTIONS} connections, medians of {NUM_ROUNDS} rounds in turns after a warm-up.",
        "The floor: a bare FastAPI application that inserts, or selects, one row of the same table a request.",
        *describe_machine(("fastapi", "uvicorn", "pydantic", "SQLAlchemy", "psycopg")),
        f"Load average before and after: {load_before:.1f}, {os.getloadavg()[0]:.1f}.",
    ]
    write_table(sections, header, options.out)
    return 1 if any(section.missed for section in sections) else 0


if __name__ == "__main__":
    sys.exit(main())
