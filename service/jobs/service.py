"""What users do with jobs: submit, clone, list, inspect, pause, resume, cancel and delete them.

Each surface (the native one, `service.openai_compat`, pages) calls `JobService`, which opens the transactions.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from types import MappingProxyType
from typing import Any

from sqlalchemy.orm import Session

from contract.database import Database, lock_identical_requests
from contract.events import NewEvent, append_events
from contract.ids import JOB_PREFIX, new_id
from contract.job_spec import JobSpec
from contract.job_state import ACTION_RESULTS, Action, JobStatus, assert_transition, legal_actions, legal_statuses
from contract.routing import Needs
from contract.storage_keys import job_prefix
from contract.tables import Job
from contract.tracing import origin, span
from contract.views import NoticeView
from contract.views.audit import AuditAction
from contract.views.jobs import WouldWaitFor
from service.audit.log import RequestThreads, audit_entry, record
from service.bodies import document_sha256, overridden, validated
from service.datasets import repository as datasets
from service.enqueue import Doorbell
from service.errors import ConflictError, InvalidRequestError, NotFoundError, QuotaError
from service.jobs import repository
from service.jobs.admission import Admissions, accepted_notices, check_data
from service.jobs.fleet import LiveOffers, Place
from service.jobs.forecast import Forecast, counts_of, device_kind_of, forecast, needs_of, nodes_note
from service.jobs.repository import JobQuery as JobQuery  # pages name it, and have no repository
from service.jobs.waiting import ExpectedTimes, expected_times
from service.models.service import ModelCatalog
from service.retries import RETRY_WINDOW, ClientTry, RequestsInFlight
from service.settings import Settings
from trd_estimate.counts import Counts

MAX_QUEUE_POSITION = 200
"""Positions are counted up to this limit: a page of jobs asks for a hundred of them."""
NUM_SQLITE_THREADS = 4
"""One thread writes while the others prepare the next transactions."""
NUM_POSTGRES_THREADS = 6
"""Each waits for the server half of its time. With twenty, which take the interpreter from each other, a tenth fewer
submissions are stored."""


@dataclass(frozen=True)
class Submission:
    """A request to create a job."""

    owner: str
    spec: JobSpec
    requested: dict[str, Any]
    """The spec as the user wrote it."""
    body_sha256: str
    """Digest of the request's body; identifies a repetition of the request."""
    idempotency_key: str | None = None
    client_try: ClientTry | None = None
    """None if the client does not retry by itself."""
    cloned_from: str | None = None

    @property
    def is_client_retry(self) -> bool:
        """True if the client sent the same request before, without a key."""
        return self.idempotency_key is None and self.client_try is not None and self.client_try.is_repeated

    @property
    def may_have_twin(self) -> bool:
        """True if another request may create the same job, now or earlier."""
        return self.idempotency_key is not None or self.client_try is not None


@dataclass(frozen=True)
class Created:
    """The job of a submission."""

    job: Job
    place: Place
    is_new: bool
    """False if an earlier request created it."""


@dataclass(frozen=True)
class DryRun:
    """What a submission would create."""

    spec: JobSpec
    """Resolved: every default is explicit."""
    notices: list[NoticeView]
    estimate: Counts | None
    """None if only a worker can count the problems."""
    forecast: Forecast
    would_wait_for: WouldWaitFor | None


