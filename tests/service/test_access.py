"""Keys, scopes and owners."""

from __future__ import annotations

import re
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from fastapi.routing import APIRoute
from fastapi.testclient import TestClient
from sqlalchemy import select
from starlette.routing import BaseRoute, Mount, Route

from contract.tables import ApiKey
from service.auth import PUBLIC_PATHS, SIGN_IN_PATH, SIGN_OUT_PATH, RequireScope
from service.keys import service as keys_service
from tests.service.conftest import AUTHORIZED, MakeClient
from tests.service.records import add_checkpoint, database_of, job_body, submit, upload


def all_routes(routes: list[BaseRoute], prefix: str = "") -> Iterator[tuple[str, str]]:
    """Yield (method, path) of every route, also of mounted applications."""
    for route in routes:
        if isinstance(route, Mount):
            yield from all_routes(list(route.routes), prefix + route.path)
        else:
            assert isinstance(route, Route), f"{route} is of a kind that this test does not know"
            for method in route.methods or ["GET"]:
                yield method, prefix + route.path


def routes_of(client: TestClient) -> list[tuple[str, str]]:
    return list(all_routes(client.app.routes))  # type: ignore[attr-defined]


def test_every_route_refuses_without_a_key(shared_client: TestClient) -> None:
    routes = routes_of(shared_client)
    assert len(routes) > 30
    for method, path in routes:
        if path in PUBLIC_PATHS:
            continue
        for headers in ({}, {"authorization": "Bearer wrong"}, {"authorization": "Basic YTpi"}):
            response = shared_client.request(
                method, re.sub(r"{[^}]+}", "x", path), headers={"authorization": "", **headers}
            )
            assert response.status_code == 401, (method, path)
            assert response.headers["www-authenticate"] == "Bearer"
            if method != "HEAD":
                assert response.json()["error"]["type"] == "authentication_error"


def test_a_path_that_does_not_exist_is_behind_the_gate_too(shared_client: TestClient) -> None:
    assert shared_client.get("/nothing", headers={"authorization": ""}).status_code == 401
    assert shared_client.get("/nothing").status_code == 404
    assert shared_client.get("/healthz/", headers={"authorization": ""}, follow_redirects=False).status_code == 401


def test_the_public_paths_need_no_key(shared_client: TestClient) -> None:
    for path in PUBLIC_PATHS - {SIGN_OUT_PATH}:
        assert shared_client.get(path, headers={"authorization": ""}).status_code == 200


def new_key(client: TestClient, owner: str, *scopes: str) -> dict[str, str]:
    """Return headers with a fresh key."""
    body = {"name": "test", "owner": owner, "scopes": list(scopes) or ["submit"]}
    response = client.post("/keys", json=body, headers=AUTHORIZED)
    assert response.status_code == 201, response.text
    return {"authorization": f"Bearer {response.json()['key']}"}


def test_a_key_is_shown_once_and_stored_as_its_digest(either_client: TestClient) -> None:
    created = either_client.post("/keys", json={"name": "mine", "scopes": ["read", "submit"]}).json()
    assert created["key"].startswith("trd_")
    assert (created["owner"], created["scopes"]) == ("admin", ["read", "submit"])
    listed = either_client.get("/keys").json()["data"]
    assert listed == [{name: value for name, value in created.items() if name != "key"}]
    with database_of(either_client).read() as session:
        row = session.scalars(select(ApiKey)).one()
    stored = " ".join(str(getattr(row, column.name)) for column in ApiKey.__table__.columns)
    assert created["key"][4:] not in stored


def test_a_revoked_key_is_refused_at_once(either_client: TestClient) -> None:
    headers = new_key(either_client, "ann")
    (key,) = either_client.get("/keys").json()["data"]
    assert either_client.get("/jobs", headers=headers).status_code == 200
    revoked = either_client.delete(f"/keys/{key['id']}").json()
    assert revoked["revoked_at"] is not None
    assert either_client.get("/jobs", headers=headers).status_code == 401
    assert either_client.delete(f"/keys/{key['id']}").json() == revoked
    assert either_client.delete("/keys/key_none").status_code == 404


