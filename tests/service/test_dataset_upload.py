from __future__ import annotations

import gzip
import hashlib
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from fastapi.testclient import TestClient

from tests.service.conftest import MakeClient
from tests.service.records import ROWS, job_body, submit, upload

JSONL = {"content-type": "application/jsonl"}


def stored(tmp_path: Path) -> list[Path]:
    return [path for path in (tmp_path / "storage").rglob("*") if path.is_file()]


def test_a_raw_body_is_stored_as_it_came(either_client: TestClient, tmp_path: Path) -> None:
    response = either_client.post("/datasets?filename=a/b/mine.jsonl", content=ROWS, headers=JSONL)
    assert response.status_code == 201, response.text
    dataset = response.json()
    digest = hashlib.sha256(ROWS.encode()).hexdigest()
    assert dataset["id"].startswith("ds_")
    assert (dataset["filename"], dataset["format"], dataset["num_rows"]) == ("mine.jsonl", "jsonl", 40)
    assert (dataset["num_bytes"], dataset["sha256"], dataset["has_solutions"]) == (len(ROWS), digest, True)
    (path,) = stored(tmp_path)
    assert path.read_text() == ROWS
    assert path.parent.name == dataset["id"]
    assert either_client.get(f"/datasets/{dataset['id']}").json() == dataset


def test_a_forms_file_is_the_same(client: TestClient) -> None:
    response = client.post("/datasets", files={"file": ("mine.jsonl", ROWS)})
    assert response.status_code == 201, response.text
    assert response.json()["sha256"] == hashlib.sha256(ROWS.encode()).hexdigest()
    assert response.json()["filename"] == "mine.jsonl"


@pytest.mark.parametrize("as_form", [False, True])
def test_a_broken_row_17_is_named(client: TestClient, tmp_path: Path, as_form: bool) -> None:
    lines = ROWS.splitlines()
    lines[16] = '{"problem": "17 + 17", "answr": "34"}'
    content = "\n".join(lines)
    how: dict[str, Any] = (
        {"files": {"file": ("r.jsonl", content)}} if as_form else {"content": content, "headers": JSONL}
    )
    response = client.post("/datasets", **how)
    assert response.status_code == 422
    error = response.json()["error"]
    assert error["code"] == "dataset_invalid"
    assert error["message"].startswith("row 17: answer: this field is required; the row's fields: problem, answr")
    assert [(problem["row"], problem["field"]) for problem in error["errors"]] == [(17, "answer")]
    assert stored(tmp_path) == []
    assert client.get("/datasets").json()["data"] == []


def test_a_hundred_problems_are_listed_and_all_are_counted(shared_client: TestClient) -> None:
    error = shared_client.post("/datasets", content='{"problem": 1}\n' * 300, headers=JSONL).json()["error"]
    assert len(error["errors"]) == 100
    assert "300 problems in all, the first 100 are listed" in error["message"]


@pytest.mark.parametrize("content", ["", "\n\n  \n"])
def test_a_file_without_rows_is_refused(shared_client: TestClient, content: str) -> None:
    error = shared_client.post("/datasets", content=content, headers=JSONL).json()["error"]
    assert "no rows" in error["message"]


@pytest.mark.parametrize(
    ("headers", "status", "code"),
    [
        ({"content-type": "text/html"}, 415, "unsupported_media_type"),
        ({"content-type": "application/zip"}, 415, "unsupported_media_type"),
        ({}, 415, "unsupported_media_type"),
        ({**JSONL, "content-encoding": "gzip"}, 415, "unsupported_media_type"),
        ({"content-type": "multipart/form-data"}, 422, "invalid_form"),
    ],
)
def test_other_bodies_are_refused(shared_client: TestClient, headers: dict[str, str], status: int, code: str) -> None:
    response = shared_client.post("/datasets", content=ROWS, headers=headers)
    assert (response.status_code, response.json()["error"]["code"]) == (status, code)


