"""A missing database and a full disk: the client gets an error that says so, and can try again."""

from __future__ import annotations

import asyncio
import errno
import shutil
import threading
import time
from pathlib import Path

import pytest
from fastapi.testclient import TestClient
from sqlalchemy.exc import OperationalError

from contract.database import Database
from service.events.feed import EventFeed
from service.outages import outage
from tests.outages import closed_to_all, files_up_to
from tests.service.conftest import MakeClient
from tests.service.gate import Gate
from tests.service.records import ROWS, context_of, job_body, submit, upload


def test_a_database_that_is_away_is_no_defect(make_client: MakeClient, postgres_url: str) -> None:
    client = make_client(postgres_url)
    body = job_body(client)
    with closed_to_all(context_of(client).database):
        answers = [client.get("/jobs"), client.post("/jobs", json=body), client.post("/datasets", content=ROWS)]
        assert client.get("/readyz").json()["database"] == "unreachable"
        assert client.get("/healthz").status_code == 200
    for answer in answers[:2]:
        assert (answer.status_code, answer.json()["error"]["code"]) == (503, "database_unavailable")
        assert answer.headers["retry-after"] == "5"
        assert "127.0.0.1" not in answer.text
        assert "SELECT" not in answer.text
    assert client.post("/jobs", json=body).status_code == 201


def test_those_who_ask_all_the_time_make_no_work(client: TestClient, monkeypatch: pytest.MonkeyPatch) -> None:
    looks: list[float] = []
    monkeypatch.setattr(context_of(client).storage, "check", lambda: looks.append(time.monotonic()))
    answers = [client.get("/readyz").json() for _ in range(20)]
    assert len(looks) < 5
    assert all(answer["status"] == "ready" for answer in answers)
    monkeypatch.setattr("service.readiness.LOOK_SECONDS", 0.0)
    time.sleep(1.0)
    num_looks = len(looks)
    client.get("/readyz")
    client.get("/readyz")
    assert len(looks) == num_looks + 2


def test_a_storage_that_hangs_blocks_one_thread_and_is_reported(
    client: TestClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    readiness, gate = context_of(client).readiness, Gate()
    assert set(readiness.parts().values()) == {"ok"}
    monkeypatch.setattr("service.readiness.LOOK_SECONDS", 0.0)
    monkeypatch.setattr(readiness, "_look_at", 0.0)
    monkeypatch.setattr(context_of(client).storage, "check", gate.around(lambda: None, is_after=False))
    first = threading.Thread(target=readiness.parts)
    first.start()
    assert gate.reached.wait(60)
    assert client.get("/readyz").json()["status"] == "ready"
    monkeypatch.setattr("service.readiness.HANGING_SECONDS", 0.0)
    answer = client.get("/readyz")
    assert (answer.status_code, answer.json()["storage"]) == (503, "does not answer")
    gate.opened.set()
    first.join(60)
    assert client.get("/readyz").json()["status"] == "ready"


@pytest.mark.parametrize("as_form", [False, True])
def test_a_full_disk_is_reported_and_keeps_nothing_of_the_upload(
    client: TestClient, tmp_path: Path, as_form: bool
) -> None:
    rows = ROWS * (3 * 2**20 // len(ROWS))
    how = {"files": {"file": ("r.jsonl", rows)}} if as_form else {"content": rows}
    with files_up_to(2**20 + 1000):
        answer = client.post("/datasets", headers={} if as_form else {"content-type": "application/jsonl"}, **how)  # type: ignore[arg-type]
    assert (answer.status_code, answer.json()["error"]["code"]) == (503, "disk_full")
    assert [path for path in (tmp_path / "storage").rglob("*") if path.is_file()] == []
    assert submit(client), "the service continues"


def test_a_dataset_whose_file_is_gone_is_reported(client: TestClient, tmp_path: Path) -> None:
    dataset = upload(client, '{"problem": "1 + 1", "answer": "2"}\n' * 3)
    shutil.rmtree(tmp_path / "storage" / "datasets" / dataset)
    answer = client.get(f"/datasets/{dataset}/preview", params={"model": "small"})
    assert (answer.status_code, answer.json()["error"]["code"]) == (503, "storage_unavailable")


@pytest.mark.parametrize(
    ("error", "code"),
    [
        (OperationalError("INSERT", {}, Exception("database or disk is full")), "disk_full"),
        (OperationalError("INSERT", {}, Exception("database is locked")), "database_unavailable"),
        (OSError(errno.ESTALE, "Stale file handle"), "storage_unavailable"),
        (OSError(errno.EBADF, "Bad file descriptor"), None),
        (ZeroDivisionError(), None),
    ],
)
def test_outages_and_defects_are_distinguished(error: Exception, code: str | None) -> None:
    found = outage(error)
    assert (found.code if found is not None else None) == code


def test_the_feed_outlives_whatever_a_look_raises(sqlite_url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    database = Database(sqlite_url)
    feed = EventFeed(database)
    monkeypatch.setattr("service.events.feed.POLL_SECONDS", 0.01)
    failures = iter([ZeroDivisionError()])
    read_news = feed._read_news

    def failing_once(known: dict[str, int | None]) -> object:
        for failure in failures:
            raise failure
        return read_news(known)

    monkeypatch.setattr(feed, "_read_news", failing_once)

    async def read_to_the_end() -> list[bytes]:
        async with feed.running(), asyncio.timeout(10):
            return [frame async for frame in feed.stream("job_gone", 0)]

    assert asyncio.run(read_to_the_end()) == [], "there is no such job, and that was found out"
    database.dispose()
