from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import redis
from fastapi.testclient import TestClient
from sqlalchemy import func, select

from contract.job_state import ACTION_RESULTS, FINAL_STATUSES, Action, JobStatus
from contract.messages import DEFAULT_QUEUE
from contract.storage_keys import checkpoint_prefix
from contract.tables import Base, Job
from tests.service.conftest import MakeClient
from tests.service.records import (
    add_checkpoint,
    add_diagnosis,
    add_evaluation,
    add_metrics,
    add_probe_sample,
    add_trajectory,
    context_of,
    database_of,
    set_job,
    submit,
)

ACTIONS = [Action.CANCEL, Action.PAUSE, Action.RESUME]


@pytest.mark.parametrize("action", ACTIONS)
def test_every_status_answers_as_the_table_says(client: TestClient, action: Action) -> None:
    job_id = submit(client)
    for status in JobStatus:
        set_job(client, job_id, status=status)
        response = client.post(f"/jobs/{job_id}/{action}")
        expected = ACTION_RESULTS[action].get(status)
        if expected is None:
            assert response.status_code == 409
            assert response.headers["x-should-retry"] == "false"
            error = response.json()["error"]
            assert (error["code"], error["type"]) == ("illegal_transition", "conflict_error")
            assert f"is {status}" in error["message"]
            for legal in ACTION_RESULTS[action]:
                assert legal in error["message"]
        else:
            assert response.status_code == 200
            assert response.json()["status"] == expected


def test_resuming_is_held_to_the_quota_too(make_client: MakeClient, database_url: str) -> None:
    client = make_client(database_url, max_queued_jobs=2)
    over = submit(client)
    client.post(f"/jobs/{over}/cancel")
    paused, waiting = submit(client), submit(client)
    client.post(f"/jobs/{paused}/pause")
    assert client.post(f"/jobs/{paused}/resume").status_code == 200, "it counted all the while"
    refused = client.post(f"/jobs/{over}/resume")
    assert (refused.status_code, refused.json()["error"]["code"]) == (429, "quota_exceeded")
    assert client.get(f"/jobs/{over}").json()["status"] == "cancelled"
    client.post(f"/jobs/{waiting}/cancel")
    assert client.post(f"/jobs/{over}/resume").status_code == 200


def status_events(client: TestClient, job_id: str) -> list[str]:
    events = client.get(f"/jobs/{job_id}/events").json()["data"]
    return [event["data"]["status"] for event in events if event["type"] == "status"]


def test_a_repeated_request_changes_nothing(either_client: TestClient) -> None:
    job_id = submit(either_client)
    for _ in range(3):
        either_client.post(f"/jobs/{job_id}/pause")
    for _ in range(3):
        either_client.post(f"/jobs/{job_id}/resume")
    for _ in range(3):
        assert either_client.post(f"/jobs/{job_id}/cancel").json()["status"] == "cancelled"
    assert status_events(either_client, job_id) == ["queued", "paused", "queued", "cancelled"]


def test_a_cancelled_job_that_never_ran_is_over_at_once(client: TestClient) -> None:
    job = client.post(f"/jobs/{submit(client)}/cancel").json()
    assert job["finished_at"] is not None
    assert job["queue_position"] is None


def test_a_running_job_is_requested_to_stop(client: TestClient) -> None:
    job_id = submit(client)
    set_job(client, job_id, status="running", phase="training", lease_owner="w", lease_token=1)
    job = client.post(f"/jobs/{job_id}/cancel").json()
    assert (job["status"], job["phase"], job["finished_at"]) == ("cancelling", "training", None)


def test_a_resumed_job_waits_again_without_its_error(client: TestClient) -> None:
    job_id = submit(client)
    failure: dict[str, Any] = {"error_code": "worker_lost", "error_message": "gone", "num_lost": 3, "step": 12}
    set_job(client, job_id, status="failed", phase="training", eta_seconds=3.0, **failure)
    job = client.post(f"/jobs/{job_id}/resume").json()
    assert (job["status"], job["error"], job["finished_at"], job["phase"]) == ("queued", None, None, None)
    assert (job["eta_seconds"], job["queue_position"], job["step"]) == (None, 1, 12)
    with database_of(client).read() as session:
        assert session.get_one(Job, job_id).num_lost == 0


def test_a_resumed_job_rings_the_doorbell(make_client: MakeClient, sqlite_url: str, redis_url: str) -> None:
    client = make_client(sqlite_url, broker_url=redis_url)
    job_id = submit(client)
    for action in ("pause", "pause", "resume"):
        client.post(f"/jobs/{job_id}/{action}")
    context_of(client).doorbell.close()
    with redis.Redis.from_url(redis_url) as broker:
        assert broker.llen(DEFAULT_QUEUE) == 2


@pytest.mark.parametrize("status", [status for status in JobStatus if status not in FINAL_STATUSES])
def test_a_job_that_is_not_over_is_not_deleted(client: TestClient, status: JobStatus) -> None:
    job_id = submit(client)
    set_job(client, job_id, status=status)
    response = client.delete(f"/jobs/{job_id}")
    assert response.status_code == 409
    assert "succeeded, failed, cancelled" in response.json()["error"]["message"]


def test_a_deleted_job_takes_everything_with_it(either_client: TestClient, tmp_path: Path) -> None:
    client = either_client
    kept, job_id = submit(client, tags=["t"]), submit(client, tags=["t"])
    for owner in (kept, job_id):
        add_metrics(client, owner, "loss", {1: 0.5})
        add_trajectory(client, owner, 0)
        add_evaluation(client, owner, 0, 0.5)
        add_probe_sample(client, owner, 0)
        add_diagnosis(client, owner, 0)
        add_checkpoint(client, tmp_path / "storage", owner, 4, {"model/config.json": b"{}"})
        set_job(client, owner, status="succeeded")
    assert client.delete(f"/jobs/{job_id}").json() == {"object": "job", "id": job_id, "deleted": True}
    for path in ("", "/events", "/metrics", "/trajectories", "/checkpoints", "/evaluations"):
        assert client.get(f"/jobs/{job_id}{path}").status_code == 404
    assert [job["id"] for job in client.get("/jobs", params={"tag": "t"}).json()["data"]] == [kept]
    with database_of(client).read() as session:
        for table in Base.metadata.sorted_tables:
            if "job_id" in table.c:
                query = select(func.count()).select_from(table).where(table.c.job_id == job_id)
                assert session.scalar(query) == 0, table.name
    left = [path for path in (tmp_path / "storage" / "jobs").rglob("*") if path.is_file()]
    assert [kept in str(path) for path in left] == [True]


def test_a_deleted_job_takes_files_that_no_checkpoint_names(client: TestClient, tmp_path: Path) -> None:
    job_id = submit(client)
    half_done = tmp_path / "storage" / checkpoint_prefix(job_id, 1, 8) / "model.safetensors"
    half_done.parent.mkdir(parents=True)
    half_done.write_bytes(b"half")
    client.post(f"/jobs/{job_id}/cancel")
    client.delete(f"/jobs/{job_id}")
    assert not (tmp_path / "storage" / "jobs" / job_id).exists()


@pytest.mark.parametrize("path", ["", "/events", "/metrics", "/trajectories", "/evaluations", "/checkpoints"])
def test_what_is_not_there_is_404(shared_client: TestClient, path: str) -> None:
    response = shared_client.get(f"/jobs/job_doesnotexist{path}")
    assert response.status_code == 404
    assert response.json()["error"]["code"] == "job_not_found"