def test_limits_hold(make_client: MakeClient, sqlite_url: str, tmp_path: Path) -> None:
    client = make_client(sqlite_url, max_upload_bytes=3000, max_rows=30, max_line_bytes=500)
    wide = '{"problem": "' + "x" * 400 + '", "answer": "1"}\n'
    for rows, words in ((ROWS, "30 rows"), (wide * 9, "3000 bytes")):
        response = client.post("/datasets", content=rows, headers=JSONL)
        assert (response.status_code, response.json()["error"]["code"]) == (413, "dataset_too_large")
        assert words in response.json()["error"]["message"]
    long_line = client.post("/datasets", content='{"problem": "' + "x" * 600 + '"}', headers=JSONL).json()
    assert "longer than 500 bytes" in long_line["error"]["message"]
    assert stored(tmp_path) == []


def test_a_body_that_says_it_is_too_long_is_refused_unread(make_client: MakeClient, sqlite_url: str) -> None:
    client = make_client(sqlite_url, max_upload_bytes=1000)
    response = client.post("/datasets", content="x", headers={**JSONL, "content-length": "999999999"})
    assert (response.status_code, response.json()["error"]["code"]) == (413, "payload_too_large")


def test_a_body_of_unsaid_length_is_cut_at_the_limit(make_client: MakeClient, sqlite_url: str) -> None:
    client = make_client(sqlite_url, max_upload_bytes=1000)

    def endless() -> Iterator[bytes]:
        for _ in range(10_000):
            yield ROWS.encode()[:100]

    response = client.post("/datasets", content=endless(), headers=JSONL)
    assert response.status_code == 413


def test_the_owners_quota_holds(make_client: MakeClient, sqlite_url: str, tmp_path: Path) -> None:
    client = make_client(sqlite_url, max_stored_bytes=int(len(ROWS) * 1.5))
    first = upload(client)
    response = client.post("/datasets", content=ROWS, headers=JSONL)
    assert (response.status_code, response.json()["error"]["code"]) == (429, "quota_exceeded")
    assert len(stored(tmp_path)) == 1
    client.delete(f"/datasets/{first}")
    assert client.post("/datasets", content=ROWS, headers=JSONL).status_code == 201


def test_the_owners_quota_of_rows_holds(make_client: MakeClient, sqlite_url: str) -> None:
    client = make_client(sqlite_url, max_stored_rows=79)
    upload(client)
    response = client.post("/datasets", content=ROWS, headers=JSONL)
    assert (response.status_code, response.json()["error"]["code"]) == (429, "quota_exceeded")
    assert "79 rows" in response.json()["error"]["message"]


def test_a_client_that_says_it_retries_stores_one_dataset(either_client: TestClient, tmp_path: Path) -> None:
    address, retry = "/datasets?filename=mine.jsonl", {**JSONL, "x-stainless-retry-count": "1"}
    first = either_client.post(address, content=ROWS, headers=JSONL).json()
    assert either_client.post(address, content=ROWS, headers=retry).json() == first
    assert len(stored(tmp_path)) == 1
    other_name = either_client.post("/datasets?filename=other.jsonl", content=ROWS, headers=retry).json()
    other_rows = either_client.post(address, content=ROWS + ROWS, headers=retry).json()
    meant = either_client.post(address, content=ROWS, headers=JSONL).json()
    assert len({row["id"] for row in (first, other_name, other_rows, meant)}) == 4


def test_a_deleted_dataset_is_gone(either_client: TestClient, tmp_path: Path) -> None:
    dataset = upload(either_client)
    assert either_client.delete(f"/datasets/{dataset}").json() == {"object": "dataset", "id": dataset, "deleted": True}
    assert either_client.get(f"/datasets/{dataset}").status_code == 404
    assert either_client.delete(f"/datasets/{dataset}").status_code == 404
    assert stored(tmp_path) == []


