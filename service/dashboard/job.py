"""The pages of one job: overview, diagnosis, checkpoints with chats, events and spec, and what changed since a script
asked."""

from __future__ import annotations

import hashlib
from typing import Annotated, Any

from fastapi import APIRouter, Query, Request, Response
from pydantic import BaseModel

from contract.job_state import JobStatus, legal_actions
from contract.views.chats import ChatModel
from contract.views.diagnosis import DiagnosisView
from contract.views.events import EventView
from contract.views.jobs import JobView
from contract.views.runs import EvaluationView
from service.auth import Caller, Reader
from service.checkpoints.service import manifest_view
from service.context import Context, ServiceContext
from service.dashboard.pages import fragment, page
from service.dashboard.specs import spec_rows
from service.dashboard.timeline import timeline
from service.jobs.schemas import job_view

router = APIRouter(prefix="/ui/jobs/{job_id}", include_in_schema=False)

MAX_PHASES = 20_000
"""Most phases in the timeline."""
NUM_NEWEST = 12
"""Events on the overview."""
NUM_EVENTS = 200

Number = Annotated[int, Query(ge=0, lt=2**31)]


def find_job(context: ServiceContext, caller: Caller, job_id: str) -> JobView:
    """Return the view of a job; raise `NotFoundError`."""
    return job_view(*context.jobs.show(caller.owner, job_id))


def job_values(job: JobView, tab: str) -> dict[str, Any]:
    """Return what `job_base.html` needs."""
    return {"job": job, "tab": tab, "actions": [str(action) for action in legal_actions(JobStatus(job.status))]}


@router.get("")
def overview(request: Request, context: Context, caller: Reader, job_id: str) -> Response:
    """Show the state of the job."""
    job = find_job(context, caller, job_id)
    newest = max(0, _num_events(context, caller, job_id) - NUM_NEWEST)
    html, version = _summary(context, caller, job)
    return page(
        request,
        "job.html",
        **job_values(job, "overview"),
        summary=html,
        version=version,
        events=_events(context, caller, job_id, newest, NUM_NEWEST)[::-1],
        first_event=newest,
    )


class JobChanges(BaseModel):
    """What a script needs to bring the overview up to date."""

    summary: str | None
    """HTML of the part above the plots; null if it is as the script has it."""
    version: str
    events: list[str]
    """HTML of the newer events, in order."""
    num_events: int
    step: int
    round: int | None
    is_over: bool


@router.get("/changes")
def changes(
    context: Context, caller: Reader, job_id: str, version: Annotated[str, Query(max_length=64)] = "", after: Number = 0
) -> JobChanges:
    """Return what is new since a version of the summary and a number of events."""
    job = find_job(context, caller, job_id)
    html, current = _summary(context, caller, job)
    events = _events(context, caller, job_id, after, NUM_EVENTS)
    return JobChanges(
        summary=html if version != current else None,
        version=current,
        events=[fragment("job_parts.html", "event", event) for event in events],
        num_events=events[-1].sequence if events else after,
        step=job.step,
        round=job.round,
        is_over=job.is_over,
    )


class Curve(BaseModel):
    """A curve over the steps."""

    steps: list[int]
    values: list[float]


@router.get("/sampler-gaps")
def sampler_gaps(context: Context, caller: Reader, job_id: str) -> Curve:
    """Return the gap between sampler and trainer at each round: one number of its diagnosis."""
    rows = context.runs.diagnosed_rounds(caller.owner, job_id)
    known = [(row.step, row.sampler_gap) for row in rows if row.sampler_gap is not None]
    return Curve(steps=[step for step, _ in known], values=[gap for _, gap in known])


@router.get("/diagnosis")
def diagnosis(request: Request, context: Context, caller: Reader, job_id: str, round: Number | None = None) -> Response:
    """Show what the rounds tell about prefix failure."""
    job = find_job(context, caller, job_id)
    rounds = [row.round for row in context.runs.diagnosed_rounds(caller.owner, job_id)]
    wanted = round if round in rounds else rounds[-1] if rounds else None
    shown = None
    if wanted is not None:
        rows, _ = context.runs.diagnoses(caller.owner, job_id, wanted - 1, 1)
        shown = DiagnosisView.of(rows[0])
    values = job_values(job, "diagnosis")
    lengths = context.runs.lengths(caller.owner, job_id)
    return page(request, "diagnosis.html", **values, rounds=rounds, shown=shown, lengths=lengths)


@router.get("/checkpoints")
def checkpoints(request: Request, context: Context, caller: Reader, job_id: str) -> Response:
    """Show the results, and how to use them."""
    job = find_job(context, caller, job_id)
    rows = context.checkpoints.all_of(caller.owner, job_id)
    found = [manifest_view(*context.checkpoints.with_files(caller.owner, job_id, str(row.step))) for row in rows]
    url = f"{request.url.scheme}://{request.url.netloc}"
    return page(request, "checkpoints.html", **job_values(job, "checkpoints"), checkpoints=found[::-1], url=url)


@router.get("/checkpoints/{step}/try")
def try_checkpoint(request: Request, context: Context, caller: Reader, job_id: str, step: str) -> Response:
    """Show a form for one question and each model's answer, which a script streams from the API."""
    job = find_job(context, caller, job_id)
    checkpoint, _ = context.checkpoints.with_files(caller.owner, job_id, step)
    teacher = job.spec.get("teacher")
    models = {ChatModel.CHECKPOINT: f"step {checkpoint.step}", ChatModel.BASE: job.spec["student"]}
    if teacher is not None:
        models[ChatModel.TEACHER] = teacher["endpoint"] if isinstance(teacher, dict) else teacher
    return page(request, "try.html", **job_values(job, "checkpoints"), step=checkpoint.step, models=models)


@router.get("/events")
def events(request: Request, context: Context, caller: Reader, job_id: str, after: Number = 0) -> Response:
    """Show all events, by pages."""
    job = find_job(context, caller, job_id)
    shown = _events(context, caller, job_id, after, NUM_EVENTS)
    num_events = _num_events(context, caller, job_id)
    values = job_values(job, "events")
    return page(request, "events.html", **values, events=shown, after=after, num_events=num_events, size=NUM_EVENTS)


@router.get("/spec")
def spec(request: Request, context: Context, caller: Reader, job_id: str) -> Response:
    """Show the spec, field by field."""
    job = find_job(context, caller, job_id)
    return page(request, "spec.html", **job_values(job, "spec"), rows=spec_rows(job.spec))


def _num_events(context: ServiceContext, caller: Caller, job_id: str) -> int:
    return context.jobs.find(caller.owner, job_id).num_events


def _events(context: ServiceContext, caller: Caller, job_id: str, after: int, limit: int) -> list[EventView]:
    rows, _ = context.feed.page(caller.owner, job_id, after, limit)
    return [EventView.of(row) for row in rows]


def _summary(context: ServiceContext, caller: Caller, job: JobView) -> tuple[str, str]:
    """Return progress, notices, timeline and scores as HTML, and their version."""
    attempts = context.runs.attempts(caller.owner, job.id)
    phases = context.feed.phases(caller.owner, job.id, MAX_PHASES)
    scores = [EvaluationView.of(row) for row in context.runs.evaluations(caller.owner, job.id)]
    html = fragment("job_parts.html", "summary", job, timeline(job, attempts, phases), scores)
    return html, hashlib.sha256(html.encode()).hexdigest()[:16]
