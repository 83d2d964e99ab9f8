"""The measurements of `benchmarks.scaling` as a document."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from benchmarks.machine import table

GIB = 2**30
_NAMES = {
    "claim": "claim, default queue",
    "claim_backlog": "claim, backlog",
    "claim_and_finish": "claim and end of a job",
    "heartbeat": "heartbeat",
    "flush_1": "progress of 1 step, 18 rows",
    "flush_10": "progress of 10 steps, 180 rows",
    "flush_100": "progress of 100 steps, 1,800 rows",
    "idle_poll": "an idle worker's look for work",
    "webhook_poll": "look for due webhooks",
    "reaper_turn": "turn of a reaper that does not lead",
    "cycle": "a job of 5 steps: claim, 5 heartbeats, 5 writes, end",
}


def report(document: dict[str, Any]) -> str:
    """Return the document's cases as tables in Markdown."""
    settings = ", ".join(f"{name} {value}" for name, value in document["settings"].items())
    lines = ["# Many jobs", "", f"Measured by `python -m benchmarks.scaling`. PostgreSQL: {settings}.", ""]
    lines += [
        "Clients, servers and other programs share the processors: `cores used` is what PostgreSQL and the clients had",
        "together, and `load` the load average. By CPU time the figures compare better than by rate.",
        "",
    ]
    sections = {
        "fill": _fill,
        "claims": lambda figures: ["## Claims", "", *_rates("queue", figures)],
        "operations": _operations,
        "lists": _lists,
    }
    for case, section in sections.items():
        if case in document:
            before, after = document[case]["load_average"]
            lines += section(document[case]["figures"])
            loads = f"Load average before and after: {before:.1f}, {after:.1f}."
            lines += ["", f"{document[case]['num_jobs']:,} jobs. {document[case]['machine']} {loads}", ""]
    return "\n".join(lines)


def _fill(figures: dict[str, Any]) -> list[str]:
    waiting = ", ".join(f"{num:,} wait in {queue}" for queue, num in figures["waiting"].items())
    return [
        "## What is stored",
        "",
        f"{figures['num_jobs']:,} jobs; {waiting}. Filled in {figures['seconds']:.0f} s.",
        "",
        *table(
            "| | GiB | bytes a job |",
            (
                f"| {name} | {figures[key] / GIB:.1f} | {figures[key] / figures['num_jobs']:.0f} |"
                for name, key in (("jobs", "table_bytes"), ("their indexes", "index_bytes"), ("tags", "tag_bytes"))
            ),
            num_texts=1,
        ),
    ]


def _operations(figures: dict[str, Any]) -> list[str]:
    points = figures["points"]
    each = [points[key] / points["num_points"] for key in ("table_bytes", "index_bytes")]
    return [
        "## What a worker does",
        "",
        *_rates("operation", figures["figures"]),
        "",
        f"A metric point takes {each[0]:.0f} bytes in its table and {each[1]:.0f} in the index: "
        f"{points['num_points']:,} points, written by many jobs at once.",
    ]


def _rates(of_what: str, figures: Sequence[dict[str, Any]]) -> list[str]:
    rows = [
        f"| {_NAMES[row['operation']]} | {row['num_clients']} | {row['a_second']:,.0f} | {row['p50_ms']:.1f} ms "
        f"| {row['p99_ms']:.1f} ms | {row['database_ms']:.2f} | {row['client_ms']:.2f} | {row['cores']:.1f} "
        f"| {row['load_average']:.1f} |"
        for row in figures
    ]
    head = f"| {of_what} | clients | a second | median | 99 % | PostgreSQL, CPU ms each | clients, CPU ms each "
    return table(f"{head}| cores used | load |", rows, num_texts=1)


def _lists(figures: Sequence[dict[str, Any]]) -> list[str]:
    rows = (
        f"| {row['what']} | {row['p50_ms']:.1f} ms | {row['p99_ms']:.1f} ms | {row['database_ms']:.1f} "
        f"| {row['api_ms']:.1f} | {row['num_requests']} | {row['load_average']:.1f} |"
        for row in figures
    )
    head = "| call | median | 99 % | PostgreSQL, CPU ms each | API, CPU ms each | requests | load |"
    return [
        "## Lists",
        "",
        "One client, over HTTP, of an owner who has 6 in a thousand of the jobs. Where nothing else is said, it is",
        "`GET /jobs`.",
        "",
        *table(head, rows, num_texts=1),
    ]
