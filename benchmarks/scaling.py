"""What limits the service with ten million jobs: claims, heartbeats, progress and lists.

    python -m benchmarks.scaling

starts a PostgreSQL that keeps what it commits (fsync on), the service and Redis on free ports of 127.0.0.1, and needs
30 GB of disk in /tmp for a while. The figures of each case are kept in `results/scaling.json`, from which
`benchmarks.fleet_model` takes its rates; `results/scaling.md` shows them. A case that runs again replaces its figures.

fill        ten million jobs of 200 owners
claims      claims by 1 to 64 clients at once, from a queue with a hundredth of the jobs and from one with 4 in 10
operations  what a worker does besides, by 1 and by 16 clients, and whole jobs in fast motion
lists       pages and filters of GET /jobs, and other calls that read many jobs

Event streams are a case of `benchmarks.service`.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from sqlalchemy import text

from benchmarks.machine import describe_machine, say
from benchmarks.scaling_api import measure_lists
from benchmarks.scaling_data import BACKLOG, Population, count_jobs, fill
from benchmarks.scaling_load import METRICS_A_STEP, OPERATIONS, measure
from benchmarks.scaling_report import report
from benchmarks.service_site import Site
from contract.database import Database
from contract.messages import DEFAULT_QUEUE
from service.db import migrate
from tests.servers import PostgresServer

RESULTS = Path(__file__).parent / "results"
POSTGRES_SETTINGS = {
    "synchronous_commit": "on",
    "fsync": "on",
    "full_page_writes": "on",
    "shared_buffers": "1GB",
    "max_wal_size": "8GB",
    "max_connections": "300",
    "wal_level": "minimal",  # rows of a new table are not logged
    "max_wal_senders": "0",
}
CLAIMANTS = (1, 4, 16, 64)
CLIENTS = (1, 16)
CYCLE_CLIENTS = (1, 4, 16)
NUM_ROUNDS = 3
SECONDS = 1.5

Case = Callable[[Site, str, Population], Any]


def fill_jobs(site: Site, url: str, population: Population) -> dict[str, Any]:
    """Fill the database; return the sizes of the table of jobs."""
    began = time.perf_counter()
    with site.ours() as ours:
        template_id = ours.submit()
    database = Database(url)
    fill(database.engine, template_id, population)
    sizes = "SELECT pg_relation_size('jobs'), pg_indexes_size('jobs'), pg_total_relation_size('job_tags')"
    with database.engine.connect() as connection:
        table, indexes, tags = connection.execute(text(sizes)).one()
    database.dispose()
    return {
        "num_jobs": population.num_jobs,
        "waiting": {DEFAULT_QUEUE: population.num_waiting, BACKLOG: population.num_backlog},
        "table_bytes": table,
        "index_bytes": indexes,
        "tag_bytes": tags,
        "seconds": time.perf_counter() - began,
    }


def measure_claims(_: Site, url: str, __: Population) -> list[dict[str, Any]]:
    """Claim by many clients at once."""
    wanted = [(queue, num) for queue in ("claim", "claim_backlog") for num in CLAIMANTS]
    return measure(url, wanted, seconds=SECONDS, num_rounds=NUM_ROUNDS)


def measure_operations(_: Site, url: str, __: Population) -> dict[str, Any]:
    """Measure what a worker does besides; the bytes of a metric point are those that these clients have left."""
    single = [name for name in OPERATIONS if name not in ("claim", "cycle")]
    wanted = [*((name, num) for name in single for num in CLIENTS), *(("cycle", num) for num in CYCLE_CLIENTS)]
    figures = measure(url, wanted, seconds=SECONDS, num_rounds=NUM_ROUNDS)
    database = Database(url)
    sizes = "SELECT count(*), pg_relation_size('metric_points'), pg_indexes_size('metric_points') FROM metric_points"
    with database.engine.connect() as connection:
        num_points, table, indexes = connection.execute(text(sizes)).one()
    database.dispose()
    points = {"num_points": num_points, "table_bytes": table, "index_bytes": indexes}
    return {"figures": figures, "points": points, "metrics_a_step": METRICS_A_STEP}


CASES: dict[str, Case] = {
    "fill": fill_jobs,
    "claims": measure_claims,
    "operations": measure_operations,
    "lists": lambda site, _, population: measure_lists(site, population),
}


def run_cases(cases: Sequence[str], url: str, population: Population, path: Path) -> None:
    """Run the cases in their order, and write the figures after each."""
    for case in cases:
        began, load_before = time.perf_counter(), os.getloadavg()[0]
        with ExitStack() as running:
            folder = Path(running.enter_context(tempfile.TemporaryDirectory(prefix="trd-benchmark-")))
            figures = CASES[case](Site("postgresql", folder, running, existing_url=url), url, population)
        (machine,) = describe_machine(("SQLAlchemy", "psycopg", "fastapi", "uvicorn"))
        loads = [load_before, os.getloadavg()[0]]
        document = json.loads(path.read_text()) if path.exists() else {}
        document |= {"settings": POSTGRES_SETTINGS, "num_processors": os.cpu_count()}
        stored = {"num_jobs": population.num_jobs, "machine": machine, "load_average": loads}
        document[case] = {**stored, "figures": figures}
        path.write_text(json.dumps(document, indent=1) + "\n", encoding="utf-8")
        say(f"{case}: {time.perf_counter() - began:.0f} s")
    path.with_suffix(".md").write_text(report(json.loads(path.read_text())), encoding="utf-8")


def main() -> int:
    """Run the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cases", nargs="+", choices=CASES, default=list(CASES))
    parser.add_argument("--jobs", type=int, default=10_000_000)
    parser.add_argument("--database", help="URL of a PostgreSQL on this machine, filled or not")
    parser.add_argument("--out", type=Path, default=RESULTS / "scaling.json")
    options = parser.parse_args()
    with ExitStack() as stack:
        url = options.database
        if url is None:
            server = PostgresServer(**POSTGRES_SETTINGS)
            stack.callback(server.stop)
            url = server.create_database()
        migrate(url)
        database = Database(url)
        is_filled = count_jobs(database.engine) > 0
        database.dispose()
        cases = options.cases if is_filled or "fill" in options.cases else ["fill", *options.cases]
        run_cases(cases, url, Population(options.jobs), options.out)
    return 0


if __name__ == "__main__":
    sys.exit(main())
