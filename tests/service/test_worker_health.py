"""Workers that are alive, in ``/readyz`` and in the estimate of a dry run."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from fastapi.testclient import TestClient

from contract.tables import Worker
from tests.service.conftest import MakeClient
from tests.service.records import database_of, job_body

COMMITTED = Path(__file__).parents[2] / "testbed" / "models"
FINDINGS = [
    {"check": "device", "status": "pass", "message": "1 × NVIDIA A100-SXM4-80GB", "remedy": "", "seconds": 0.1},
    {"check": "compiler", "status": "fail", "message": "there is no C compiler", "remedy": "install gcc", "seconds": 0},
    {"check": "limits", "status": "not tried", "message": "no", "remedy": "", "seconds": 0},
]
OFFER = {"num_nodes": 1, "num_devices": 8, "device_bytes": 80 * 10**9}


def add_worker(client: TestClient, name: str, *, seconds: float = 60.0, **columns: Any) -> None:
    now = datetime.now(UTC)
    values: dict[str, Any] = {"queues": ["trd-default"], "device_kind": "cpu", "findings": None, "started_at": now}
    with database_of(client).write() as session:
        session.add(Worker(name=name, expires_at=now + timedelta(seconds=seconds), **{**values, **columns}))


def test_what_failed_on_a_workers_machine_is_shown_and_ended_workers_are_not(
    client: TestClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("service.readiness.LOOK_SECONDS", 0.0)
    assert client.get("/readyz").json()["workers"] == []
    add_worker(client, "gone", seconds=-1.0)
    add_worker(client, "host:1:a", device_kind="a100-80gb", findings=FINDINGS, offer=OFFER)
    del client.headers["authorization"]
    answer = client.get("/readyz").json()
    assert answer["status"] == "ready"
    assert answer["workers"] == [
        {
            "name": "host:1:a",
            "queues": ["trd-default"],
            "device_kind": "a100-80gb",
            "num_devices": 8,
            "device_bytes": 80 * 10**9,
            "num_passed": 1,
            "failures": [{"check": "compiler", "message": "there is no C compiler", "remedy": "install gcc"}],
        }
    ]


def test_a_dry_run_takes_the_device_that_a_worker_of_its_queue_reported(
    make_client: MakeClient, sqlite_url: str
) -> None:
    client = make_client(sqlite_url, models=f"{COMMITTED}/*")
    body = job_body(client, student="tiny-student", teacher="tiny-teacher")
    assert client.post("/jobs?dry_run=true", json=body).json()["memory"]["device"] == "cpu"
    add_worker(client, "other", queues=["elsewhere"], device_kind="h200")
    add_worker(client, "new", device_kind="a kind that is not known here")
    add_worker(client, "ours", device_kind="l40s")
    assert client.post("/jobs?dry_run=true", json=body).json()["memory"]["device"] == "l40s"


def test_a_dry_run_says_on_how_many_machines_a_job_runs(make_client: MakeClient, sqlite_url: str) -> None:
    client = make_client(sqlite_url, models=f"{COMMITTED}/*", max_devices=16, devices_per_node=8)
    body = job_body(client, student="tiny-student", teacher="tiny-teacher", devices=16)
    notes = client.post("/jobs?dry_run=true", json=body).json()["estimate_notes"]
    assert "nodes: 2, each with up to 8 devices (TRD_DEVICES_PER_NODE)" in notes
    small = client.post("/jobs?dry_run=true", json={**body, "devices": 4}).json()["estimate_notes"]
    assert not any(note.startswith("nodes:") for note in small)
