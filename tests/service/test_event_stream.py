"""Streams against a real server: whole, replayed, live, and over when the job or the server is."""

from __future__ import annotations

import asyncio
import json
import threading
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import pytest

from contract.database import Database
from contract.job_state import JobStatus
from service.events.feed import KEEP_ALIVE
from tests.service.conftest import ADMIN_KEY, AUTHORIZED, MakeClient
from tests.service.live_server import LiveServer, live_server, stop
from tests.service.records import ROWS, add_events, context_of, finish_job, submit

STREAM = {**AUTHORIZED, "accept": "text/event-stream"}


@dataclass(frozen=True)
class Frame:
    event: str
    id: int | None
    data: dict[str, Any]


def frames(response: httpx.Response) -> Iterator[Frame]:
    fields: dict[str, str] = {}
    for line in response.iter_lines():
        name, _, value = line.partition(": ")
        if line and name:
            fields[name] = value
        elif "data" in fields:
            number = int(fields["id"]) if "id" in fields else None
            yield Frame(fields["event"], number, json.loads(fields["data"]))
            fields = {}
        else:
            fields = {}


def read_stream(url: str, **headers: str) -> list[Frame]:
    with httpx.stream("GET", url, headers={**STREAM, **headers}, timeout=20) as response:
        assert response.status_code == 200
        assert response.headers["content-type"].startswith("text/event-stream")
        return list(frames(response))


def numbers(received: list[Frame]) -> list[int]:
    return [frame.id for frame in received if frame.id is not None]


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory, models_dir: Path) -> Iterator[LiveServer]:
    folder = tmp_path_factory.mktemp("streams") / "data"
    limits = {"TRD_MAX_STREAMS_PER_KEY": "30", "TRD_MAX_STREAMS": "40"}
    with live_server(folder, TRD_API_KEY=ADMIN_KEY, TRD_MODELS=f"{models_dir}/*", **limits) as running:
        yield running


@pytest.fixture
def database(server: LiveServer) -> Iterator[Database]:
    opened = Database(f"sqlite:///{server.log.with_suffix('') / 'trd.db'}")
    yield opened
    opened.dispose()


@pytest.fixture
def job_id(server: LiveServer) -> str:
    with httpx.Client(base_url=server.url, headers=AUTHORIZED) as client:
        headers = {"content-type": "application/jsonl"}
        dataset = client.post("/datasets", content=ROWS, headers=headers).json()["id"]
        body = {"mode": "trd", "student": "large", "teacher": "large", "dataset": dataset}
        return str(client.post("/jobs", json=body).json()["id"])


def test_the_stream_of_a_finished_job_is_complete_and_ends(server: LiveServer, database: Database, job_id: str) -> None:
    add_events(database, job_id, 1200)
    finish_job(database, job_id)
    received = read_stream(f"{server.url}/jobs/{job_id}/events")
    assert numbers(received) == list(range(1, 1203))
    assert received[0].data["message"] == "The job is queued."
    assert (received[-1].event, received[-1].data) == ("end", {"status": "succeeded"})
    assert received[-2].event == "progress"


def test_a_broken_stream_continues_where_it_stopped(server: LiveServer, database: Database, job_id: str) -> None:
    add_events(database, job_id, 30)
    url = f"{server.url}/jobs/{job_id}/events"
    seen: list[int] = []
    with httpx.stream("GET", url, headers=STREAM, timeout=20) as response:
        for frame in frames(response):
            seen.append(frame.id or 0)
            if len(seen) == 10:
                break
    add_events(database, job_id, 5)
    finish_job(database, job_id, JobStatus.FAILED)
    received = read_stream(url, **{"last-event-id": str(seen[-1])})
    assert seen + numbers(received) == list(range(1, 38))
    assert received[-1].data == {"status": "failed"}


def test_nothing_more_to_come_ends_an_event_source(server: LiveServer, database: Database, job_id: str) -> None:
    finish_job(database, job_id)
    url = f"{server.url}/jobs/{job_id}/events"
    assert httpx.get(url, headers={**STREAM, "last-event-id": "2"}).status_code == 204
    assert httpx.get(url, headers={**STREAM, "last-event-id": "two"}).status_code == 422


def test_many_live_streams_get_every_event_in_order(server: LiveServer, database: Database, job_id: str) -> None:
    received: dict[int, list[Frame]] = {}

    def listen(number: int) -> None:
        received[number] = read_stream(f"{server.url}/jobs/{job_id}/events")

    threads = [threading.Thread(target=listen, args=(number,)) for number in range(30)]
    for thread in threads:
        thread.start()
    for _ in range(4):
        add_events(database, job_id, 25)
        time.sleep(0.3)
    finish_job(database, job_id)
    for thread in threads:
        thread.join(30)
    assert len(received) == 30
    for stream in received.values():
        assert numbers(stream) == list(range(1, 103))
        assert stream[-1].event == "end"


