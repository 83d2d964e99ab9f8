"""Streams against a real server: whole, replayed, live, and over when the job or the server is."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import pytest

from contract.database import Database
from contract.job_state import JobStatus
from tests.service.conftest import ADMIN_KEY, AUTHORIZED
from tests.service.live_server import LiveServer, live_server, stop
from tests.service.records import ROWS, add_events, finish_job

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
    with live_server(folder, TRD_API_KEY=ADMIN_KEY, TRD_MODELS=f"{models_dir}/*") as running:
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


def test_a_finished_job_is_told_whole_and_ends(server: LiveServer, database: Database, job_id: str) -> None:
    add_events(database, job_id, 1200)
    finish_job(database, job_id)
    received = read_stream(f"{server.url}/jobs/{job_id}/events")
    assert numbers(received) == list(range(1, 1203))
    assert received[0].data["message"] == "The job is queued."
    assert (received[-1].event, received[-1].data) == ("end", {"status": "succeeded"})
    assert received[-2].event == "progress"


def test_a_broken_stream_goes_on_where_it_stopped(server: LiveServer, database: Database, job_id: str) -> None:
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


def test_a_status_is_told_while_it_lasts(server: LiveServer, database: Database, job_id: str) -> None:
    with httpx.stream("GET", f"{server.url}/jobs/{job_id}/events", headers=STREAM, timeout=20) as response:
        stream = frames(response)
        assert next(stream).event == "status"
        progress = next(stream)
        assert (progress.event, progress.data["status"], progress.data["step"]) == ("progress", "queued", 0)
        httpx.post(f"{server.url}/jobs/{job_id}/cancel", headers=AUTHORIZED)
        rest = list(stream)
    assert [frame.event for frame in rest] == ["status", "progress", "end"]
    assert rest[-1].data == {"status": "cancelled"}


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
        assert "end" not in [frame.event for frame in received], "the job goes on: a client comes back"
