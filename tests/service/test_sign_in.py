"""Sessions of browsers: how they begin, what they may do, and how they end."""

from __future__ import annotations

import re
import threading
from datetime import timedelta

import pytest
from fastapi.testclient import TestClient
from sqlalchemy import select

from contract.tables import BrowserSession
from service.auth import CSRF_HEADER, SESSION_COOKIE
from service.dashboard import sign_in as sign_in_module
from service.keys import sessions
from service.rate_limit import RateLimits
from tests.service.conftest import ADMIN_KEY, AUTHORIZED
from tests.service.records import database_of, submit
from tests.service.test_access import new_key

HTML = {"accept": "text/html"}
ORIGIN = {"origin": "http://testserver"}


@pytest.fixture(autouse=True)
def many_tries(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sign_in_module, "_tries", RateLimits(20))


def browser(client: TestClient) -> TestClient:
    """Make a client of the same application that has no key."""
    return TestClient(client.app, headers=HTML, follow_redirects=False)


def signed_in(client: TestClient, key: str = ADMIN_KEY) -> TestClient:
    visitor = browser(client)
    response = visitor.post("/ui/sign-in", data={"key": key}, headers=ORIGIN)
    assert response.status_code == 303, response.text
    return visitor


def csrf_token(visitor: TestClient) -> dict[str, str]:
    found = re.search(r'name="csrf-token" content="(\w+)"', visitor.get("/").text)
    assert found is not None
    return {CSRF_HEADER: found[1]}


def test_a_page_without_a_session_leads_to_the_form_and_back(client: TestClient) -> None:
    visitor = browser(client)
    refused = visitor.get("/ui/jobs/x?step=3")
    assert (refused.status_code, refused.headers["location"]) == (303, "/ui/sign-in?next=%2Fui%2Fjobs%2Fx%3Fstep%3D3")
    form = visitor.get(refused.headers["location"])
    assert 'value="/ui/jobs/x?step=3"' in form.text
    entered = visitor.post("/ui/sign-in", data={"key": ADMIN_KEY, "next": "/ui/jobs/x?step=3"}, headers=ORIGIN)
    assert (entered.status_code, entered.headers["location"]) == (303, "/ui/jobs/x?step=3")
    cookie = entered.headers["set-cookie"].lower()
    assert "httponly" in cookie
    assert "samesite=lax" in cookie
    assert ADMIN_KEY not in entered.headers["set-cookie"]


@pytest.mark.parametrize("target", ["//evil.test", "https://evil.test", "/\\evil.test", "javascript:1", "/a\nb", ""])
def test_sign_in_leads_only_to_local_paths(client: TestClient, target: str) -> None:
    entered = browser(client).post("/ui/sign-in", data={"key": ADMIN_KEY, "next": target}, headers=ORIGIN)
    assert entered.headers["location"] == "/"


def test_a_wrong_key_opens_nothing(client: TestClient) -> None:
    visitor = browser(client)
    refused = visitor.post("/ui/sign-in", data={"key": "trd_wrong"}, headers=ORIGIN)
    assert refused.status_code == 401
    assert "unknown or revoked" in refused.text
    assert "set-cookie" not in refused.headers
    with database_of(client).read() as session:
        assert session.scalars(select(BrowserSession)).all() == []


def test_pages_have_a_strict_content_security_policy(client: TestClient) -> None:
    for response in (browser(client).get("/ui/sign-in"), signed_in(client).get("/"), signed_in(client).get("/ui/no")):
        policy = response.headers["content-security-policy"]
        assert "default-src 'none'" in policy
        assert "unsafe" not in policy
        assert response.headers["cache-control"] == "no-store"
    assert "frame-ancestors 'none'" in client.get("/jobs").headers["content-security-policy"]


def test_a_session_may_do_what_its_key_may(client: TestClient) -> None:
    key = new_key(client, "ann", "read")["authorization"].removeprefix("Bearer ")
    visitor = signed_in(client, key)
    assert visitor.get("/jobs").status_code == 200
    refused = visitor.post("/jobs", json={}, headers={**csrf_token(visitor), **ORIGIN})
    assert refused.json()["error"]["code"] == "insufficient_scope"
    mine = submit(client)
    assert visitor.get(f"/jobs/{mine}").status_code == 404
    assert mine not in visitor.get("/").text


