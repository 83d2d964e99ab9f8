"""The routes, and the OpenAPI document that describes them."""

from __future__ import annotations

from typing import Any

from fastapi import FastAPI
from fastapi.openapi.utils import get_openapi
from pydantic import BaseModel, Field
from pydantic.json_schema import models_json_schema

from contract.job_spec import JobSpec
from service import health
from service.auth import PUBLIC_PATHS
from service.checkpoints import endpoints as checkpoints
from service.datasets import endpoints as datasets
from service.diagnosis import endpoints as diagnosis
from service.evaluations import endpoints as evaluations
from service.events import endpoints as events
from service.jobs import endpoints as jobs
from service.keys import endpoints as keys
from service.keys.schemas import NewKey
from service.metrics import endpoints as metrics
from service.models import endpoints as models
from service.openai_compat import endpoints as openai_compat
from service.openai_compat.fine_tuning.request import FineTuningRequest
from service.probe_samples import endpoints as probe_samples
from service.trajectories import endpoints as trajectories

_BODIES: list[type[BaseModel]] = [JobSpec, jobs.Overrides, NewKey, FineTuningRequest]
"""Read by the routes themselves, so that FastAPI does not know them."""


class ErrorDetail(BaseModel):
    """What went wrong."""

    message: str
    """Names the field, the value and the remedy."""
    type: str
    param: str | None
    code: str
    """Stable: clients branch on it."""
    errors: list[dict[str, Any]] = Field(default_factory=list)
    """Where a request has several faults, all of them."""


class Error(BaseModel):
    """The body of every answer that is not a success."""

    error: ErrorDetail


_PARTS = (
    jobs,
    events,
    metrics,
    trajectories,
    diagnosis,
    evaluations,
    probe_samples,
    checkpoints,
    datasets,
    models,
    keys,
    openai_compat,
    health,
)


def add_routes(app: FastAPI) -> None:
    """All of them."""
    for part in _PARTS:
        app.include_router(part.router, responses={"4XX": {"model": Error}, "5XX": {"model": Error}})


def openapi_document(app: FastAPI) -> dict[str, Any]:
    """FastAPI's document, with the bodies and the key that it does not see."""
    document = get_openapi(title=app.title, version=app.version, summary=app.summary, routes=app.routes)
    _, bodies = models_json_schema(
        [(model, "validation") for model in _BODIES], ref_template="#/components/schemas/{model}"
    )
    components = document["components"]
    components["schemas"] = {**bodies["$defs"], **components["schemas"]}
    components["securitySchemes"] = {"key": {"type": "http", "scheme": "bearer"}}
    for path, operations in document["paths"].items():
        for operation in operations.values():
            operation["security"] = [] if path in PUBLIC_PATHS else [{"key": []}]
            operation["responses"].pop("422", None)  # FastAPI's own shape, which no client ever sees
    for name in ("HTTPValidationError", "ValidationError"):
        components["schemas"].pop(name, None)
    return document
