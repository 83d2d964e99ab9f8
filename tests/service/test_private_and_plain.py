"""Answers are never guessed to be pages, logs keep no keys, and the data folder is its user's alone."""

from __future__ import annotations

import json
import logging
import stat
from contextlib import ExitStack
from pathlib import Path

import httpx
import pytest
from fastapi.testclient import TestClient
from sqlalchemy import select

from contract.database import Database
from contract.model_catalog import ModelRefusedError, read_facts
from contract.storage import Storage
from contract.tables import Job
from service.app import _without_query
from tests.otlp_collector import collector
from tests.service.conftest import ADMIN_KEY, write_model
from tests.service.live_server import live_server
from tests.worker.workbench import eventually


@pytest.mark.parametrize(
    "path", ["/healthz", "/jobs", "/datasets", "/openapi.json", "/nothing", "/jobs/none", "/metrics"]
)
def test_every_answer_says_that_its_type_is_not_to_be_guessed(client: TestClient, path: str) -> None:
    assert client.get(path).headers["x-content-type-options"] == "nosniff"


def test_the_access_log_keeps_no_query() -> None:
    args = ("127.0.0.1:5", "GET", "/jobs?api_key=secret&x", "1.1", 200)
    record = logging.LogRecord("uvicorn.access", logging.INFO, "", 1, '%s - "%s %s HTTP/%s" %d', args, None)
    assert _without_query(record)
    assert record.getMessage() == '127.0.0.1:5 - "GET /jobs HTTP/1.1" 200'


def test_a_servers_log_is_json_with_ids_and_its_spans_are_sent_while_the_collector_is_there(tmp_path: Path) -> None:
    of_client, bearer = "0af7651916cd43dd8448eb211c80319c", {"authorization": f"Bearer {ADMIN_KEY}"}
    with ExitStack() as stack:
        received = stack.enter_context(collector())
        keys = {"TRD_API_KEY": ADMIN_KEY, "OTEL_EXPORTER_OTLP_HEADERS": "authorization=Bearer%20s3cret-of-collector"}
        server = stack.enter_context(live_server(tmp_path / "data", log_level="info", **keys, **received.environment))
        jsonl = {**bearer, "content-type": "application/jsonl"}
        rows = httpx.post(f"{server.url}/datasets", content=b'{"problem": "1", "answer": "2"}\n' * 9, headers=jsonl)
        job = {"mode": "opd", "student": "tiny-student", "teacher": "tiny-teacher", "dataset": rows.json()["id"]}
        traced = {**bearer, "x-request-id": "submits", "traceparent": f"00-{of_client}-b7ad6b7169203331-01"}
        created = httpx.post(f"{server.url}/jobs", json=job, headers=traced)
        assert created.status_code == 201, created.text
        (submission,) = eventually(lambda: received.named("submit job"))
        (request,) = eventually(lambda: received.named("POST /jobs"))
        received.shutdown()
        received.server_close()  # from here on nobody listens
        for query in ("key=s3cret", "a?b=s3cret", "%73=s3cret"):
            httpx.get(f"{server.url}/jobs?{query}", headers={"x-request-id": "mine"})
        httpx.get(f"{server.url}/no%0a%1b[31m", headers={"x-request-id": "mine"})
    assert [span.trace_id for span in (request, submission)] == [of_client] * 2
    assert (request.process, request.parent_id, submission.parent_id) == ("trd-api", "b7ad6b7169203331", request.id)
    attributes = {"http.request.method": "POST", "http.route": "/jobs", "http.response.status_code": 201}
    assert request.attributes == {**attributes, "trd.request_id": "submits"}
    database = Database(f"sqlite:///{tmp_path / 'data' / 'trd.db'}")
    with database.read() as session:
        origin = session.scalar(select(Job.origin).where(Job.id == created.json()["id"]))
    database.dispose()
    assert origin == {"request_id": "submits", "traceparent": f"00-{of_client}-{submission.id}-01"}
    log = server.log.read_text()
    assert "s3cret" not in log
    lines = [json.loads(line) for line in log.splitlines()]
    for logger in ("uvicorn.access", "service.requests"):
        mine = [line for line in lines if line["logger"] == logger and line.get("request_id") == "mine"]
        assert len({line["trace_id"] for line in mine}) == len(mine) == 4, log
    assert any("opentelemetry" in line["logger"] for line in lines), "the collector is away"
    assert {"Waiting for application startup.", "Application shutdown complete."} <= {line["message"] for line in lines}


def test_the_database_is_private_in_a_folder_that_is_not(tmp_path: Path) -> None:
    folder = tmp_path / "shared"
    folder.mkdir(mode=0o755)
    existing = folder / "old.db"
    existing.touch(mode=0o644)
    for name in ("new.db", "old.db"):
        database = Database(f"sqlite:///{folder / name}")
        with database.write() as session:
            session.connection().exec_driver_sql("CREATE TABLE t (x)")
            modes = {path.name: stat.S_IMODE(path.stat().st_mode) for path in folder.glob(f"{name}*")}
        database.dispose()
        assert set(modes.values()) == {0o600}, modes
        assert len(modes) >= 2, "the journal is there too"
    storage = Storage(f"file://{folder / 'storage'}")
    storage.write("datasets/a/rows", b"x")
    assert stat.S_IMODE((folder / "storage").stat().st_mode) == 0o700


@pytest.mark.parametrize(
    "named",
    [
        {"attn_implementation": "kernels-community/flash-attn"},
        {"_attn_implementation": "owner/name@main:module"},
        {"text_config": {"attn_implementation": "a/b"}},
        {"attn_implementation": {"": "sdpa", "vision": "a/b"}},
        {"text_config": {"deep": {"_experts_implementation": "a/b"}}},
        {"_attn_implementation_internal": "paged|a/b", "x_implementation": "paged|a/b"},
    ],
)
def test_a_model_that_names_code_of_a_hub_is_refused(named: dict[str, object], tmp_path: Path) -> None:
    write_model(tmp_path / "model", context=10)
    assert read_facts(tmp_path / "model").context_tokens == 10
    config = {"max_position_embeddings": 10, "attn_implementation": "sdpa", **named}
    (tmp_path / "model" / "config.json").write_text(json.dumps(config))
    with pytest.raises(ModelRefusedError, match="code from a hub"):
        read_facts(tmp_path / "model")


@pytest.mark.parametrize("blank", [b"\n", b" \n", b"\r\n", b"\t\n"])
def test_blank_lines_are_limited(client: TestClient, blank: bytes) -> None:
    row = b'{"problem": "1", "answer": "2"}\n'
    jsonl = {"content-type": "application/jsonl"}
    assert client.post("/datasets", content=blank * 1000 + row, headers=jsonl).status_code == 201
    answer = client.post("/datasets", content=row + blank * 100_001, headers=jsonl)
    assert (answer.status_code, answer.json()["error"]["code"]) == (413, "dataset_too_large")