class JobService:
    """The use cases of jobs."""

    def __init__(self, settings: Settings, database: Database, models: ModelCatalog, doorbell: Doorbell) -> None:
        self._database = database
        self._models = models
        self._offers = LiveOffers(database)
        self._doorbell = doorbell
        self._admissions = Admissions(settings, models)
        self._max_open = settings.max_queued_jobs
        self._device_kind = settings.device_kind
        self._devices_per_node = settings.devices_per_node
        self.in_flight = RequestsInFlight()
        # A separate pool: submissions that wait for the database leave the framework's threads to other requests.
        num_threads = NUM_SQLITE_THREADS if database.is_sqlite else NUM_POSTGRES_THREADS
        self.threads = RequestThreads(num_threads, thread_name_prefix="jobs")

    def submit(self, submission: Submission) -> Created:
        """Create the job and notify the workers; the same request again returns the job that it created.

        Raises `InvalidRequestError`, also if the idempotency key came with another body, `QuotaError`, and
        `InFlightError`.
        """
        with (
            span("submit job") as made,
            self.in_flight.holding(submission.owner, submission.idempotency_key),
        ):
            job, position, is_new = self._find_or_create(submission)
            made.set_attribute("trd.job_id", job.id)
        if is_new:
            self._doorbell.ring(job.id, job.queue)
        return Created(job, self._offers.place(job, position), is_new)

    def _find_or_create(self, submission: Submission) -> tuple[Job, int | None, bool]:
        if submission.idempotency_key is not None or submission.is_client_retry:
            # Before admission: the answer stays the same if, for example, a model is gone by now.
            with self._database.read() as session:
                earlier = _created_earlier(session, submission)
                if earlier is not None:
                    return _replay(session, earlier)
        fitted = self._admissions.fit(submission.spec)
        values = _new_job(submission, fitted.spec, needs_of(fitted.spec, self._models))
        job = Job(**values)
        with self._database.write_by_connection() as connection:
            if submission.may_have_twin:
                with Session(connection, expire_on_commit=False) as session:
                    key = submission.idempotency_key or submission.body_sha256
                    lock_identical_requests(session, f"{submission.owner} {key}")
                    earlier = _created_earlier(session, submission)
                    if earlier is not None:
                        return _replay(session, earlier)
            state = repository.admission_state(
                connection, job, fitted.uploads, most_open=self._max_open, most=MAX_QUEUE_POSITION
            )
            check_data(connection, fitted.spec, state.sizes)
            if state.num_open >= self._max_open:
                raise _too_many_open(self._max_open)
            self._admissions.stored_specs.require_room(connection, submission.owner, values["spec_bytes"])
            notices = accepted_notices(fitted, state.sizes)
            job.notices = values["notices"] = [n.model_dump(mode="json") for n in notices] or None
            values["num_events"] = 1 + len(notices)
            queued = NewEvent("status", "The job is queued.", {"status": JobStatus.QUEUED})
            details = {"code", "remedy", "count", "example"}
            found = [NewEvent("notice", n.message, n.model_dump(include=details), "warn") for n in notices]
            done = audit_entry(AuditAction.JOB_CREATE, job.id)
            repository.add(connection, values, fitted.spec.tags, [queued, *found], done)
        return job, state.position, True

    def dry_run(self, owner: str, spec: JobSpec) -> DryRun:
        """Check, resolve and estimate a job without creating it."""
        fitted = self._admissions.fit(spec)
        with self._database.read() as session:
            sizes = datasets.sizes(session, owner, fitted.uploads)
            num_problems, num_evaluated = check_data(session.connection(), fitted.spec, sizes)
        notices = accepted_notices(fitted, sizes)
        counts = counts_of(fitted.spec, num_problems, num_evaluated)
        with self._database.read() as session:
            kind = self._device_kind or device_kind_of(session, fitted.spec)
            expected = forecast(session, owner, fitted.spec, counts, self._models, kind)
        needs = needs_of(fitted.spec, self._models)
        expected.notes.extend(nodes_note(needs, self._devices_per_node))
        wait = self._offers.would_wait_for(str(fitted.spec.queue), needs)
        return DryRun(fitted.spec, notices, counts, expected, wait)

    def clone(self, owner: str, job_id: str, overrides: dict[str, Any], idempotency_key: str | None) -> Created:
        """Submit the spec that the user wrote for another job, with `overrides` merged in."""
        original = self.find(owner, job_id)
        requested = overridden(original.requested or original.spec, overrides)
        sha256 = document_sha256({"cloned_from": job_id, "spec": requested})
        spec = validated(JobSpec, requested)
        return self.submit(Submission(owner, spec, requested, sha256, idempotency_key, cloned_from=job_id))

    def find(self, owner: str, job_id: str) -> Job:
        """Return the job; raise `NotFoundError`."""
        with self._database.read() as session:
            return get_job(session, owner, job_id)

    def show(self, owner: str, job_id: str) -> tuple[Job, Place, ExpectedTimes]:
        """Return the job, its place in the queue, and when it will probably run."""
        with self._database.read() as session:
            placed = repository.find_placed(session, owner, job_id, MAX_QUEUE_POSITION)
        if placed is None:
            raise _no_such_job(job_id)
        job, place = placed[0], self._offers.place(*placed)
        return job, place, expected_times(self._database, job, place)

    def page(
        self, owner: str, wanted: JobQuery, metadata: Mapping[str, str] = MappingProxyType({})
    ) -> tuple[list[tuple[Job, Place]], bool]:
        """Return one page of jobs with their places in the queues, newest first, and whether more follow.

        `metadata`: pairs that the jobs' metadata hold, with keys without quotes and backslashes.
        """
        with self._database.read() as session:
            jobs, has_more = repository.page(session, owner, wanted, metadata)
            positions = queue_positions(session, jobs)
        return [(job, self._offers.place(job, positions.get(job.id))) for job in jobs], has_more

    def apply_action(self, owner: str, job_id: str, action: Action) -> tuple[Job, Place]:
        """Pause, resume or cancel a job; return it with its place in the queue. Repeating an action changes nothing.

        Raises `ConflictError` if the job's status does not allow the action, and `QuotaError` if a job that is over
        would be one too many that waits.
        """
        with self._database.write() as session:
            job = get_job(session, owner, job_id, for_update=True)
            self._apply(session, job, action)
            position = queue_positions(session, [job]).get(job.id)
        if job.status == JobStatus.QUEUED:
            self._doorbell.ring(job.id, job.queue)
        return job, self._offers.place(job, position)

    def _apply(self, session: Session, job: Job, action: Action) -> None:
        current = JobStatus(job.status)
        result = ACTION_RESULTS[action].get(current)
        if result is None:
            raise illegal_action(job, action)
        if result is current:
            return
        assert_transition(current, result)
        if current.is_final and repository.num_open(session, job.owner, self._max_open) >= self._max_open:
            raise _too_many_open(self._max_open)
        if result is JobStatus.QUEUED:
            uploads = [
                data for data in (job.spec["dataset"], job.spec["evaluation"]["dataset"]) if isinstance(data, str)
            ]
            kept = datasets.sizes(session, job.owner, uploads, keep=True)
            for dataset in uploads:
                if dataset not in kept:
                    raise ConflictError(
                        f"{job.id} cannot continue: its dataset {dataset} was deleted; upload it again and clone the "
                        "job",
                        code="dataset_deleted",
                    )
            job.finished_at = None
            job.error_code = job.error_message = job.error_retryable = job.error_hint = None
            job.num_lost = 0
            job.phase = job.phase_done = job.phase_total = job.eta_seconds = None
        job.status = result
        if result is JobStatus.CANCELLED:
            job.finished_at = datetime.now(UTC)
            job.phase = job.eta_seconds = None
        append_events(session, job.id, NewEvent("status", _MESSAGES[result], {"status": result}))
        record(session, AuditAction(f"job.{action}"), job.id)

    def delete(self, owner: str, job_id: str) -> str:
        """Delete a job that is over; return the storage prefix whose files the caller has to remove."""
        with self._database.write() as session:
            job = get_job(session, owner, job_id, for_update=True)
            if JobStatus(job.status) not in legal_statuses(Action.DELETE):
                raise illegal_action(job, Action.DELETE)
            job.deleted_at = datetime.now(UTC)
            job.idempotency_key = None
            repository.remove_records(session, job)
            record(session, AuditAction.JOB_DELETE, job_id)
        return job_prefix(job_id)


