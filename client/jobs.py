"""``/jobs``: submit, list, look at, cancel, pause, resume, clone, delete, wait for."""

from __future__ import annotations

import asyncio
import time
import uuid
from collections.abc import AsyncIterator, Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any, Literal

from client.call import Call, part
from client.errors import JobFailedError, JobPausedError, TimedOutError
from client.paging import Cursor, page_size, walk, walk_async
from client.transport import AsyncTransport, Transport
from contract.job_spec import JobSpec
from contract.job_state import JobStatus
from contract.views.jobs import DeletedView, DryRunView, JobProgress, JobView
from contract.views.page import Page

Spec = JobSpec | Mapping[str, Any]
"""What to submit; a mapping is sent as it is, and checked by the service."""

JobAction = Literal["cancel", "pause", "resume"]

POLL_SECONDS = 1.0


@dataclass(frozen=True)
class JobFilter:
    """Which jobs to list; the conditions combine."""

    status: Sequence[str] = ()
    """Any of these."""
    mode: str | None = None
    tag: str | None = None
    created_after: datetime | None = None
    """With a time zone; the moment itself is included."""
    created_before: datetime | None = None
    """With a time zone; the moment itself is not included."""

    def params(self) -> dict[str, Any]:
        """As query parameters."""
        return {
            "status": [str(status) for status in self.status],
            "mode": self.mode,
            "tag": self.tag,
            "created_after": self.created_after.isoformat() if self.created_after is not None else None,
            "created_before": self.created_before.isoformat() if self.created_before is not None else None,
        }


@dataclass(frozen=True)
class _JobCalls:
    """The requests, for both clients."""

    everything: JobFilter = JobFilter()

    def create(self, spec: Spec, idempotency_key: str | None) -> Call[JobView]:
        return Call("POST", "/jobs", JobView, json=_document(spec), headers=_key_header(idempotency_key))

    def dry_run(self, spec: Spec) -> Call[DryRunView]:
        return Call("POST", "/jobs", DryRunView, json=_document(spec), params={"dry_run": "true"})

    def page(self, wanted: JobFilter | None, after: Cursor, limit: int) -> Call[Page[JobView]]:
        params = {**(wanted or self.everything).params(), "after": after, "limit": limit}
        return Call("GET", "/jobs", Page[JobView], params=params)

    def get(self, job_id: str) -> Call[JobView]:
        return Call("GET", f"/jobs/{part(job_id)}", JobView)

    def act(self, job_id: str, action: JobAction) -> Call[JobView]:
        return Call("POST", f"/jobs/{part(job_id)}/{action}", JobView)

    def clone(self, job_id: str, overrides: Mapping[str, Any] | None, idempotency_key: str | None) -> Call[JobView]:
        path = f"/jobs/{part(job_id)}/clone"
        return Call("POST", path, JobView, json=dict(overrides or {}), headers=_key_header(idempotency_key))

    def delete(self, job_id: str) -> Call[DeletedView]:
        return Call("DELETE", f"/jobs/{part(job_id)}", DeletedView, is_repeatable=False)  # the second time it is a 404


def _document(spec: Spec) -> dict[str, Any]:
    return spec.model_dump(mode="json", exclude_unset=True) if isinstance(spec, JobSpec) else dict(spec)


def _key_header(idempotency_key: str | None) -> dict[str, str]:
    """With a key, also one made up here, a creation may be sent again: it makes one job."""
    return {"idempotency-key": idempotency_key or f"client-{uuid.uuid4()}"}


_CALLS = _JobCalls()


def require_succeeded(job: JobView) -> JobView:
    """The job itself, if it succeeded; raises `JobFailedError`."""
    if job.status is JobStatus.SUCCEEDED:
        return job
    if job.error is None:
        raise JobFailedError(f"{job.id} is {job.status}")
    message = f"{job.id} {job.status}: {job.error.code}: {job.error.message}"
    raise JobFailedError(message, hint=job.error.hint, code=job.error.code)


def require_not_paused(job: JobProgress, *, hint: str = "resume it, then wait again") -> None:
    """Nothing comes of a paused job until somebody resumes it; raises `JobPausedError`."""
    if job.status is JobStatus.PAUSED:
        raise JobPausedError(f"{job.id} is paused", hint=hint)


def _require_time(job: JobView, deadline: float, max_seconds: float) -> None:
    require_not_paused(job)
    if time.monotonic() > deadline:
        raise TimedOutError(f"{job.id} is still {job.status} after {max_seconds:g} s")


