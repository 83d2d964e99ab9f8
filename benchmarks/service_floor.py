"""A minimal job service in FastAPI and SQLAlchemy: one insert or one select per request.

No key, checks, events, queue or log. It uses the same table and opens the database in the same way as the service that
it is compared with.
"""

from __future__ import annotations

import os
from datetime import UTC, datetime
from typing import Any

from fastapi import FastAPI, HTTPException
from pydantic import BaseModel, ConfigDict

from contract.database import Database
from contract.ids import JOB_PREFIX, new_id
from contract.tables import Job


class NewJob(BaseModel):
    """A request body; only its shape is validated."""

    model_config = ConfigDict(extra="allow")

    mode: str
    student: str


class JobView(BaseModel):
    """A response."""

    model_config = ConfigDict(from_attributes=True)

    id: str
    mode: str
    status: str
    step: int
    num_steps: int | None
    created_at: datetime
    spec: dict[str, Any]


app = FastAPI()
database = Database(os.environ["DATABASE_URL"])


@app.get("/healthz")
def healthz() -> None:
    """Report that the server is up."""


@app.post("/jobs", status_code=201)
def create_job(body: NewJob) -> JobView:
    """Insert one row."""
    job = Job(
        id=new_id(JOB_PREFIX),
        owner="floor",
        mode=body.mode,
        spec=body.model_dump(),
        requested=None,
        body_sha256="",
        created_at=datetime.now(UTC),
        status="queued",
        queue="floor",
        priority=0,
        attempt=0,
        num_lost=0,
        lease_token=0,
        step=0,
        latest_metrics={},
        num_events=0,
    )
    with database.write() as session:
        session.add(job)
    return JobView.model_validate(job)


@app.get("/jobs/{job_id}")
def show_job(job_id: str) -> JobView:
    """Select one row."""
    with database.read() as session:
        job = session.get(Job, job_id)
        if job is None:
            raise HTTPException(404)
        return JobView.model_validate(job)
