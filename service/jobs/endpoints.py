"""``/jobs``."""

from __future__ import annotations

import asyncio
import re
from datetime import UTC, datetime
from typing import Annotated, Any

from fastapi import APIRouter, BackgroundTasks, Depends, Header, Query, Request, Response
from pydantic import AfterValidator, AwareDatetime, BaseModel, BeforeValidator, ConfigDict

from contract.job_spec import JobSpec, Mode
from contract.job_state import Action, JobStatus
from contract.tables import Job
from contract.views.jobs import DeletedView, DryRunView, JobView
from contract.views.page import Page
from service.answers import json_answer
from service.auth import Reader, Submitter
from service.bodies import Body, document_sha256, json_body, openapi_body, validated
from service.client_tries import ClientRetryCount, client_try
from service.context import Context, ServiceContext
from service.jobs import repository
from service.jobs.admission import Admissions
from service.jobs.schemas import dry_run_view, job_view
from service.jobs.service import (
    Created,
    Creation,
    Creator,
    act,
    delete,
    get_job,
    get_placed_job,
    overridden,
    queue_position,
    queue_positions,
)
from service.jobs.waiting import expected_times
from service.pages import Limit, cut

router = APIRouter(prefix="/jobs", tags=["jobs"])

REPLAYED = "idempotent-replayed"
"""Header that tells a job that an earlier request made."""

IdempotencyKey = Annotated[
    str | None,
    Header(
        min_length=1,
        max_length=255,
        description="The same request with the same key makes one job, however often it is sent.",
    ),
]


def _no_number(value: object) -> object:
    """The framework would take a number for seconds since the epoch, which the document does not say."""
    if isinstance(value, str) and re.fullmatch(r"[-+]?[\d.]+", value.strip()):
        raise ValueError("must be a time, for example 2026-01-31T12:00:00Z")
    return value


_EARLIEST, _LATEST = datetime(1970, 1, 1, tzinfo=UTC), datetime(9000, 1, 1, tzinfo=UTC)


def _within_reach(value: datetime | None) -> datetime | None:
    """Nothing was made before or after, and at the calendar's ends another time zone or a millisecond more fails."""
    if value is None or _EARLIEST.year < value.year < _LATEST.year:
        return value
    return _EARLIEST if value.year <= _EARLIEST.year else _LATEST


Moment = Annotated[AwareDatetime | None, BeforeValidator(_no_number), AfterValidator(_within_reach)]


class Overrides(BaseModel):
    """Fields of a job spec, to be merged into the original's."""

    model_config = ConfigDict(extra="allow")


@router.post(
    "",
    status_code=201,
    response_model=JobView | DryRunView,
    openapi_extra=openapi_body(JobSpec),
    responses={200: {"model": JobView | DryRunView, "description": "With dry_run, or made by an earlier request."}},
    summary="Submit a job",
)
async def create_job(
    context: Context,
    caller: Submitter,
    request: Request,
    *,
    body: Annotated[Body[JobSpec], Depends(json_body(JobSpec))],
    dry_run: Annotated[bool, Query(description="Check, resolve and estimate; make nothing.")] = False,
    idempotency_key: IdempotencyKey = None,
    retry_count: ClientRetryCount = None,
) -> Response:
    """Checked against models, data and limits, recorded, and queued."""

    def answer() -> Response:
        if dry_run:
            return json_answer(dry_run_view(_admissions(context).admit(caller.owner, body.value)))
        creation = Creation(caller.owner, body.sha256, idempotency_key, client_try(request, retry_count))
        return _create(context, creation, body.value, body.document)

    return await asyncio.get_running_loop().run_in_executor(context.job_threads, answer)


@router.post(
    "/{job_id}/clone",
    status_code=201,
    response_model=JobView,
    openapi_extra=openapi_body(Overrides, is_optional=True),
    responses={200: {"model": JobView, "description": "Where an earlier request with the key made the job."}},
    summary="Submit a job like another",
)
def clone_job(
    context: Context,
    caller: Submitter,
    *,
    job_id: str,
    body: Annotated[Body[Overrides], Depends(json_body(Overrides, is_optional=True))],
    idempotency_key: IdempotencyKey = None,
) -> Response:
    """The spec as the original's user wrote it, with the body's fields merged in; checked anew."""
    with context.database.read() as session:
        original = get_job(session, caller.owner, job_id)
    requested = overridden(original.requested or original.spec, body.document)
    spec = validated(JobSpec, requested)
    sha256 = document_sha256({"cloned_from": job_id, "spec": requested})
    creation = Creation(caller.owner, sha256, idempotency_key, cloned_from=job_id)
    return _create(context, creation, spec, requested)


