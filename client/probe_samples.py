"""``/jobs/{id}/probe-samples``: what the student answers to a few fixed problems over its run."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator

from client.call import Call, part
from client.paging import Cursor, page_size, walk, walk_async
from client.transport import AsyncTransport, Transport
from contract.views.page import Page
from contract.views.probe_samples import ProbeSampleView


def _page(job_id: str, step: int | None, after: Cursor, limit: int) -> Call[Page[ProbeSampleView]]:
    params = {"step": step, "after": after, "limit": limit}
    return Call("GET", f"/jobs/{part(job_id)}/probe-samples", Page[ProbeSampleView], params=params)


class ProbeSamples:
    """By step and position; the same problems at every step."""

    def __init__(self, transport: Transport) -> None:
        self._transport = transport

    def list(self, job_id: str, *, step: int | None = None, num_wanted: int | None = None) -> Iterator[ProbeSampleView]:
        """Samples over all pages, of one evaluation's step where one is given; at most `num_wanted`."""
        limit = page_size(num_wanted)
        return walk(
            lambda after: self._transport.send(_page(job_id, step, after, limit)),
            lambda sample: sample.id,
            num_wanted=num_wanted,
        )


class AsyncProbeSamples:
    """As `ProbeSamples`."""

    def __init__(self, transport: AsyncTransport) -> None:
        self._transport = transport

    def list(
        self, job_id: str, *, step: int | None = None, num_wanted: int | None = None
    ) -> AsyncIterator[ProbeSampleView]:
        """Samples over all pages, of one evaluation's step where one is given; at most `num_wanted`."""
        limit = page_size(num_wanted)
        return walk_async(
            lambda after: self._transport.send(_page(job_id, step, after, limit)),
            lambda sample: sample.id,
            num_wanted=num_wanted,
        )
