"""The claim is exclusive, the lease ends by the database's clock, and the fence holds."""

from __future__ import annotations

import itertools
import multiprocessing
import time
from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor
from contextlib import ExitStack
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from sqlalchemy import insert, select, text, update

from contract.database import Database, DatabaseNow
from contract.events import NewEvent, append_events
from contract.job_state import TRANSITIONS, AttemptStatus, JobStatus
from contract.routing import Needs, Offer
from contract.tables import Attempt, Job
from tests.worker.workbench import ANYTHING, Workbench
from worker.failures import AttemptEnd, EndKind, Failure
from worker.lease import LeaseLostError, claim, fenced, finish, has_waiting, lock_expired, renew
from worker.repository import ProgressBatch, write_progress

FAILED = AttemptEnd(EndKind.FAILED, 1, Failure("engine_crashed", "it fell over"))
STOPPED = AttemptEnd(EndKind.STOPPED, 75)
FINISHED = AttemptEnd(EndKind.FINISHED, 0, summary={"seconds_by_phase": {"training": 2.0}})


def test_a_claim_sets_the_job_running_and_records_the_attempt(bench: Workbench) -> None:
    job_id = bench.add_job()
    before = datetime.now(UTC)
    lease = bench.claim("worker-1", lease_seconds=30)
    assert lease is not None
    job, (attempt,) = bench.job(job_id), bench.attempts(job_id)
    assert (lease.job_id, lease.token, lease.attempt) == (job_id, 1, 1)
    assert lease.spec["mode"] == "opd"
    assert (job.status, job.lease_owner, job.lease_token, job.attempt) == ("running", "worker-1", 1, 1)
    assert job.phase == "preparing"
    assert job.lease_expires_at is not None
    assert abs(job.lease_expires_at - before - timedelta(seconds=30)) < timedelta(seconds=5)
    assert (attempt.number, attempt.worker, attempt.lease_token, attempt.status) == (1, "worker-1", 1, "running")
    (event,) = bench.events(job_id)
    assert (event.sequence, event.type, event.data["status"]) == (1, "status", "running")


def test_claims_go_by_priority_then_age_and_never_leave_the_queues(bench: Workbench) -> None:
    old = bench.add_job()
    young = bench.add_job()
    urgent = bench.add_job(priority=5)
    bench.add_job(queue="elsewhere", priority=100)
    bench.add_job(status=JobStatus.PAUSED)
    bench.add_job(deleted_at=datetime.now(UTC))
    leases = [bench.claim() for _ in range(4)]
    assert [lease and lease.job_id for lease in leases] == [urgent, old, young, None]


def test_of_several_queues_the_most_urgent_job_is_claimed(bench: Workbench) -> None:
    jobs = [bench.add_job(queue=queue, priority=priority) for queue, priority in (("a", 0), ("b", 2), ("a", 2))]
    jobs.append(bench.add_job(queue="c", priority=9))
    with bench.database.write() as session:
        claims = [claim(session, Offer(queues=("a", "b")), worker="w", lease_seconds=30) for _ in range(4)]
    assert [lease and lease.job_id for lease in claims] == [jobs[1], jobs[2], jobs[0], None]


def test_a_claim_passes_over_what_others_are_claiming(postgres_url: str, tmp_path: Path) -> None:
    bench = Workbench(postgres_url, tmp_path)
    first, other = bench.add_job(queue="a", priority=1), bench.add_job(queue="b")
    with bench.database.write() as session, bench.database.write() as at_the_same_time:
        taken = claim(session, Offer(queues=("a", "b")), worker="1", lease_seconds=30)
        meanwhile = claim(at_the_same_time, Offer(queues=("a", "b")), worker="2", lease_seconds=30)
    bench.close()
    assert taken is not None
    assert meanwhile is not None
    assert (taken.job_id, meanwhile.job_id) == (first, other)


def test_of_several_kinds_the_most_urgent_job_that_nobody_is_claiming_is_claimed(
    postgres_url: str, tmp_path: Path
) -> None:
    bench = Workbench(postgres_url, tmp_path)
    one, other = (Needs(models=(name,)).model_dump_json() for name in ("one", "other"))
    kinds = ((one, 2), (one, 0), (other, 1), (None, 1))
    jobs = [bench.add_job(needs=needs, priority=priority) for needs, priority in kinds]
    with ExitStack() as open_claims:
        claims = [
            claim(open_claims.enter_context(bench.database.write()), ANYTHING, worker="w", lease_seconds=30)
            for _ in range(3)
        ]
    claims.append(bench.claim())
    bench.close()
    assert [lease and lease.job_id for lease in claims] == [jobs[0], jobs[2], jobs[3], jobs[1]]


