"""Up to six jobs side by side: their scores with the differences, the differences of their specs, and their curves."""

from __future__ import annotations

from typing import Annotated

from fastapi import APIRouter, Query, Request, Response

from contract.score_difference import score_difference
from contract.views.runs import EvaluationView
from service.auth import Reader
from service.context import Context
from service.dashboard.job import find_job
from service.dashboard.pages import page
from service.dashboard.specs import differences
from service.jobs.schemas import job_view
from service.jobs.service import JobQuery

router = APIRouter(include_in_schema=False)

MAX_COMPARED = 6
NUM_OFFERED = 30


@router.get("/ui/compare")
def compare(
    request: Request,
    context: Context,
    caller: Reader,
    job: Annotated[list[str], Query(max_length=20)] = [],  # noqa: B006 - FastAPI copies it
) -> Response:
    """Compare jobs with the first one named; offer some if none is named."""
    ids = list(dict.fromkeys(job))[:MAX_COMPARED]
    jobs = [find_job(context, caller, id) for id in ids]
    offered, _ = context.jobs.page(caller.owner, JobQuery(limit=NUM_OFFERED))
    # The newest score on each set of problems.
    scores = [{row.dataset: EvaluationView.of(row) for row in context.runs.evaluations(caller.owner, id)} for id in ids]
    rows = []
    for dataset in dict.fromkeys(dataset for one in scores for dataset in one):
        of_jobs = [one.get(dataset) for one in scores]
        base = of_jobs[0]
        changes = [score_difference(base, one) if base and one and i else None for i, one in enumerate(of_jobs)]
        rows.append((dataset, list(zip(of_jobs, changes, strict=True))))
    return page(
        request,
        "compare.html",
        jobs=jobs,
        scores=rows,
        differences=differences([one.spec for one in jobs]),
        offered=[job_view(row, place) for row, place in offered],
        most=MAX_COMPARED,
        is_cut=len(set(job)) > MAX_COMPARED,
    )
