"""The routes, and the shape of a refusal on every one of them."""

from __future__ import annotations

from typing import Any

from fastapi import FastAPI
from pydantic import BaseModel, ConfigDict, Field
from starlette.routing import Match
from starlette.types import Scope

from service import health
from service.checkpoints import endpoints as checkpoints
from service.datasets import endpoints as datasets
from service.diagnosis import endpoints as diagnosis
from service.evaluations import endpoints as evaluations
from service.events import endpoints as events
from service.jobs import endpoints as jobs
from service.keys import endpoints as keys
from service.metrics import endpoints as metrics
from service.models import endpoints as models
from service.openai_compat import endpoints as openai_compat
from service.probe_samples import endpoints as probe_samples
from service.trajectories import endpoints as trajectories


class ErrorDetail(BaseModel):
    """What went wrong."""

    model_config = ConfigDict(use_attribute_docstrings=True)

    message: str
    """Names the field, the value and the remedy."""
    type: str
    """The kind of refusal, a few for all: invalid_request_error, conflict_error, quota_error…"""
    param: str | None
    """The field or parameter at fault."""
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


def allowed_methods(app: FastAPI, scope: Scope) -> str:
    """What the address of a request takes, for ``Allow``: each method has a route of its own, which knows no other."""
    methods: set[str] = set()
    for route in app.routes:
        match, _ = route.matches(scope)
        if match is not Match.NONE:
            methods |= getattr(route, "methods", None) or set()
    return ", ".join(sorted(methods))