def test_jobs_that_a_worker_cannot_run_are_not_read_one_by_one(postgres_url: str) -> None:
    database = Database(postgres_url)
    row = {"owner": "o", "mode": "opd", "spec": {}, "body_sha256": "", "latest_metrics": {}, "status": JobStatus.QUEUED}
    row |= {"created_at": datetime.now(UTC), "queue": "q"}
    needs = [Needs(models=(f"model-{number}",)).model_dump_json() for number in range(5)]
    rows = [{**row, "id": f"job_{n:05d}", "priority": n % 3, "needs": needs[n % 5]} for n in range(6_000)]
    rows.append({**row, "id": "job_99999", "priority": 0, "needs": Needs(models=("rare",)).model_dump_json()})
    with database.write() as session:
        session.execute(insert(Job), rows)
    before = _num_read(database)
    with database.write() as session:
        assert not has_waiting(session, Offer(queues=("q",), models=frozenset({"another"})))
        lease = claim(session, Offer(queues=("q",), models=frozenset({"rare"})), worker="w", lease_seconds=30)
    assert lease is not None
    assert lease.job_id == "job_99999"
    assert _num_read(database) - before < 100
    database.dispose()


@pytest.mark.parametrize("queues", [["a"], ["a", "b"]])
def test_a_claim_reads_one_job_of_a_queue_however_many_wait(postgres_url: str, queues: list[str]) -> None:
    database = Database(postgres_url)
    row = {"owner": "o", "mode": "opd", "spec": {}, "body_sha256": "", "latest_metrics": {}, "status": JobStatus.QUEUED}
    row["created_at"] = datetime.now(UTC)
    rows = [{**row, "id": f"job_{n:05d}", "queue": "ab"[n % 2], "priority": n % 3} for n in range(6_000)]
    with database.engine.connect().execution_options(isolation_level="AUTOCOMMIT") as connection:
        connection.execute(insert(Job), rows)
        connection.execute(text("VACUUM ANALYZE jobs"))
    before = _num_read(database)
    with database.write() as session:
        assert claim(session, Offer(queues=queues), worker="w", lease_seconds=30) is not None
    assert _num_read(database) - before < 50, "not a thousand of the same priority"
    database.dispose()


def _num_read(database: Database) -> int:
    """Return how many rows of jobs were read so far, from the table or by an index."""
    counted = "SELECT seq_tup_read + coalesce(idx_tup_fetch, 0) FROM pg_stat_user_tables WHERE relname = 'jobs'"
    with database.engine.connect() as connection:
        connection.execute(text("SELECT pg_stat_force_next_flush()"))
        connection.commit()
        return int(connection.execute(text(counted)).scalar_one())


def end_by_outage(bench: Workbench) -> str:
    lease = bench.claim()
    assert lease is not None
    failure = Failure("storage_unavailable", "the storage did not answer")
    finish(bench.database, lease, AttemptEnd(EndKind.FAILED, failure=failure), max_attempts=3)
    return lease.job_id


def rest(bench: Workbench, job_id: str, seconds: float) -> None:
    with bench.database.write() as session:
        ago = datetime.now(UTC) - timedelta(seconds=seconds)
        session.execute(update(Attempt).where(Attempt.job_id == job_id).values(finished_at=ago))


def test_a_job_rests_after_an_outage_and_lets_others_go_first(bench: Workbench) -> None:
    bench.add_job()
    job_id = end_by_outage(bench)
    assert bench.job(job_id).status == "queued"
    assert bench.claim() is None, "it would meet the same outage"
    event = bench.events(job_id)[-1]
    assert event.data["wait_seconds"] == 60
    assert event.message.endswith("last checkpoint after at least 60 s.")
    other = bench.add_job()
    lease = bench.claim()
    assert lease is not None
    assert lease.job_id == other
    rest(bench, job_id, 61)
    assert end_by_outage(bench) == job_id
    rest(bench, job_id, 61)
    assert bench.claim() is None, "the second time longer"
    rest(bench, job_id, 301)
    assert end_by_outage(bench) == job_id
    assert bench.job(job_id).error_code == "crash_loop"


def test_a_user_who_resumes_after_an_outage_is_not_kept_waiting(bench: Workbench) -> None:
    bench.add_job()
    job_id = end_by_outage(bench)
    bench.set_job(job_id, num_lost=0)
    assert bench.claim() is not None


