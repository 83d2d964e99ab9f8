"""When a job that waits is expected to start and finish."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from fastapi.testclient import TestClient
from sqlalchemy import event, text

from contract.events import NewEvent, append_events
from contract.job_state import JobStatus
from service.jobs.waiting import MAX_BEFORE, MAX_WORKERS, _start_in_seconds
from tests.service.conftest import AUTHORIZED
from tests.service.records import context_of, database_of, job_body, set_job, submit
from tests.service.test_worker_health import add_worker

SECONDS = {"preparing": 10.0, "rollout": 40.0, "training": 50.0}
CLOCK_SECONDS = 10.0
"""Seconds that may pass between two looks at the clock on a busy machine."""
Submitted = dict[str, Any]


@pytest.fixture
def body(either_client: TestClient) -> Submitted:
    """Times of a job on separate data."""
    return job_body(either_client)


def succeeded(client: TestClient, body: Submitted, seconds: dict[str, float] = SECONDS, **values: Any) -> str:
    """Add a job that ended in its first attempt, after so many seconds of each phase."""
    job_id = submit(client, **body)
    with database_of(client).write() as session:
        ended = {"status": "succeeded", "summary": {"seconds_by_phase": seconds}}
        append_events(session, job_id, NewEvent("status", "The run is over.", ended))
    set_job(client, job_id, **{"status": JobStatus.SUCCEEDED, "attempt": 1, **values})
    return job_id


def running(client: TestClient, body: Submitted, eta_seconds: float | None, **values: Any) -> str:
    """Add a job whose worker lives."""
    job_id = submit(client, **body)
    now = datetime.now(UTC)
    lease = {"lease_owner": "w", "lease_expires_at": now + timedelta(minutes=5), "started_at": now, "attempt": 1}
    set_job(client, job_id, **{"status": JobStatus.RUNNING, "eta_seconds": eta_seconds, **lease, **values})
    return job_id


def expected(client: TestClient, job_id: str) -> tuple[float | None, float | None]:
    """Return the seconds from now to its start and to its finish."""
    job = client.get(f"/jobs/{job_id}").json()
    now = datetime.now(UTC)
    times = [job[name] for name in ("expected_start_at", "expected_finish_at")]
    start, finish = (None if at is None else (datetime.fromisoformat(at) - now).total_seconds() for at in times)
    return start, finish


def note(client: TestClient, job_id: str) -> str:
    """Return why a time is null."""
    words = client.get(f"/jobs/{job_id}").json()["expected_note"]
    assert isinstance(words, str)
    return words


def about(*seconds: float) -> Any:
    return pytest.approx(seconds, abs=CLOCK_SECONDS)


def test_a_job_starts_when_what_runs_and_waits_before_it_is_over(either_client: TestClient, body: Submitted) -> None:
    client = either_client
    succeeded(client, body)
    running(client, body, 300.0)
    first, second = submit(client, **body), submit(client, **body)
    assert expected(client, first) == about(300, 400)
    assert expected(client, second) == about(400, 500)
    urgent = submit(client, **body, priority=5)
    assert expected(client, urgent) == about(300, 400)
    assert expected(client, second) == about(500, 600)
    assert client.get(f"/jobs/{second}").json()["expected_note"] is None


def test_the_worker_that_is_free_first_takes_the_next_job(either_client: TestClient, body: Submitted) -> None:
    client = either_client
    succeeded(client, body)
    for eta_seconds in (1000.0, 130.0):
        running(client, body, eta_seconds)
    first, second = submit(client, **body), submit(client, **body)
    assert expected(client, first) == about(130, 230)
    assert expected(client, second) == about(230, 330)


def test_jobs_of_other_queues_do_not_count(either_client: TestClient, body: Submitted) -> None:
    client = either_client
    succeeded(client, body)
    running(client, body, 300.0)
    for job_id in (running(client, body, 5.0), submit(client, **body)):
        set_job(client, job_id, queue="another")
    assert expected(client, submit(client, **body)) == about(300, 400)


def test_like_jobs_stand_in_where_the_engine_has_no_estimate_yet(either_client: TestClient, body: Submitted) -> None:
    client = either_client
    succeeded(client, body)
    job_id = running(client, body, None, started_at=datetime.now(UTC) - timedelta(seconds=40))
    waiting = submit(client, **body)
    assert expected(client, waiting) == about(60, 160)
    set_job(client, job_id, started_at=datetime.now(UTC) - timedelta(seconds=101))
    assert expected(client, waiting) == (None, None), "it takes longer than they did: nobody knows how long"
    set_job(client, job_id, started_at=datetime.now(UTC), attempt=2)
    assert expected(client, waiting) == (None, None), "it began somewhere in its middle"


def test_times_grow_with_the_data(either_client: TestClient, body: Submitted) -> None:
    client = either_client
    succeeded(client, body)
    running(client, body, 300.0)
    half = job_body(client, optim={"batch_size": 1, "max_steps": 20}, evaluation={"holdout": 0})
    whole = job_body(client, optim={"batch_size": 1, "max_steps": 40}, evaluation={"holdout": 0})
    found = [client.get(f"/jobs/{submit(client, **each)}").json() for each in (half, whole)]
    took = [
        datetime.fromisoformat(job["expected_finish_at"]) - datetime.fromisoformat(job["expected_start_at"])
        for job in found
    ]
    # Preparing takes its 10 s once; rollouts and training twice as long.
    assert took[1].total_seconds() - 10 == pytest.approx(2 * (took[0].total_seconds() - 10), abs=0.1)


@pytest.mark.parametrize(
    ("lost", "why"),
    [
        ({"status": JobStatus.PAUSING}, "being paused or cancelled"),
        ({"status": JobStatus.CANCELLING}, "being paused or cancelled"),
        ({"lease_expires_at": datetime(2026, 1, 1, tzinfo=UTC)}, "its worker does not respond"),
        ({"status": JobStatus.SUCCEEDED}, "nothing runs in the queue trd-default"),
    ],
    ids=["pausing", "cancelling", "lost", "over"],
)
def test_without_a_worker_that_will_be_free_there_is_no_estimate(
    either_client: TestClient, body: Submitted, lost: dict[str, Any], why: str
) -> None:
    client = either_client
    add_worker(client, "another")
    succeeded(client, body)
    job_id = running(client, body, 300.0)
    waiting = submit(client, **body)
    assert expected(client, waiting) == about(300, 400)
    set_job(client, job_id, **lost)
    assert expected(client, waiting) == (None, None)
    assert why in note(client, waiting)


def test_unknown_times_give_no_estimate(either_client: TestClient, body: Submitted) -> None:
    client = either_client
    running(client, body, 300.0)
    first, second = submit(client, **body), submit(client, **body)
    start, finish = expected(client, first)
    assert (start, finish) == (pytest.approx(300, abs=CLOCK_SECONDS), None), "no like job: its own time is unknown"
    assert "no similar job of its owner" in note(client, first)
    assert expected(client, second) == (None, None)
    assert "the duration of a job that runs or waits before it" in note(client, second)
    succeeded(client, {**body, "mode": "opd"})
    succeeded(client, body, attempt=2)
    assert expected(client, second) == (None, None), "neither is like them and whole"
    succeeded(client, body)
    assert expected(client, second) == about(400, 500)
    set_job(client, first, step=3)
    assert expected(client, second) == (None, None), "a run that continues in its middle"
    assert "continues from a checkpoint" in note(client, first)


def test_an_estimate_left_on_a_waiting_job_is_not_used(either_client: TestClient, body: Submitted) -> None:
    client = either_client
    succeeded(client, body)
    running(client, body, 300.0)
    first, second = submit(client, **body), submit(client, **body)
    for waiting in (first, second):
        set_job(client, waiting, eta_seconds=5.0)
    assert expected(client, first) == about(300, 400)
    assert expected(client, second) == about(400, 500)


def test_another_owners_history_is_theirs(either_client: TestClient, body: Submitted) -> None:
    client = either_client
    succeeded(client, body)
    running(client, body, 300.0)
    key = client.post("/keys", json={"name": "k", "owner": "somebody", "scopes": ["read", "submit"]}).json()["key"]
    client.headers["authorization"] = f"Bearer {key}"
    theirs = job_body(client)
    job_id = submit(client, **theirs)
    start, finish = expected(client, job_id)
    assert (start, finish) == (pytest.approx(300, abs=CLOCK_SECONDS), None)
    succeeded(client, theirs, {"preparing": 70.0})
    assert expected(client, job_id) == about(300, 370)
    client.headers.update(AUTHORIZED)
    assert expected(client, submit(client, **body)) == about(370, 470)


def test_far_back_in_a_queue_and_with_many_workers_there_is_no_estimate(
    either_client: TestClient, body: Submitted
) -> None:
    client = either_client
    succeeded(client, body)
    job_id = running(client, body, 300.0)
    made = [submit(client, **body) for _ in range(MAX_BEFORE + 2)]
    assert expected(client, made[-2]) == about(300 + MAX_BEFORE * 100, 300 + (MAX_BEFORE + 1) * 100)
    assert expected(client, made[-1]) == (None, None)
    assert note(client, made[-1]) == f"more than {MAX_BEFORE} jobs wait before it"
    with database_of(client).write() as session:
        columns = [row[0] for row in session.execute(text("SELECT * FROM jobs LIMIT 0")).cursor.description]
        values = ", ".join(f"'{{0}}' || {name}" if name == "id" else name for name in columns)
        statement = f"INSERT INTO jobs ({', '.join(columns)}) SELECT {values} FROM jobs WHERE id = '{job_id}'"
        for number in range(MAX_WORKERS):
            session.execute(text(statement.format(number)))
    assert expected(client, made[0]) == (None, None)
    assert note(client, made[0]) == f"more than {MAX_WORKERS} jobs run in the queue trd-default"


def test_only_a_job_that_waits_costs_statements(either_client: TestClient, body: Submitted) -> None:
    client = either_client
    succeeded(client, body)
    job_id, waiting = running(client, body, 300.0), submit(client, **body)
    statements: list[str] = []
    engine = context_of(client).database.engine
    event.listen(engine, "before_cursor_execute", lambda *given: statements.append(given[2]))
    client.get(f"/jobs/{job_id}")
    assert sum(statement != "BEGIN" for statement in statements) == 1
    client.get(f"/jobs/{waiting}")
    assert sum(statement != "BEGIN" for statement in statements) == 1 + 3 + 2, "two look at the workers"
    (listed,) = client.get("/jobs", params={"status": "queued"}).json()["data"]
    assert (listed["expected_start_at"], listed["expected_finish_at"]) == (None, None)


def test_an_infinite_time_gives_no_estimate(either_client: TestClient, body: Submitted) -> None:
    running(either_client, body, 1e300)
    assert expected(either_client, submit(either_client, **body)) == (None, None)


@pytest.mark.parametrize(
    ("remaining", "before", "start"),
    [
        ([7.0], [], 7.0),
        ([7.0, 3.0], [], 3.0),
        ([7.0, 3.0], [1.0], 4.0),
        ([7.0, 3.0], [9.0, 9.0], 12.0),
        ([7.0, None], [], None),
        ([7.0], [None], None),
    ],
)
def test_workers_take_jobs_in_turn(
    remaining: list[float | None], before: list[float | None], start: float | None
) -> None:
    assert _start_in_seconds(remaining, before) == start
