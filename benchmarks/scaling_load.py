"""What workers ask of the database, by many clients at once: rates, latencies, and the processor time of either side.

Clients are threads in as many processes as the machine has cores, each with a connection. An operation is the worker's
own code, so its rate includes what Python and the driver take.
"""

from __future__ import annotations

import multiprocessing
import os
import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor
from contextlib import ExitStack, suppress
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from itertools import chain
from multiprocessing.synchronize import Barrier
from pathlib import Path
from typing import Any

from sqlalchemy import text

from benchmarks.machine import say
from benchmarks.scaling_data import BACKLOG
from contract.database import Database
from contract.messages import DEFAULT_QUEUE
from contract.routing import Offer
from worker import repository
from worker.attempt import Slot
from worker.chats import repository as chats
from worker.failures import AttemptEnd, EndKind
from worker.lease import Lease, claim, fenced, finish, renew
from worker.reaper import Reaper, lead
from worker.repository import ProgressBatch
from worker.settings import WorkerSettings
from worker.webhooks import repository as webhooks

METRICS_A_STEP = 18
"""Metrics of one training step in mode trd."""
CYCLE_STEPS = 5
"""Steps that a worker of the operation `cycle` writes, with a heartbeat each."""
LEASE_SECONDS = 3600.0
PREPARE_SECONDS = 120.0
"""Time limit for all clients to connect and to do the operation once, before the measurement begins."""

Act = Callable[[], object]


def _claimed(database: Database, worker: str, queue: str) -> Lease:
    with database.write() as session:
        lease = claim(session, Offer(queues=(queue,)), worker=worker, lease_seconds=LEASE_SECONDS)
    if lease is None:
        raise RuntimeError(f"no job waits in {queue}: fill the database anew")
    return lease


def _heartbeat(database: Database, lease: Lease) -> None:
    with database.write() as session:
        renew(session, lease, LEASE_SECONDS)


def _flush(database: Database, lease: Lease, number: int, num_steps: int) -> None:
    """Write the metrics of some steps as `worker.progress.Progress` does; `number` counts the attempt's writes."""
    at, last = datetime.now(UTC), number * num_steps
    values = {f"metric_{place:02d}": 1.0 / last for place in range(METRICS_A_STEP)}
    batch = ProgressBatch(job_columns={"step": last, "latest_metrics": values, "eta_seconds": 60.0})
    for step in range(last - num_steps + 1, last + 1):
        for name, value in values.items():
            row = {"job_id": lease.job_id, "name": name, "step": step, "value": value, "at": at}
            batch.metric_points[name, step] = row
    with fenced(database, lease) as session:
        if repository.is_new_write(session, lease, number):
            repository.write_progress(session, lease, batch)


def _finish(database: Database, lease: Lease) -> None:
    finish(database, lease, AttemptEnd(EndKind.FINISHED, 0, summary={}), max_attempts=3)


def _claim_from(queue: str) -> Callable[[Database, str], Act]:
    return lambda database, worker: lambda: _claimed(database, worker, queue)


def _claim_and_finish(database: Database, worker: str) -> Act:
    return lambda: _finish(database, _claimed(database, worker, BACKLOG))


def _beat(database: Database, worker: str) -> Act:
    lease = _claimed(database, worker, BACKLOG)
    return lambda: _heartbeat(database, lease)


def _flush_of(num_steps: int) -> Callable[[Database, str], Act]:
    def prepare(database: Database, worker: str) -> Act:
        lease, numbers = _claimed(database, worker, BACKLOG), iter(range(1, 10**9))
        return lambda: _flush(database, lease, next(numbers), num_steps)

    return prepare


def _cycle(database: Database, worker: str) -> Act:
    """Make the operation that plays a whole job in fast motion."""

    def act() -> None:
        lease = _claimed(database, worker, BACKLOG)
        for number in range(1, CYCLE_STEPS + 1):
            _heartbeat(database, lease)
            _flush(database, lease, number, 1)
        _finish(database, lease)

    return act


def _idle_poll(database: Database, worker: str) -> Act:
    """Make the operation of an idle worker, which looks for jobs and for chats."""

    def act() -> None:
        with database.write() as session:
            claim(session, Offer(queues=("nothing waits here",)), worker=worker, lease_seconds=LEASE_SECONDS)
        with database.read() as session:
            chats.is_waiting(session, ["nothing waits here"])

    return act


def _webhook_poll(database: Database, worker: str) -> Act:
    def act() -> None:
        with database.write() as session:
            webhooks.claim_due(session, most=32, lost_seconds=120.0)

    return act


def _reaper_turn(database: Database, worker: str) -> Act:
    """Make the turn of a worker that does not lead: it renews its row, and sees that another one leads."""
    with database.write() as session:
        lead(session, "the leader", lease_seconds=LEASE_SECONDS)
    slot = Slot(WorkerSettings(database_url=database.engine.url.render_as_string(hide_password=False)))
    slot.database = database
    return Reaper(slot, lambda *_: None).turn


OPERATIONS: dict[str, Callable[[Database, str], Act]] = {
    "claim": _claim_from(DEFAULT_QUEUE),
    "claim_backlog": _claim_from(BACKLOG),
    "claim_and_finish": _claim_and_finish,
    "heartbeat": _beat,
    "flush_1": _flush_of(1),
    "flush_10": _flush_of(10),
    "flush_100": _flush_of(100),
    "idle_poll": _idle_poll,
    "webhook_poll": _webhook_poll,
    "reaper_turn": _reaper_turn,
    "cycle": _cycle,
}


