"""The dashboard's routes: ``/`` and what is below ``/ui``. Its scripts call the API under the session's cookie.

Here are the static files, and what every open tab asks for: a place that a script or another tab wants it to open.
"""

from __future__ import annotations

from fastapi import APIRouter
from pydantic import BaseModel
from starlette.responses import Response
from starlette.staticfiles import StaticFiles

from service.auth import Reader
from service.context import Context
from service.dashboard import compare, job, jobs, new_job, sign_in, system, trajectories


class _Static(StaticFiles):
    def file_response(self, *arguments: object, **options: object) -> Response:
        response = super().file_response(*arguments, **options)  # type: ignore[arg-type]
        response.headers["cache-control"] = "no-cache"  # to be asked for again: a new version has the same name
        return response


STATIC_FILES = _Static(packages=[("service.dashboard", "static")])

router = APIRouter(include_in_schema=False)
for part in (sign_in, jobs, job, system, compare, new_job, trajectories):
    router.routes.extend(part.router.routes)  # `include_router` would build each route again


class Waiting(BaseModel):
    """Whether a place waits to be opened."""

    is_waiting: bool


class Target(BaseModel):
    """Where the tab goes."""

    path: str | None
    """A path of the dashboard; null if another tab was faster."""


@router.get("/ui/view")
def waiting(context: Context, caller: Reader) -> Waiting:
    """Return whether the tab should take a place; each tab asks every few seconds."""
    return Waiting(is_waiting=context.places.is_waiting(caller.owner))


@router.post("/ui/view/take")
def take(context: Context, caller: Reader) -> Target:
    """Take the place: it is this tab's to open."""
    return Target(path=context.places.take(caller.owner))
