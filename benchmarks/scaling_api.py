"""The calls of the API that `benchmarks.scaling` measures with ten million jobs."""

from __future__ import annotations

import asyncio
import os
import time
from datetime import UTC, datetime, timedelta
from typing import Any
from urllib.parse import urlencode

from benchmarks.machine import say
from benchmarks.scaling_data import DAYS, Population, owner_name
from benchmarks.scaling_load import ServerClock, postmaster_of
from benchmarks.service_cases import cpu_seconds
from benchmarks.service_load import Target, latency
from benchmarks.service_site import Ours, Site
from contract.ids import JOB_PREFIX, first_id

OWNER = owner_name(50)
NUM_REQUESTS = 50
MAX_SECONDS = 4.0
"""Time limit of the measurement of one call; a slow call gets fewer requests."""


def list_queries(population: Population) -> dict[str, str]:
    """Return the paths of the measured lists by their description."""
    now = datetime.now(UTC)
    middle, begin = now - timedelta(days=DAYS / 4), now - timedelta(days=DAYS - 1)
    day = {"created_after": middle.isoformat(), "created_before": (middle + timedelta(days=1)).isoformat()}
    queries: dict[str, dict[str, Any]] = {
        "first page": {},
        "page of 100": {"limit": 100},
        "page in the middle": {"after": first_id(JOB_PREFIX, middle)},
        "last page": {"after": first_id(JOB_PREFIX, begin)},
        "status: failed (2 % of the jobs that are over)": {"status": "failed"},
        "status: failed or succeeded": {"status": ["failed", "succeeded"]},
        "status: running (none)": {"status": "running"},
        "mode: opd (a third)": {"mode": "opd"},
        "tag: a tenth of the jobs": {"tag": "nightly"},
        "tag: one in ten thousand": {"tag": "paper"},
        "tag: many jobs of other owners, none of the owner's": {"tag": "team"},
        "tag and status: nightly, failed": {"tag": "nightly", "status": "failed"},
        "name: a quarter of the jobs": {"name": "qwen3"},
        "name: one in a hundred thousand": {"name": f"#{population.num_jobs // 3}"[:6]},
        "name: none": {"name": "no such name"},
        "name and status: none": {"name": "no such name", "status": "failed"},
        "one day": day,
        "one day, by name: none": {**day, "name": "no such name"},
    }
    return {what: f"/jobs?{urlencode(query, doseq=True)}" for what, query in queries.items()}


def measure_lists(site: Site, population: Population) -> list[dict[str, Any]]:
    """Return the latencies of lists of one owner, and of calls that read jobs of all owners."""
    with site.ours() as ours:
        owner, body = ours.new_owner(OWNER)
        calls = {what: (owner, owner.render("GET", path), 200) for what, path in list_queries(population).items()}
        calls["POST /jobs of the same owner"] = (owner, owner.render("POST", "/jobs", body), 201)
        calls["GET /metrics, for Prometheus"] = (ours.target, ours.target.render("GET", "/metrics"), 200)
        calls["GET /readyz"] = (ours.target, ours.target.render("GET", "/readyz"), 200)
        return [_measure_call(ours, what, *call) for what, call in calls.items()]


def _measure_call(ours: Ours, what: str, target: Target, request: bytes, status: int) -> dict[str, Any]:
    postmaster = postmaster_of(ours.database.engine.url.render_as_string(hide_password=False))
    asyncio.run(_latencies(target, request, status, 3))  # fills caches of plans and pages
    clock, api_before = ServerClock(postmaster), cpu_seconds(ours.pid)
    seconds = sorted(asyncio.run(_latencies(target, request, status, NUM_REQUESTS)))
    num = len(seconds)
    figures = {
        "what": what,
        "p50_ms": 1000 * seconds[num // 2],
        "p99_ms": 1000 * seconds[num * 99 // 100],
        "database_ms": 1000 * clock.seconds() / num,
        "api_ms": 1000 * (cpu_seconds(ours.pid) - api_before) / num,
        "num_requests": num,
        "load_average": os.getloadavg()[0],
    }
    say(f"{what}: {figures['p50_ms']:.1f} ms, of PostgreSQL's CPU {figures['database_ms']:.1f} ms")
    return figures


async def _latencies(target: Target, request: bytes, status: int, most: int) -> list[float]:
    connection = await target.connect()
    began, seconds = time.perf_counter(), []
    while not seconds or (len(seconds) < most and time.perf_counter() - began < MAX_SECONDS):
        seconds.append(await latency(connection, request, status))
    connection.close()
    return seconds