@dataclass(frozen=True)
class Figures:
    """One measurement."""

    operation: str
    num_clients: int
    a_second: float
    min_ms: float
    p50_ms: float
    p99_ms: float
    database_ms: float
    """Processor time of PostgreSQL for one operation."""
    client_ms: float
    """Processor time of the clients for one operation."""
    cores: float
    """Processors that both used together; other programs use the machine, too."""
    load_average: float


def measure(url: str, wanted: Sequence[tuple[str, int]], *, seconds: float, num_rounds: int) -> list[dict[str, Any]]:
    """Measure operations by numbers of clients in turns, so that other programs disturb them alike; return of each the
    round with the median rate, as documents of `Figures`."""
    num_processes = os.cpu_count() or 1
    barrier, postmaster = multiprocessing.Barrier(num_processes + 1), postmaster_of(url)
    rounds: list[list[Figures]] = [[] for _ in wanted]
    with ProcessPoolExecutor(num_processes, initializer=_share, initargs=(barrier,)) as processes:
        for number in range(num_rounds):
            for (operation, num_clients), figures in zip(wanted, rounds, strict=True):
                shares = [len(range(place, num_clients, num_processes)) for place in range(num_processes)]
                driven = [processes.submit(_drive, url, operation, share, seconds) for share in shares]
                barrier.wait(PREPARE_SECONDS)
                clock, began = ServerClock(postmaster), time.monotonic()
                barrier.wait(PREPARE_SECONDS)  # all have ended
                database_seconds, took = clock.seconds(), time.monotonic() - began
                barrier.wait(PREPARE_SECONDS)  # they disconnect
                results = [each.result() for each in driven]
                figures.append(_figures(operation, num_clients, results, took, database_seconds))
                say(f"round {number + 1}, {operation}, {num_clients} clients: {figures[-1].a_second:,.0f} a second")
    return [asdict(sorted(each, key=lambda figures: figures.a_second)[num_rounds // 2]) for each in rounds]


_BARRIERS: list[Barrier] = []
"""Barriers of a client's process: all wait until each is prepared, has ended, and may disconnect."""


def _share(barrier: Barrier) -> None:
    _BARRIERS.append(barrier)


def _figures(
    operation: str,
    num_clients: int,
    results: Sequence[tuple[list[float], float]],
    seconds: float,
    database_seconds: float,
) -> Figures:
    latencies = sorted(chain.from_iterable(latencies for latencies, _ in results))
    client_seconds = sum(cpu for _, cpu in results)
    num = len(latencies)
    return Figures(
        operation,
        num_clients,
        a_second=num / seconds,
        min_ms=1000 * latencies[0],
        p50_ms=1000 * latencies[num // 2],
        p99_ms=1000 * latencies[num * 99 // 100],
        database_ms=1000 * database_seconds / num,
        client_ms=1000 * client_seconds / num,
        cores=(database_seconds + client_seconds) / seconds,
        load_average=os.getloadavg()[0],
    )


def _drive(url: str, operation: str, num_threads: int, seconds: float) -> tuple[list[float], float]:
    """Repeat the operation in threads; return the latencies in seconds, and this process's CPU seconds."""
    with ExitStack() as stack:
        database = Database(url, pool_size=max(1, num_threads))
        stack.callback(database.dispose)
        acts = [OPERATIONS[operation](database, f"load:{os.getpid()}:{place}") for place in range(num_threads)]
        for act in acts:
            act()
        latencies: list[list[float]] = [[] for _ in acts]
        _BARRIERS[0].wait(PREPARE_SECONDS)
        cpu_before, end = time.process_time(), time.monotonic() + seconds

        def repeat(act: Act, times: list[float]) -> None:
            while (began := time.monotonic()) < end:
                act()
                times.append(time.monotonic() - began)

        threads = [threading.Thread(target=repeat, args=pair) for pair in zip(acts, latencies, strict=True)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        cpu_seconds = time.process_time() - cpu_before
        _BARRIERS[0].wait(PREPARE_SECONDS)
        _BARRIERS[0].wait(PREPARE_SECONDS)
        return list(chain.from_iterable(latencies)), cpu_seconds


def postmaster_of(url: str) -> int:
    """Return the process id of the server, which is on this machine."""
    database = Database(url, pool_size=1)
    with database.engine.connect() as connection:
        backend = int(connection.execute(text("SELECT pg_backend_pid()")).scalar_one())
        postmaster = int(_stat(backend)[1])
    database.dispose()
    return postmaster


def _stat(pid: int) -> list[str]:
    return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()


class ServerClock:
    """The CPU time of the server's processes that live at the end: clients keep their connections as long."""

    def __init__(self, postmaster: int) -> None:
        self._postmaster = postmaster
        self._before = self._nanoseconds()

    def seconds(self) -> float:
        """Return the CPU seconds since the clock was made."""
        return sum(now - self._before.get(pid, 0) for pid, now in self._nanoseconds().items()) / 1e9

    def _nanoseconds(self) -> dict[int, int]:
        found = {}
        for folder in Path("/proc").glob("[0-9]*"):
            with suppress(FileNotFoundError, ProcessLookupError):
                if int(_stat(int(folder.name))[1]) == self._postmaster:
                    found[int(folder.name)] = int((folder / "schedstat").read_text().split()[0])
        return found
