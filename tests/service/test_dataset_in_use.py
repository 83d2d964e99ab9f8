"""A dataset that is deleted while a job on it is being made: one of the two is refused, whichever comes first."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor

import pytest

from service.datasets import repository as datasets
from service.jobs import repository as jobs
from tests.service.conftest import MakeClient
from tests.service.gate import SECONDS, Gate, wait_for_a_lock
from tests.service.records import job_body, submit


def test_a_deletion_waits_for_the_job(
    make_client: MakeClient, postgres_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    client, gate = make_client(postgres_url), Gate()
    body = job_body(client)
    monkeypatch.setattr(jobs, "add", gate.around(jobs.add, is_after=True))
    with ThreadPoolExecutor(2) as pool:
        made = pool.submit(client.post, "/jobs", json=body)
        assert gate.reached.wait(SECONDS)
        deleted = pool.submit(client.delete, f"/datasets/{body['dataset']}")
        wait_for_a_lock(client, "transactionid", "tuple")
        gate.opened.set()
        assert made.result(SECONDS).status_code == 201
    assert deleted.result().status_code == 409
    assert deleted.result().json()["error"]["code"] == "dataset_in_use"


def test_a_job_waits_for_the_deletion(
    make_client: MakeClient, postgres_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    client, gate = make_client(postgres_url), Gate()
    body = job_body(client)
    monkeypatch.setattr(datasets, "user_of", gate.around(datasets.user_of, is_after=True))
    with ThreadPoolExecutor(2) as pool:
        deleted = pool.submit(client.delete, f"/datasets/{body['dataset']}")
        assert gate.reached.wait(SECONDS)
        made = pool.submit(client.post, "/jobs", json=body)
        wait_for_a_lock(client, "transactionid", "tuple")
        gate.opened.set()
        assert deleted.result(SECONDS).status_code == 200
    assert made.result().status_code in (404, 422)
    assert client.get("/jobs").json()["data"] == []


def test_a_job_that_is_resumed_waits_for_the_deletion(
    make_client: MakeClient, postgres_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    client, gate = make_client(postgres_url), Gate()
    body = job_body(client)
    job_id = submit(client, **body)
    client.post(f"/jobs/{job_id}/cancel")
    monkeypatch.setattr(datasets, "user_of", gate.around(datasets.user_of, is_after=True))
    with ThreadPoolExecutor(2) as pool:
        deleted = pool.submit(client.delete, f"/datasets/{body['dataset']}")
        assert gate.reached.wait(SECONDS)
        resumed = pool.submit(client.post, f"/jobs/{job_id}/resume")
        wait_for_a_lock(client, "transactionid", "tuple")
        gate.opened.set()
        assert deleted.result(SECONDS).status_code == 200
    assert (resumed.result().status_code, resumed.result().json()["error"]["code"]) == (409, "dataset_deleted")
    assert client.get(f"/jobs/{job_id}").json()["status"] == "cancelled"
