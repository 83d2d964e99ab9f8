"""How fast the heaviest page of the dashboard is: a job with 10,000 points in each of its series.

    python -m benchmarks.dashboard

Server time: each request of the page and its script, alternately with the bare JSON call `GET /jobs/{id}`. Browser:
from the start of the navigation to the first curve on the screen, in Chromium, with an empty and with a filled cache.
"""

from __future__ import annotations

import argparse
import os
import sys
import tempfile
import time
from contextlib import ExitStack
from pathlib import Path
from statistics import median

import httpx
from playwright.sync_api import Browser, sync_playwright

from benchmarks.machine import describe_machine
from contract.database import Database
from contract.events import NewEvent, append_events
from contract.job_state import JobStatus
from service.db import migrate
from tests.browser.conftest import FLAGS
from tests.browser.scenario import MODELS, record_run
from tests.service.conftest import ADMIN_KEY, AUTHORIZED
from tests.service.live_server import live_server
from tests.service.records import set_job, submit

RESULTS = Path(__file__).parent / "results" / "dashboard.md"
NUM_STEPS, NUM_SERIES, NUM_ROUNDS, NUM_EVENTS = 10_000, 11, 40, 5_000
NUM_REPEATS, NUM_LOADS = 15, 9
MAX_FIRST_PLOT_SECONDS = 1.0
WATCH = """
addEventListener("DOMContentLoaded", () => {
  const watcher = new MutationObserver(() => {
    if (!document.querySelector(".uplot canvas")) return;
    watcher.disconnect();
    requestAnimationFrame(() => requestAnimationFrame(() => { window.firstPlotAt = performance.now(); }));
  });
  watcher.observe(document, { childList: true, subtree: true });
});
"""
"""Keeps when the frame with the first curve was on the screen, in milliseconds since the navigation began."""


def open_dashboard(running: ExitStack, data_dir: Path, **settings: str) -> tuple[str, httpx.Client, Database, Browser]:
    """Start a service on a new SQLite database; return its address, an admin's client, its database and a browser."""
    data_dir.mkdir(mode=0o700)
    database_url = f"sqlite:///{data_dir / 'trd.db'}"
    migrate(database_url)
    server = live_server(data_dir, TRD_API_KEY=ADMIN_KEY, TRD_JUDGE_REFERENCES="false", **settings)
    url = running.enter_context(server).url
    client = httpx.Client(base_url=url, headers=AUTHORIZED, trust_env=False, timeout=60)
    running.enter_context(client)
    database = Database(database_url)
    running.callback(database.dispose)
    playwright = running.enter_context(sync_playwright())
    chromium = playwright.chromium.launch(executable_path="/usr/bin/chromium", args=FLAGS)
    running.callback(chromium.close)
    return url, client, database, chromium


def make_job(client: httpx.Client, database: Database) -> str:
    """Record the heaviest job and return its id."""
    job_id = submit(client, **MODELS, name="Ten thousand steps")
    record_run(database, job_id, NUM_STEPS, rounds=NUM_ROUNDS, hours_ago=20)
    set_job(database, job_id, status=JobStatus.SUCCEEDED, phase=None)
    with database.write() as session:
        append_events(session, job_id, *[NewEvent("notice", f"Notice {i}.", {}) for i in range(NUM_EVENTS)])
    return job_id


def server_times(client: httpx.Client, job_id: str) -> dict[str, tuple[float, int]]:
    """Return the median milliseconds and the bytes of each request; the first is the bare JSON call."""
    requests = {
        "`GET /jobs/ID`, the bare JSON call": (f"/jobs/{job_id}", "application/json"),
        "the page": (f"/ui/jobs/{job_id}", "text/html"),
        "the loss curve, 10,000 points thinned to 1,500": (
            f"/jobs/{job_id}/metrics?resolution=1500&names=loss", "application/json"),
        f"all {NUM_SERIES} curves": (f"/jobs/{job_id}/metrics?resolution=1500", "application/json"),
        "a tick with a new summary": (f"/ui/jobs/{job_id}/changes?after={NUM_EVENTS}&version=x", "application/json"),
        "a tick's points": (f"/jobs/{job_id}/metrics?resolution=1500&from_step={NUM_STEPS - 1}", "application/json"),
    }  # fmt: skip
    times: dict[str, list[float]] = {name: [] for name in requests}
    sizes = {}
    for _ in range(NUM_REPEATS + 1):
        for name, (path, accepted) in requests.items():
            began = time.perf_counter()
            answer = client.get(path, headers={"accept": accepted})
            times[name].append(1000 * (time.perf_counter() - began))
            assert answer.status_code == 200, answer.text
            sizes[name] = len(answer.content)
    return {name: (median(found[1:]), sizes[name]) for name, found in times.items()}


def first_plots(chromium: Browser, url: str, link: str, job_id: str) -> dict[str, list[float]]:
    """Return the seconds to the first plot of each load."""
    context = chromium.new_context(viewport={"width": 1280, "height": 900})
    context.add_init_script(WATCH)
    page = context.new_page()
    page.goto(url + link, wait_until="networkidle")
    seconds: dict[str, list[float]] = {"empty": [], "filled": []}
    for _ in range(NUM_LOADS):
        for cache, found in seconds.items():
            if cache == "empty":
                page.context.new_cdp_session(page).send("Network.clearBrowserCache")
            page.goto(f"{url}/ui/jobs/{job_id}", wait_until="networkidle")
            found.append(page.evaluate("window.firstPlotAt") / 1000)
    context.close()
    return seconds


def main() -> int:
    """Measure and write the table; return 1 if the first plot takes too long."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=RESULTS)
    options = parser.parse_args()
    load_before = os.getloadavg()[0]
    with tempfile.TemporaryDirectory() as folder, ExitStack() as running:
        url, client, database, chromium = open_dashboard(running, Path(folder) / "data")
        job_id = make_job(client, database)
        requests = server_times(client, job_id)
        plots = first_plots(chromium, url, client.post("/ui/sign-in-links").json()["path"], job_id)
    bare = next(iter(requests.values()))[0]
    lines = [
        "# The heaviest page of the dashboard", "",
        f"A job with {NUM_SERIES} series of {NUM_STEPS:,} points, {NUM_ROUNDS} rounds and {NUM_EVENTS:,} notices, on "
        "SQLite.",
        *describe_machine(("fastapi", "uvicorn", "jinja2", "playwright")),
        f"Load average before and after: {load_before:.1f}, {os.getloadavg()[0]:.1f}.", "",
        f"| request, median of {NUM_REPEATS} in turns | ms | ratio | KiB |", "|---|---:|---:|---:|",
    ]  # fmt: skip
    for name, (milliseconds, size) in requests.items():
        lines.append(f"| {name} | {milliseconds:.1f} | {milliseconds / bare:.1f} | {size / 1024:.0f} |")
    lines += ["", f"| first plot on the screen, {NUM_LOADS} loads | median, s | slowest, s |", "|---|---:|---:|"]
    lines += [f"| {cache} cache | {median(found):.2f} | {max(found):.2f} |" for cache, found in plots.items()]
    options.out.write_text("\n".join([*lines, ""]), encoding="utf-8")
    sys.stderr.write("\n".join(lines) + "\n")
    return int(max(median(found) for found in plots.values()) > MAX_FIRST_PLOT_SECONDS)


if __name__ == "__main__":
    sys.exit(main())