def test_a_status_is_sent_while_it_lasts(server: LiveServer, database: Database, job_id: str) -> None:
    with httpx.stream("GET", f"{server.url}/jobs/{job_id}/events", headers=STREAM, timeout=20) as response:
        stream = frames(response)
        assert next(stream).event == "status"
        progress = next(stream)
        assert (progress.event, progress.data["status"], progress.data["step"]) == ("progress", "queued", 0)
        httpx.post(f"{server.url}/jobs/{job_id}/cancel", headers=AUTHORIZED)
        rest = list(stream)
    assert [frame.event for frame in rest] == ["status", "progress", "end"]
    assert rest[-1].data == {"status": "cancelled"}


@contextmanager
def open_stream(url: str, **headers: str) -> Iterator[Iterator[Frame]]:
    with httpx.stream("GET", url, headers={**STREAM, **headers}, timeout=20) as response:
        assert response.status_code == 200, response.read()
        yield frames(response)


def new_key(server: LiveServer) -> tuple[str, dict[str, str]]:
    body = {"name": "reader", "owner": "admin", "scopes": ["read"]}
    made = httpx.post(f"{server.url}/keys", json=body, headers=AUTHORIZED).json()
    return made["id"], {"authorization": f"Bearer {made['key']}"}


def test_a_key_has_so_many_streams_and_the_process_so_many(server: LiveServer, job_id: str) -> None:
    url = f"{server.url}/jobs/{job_id}/events"
    (_, one), (_, other) = new_key(server), new_key(server)
    with ExitStack() as opened:
        streams = [opened.enter_context(open_stream(url, **one)) for _ in range(30)]
        refused = httpx.get(url, headers={**STREAM, **one})
        assert (refused.status_code, refused.json()["error"]["code"]) == (429, "too_many_streams")
        assert "this key has 30 event streams open" in refused.json()["error"]["message"]
        assert int(refused.headers["retry-after"]) > 0
        assert httpx.get(url, headers=one).json()["data"], "pages are not streams"
        streams += [opened.enter_context(open_stream(url, **other)) for _ in range(10)]
        assert (
            "40 event streams are open here" in httpx.get(url, headers={**STREAM, **other}).json()["error"]["message"]
        )
    deadline = time.monotonic() + 20
    while "trd_streams 0" not in httpx.get(f"{server.url}/metrics", headers=AUTHORIZED).text:
        assert time.monotonic() < deadline
        time.sleep(0.1)
    with open_stream(url, **one) as stream:
        assert next(stream).event == "status"


def test_a_stream_ends_soon_after_its_key_is_revoked(
    make_client: MakeClient, sqlite_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("service.events.feed.KEEP_ALIVE_SECONDS", 0.2)
    context = context_of(client := make_client(sqlite_url))
    job_id = submit(client)
    key_id = client.post("/keys", json={"name": "reader", "scopes": ["read"]}).json()["id"]

    async def watch() -> list[bytes]:
        received = []
        async with context.feed.running(), asyncio.timeout(20):
            async for frame in context.feed.stream(job_id, 0, lambda: context.keys.is_good(key_id)):
                received.append(frame)
                if received.count(KEEP_ALIVE) == 3:
                    client.delete(f"/keys/{key_id}")
        return received

    received = asyncio.run(watch())
    assert received.count(KEEP_ALIVE) in (3, 4)
    assert not any(b"event: end" in frame for frame in received), "the job continues"


def test_a_server_that_is_stopped_lets_its_streams_go(tmp_path: Path, models_dir: Path) -> None:
    folder = tmp_path / "data"
    with live_server(folder, TRD_API_KEY=ADMIN_KEY, TRD_MODELS=f"{models_dir}/*") as server:
        with httpx.Client(base_url=server.url, headers=AUTHORIZED) as client:
            dataset = client.post("/datasets", files={"file": ("r.jsonl", ROWS)}).json()["id"]
            body = {"mode": "trd", "student": "large", "teacher": "large", "dataset": dataset}
            job_id = client.post("/jobs", json=body).json()["id"]
        received: list[Frame] = []
        with httpx.stream("GET", f"{server.url}/jobs/{job_id}/events", headers=STREAM, timeout=20) as response:
            stream = frames(response)
            received.append(next(stream))
            began = time.monotonic()
            thread = threading.Thread(target=stop, args=(server.process,))
            thread.start()
            received.extend(stream)
            thread.join(20)
        assert time.monotonic() - began < 10
        assert server.process.returncode is not None
        assert "end" not in [frame.event for frame in received], "the job continues: a client comes back"
