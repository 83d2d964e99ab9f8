"""Whether a tab of the dashboard that stays on a running job keeps its size.

    python -m benchmarks.dashboard_memory --minutes 30
    python -m benchmarks.dashboard_memory --minutes 3 --speed 10

The job's records grow as a worker would write them, `speed` times as fast as a run of a step in two seconds. One tab
stays on the job, one on the list of jobs. After each stretch Chromium collects its garbage and counts: the JavaScript
heap, the nodes of the documents and the event listeners.
"""

from __future__ import annotations

import argparse
import math
import os
import random
import sys
import tempfile
import time
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from statistics import median

from playwright.sync_api import Page

from benchmarks.dashboard import open_dashboard
from benchmarks.machine import describe_machine
from contract.database import Database
from contract.events import NewEvent, append_events
from contract.job_state import JobStatus
from tests.browser.scenario import MODELS, add_curves, record_run
from tests.service.records import set_job, submit

RESULTS = Path(__file__).parent / "results" / "dashboard_memory.md"
SECONDS_A_STEP = 2.0
STEPS_AN_EVENT = 20
NUM_STEPS = 100_000
FIRST_STEPS = 1200
NUM_SAMPLES = 30
MAX_GROWTH = 1.1
"""Largest growth of the last third over the second: curves fill up to twice their resolution, and are thinned again."""


@dataclass(frozen=True)
class Size:
    """What a tab holds after its garbage was collected."""

    seconds: float
    step: int
    heap_mib: float
    nodes: int
    listeners: int


class GrowingJob:
    """A running job whose records follow the clock."""

    def __init__(self, database: Database, job_id: str, speed: float) -> None:
        self._database, self._job_id, self._speed = database, job_id, speed
        self._begun, self.step = time.monotonic(), FIRST_STEPS
        self._draw = random.Random(0)

    def catch_up(self) -> None:
        """Record the steps that the job should have taken by now, with their events."""
        due = FIRST_STEPS + int((time.monotonic() - self._begun) * self._speed / SECONDS_A_STEP)
        if due == self.step:
            return
        add_curves(self._database, self._job_id, due, datetime.now(UTC) - timedelta(seconds=2 * due), self.step + 1)
        loss = 0.2 + 0.8 * math.exp(-due / NUM_STEPS) * self._draw.random()
        progress = {"step": due, "phase": "training", "phase_done": due, "phase_total": NUM_STEPS}
        left = (NUM_STEPS - due) * SECONDS_A_STEP
        set_job(self._database, self._job_id, eta_seconds=left, latest_metrics={"loss": loss}, **progress)
        passed = [step for step in range(self.step + 1, due + 1) if step % STEPS_AN_EVENT == 0]
        events = [NewEvent("phase", f"Phase training, step {step}.", {"phase": "training"}) for step in passed]
        if events:
            with self._database.write() as session:
                append_events(session, self._job_id, *events)
        self.step = due


def measure(minutes: float, speed: float, folder: Path, running: ExitStack) -> dict[str, list[Size]]:
    """Return the sizes of both tabs over the time."""
    limits = {"TRD_MAX_REQUESTS_PER_MINUTE": "100000"}
    url, client, database, chromium = open_dashboard(running, folder / "data", **limits)
    job_id = submit(client, **MODELS, name="Runs for a long time")
    record_run(database, job_id, FIRST_STEPS, rounds=2, hours_ago=1, end=None)
    lease = {"lease_expires_at": datetime.now(UTC) + timedelta(hours=9), "finished_at": None}
    set_job(database, job_id, status=JobStatus.RUNNING, num_steps=NUM_STEPS, **lease)
    context = chromium.new_context(viewport={"width": 1280, "height": 900})
    tabs = {"job": context.new_page(), "list": context.new_page()}
    tabs["list"].goto(url + client.post("/ui/sign-in-links").json()["path"], wait_until="networkidle")
    tabs["job"].goto(f"{url}/ui/jobs/{job_id}", wait_until="networkidle")
    job = GrowingJob(database, job_id, speed)
    begun = time.monotonic()
    sizes: dict[str, list[Size]] = {name: [] for name in tabs}
    for sample in range(NUM_SAMPLES):
        while time.monotonic() - begun < (sample + 1) * minutes * 60 / NUM_SAMPLES:
            job.catch_up()
            tabs["job"].wait_for_timeout(1000)
        for name, tab in tabs.items():
            sizes[name].append(size_of(tab, time.monotonic() - begun, job.step))
            sys.stderr.write(f"{name}: {sizes[name][-1]}\n")
    shown = tabs["job"].locator("#summary dd").first.inner_text()
    assert int(shown.split(" of ")[0].replace(",", "")) > FIRST_STEPS + 0.9 * (job.step - FIRST_STEPS), shown
    return sizes


