"""What jobs leave in the database is bounded: specs have a quota and go with their job, and queues are known ones."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from fastapi.testclient import TestClient
from sqlalchemy import select

from contract.tables import Job
from tests.service.conftest import MakeClient, MakeStanding
from tests.service.records import context_of, job_body, submit


@pytest.fixture(scope="module")
def shared(standing: MakeStanding) -> Iterator[TestClient]:
    """One application for the tests of names and queues, which do not look at each other's jobs."""
    with standing() as client:
        yield client


def long_body(client: TestClient, **fields: object) -> dict[str, object]:
    return job_body(client, metadata={"note": "x" * 10_000}, **fields)


def test_a_deleted_job_keeps_no_spec(either_client: TestClient) -> None:
    job_id = either_client.post("/jobs", json=long_body(either_client, name="a secret")).json()["id"]
    either_client.post(f"/jobs/{job_id}/cancel")
    assert either_client.delete(f"/jobs/{job_id}").status_code == 200
    with context_of(either_client).database.read() as session:
        row = session.scalars(select(Job).where(Job.id == job_id)).one()
    assert (row.spec, row.requested, row.spec_bytes) == ({}, None, 0)


def test_a_page_of_jobs_ends_before_its_specs_are_too_many(
    either_client: TestClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A hundred specs of a megabyte took a gigabyte of memory."""
    ids = [either_client.post("/jobs", json=long_body(either_client)).json()["id"] for _ in range(5)]
    monkeypatch.setattr("service.jobs.repository.MAX_PAGE_BYTES", 60_000)
    pages, after = [], None
    while after is None or pages[-1]["has_more"]:
        pages.append(either_client.get("/jobs", params={} if after is None else {"after": after}).json())
        after = pages[-1]["data"][-1]["id"]
    assert [[job["id"] for job in page["data"]] for page in pages] == [ids[:2:-1], ids[2:0:-1], ids[:1]]
    monkeypatch.setattr("service.jobs.repository.MAX_PAGE_BYTES", 1)
    assert len(either_client.get("/jobs").json()["data"]) == 1


def test_an_owners_specs_have_a_quota_that_deletion_gives_back(make_client: MakeClient, database_url: str) -> None:
    client = make_client(database_url, max_stored_spec_bytes=50_000)
    body = long_body(client)
    ids = [client.post("/jobs", json=body).json()["id"] for _ in range(2)]
    refused = client.post("/jobs", json=body)
    assert (refused.status_code, refused.json()["error"]["code"]) == (429, "quota_exceeded")
    assert "delete some jobs" in refused.json()["error"]["message"]
    client.post(f"/jobs/{ids[0]}/cancel")
    client.delete(f"/jobs/{ids[0]}")
    assert client.post("/jobs", json=body).status_code == 201
    assert client.post(f"/jobs/{ids[1]}/clone", json={}).status_code == 429
    assert client.post("/jobs?dry_run=true", json=body).status_code == 200


@pytest.mark.parametrize("queue", ["nobody", "trd-default-7", "celery", "trd-default.reply", "GPU-8", "other "])
def test_a_queue_that_no_worker_serves_is_refused(shared: TestClient, queue: str) -> None:
    answer = shared.post("/jobs", json=job_body(shared, queue=queue))
    if queue.strip() == "other":
        assert answer.status_code == 201, "spaces around it are removed"
        return
    assert (answer.status_code, answer.json()["error"]["param"]) == (422, "queue")
    assert "TRD_QUEUES" in answer.json()["error"]["message"]


def test_known_queues_are_the_operators_and_the_default_one(shared: TestClient) -> None:
    for queue in ("other", "gpu-8", "trd-default"):
        assert shared.get(f"/jobs/{submit(shared, queue=queue)}").json()["queue"] == queue


CONTROLS = [
    "\x1b[2J",
    "\x07",
    "\x9b31m",
    "\x00",
    "a\nb",
    "a\rb",
    "\x7f",
    "\u202e",
    "\u2066",
    "\u200f",
    "\u2028",
    "\x85",
]


@pytest.mark.parametrize("text", CONTROLS)
def test_names_have_no_control_characters(shared: TestClient, text: str) -> None:
    named = f"a{text}b"
    for fields in ({"name": named}, {"tags": [named]}, {"metadata": {named: "x"}}):
        answer = shared.post("/jobs", json=job_body(shared, **fields))
        assert answer.status_code == 422, fields
    assert shared.post("/keys", json={"name": named}).status_code == 422
    uploaded = shared.post("/datasets", files={"file": (named, b'{"problem": "1", "answer": "2"}\n')})
    if uploaded.status_code == 201:
        assert text not in uploaded.json()["filename"]


@pytest.mark.parametrize("name", ["naïve ✓", "日本語", "👩‍🔬 run", "עברית", "a\u00a0b", "tab less"])
def test_other_names_are_kept(shared: TestClient, name: str) -> None:
    assert shared.get(f"/jobs/{submit(shared, name=name)}").json()["name"] == name
