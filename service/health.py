"""``/healthz``: the process responds. ``/readyz``: so does what it needs. ``/metrics``: figures for Prometheus."""

from __future__ import annotations

from typing import Any

from fastapi import APIRouter, Response

from contract.views.health import Health, Readiness
from service.auth import Reader
from service.context import Context

router = APIRouter(tags=["operations"])


@router.get("/healthz", summary="Does the process answer?")
async def healthz() -> Health:
    """Needs no key, and checks nothing else."""
    return Health()


@router.get(
    "/readyz",
    responses={503: {"model": Readiness, "description": "A part that is needed does not work."}},
    summary="Can requests be served?",
)
def readyz(context: Context, response: Response) -> Readiness:
    """Needs no key. A broker that is down does not make the service unready: workers poll the database too."""
    parts = context.readiness.parts()
    is_ready = all(state == "ok" for state in parts.values())
    response.status_code = 200 if is_ready else 503
    return Readiness(
        status="ready" if is_ready else "unready",
        database=parts["database"],
        schema=parts["schema"],
        storage=parts["storage"],
        broker=context.readiness.broker(),
        workers=context.readiness.workers,
    )


_TEXT: dict[int | str, dict[str, Any]] = {200: {"content": {"text/plain": {"schema": {"type": "string"}}}}}


@router.get("/metrics", response_class=Response, responses=_TEXT, summary="Figures for Prometheus")
def prometheus(context: Context, caller: Reader) -> Response:
    """Jobs by status and how long the oldest waits, over all owners."""
    counts, waiting = context.fleet.totals()
    lines = [
        "# HELP trd_jobs Jobs by status.",
        "# TYPE trd_jobs gauge",
        *(f'trd_jobs{{status="{status}"}} {num_jobs}' for status, num_jobs in counts.items()),
        "# HELP trd_oldest_queued_seconds Age of the job that waits longest.",
        "# TYPE trd_oldest_queued_seconds gauge",
        f"trd_oldest_queued_seconds {waiting:.3f}",
        "# HELP trd_streams Open event streams of this process.",
        "# TYPE trd_streams gauge",
        f"trd_streams {context.feed.num_streams}",
    ]
    return Response("\n".join(lines) + "\n", media_type="text/plain; version=0.0.4")
