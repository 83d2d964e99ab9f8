"""A job that no live worker can run says so, wherever it is shown, and exactly the workers that can run it claim it."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from fastapi.testclient import TestClient
from sqlalchemy import select, update

from contract.job_state import JobStatus
from contract.messages import DEFAULT_QUEUE
from contract.routing import Needs, Offer
from contract.tables import Job, Worker
from tests.service.conftest import MakeClient
from tests.service.records import database_of, job_body, set_job, submit
from tests.service.test_worker_health import COMMITTED, add_worker
from worker.lease import claim, has_waiting

MODELS = ["small", "small-teacher", "tiny-student", "tiny-teacher"]
TWO_GPUS = {"num_nodes": 1, "num_devices": 2, "device_kind": "l4", "device_bytes": 22 * 2**30, "models": MODELS}


@pytest.fixture
def client(make_client: MakeClient, database_url: str) -> TestClient:
    """The service on SQLite and on PostgreSQL, with all devices in the default queue."""
    return make_client(database_url, models=f"{COMMITTED}/*,Org/Hub-Model@v1", max_devices=16, queues=(DEFAULT_QUEUE,))


def body(client: TestClient, **changes: Any) -> dict[str, Any]:
    return job_body(client, **{"student": "tiny-student", "teacher": "tiny-teacher", "queue": DEFAULT_QUEUE, **changes})


def shown(client: TestClient, job_id: str) -> dict[str, Any] | None:
    found: dict[str, Any] | None = client.get(f"/jobs/{job_id}").json()["would_wait_for"]
    return found


def offer_of(client: TestClient, name: str) -> Offer:
    with database_of(client).read() as session:
        row = session.scalars(select(Worker).where(Worker.name == name)).one()
    return Offer.read(row.queues, row.offer)


def claimed(client: TestClient, name: str) -> str | None:
    """Claim a job as the worker of this name."""
    with database_of(client).write() as session:
        lease = claim(session, offer_of(client, name), worker=name, lease_seconds=60)
    return lease.job_id if lease is not None else None


def test_the_user_hears_it_at_submission_and_as_long_as_it_holds(client: TestClient) -> None:
    add_worker(client, "small", offer=TWO_GPUS)
    wanted = body(client, devices=8)
    expected = {
        "reason": "devices",
        "message": "no live worker of the queue trd-default has 8 devices for it; the largest has 2",
        "needed": 8,
        "largest": 2,
        "models": [],
    }
    assert client.post("/jobs?dry_run=true", json=wanted).json()["would_wait_for"] == expected
    created = client.post("/jobs", json=wanted)
    assert (created.status_code, created.json()["would_wait_for"]) == (201, expected)
    job = client.get(f"/jobs/{created.json()['id']}").json()
    assert (job["queue_position"], job["would_wait_for"], job["expected_note"]) == (1, expected, expected["message"])
    assert client.get("/jobs").json()["data"][0]["would_wait_for"] == expected
    assert client.get(f"/v1/fine_tuning/jobs/{job['id']}").json()["native"]["would_wait_for"] == expected
    page = client.get(f"/ui/jobs/{job['id']}", headers={"accept": "text/html"}).text
    assert "no live worker of the queue trd-default has 8 devices" in page
    assert client.post(f"/jobs/{job['id']}/pause").json()["would_wait_for"] is None, "it does not wait"
    assert client.post(f"/jobs/{job['id']}/resume").json()["would_wait_for"] == expected
    add_worker(client, "large", offer={**TWO_GPUS, "num_devices": 8})
    assert shown(client, job["id"]) is None
    assert claimed(client, "small") is None
    assert claimed(client, "large") == job["id"]
    assert shown(client, job["id"]) is None, "it runs"


def test_a_job_without_any_worker_is_accepted_and_says_so(client: TestClient) -> None:
    job = client.post("/jobs", json=body(client)).json()
    assert job["would_wait_for"]["reason"] == "no_worker"
    assert job["would_wait_for"]["message"] == "no live worker serves the queue trd-default"
    add_worker(client, "elsewhere", queues=["trd-default-8"])
    assert shown(client, job["id"]) is not None
    add_worker(client, "here")
    assert shown(client, job["id"]) is None


def test_a_worker_that_dies_is_missed(client: TestClient) -> None:
    add_worker(client, "w", offer=TWO_GPUS)
    job_id = submit(client, **body(client))
    assert shown(client, job_id) is None
    with database_of(client).write() as session:
        session.execute(update(Worker).values(expires_at=datetime.now(UTC) - timedelta(seconds=1)))
    found = shown(client, job_id)
    assert found is not None
    assert found["reason"] == "no_worker"


def test_a_busy_worker_is_no_reason_to_wait_for_another(client: TestClient) -> None:
    add_worker(client, "w", offer=TWO_GPUS)
    first, second = submit(client, **body(client)), submit(client, **body(client))
    assert claimed(client, "w") == first
    assert shown(client, second) is None


def test_workers_of_earlier_versions_are_taken_to_run_anything(client: TestClient) -> None:
    add_worker(client, "no offer", offer=None)
    job_id = submit(client, **body(client, devices=8))
    assert shown(client, job_id) is None
    assert claimed(client, "no offer") == job_id
    with database_of(client).write() as session:
        session.execute(update(Worker).values(expires_at=datetime.now(UTC) - timedelta(seconds=1)))
    waiting = submit(client, **body(client))
    assert shown(client, waiting) is None, "its lease shows it, as that of a worker without a row does"
    set_job(client, job_id, lease_expires_at=datetime.now(UTC) - timedelta(seconds=1))
    assert shown(client, waiting) is not None


def test_jobs_of_earlier_versions_need_only_their_queue(client: TestClient) -> None:
    add_worker(client, "w", offer={**TWO_GPUS, "models": []})
    job_id = submit(client, **body(client))
    assert shown(client, job_id) is not None
    set_job(client, job_id, needs=None)
    assert shown(client, job_id) is None
    assert claimed(client, "w") == job_id


def test_a_job_for_a_larger_worker_neither_blocks_others_nor_gets_lost(client: TestClient) -> None:
    add_worker(client, "small", offer=TWO_GPUS)
    add_worker(client, "large", offer={**TWO_GPUS, "num_devices": 8})
    urgent = [submit(client, **body(client, devices=devices, priority=9)) for devices in (8, 8, 4)]
    modest = submit(client, **body(client, devices=2))
    assert claimed(client, "small") == modest
    assert claimed(client, "small") is None
    with database_of(client).read() as session:
        assert not has_waiting(session, offer_of(client, "small")), "it may answer chats meanwhile"
        assert has_waiting(session, offer_of(client, "large"))
    assert [claimed(client, "large") for _ in range(4)] == [*urgent, None]


def test_in_a_mixed_fleet_one_worker_must_have_it_all(client: TestClient) -> None:
    add_worker(client, "models", offer={**TWO_GPUS, "num_devices": 1})
    add_worker(client, "devices", offer={**TWO_GPUS, "num_devices": 8, "models": ["tiny-student"]})
    add_worker(client, "both, elsewhere", queues=["gpu-8"], offer={**TWO_GPUS, "num_devices": 8})
    job_id = submit(client, **body(client, devices=4))
    found = shown(client, job_id)
    assert found is not None
    assert (found["reason"], found["needed"], found["largest"]) == ("devices", 4, 1)
    assert [claimed(client, name) for name in ("models", "devices", "both, elsewhere")] == [None] * 3


def test_a_model_that_no_worker_has_is_named(client: TestClient) -> None:
    add_worker(client, "w", offer={**TWO_GPUS, "models": ["tiny-student"]})
    job_id = submit(client, **body(client))
    found = shown(client, job_id)
    assert found is not None
    assert (found["reason"], found["models"]) == ("model", ["tiny-teacher"])
    assert claimed(client, "w") is None


def needs_of(client: TestClient, job_id: str) -> Needs:
    with database_of(client).read() as session:
        return Needs.read(session.scalar(select(Job.needs).where(Job.id == job_id)))


@pytest.mark.parametrize("kind", ["cpu", "l4"])
def test_memory_is_missing_only_if_even_the_weights_do_not_fit(client: TestClient, kind: str) -> None:
    job_id = submit(client, **body(client))
    needs, field = needs_of(client, job_id), "host_bytes" if kind == "cpu" else "device_bytes"
    needed = needs.cpu_bytes if kind == "cpu" else needs.gpu_bytes
    assert needed is not None
    assert needed > 2**20
    add_worker(client, "small", offer={**TWO_GPUS, "device_kind": kind, field: needed - 1})
    found = shown(client, job_id)
    assert found is not None
    assert (found["reason"], found["needed"], found["largest"]) == ("memory", needed, needed - 1)
    assert "estimated" in found["message"]
    assert claimed(client, "small") is None
    add_worker(client, "exact", offer={**TWO_GPUS, "device_kind": kind, field: needed})
    assert shown(client, job_id) is None
    assert claimed(client, "exact") == job_id


def test_what_is_not_known_is_no_obstacle(client: TestClient) -> None:
    hub = submit(client, **body(client, student="Org/Hub-Model", teacher="Org/Hub-Model"))
    assert needs_of(client, hub) == Needs(models=("Org/Hub-Model",)), "its sizes are on the hub"
    add_worker(client, "w", offer={"device_kind": "l4", "device_bytes": 1, "models": ["Org/Hub-Model"]})
    assert shown(client, hub) is None
    assert claimed(client, "w") == hub


@pytest.mark.parametrize(
    "wrong", [{"num_devices": -1}, {"num_devices": "two"}, {"models": {"a": 1}}, {"device_bytes": 0.5}]
)
def test_an_offer_that_makes_no_sense_hides_no_worker(client: TestClient, wrong: dict[str, Any]) -> None:
    add_worker(client, "odd", offer={**TWO_GPUS, **wrong})
    job_id = submit(client, **body(client, devices=8))
    assert shown(client, job_id) is None
    assert client.get("/readyz").status_code == 200


def test_needs_that_cannot_be_read_do_not_stop_a_queue(client: TestClient) -> None:
    add_worker(client, "w", offer=TWO_GPUS)
    damaged, good = (submit(client, **body(client)) for _ in range(2))
    set_job(client, damaged, needs="{not JSON")
    assert [claimed(client, "w") for _ in range(2)] == [damaged, good]


def test_a_repeated_request_hears_how_it_is_now(client: TestClient) -> None:
    wanted, key = body(client), {"idempotency-key": "k"}
    assert client.post("/jobs", json=wanted, headers=key).json()["would_wait_for"] is not None
    add_worker(client, "w", offer=TWO_GPUS)
    again = client.post("/jobs", json=wanted, headers=key)
    assert (again.status_code, again.json()["would_wait_for"]) == (200, None)


def test_a_look_at_the_workers_serves_many_submissions(client: TestClient, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("service.jobs.fleet.LOOK_SECONDS", 600.0)
    wanted = body(client)
    assert client.post("/jobs", json=wanted).json()["would_wait_for"] is not None
    add_worker(client, "w", offer=TWO_GPUS)
    assert client.post("/jobs", json=wanted).json()["would_wait_for"] is not None, "seen within a second"


def test_finished_jobs_wait_for_nothing(client: TestClient) -> None:
    job_id = submit(client, **body(client))
    for status in (JobStatus.SUCCEEDED, JobStatus.FAILED, JobStatus.CANCELLED, JobStatus.PAUSED):
        set_job(client, job_id, status=status)
        assert shown(client, job_id) is None
