"""Keys that expire and keys that are replaced."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

import pytest
from fastapi.testclient import TestClient
from sqlalchemy import update

from contract.tables import ApiKey
from service.keys import service as keys_service
from tests.service.records import database_of


def status(client: TestClient, key: str) -> int:
    return client.get("/jobs", headers={"authorization": f"Bearer {key}"}).status_code


@pytest.fixture(autouse=True)
def without_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(keys_service, "CACHE_SECONDS", 0.0)


def let_expire(client: TestClient, key_id: str) -> None:
    with database_of(client).write() as session:
        past = datetime.now(UTC) - timedelta(seconds=1)
        session.execute(update(ApiKey).where(ApiKey.id == key_id).values(expires_at=past))


def test_a_rotated_key_works_until_its_grace_ends_and_the_new_one_has_its_rights(client: TestClient) -> None:
    body = {"name": "nightly", "owner": "ann", "scopes": ["read"]}
    old = client.post("/keys", json=body).json()
    new = client.post(f"/keys/{old['id']}/rotate", json={"grace_seconds": 60}).json()
    assert (new["name"], new["owner"], new["scopes"]) == ("nightly", "ann", ["read"])
    assert new["id"] != old["id"]
    assert (new["expires_at"], status(client, old["key"]), status(client, new["key"])) == (None, 200, 200)
    listed = {key["id"]: key for key in client.get("/keys").json()["data"]}
    ends_at = datetime.fromisoformat(listed[old["id"]]["expires_at"])
    assert timedelta(0) < ends_at - datetime.now(UTC) <= timedelta(seconds=60)
    let_expire(client, old["id"])
    assert (status(client, old["key"]), status(client, new["key"])) == (401, 200)


def test_without_grace_the_old_key_ends_at_once(client: TestClient) -> None:
    old = client.post("/keys", json={"name": "leaked"}).json()
    assert client.post(f"/keys/{old['id']}/rotate", json={"grace_seconds": 0}).status_code == 201
    assert status(client, old["key"]) == 401


def test_a_rotation_never_prolongs_a_key(client: TestClient) -> None:
    soon = datetime.now(UTC) + timedelta(seconds=30)
    old = client.post("/keys", json={"name": "short", "expires_at": soon.isoformat()}).json()
    client.post(f"/keys/{old['id']}/rotate", json={"grace_seconds": 86_400})
    (listed,) = [key for key in client.get("/keys").json()["data"] if key["id"] == old["id"]]
    assert datetime.fromisoformat(listed["expires_at"]) == soon


def test_a_key_ends_when_it_was_made_to(client: TestClient) -> None:
    soon = datetime.now(UTC) + timedelta(days=1)
    made = client.post("/keys", json={"name": "short", "expires_at": soon.isoformat()}).json()
    assert status(client, made["key"]) == 200
    let_expire(client, made["id"])
    assert status(client, made["key"]) == 401
    assert client.post(f"/keys/{made['id']}/rotate", json={}).status_code == 404


@pytest.mark.parametrize(
    "body",
    [
        {"name": "k", "expires_at": "2020-01-01T00:00:00Z"},
        {"name": "k", "expires_at": "2099-01-01T00:00:00"},
        {"name": "k", "expires_at": "soon"},
        {"name": "k", "expires_at": 4_000_000_000},
        {"name": "k", "expires_at": "4000000000"},
        {"name": "k", "expires_at": True},
    ],
)
def test_a_key_cannot_expire_before_it_is_made(client: TestClient, body: dict[str, str]) -> None:
    answer = client.post("/keys", json=body)
    assert answer.status_code == 422
    assert "expires_at" in answer.text


@pytest.mark.parametrize("grace", [-1, 8_000_000, "1h", "60", 1.5, False, None])
def test_a_wrong_grace_changes_nothing(client: TestClient, grace: object) -> None:
    old = client.post("/keys", json={"name": "k"}).json()
    assert client.post(f"/keys/{old['id']}/rotate", json={"grace_seconds": grace}).status_code == 422
    assert len(client.get("/keys").json()["data"]) == 1
    assert status(client, old["key"]) == 200


def test_revoked_and_unknown_keys_are_not_rotated(client: TestClient) -> None:
    made = client.post("/keys", json={"name": "k"}).json()
    client.delete(f"/keys/{made['id']}")
    for key_id in (made["id"], "key_unknown", "bootstrap"):
        assert client.post(f"/keys/{key_id}/rotate", json={}).status_code == 404
