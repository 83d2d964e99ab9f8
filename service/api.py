"""All routes."""

from __future__ import annotations

from fastapi import FastAPI
from starlette.routing import Match
from starlette.types import Scope

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
    dashboard,
)


def add_routes(app: FastAPI) -> None:
    """Add all routes. Each is built once a process, where its part is imported: `include_router` would build it
    again."""
    for part in _PARTS:
        app.router.routes.extend(part.router.routes)
    app.mount(STATIC_PREFIX.rstrip("/"), dashboard.STATIC_FILES)


def allowed_methods(app: FastAPI, scope: Scope) -> str:
    """Return the methods of a request's path, for ``Allow``: each method is a separate route."""
    methods: set[str] = set()
    for route in app.routes:
        match, _ = route.matches(scope)
        if match is not Match.NONE:
            methods |= getattr(route, "methods", None) or set()
    return ", ".join(sorted(methods))
