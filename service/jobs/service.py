"""A job's life as far as its user leads it: made, looked at, cancelled, paused, resumed, cloned, deleted."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

from sqlalchemy.exc import IntegrityError
from sqlalchemy.orm import Session

from contract.database import Database
from contract.events import NewEvent, append_events
from contract.ids import JOB_PREFIX, new_id
from contract.job_spec import JobSpec
from contract.job_state import (
    ACTION_RESULTS,
    Action,
    JobStatus,
    assert_transition,
    legal_actions,
    legal_statuses,
)
from contract.storage_keys import job_prefix
from contract.tables import Job
from service.client_tries import RETRY_WINDOW, ClientTry
from service.datasets import repository as datasets
from service.errors import ApiError, ConflictError, InvalidRequestError, NotFoundError, QuotaError
from service.jobs import repository
from service.jobs.admission import Admissions, DataSizes, Fitted, min_problems
from service.jobs.repository import Demands, Placement

MAX_QUEUE_POSITION = 1_000
"""Positions are counted so far and no further: a page of jobs asks for a hundred of them."""


@dataclass(frozen=True)
class Creation:
    """What a request to make a job says beside the spec."""

    owner: str
    body_sha256: str
    idempotency_key: str | None = None
    client_try: ClientTry | None = None
    """None where the client repeats nothing by itself."""
    cloned_from: str | None = None

    @property
    def may_be_repeated(self) -> bool:
        """True where an earlier request may have made the job."""
        return self.idempotency_key is not None or self.is_client_retry

    @property
    def is_client_retry(self) -> bool:
        """True where the client sent the same request before, without a key."""
        return self.idempotency_key is None and self.client_try is not None and self.client_try.is_repeated

    @property
    def may_overlap(self) -> bool:
        """True where the client may send the same request once more, without a key, while this one is answered."""
        return self.idempotency_key is None and self.client_try is not None


@dataclass(frozen=True)
class Created:
    """A job that was asked for."""

    job: Job
    queue_position: int | None
    is_new: bool
    """False where an earlier request made it."""


@dataclass(frozen=True)
class Creator:
    """Makes jobs."""

    database: Database
    admissions: Admissions
    max_open: int

    def create(self, creation: Creation, spec: JobSpec, requested: dict[str, Any]) -> Created:
        """The job; the same request again gives the job that it made.

        Raises `InvalidRequestError`, also where the idempotency key came with another body, and
        `QuotaError`.
        """
        if creation.may_be_repeated:
            with self.database.read() as session:
                earlier = _made_before(session, creation)
                if earlier is not None:
                    return _repeated(session, earlier)
        fitted = self.admissions.fit(spec)
        try:
            return self._place(creation, fitted, requested)
        except IntegrityError:  # two requests with one key at once: the other one made the job
            with self.database.read() as session:
                earlier = _made_before(session, creation)
                if earlier is None:
                    raise
                return _repeated(session, earlier)

    def _place(self, creation: Creation, fitted: Fitted, requested: dict[str, Any]) -> Created:
        """Everything is made before the transaction and refused after it: it is a look and an insertion."""
        job, demands = _new_job(creation, fitted.spec, requested), _demands(fitted.spec, self.max_open)
        new = (job, demands, fitted.spec.tags, _first_events(fitted))
        if creation.may_overlap:
            with self.database.write() as session:
                repository.wait_for_like_requests(session, creation.owner, creation.body_sha256)
                earlier = _made_before(session, creation)
                if earlier is not None:
                    return _repeated(session, earlier)
                placement = repository.place(session.connection(), *new, most=MAX_QUEUE_POSITION)
        else:
            with self.database.write_at_once() as connection:
                placement = repository.place(connection, *new, most=MAX_QUEUE_POSITION)
        if not placement.is_made:
            raise self._refusal(creation.owner, fitted, placement)
        return Created(job, placement.position, is_new=True)

    def _refusal(self, owner: str, fitted: Fitted, placement: Placement) -> ApiError:
        """Why a job was not made; raises `InvalidRequestError` where it is the data."""
        self.admissions.complete(owner, fitted, DataSizes(placement.size, placement.evaluation_size))
        assert placement.num_open >= self.max_open, "nothing else keeps a job from being made"
        return _too_many_open(self.max_open)


def _too_many_open(max_open: int) -> QuotaError:
    return QuotaError(f"{max_open} of your jobs wait or run already; wait for one to end, or cancel one")


def _repeated(session: Session, job: Job) -> Created:
    return Created(job, queue_position(session, job), is_new=False)


def _first_events(fitted: Fitted) -> list[NewEvent]:
    queued = NewEvent("status", "The job is queued.", {"status": JobStatus.QUEUED})
    return [queued, *(NewEvent("notice", message, {"code": "budget_lowered"}) for message in fitted.notices)]


def _demands(spec: JobSpec, max_open: int) -> Demands:
    data, evaluated = spec.dataset, spec.evaluation.dataset
    return Demands(
        max_open=max_open,
        dataset=data if isinstance(data, str) else None,
        min_problems=min_problems(spec),
        needs_solutions=spec.is_privileged,
        evaluation_dataset=evaluated if isinstance(evaluated, str) else None,
    )


def _made_before(session: Session, creation: Creation) -> Job | None:
    if creation.idempotency_key is None:
        return _made_without_key(session, creation)
    job = repository.by_idempotency_key(session, creation.owner, creation.idempotency_key)
    if job is not None and job.body_sha256 != creation.body_sha256:
        raise InvalidRequestError(
            f"Idempotency-Key = {creation.idempotency_key}: it came with another body before, and made {job.id}; "
            "send a new key with a new job",
            code="idempotency_key_reused",
            param="Idempotency-Key",
        )
    return job


def _made_without_key(session: Session, creation: Creation) -> Job | None:
    """What the client's earlier request made; or its later one, which overtook this."""
    if creation.client_try is None:
        return None
    if creation.client_try.is_repeated:
        since = datetime.now(UTC) - RETRY_WINDOW
        return repository.newest_with_body(session, creation.owner, creation.body_sha256, since)
    since = creation.client_try.received_at
    return repository.newest_with_body(session, creation.owner, creation.body_sha256, since, is_made_by_retry=True)


