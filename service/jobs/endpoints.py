"""``/jobs``."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from typing import Annotated

from fastapi import APIRouter, BackgroundTasks, Query, Request, Response
from pydantic import BaseModel, ConfigDict

from contract.job_spec import JobSpec
from contract.job_state import Action
from contract.views import Page
from contract.views.jobs import DeletedView, DryRunView, JobView
from service.auth import Reader, Submitter
from service.bodies import JsonRoute, document_sha256
from service.context import Context
from service.errors import ERROR_RESPONSES, ConflictError, InFlightError, NotFoundError, QuotaError, raises
from service.jobs.schemas import dry_run_view, job_view
from service.jobs.service import Created, JobQuery, Submission
from service.retries import REPLAYED, IdempotencyKey, MaybeClientTry

router = APIRouter(prefix="/jobs", tags=["jobs"], route_class=JsonRoute, responses=ERROR_RESPONSES)


class Overrides(BaseModel):
    """Fields of a job spec, to be merged into the original's."""

    model_config = ConfigDict(extra="allow")


@router.post(
    "",
    status_code=201,
    response_model=JobView | DryRunView,
    responses={200: {"model": JobView | DryRunView, "description": "With dry_run, or made by an earlier request."}},
    summary="Submit a job",
)
@raises(InFlightError, QuotaError)
async def create_job(
    context: Context,
    caller: Submitter,
    *,
    request: Request,
    spec: JobSpec,
    dry_run: Annotated[bool, Query(description="Check, resolve and estimate; make nothing.")] = False,
    idempotency_key: IdempotencyKey = None,
    client_try: MaybeClientTry = None,
) -> Response:
    """The job is checked against models, data and limits, recorded, and queued."""

    document = await request.json()  # parsed already, and as the user wrote it

    def answer() -> Response:
        if dry_run:
            return _json(dry_run_view(context.jobs.dry_run(caller.owner, spec)))
        sha256 = document_sha256(document)
        return _created(
            context.jobs.submit(Submission(caller.owner, spec, document, sha256, idempotency_key, client_try))
        )

    return await asyncio.get_running_loop().run_in_executor(context.jobs.threads, answer)


@router.post(
    "/{job_id}/clone",
    status_code=201,
    response_model=JobView,
    responses={200: {"model": JobView, "description": "Where an earlier request with the key made the job."}},
    summary="Submit a job like another",
)
@raises(NotFoundError, InFlightError, QuotaError)
def clone_job(
    context: Context,
    caller: Submitter,
    *,
    job_id: str,
    overrides: Overrides = Overrides(),  # noqa: B008 - FastAPI copies it
    idempotency_key: IdempotencyKey = None,
) -> Response:
    """The new job has the spec that the original's user wrote, with the body's fields merged in, validated again."""
    return _created(context.jobs.clone(caller.owner, job_id, overrides.model_dump(), idempotency_key))


def _created(created: Created) -> Response:
    headers = {} if created.is_new else {REPLAYED: "true"}
    return _json(job_view(created.job, created.place), status=201 if created.is_new else 200, headers=headers)


@router.get("", response_model=Page[JobView], summary="List jobs, newest first")
def list_jobs(context: Context, caller: Reader, wanted: Annotated[JobQuery, Query()]) -> Response:
    """Filters combine. ``created_after`` includes its moment, ``created_before`` does not."""
    placed, has_more = context.jobs.page(caller.owner, wanted)
    return _json(Page(data=[job_view(job, place) for job, place in placed], has_more=has_more))


@router.get("/{job_id}", response_model=JobView, summary="One job")
@raises(NotFoundError)
def show_job(context: Context, caller: Reader, job_id: str) -> Response:
    """Return the job's state and its resolved spec."""
    return _json(job_view(*context.jobs.show(caller.owner, job_id)))


@router.post("/{job_id}/cancel", summary="Cancel a job")
@raises(NotFoundError, ConflictError)
def cancel_job(context: Context, caller: Submitter, job_id: str) -> JobView:
    """A running job stops at its next step boundary. Repeating is harmless."""
    return job_view(*context.jobs.apply_action(caller.owner, job_id, Action.CANCEL))


@router.post("/{job_id}/pause", summary="Pause a job")
@raises(NotFoundError, ConflictError)
def pause_job(context: Context, caller: Submitter, job_id: str) -> JobView:
    """A running job writes a checkpoint and gives its device back. Repeating is harmless."""
    return job_view(*context.jobs.apply_action(caller.owner, job_id, Action.PAUSE))


@router.post("/{job_id}/resume", summary="Resume a job")
@raises(NotFoundError, ConflictError, QuotaError)
def resume_job(context: Context, caller: Submitter, job_id: str) -> JobView:
    """A paused, failed or cancelled job waits again, and continues from its last checkpoint."""
    return job_view(*context.jobs.apply_action(caller.owner, job_id, Action.RESUME))


@router.delete("/{job_id}", summary="Delete a job that is over")
@raises(NotFoundError, ConflictError)
def delete_job(context: Context, caller: Submitter, background: BackgroundTasks, job_id: str) -> DeletedView:
    """Its events, metrics, trajectories and checkpoints go with it."""
    background.add_task(context.storage.give_up, context.jobs.delete(caller.owner, job_id))
    return DeletedView(id=job_id)


def _json(view: BaseModel, *, status: int = 200, headers: Mapping[str, str] | None = None) -> Response:
    """Return the view as JSON. FastAPI would validate it again, and take another thread for that; the route's
    ``response_model`` still describes it in the OpenAPI document."""
    return Response(view.model_dump_json(), status, headers, media_type="application/json")
