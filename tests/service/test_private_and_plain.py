"""Answers are never guessed to be pages, logs keep no keys, and the data folder is its user's alone."""

from __future__ import annotations

import json
import logging
import stat
from pathlib import Path

import httpx
import pytest
from fastapi.testclient import TestClient

from contract.database import Database
from contract.model_catalog import ModelRefusedError, read_facts
from contract.storage import Storage
from service.app import _without_query
from tests.service.conftest import ADMIN_KEY, write_model
from tests.service.live_server import live_server


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


def test_a_servers_whole_log_is_json_with_the_requests_id_and_without_queries(tmp_path: Path) -> None:
    with live_server(tmp_path / "data", log_level="info", TRD_API_KEY=ADMIN_KEY) as server:
        for query in ("key=s3cret", "a?b=s3cret", "%73=s3cret"):
            httpx.get(f"{server.url}/jobs?{query}", headers={"x-request-id": "mine"})
        httpx.get(f"{server.url}/no%0a%1b[31m", headers={"x-request-id": "mine"})
    log = server.log.read_text()
    assert "s3cret" not in log
    lines = [json.loads(line) for line in log.splitlines()]
    for logger in ("uvicorn.access", "service.requests"):
        mine = [line for line in lines if line["logger"] == logger and line.get("request_id") == "mine"]
        assert len(mine) == 4, log
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
