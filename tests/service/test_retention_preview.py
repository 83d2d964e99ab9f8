"""What the retention policy would remove is shown first, and what it removed is not shown as if it had never been."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from fastapi.testclient import TestClient

from contract import retention
from contract.retention import RecordKind, complete, num_bytes, remove_batch
from service.jobs import history
from service.settings import Settings
from tests.service.conftest import MakeClient
from tests.service.finished_job import add_finished_job
from tests.service.records import add_events, database_of, finish_job, set_job, submit

MODELS = {"models": str(Path("testbed/models").resolve() / "*")}


@pytest.fixture
def old_job(make_client: MakeClient, database_url: str, tmp_path: Path) -> tuple[TestClient, str]:
    """A service that keeps metrics for 40 days, and a job that ended 50 days ago."""
    client = make_client(database_url, retain_metrics_days=40, **MODELS)
    job_id = add_finished_job(client, database_of(client), tmp_path / "storage")
    set_job(client, job_id, finished_at=datetime.now(UTC) - timedelta(days=50))
    return client, job_id


def kinds(client: TestClient, **query: Any) -> dict[str, dict[str, Any]]:
    answer = client.get("/retention", params=query)
    assert answer.status_code == 200, answer.text
    return {kind["kind"]: kind for kind in answer.json()["kinds"]}


def remove(client: TestClient, job_id: str) -> None:
    """Remove records as a worker does."""
    for kind in RecordKind:
        with database_of(client).write() as session:
            assert remove_batch(session, kind, 1.0, job_id) is not None
            complete(session, kind, 1.0, job_id)


def test_the_preview_counts_and_removes_nothing(old_job: tuple[TestClient, str]) -> None:
    client, job_id = old_job
    submit(client, student="tiny-student", teacher="tiny-teacher", task="exact")
    shown = kinds(client)
    assert {kind: one["days"] for kind, one in shown.items()} == {
        "events": None,
        "metrics": 40,
        "trajectories": None,
        "checkpoints": None,
    }
    assert shown["events"]["num_jobs"] == 0
    metrics = shown["metrics"]
    assert (metrics["num_jobs"], metrics["num_measured_jobs"], metrics["num_rows"]) == (1, 1, 4)
    with database_of(client).read() as session:
        assert metrics["num_bytes"] == num_bytes(session, RecordKind.METRICS, [job_id]) > 4 * 20
    assert metrics["oldest_finished_at"][:10] == f"{datetime.now(UTC) - timedelta(days=50):%Y-%m-%d}"
    other = kinds(client, metrics_days=60, trajectories_days=1, events_days=49, checkpoints_days=50)
    assert [one["num_jobs"] for one in other.values()] == [1, 0, 1, 1]
    num_events = len(client.get(f"/jobs/{job_id}/events").json()["data"])
    assert [one["num_rows"] for one in other.values()] == [num_events - 1, 0, 2, 1]
    assert other["checkpoints"]["num_bytes"] == sum(
        file["num_bytes"] for file in client.get(f"/jobs/{job_id}/checkpoints/1").json()["files"]
    )
    assert len(client.get(f"/jobs/{job_id}/metrics").json()["data"]) == 2
    assert client.get(f"/jobs/{job_id}").json()["removed_before"] == {}


def test_only_admins_see_it_and_limits_are_whole_days(client: TestClient) -> None:
    for scope in ("read", "submit"):
        made = client.post("/keys", json={"name": "test", "owner": "ann", "scopes": [scope]}).json()
        headers = {"authorization": f"Bearer {made['key']}"}
        assert client.get("/retention", headers=headers).status_code == 403
    for value in ("0", "-1", "1.5", "nan", "1e9", "36501", ""):
        answer = client.get("/retention", params={"events_days": value})
        assert answer.status_code == 422, value
        assert answer.json()["error"]["param"] == "events_days"
    assert client.get("/retention", params={"event_days": "1"}).status_code == 422


@pytest.mark.parametrize("value", ["0", "-1", "nan", "inf", "36501", "a month"])
def test_a_wrong_limit_ends_the_start(value: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TRD_RETAIN_EVENTS_DAYS", value)
    with pytest.raises(ValueError, match=f"^TRD_RETAIN_EVENTS_DAYS = {value}: "):
        Settings.from_environment()


def test_fractions_of_days_and_an_empty_variable_are_fine(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TRD_RETAIN_EVENTS_DAYS", "0.5")
    monkeypatch.setenv("TRD_RETAIN_METRICS_DAYS", "")
    settings = Settings.from_environment()
    assert (settings.retain_events_days, settings.retain_metrics_days) == (0.5, None)


def test_a_reader_learns_that_records_were_removed(old_job: tuple[TestClient, str]) -> None:
    client, job_id = old_job
    path = f"/jobs/{job_id}"

    def times_come_from() -> list[str]:
        """Return the jobs from which the times of later ones are estimated."""
        with database_of(client).read() as session:
            return [row[0] for row in history.finished_at_once(session, "admin", 10)]

    set_job(client, job_id, attempt=1)
    assert times_come_from() == [job_id]
    assert client.get(f"{path}/metrics").json()["removed_before"] is None
    num_events = client.get(f"{path}/events").json()["data"][-1]["sequence"]
    remove(client, job_id)
    today = f"{datetime.now(UTC):%Y-%m-%d}"
    removed = client.get(path).json()["removed_before"]
    assert {kind: at[:10] for kind, at in removed.items()} == {kind.value: today for kind in RecordKind}
    for records in ("metrics", "trajectories"):
        page = client.get(f"{path}/{records}").json()
        assert (page["data"], page["removed_before"]) == ([], removed[records])
    missing = client.get(f"{path}/trajectories/0:0")
    assert (missing.status_code, f"those from before {today} were removed" in missing.text) == (404, True)
    assert [row["sequence"] for row in client.get(f"{path}/events").json()["data"]] == [num_events]
    assert client.get(f"{path}/checkpoints/latest").json()["step"] == 2
    assert len(client.get(f"{path}/evaluations").json()["data"]) == 2
    with client.stream("GET", f"{path}/events", headers={"accept": "text/event-stream"}) as stream:
        assert [line for line in stream.iter_lines() if line.startswith("event:")][-1] == "event: end"
    assert times_come_from() == [], "its trajectories cannot be counted"
    openai = client.get(f"/v1/fine_tuning/jobs/{job_id}").json()
    assert (openai["status"], openai["trained_tokens"]) == ("succeeded", None)
    for tab in ("", "/trajectories", "/samples", "/events", "/checkpoints", "/diagnosis"):
        shown = client.get(f"/ui{path}{tab}", headers={"accept": "text/html"})
        assert (shown.status_code, f"metrics from before {today}" in shown.text) == (200, True), tab
        assert "No trajectories yet" not in shown.text, tab
        assert "No samples yet" not in shown.text


def test_a_stream_that_is_behind_goes_on_with_the_events_that_are_left(
    client: TestClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(retention, "BATCH_ROWS", 5)
    job_id = submit(client)
    add_events(database_of(client), job_id, 12)
    finish_job(database_of(client), job_id)
    set_job(client, job_id, finished_at=datetime.now(UTC) - timedelta(days=50))
    with database_of(client).write() as session:
        assert retention.remove_batch(session, RecordKind.EVENTS, 1.0, job_id) is not None
    headers = {"accept": "text/event-stream", "last-event-id": "3"}
    with client.stream("GET", f"/jobs/{job_id}/events", headers=headers) as stream:
        lines = list(stream.iter_lines())
    last = client.get(f"/jobs/{job_id}/events").json()["data"][-1]["sequence"]
    assert [line for line in lines if line.startswith("id: ")] == [f"id: {n}" for n in range(6, last + 1)]
    assert "event: end" in lines
