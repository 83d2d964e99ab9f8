"""The audit log: who did what is stored with what was done, and only admins read it."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from fastapi.testclient import TestClient
from sqlalchemy import text
from sqlalchemy.exc import OperationalError

from contract.job_state import JobStatus
from service.webhooks import repository as stored_webhooks
from tests.service.conftest import MakeClient
from tests.service.records import database_of, finish_job, job_body, submit, upload


def entries(client: TestClient, **query: Any) -> list[dict[str, Any]]:
    answer = client.get("/audit", params={"limit": 100, **query})
    assert answer.status_code == 200, answer.text
    return list(reversed(answer.json()["data"]))


def actions(client: TestClient, **query: Any) -> list[tuple[str, str]]:
    return [(entry["action"], entry["target"]) for entry in entries(client, **query)]


def key_of(client: TestClient, owner: str, scope: str = "submit") -> tuple[str, dict[str, str]]:
    made = client.post("/keys", json={"name": "test", "owner": owner, "scopes": [scope]}).json()
    return made["id"], {"authorization": f"Bearer {made['key']}"}


def test_a_jobs_life_is_recorded_with_key_and_request(client: TestClient) -> None:
    key_id, as_ann = key_of(client, "ann")
    client.headers |= as_ann
    body = job_body(client)
    dataset = body["dataset"]
    answer = client.post("/jobs", json=body, headers={"x-request-id": "my-request"})
    job = answer.json()["id"]
    for action in ("pause", "resume", "cancel", "cancel"):
        assert client.post(f"/jobs/{job}/{action}").status_code == 200
    clone = client.post(f"/jobs/{job}/clone", json={}).json()["id"]
    assert client.delete(f"/jobs/{job}").status_code in (200, 204)
    as_admin = client.app.state.context.settings.api_key  # type: ignore[attr-defined]
    client.headers["authorization"] = f"Bearer {as_admin}"
    assert actions(client, owner="ann") == [
        ("dataset.create", dataset),
        ("job.create", job),
        ("job.pause", job),
        ("job.resume", job),
        ("job.cancel", job),
        ("job.create", clone),
        ("job.delete", job),
    ]
    created = entries(client, target=job)[0]
    assert created["key_id"] == key_id
    assert created["request_id"] == "my-request"


def test_what_was_refused_or_failed_is_not_recorded(client: TestClient, monkeypatch: pytest.MonkeyPatch) -> None:
    before = entries(client)
    body = job_body(client)
    assert client.post("/jobs", json={**body, "student": "no-such-model"}).status_code == 422
    assert client.post("/jobs/job_1/cancel").status_code == 404
    assert client.post("/jobs?dry_run=true", json=body).status_code == 200
    monkeypatch.setattr(stored_webhooks, "count", lambda *_: 20)
    assert client.post("/webhooks", json={"url": "https://example.com/x"}).status_code in (422, 429)
    assert actions(client)[len(before) :] == [("dataset.create", body["dataset"])]


def test_an_entry_and_its_change_are_one_transaction(client: TestClient, monkeypatch: pytest.MonkeyPatch) -> None:
    """If the entry cannot be written, nothing is changed."""

    def fails(*_: Any, **__: Any) -> None:
        raise OperationalError("insert", {}, Exception("disk"))

    job = submit(client)
    monkeypatch.setattr("service.jobs.service.record", fails)
    assert client.post(f"/jobs/{job}/cancel").status_code == 503
    assert client.get(f"/jobs/{job}").json()["status"] == "queued"
    monkeypatch.setattr("service.jobs.repository.INSERT_ENTRY", text("INSERT INTO no_such_table VALUES (:id)"))
    assert client.post("/jobs", json=job_body(client)).status_code == 503
    assert len(client.get("/jobs").json()["data"]) == 1


def test_downloads_are_recorded_once(make_client: MakeClient, sqlite_url: str, tmp_path: Any) -> None:
    from tests.service.records import add_checkpoint

    client = make_client(sqlite_url)
    job = submit(client)
    storage = client.app.state.context.settings.storage_url  # type: ignore[attr-defined]
    add_checkpoint(client, storage, job, 4, {"model/a.bin": b"0123456789"})
    path = f"/jobs/{job}/checkpoints/4/files/model/a.bin"
    assert client.get(path).content == b"0123456789"
    assert client.get(path, headers={"range": "bytes=5-"}).status_code == 206
    assert client.head(path).status_code == 200
    etag = client.get(path, headers={"range": "bytes=0-3"}).headers["etag"]
    assert client.get(path, headers={"if-none-match": etag}).status_code == 304
    assert client.get(f"/jobs/{job}/checkpoints/latest/archive?folder=model").status_code == 200
    dataset = upload(client)
    assert client.get(f"/v1/files/{dataset}/content").status_code == 200
    downloads = [(action, target) for action, target in actions(client) if action.endswith("download")]
    assert downloads == [
        ("checkpoint.download", f"{job}/4/model/a.bin"),
        ("checkpoint.download", f"{job}/4/model/a.bin"),
        ("checkpoint.download", f"{job}/4"),
        ("dataset.download", dataset),
    ]


def test_keys_and_sessions_are_recorded_without_their_secrets(client: TestClient) -> None:
    key_id, as_ann = key_of(client, "ann", "admin")
    path = client.post("/ui/sign-in-links", headers=as_ann).json()["path"]
    client.get(path, headers={"authorization": ""}, follow_redirects=False)
    client.cookies.clear()
    rotated = client.post(f"/keys/{key_id}/rotate", json={"grace_seconds": 0}).json()
    client.delete(f"/keys/{rotated['id']}")
    found = entries(client)
    assert [entry["action"] for entry in found] == [
        "key.create",
        "session.link",
        "session.open",
        "key.rotate",
        "key.revoke",
    ]
    assert (found[2]["owner"], found[2]["key_id"]) == ("ann", key_id)
    assert rotated["key"] not in str(found)
    assert as_ann["authorization"].split()[1] not in str(found)


def test_only_admins_read_it_page_by_page_and_filtered(client: TestClient) -> None:
    upload(client), submit(client)
    for scope in ("read", "submit"):
        _, headers = key_of(client, "ann", scope)
        assert client.get("/audit", headers=headers).status_code == 403
    first = client.get("/audit?limit=2").json()
    second = client.get("/audit", params={"after": first["data"][-1]["id"]}).json()
    ids = [entry["id"] for entry in (*first["data"], *second["data"])]
    assert first["has_more"]
    assert ids == sorted(ids, reverse=True)
    assert len(set(ids)) == len(ids) >= 4
    assert {action for action, _ in actions(client, action="key.create")} == {"key.create"}
    tomorrow = (datetime.now(UTC) + timedelta(days=1)).isoformat()
    assert actions(client, since=tomorrow) == []
    for query in (
        {"action": "job.eat"},
        {"since": "2026-01-01T00:00:00"},
        {"since": "0.5"},
        {"since": "1700000000"},
        {"limit": "0"},
        {"target": "x" * 501},
    ):
        assert client.get("/audit", params=query).status_code == 422, query


def test_every_deletion_is_recorded(client: TestClient) -> None:
    dataset = upload(client)
    assert client.delete(f"/datasets/{dataset}").status_code in (200, 204)
    job = submit(client)
    finish_job(database_of(client), job, JobStatus.FAILED)
    client.delete(f"/jobs/{job}")
    assert {("dataset.delete", dataset), ("job.delete", job)} <= set(actions(client))