def _created_earlier(session: Session, submission: Submission) -> Job | None:
    """Return the job of an earlier request, or of the client's retry if that overtook this request."""
    owner, sha256, key = submission.owner, submission.body_sha256, submission.idempotency_key
    if key is not None:
        job = repository.by_idempotency_key(session, owner, key)
        if job is not None and job.body_sha256 != sha256:
            raise InvalidRequestError(
                f"Idempotency-Key = {key}: an earlier request with this key had another body and created {job.id}; "
                "send a new key with a new job",
                code="idempotency_key_reused",
                param="Idempotency-Key",
            )
        return job
    if submission.client_try is None:
        return None
    if submission.client_try.is_repeated:
        return repository.newest_with_body(session, owner, sha256, datetime.now(UTC) - RETRY_WINDOW)
    received_at = submission.client_try.received_at
    return repository.newest_with_body(session, owner, sha256, received_at, is_made_by_retry=True)


def _replay(session: Session, job: Job) -> tuple[Job, int | None, bool]:
    return job, queue_positions(session, [job]).get(job.id), False


def _too_many_open(max_open: int) -> QuotaError:
    return QuotaError(f"{max_open} of your jobs already wait or run; wait for one to end, or cancel one")


def _new_job(submission: Submission, spec: JobSpec, needs: Needs) -> dict[str, Any]:
    """Return the values of the new row without its notices, which the data decide; the other columns are NULL."""
    now, resolved = datetime.now(UTC), spec.model_dump(mode="json")
    return {
        "id": new_id(JOB_PREFIX, now_seconds=now.timestamp()),
        "owner": submission.owner,
        "name": spec.name,
        "mode": spec.mode,
        "spec": resolved,
        "requested": submission.requested,
        "spec_bytes": len(json.dumps(resolved)) + len(json.dumps(submission.requested)),
        "idempotency_key": submission.idempotency_key,
        "body_sha256": submission.body_sha256,
        "cloned_from": submission.cloned_from,
        "made_by_retry": submission.is_client_retry or None,
        "origin": origin(),
        "created_at": now,
        "status": JobStatus.QUEUED,
        "queue": spec.queue,
        "priority": spec.priority,
        "needs": needs.model_dump_json(exclude_none=True),
        "attempt": 0,
        "num_lost": 0,
        "lease_token": 0,
        "step": 0,
        "latest_metrics": {},
    }