def _new_job(creation: Creation, spec: JobSpec, requested: dict[str, Any]) -> Job:
    now = datetime.now(UTC)
    assert spec.queue is not None, "a resolved spec names its queue"
    return Job(
        id=new_id(JOB_PREFIX, now_seconds=now.timestamp()),
        owner=creation.owner,
        name=spec.name,
        mode=spec.mode,
        spec=spec.model_dump(mode="json"),
        requested=requested,
        idempotency_key=creation.idempotency_key,
        body_sha256=creation.body_sha256,
        cloned_from=creation.cloned_from,
        made_by_retry=creation.is_client_retry or None,
        created_at=now,
        status=JobStatus.QUEUED,
        queue=spec.queue,
        priority=spec.priority,
        attempt=0,
        num_lost=0,
        lease_token=0,
        step=0,
        latest_metrics={},
        num_events=0,
    )


def get_job(session: Session, owner: str, job_id: str, *, for_update: bool = False) -> Job:
    """The owner's job; raises `NotFoundError`, for another owner's too."""
    job = repository.find(session, owner, job_id, for_update=for_update)
    if job is None:
        raise _no_such_job(job_id)
    return job


def get_placed_job(session: Session, owner: str, job_id: str) -> tuple[Job, int | None]:
    """The same, and where the job stands in its queue; None unless it waits."""
    placed = repository.find_placed(session, owner, job_id, MAX_QUEUE_POSITION)
    if placed is None:
        raise _no_such_job(job_id)
    return placed


def _no_such_job(job_id: str) -> NotFoundError:
    return NotFoundError(f"there is no job {job_id}", code="job_not_found", param="job_id")


