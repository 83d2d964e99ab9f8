from __future__ import annotations

import threading
import time
from typing import Any

import httpx
import pytest
from fastapi.testclient import TestClient
from sqlalchemy import event

from service import bodies
from tests.service.records import ROWS, database_of, finish_job, job_body


def test_many_clients_at_once_never_find_the_database_locked(either_client: TestClient) -> None:
    body = job_body(either_client)
    answers: list[httpx.Response] = []

    def upload() -> httpx.Response:
        """Upload a dataset. An owner may have four uploads in progress; further ones are asked to wait."""
        while (answer := either_client.post("/datasets", files={"file": ("r.jsonl", ROWS)})).status_code == 429:
            assert int(answer.headers["retry-after"]) > 0
            time.sleep(0.2)
        return answer

    def use() -> None:
        for _ in range(4):
            created = either_client.post("/jobs", json=body)
            job_id = created.json()["id"]
            answers.append(created)
            answers.append(either_client.post(f"/jobs/{job_id}/pause"))
            answers.append(upload())
            answers.append(either_client.get("/jobs"))
            finish_job(database_of(either_client), job_id)

    threads = [threading.Thread(target=use) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(120)
    assert len(answers) == 8 * 4 * 4
    assert {answer.status_code for answer in answers} == {200, 201}


def test_jobs_that_wait_for_the_database_keep_nobody_else_waiting(client: TestClient) -> None:
    body = job_body(client)
    answers: list[int] = []  # more of them than the framework has threads
    threads = [
        threading.Thread(target=lambda: answers.append(client.post("/jobs", json=body).status_code)) for _ in range(45)
    ]
    with database_of(client).write():
        for thread in threads:
            thread.start()
        time.sleep(0.2)
        assert client.get("/jobs").json()["data"] == []
        assert client.get("/healthz").status_code == 200
        assert answers == []
    for thread in threads:
        thread.join(60)
    assert answers == [201] * 45


def test_a_large_body_is_not_read_on_the_loop_that_serves_everybody(
    client: TestClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    reading = threading.Event()
    go_on = threading.Event()
    parse = bodies.parse_object

    def slow(content: bytes) -> dict[str, Any]:
        reading.set()
        assert go_on.wait(60), "nobody else was served meanwhile"
        return parse(content)

    monkeypatch.setattr(bodies, "parse_object", slow)
    body = {**job_body(client), "metadata": {"note": "x" * bodies.SMALL_BODY_BYTES}}
    request = threading.Thread(target=lambda: client.post("/jobs", json=body))
    request.start()
    assert reading.wait(60)
    assert client.get("/healthz").status_code == 200
    go_on.set()
    request.join(60)
    assert not request.is_alive()


def test_figures_are_read_from_an_index_that_holds_no_spec(client: TestClient) -> None:
    """On SQLite: PostgreSQL's plan depends on how many rows there are."""
    database = database_of(client)
    statements: list[tuple[str, Any]] = []

    def note(_connection: Any, _cursor: Any, statement: str, parameters: Any, *_: Any) -> None:
        if statement.startswith("SELECT"):
            statements.append((statement, parameters))

    event.listen(database.engine, "before_cursor_execute", note)
    assert client.get("/metrics").status_code == 200
    event.remove(database.engine, "before_cursor_execute", note)
    with database.read() as session:
        plans = [
            str(session.connection().exec_driver_sql(f"EXPLAIN QUERY PLAN {statement}", parameters).all())
            for statement, parameters in statements
        ]
    counting, by_queue, _workers = plans
    assert "USING COVERING INDEX ix_jobs_status_deleted_at_id" in counting
    assert "USING COVERING INDEX ix_jobs_waiting" in by_queue
