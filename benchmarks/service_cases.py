"""The cases of `benchmarks.service`: each takes a site and returns a section of the result table."""

from __future__ import annotations

import asyncio
import json
import os
import statistics
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path
from typing import Any

import httpx
from sqlalchemy import update

from benchmarks.machine import status_kib
from benchmarks.service_data import FILE_NAME, NUM_WAITING, Volume, add_checkpoint, fill, stored_id
from benchmarks.service_load import Listener, Target, all_of, download, latency, settled
from benchmarks.service_site import Ours, Site
from contract.events import NewEvent, append_events
from contract.job_state import JobStatus
from contract.tables import Job

NUM_ROUNDS = 7
NUM_CONNECTIONS = 8
POSTS_A_ROUND = 400
GETS_A_ROUND = 1500
POST_TARGET, GET_TARGET = 0.5, 0.7

LITTLE = Volume(1_000, 1_000)
NUM_PAIRS = 300
VOLUME_TARGET = 1.5

NUM_STREAMS = 500
NUM_STREAMED_JOBS = 20
EVENTS_A_JOB = 100
EVENTS_SECONDS = 15.0
STREAMS_SECONDS = 120
CUT_EVERY = 5
"""One in this many streams loses its connection halfway and reconnects."""

CHECKPOINT_BYTES = 2 * 2**30
MAX_GROWTH_MIB = 64


@dataclass
class Section:
    """One section of the result table."""

    title: str
    lines: list[str] = field(default_factory=list)
    missed: list[str] = field(default_factory=list)
    """Missed targets."""

    def require(self, is_reached: bool, what: str) -> None:
        """Record a missed target."""
        if not is_reached:
            self.missed.append(f"{self.title}: {what}")


@dataclass
class _Contender:
    """One of two servers that are measured alternately, with its times."""

    target: Target
    pid: int
    num_requests: int = 0
    seconds: list[float] = field(default_factory=list)
    cpu_seconds: list[float] = field(default_factory=list)

    def take_turn(self, requests: Sequence[bytes], status: int, *, is_counted: bool) -> None:
        """Send all requests; each must be answered with `status`."""
        self.num_requests = len(requests)
        cpu_before = cpu_seconds(self.pid)
        seconds = asyncio.run(all_of(self.target, requests, NUM_CONNECTIONS, status))
        if is_counted:
            self.seconds.append(seconds)
            self.cpu_seconds.append(cpu_seconds(self.pid) - cpu_before)

    @property
    def cells(self) -> str:
        """Return requests per second, and the server's CPU milliseconds per request."""
        rate = self.num_requests / statistics.median(self.seconds)
        return f"{rate:,.0f} | {1000 * statistics.median(self.cpu_seconds) / self.num_requests:.2f}"


def _ratio(floor: Sequence[float], ours: Sequence[float]) -> float:
    """Return the median over the rounds of our speed relative to the floor's; other load affects both in a round."""
    return statistics.median(theirs / own for theirs, own in zip(floor, ours, strict=True))


def throughput(site: Site) -> Section:
    """Measure POST /jobs and GET /jobs/{id} against the floor."""
    section = Section(f"Throughput, {site.kind}")
    section.lines += [
        "| call | floor, requests/s | CPU ms each | ours, requests/s | CPU ms each | × floor | by CPU | to reach |",
        "|---|---:|---:|---:|---:|---:|---:|---:|",
    ]
    with site.ours() as ours:
        floor = site.floor()
        posts, body = _post_turns(ours, floor)
        floor_id = str(httpx.post(f"{floor[0].url}/jobs", json=body).raise_for_status().json()["id"])
        waiting_id, running_id = ours.submit(), ours.submit()
        with ours.database.write() as session:
            session.execute(update(Job).where(Job.id == running_id).values(status=JobStatus.RUNNING, attempt=1))
        running = _get_turns(ours, running_id, floor, floor_id)
        waiting = _get_turns(ours, waiting_id, floor, floor_id)
    for name, (theirs, own), target in (
        ("POST /jobs", posts, POST_TARGET),
        ("GET /jobs/{id}, running", running, GET_TARGET),
        ("GET /jobs/{id}, waiting, with its position", waiting, GET_TARGET),
    ):
        ratio, cpu_ratio = _ratio(theirs.seconds, own.seconds), _ratio(theirs.cpu_seconds, own.cpu_seconds)
        section.lines.append(f"| {name} | {theirs.cells} | {own.cells} | {ratio:.2f} | {cpu_ratio:.2f} | {target} |")
        section.require(ratio >= target, f"{name} {ratio:.2f} × the floor")
    return section