def test_another_process_refuses_a_revoked_key_within_seconds(
    make_client: MakeClient, sqlite_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(keys_service, "CACHE_SECONDS", 0.2)
    one, other = make_client(sqlite_url), make_client(sqlite_url)
    headers = new_key(one, "ann")
    assert other.get("/jobs", headers=headers).status_code == 200
    (key,) = one.get("/keys").json()["data"]
    one.delete(f"/keys/{key['id']}")
    time.sleep(0.25)
    assert other.get("/jobs", headers=headers).status_code == 401


@pytest.mark.parametrize(
    ("scope", "allowed"),
    [("read", {"GET"}), ("submit", {"GET", "POST"}), ("admin", {"GET", "POST", "KEYS"})],
)
def test_a_scope_includes_those_below_it(client: TestClient, scope: str, allowed: set[str]) -> None:
    headers = new_key(client, "ann", scope)
    answers = {
        "GET": client.get("/jobs", headers=headers),
        "POST": client.post("/jobs", headers=headers, json={}),
        "KEYS": client.get("/keys", headers=headers),
    }
    for name, response in answers.items():
        if name in allowed:
            assert response.status_code != 403
        else:
            assert (response.status_code, response.json()["error"]["code"]) == (403, "insufficient_scope")
            assert f"this key has {scope}" in response.json()["error"]["message"]


OF_READERS = {SIGN_IN_PATH, SIGN_OUT_PATH, "/ui/sign-in-links", "/ui/jobs/changes", "/view", "/ui/view/take"}
"""The caller's own session and tabs, and a question that is too long for an address."""


def test_every_route_that_changes_something_needs_more_than_reading(client: TestClient) -> None:
    headers = new_key(client, "ann", "read")
    changing = [(m, p) for m, p in routes_of(client) if m in ("POST", "PUT", "PATCH", "DELETE")]
    assert len(changing) >= 10
    for method, path in changing:
        if path in OF_READERS:
            continue
        response = client.request(method, re.sub(r"{[^}]+}", "x", path), headers=headers)
        assert response.status_code == 403, (method, path)


def test_every_route_has_a_scope(shared_client: TestClient) -> None:
    for route in shared_client.app.routes:  # type: ignore[attr-defined]
        if isinstance(route, APIRoute) and route.path not in PUBLIC_PATHS:
            calls = [dependency.call for dependency in route.dependant.dependencies]
            assert any(isinstance(call, RequireScope) for call in calls), route.path


def test_another_owners_objects_are_not_there(either_client: TestClient, tmp_path: Path) -> None:
    client = either_client
    job_id, dataset = submit(client), upload(client)
    add_checkpoint(client, tmp_path / "storage", job_id, 4, {"model/config.json": b"{}"})
    stranger = new_key(client, "stranger", "admin")
    ids = {"job_id": job_id, "dataset_id": dataset, "step": "4", "name": "model/config.json", "trajectory_id": "0:0"}
    tried = 0
    for method, path in routes_of(client):
        parameters = re.findall(r"{(\w+)(?::path)?}", path)
        if not parameters or not {"job_id", "dataset_id"} & set(parameters):
            continue
        address = re.sub(r"{(\w+)(?::path)?}", lambda match: ids[match[1]], path)
        query = {"model": "small"} if path.endswith("/preview") else {}
        question = {"messages": [{"role": "user", "content": "1+1"}]} if path.endswith("/chat") else None
        response = client.request(method, address, params=query, headers=stranger, json=question)
        assert response.status_code == 404, (method, path)
        tried += 1
    assert tried >= 18
    assert client.get("/jobs", headers=stranger).json()["data"] == []
    assert client.get("/datasets", headers=stranger).json()["data"] == []
    response = client.post("/jobs", json=job_body(client, dataset=dataset), headers=stranger)
    assert response.json()["error"]["code"] == "dataset_not_found"
    assert client.get(f"/jobs/{job_id}").json()["status"] == "queued"


def test_idempotency_keys_are_each_owners_own(client: TestClient) -> None:
    headers = new_key(client, "ann")
    mine = client.post("/jobs", json=job_body(client), headers={"idempotency-key": "k"}).json()["id"]
    theirs = upload(client, **headers)
    body = job_body(client, dataset=theirs)
    response = client.post("/jobs", json=body, headers={**headers, "idempotency-key": "k"})
    assert response.status_code == 201
    assert response.json()["id"] != mine


@pytest.mark.parametrize(
    "body",
    [
        {"name": ""},
        {"name": " "},
        {"name": " " * 9 + "x" * 195},
        {"name": "x", "scopes": []},
        {"name": "x", "scopes": ["root"]},
        {"name": "x", "owner": "a b"},
        {},
    ],
)
def test_a_wrong_key_request_is_refused(shared_client: TestClient, body: dict[str, object]) -> None:
    response = shared_client.post("/keys", json=body)
    assert (response.status_code, response.json()["error"]["code"]) == (422, "invalid_value")
