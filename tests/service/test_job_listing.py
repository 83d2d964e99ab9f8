from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from fastapi.testclient import TestClient
from sqlalchemy import event

from contract.ids import new_id
from contract.tables import Job, JobTag
from service.jobs import repository
from tests.service.records import database_of, submit

START = datetime(2026, 1, 1, tzinfo=UTC)


def add_jobs(client: TestClient, count: int) -> list[str]:
    """Add jobs a second apart, the oldest first; every third failed, every second opsd, every fifth tagged."""
    ids = []
    with database_of(client).write() as session:
        for number in range(count):
            at = START + timedelta(seconds=number)
            job = Job(
                id=new_id("job_", now_seconds=at.timestamp()),
                owner="admin",
                name=None if number == 4 else f"Run {number} at 50% of_it",
                mode="opsd" if number % 2 else "trd",
                spec={},
                body_sha256="",
                created_at=at,
                status="failed" if number % 3 == 0 else "succeeded",
                queue="trd-default",
                priority=0,
                latest_metrics={},
            )
            session.add(job)
            session.flush()
            ids.append(job.id)
            if number % 5 == 0:
                session.add(JobTag(job_id=job.id, tag="fifth"))
    return ids


def listed(client: TestClient, **params: object) -> list[str]:
    response = client.get("/jobs", params={"limit": 100, **params})  # type: ignore[arg-type, dict-item]
    assert response.status_code == 200, response.text
    return [job["id"] for job in response.json()["data"]]


def test_pages_follow_one_another_without_gap_or_repetition(either_client: TestClient) -> None:
    ids = add_jobs(either_client, 25)
    seen: list[str] = []
    after = None
    for _ in range(10):
        page = either_client.get("/jobs", params={"limit": 10, **({"after": after} if after else {})}).json()
        assert page["object"] == "list"
        seen += [job["id"] for job in page["data"]]
        if not page["has_more"]:
            break
        after = seen[-1]
    assert seen == ids[::-1]


def test_a_page_that_is_just_full_has_no_more(client: TestClient) -> None:
    add_jobs(client, 10)
    assert client.get("/jobs", params={"limit": 10}).json()["has_more"] is False
    assert client.get("/jobs", params={"limit": 9}).json()["has_more"] is True


def test_filters_combine(either_client: TestClient) -> None:
    ids = add_jobs(either_client, 30)
    assert listed(either_client, status="failed") == ids[::3][::-1]
    assert listed(either_client, status=["failed", "succeeded"]) == ids[::-1]
    assert listed(either_client, status="running") == []
    assert listed(either_client, mode="opsd") == ids[1::2][::-1]
    assert listed(either_client, tag="fifth") == ids[::5][::-1]
    assert listed(either_client, tag="fifth", mode="trd", status="failed") == [ids[0]]
    assert listed(either_client, tag="sixth") == []


def test_a_name_is_found_by_any_part_of_it(either_client: TestClient) -> None:
    ids = add_jobs(either_client, 12)
    assert listed(either_client, name="run 1") == [ids[11], ids[10], ids[1]]
    assert listed(either_client, name="% OF_") == [*ids[5:][::-1], *ids[:4][::-1]]
    assert listed(either_client, name="%run%") == []
    assert listed(either_client, name="run 1", mode="opsd", tag="fifth") == []
    assert listed(either_client, name="run 1", mode="trd", tag="fifth") == [ids[10]]


def test_a_name_is_looked_up_in_an_index_that_holds_the_order(client: TestClient) -> None:
    add_jobs(client, 3)
    with database_of(client).read() as session:
        seen: list[tuple[str, Any]] = []
        event.listen(session.connection(), "before_cursor_execute", lambda *given: seen.append(given[2:4]))
        repository.page(session, "admin", repository.JobQuery(name="x"), {})
        statement, values = seen[0]
        plan = session.connection().exec_driver_sql(f"EXPLAIN QUERY PLAN {statement}", values).all()
    assert len(plan) == 1, "neither a sort nor a second table"
    assert "ix_jobs_owner_id_name_mode_deleted_at (owner=?)" in plan[0].detail


def test_a_range_of_time_includes_its_beginning_only(either_client: TestClient) -> None:
    ids = add_jobs(either_client, 10)
    bounds = {
        "created_after": (START + timedelta(seconds=3)).isoformat(),
        "created_before": (START + timedelta(seconds=6)).isoformat(),
    }
    assert listed(either_client, **bounds) == ids[3:6][::-1]
    shifted = (START + timedelta(seconds=3)).astimezone().isoformat()
    assert listed(either_client, created_after=shifted, limit=100) == ids[3:][::-1]
    between = (START + timedelta(seconds=3, microseconds=1)).isoformat()
    assert listed(either_client, created_after=between) == ids[4:][::-1]
    assert listed(either_client, created_before=between) == ids[:4][::-1]


@pytest.mark.parametrize(
    ("params", "param", "words"),
    [
        ({"limit": 0}, "limit", "limit = 0: input should be greater than or equal to 1"),
        ({"limit": 101}, "limit", "less than or equal to 100"),
        ({"status": "done"}, "status.0", "'queued', 'running'"),
        ({"name": ""}, "name", "at least 1 character"),
        ({"mode": "sft"}, "mode", "'opd', 'opsd' or 'trd'"),
        ({"created_after": "yesterday"}, "created_after", "yesterday"),
        ({"created_after": "2026-01-01T00:00:00"}, "created_after", "timezone"),
        ({"state": "failed"}, "state", "not permitted"),  # it would list jobs of every status
    ],
)
def test_a_wrong_parameter_is_named(shared_client: TestClient, params: dict[str, str], param: str, words: str) -> None:
    response = shared_client.get("/jobs", params=params)
    assert response.status_code == 422
    error = response.json()["error"]
    assert error["param"] == param
    assert words in error["message"]


@pytest.mark.parametrize(
    ("filters", "finds"),
    [
        ({"created_before": "9999-12-31T23:59:59.999999Z"}, True),
        ({"created_before": "9999-12-31T23:59:59-14:00"}, True),
        ({"created_after": "9999-12-31T23:59:59-14:00"}, False),
        ({"created_after": "0001-01-01T00:00:00+14:00"}, True),
        ({"created_before": "0001-01-01T00:00:00+14:00"}, False),
    ],
)
def test_the_calendars_ends_are_times_too(client: TestClient, filters: dict[str, str], finds: bool) -> None:
    submit(client)
    answer = client.get("/jobs", params=filters)
    assert answer.status_code == 200, answer.text
    assert bool(answer.json()["data"]) is finds
