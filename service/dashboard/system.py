"""The system page: what waits and runs, whether the parts work, the caller's quotas, and for admins the keys."""

from __future__ import annotations

import platform
from importlib.metadata import version
from urllib.parse import urlsplit

from fastapi import APIRouter, Request, Response

from contract.views.keys import KeyScope, KeyView
from service.auth import Reader
from service.context import Context
from service.dashboard.pages import page
from service.db import expected_revision
from service.models.service import model_view

router = APIRouter(include_in_schema=False)

NUM_KEYS = 100


@router.get("/ui/system")
def system(request: Request, context: Context, caller: Reader) -> Response:
    """Show what an operator looks for first."""
    settings, is_admin = context.settings, caller.may(KeyScope.ADMIN)
    num_bytes, num_rows = context.datasets.usage(caller.owner)
    queues = context.fleet.queues()
    keys, has_more_keys = context.keys.page(None, NUM_KEYS) if is_admin else ([], False)
    versions = {
        "TRD service": version("trd-service"),
        "Schema": expected_revision(),
        "Python": platform.python_version(),
        "Database": "SQLite" if context.database.is_sqlite else "PostgreSQL",
        "Storage": urlsplit(settings.storage_url).scheme,
        "Broker": "Redis" if settings.broker_url else "none; workers poll the database",
    }
    return page(
        request,
        "system.html",
        parts={**context.readiness.parts(), "broker": context.readiness.broker()},
        workers=context.readiness.workers,
        queues=queues,
        leases=context.fleet.leases(None if is_admin else caller.owner),
        num_hidden=0 if is_admin else sum(queue.num_running for queue in queues),
        models=[model_view(model) for model in context.models.all()],
        quotas=[
            ("Bytes of datasets", num_bytes, settings.max_stored_bytes),
            ("Rows of datasets", num_rows, settings.max_stored_rows),
        ],
        max_open=settings.max_queued_jobs,
        versions=versions,
        num_streams=context.feed.num_streams,
        is_admin=is_admin,
        keys=[KeyView.of(key) for key in keys],
        has_more_keys=has_more_keys,
    )
