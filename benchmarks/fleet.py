"""Simulates fleets of 10,000 workers with the rates that `benchmarks.scaling` measured.

    python -m benchmarks.fleet

reads `results/scaling.json` and writes `results/fleet.md`. The model is compared first with measurements that it was
not made from: whole jobs in fast motion by 1, 4 and 16 clients.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from benchmarks.fleet_model import (
    SECONDS,
    Comparison,
    Cost,
    Fleet,
    FleetModel,
    Outcome,
    compare,
    costs_of,
    demanded_processors,
)
from benchmarks.machine import say, table

RESULTS = Path(__file__).parent / "results"
AS_INSTALLED = Fleet("as installed")
LONGER = Fleet("longer intervals", heartbeat=15.0, progress=30.0, webhook=30.0, reaper=30.0, poll=10.0)
FLEETS = [
    *(replace(AS_INSTALLED, num_processors=number) for number in (8, 16, 32)),
    *(replace(LONGER, num_processors=number) for number in (2, 4, 8)),
    replace(LONGER, name="longer intervals", num_processors=16, step=1.0),
]
WRITE_INTERVALS = (1.0, 5.0, 15.0, 30.0, 60.0)
BILLION = 10**9


def report(document: Mapping[str, Any]) -> str:
    """Simulate all fleets; return the document in Markdown."""
    costs = costs_of(document)
    lines = [
        "# A fleet of 10,000 workers, simulated",
        "",
        "Made by `python -m benchmarks.fleet` from the measurements in [scaling.md](scaling.md). What is said of",
        "fleets is **simulated**; costs, and one side of the comparison, are **measured**.",
        "",
        *_costs_table(costs),
        *_comparison_table(compare(document)),
        *_fleets_table([_simulated(fleet, costs) for fleet in FLEETS]),
        *_demand_tables(costs),
        *_points_table(document),
    ]
    return "\n".join(lines)


def _simulated(fleet: Fleet, costs: Mapping[str, Cost]) -> Outcome:
    outcome = FleetModel(fleet, costs).run()
    say(f"{fleet.name}, {fleet.num_processors} processors: {outcome.utilisation:.0%}")
    return outcome


def _costs_table(costs: Mapping[str, Cost]) -> list[str]:
    rows = [
        f"| {name} | {1000 * cost.database:.2f} | {1000 * cost.client:.2f} | {1000 * cost.wait:.2f} "
        f"| {1 / cost.database:,.0f} |"
        for name, cost in costs.items()
        if cost.database > 0
    ]
    head = "| operation | PostgreSQL, CPU ms | client, CPU ms | waiting, ms | most a second and processor |"
    return ["## Costs (measured)", "", *table(head, rows, num_texts=1), ""]


def _comparison_table(comparisons: Sequence[Comparison]) -> list[str]:
    rows = [
        f"| {c.num_clients} | {c.measured_a_second:.1f} | {c.simulated_a_second:.1f} | {c.error:+.0%} "
        f"| {c.measured_p50_ms:.0f} ms | {c.simulated_p50_ms:.0f} ms |"
        for c in comparisons
    ]
    return [
        "## The model against a measurement",
        "",
        "Jobs of five steps in fast motion, whose clients share the processors with the database. The model knows the",
        "costs of single operations by one client, and the share of the processors that other programs left.",
        "",
        "| clients | jobs a second, measured | simulated | error | median of a job, measured | simulated |",
        *("|---:|---:|---:|---:|---:|---:|", *rows, ""),
    ]


def _fleets_table(outcomes: Sequence[Outcome]) -> list[str]:
    rows = []
    for outcome in outcomes:
        fleet = outcome.fleet
        claims = "claim" if outcome.seconds.get("claim") else "heartbeat"
        times = "| ".join(f"{outcome.quantile_ms(name, 0.99):,.1f} ms " for name in (claims, "heartbeat", "write"))
        rows.append(
            f"| {fleet.name} | {fleet.num_processors} | {fleet.step:g} s | {fleet.rows_a_second:,.0f} "
            f"| {outcome.num_operations / SECONDS:,.0f} | {outcome.utilisation:.0%}"
            f"{' (overloaded)' if outcome.is_overloaded else ''} | {times}|"
        )
    return [
        "## Fleets (simulated)",
        "",
        "10,000 workers, nine in ten of which run jobs of an hour on average. As installed: heartbeat 5 s, progress",
        "1 s, webhooks 1 s, reaper 10 s, poll 3 s. Longer intervals: 15 s, 30 s, 30 s, 30 s, 10 s.",
        "",
        "| settings | processors | a step | metric points a second | operations a second | utilisation | claim, 99 % "
        "| heartbeat, 99 % | write, 99 % |",
        *("|---|---:|---:|---:|---:|---:|---:|---:|---:|", *rows, ""),
    ]


def _demand_tables(costs: Mapping[str, Cost]) -> list[str]:
    fleets = [AS_INSTALLED, LONGER]
    demands = [demanded_processors(fleet, costs) for fleet in fleets]
    rows = [f"| {name} | {' | '.join(f'{demand[name]:.2f}' for demand in demands)} |" for name in demands[0]]
    rows.append(f"| **all** | {' | '.join(f'**{sum(demand.values()):.2f}**' for demand in demands)} |")
    intervals = []
    for seconds in WRITE_INTERVALS:
        cells = [demanded_processors(Fleet("", step=step, progress=seconds), costs)["write"] for step in (1.0, 10.0)]
        intervals.append(f"| {seconds:g} s | {' | '.join(f'{cell:.1f}' for cell in cells)} |")
    return [
        "## Processors of the database that 10,000 workers use (costs × rates)",
        "",
        f"| | {' | '.join(fleet.name for fleet in fleets)} |",
        *("|---|---:|---:|", *rows, ""),
        "Writes of progress alone, by their interval (`TRD_PROGRESS_SECONDS`):",
        "",
        "| interval | a step a second | a step in 10 s |",
        *("|---|---:|---:|", *intervals, ""),
    ]


def _points_table(document: Mapping[str, Any]) -> list[str]:
    figures, costs = document["operations"]["figures"], costs_of(document)
    points, rate = figures["points"], AS_INSTALLED.rows_a_second
    table, index = (points[key] / points["num_points"] * BILLION / 2**30 for key in ("table_bytes", "index_bytes"))
    seconds = (costs["flush_100"].database - costs["flush_1"].database) / (99 * figures["metrics_a_step"])
    return [
        "## A billion metric points",
        "",
        f"- {table:,.0f} GiB of table and {index:,.0f} GiB of index, by the measured bytes of a point.",
        f"- {seconds * BILLION / 3600:,.1f} hours of one processor of the database to write them, by the measured "
        f"{1e6 * seconds:.0f} µs of a point in large writes.",
        f"- 10,000 workers with a step in 10 s write {rate:,.0f} a second, a billion in "
        f"{BILLION / rate / 3600:,.1f} hours.",
        "",
    ]


def main() -> int:
    """Write the document."""
    document = json.loads((RESULTS / "scaling.json").read_text())
    (RESULTS / "fleet.md").write_text(report(document), encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