class Jobs:
    """Jobs of the key's owner."""

    def __init__(self, transport: Transport) -> None:
        self._transport = transport

    def create(self, spec: Spec, *, idempotency_key: str | None = None) -> JobView:
        """Submit a job. Without a key of your own one is made, so that a lost answer does not make two jobs."""
        return self._transport.send(_CALLS.create(spec, idempotency_key))

    def dry_run(self, spec: Spec) -> DryRunView:
        """What a submission would make; makes nothing."""
        return self._transport.send(_CALLS.dry_run(spec))

    def page(self, wanted: JobFilter | None = None, *, after: str | None = None, limit: int = 20) -> Page[JobView]:
        """One page, newest first, after the job `after`."""
        return self._transport.send(_CALLS.page(wanted, after, limit))

    def list(self, wanted: JobFilter | None = None, *, num_wanted: int | None = None) -> Iterator[JobView]:
        """Jobs over all pages, newest first; at most `num_wanted`."""
        limit = page_size(num_wanted)
        return walk(
            lambda after: self._transport.send(_CALLS.page(wanted, after, limit)),
            lambda job: job.id,
            num_wanted=num_wanted,
        )

    def get(self, job_id: str) -> JobView:
        """One job."""
        return self._transport.send(_CALLS.get(job_id))

    def cancel(self, job_id: str) -> JobView:
        """Cancel; a running job stops at its next step boundary."""
        return self._transport.send(_CALLS.act(job_id, "cancel"))

    def pause(self, job_id: str) -> JobView:
        """Pause; a running job writes a checkpoint first."""
        return self._transport.send(_CALLS.act(job_id, "pause"))

    def resume(self, job_id: str) -> JobView:
        """Queue a paused, failed or cancelled job again; it goes on from its last checkpoint."""
        return self._transport.send(_CALLS.act(job_id, "resume"))

    def clone(
        self, job_id: str, overrides: Mapping[str, Any] | None = None, *, idempotency_key: str | None = None
    ) -> JobView:
        """Submit a job like another; `overrides` are merged into its spec."""
        return self._transport.send(_CALLS.clone(job_id, overrides, idempotency_key))

    def delete(self, job_id: str) -> DeletedView:
        """Delete a job that is over, with everything it made."""
        return self._transport.send(_CALLS.delete(job_id))

    def wait(self, job_id: str, *, max_seconds: float = float("inf")) -> JobView:
        """The job, once it succeeded.

        Raises `JobFailedError`, `JobPausedError` as soon as it is paused, and `TimedOutError` after `max_seconds`.
        """
        deadline = time.monotonic() + max_seconds
        while not (job := self.get(job_id)).is_over:
            _require_time(job, deadline, max_seconds)
            time.sleep(POLL_SECONDS)
        return require_succeeded(job)


class AsyncJobs:
    """As `Jobs`."""

    def __init__(self, transport: AsyncTransport) -> None:
        self._transport = transport

    async def create(self, spec: Spec, *, idempotency_key: str | None = None) -> JobView:
        """Submit a job. Without a key of your own one is made, so that a lost answer does not make two jobs."""
        return await self._transport.send(_CALLS.create(spec, idempotency_key))

    async def dry_run(self, spec: Spec) -> DryRunView:
        """What a submission would make; makes nothing."""
        return await self._transport.send(_CALLS.dry_run(spec))

    async def page(
        self, wanted: JobFilter | None = None, *, after: str | None = None, limit: int = 20
    ) -> Page[JobView]:
        """One page, newest first, after the job `after`."""
        return await self._transport.send(_CALLS.page(wanted, after, limit))

    def list(self, wanted: JobFilter | None = None, *, num_wanted: int | None = None) -> AsyncIterator[JobView]:
        """Jobs over all pages, newest first; at most `num_wanted`."""
        limit = page_size(num_wanted)
        return walk_async(
            lambda after: self._transport.send(_CALLS.page(wanted, after, limit)),
            lambda job: job.id,
            num_wanted=num_wanted,
        )

    async def get(self, job_id: str) -> JobView:
        """One job."""
        return await self._transport.send(_CALLS.get(job_id))

    async def cancel(self, job_id: str) -> JobView:
        """Cancel; a running job stops at its next step boundary."""
        return await self._transport.send(_CALLS.act(job_id, "cancel"))

    async def pause(self, job_id: str) -> JobView:
        """Pause; a running job writes a checkpoint first."""
        return await self._transport.send(_CALLS.act(job_id, "pause"))

    async def resume(self, job_id: str) -> JobView:
        """Queue a paused, failed or cancelled job again; it goes on from its last checkpoint."""
        return await self._transport.send(_CALLS.act(job_id, "resume"))

    async def clone(
        self, job_id: str, overrides: Mapping[str, Any] | None = None, *, idempotency_key: str | None = None
    ) -> JobView:
        """Submit a job like another; `overrides` are merged into its spec."""
        return await self._transport.send(_CALLS.clone(job_id, overrides, idempotency_key))

    async def delete(self, job_id: str) -> DeletedView:
        """Delete a job that is over, with everything it made."""
        return await self._transport.send(_CALLS.delete(job_id))

    async def wait(self, job_id: str, *, max_seconds: float = float("inf")) -> JobView:
        """The job, once it succeeded.

        Raises `JobFailedError`, `JobPausedError` as soon as it is paused, and `TimedOutError` after `max_seconds`.
        """
        deadline = time.monotonic() + max_seconds
        while not (job := await self.get(job_id)).is_over:
            _require_time(job, deadline, max_seconds)
            await asyncio.sleep(POLL_SECONDS)
        return require_succeeded(job)
