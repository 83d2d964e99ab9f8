"""A job's events: pages, and live streams that share one poll of the database.

All streams of a job share a channel: the newest events, and where the job stands. A stream is a cursor
into it. One that is behind what the channel holds reads the database until it has caught up, so that a
slow or reconnecting client misses nothing and does not delay others.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections import deque
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from contextlib import asynccontextmanager, contextmanager, suppress
from dataclasses import dataclass
from datetime import datetime

from sqlalchemy.exc import SQLAlchemyError
from starlette.concurrency import run_in_threadpool

from contract.database import Database
from contract.tables import JobEvent
from contract.views import View
from contract.views.events import EventView, StreamEnd
from contract.views.jobs import JobProgress
from service.events import repository
from service.jobs.service import get_job
from service.query import cut

logger = logging.getLogger(__name__)

POLL_SECONDS = 0.5
KEEP_ALIVE_SECONDS = 15.0
"""Proxies close connections that are silent for about a minute."""
BATCH = 500
"""Number of events read at once."""
MAX_HELD = 1000
"""Number of a job's newest events held in memory while somebody watches it."""

KEEP_ALIVE = b": still here\n\n"


@dataclass(frozen=True)
class Frame:
    """An event, ready to be sent."""

    sequence: int
    content: bytes


class Channel:
    """The newest events of one watched job."""

    def __init__(self) -> None:
        self.num_streams = 0
        self.state: JobProgress | None = None
        """State of the job; None before the first look, and once the job is gone."""
        self.is_gone = False
        self.held_after: int | None = None
        """All events after this number, up to the newest known, are held; None before the first look."""
        self.frames: deque[Frame] = deque()
        self.news = asyncio.Event()
        """Set when something changes; the next change sets another one."""

    @property
    def newest(self) -> int | None:
        """Number of the newest event known; None before the first look."""
        return self.frames[-1].sequence if self.frames else self.held_after

    def after(self, cursor: int) -> list[Frame]:
        """Return the held events that follow `cursor`."""
        return [frame for frame in self.frames if frame.sequence > cursor]

    def add(self, frames: Sequence[Frame]) -> None:
        """Hold newer events, and drop the oldest."""
        self.frames.extend(frames)
        while len(self.frames) > MAX_HELD:
            self.held_after = self.frames.popleft().sequence

    def notify(self) -> None:
        """Wake the streams."""
        self.news.set()
        self.news = asyncio.Event()


