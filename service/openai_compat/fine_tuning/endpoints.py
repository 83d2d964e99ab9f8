"""``/v1/fine_tuning/jobs``."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Annotated

from fastapi import APIRouter, Query, Request, Response

from contract.job_spec import JobSpec
from contract.job_state import Action
from contract.tables import Job
from contract.views import Page
from service.auth import Reader, Submitter
from service.bodies import Document, document_sha256, validated
from service.context import Context, ServiceContext
from service.errors import (
    ERROR_RESPONSES,
    ConflictError,
    InFlightError,
    InvalidRequestError,
    NotFoundError,
    QuotaError,
    raises,
)
from service.jobs.fleet import Place
from service.jobs.service import JobQuery, Submission
from service.openai_compat.fine_tuning.request import FineTuningRequest
from service.openai_compat.fine_tuning.schemas import (
    LOSSES,
    FineTuningCheckpoint,
    FineTuningEvent,
    FineTuningJob,
    event_id,
    fine_tuning_checkpoint,
    fine_tuning_event,
    fine_tuning_job,
)
from service.openai_compat.fine_tuning.translation import native_spec
from service.openai_compat.routes import OpenAIRoute
from service.query import Limit
from service.retries import REPLAYED, IdempotencyKey, MaybeClientTry

router = APIRouter(prefix="/v1/fine_tuning/jobs", tags=["openai"], route_class=OpenAIRoute, responses=ERROR_RESPONSES)

After = Annotated[str | None, Query(max_length=60, description="Id of the last object seen.")]
MAX_FILTERS = 32
"""Keys of metadata to filter by: each is a condition of the query."""


@router.post("", summary="Submit a job")
@raises(InFlightError, QuotaError)
def create_fine_tuning_job(
    context: Context,
    caller: Submitter,
    response: Response,
    *,
    body: FineTuningRequest,
    document: Document,
    idempotency_key: IdempotencyKey = None,
    client_try: MaybeClientTry = None,
) -> FineTuningJob:
    """``method`` is ``{"type": "trd", "trd": {…}}``, or ``opd``, or ``opsd``; its object takes the fields of
    ``POST /jobs``. The same request again gives the job that it made."""
    native = native_spec(body)
    try:
        spec = validated(JobSpec, native.document)
        created = context.jobs.submit(
            Submission(caller.owner, spec, native.document, document_sha256(document), idempotency_key, client_try)
        )
    except InvalidRequestError as error:
        raise native.with_client_names(error) from error
    if not created.is_new:
        response.headers[REPLAYED] = "true"
    return _job_object(context, created.job, created.place)


@router.get("", summary="List jobs, newest first")
def list_fine_tuning_jobs(
    context: Context, caller: Reader, request: Request, after: After = None, limit: Limit = 20
) -> Page[FineTuningJob]:
    """The list has all of the caller's jobs, made here or by ``POST /jobs``. Filters ``metadata[key]=value``
    combine."""
    placed, has_more = context.jobs.page(caller.owner, JobQuery(after=after, limit=limit), _metadata_filter(request))
    return Page(data=_job_objects(context, placed), has_more=has_more)


def _metadata_filter(request: Request) -> dict[str, str]:
    wanted = {}
    for name, value in request.query_params.multi_items():
        if not name.startswith("metadata"):
            continue
        match = re.fullmatch(r'metadata\[([^"\\\]]{1,200})\]', name)
        if match is None:
            raise InvalidRequestError(
                f"{name[:80]}: filter by metadata[key]=value; a key holds no quotes, backslashes and brackets",
                param="metadata",
            )
        wanted[match[1]] = value
    if len(wanted) > MAX_FILTERS:
        raise InvalidRequestError(f"metadata: filter by up to {MAX_FILTERS} keys; a job has no more", param="metadata")
    return wanted


def _job_objects(context: ServiceContext, placed: Sequence[tuple[Job, Place]]) -> list[FineTuningJob]:
    num_tokens = context.runs.num_trained_tokens(job for job, _ in placed)
    return [fine_tuning_job(job, place, num_tokens.get(job.id, 0)) for job, place in placed]


def _job_object(context: ServiceContext, job: Job, place: Place) -> FineTuningJob:
    (view,) = _job_objects(context, [(job, place)])
    return view


@router.get("/{job_id}", summary="One job")
@raises(NotFoundError)
def show_fine_tuning_job(context: Context, caller: Reader, job_id: str) -> FineTuningJob:
    """Return the job's state."""
    job, place, _ = context.jobs.show(caller.owner, job_id)
    return _job_object(context, job, place)


@router.post("/{job_id}/cancel", summary="Cancel a job")
@raises(NotFoundError, ConflictError)
def cancel_fine_tuning_job(context: Context, caller: Submitter, job_id: str) -> FineTuningJob:
    """A running job stops at its next step boundary. Repeating is harmless."""
    return _job_object(context, *context.jobs.apply_action(caller.owner, job_id, Action.CANCEL))


@router.post("/{job_id}/pause", summary="Pause a job")
@raises(NotFoundError, ConflictError)
def pause_fine_tuning_job(context: Context, caller: Submitter, job_id: str) -> FineTuningJob:
    """A running job writes a checkpoint and gives its device back. Repeating is harmless."""
    return _job_object(context, *context.jobs.apply_action(caller.owner, job_id, Action.PAUSE))


@router.post("/{job_id}/resume", summary="Resume a job")
@raises(NotFoundError, ConflictError, QuotaError)
def resume_fine_tuning_job(context: Context, caller: Submitter, job_id: str) -> FineTuningJob:
    """A paused, failed or cancelled job waits again, and continues from its last checkpoint."""
    return _job_object(context, *context.jobs.apply_action(caller.owner, job_id, Action.RESUME))


@router.get("/{job_id}/events", summary="What happened to a job, newest first")
@raises(NotFoundError)
def list_fine_tuning_events(
    context: Context, caller: Reader, job_id: str, after: After = None, limit: Limit = 20
) -> Page[FineTuningEvent]:
    """The events ``after`` one are older than it."""
    before = _event_number(job_id, after) if after is not None else None
    rows, has_more = context.feed.page_before(caller.owner, job_id, before, limit)
    return Page(data=[fine_tuning_event(row) for row in rows], has_more=has_more)


def _event_number(job_id: str, after: str) -> int:
    number = after.rpartition(":")[2]
    if not re.fullmatch(r"[0-9]{1,9}", number) or after != event_id(job_id, int(number)):
        raise InvalidRequestError(f"after = {after}: must be the id of an event of {job_id[:60]}", param="after")
    return int(number)


@router.get("/{job_id}/checkpoints", summary="A job's checkpoints, newest first")
@raises(NotFoundError)
def list_fine_tuning_checkpoints(
    context: Context, caller: Reader, job_id: str, after: After = None, limit: Limit = 10
) -> Page[FineTuningCheckpoint]:
    """Only complete checkpoints are listed: each was verified against its manifest."""
    job, rows, has_more = context.checkpoints.page_before(caller.owner, job_id, after, limit)
    losses = context.runs.metrics_at(caller.owner, job_id, LOSSES, [row.step for row in rows])
    views = [fine_tuning_checkpoint(job, row, losses[row.step]) for row in rows]
    return Page(data=views, has_more=has_more)
