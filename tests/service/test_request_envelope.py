"""Errors, ids and limits around every request."""

from __future__ import annotations

import json
import logging
from typing import Any

import pytest
from fastapi.testclient import TestClient

from contract.json_logs import JsonFormatter
from service.jobs.service import JobService
from tests.service.conftest import AUTHORIZED, MakeClient
from tests.service.records import submit


def assert_error_shape(document: dict[str, Any]) -> None:
    assert set(document) == {"error"}
    assert {"message", "type", "param", "code"} <= set(document["error"])
    assert document["error"]["message"]
    assert document["error"]["code"]


JSON = {"content-type": "application/json"}
SPEC = b'{"mode": "opsd", "student": "small", "dataset": "ds_1"}'


@pytest.mark.parametrize(
    ("method", "path", "content", "headers", "status", "code"),
    [
        ("GET", "/nothing", b"", {}, 404, "not_found"),
        ("PUT", "/jobs", b"", {}, 405, "method_not_allowed"),
        ("POST", "/jobs", b"{", JSON, 422, "invalid_json"),
        ("POST", "/jobs", b"", JSON, 422, "invalid_json"),
        ("POST", "/jobs", b"[]", JSON, 422, "invalid_json"),
        ("POST", "/jobs", b"NaN", JSON, 422, "invalid_json"),
        ("POST", "/jobs", b'{"a": NaN}', JSON, 422, "invalid_json"),
        ("POST", "/jobs", b"\xff", JSON, 422, "invalid_json"),
        ("POST", "/jobs", b'{"name": "\xed\xa0\x80"}', JSON, 422, "invalid_json"),
        ("POST", "/jobs", b'{"name": "\\ud800"}', JSON, 422, "invalid_json"),
        ("POST", "/jobs", b'{"name": "a\\u0000b"}', JSON, 422, "invalid_json"),
        ("POST", "/jobs", b'{"a":' * 5000, JSON, 422, "invalid_json"),
        ("POST", "/jobs", b"{}", {"content-type": "text/plain"}, 415, "unsupported_media_type"),
        ("POST", "/jobs", b"{}", JSON, 422, "invalid_spec"),
        ("POST", "/jobs?dry_run=perhaps", SPEC, JSON, 422, "invalid_value"),
        ("POST", "/jobs", b" " * (2**20 + 1), JSON, 413, "payload_too_large"),
        ("GET", "/jobs?after=%00", b"", {}, 422, "invalid_value"),
        ("GET", "/jobs/%00", b"", {}, 422, "invalid_value"),
        ("GET", "/jobs", b"", {"x-long": "x" * 40_000}, 413, "payload_too_large"),
        ("POST", "/jobs", SPEC, {**JSON, "idempotency-key": "k" * 256}, 422, "invalid_value"),
        ("GET", "/jobs/x/events?after=99999999999999999999", b"", {}, 422, "invalid_value"),
    ],
)
def test_every_refusal_has_our_shape(
    shared_client: TestClient, method: str, path: str, content: bytes, headers: dict[str, str], status: int, code: str
) -> None:
    response = shared_client.request(method, path, content=content, headers=headers)
    assert (response.status_code, response.json()["error"]["code"]) == (status, code)
    assert_error_shape(response.json())
    assert response.headers["x-request-id"].startswith("req_")


def test_an_answer_of_405_says_what_is_allowed(shared_client: TestClient) -> None:
    assert "POST" in shared_client.put("/jobs").headers["allow"]


def test_a_defect_is_an_error_of_ours_too(
    client: TestClient, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def broken(*_: object) -> None:
        raise ZeroDivisionError("secret detail")

    monkeypatch.setattr(JobService, "show", broken)
    monkeypatch.setattr(logging.getLogger("service"), "propagate", True)
    response = client.get("/jobs/job_1", headers={"x-request-id": "mine-1"})
    assert response.status_code == 500
    assert_error_shape(response.json())
    assert "secret" not in response.text
    assert "mine-1" in response.json()["error"]["message"]
    assert any(record.exc_info and record.request_id == "mine-1" for record in caplog.records)  # type: ignore[attr-defined]


def test_a_request_id_is_taken_over_where_it_is_harmless(shared_client: TestClient) -> None:
    assert shared_client.get("/healthz", headers={"x-request-id": "a.b-c_1"}).headers["x-request-id"] == "a.b-c_1"
    for harmful in ("a b", "x" * 200, 'a"b', ""):
        given = shared_client.get("/healthz", headers={"x-request-id": harmful}).headers["x-request-id"]
        assert given.startswith("req_")


def test_a_body_may_say_nothing_of_its_length(make_client: MakeClient, sqlite_url: str) -> None:
    client = make_client(sqlite_url, max_body_bytes=1000)
    response = client.post("/jobs", content=iter([b"x" * 600] * 3), headers=JSON)
    assert (response.status_code, response.json()["error"]["code"]) == (413, "payload_too_large")


def test_the_log_is_json_and_holds_no_key(client: TestClient) -> None:
    lines: list[str] = []

    class Keep(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            lines.append(self.format(record))

    handler = Keep()
    handler.setFormatter(JsonFormatter())
    logging.getLogger("service").addHandler(handler)
    submit(client)
    client.get("/jobs?after=secret-in-query")
    logging.getLogger("service").removeHandler(handler)
    documents = [json.loads(line) for line in lines]
    assert {document["path"] for document in documents if "path" in document} == {"/datasets", "/jobs"}
    assert all(document["request_id"] for document in documents if document["logger"] == "service.requests")
    assert AUTHORIZED["authorization"].split()[1] not in "".join(lines)
    assert "secret-in-query" not in "".join(lines)
