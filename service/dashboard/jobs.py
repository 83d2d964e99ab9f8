"""The list of jobs, and what changed in it since a script last asked."""

from __future__ import annotations

import hashlib
from datetime import UTC, date, datetime, time, timedelta
from typing import Annotated, Any
from urllib.parse import urlencode

from fastapi import APIRouter, Query, Request, Response
from pydantic import BaseModel, BeforeValidator, RootModel

from contract.job_spec import Mode
from contract.job_state import JobStatus
from contract.views.jobs import JobView
from service.auth import Caller, Reader
from service.bodies import JsonRoute
from service.context import Context, ServiceContext
from service.dashboard.pages import fragment, page
from service.errors import NotFoundError
from service.jobs.schemas import job_view
from service.jobs.service import JobQuery

router = APIRouter(include_in_schema=False, route_class=JsonRoute)

NUM_ROWS = 50


_none_if_empty = BeforeValidator(lambda value: None if value == "" else value)


class Wanted(BaseModel):
    """Filters and page, as they stand in the address; an empty field of the form does not filter."""

    status: list[JobStatus] = []
    mode: Annotated[Mode | None, _none_if_empty] = None
    tag: Annotated[str, Query(max_length=64)] = ""
    name: Annotated[str, Query(max_length=200)] = ""
    since: Annotated[date | None, _none_if_empty] = None
    """First day, in UTC."""
    until: Annotated[date | None, _none_if_empty] = None
    """Last day, in UTC."""
    after: Annotated[str, Query(max_length=40)] = ""

    @property
    def filters(self) -> list[tuple[str, str]]:
        """The filters that are set."""
        named = [(name, getattr(self, name)) for name in ("mode", "tag", "name", "since", "until")]
        return [("status", str(status)) for status in self.status] + [(n, str(value)) for n, value in named if value]

    @property
    def query(self) -> JobQuery:
        """What the use cases take."""
        begin, end = (None if day is None else datetime.combine(day, time(), UTC) for day in (self.since, self.until))
        if end is not None:
            end = end + timedelta(days=1) if end.year < datetime.max.year else None
        return JobQuery(
            status=self.status,
            mode=self.mode,
            tag=self.tag or None,
            name=self.name or None,
            created_after=begin,
            created_before=end,
            after=self.after or None,
            limit=NUM_ROWS,
        )


class Seen(RootModel[dict[str, str]]):
    """The versions of the rows that a script has, by their ids."""


class Changes(BaseModel):
    """What a script needs to bring the list up to date."""

    order: list[str]
    """The ids of the page."""
    rows: dict[str, str]
    """HTML of the rows that are new or differ from what the script has seen."""


@router.get("/")
def list_jobs(request: Request, context: Context, caller: Reader, wanted: Annotated[Wanted, Query()]) -> Response:
    """Show the list, or nothing to a client that reads no pages."""
    if "text/html" not in request.headers.get("accept", ""):
        raise NotFoundError("there is no such path; GET /openapi.json lists all paths")
    jobs, has_more = _jobs(context, caller, wanted)
    last = jobs[-1].id if jobs and has_more else None
    return page(
        request,
        "jobs.html",
        rows=_rows(context, jobs),
        wanted=wanted,
        statuses=list(JobStatus),
        modes=["trd", "opd", "opsd"],
        first_page=f"/?{urlencode(wanted.filters)}" if wanted.after else None,
        next_page=f"/?{urlencode([*wanted.filters, ('after', last)])}" if last is not None else None,
    )


@router.post("/ui/jobs/changes")
def changes(context: Context, caller: Reader, wanted: Annotated[Wanted, Query()], seen: Seen) -> Changes:
    """Return the rows that the script lacks, or has another version of."""
    jobs, _ = _jobs(context, caller, wanted)
    rows, versions = _rows(context, jobs), seen.root
    return Changes(
        order=list(rows), rows={id: html for id, (html, version) in rows.items() if versions.get(id) != version}
    )


def _jobs(context: ServiceContext, caller: Caller, wanted: Wanted) -> tuple[list[JobView], bool]:
    placed, has_more = context.jobs.page(caller.owner, wanted.query)
    return [job_view(job, place) for job, place in placed], has_more


def _rows(context: ServiceContext, jobs: list[JobView]) -> dict[str, tuple[str, str]]:
    """Return the row of each job as HTML, and its version."""
    curves = context.runs.sparklines(jobs, "loss")
    rows = {}
    for job in jobs:
        content: list[Any] = [job, curves.get(job.id, [])]
        version = hashlib.sha256(fragment("jobs_row.html", "row", *content, "").encode()).hexdigest()[:12]
        rows[job.id] = (fragment("jobs_row.html", "row", *content, version), version)
    return rows