def submit(context: ServiceContext, creation: Creation, spec: JobSpec, requested: dict[str, Any]) -> Created:
    """Make the job, or find the one that an earlier request made, and tell the workers of a new one."""
    creator = Creator(context.database, _admissions(context), context.settings.max_queued_jobs)
    with context.in_flight.holding(creation.owner, creation.idempotency_key):
        created = creator.create(creation, spec, requested)
    if created.is_new:
        context.doorbell.ring(created.job.id, created.job.queue)
    return created


def _create(context: ServiceContext, creation: Creation, spec: JobSpec, requested: dict[str, Any]) -> Response:
    created = submit(context, creation, spec, requested)
    view = job_view(created.job, created.queue_position)
    if created.is_new:
        return json_answer(view, status=201)
    return json_answer(view, headers={REPLAYED: "true"})


def _admissions(context: ServiceContext) -> Admissions:
    return Admissions(context.settings, context.database, context.storage, context.models)


@router.get("", response_model=Page[JobView], summary="List jobs, newest first")
def list_jobs(
    context: Context,
    caller: Reader,
    *,
    status: Annotated[list[JobStatus], Query(description="Any of these.")] = [],  # noqa: B006 - FastAPI copies it
    mode: Mode | None = None,
    tag: Annotated[str | None, Query(min_length=1, max_length=64)] = None,
    created_after: Moment = None,
    created_before: Moment = None,
    after: Annotated[str | None, Query(max_length=40, description="Id of the last job seen.")] = None,
    limit: Limit = 20,
) -> Response:
    """Filters combine. ``created_after`` includes its moment, ``created_before`` does not."""
    wanted = repository.JobFilter(status, mode, tag, created_after, created_before)
    with context.database.read() as session:
        rows, has_more = cut(repository.page(session, caller.owner, wanted, after, limit), limit)
        positions = queue_positions(session, rows)
    return json_answer(Page(data=[job_view(job, positions.get(job.id)) for job in rows], has_more=has_more))


@router.get("/{job_id}", response_model=JobView, summary="One job")
def show_job(context: Context, caller: Reader, job_id: str) -> Response:
    """Where it stands, and its resolved spec."""
    with context.database.read() as session:
        job, position = get_placed_job(session, caller.owner, job_id)
        expected = expected_times(session, job, position)
    return json_answer(job_view(job, position, expected))


@router.post("/{job_id}/cancel", summary="Cancel a job")
def cancel_job(context: Context, caller: Submitter, job_id: str) -> JobView:
    """A running job stops at its next step boundary. Repeating is harmless."""
    return _act(context, caller.owner, job_id, Action.CANCEL)


@router.post("/{job_id}/pause", summary="Pause a job")
def pause_job(context: Context, caller: Submitter, job_id: str) -> JobView:
    """A running job writes a checkpoint and gives its device back. Repeating is harmless."""
    return _act(context, caller.owner, job_id, Action.PAUSE)


@router.post("/{job_id}/resume", summary="Resume a job")
def resume_job(context: Context, caller: Submitter, job_id: str) -> JobView:
    """A paused, failed or cancelled job waits again, and goes on from its last checkpoint."""
    return _act(context, caller.owner, job_id, Action.RESUME)


def _act(context: ServiceContext, owner: str, job_id: str, action: Action) -> JobView:
    return job_view(*lead(context, owner, job_id, action))


def lead(context: ServiceContext, owner: str, job_id: str, action: Action) -> tuple[Job, int | None]:
    """Do what the user asks of a job, and tell the workers where it waits again; (job, queue position)."""
    with context.database.write() as session:
        job = act(session, owner, job_id, action, max_open=context.settings.max_queued_jobs)
        position = queue_position(session, job)
    if job.status == JobStatus.QUEUED:
        context.doorbell.ring(job.id, job.queue)
    return job, position


@router.delete("/{job_id}", summary="Delete a job that is over")
def delete_job(context: Context, caller: Submitter, background: BackgroundTasks, job_id: str) -> DeletedView:
    """Its events, metrics, trajectories and checkpoints go with it."""
    with context.database.write() as session:
        prefix = delete(session, caller.owner, job_id)
    background.add_task(context.storage.give_up, prefix)
    return DeletedView(id=job_id)