def test_a_dataset_that_a_job_needs_stays(either_client: TestClient) -> None:
    trained, evaluated = upload(either_client), upload(either_client)
    job_id = submit(either_client, dataset=trained, evaluation={"dataset": evaluated})
    for dataset in (trained, evaluated):
        response = either_client.delete(f"/datasets/{dataset}")
        assert (response.status_code, response.json()["error"]["code"]) == (409, "dataset_in_use")
        assert job_id in response.json()["error"]["message"]
    either_client.post(f"/jobs/{job_id}/cancel")
    assert either_client.delete(f"/datasets/{trained}").status_code == 200


def test_a_cancelled_job_whose_dataset_is_gone_is_not_resumed(client: TestClient) -> None:
    body = job_body(client)
    job_id = client.post("/jobs", json=body).json()["id"]
    client.post(f"/jobs/{job_id}/cancel")
    client.delete(f"/datasets/{body['dataset']}")
    response = client.post(f"/jobs/{job_id}/resume")
    assert (response.status_code, response.json()["error"]["code"]) == (409, "dataset_deleted")


def test_datasets_are_listed_in_pages(client: TestClient) -> None:
    ids = [upload(client) for _ in range(5)][::-1]
    page = client.get("/datasets", params={"limit": 3}).json()
    assert [row["id"] for row in page["data"]] == ids[:3]
    assert page["has_more"]
    rest = client.get("/datasets", params={"limit": 3, "after": ids[2]}).json()
    assert [row["id"] for row in rest["data"]] == ids[3:]
    assert not rest["has_more"]


def test_answers_may_be_numbers_and_the_file_stays_as_it_is(client: TestClient, tmp_path: Path) -> None:
    rows = '{"problem": "x", "answer": 4.50, "level": 3}\n\n{"problem": "y", "answer": 7}'
    upload(client, rows)
    (path,) = stored(tmp_path)
    assert path.read_text() == rows


UPLOADS: dict[str, tuple[str, bytes, str]] = {
    "CSV": ("text/csv", b"frage,antwort\n1 + 1,2\n2 + 2,4\n", "csv"),
    "an array": ("application/json", b'[{"frage": "1 + 1", "antwort": 2}, {"frage": "2 + 2", "antwort": 4}]', "json"),
    "gzip": ("application/gzip", gzip.compress(b'{"frage": "1 + 1", "antwort": 2}\n' * 2), "jsonl"),
    "gzip by another name": ("application/jsonl", gzip.compress(b'{"frage": "1 + 1", "antwort": 2}\n' * 2), "jsonl"),
}


@pytest.mark.parametrize("name", UPLOADS)
def test_other_formats_and_a_mapping_of_columns(name: str, shared_client: TestClient) -> None:
    media_type, content, kind = UPLOADS[name]
    columns = json.dumps({"problem": "frage", "answer": "antwort"})
    response = shared_client.post(
        "/datasets", params={"columns": columns}, content=content, headers={"content-type": media_type}
    )
    assert response.status_code == 201, response.text
    assert (response.json()["format"], response.json()["num_rows"]) == (kind, 2)
    form = {"files": {"file": ("rows", content)}, "data": {"columns": columns}}
    assert shared_client.post("/datasets", **form).json()["format"] == kind


def test_a_job_whose_task_cannot_read_the_rows_is_refused_before_it_waits(client: TestClient) -> None:
    rows = b'{"problem": "1 + 1 (A) 2 (B) 3", "answer": "A"}\n{"problem": "2 + 2", "answer": "4"}\n'
    dataset = client.post("/datasets", content=rows, headers=JSONL).json()["id"]
    for path in ("/jobs", "/jobs?dry_run=true"):
        body = job_body(client, dataset=dataset, task="choice")
        error = client.post(path, json=body).json()["error"]
        assert (error["code"], error["param"]) == ("dataset_invalid", "dataset")
        assert 'task choice cannot read 1 of its 2 rows; row 2: answer = "4": names no option' in error["message"]
        assert error["message"].endswith("tasks that can read all rows: math, exact")