_Turns = tuple[_Contender, _Contender]
"""Return the floor's and our server."""


def _post_turns(ours: Ours, floor: tuple[Target, int]) -> tuple[_Turns, dict[str, Any]]:
    """Submit for a new owner in each round, because the number of open jobs per owner is limited and counted."""
    theirs, own = _Contender(*floor), _Contender(ours.target, ours.pid)
    for number in range(NUM_ROUNDS + 1):
        own.target, body = ours.new_owner(f"owner-{number}")
        for contender in (theirs, own):
            requests = [contender.target.render("POST", "/jobs", body)] * POSTS_A_ROUND
            contender.take_turn(requests, 201, is_counted=number > 0)
    return (theirs, own), body


def _get_turns(ours: Ours, ours_id: str, floor: tuple[Target, int], floor_id: str) -> _Turns:
    theirs, own = _Contender(*floor), _Contender(ours.target, ours.pid)
    for number in range(NUM_ROUNDS + 1):
        for contender, job_id in ((theirs, floor_id), (own, ours_id)):
            requests = [contender.target.render("GET", f"/jobs/{job_id}")] * GETS_A_ROUND
            contender.take_turn(requests, 200, is_counted=number > 0)
    return theirs, own


def volume(site: Site, much: Volume) -> Section:
    """Measure a client's waiting time with much and with little data."""
    with ExitStack() as running:
        services = []
        for stored in (LITTLE, much):
            ours = running.enter_context(site.ours())
            fill(ours.database.engine, ours.submit(), stored)
            services.append((ours, stored))
        calls = {
            "first page of GET /jobs": [(ours.target, "/jobs") for ours, _ in services],
            "first page, failed ones": [(ours.target, "/jobs?status=failed") for ours, _ in services],
            "metrics of a job": [
                (ours.target, f"/jobs/{stored_id(stored.num_jobs - NUM_WAITING)}/metrics") for ours, stored in services
            ],
        }
        medians = {name: asyncio.run(_paired_medians(targets)) for name, targets in calls.items()}
    section = Section(f"Volume, {site.kind}")
    section.lines += [f"| call | {LITTLE} | {much} | × | to reach |", "|---|---:|---:|---:|---:|"]
    for name, (with_little, with_much) in medians.items():
        ratio = with_much / with_little
        milliseconds = f"{with_little * 1000:.2f} ms | {with_much * 1000:.2f} ms"
        section.lines.append(f"| {name} | {milliseconds} | {ratio:.2f} | {VOLUME_TARGET} |")
        section.require(ratio <= VOLUME_TARGET, f"{name} {ratio:.2f} × the time with little")
    return section


async def _paired_medians(targets: Sequence[tuple[Target, str]]) -> list[float]:
    """Return the median seconds of each target's call; the targets alternate."""
    connections = [await target.connect() for target, _ in targets]
    requests = [target.render("GET", path) for target, path in targets]
    seconds: list[list[float]] = [[] for _ in targets]
    for number in range(NUM_PAIRS + 10):
        for place, (connection, request) in enumerate(zip(connections, requests, strict=True)):
            took = await latency(connection, request)
            if number >= 10:
                seconds[place].append(took)
    for connection in connections:
        connection.close()
    return [statistics.median(each) for each in seconds]


def streams(site: Site) -> Section:
    """Measure event streams of many clients, some of which lose their connection, while events are written."""
    with site.ours() as ours:
        before_mib = _resident_mib(ours.pid)
        job_ids = [ours.submit() for _ in range(NUM_STREAMED_JOBS)]
        listeners = [
            Listener(
                ours.target, job_ids[number % len(job_ids)], EVENTS_A_JOB // 2 if number % CUT_EVERY == 0 else None
            )
            for number in range(NUM_STREAMS)
        ]
        with _sampled_resident_mib(ours.pid) as resident_mib:
            asyncio.run(_stream(ours, job_ids, listeners))
    first = [listener.sequences for listener in listeners]
    expected = {job_id: max(last.sequences[-1] for last in listeners if last.job_id == job_id) for job_id in job_ids}
    num_lost = sum(
        len(set(range(1, expected[listener.job_id] + 1)) - set(listener.sequences)) for listener in listeners
    )
    num_twice = sum(len(sequences) - len(set(sequences)) for sequences in first)
    delays = sorted(delay for listener in listeners for delay in listener.delays)
    section = Section(f"Streams, {site.kind}")
    num_cut = sum(number % CUT_EVERY == 0 for number in range(NUM_STREAMS))
    section.lines += [
        f"{NUM_STREAMS} clients on {NUM_STREAMED_JOBS} jobs, {num_cut} of them cut off once and back with "
        f"`Last-Event-ID`; {EVENTS_A_JOB} events a job in {EVENTS_SECONDS:.0f} s.",
        "",
        "| delivered | lost | twice | delay, median | delay, 99 % | resident before | resident at most |",
        "|---:|---:|---:|---:|---:|---:|---:|",
        f"| {len(delays):,} | {num_lost} | {num_twice} | {statistics.median(delays):.2f} s "
        f"| {delays[len(delays) * 99 // 100]:.2f} s | {before_mib:.0f} MiB | {max(resident_mib):.0f} MiB |",
    ]
    section.require(num_lost == 0 and num_twice == 0, f"{num_lost} events lost, {num_twice} twice")
    return section