def test_threads_never_claim_a_job_twice(bench: Workbench) -> None:
    jobs = {bench.add_job() for _ in range(40)}
    with ThreadPoolExecutor(8) as threads:
        claimed = list(threads.map(lambda n: _claim_until_empty(bench.database, f"w{n}"), range(8)))
    flat = list(itertools.chain.from_iterable(claimed))
    assert len(flat) == len(set(flat)) == 40
    assert set(flat) == jobs
    assert all(len(bench.attempts(job_id)) == 1 for job_id in jobs)


def test_processes_never_claim_a_job_twice(sqlite_bench: Workbench) -> None:
    """On SQLite, which locks a file; on PostgreSQL a process is one more connection, as a thread is."""
    bench = sqlite_bench
    jobs = {bench.add_job() for _ in range(30)}
    spawn = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(2, mp_context=spawn) as processes:
        claimed = list(processes.map(_claim_in_process, [bench.settings.database_url] * 2))
    flat = list(itertools.chain.from_iterable(claimed))
    assert len(flat) == 30
    assert set(flat) == jobs


def _claim_in_process(database_url: str) -> list[str]:
    database = Database(database_url)
    try:
        return _claim_until_empty(database, "process")
    finally:
        database.dispose()


def _claim_until_empty(database: Database, worker: str) -> list[str]:
    claimed = []
    while True:
        with database.write() as session:
            lease = claim(session, ANYTHING, worker=worker, lease_seconds=30)
        if lease is None:
            return claimed
        claimed.append(lease.job_id)


def test_renewing_extends_the_lease_and_returns_the_status(bench: Workbench) -> None:
    job_id = bench.add_job()
    lease = bench.claim(lease_seconds=1)
    assert lease is not None
    first_end = bench.job(job_id).lease_expires_at
    with bench.database.write() as session:
        assert renew(session, lease, 60) is JobStatus.RUNNING
    renewed_end = bench.job(job_id).lease_expires_at
    assert first_end is not None
    assert renewed_end is not None
    assert renewed_end - first_end > timedelta(seconds=50)
    bench.set_job(job_id, status=JobStatus.CANCELLING)
    with bench.database.write() as session:
        assert renew(session, lease, 60) is JobStatus.CANCELLING


def test_the_database_clock_is_comparable_with_stored_times(bench: Workbench) -> None:
    bench.add_job(created_at=datetime.now(UTC) - timedelta(seconds=1.5))
    with bench.database.read() as session:
        ages = [session.scalar(select(Job.created_at < DatabaseNow(-seconds))) for seconds in (0.0, 1.0, 10.0)]
    assert [bool(age) for age in ages] == [True, True, False]


def test_a_superseded_attempt_writes_nothing(bench: Workbench) -> None:
    stale = bench.claimed()
    assert finish(bench.database, stale, STOPPED, max_attempts=3) is JobStatus.QUEUED
    current = bench.claim("another")
    assert current is not None
    assert current.token > stale.token
    events_before = len(bench.events(stale.job_id))
    batch = ProgressBatch(job_columns={"step": 99}, events=[NewEvent("notice", "late")])
    with pytest.raises(LeaseLostError), fenced(bench.database, stale) as session:
        write_progress(session, stale, batch)
    with pytest.raises(LeaseLostError):
        finish(bench.database, stale, FINISHED, max_attempts=3)
    with pytest.raises(LeaseLostError), bench.database.write() as session:
        renew(session, stale, 30)
    job = bench.job(stale.job_id)
    assert (job.status, job.step, job.lease_owner) == ("running", 0, "another")
    assert len(bench.events(stale.job_id)) == events_before


def test_a_fenced_block_that_raises_writes_nothing(bench: Workbench) -> None:
    lease = bench.claimed()

    def write_half() -> None:
        with fenced(bench.database, lease) as session:
            append_events(session, lease.job_id, NewEvent("notice", "half"))
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        write_half()
    assert [event.message for event in bench.events(lease.job_id)] == ["Attempt 1 started."]