def queue_positions(session: Session, jobs: Iterable[Job]) -> dict[str, int]:
    """Where those of the jobs that wait stand in their queues, by id."""
    waiting = [job.id for job in jobs if job.status == JobStatus.QUEUED]
    found = repository.positions(session, waiting, MAX_QUEUE_POSITION) if waiting else {}
    return {job_id: position for job_id, position in found.items() if position is not None}


def queue_position(session: Session, job: Job) -> int | None:
    """Where a queued job stands; None in any other status."""
    return queue_positions(session, [job]).get(job.id)


_MESSAGES = {
    JobStatus.QUEUED: "The job is queued again, and goes on from its last checkpoint where it has one.",
    JobStatus.PAUSED: "The job is paused.",
    JobStatus.PAUSING: "A pause was asked for; the run stops at the next step boundary.",
    JobStatus.CANCELLED: "The job is cancelled.",
    JobStatus.CANCELLING: "A cancellation was asked for; the run stops at the next step boundary.",
}


def act(session: Session, owner: str, job_id: str, action: Action, *, max_open: int) -> Job:
    """Do what the user asks; what was done already is done. Raises `ConflictError` with what is legal, and
    `QuotaError` where a job that is over would be one too many that waits."""
    job = get_job(session, owner, job_id, for_update=True)
    current = JobStatus(job.status)
    result = ACTION_RESULTS[action].get(current)
    if result is None:
        raise illegal_action(job, action)
    if result is current:
        return job
    assert_transition(current, result)
    if current.is_final and repository.num_open(session, owner, max_open) >= max_open:
        raise _too_many_open(max_open)
    if result is JobStatus.QUEUED:
        _require_datasets(session, job)
        _clear_end(job)
    job.status = result
    if result is JobStatus.CANCELLED:
        job.finished_at = datetime.now(UTC)
        job.phase = job.eta_seconds = None
    append_events(session, job.id, NewEvent("status", _MESSAGES[result], {"status": result}))
    return job


def _require_datasets(session: Session, job: Job) -> None:
    for dataset in (job.spec["dataset"], job.spec["evaluation"]["dataset"]):
        if isinstance(dataset, str) and not datasets.is_kept(session, job.owner, dataset):
            raise ConflictError(
                f"{job.id} cannot go on: its dataset {dataset} was deleted; upload it again and clone the job",
                code="dataset_deleted",
            )


def _clear_end(job: Job) -> None:
    job.finished_at = None
    job.error_code = job.error_message = job.error_retryable = job.error_hint = None
    job.num_lost = 0
    job.phase = job.phase_done = job.phase_total = job.eta_seconds = None


def illegal_action(job: Job, action: Action) -> ConflictError:
    """The refusal of an action that the job's status does not allow."""
    status = JobStatus(job.status)
    legal = ", ".join(legal_statuses(action))
    possible = ", ".join(legal_actions(status)) or "nothing"
    return ConflictError(
        f"{job.id} is {status}: {action} is possible when a job is {legal}; for this one, {possible}",
        code="illegal_transition",
        param="status",
    )


def delete(session: Session, owner: str, job_id: str) -> str:
    """Forget a job that is over, and return the storage prefix to remove after the commit."""
    job = get_job(session, owner, job_id, for_update=True)
    if JobStatus(job.status) not in legal_statuses(Action.DELETE):
        raise illegal_action(job, Action.DELETE)
    job.deleted_at = datetime.now(UTC)
    job.idempotency_key = None
    repository.remove_records(session, job_id)
    return job_prefix(job_id)


_WHOLE = frozenset({"dataset", "teacher"})
"""Fields whose objects are one of several kinds: parts of two kinds make neither."""


def overridden(requested: Mapping[str, Any], overrides: Mapping[str, Any]) -> dict[str, Any]:
    """The body of a clone: what the user wrote for the original, with `overrides` merged in.

    Objects merge key by key; everything else, null and references to data and teachers too, replaces
    what was there.
    """
    merged = dict(requested)
    for key, value in overrides.items():
        before = merged.get(key)
        if isinstance(value, dict) and isinstance(before, dict) and key not in _WHOLE:
            merged[key] = overridden(before, value)
        else:
            merged[key] = value
    return merged
