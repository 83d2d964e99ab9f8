"""``/jobs``: submit, list, show, cancel, pause, resume, clone, delete, wait for."""

from __future__ import annotations

import time
from collections.abc import AsyncIterator, Mapping
from typing import Any

from client._async.transport import AsyncResource
from client.call import Call, idempotency_header, path_part
from client.concurrency import async_sleep
from client.jobs import POLL_SECONDS, JobFilter, Spec, require_succeeded, require_time, spec_document
from contract.views import Page
from contract.views.jobs import DeletedView, DryRunView, JobView


class AsyncJobs(AsyncResource):
    """Jobs of the key's owner."""

    async def create(self, spec: Spec, *, idempotency_key: str | None = None) -> JobView:
        """Submit a job. If no key is given, one is generated, so that a retry does not create a second job."""
        headers = idempotency_header(idempotency_key)
        return await self._transport.send(Call("POST", "/jobs", JobView, json=spec_document(spec), headers=headers))

    async def dry_run(self, spec: Spec) -> DryRunView:
        """Return what a submission would create, and create nothing."""
        call = Call("POST", "/jobs", DryRunView, json=spec_document(spec), params={"dry_run": "true"})
        return await self._transport.send(call)

    async def page(
        self, wanted: JobFilter | None = None, *, after: str | None = None, limit: int = 20
    ) -> Page[JobView]:
        """Return one page, newest first, after the job with the id `after`."""
        params = {**(wanted or JobFilter()).params(), "after": after, "limit": limit}
        return await self._transport.send(Call("GET", "/jobs", Page[JobView], params=params))

    def list(self, wanted: JobFilter | None = None, *, num_wanted: int | None = None) -> AsyncIterator[JobView]:
        """Iterate over all pages, newest first, up to `num_wanted` jobs."""
        params = (wanted or JobFilter()).params()
        return self._transport.walk("/jobs", Page[JobView], lambda job: job.id, params=params, num_wanted=num_wanted)

    async def get(self, job_id: str) -> JobView:
        """Return one job."""
        return await self._transport.send(Call("GET", f"/jobs/{path_part(job_id)}", JobView))

    async def cancel(self, job_id: str) -> JobView:
        """Cancel a job; a running one stops at its next step boundary."""
        return await self._act(job_id, "cancel")

    async def pause(self, job_id: str) -> JobView:
        """Pause a job; a running one writes a checkpoint first."""
        return await self._act(job_id, "pause")

    async def resume(self, job_id: str) -> JobView:
        """Queue a paused, failed or cancelled job again; it continues from its last checkpoint."""
        return await self._act(job_id, "resume")

    async def _act(self, job_id: str, action: str) -> JobView:
        return await self._transport.send(Call("POST", f"/jobs/{path_part(job_id)}/{action}", JobView))

    async def clone(
        self, job_id: str, overrides: Mapping[str, Any] | None = None, *, idempotency_key: str | None = None
    ) -> JobView:
        """Submit a copy of a job; `overrides` are merged into its spec."""
        path, headers = f"/jobs/{path_part(job_id)}/clone", idempotency_header(idempotency_key)
        return await self._transport.send(Call("POST", path, JobView, json=dict(overrides or {}), headers=headers))

    async def delete(self, job_id: str) -> DeletedView:
        """Delete a finished job and everything that it produced."""
        # The second request would be answered with 404.
        call = Call("DELETE", f"/jobs/{path_part(job_id)}", DeletedView, is_repeatable=False)
        return await self._transport.send(call)

    async def wait(self, job_id: str, *, max_seconds: float = float("inf")) -> JobView:
        """Return the job as soon as it has succeeded.

        Raises `JobFailedError`, `JobPausedError` as soon as it is paused, and `TimedOutError` after `max_seconds`.
        """
        deadline = time.monotonic() + max_seconds
        while not (job := await self.get(job_id)).is_over:
            require_time(job, deadline, max_seconds)
            await async_sleep(POLL_SECONDS)
        return require_succeeded(job)
