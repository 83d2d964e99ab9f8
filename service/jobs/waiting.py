"""Expected start and finish of a queued job, from the jobs that run or wait before it in its queue.

The first free worker of the queue claims a job. Workers are known by their leases only, and each is taken to be able to
run every job of its queue: a free worker then takes the next job at once, so while a job waits, every live worker
holds a lease. In a queue of different workers the times may be too early. Unknown times are None. The times reveal no
more of other owners' jobs than their sum.
"""

from __future__ import annotations

import heapq
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from itertools import islice

from pydantic import ValidationError
from sqlalchemy.orm import Session

from contract.database import Database
from contract.dataset_ref import GeneratedDataset
from contract.job_spec import JobSpec
from contract.job_state import JobStatus
from contract.tables import Job
from service.jobs import history
from service.jobs.fleet import Place
from service.jobs.forecast import NUM_LIKE, PastRun, counts_of, kind_of, seconds_by_phase, seconds_like
from service.jobs.history import PastJob, SizedJob
from trd_estimate.counts import Counts

MAX_BEFORE = 20
"""Times of jobs further back in a queue are reported as unknown."""
MAX_WORKERS = 100
"""If more jobs of a queue run, times are reported as unknown."""
MAX_PAST = 60
"""Number of finished jobs that are searched for similar ones, the newest of each owner."""
MAX_SECONDS = 10 * 365 * 86_400.0
"""Longer estimates are reported as unknown."""


@dataclass(frozen=True)
class ExpectedTimes:
    """When a waiting job will start and finish; None if unknown."""

    start_at: datetime | None = None
    finish_at: datetime | None = None
    note: str | None = None
    """Why one of them is unknown, for people."""


UNKNOWN = ExpectedTimes()
"""The forecast for a job that does not wait."""


def expected_times(database: Database, job: Job, place: Place) -> ExpectedTimes:
    """Estimate the times of a job. Takes at most two statements: the jobs that run or wait before this one, and the
    durations of similar jobs. Most jobs need none, and no transaction."""
    if place.position is None:
        return UNKNOWN
    if place.would_wait_for is not None:
        return ExpectedTimes(note=place.would_wait_for.message)
    if place.position > MAX_BEFORE + 1:
        return ExpectedTimes(note=f"more than {MAX_BEFORE} jobs wait before it")
    with database.read() as session:
        return _times_among(session, job)


def _times_among(session: Session, job: Job) -> ExpectedTimes:
    now = datetime.now(UTC)
    queue = history.sized_queue(session, job, max_before=MAX_BEFORE, max_leased=MAX_WORKERS + 1)
    running = [row for row in queue if row.job.status != JobStatus.QUEUED]
    obstacle = _obstacle(job.queue, running, now)
    if obstacle is not None:
        return ExpectedTimes(note=obstacle)
    # The engine's own estimate, which needs no history, holds for a running job alone.
    unknown = [row.job for row in queue if row.job.status == JobStatus.QUEUED or row.job.eta_seconds is None]
    durations = _Durations(session, {one.owner for one in unknown})
    start = _start_in_seconds(
        [_remaining_seconds(row, durations, now) for row in running],
        [durations.seconds(row) for row in queue if row.job.status == JobStatus.QUEUED and row.job.id != job.id],
    )
    if start is None or start > MAX_SECONDS:
        return ExpectedTimes(note="the duration of a job that runs or waits before it is unknown")
    start_at = now + timedelta(seconds=start)
    itself = next((row for row in queue if row.job.id == job.id), None)
    own = durations.seconds(itself) if itself is not None else None
    if itself is None or own is None or own > MAX_SECONDS:
        return ExpectedTimes(start_at, note=_why_without_end(itself))
    return ExpectedTimes(start_at, start_at + timedelta(seconds=own))


