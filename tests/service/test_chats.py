"""Chats with checkpoints, as the service sees them: a scripted worker claims and answers."""

from __future__ import annotations

import json
import threading
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
from fastapi.testclient import TestClient
from sqlalchemy import select

from contract.job_state import JobStatus
from contract.messages import DEFAULT_QUEUE
from contract.tables import ChatAnswer, Job, Worker
from service.chats import service as chats
from service.chats.schemas import Question
from tests.service.records import Source, add_checkpoint, context_of, database_of, set_job, submit
from tests.service.test_access import new_key
from worker.chats import repository as worker_side

ASK: dict[str, Any] = {"messages": [{"role": "user", "content": "1+1"}]}


@pytest.fixture
def job_id(either_client: TestClient, tmp_path: Path) -> str:
    job_id = submit(either_client)
    add_checkpoint(database_of(either_client), tmp_path / "storage", job_id, 4, {"model/config.json": b"{}"})
    return job_id


def owner_of(client: TestClient, job_id: str) -> str:
    with database_of(client).read() as session:
        return session.scalars(select(Job.owner).where(Job.id == job_id)).one()


def parts_of(response: Any) -> list[dict[str, Any]]:
    lines = response.text.splitlines()
    return [json.loads(line.removeprefix("data: ")) for line in lines if line.startswith("data: ")]


def scripted_worker(
    source: Source, *texts: str, end: dict[str, Any] | None, queue: str = DEFAULT_QUEUE
) -> threading.Thread:
    """Claim the next answer, append texts and end it; without an end it is lost."""

    def work() -> None:
        database, claimed = database_of(source), None
        while claimed is None:
            with database.write() as session:
                claimed = worker_side.claim(session, queues=[queue], worker="w", lease_seconds=1.0)
        for i in range(len(texts)):
            with database.write() as session:
                assert worker_side.record(session, claimed, 1.0, is_loaded=True, text="".join(texts[: i + 1]))
        if end is not None:
            with database.write() as session:
                assert worker_side.record(session, claimed, 1.0, end=end)

    thread = threading.Thread(target=work)
    thread.start()
    return thread


def test_an_answer_is_streamed_and_then_forgotten(either_client: TestClient, job_id: str) -> None:
    worker = scripted_worker(either_client, "1+1 ", "<b>is 2</b>", end={"num_tokens": 4, "is_truncated": False})
    response = either_client.post(f"/jobs/{job_id}/checkpoints/4/chat", json=ASK)
    worker.join()
    assert response.headers["content-type"].startswith("text/event-stream")
    parts = parts_of(response)
    assert "".join(part["text"] for part in parts if part["object"] == "answer.piece") == "1+1 <b>is 2</b>"
    assert parts[-1] == {"object": "answer.end", "num_tokens": 4, "is_truncated": False, "error": None}
    with database_of(either_client).read() as session:
        assert session.scalars(select(ChatAnswer)).all() == []


def test_a_lost_worker_and_a_deleted_answer_end_the_stream(either_client: TestClient, job_id: str) -> None:
    worker = scripted_worker(either_client, "half", end=None)
    last = parts_of(either_client.post(f"/jobs/{job_id}/checkpoints/latest/chat", json=ASK))[-1]
    worker.join()
    assert "was lost" in last["error"]


def test_the_wait_says_why(client: TestClient, tmp_path: Path) -> None:
    job_id = submit(client)
    add_checkpoint(database_of(client), tmp_path / "storage", job_id, 4, {"model/config.json": b"{}"})
    context, now = context_of(client), datetime.now(UTC)
    first, second = (context.chats.ask(owner_of(client, job_id), job_id, "4", Question(**ASK)) for _ in range(2))

    def why(answer: str) -> Any:
        return context.chats._look(answer, now, False)[1]

    assert "No worker runs" in why(first).message
    row = {"queues": [DEFAULT_QUEUE], "findings": None, "started_at": now, "expires_at": now + chats.READ_FOR}
    with context.database.write() as session:
        session.add(Worker(name="w", device_kind=None, **row))
    assert "A free worker" in why(first).message
    assert (why(second).position, why(second).message) == (2, "1 answers come before this one.")
    set_job(client, job_id, status=JobStatus.RUNNING, lease_owner="w")
    assert "all 1 of the queue trd-default are busy with jobs" in why(first).message


def test_what_cannot_be_asked_is_refused(client: TestClient, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    job_id = submit(client)
    add_checkpoint(database_of(client), tmp_path / "storage", job_id, 4, {"model/config.json": b"{}"})
    alone = submit(client, mode="opsd", teacher=None)
    add_checkpoint(database_of(client), tmp_path / "storage", alone, 4, {"model/config.json": b"{}"})
    address = f"/jobs/{job_id}/checkpoints/4/chat"
    other, reader = new_key(client, "ann", "submit"), new_key(client, "ann", "read")
    for path, body, headers, status, param in (
        (address, ASK, other, 404, "job_id"),
        (f"/jobs/{job_id}/checkpoints/5/chat", ASK, {}, 404, "step"),
        (address, ASK, reader, 403, None),
        (address, {"messages": []}, {}, 422, "messages"),
        (address, {"messages": [{"role": "assistant", "content": "x"}]}, {}, 422, None),
        (address, {"messages": [{"role": "user", "content": "x" * 64_001}]}, {}, 422, "messages.0.content"),
        (address, {**ASK, "max_new_tokens": 5000}, {}, 422, "max_new_tokens"),
        (f"/jobs/{alone}/checkpoints/4/chat", {**ASK, "model": "teacher"}, {}, 422, "model"),
    ):
        refused = client.post(path, json=body, headers=headers)
        found = refused.json()["error"]
        assert (refused.status_code, found["param"]) == (status, param), found
    monkeypatch.setattr(chats, "MAX_OPEN", 0)
    refused = client.post(address, json=ASK)
    assert (refused.status_code, "answers open" in refused.text) == (429, True)


def test_answers_that_nobody_reads_are_not_generated(either_client: TestClient, job_id: str) -> None:
    context = context_of(either_client)
    owner = owner_of(either_client, job_id)
    answer = context.chats.ask(owner, job_id, "4", Question(**ASK))
    with context.database.write() as session:
        claimed = worker_side.claim(session, queues=[DEFAULT_QUEUE], worker="w", lease_seconds=9.0)
    assert claimed is not None
    with context.database.write() as session:
        row = session.get(ChatAnswer, answer)
        assert row is not None
        row.wanted_until = datetime.now(UTC) - chats.READ_FOR
    with context.database.write() as session:
        assert not worker_side.record(session, claimed, 9.0, text="x")
        assert not worker_side.is_waiting(session, [DEFAULT_QUEUE])
    context.chats.ask(owner, job_id, "4", Question(**ASK))
    with context.database.read() as session:
        assert session.get(ChatAnswer, answer) is None