async def _stream(ours: Ours, job_ids: Sequence[str], listeners: Sequence[Listener]) -> None:
    def event_seconds(data: str) -> float:
        return datetime.fromisoformat(json.loads(data)["created_at"]).timestamp()

    listening = asyncio.gather(*(listener.listen(event_seconds) for listener in listeners))
    await settled((listener.first_event.wait() for listener in listeners), STREAMS_SECONDS)
    writing = asyncio.create_task(asyncio.to_thread(_write_events, ours, job_ids))
    await settled((listening, writing), STREAMS_SECONDS)


def _write_events(ours: Ours, job_ids: Sequence[str]) -> None:
    """Write events as workers do, evenly over the time; at the end the jobs are finished."""
    began = time.monotonic()
    for number in range(EVENTS_A_JOB):
        for job_id in job_ids:
            with ours.database.write() as session:
                append_events(session, job_id, NewEvent("notice", f"number {number}", {"number": number}))
        time.sleep(max(0.0, began + (number + 1) * EVENTS_SECONDS / EVENTS_A_JOB - time.monotonic()))
    for job_id in job_ids:
        with ours.database.write() as session:
            session.execute(update(Job).where(Job.id == job_id).values(status=JobStatus.SUCCEEDED))
            append_events(session, job_id, NewEvent("status", "The run is over.", {"status": JobStatus.SUCCEEDED}))


def downloads(site: Site) -> Section:
    """Download a checkpoint's file and archive; the content must equal what is stored."""
    section = Section(f"Download of {CHECKPOINT_BYTES / 2**30:.0f} GiB, {site.kind}")
    section.lines += [
        "| | MiB/s, with the client's sha256 | resident before | resident at most |",
        "|---|---:|---:|---:|",
    ]
    with site.ours() as ours:
        job_id = ours.submit()
        sha256 = add_checkpoint(ours.database, ours.storage_dir, job_id, CHECKPOINT_BYTES)
        base = f"/jobs/{job_id}/checkpoints/1"
        for name, path in (("file", f"{base}/files/{FILE_NAME}"), ("tar", f"{base}/archive")):
            before_mib = _resident_mib(ours.pid)
            with _sampled_resident_mib(ours.pid) as resident_mib:
                num_bytes, seconds, got = asyncio.run(download(ours.target, path))
            most = max(resident_mib)
            section.lines.append(
                f"| {name} | {num_bytes / 2**20 / seconds:,.0f} | {before_mib:.0f} MiB | {most:.0f} MiB |"
            )
            section.require(most - before_mib <= MAX_GROWTH_MIB, f"{name}: memory grew by {most - before_mib:.0f} MiB")
            section.require(name == "tar" or got == sha256, f"{name}: other bytes than stored")
    return section


def cpu_seconds(pid: int) -> float:
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def _resident_mib(pid: int) -> float:
    return status_kib("VmRSS", pid) / 1024


@contextmanager
def _sampled_resident_mib(pid: int) -> Iterator[list[float]]:
    """Yield a list that is filled with samples until the block ends."""
    samples = [_resident_mib(pid)]
    is_over = threading.Event()

    def sample() -> None:
        while not is_over.wait(0.02):
            samples.append(_resident_mib(pid))

    thread = threading.Thread(target=sample)
    thread.start()
    try:
        yield samples
    finally:
        is_over.set()
        thread.join()


CASES: dict[str, Callable[[Site, Volume], Section]] = {
    "throughput": lambda site, _: throughput(site),
    "volume": volume,
    "streams": lambda site, _: streams(site),
    "download": lambda site, _: downloads(site),
}