def size_of(tab: Page, seconds: float, step: int) -> Size:
    """Collect the tab's garbage, and count what is left."""
    session = tab.context.new_cdp_session(tab)
    session.send("HeapProfiler.collectGarbage")
    session.send("HeapProfiler.collectGarbage")
    heap = session.send("Runtime.getHeapUsage")["usedSize"] / 2**20
    counts = session.send("Memory.getDOMCounters")
    session.detach()
    return Size(seconds, step, heap, counts["nodes"], counts["jsEventListeners"])


def growth(sizes: Sequence[Size]) -> dict[str, float]:
    """Return the median of the last third of the time over that of the second."""
    third = len(sizes) // 3
    parts = {"heap": "heap_mib", "nodes": "nodes", "listeners": "listeners"}
    return {
        name: median(getattr(one, field) for one in sizes[-third:])
        / median(getattr(one, field) for one in sizes[third : 2 * third])
        for name, field in parts.items()
    }


def section(minutes: float, speed: float, sizes: dict[str, list[Size]]) -> list[str]:
    """Return the result as Markdown."""
    steps = sizes["job"][-1].step - FIRST_STEPS
    title = f"{minutes:g} minutes, {speed:g} times as fast as a step in two seconds: {steps:,} steps"
    lines = [f"## {title}", "", "| tab | after | heap, MiB | nodes | listeners |", "|---|---:|---:|---:|---:|"]
    for name, found in sizes.items():
        for one in found[4::5]:
            figures = f"{one.heap_mib:.2f} | {one.nodes:,} | {one.listeners}"
            lines.append(f"| {name} | {one.seconds / 60:.1f} min | {figures} |")
        ratios = " | ".join(f"× {ratio:.3f}" for ratio in growth(found).values())
        lines.append(f"| {name} | **last third over the second** | {ratios} |")
    return [*lines, ""]


def main() -> int:
    """Measure, and add the result to the table; return 1 if a tab grew."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--minutes", type=float, default=30)
    parser.add_argument("--speed", type=float, default=1)
    parser.add_argument("--out", type=Path, default=RESULTS)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder, ExitStack() as running:
        sizes = measure(options.minutes, options.speed, Path(folder), running)
    header = [
        "# A tab on a running job", "",
        "The JavaScript heap, DOM nodes and event listeners of a tab after a forced garbage collection, in Chromium.",
        *describe_machine(("playwright", "fastapi")),
        f"Load average at the end: {os.getloadavg()[0]:.1f}.", "",
    ]  # fmt: skip
    before = options.out.read_text(encoding="utf-8") if options.out.exists() else "\n".join(header)
    options.out.write_text("\n".join([before, *section(options.minutes, options.speed, sizes)]), encoding="utf-8")
    worst = max(ratio for found in sizes.values() for ratio in growth(found).values())
    sys.stderr.write(f"the last third over the second: at most × {worst:.3f}\n")
    return int(worst > MAX_GROWTH)


if __name__ == "__main__":
    sys.exit(main())
