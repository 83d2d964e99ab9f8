"""``/jobs/{id}/metrics``."""

from __future__ import annotations

from typing import Annotated

from fastapi import APIRouter, Query

from contract.views.metrics import MetricSeries
from contract.views.page import Page
from service.auth import Reader
from service.context import Context
from service.errors import NotFoundError, raises
from service.jobs.service import get_job
from service.metrics import repository
from service.metrics.repository import MetricRange
from service.metrics.schemas import metric_series
from service.query_types import DECIMAL

router = APIRouter(prefix="/jobs/{job_id}/metrics", tags=["jobs"])

Step = Annotated[int | None, Query(ge=0, lt=2**31), DECIMAL]


@router.get("", summary="A job's metrics over its steps")
@raises(NotFoundError)
def list_metrics(
    context: Context,
    caller: Reader,
    job_id: str,
    *,
    names: Annotated[str, Query(max_length=5000, description="Comma-separated; none takes all.")] = "",
    from_step: Step = None,
    to_step: Step = None,
    resolution: Annotated[
        int, Query(ge=2, le=10_000, description="About the most points of a metric."), DECIMAL
    ] = 1000,
) -> Page[MetricSeries]:
    """Each metric's points in the range. Where there are more than ``resolution``, the lowest and the highest
    of each stretch of steps are kept, so that peaks stay."""
    wanted = MetricRange(job_id, [name for name in names.split(",") if name], from_step, to_step)
    with context.database.read() as session:
        get_job(session, caller.owner, job_id)
        extents = repository.extents(session, wanted)
        num_points = {row.name: row.num_points for row in extents}
        if max(num_points.values(), default=0) <= resolution:
            rows = repository.points(session, wanted)
        else:
            first = min(row.first_step for row in extents)
            num_steps = max(row.last_step for row in extents) - first + 1
            rows = repository.thinned_points(session, wanted, first, -(-num_steps // (resolution // 2)))
    return Page(data=metric_series(rows, num_points), has_more=False)
