"""Jobs as both clients know them: specs, filters, and what becomes an error while waiting for a job."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from client.errors import JobFailedError, JobPausedError, TimedOutError
from contract.job_spec import JobSpec
from contract.job_state import JobStatus
from contract.views.jobs import JobProgress, JobView

Spec = JobSpec | Mapping[str, Any]
"""A job to submit; a mapping is sent unchanged, and checked by the service."""

POLL_SECONDS = 1.0


@dataclass(frozen=True)
class JobFilter:
    """Which jobs to list; a job must meet all conditions."""

    status: Sequence[str] = ()
    """Any of these."""
    mode: str | None = None
    tag: str | None = None
    name: str | None = None
    """A part of the name, in upper or lower case."""
    created_after: datetime | None = None
    """Earliest time of creation, with a time zone; inclusive."""
    created_before: datetime | None = None
    """Latest time of creation, with a time zone; exclusive."""

    def params(self) -> dict[str, Any]:
        """Return the query parameters."""
        return {
            "status": [str(status) for status in self.status],
            "mode": self.mode,
            "tag": self.tag,
            "name": self.name,
            "created_after": self.created_after.isoformat() if self.created_after is not None else None,
            "created_before": self.created_before.isoformat() if self.created_before is not None else None,
        }


def spec_document(spec: Spec) -> dict[str, Any]:
    """Return the request body that submits `spec`."""
    return spec.model_dump(mode="json", exclude_unset=True) if isinstance(spec, JobSpec) else dict(spec)


def require_succeeded(job: JobView) -> JobView:
    """Return `job` if it has succeeded; raises `JobFailedError` otherwise."""
    if job.status is JobStatus.SUCCEEDED:
        return job
    if job.error is None:
        raise JobFailedError(f"{job.id} is {job.status}")
    message = f"{job.id} {job.status}: {job.error.code}: {job.error.message}"
    raise JobFailedError(message, hint=job.error.hint, code=job.error.code)


def require_not_paused(job: JobProgress, *, hint: str = "resume it, then wait again") -> None:
    """Raise `JobPausedError` for a paused job, which does nothing until its user resumes it."""
    if job.status is JobStatus.PAUSED:
        raise JobPausedError(f"{job.id} is paused", hint=hint)


def require_time(job: JobView, deadline: float, max_seconds: float) -> None:
    """Raise unless it makes sense to wait longer for `job`."""
    require_not_paused(job)
    if time.monotonic() > deadline:
        raise TimedOutError(f"{job.id} is still {job.status} after {max_seconds:g} s")