def _obstacle(queue: str, running: Sequence[SizedJob], now: datetime) -> str | None:
    """Return why it is unknown when a worker of the queue will be free; None if it is known."""
    if not running:
        return (
            f"nothing runs in the queue {queue}, and a free worker takes a job within seconds: "
            "if it stays queued, start a worker for that queue"
        )
    if len(running) > MAX_WORKERS:
        return f"more than {MAX_WORKERS} jobs run in the queue {queue}"
    if not all(_is_live(row.job, now) for row in running):
        return "a job before it is being paused or cancelled, or its worker does not respond"
    return None


def _why_without_end(row: SizedJob | None) -> str:
    if row is not None and row.job.step > 0:
        return "it continues from a checkpoint, and similar jobs show only how long a whole run takes"
    if row is None or _counts(row) is None:
        return "only a worker can count its problems"
    return "no similar job of its owner has succeeded"


def _is_live(job: Job, now: datetime) -> bool:
    """Return False if the job is to stop, since nobody knows when, or if its worker was lost: it will wait soon."""
    return job.status == JobStatus.RUNNING and job.lease_expires_at is not None and job.lease_expires_at > now


def _start_in_seconds(remaining: Sequence[float | None], before: Sequence[float | None]) -> float | None:
    """Return when the job starts. `remaining`: until each worker is free; `before`: what the jobs take that are claimed
    first, in their order."""
    free = [seconds for seconds in remaining if seconds is not None]
    waiting = [seconds for seconds in before if seconds is not None]
    if len(free) < len(remaining) or len(waiting) < len(before):
        return None
    heapq.heapify(free)
    for seconds in waiting:
        heapq.heapreplace(free, free[0] + seconds)
    return free[0]


def _remaining_seconds(row: SizedJob, durations: _Durations, now: datetime) -> float | None:
    """Return the engine's own estimate; until it has one, the time of similar jobs, unless the job takes longer than
    they did."""
    job = row.job
    if job.eta_seconds is not None:
        return job.eta_seconds
    expected = durations.seconds(row)
    if expected is None or job.attempt != 1 or job.started_at is None:
        return None
    left = expected - (now - job.started_at).total_seconds()
    return left if left > 0 else None


class _Durations:
    """Durations of jobs, from similar jobs of their owners. A calibration would be an upper bound, not an estimate."""

    def __init__(self, session: Session, owners: set[str]) -> None:
        self._session = session
        self._owners = owners
        self._past: list[PastJob] | None = None
        self._runs: dict[tuple[str, str], list[PastRun]] = {}

    def seconds(self, row: SizedJob) -> float | None:
        """Return the duration of the whole run; None without a similar job, and for a run that was interrupted."""
        expected = _counts(row)
        if expected is None or row.job.step > 0:
            return None
        found = seconds_like(expected, self._like_runs(row.job))
        return sum(found.values()) if found else None

    def _like_runs(self, job: Job) -> list[PastRun]:
        if self._past is None:
            self._past = history.past_jobs(self._session, self._owners, MAX_PAST)
        key = _owners_kind(job)
        if key not in self._runs:
            alike = (_past_run(past) for past in self._past if _owners_kind(past.sized.job) == key)
            self._runs[key] = list(islice((run for run in alike if run is not None), NUM_LIKE))
        return self._runs[key]


def _owners_kind(job: Job) -> tuple[str, str]:
    """Include the owner: nobody sees anything of another owner's jobs in the times of their jobs."""
    return job.owner, repr(kind_of(job.spec))


def _past_run(past: PastJob) -> PastRun | None:
    seconds, counts = seconds_by_phase(past.data), _counts(past.sized)
    if not seconds or counts is None:
        return None
    return PastRun(counts.num_trajectories, counts.num_trained_trajectories, counts.num_evaluation_samples, seconds)


def _counts(row: SizedJob) -> Counts | None:
    """Return the counts; None if only a worker can count the problems, and for a spec of another version."""
    try:
        spec = JobSpec.model_validate(row.job.spec)
    except ValidationError:
        return None
    data, evaluated = spec.dataset, spec.evaluation.dataset
    num_problems = data.size if isinstance(data, GeneratedDataset) else row.num_rows
    num_evaluated = evaluated.size if isinstance(evaluated, GeneratedDataset) else row.num_evaluation_rows
    return counts_of(spec, num_problems, num_evaluated)