class EventFeed:
    """Watches the jobs that somebody streams."""

    def __init__(self, database: Database) -> None:
        self._database = database
        self._channels: dict[str, Channel] = {}
        self._watched = asyncio.Event()
        self.is_closing = False
        """Whether the process stops: streams end."""

    @property
    def num_streams(self) -> int:
        """Open streams of this process."""
        return sum(channel.num_streams for channel in self._channels.values())

    @asynccontextmanager
    async def running(self) -> AsyncIterator[None]:
        """Poll the database within the block."""
        task = asyncio.create_task(self._watch())
        try:
            yield
        finally:
            self.close()
            task.cancel()
            with suppress(asyncio.CancelledError):
                await task

    def close(self) -> None:
        """End all streams: the process stops. Clients come back with their ``Last-Event-ID``."""
        self.is_closing = True
        for channel in self._channels.values():
            channel.notify()

    def page(self, owner: str, job_id: str, after: int, limit: int) -> tuple[Sequence[JobEvent], bool]:
        """Return the events after number `after`, and whether more follow; raise `NotFoundError`."""
        with self._database.read() as session:
            get_job(session, owner, job_id)
            return cut(repository.events_after(session, job_id, after, limit + 1), limit)

    def phases(self, owner: str, job_id: str, limit: int) -> list[tuple[datetime, str]]:
        """Return (created_at, phase) of the newest changes of phase, in order; raise `NotFoundError`."""
        with self._database.read() as session:
            get_job(session, owner, job_id)
            return [(row.created_at, row.phase) for row in repository.phases(session, job_id, limit)]

    def page_before(self, owner: str, job_id: str, before: int | None, limit: int) -> tuple[Sequence[JobEvent], bool]:
        """Return the events below number `before`, the newest first, and whether older ones follow."""
        with self._database.read() as session:
            get_job(session, owner, job_id)
            return cut(repository.events_before(session, job_id, before, limit + 1), limit)

    async def stream(
        self, job_id: str, after: int, is_welcome: Callable[[], bool] = lambda: True
    ) -> AsyncIterator[bytes]:
        """Yield the job's events from number `after` on, as they come; end with the job, and soon after `is_welcome`,
        which may read the database, returns False."""
        cursor = after
        ask_at = time.monotonic() + KEEP_ALIVE_SECONDS
        last_progress: JobProgress | None = None
        with self._subscribed(job_id) as channel:
            while not self.is_closing and not channel.is_gone:
                if time.monotonic() >= ask_at:
                    if not await run_in_threadpool(_is_so, is_welcome):
                        return
                    ask_at = time.monotonic() + KEEP_ALIVE_SECONDS
                news = channel.news  # taken before looking: what comes in between is not slept through
                if channel.held_after is not None and cursor >= channel.held_after:
                    frames = channel.after(cursor)
                else:
                    frames = await run_in_threadpool(self._read_events, job_id, cursor)
                for frame in frames:
                    yield frame.content
                    cursor = frame.sequence
                if frames:
                    continue
                if channel.state is not None and channel.state != last_progress:
                    last_progress = channel.state
                    yield passing_frame("progress", last_progress)
                state, newest = channel.state, channel.newest
                if state is not None and state.is_over and newest is not None and cursor >= newest:
                    yield passing_frame("end", StreamEnd(status=state.status))
                    return
                try:
                    await asyncio.wait_for(news.wait(), KEEP_ALIVE_SECONDS)
                except TimeoutError:
                    yield KEEP_ALIVE

    @contextmanager
    def _subscribed(self, job_id: str) -> Iterator[Channel]:
        channel = self._channels.setdefault(job_id, Channel())
        channel.num_streams += 1
        self._watched.set()
        try:
            yield channel
        finally:
            channel.num_streams -= 1
            if channel.num_streams == 0:
                del self._channels[job_id]

    def _read_events(self, job_id: str, cursor: int) -> list[Frame]:
        with self._database.read() as session:
            return [_frame(row) for row in repository.events_after(session, job_id, cursor, BATCH)]

    async def _watch(self) -> None:
        while True:
            await self._watched.wait()
            if not self._channels:
                self._watched.clear()
                continue
            try:
                known = {job_id: channel.newest for job_id, channel in self._channels.items()}
                news = await run_in_threadpool(self._read_news, known)
                for job_id in known.keys() & self._channels.keys():
                    _update(self._channels[job_id], known[job_id], news.get(job_id))
            except SQLAlchemyError as error:
                logger.warning("the event feed cannot read the database, and tries again: %s", error)
            except Exception:  # without this task every stream would stay silent, and look alive
                logger.exception("the event feed tries again")
            await asyncio.sleep(POLL_SECONDS)

    def _read_news(self, known: dict[str, int | None]) -> dict[str, _News]:
        job_ids = list(known)
        news: dict[str, _News] = {}
        with self._database.read() as session:
            for start in range(0, len(job_ids), BATCH):
                for row in repository.job_states(session, job_ids[start : start + BATCH]):
                    num_events = row.num_events
                    newest = known[row.id]
                    events: Sequence[JobEvent] = []
                    if newest is not None and num_events > newest:
                        events = repository.events_after(session, row.id, newest, BATCH)
                    news[row.id] = _News(JobProgress.of(row), num_events, [_frame(event) for event in events])
        return news


@dataclass(frozen=True)
class _News:
    state: JobProgress
    num_events: int
    frames: list[Frame]


def _frame(row: JobEvent) -> Frame:
    """Return an event as a server-sent event. Its id is what ``Last-Event-ID`` brings back."""
    data = EventView.of(row).model_dump_json()
    return Frame(row.sequence, f"id: {row.sequence}\nevent: {row.type}\ndata: {data}\n\n".encode())


def passing_frame(event: str, view: View) -> bytes:
    """Return a server-sent event without an id: it describes the present, and is never replayed."""
    return f"event: {event}\ndata: {view.model_dump_json()}\n\n".encode()


def _update(channel: Channel, known_newest: int | None, news: _News | None) -> None:
    if news is None:
        channel.is_gone = True
        channel.notify()
        return
    if channel.newest != known_newest:
        return  # the channel was closed and opened again meanwhile
    if channel.held_after is None:
        channel.held_after = news.num_events
    channel.add(news.frames)
    # A status is published only once all events up to it are here: a stream that sees the end stops.
    state = news.state if channel.newest == news.num_events else channel.state
    if news.frames or channel.state != state:
        channel.state = state
        channel.notify()


def _is_so(condition: Callable[[], bool]) -> bool:
    """Return the condition, and True if the database cannot be read."""
    try:
        return condition()
    except SQLAlchemyError:
        return True
