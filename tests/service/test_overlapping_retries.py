"""A client that repeats a request by itself, without a key, while its first one is still being answered."""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import httpx
import pytest
from fastapi.testclient import TestClient

from contract.storage import Storage
from service.datasets import repository as datasets
from service.jobs import repository
from service.jobs.admission import Admissions
from tests.service.conftest import MakeClient
from tests.service.gate import SECONDS, Gate, wait_for_a_lock
from tests.service.records import ROWS, job_body

FIRST, REPEATED = {"x-stainless-retry-count": "0"}, {"x-stainless-retry-count": "1"}


@pytest.fixture
def pool() -> Iterator[ThreadPoolExecutor]:
    with ThreadPoolExecutor(4) as threads:
        yield threads


def ids(*answers: httpx.Response) -> set[str]:
    assert {answer.status_code for answer in answers} <= {200, 201}, [answer.text for answer in answers]
    return {answer.json()["id"] for answer in answers}


def test_a_repeated_request_waits_for_the_first_ones_commit(
    make_client: MakeClient, postgres_url: str, pool: ThreadPoolExecutor, monkeypatch: pytest.MonkeyPatch
) -> None:
    one, other = make_client(postgres_url), make_client(postgres_url)
    body, gate = job_body(one), Gate()
    monkeypatch.setattr(repository, "add", gate.around(repository.add, is_after=True))
    first = pool.submit(one.post, "/jobs", json=body, headers=FIRST)
    assert gate.reached.wait(SECONDS)
    repeated = pool.submit(other.post, "/jobs", json=body, headers=REPEATED)
    wait_for_a_lock(one, "advisory")
    unlike = other.post("/jobs", json={**body, "seed": 9}, headers=REPEATED)
    assert unlike.status_code == 201, "another body does not wait"
    gate.opened.set()
    assert len(ids(first.result(SECONDS), repeated.result(SECONDS))) == 1
    assert repeated.result().headers["idempotent-replayed"] == "true"
    assert len(one.get("/jobs").json()["data"]) == 2


def test_a_first_request_that_was_overtaken_gets_the_job_of_the_repeated_one(
    either_client: TestClient, pool: ThreadPoolExecutor, monkeypatch: pytest.MonkeyPatch
) -> None:
    body, gate = job_body(either_client), Gate()
    monkeypatch.setattr(Admissions, "fit", gate.around(Admissions.fit, is_after=False))
    first = pool.submit(either_client.post, "/jobs", json=body, headers=FIRST)
    assert gate.reached.wait(SECONDS)
    repeated = either_client.post("/jobs", json=body, headers=REPEATED)
    gate.opened.set()
    assert len(ids(first.result(SECONDS), repeated)) == 1
    meant = either_client.post("/jobs", json=body, headers=FIRST)
    assert meant.json()["id"] not in ids(repeated), "received after the job was made: another one is meant"
    assert len(either_client.get("/jobs").json()["data"]) == 2


def test_many_repeated_requests_at_once_make_one_job(either_client: TestClient, pool: ThreadPoolExecutor) -> None:
    body = job_body(either_client)
    posts = [pool.submit(either_client.post, "/jobs", json=body, headers=REPEATED) for _ in range(6)]
    assert len(ids(*(post.result(SECONDS) for post in posts))) == 1
    assert len(either_client.get("/jobs").json()["data"]) == 1


def send_rows(client: TestClient, path: str, headers: dict[str, str], rows: str = ROWS) -> httpx.Response:
    file, form = {"file": ("mine.jsonl", rows)}, {"purpose": "fine-tune"} if path == "/v1/files" else {}
    return client.post(path, files=file, data=form, headers=headers)


UPLOADS = pytest.mark.parametrize("path", ["/datasets", "/v1/files"])


@UPLOADS
def test_a_repeated_upload_waits_for_the_first_ones_commit(
    make_client: MakeClient, postgres_url: str, pool: ThreadPoolExecutor, monkeypatch: pytest.MonkeyPatch, path: str
) -> None:
    one, other, gate = make_client(postgres_url), make_client(postgres_url), Gate()
    monkeypatch.setattr(datasets, "newest_like", gate.around(datasets.newest_like, is_after=True))
    first = pool.submit(send_rows, one, path, FIRST)
    assert gate.reached.wait(SECONDS)
    repeated = pool.submit(send_rows, other, path, REPEATED)
    wait_for_a_lock(one, "advisory")
    assert send_rows(other, path, REPEATED, ROWS + ROWS).is_success, "other rows do not wait"
    gate.opened.set()
    assert len(ids(first.result(SECONDS), repeated.result(SECONDS))) == 1
    assert len(one.get("/datasets").json()["data"]) == 2


@UPLOADS
def test_a_first_upload_that_was_overtaken_gets_the_dataset_of_the_repeated_one(
    either_client: TestClient,
    pool: ThreadPoolExecutor,
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
    path: str,
) -> None:
    gate = Gate()
    monkeypatch.setattr(Storage, "store", gate.around(Storage.store, is_after=True))
    first = pool.submit(send_rows, either_client, path, FIRST)
    assert gate.reached.wait(SECONDS)
    repeated = send_rows(either_client, path, REPEATED)
    gate.opened.set()
    assert len(ids(first.result(SECONDS), repeated)) == 1
    meant = send_rows(either_client, path, FIRST)
    assert meant.json()["id"] not in ids(repeated), "received after the rows were stored: another one is meant"
    assert len(either_client.get("/datasets").json()["data"]) == 2
    kept = [stored for stored in (tmp_path / "storage").rglob("*") if stored.is_file()]
    assert len(kept) == 2, "what the overtaken request stored is gone"


@UPLOADS
def test_many_repeated_uploads_at_once_store_one_dataset(
    either_client: TestClient, pool: ThreadPoolExecutor, path: str
) -> None:
    posts = [pool.submit(send_rows, either_client, path, REPEATED) for _ in range(6)]
    assert len(ids(*(post.result(SECONDS) for post in posts))) == 1
    assert len(either_client.get("/datasets").json()["data"]) == 1
