"""The dashboard's routes: ``/`` and what is below ``/ui``. Its scripts call the API under the session's cookie."""

from __future__ import annotations

from fastapi import APIRouter
from starlette.responses import Response
from starlette.staticfiles import StaticFiles

from service.dashboard import chat, compare, job, jobs, new_job, places, sign_in, system, trajectories


class _Static(StaticFiles):
    def file_response(self, *arguments: object, **options: object) -> Response:
        response = super().file_response(*arguments, **options)  # type: ignore[arg-type]
        response.headers["cache-control"] = "no-cache"  # to be asked for again: a new version has the same name
        return response


STATIC_FILES = _Static(packages=[("service.dashboard", "static")])

router = APIRouter()
for part in (sign_in, places, jobs, job, system, compare, new_job, trajectories, chat):
    router.routes.extend(part.router.routes)  # `include_router` would build each route again
