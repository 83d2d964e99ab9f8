# Generated from client/_async/events.py by `python client/generate.py`. Do not edit.

"""``/jobs/{id}/events``: pages, and a stream that reconnects if it breaks."""

from __future__ import annotations

from collections.abc import Generator, Iterator
from contextlib import closing

from client._sync.transport import Resource
from client.call import Call, path_part
from client.concurrency import sleep, sse_frames
from client.errors import TrdError
from client.events import PATIENCE_SECONDS, Follower, StreamItem
from contract.views import Page
from contract.views.events import EventView, StreamEnd


class Events(Resource):
    """What happened to a job."""

    def page(self, job_id: str, *, after: int = 0, limit: int = 100) -> Page[EventView]:
        """Return one page, in order, after the event with the number `after`."""
        path, params = f"/jobs/{path_part(job_id)}/events", {"after": after, "limit": limit}
        return self._transport.send(Call("GET", path, Page[EventView], params=params))

    def list(self, job_id: str, *, after: int = 0, num_wanted: int | None = None) -> Iterator[EventView]:
        """Iterate over all pages, up to `num_wanted` events."""
        path = f"/jobs/{path_part(job_id)}/events"
        return self._transport.walk(
            path, Page[EventView], lambda event: event.sequence, after=after, num_wanted=num_wanted
        )

    def follow(
        self, job_id: str, *, after: int = 0, patience_seconds: float = PATIENCE_SECONDS
    ) -> Generator[StreamItem, None]:
        """Yield everything after the event with the number `after` as it happens, until the job is over.

        If the stream breaks, it is requested again from the last event seen: no event is lost or yielded twice. The
        error is raised after `patience_seconds` without a connection. If you stop early, close the generator
        (``contextlib.aclosing``; ``closing`` with the sync client): it holds a connection.
        """
        follower = Follower(job_id, after, patience_seconds)
        while not follower.is_over:
            failure: TrdError | None = None
            try:
                with closing(self._connected(follower)) as items:
                    for item in items:
                        yield item
            except TrdError as error:
                failure = error
            if not follower.is_over:
                sleep(follower.pause(failure))

    def _connected(self, follower: Follower) -> Generator[StreamItem, None]:
        with self._transport.stream(follower.call()) as response:
            if not follower.has_frames(response):
                yield StreamEnd(status=None)
                return
            with closing(sse_frames(response)) as frames:
                for frame in frames:
                    item = follower.read(frame)
                    if item is not None:
                        yield item
                    if follower.is_over:
                        return
