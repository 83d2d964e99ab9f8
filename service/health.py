"""``/healthz``: the process responds. ``/readyz``: so does what it needs. ``/metrics``: figures for Prometheus."""

from __future__ import annotations

from typing import Any

from fastapi import APIRouter, Response
from prometheus_client.exposition import CONTENT_TYPE_PLAIN_0_0_4

from contract.views.health import Health, Readiness
from service.auth import Reader
from service.context import Context
from service.errors import ERROR_RESPONSES

router = APIRouter(tags=["operations"], responses=ERROR_RESPONSES)


@router.get("/healthz", summary="Does the process answer?")
async def healthz() -> Health:
    """No key is needed, and nothing else is checked."""
    return Health()


@router.get(
    "/readyz",
    responses={503: {"model": Readiness, "description": "A part that is needed does not work."}},
    summary="Can requests be served?",
)
def readyz(context: Context, response: Response) -> Readiness:
    """No key is needed. A broker that is down does not make the service unready: workers poll the database too."""
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
        slow=context.readiness.slow,
    )


_TEXT: dict[int | str, dict[str, Any]] = {200: {"content": {"text/plain": {"schema": {"type": "string"}}}}}


@router.get("/metrics", response_class=Response, responses=_TEXT, summary="Figures for Prometheus")
def prometheus(context: Context, caller: Reader) -> Response:
    """The figures are of all owners: jobs by status, queues and their oldest jobs, live workers; and this process's
    requests and streams. Workers have their own endpoint (``TRD_METRICS_PORT``)."""
    return Response(context.metrics.text(context.fleet, context.feed.num_streams), media_type=CONTENT_TYPE_PLAIN_0_0_4)
