"""Events, and what a stream of events has between and after them."""

from __future__ import annotations

from datetime import datetime
from typing import Any, Literal

from contract.job_state import JobStatus
from contract.views import OpenEnum, View


class EventView(View):
    """Something that happened to a job."""

    object: Literal["job.event"] = "job.event"
    sequence: int
    """Number within the job, from 1, without a gap."""
    type: str
    """status, phase, notice, evaluation or checkpoint."""
    level: OpenEnum[Literal["info", "warn", "error"]]
    message: str
    data: dict[str, Any]
    created_at: datetime


class StreamEnd(View):
    """The last frame of a stream: the job is over."""

    status: OpenEnum[JobStatus] | None
    """Null if the job was deleted, or if the stream was requested again after its end."""
