"""Event streams that are followed through broken connections."""

from __future__ import annotations

import asyncio
import contextlib
import shutil
import threading
import time
from collections.abc import Iterable, Iterator
from pathlib import Path

import httpx
import pytest
import uvicorn
from fastapi import FastAPI

from client import AsyncClient, Client
from client.call import Call
from client.errors import ConnectionFailedError, NotFoundError, UnexpectedAnswerError
from client.events import StreamItem
from contract.views import View
from contract.views.events import EventView, StreamEnd
from contract.views.jobs import JobProgress
from service.app import create_app
from tests.client.breaking_proxy import BreakingProxy
from tests.client.conftest import RunningService, spec_of
from tests.servers import free_port
from tests.service.conftest import ADMIN_KEY, AUTHORIZED, settings_in, write_model
from tests.service.records import add_events, finish_job
from tests.worker.workbench import eventually


def numbers(items: Iterable[StreamItem]) -> list[int]:
    return [item.sequence for item in items if isinstance(item, EventView)]


def test_a_stream_sends_all_events_and_ends(trd: Client, service: RunningService, job_id: str) -> None:
    add_events(service.database, job_id, 5)
    finish_job(service.database, job_id)
    items = list(trd.events.follow(job_id))
    assert numbers(items) == list(range(1, 8))
    assert isinstance(items[-2], JobProgress)
    assert items[-1] == StreamEnd(status="succeeded")
    assert numbers(trd.events.follow(job_id, after=4)) == [5, 6, 7]
    assert list(trd.events.follow(job_id, after=7)) == [StreamEnd(status=None)]


def test_a_broken_stream_loses_and_repeats_nothing(
    through_proxy: Client, proxy: BreakingProxy, service: RunningService, job_id: str
) -> None:
    """Cut in the headers, within an event, and from outside while nothing comes."""
    add_events(service.database, job_id, 60)
    proxy.cut_after.extend([100, 1500, 6000, None])
    items: list[StreamItem] = []
    done = threading.Event()

    def listen() -> None:
        items.extend(through_proxy.events.follow(job_id))
        done.set()

    threading.Thread(target=listen, daemon=True).start()
    for _ in range(3):
        time.sleep(1.0)
        proxy.cut_all()
        add_events(service.database, job_id, 5)
    finish_job(service.database, job_id)
    assert done.wait(30)
    assert numbers(items) == list(range(1, 78))
    assert proxy.num_connections >= 5
    assert [item for item in items if isinstance(item, StreamEnd)] == [items[-1]]


def test_an_async_stream_comes_back_too(proxy: BreakingProxy, service: RunningService, job_id: str) -> None:
    async def listen() -> list[StreamItem]:
        async with AsyncClient(proxy.url, ADMIN_KEY) as trd, contextlib.aclosing(trd.events.follow(job_id)) as items:
            return [item async for item in items]

    add_events(service.database, job_id, 30)
    finish_job(service.database, job_id)
    proxy.cut_after.extend([2000, 3000])
    assert numbers(asyncio.run(listen())) == list(range(1, 33))
    assert proxy.num_connections == 3


def test_a_long_silence_is_no_event(
    tmp_path: Path, migrated_sqlite_file: Path, monkeypatch: pytest.MonkeyPatch, rows_file: Path
) -> None:
    """The service's keep-alive comments, sped up in a server in this process."""
    monkeypatch.setattr("service.events.feed.KEEP_ALIVE_SECONDS", 0.2)
    write_model(tmp_path / "models" / "small", context=40_960)
    shutil.copyfile(migrated_sqlite_file, tmp_path / "trd.db")
    settings = settings_in(tmp_path, tmp_path / "models", f"sqlite:///{tmp_path / 'trd.db'}")
    with serving(create_app(settings)) as url, Client(url, ADMIN_KEY) as trd:
        spec = {**spec_of(trd.datasets.upload(rows_file).id), "teacher": "small"}
        stream = trd.events.follow(trd.jobs.create(spec).id)
        assert isinstance(next(stream), EventView)
        job = next(stream)
        assert isinstance(job, JobProgress)
        timer = threading.Timer(1.5, trd.jobs.cancel, [job.id])
        timer.start()
        assert [type(item) for item in stream] == [EventView, JobProgress, StreamEnd]
        timer.join()  # the stream may end before the request does, which needs the open client


@contextlib.contextmanager
def serving(app: FastAPI) -> Iterator[str]:
    """Serve the application on a free port, in a thread."""
    port = free_port()
    server = uvicorn.Server(uvicorn.Config(app, port=port, log_level="warning"))
    thread = threading.Thread(target=server.run)
    thread.start()
    while not server.started:
        time.sleep(0.02)
    try:
        yield f"http://127.0.0.1:{port}"
    finally:
        server.should_exit = True
        thread.join(20)


def test_a_stream_that_is_left_early_lets_its_connection_go(service: RunningService, job_id: str) -> None:
    async def look_once() -> None:
        async with AsyncClient(service.url, ADMIN_KEY) as trd:
            async with contextlib.aclosing(trd.events.follow(job_id)) as items:
                async for _ in items:
                    break
            await asyncio.to_thread(eventually, lambda: num_streams(service) == 0)

    asyncio.run(look_once())
    with Client(service.url, ADMIN_KEY) as trd:
        stream = trd.events.follow(job_id)
        assert numbers([next(stream)]) == [1]
        assert num_streams(service) == 1
        stream.close()  # type: ignore[attr-defined]
        eventually(lambda: num_streams(service) == 0)


def num_streams(service: RunningService) -> int:
    figures = httpx.get(f"{service.url}/metrics", headers=AUTHORIZED).text
    return int(float(figures.rpartition("trd_streams ")[2]))


def test_no_job_no_stream(trd: Client) -> None:
    with pytest.raises(NotFoundError):
        next(trd.events.follow("job_absent"))


def test_patience_has_an_end(through_proxy: Client, proxy: BreakingProxy, job_id: str) -> None:
    stream = through_proxy.events.follow(job_id, patience_seconds=1.0)
    assert numbers([next(stream)]) == [1]
    proxy.close()
    with pytest.raises(ConnectionFailedError):
        list(stream)


def test_an_answer_that_is_no_stream_is_reported_at_once(
    trd: Client, job_id: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("client.events.Follower.call", lambda self: Call("GET", "/models", View))
    with pytest.raises(UnexpectedAnswerError, match="expected an event stream"):
        next(trd.events.follow(job_id))
