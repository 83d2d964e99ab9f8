"""The routes, and the shape of an error on each of them."""

from __future__ import annotations

from functools import cache

from fastapi import APIRouter, FastAPI
from starlette.routing import BaseRoute, Match
from starlette.types import Scope

from contract.views import Error
from service import health
from service.audit import endpoints as audit
from service.auth import STATIC_PREFIX
from service.chats import endpoints as chats
from service.checkpoints import endpoints as checkpoints
from service.dashboard import endpoints as dashboard
from service.datasets import endpoints as datasets
from service.events import endpoints as events
from service.jobs import endpoints as jobs
from service.keys import endpoints as keys
from service.models import endpoints as models
from service.openai_compat.files import endpoints as openai_files
from service.openai_compat.fine_tuning import endpoints as openai_fine_tuning
from service.openai_compat.models import endpoints as openai_models
from service.places import endpoints as places
from service.retention import endpoints as retention
from service.runs import endpoints as runs
from service.webhooks import endpoints as webhooks

_PARTS = (
    jobs,
    events,
    runs,
    checkpoints,
    chats,
    datasets,
    models,
    keys,
    webhooks,
    openai_files,
    openai_fine_tuning,
    openai_models,
    audit,
    places,
    retention,
    health,
)


def add_routes(app: FastAPI) -> None:
    """Add all routes."""
    app.router.routes.extend(_routes())


@cache
def _routes() -> list[BaseRoute]:
    """Return the routes of every application in this process; to build them takes longer than to start one."""
    router = APIRouter()
    for part in _PARTS:
        router.include_router(part.router, responses={"4XX": {"model": Error}, "5XX": {"model": Error}})
    router.include_router(dashboard.router, include_in_schema=False)
    router.mount(STATIC_PREFIX.rstrip("/"), dashboard.STATIC_FILES)
    return router.routes


def allowed_methods(app: FastAPI, scope: Scope) -> str:
    """Return the methods of a request's path, for ``Allow``: each method is a separate route."""
    methods: set[str] = set()
    for route in app.routes:
        match, _ = route.matches(scope)
        if match is not Match.NONE:
            methods |= getattr(route, "methods", None) or set()
    return ", ".join(sorted(methods))