@pytest.mark.parametrize(
    ("current", "end", "expected"),
    [
        (JobStatus.RUNNING, FINISHED, JobStatus.SUCCEEDED),
        (JobStatus.CANCELLING, FINISHED, JobStatus.SUCCEEDED),
        (JobStatus.RUNNING, STOPPED, JobStatus.QUEUED),
        (JobStatus.PAUSING, STOPPED, JobStatus.PAUSED),
        (JobStatus.CANCELLING, STOPPED, JobStatus.CANCELLED),
        (JobStatus.RUNNING, FAILED, JobStatus.QUEUED),
        (JobStatus.PAUSING, FAILED, JobStatus.PAUSED),
        (JobStatus.CANCELLING, FAILED, JobStatus.CANCELLED),
    ],
)
def test_finishing_decides_the_jobs_status(
    sqlite_bench: Workbench, current: JobStatus, end: AttemptEnd, expected: JobStatus
) -> None:
    lease = sqlite_bench.claimed()
    sqlite_bench.set_job(lease.job_id, status=current)
    assert finish(sqlite_bench.database, lease, end, max_attempts=3) is expected
    assert expected in TRANSITIONS[current]
    job, (attempt,) = sqlite_bench.job(lease.job_id), sqlite_bench.attempts(lease.job_id)
    assert job.status == expected
    assert (job.lease_owner, job.lease_expires_at, job.phase) == (None, None, None)
    assert (job.finished_at is not None) == expected.is_final
    assert attempt.status == end.attempt_status
    assert attempt.exit_code == end.exit_code
    assert sqlite_bench.events(lease.job_id)[-1].data["status"] == expected


def test_a_success_keeps_the_runs_summary_in_its_event(bench: Workbench) -> None:
    lease = bench.claimed()
    finish(bench.database, lease, FINISHED, max_attempts=3)
    assert bench.events(lease.job_id)[-1].data["summary"] == {"seconds_by_phase": {"training": 2.0}}


def test_a_failure_that_cannot_be_retried_is_reported_with_its_hint(bench: Workbench) -> None:
    lease = bench.claimed()
    end = AttemptEnd(EndKind.FAILED, 1, Failure("context_too_long", "2048 + 16384 tokens"))
    assert finish(bench.database, lease, end, max_attempts=3) is JobStatus.FAILED
    job = bench.job(lease.job_id)
    assert (job.error_code, job.error_message, job.error_retryable) == (
        "context_too_long",
        "2048 + 16384 tokens",
        False,
    )
    assert job.error_hint is not None
    assert "max_prompt_tokens" in job.error_hint


def test_failures_without_progress_end_in_a_crash_loop(bench: Workbench) -> None:
    job_id = bench.add_job()
    statuses = []
    for _ in range(3):
        lease = bench.claim()
        assert lease is not None
        statuses.append(finish(bench.database, lease, FAILED, max_attempts=3))
    assert statuses == [JobStatus.QUEUED, JobStatus.QUEUED, JobStatus.FAILED]
    job = bench.job(job_id)
    assert job.error_code == "crash_loop"
    assert job.error_message == (
        "3 attempts in a row ended without a step of progress; the last: engine_crashed: it fell over"
    )
    assert job.num_lost == 0, "a user who resumes it starts with a clean count"


def test_a_step_of_progress_starts_the_count_anew_and_repeating_old_steps_does_not(bench: Workbench) -> None:
    bench.add_job()
    counts = []
    for last_step in (0, 5, 5, 4, 6):
        lease = bench.claim()
        assert lease is not None
        with fenced(bench.database, lease) as session:
            write_progress(session, lease, ProgressBatch(job_columns={"step": last_step}))
        finish(bench.database, lease, FAILED, max_attempts=10)
        counts.append(bench.job(lease.job_id).num_lost)
    assert counts == [1, 0, 1, 2, 0]


def test_only_an_expired_lease_can_be_taken_away(bench: Workbench) -> None:
    bench.add_job()
    lease = bench.claim(lease_seconds=0.3)
    assert lease is not None
    with bench.database.write() as session:
        assert lock_expired(session, lease.job_id) is None
    time.sleep(0.4)
    with bench.database.write() as session:
        expired = lock_expired(session, lease.job_id)
        assert expired is not None
        assert expired.attempt == 1


def test_events_are_numbered_without_a_gap_by_many_writers(bench: Workbench) -> None:
    lease = bench.claimed()

    def append(n: int) -> None:
        with bench.database.write() as session:
            append_events(session, lease.job_id, NewEvent("notice", f"{n}a"), NewEvent("notice", f"{n}b"))

    with ThreadPoolExecutor(6) as threads:
        list(threads.map(append, range(12)))
    assert [event.sequence for event in bench.events(lease.job_id)] == list(range(1, 26))
    assert bench.job(lease.job_id).num_events == 25
    assert bench.attempts(lease.job_id)[0].status == AttemptStatus.RUNNING
