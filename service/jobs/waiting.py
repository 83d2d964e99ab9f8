"""When a job that waits will start and finish: by what runs and waits before it in its queue.

A job is claimed by whichever of the queue's workers is free first. Only leases tell of workers: a free one takes
the next job at once, so while a job waits, those that live hold a lease each. What is not known is None.
The times tell of other owners' jobs no more than their sum.
"""

from __future__ import annotations

import heapq
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from itertools import islice

from pydantic import ValidationError
from sqlalchemy.orm import Session

from contract.dataset_ref import GeneratedDataset
from contract.job_spec import JobSpec
from contract.job_state import JobStatus
from contract.tables import Job
from service.jobs import repository
from service.jobs.duration import NUM_LIKE, PastRun, by_history
from service.jobs.estimate import Estimate, estimate
from service.jobs.forecast import kind_of, seconds_by_phase
from service.jobs.repository import PastJob, SizedJob

MAX_BEFORE = 20
"""Further back in a queue no times are told."""
MAX_WORKERS = 100
"""Where more jobs of a queue run, no times are told."""
MAX_PAST = 60
"""So many finished jobs are looked through for like ones, the newest of each owner."""
MAX_SECONDS = 10 * 365 * 86_400.0
"""What would take longer is not told: it is no estimate any more."""


@dataclass(frozen=True)
class ExpectedTimes:
    """Of a job that waits; None where something that they follow from is not known."""

    start_at: datetime | None = None
    finish_at: datetime | None = None


UNKNOWN = ExpectedTimes()


def expected_times(session: Session, job: Job, position: int | None) -> ExpectedTimes:
    """Two statements at the most: jobs that run or wait before this one, and what like jobs took."""
    if position is None or position > MAX_BEFORE + 1:
        return UNKNOWN
    now = datetime.now(UTC)
    queue = repository.sized_queue(session, job, max_before=MAX_BEFORE, max_leased=MAX_WORKERS + 1)
    running = [row for row in queue if row.job.status != JobStatus.QUEUED]
    if not 0 < len(running) <= MAX_WORKERS or not all(_is_live(row.job, now) for row in running):
        return UNKNOWN
    durations = _Durations(session, {row.job.owner for row in queue if _needs_history(row.job)})
    start = _start_in_seconds(
        [_remaining_seconds(row, durations, now) for row in running],
        [durations.seconds(row) for row in queue if row.job.status == JobStatus.QUEUED and row.job.id != job.id],
    )
    if start is None or start > MAX_SECONDS:
        return UNKNOWN
    own = next((durations.seconds(row) for row in queue if row.job.id == job.id), None)
    finish = start + own if own is not None and own <= MAX_SECONDS else None
    return ExpectedTimes(_after(now, start), _after(now, finish))


def _is_live(job: Job, now: datetime) -> bool:
    """False for one that is to stop, when nobody knows, and for one whose worker was lost and that waits soon."""
    return job.status == JobStatus.RUNNING and job.lease_expires_at is not None and job.lease_expires_at > now


def _needs_history(job: Job) -> bool:
    """Only of a job that runs does the engine's estimate hold."""
    return job.status == JobStatus.QUEUED or job.eta_seconds is None


def _start_in_seconds(remaining: Sequence[float | None], before: Sequence[float | None]) -> float | None:
    """`remaining`: until each worker is free; `before`: what the jobs take that are claimed first, in their order."""
    free = [seconds for seconds in remaining if seconds is not None]
    waiting = [seconds for seconds in before if seconds is not None]
    if len(free) < len(remaining) or len(waiting) < len(before):
        return None
    heapq.heapify(free)
    for seconds in waiting:
        heapq.heapreplace(free, free[0] + seconds)
    return free[0]


def _after(now: datetime, seconds: float | None) -> datetime | None:
    return now + timedelta(seconds=seconds) if seconds is not None else None


def _remaining_seconds(row: SizedJob, durations: _Durations, now: datetime) -> float | None:
    """The engine's own estimate; before it has one, by like jobs, unless it takes longer than they did."""
    job = row.job
    if job.eta_seconds is not None:
        return job.eta_seconds
    expected = durations.seconds(row)
    if expected is None or job.attempt != 1 or job.started_at is None:
        return None
    left = expected - (now - job.started_at).total_seconds()
    return left if left > 0 else None


class _Durations:
    """What jobs take by what like jobs of their owners took. A calibration would be an upper bound, no expectation."""

    def __init__(self, session: Session, owners: set[str]) -> None:
        self._session = session
        self._owners = owners
        self._past: list[PastJob] | None = None
        self._runs: dict[tuple[str, str], list[PastRun]] = {}

    def seconds(self, row: SizedJob) -> float | None:
        """Of the whole run; None without a like job, and for a run that goes on somewhere in its middle."""
        expected = _counts(row)
        if expected is None or row.job.step > 0:
            return None
        found = by_history(expected, self._like_runs(row.job))
        return found.seconds if found is not None else None

    def _like_runs(self, job: Job) -> list[PastRun]:
        if self._past is None:
            self._past = repository.past_jobs(self._session, self._owners, MAX_PAST)
        key = _owners_kind(job)
        if key not in self._runs:
            alike = (_past_run(past) for past in self._past if _owners_kind(past.sized.job) == key)
            self._runs[key] = list(islice((run for run in alike if run is not None), NUM_LIKE))
        return self._runs[key]


def _owners_kind(job: Job) -> tuple[str, str]:
    """An owner sees nothing of another's jobs in the time of their own."""
    return job.owner, repr(kind_of(job.spec))


def _past_run(past: PastJob) -> PastRun | None:
    seconds, counts = seconds_by_phase(past.data), _counts(past.sized)
    if not seconds or counts is None:
        return None
    return PastRun(counts.num_trajectories, counts.num_trained_trajectories, counts.num_evaluation_samples, seconds)


def _counts(row: SizedJob) -> Estimate | None:
    """None where only a worker can count the problems, and for a spec of another version."""
    try:
        spec = JobSpec.model_validate(row.job.spec)
    except ValidationError:
        return None
    data, evaluated = spec.dataset, spec.evaluation.dataset
    num_problems = data.size if isinstance(data, GeneratedDataset) else row.num_rows
    num_evaluated = evaluated.size if isinstance(evaluated, GeneratedDataset) else row.num_evaluation_rows
    if num_problems is None or (evaluated is not None and num_evaluated is None):
        return None
    return estimate(spec, num_problems, num_evaluated)