def test_a_change_needs_the_token_of_the_page_and_its_origin(client: TestClient) -> None:
    job_id = submit(client)
    visitor = signed_in(client)
    token = csrf_token(visitor)
    others = csrf_token(signed_in(client))
    for headers in (
        {},
        ORIGIN,
        token,
        {**token, "origin": "http://evil.test"},
        {**others, **ORIGIN},
    ):
        refused = visitor.post(f"/jobs/{job_id}/cancel", headers=headers)
        assert (refused.status_code, refused.json()["error"]["code"]) == (403, "csrf_failed"), headers
    assert client.get(f"/jobs/{job_id}").json()["status"] == "queued"
    assert visitor.post(f"/jobs/{job_id}/cancel", headers={**token, **ORIGIN}).json()["status"] == "cancelled"


def test_a_session_ends_with_its_key_at_once(client: TestClient) -> None:
    key = new_key(client, "ann")["authorization"].removeprefix("Bearer ")
    visitor = signed_in(client, key)
    assert visitor.get("/jobs").status_code == 200
    client.delete(f"/keys/{client.get('/keys').json()['data'][0]['id']}")
    assert visitor.get("/jobs").json()["error"]["code"] == "session_ended"
    assert visitor.get("/").status_code == 303


def test_a_session_ends_when_its_user_signs_out(client: TestClient) -> None:
    visitor = signed_in(client)
    cookie = visitor.cookies[SESSION_COOKIE]
    for headers in ({}, csrf_token(visitor), {"origin": "http://evil.test"}, {"origin": "null"}):
        assert visitor.post("/ui/sign-out", headers=headers).status_code == 403, headers
    assert visitor.get("/").status_code == 200
    assert visitor.post("/ui/sign-out", headers=ORIGIN).headers["location"] == "/ui/sign-in"
    assert visitor.get("/").status_code == 303
    assert visitor.post("/ui/sign-out", headers=ORIGIN).status_code == 303, "a second tab of the same session"
    assert visitor.get("/", headers={"cookie": f"{SESSION_COOKIE}={cookie}"}).status_code == 303


def test_a_session_expires(client: TestClient, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sessions, "LIFETIME", timedelta(seconds=-1))
    assert signed_in(client).get("/").status_code == 303
    monkeypatch.undo()
    signed_in(client)
    with database_of(client).read() as session:
        assert len(session.scalars(select(BrowserSession)).all()) == 1  # the expired one is gone


def test_neither_token_nor_key_is_stored(client: TestClient) -> None:
    visitor = signed_in(client)
    with database_of(client).read() as session:
        row = session.scalars(select(BrowserSession)).one()
    stored = f"{row.digest} {row.key_digest}"
    assert visitor.cookies[SESSION_COOKIE] not in stored
    assert ADMIN_KEY not in stored


def test_a_link_signs_in_once(either_client: TestClient) -> None:
    path = either_client.post("/ui/sign-in-links").json()["path"]
    entered = [browser(either_client) for _ in range(4)]
    answers: list[int] = []
    threads = [threading.Thread(target=lambda v=v: answers.append(v.get(path).status_code)) for v in entered]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(answers) == [303, 401, 401, 401]
    assert sorted(v.get("/").status_code for v in entered) == [200, 303, 303, 303]


def test_only_a_key_makes_a_link_and_an_expired_one_is_refused(
    client: TestClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    visitor = signed_in(client)
    refused = visitor.post("/ui/sign-in-links", headers={**csrf_token(visitor), **ORIGIN})
    assert refused.status_code == 403
    monkeypatch.setattr(sessions, "LINK_LIFETIME", timedelta(seconds=-1))
    path = client.post("/ui/sign-in-links", headers=AUTHORIZED).json()["path"]
    assert browser(client).get(path).status_code == 401


def test_attempts_are_limited(client: TestClient, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sign_in_module, "_tries", RateLimits(3))
    visitor = browser(client)
    answers = [visitor.post("/ui/sign-in", data={"key": "no"}, headers=ORIGIN).status_code for _ in range(4)]
    assert answers == [401, 401, 401, 429]


def test_a_client_that_reads_no_pages_gets_json(client: TestClient) -> None:
    assert client.get("/").json()["error"]["code"] == "not_found"
    assert client.get("/", headers={"authorization": ""}).status_code == 401
    assert browser(client).get("/jobs").json()["error"]["code"] == "missing_api_key"


def test_an_error_is_a_page_for_a_browser(client: TestClient) -> None:
    response = signed_in(client).get("/ui/<script>alert(1)</script>")
    assert (response.status_code, response.headers["content-type"]) == (404, "text/html; charset=utf-8")
    assert "<script>alert" not in response.text