def get_job(session: Session, owner: str, job_id: str, *, for_update: bool = False) -> Job:
    """Return the owner's job; raise `NotFoundError`, also for another owner's job."""
    job = repository.find(session, owner, job_id, for_update=for_update)
    if job is None:
        raise _no_such_job(job_id)
    return job


def _no_such_job(job_id: str) -> NotFoundError:
    return NotFoundError(f"there is no job {job_id}", code="job_not_found", param="job_id")


def queue_positions(session: Session, jobs: Iterable[Job]) -> dict[str, int | None]:
    """Return the queue positions of those jobs that wait, by id."""
    waiting = [job.id for job in jobs if job.status == JobStatus.QUEUED]
    return repository.positions(session, waiting, MAX_QUEUE_POSITION) if waiting else {}


_MESSAGES = {
    JobStatus.QUEUED: "The job is queued again and continues from its last checkpoint, if it has one.",
    JobStatus.PAUSED: "The job is paused.",
    JobStatus.PAUSING: "A pause was requested; the run stops at the next step boundary.",
    JobStatus.CANCELLED: "The job is cancelled.",
    JobStatus.CANCELLING: "A cancellation was requested; the run stops at the next step boundary.",
}


def illegal_action(job: Job, action: Action) -> ConflictError:
    """Return the error for an action that the job's status does not allow."""
    status = JobStatus(job.status)
    legal = ", ".join(legal_statuses(action))
    possible = ", ".join(legal_actions(status)) or "nothing"
    return ConflictError(
        f"{job.id} is {status}: {action} is possible when a job is {legal}; for this one, {possible}",
        code="illegal_transition",
        param="status",
    )
