"""What a lost worker held is given back, by one reaper at a time."""

from __future__ import annotations

import contextlib
import itertools
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import psycopg
import pytest
from sqlalchemy import event, select
from sqlalchemy.orm import Session

from contract.job_state import JobStatus
from contract.messages import DEFAULT_QUEUE
from contract.tables import LeaderLease, Worker
from tests.worker.scripted_engine import Plan
from tests.worker.workbench import Workbench, eventually
from worker.lease import fenced
from worker.reaper import Reaper, first_waiting, lead, make_reaper, reap
from worker.repository import ProgressBatch, write_progress
from worker.supervisor import make_poller, run_next


def lose(bench: Workbench, status: JobStatus = JobStatus.RUNNING) -> str:
    """Add a job whose worker has gone and whose lease is over."""
    lease = bench.claim(lease_seconds=0.05) or bench.claimed()
    bench.set_job(lease.job_id, status=status, lease_expires_at=datetime.now(UTC) - timedelta(seconds=1))
    return lease.job_id


def test_a_lost_job_waits_again_and_its_attempt_is_lost(bench: Workbench) -> None:
    job_id = lose(bench)
    token = bench.job(job_id).lease_token
    assert reap(bench.database, max_attempts=3) == [job_id]
    job, (attempt,) = bench.job(job_id), bench.attempts(job_id)
    assert (job.status, job.num_lost, job.lease_owner, job.lease_expires_at) == ("queued", 1, None, None)
    assert job.lease_token > token
    assert (attempt.status, attempt.error_code) == ("lost", "worker_lost")
    assert bench.events(job_id)[-1].level == "warn"
    assert reap(bench.database, max_attempts=3) == []


@pytest.mark.parametrize(("status", "becomes"), [(JobStatus.CANCELLING, "cancelled"), (JobStatus.PAUSING, "paused")])
def test_a_request_for_a_lost_job_is_carried_out(bench: Workbench, status: JobStatus, becomes: str) -> None:
    job_id = lose(bench, status)
    reap(bench.database, max_attempts=3)
    assert bench.job(job_id).status == becomes


def test_a_live_lease_is_left_alone(bench: Workbench) -> None:
    lease = bench.claimed()
    waiting = bench.add_job()
    assert reap(bench.database, max_attempts=3) == []
    assert bench.job(lease.job_id).status == "running"
    assert bench.job(waiting).status == "queued"


def test_losses_without_progress_end_in_a_crash_loop(bench: Workbench) -> None:
    job_id = bench.add_job()
    for _ in range(3):
        lose(bench)
        reap(bench.database, max_attempts=3)
    job = bench.job(job_id)
    assert (job.status, job.error_code, job.attempt) == ("failed", "crash_loop", 3)
    assert [attempt.status for attempt in bench.attempts(job_id)] == ["lost"] * 3


def test_losses_with_progress_do_not_add_up(bench: Workbench) -> None:
    job_id = bench.add_job()
    for step in range(1, 6):
        lease = bench.claim()
        assert lease is not None
        with fenced(bench.database, lease) as session:
            write_progress(session, lease, ProgressBatch(job_columns={"step": step}))
        bench.set_job(job_id, lease_expires_at=datetime.now(UTC) - timedelta(seconds=1))
        reap(bench.database, max_attempts=3)
    assert (bench.job(job_id).status, bench.job(job_id).num_lost) == ("queued", 0)


def test_a_job_that_cannot_be_ended_does_not_keep_the_others(
    bench: Workbench, caplog: pytest.LogCaptureFixture
) -> None:
    broken, other = lose(bench), lose(bench)
    bench.set_job(broken, lease_expires_at=datetime.now(UTC) - timedelta(hours=1), num_events=0)
    assert reap(bench.database, max_attempts=3) == [other], "an event of the first one's number is there already"
    assert (bench.job(broken).status, bench.job(other).status) == ("running", "queued")
    assert broken in caplog.text


def test_two_reapers_at_once_count_a_loss_once(bench: Workbench) -> None:
    jobs = [lose(bench) for _ in range(6)]
    with ThreadPoolExecutor(4) as threads:
        reaped = list(threads.map(lambda _: reap(bench.database, max_attempts=3), range(4)))
    assert sorted(itertools.chain.from_iterable(reaped)) == sorted(jobs)
    assert [bench.job(job_id).num_lost for job_id in jobs] == [1] * 6


def test_one_leads_until_it_misses_its_turns(bench: Workbench) -> None:
    def leads(owner: str, seconds: float = 60) -> bool:
        with bench.database.write() as session:
            return lead(session, owner, lease_seconds=seconds)

    assert leads("a")
    assert not leads("b")
    assert leads("a", 0.2), "it stays the leader"
    time.sleep(0.3)
    assert leads("b")
    assert not leads("a")


def test_a_follower_waits_for_no_lock_of_the_leader(postgres_url: str, tmp_path: Path) -> None:
    bench = Workbench(postgres_url, tmp_path)
    leader, follower = bench.slot(), bench.slot()
    Reaper(leader, lambda *_: None).turn()
    with bench.database.write() as session:
        assert session.scalars(select(LeaderLease.owner).with_for_update()).all() == [leader.name]
        Reaper(follower, lambda *_: None).turn()  # would fail after POSTGRES_LOCK_SECONDS
    bench.close()


def test_the_leader_forgets_workers_that_have_ended(bench: Workbench) -> None:
    def living() -> set[str]:
        with bench.database.read() as session:
            return set(session.scalars(select(Worker.name)))

    leader, follower = (bench.slot(reaper_seconds=seconds) for seconds in (60.0, 0.01))
    reapers = [Reaper(slot, lambda *_: None) for slot in (leader, follower)]
    for reaper in reapers:
        reaper.turn()
    time.sleep(0.1)
    assert living() == {leader.name, follower.name}
    reapers[0].turn()
    assert living() == {leader.name}


def test_of_many_candidates_one_becomes_the_leader(bench: Workbench) -> None:
    def leads(n: int) -> bool:
        with bench.database.write() as session:
            return lead(session, f"worker-{n}", lease_seconds=60)

    with ThreadPoolExecutor(6) as threads:
        assert sum(threads.map(leads, range(6))) == 1


def test_one_bell_a_queue_is_rung_for_those_who_wait_long(bench: Workbench) -> None:
    long_ago = datetime.now(UTC) - timedelta(minutes=5)
    bench.add_job(created_at=long_ago)
    long = bench.add_job(created_at=long_ago, priority=3)
    other = bench.add_job(created_at=long_ago, queue="big")
    bench.add_job(queue="new")
    bench.add_job(created_at=long_ago, queue="paused", status=JobStatus.PAUSED)
    with bench.database.read() as session:
        assert sorted(first_waiting(session, waited_seconds=60)) == sorted([(long, DEFAULT_QUEUE), (other, "big")])


def test_looking_for_those_who_wait_long_sorts_no_queue(sqlite_bench: Workbench) -> None:
    for _ in range(3):
        sqlite_bench.add_job(created_at=datetime.now(UTC) - timedelta(minutes=5))
    asked: list[tuple[str, Any]] = []
    with sqlite_bench.database.read() as session:
        event.listen(session.connection(), "before_cursor_execute", lambda *given: asked.append((given[2], given[3])))
        assert len(first_waiting(session, waited_seconds=60)) == 1
        plans = [row[3] for sql, values in asked[:] for row in _plan(session, sql, values)]
    assert len(asked) >= 3
    assert all("USING" in plan and "INDEX" in plan for plan in plans), plans
    assert not any("TEMP B-TREE" in plan for plan in plans), plans


def _plan(session: Session, sql: str, values: Any) -> Any:
    return session.connection().exec_driver_sql(f"EXPLAIN QUERY PLAN {sql}", values)


def test_the_reaper_rings_at_its_pace(sqlite_bench: Workbench) -> None:
    job_id = sqlite_bench.add_job(created_at=datetime.now(UTC) - timedelta(minutes=5))
    rung: list[tuple[str, str]] = []
    reaper = Reaper(sqlite_bench.slot(ring_seconds=0.5), lambda *bell: rung.append(bell))
    reaper.turn()
    assert rung == []
    time.sleep(0.6)
    reaper.turn()
    reaper.turn()
    assert rung == [(job_id, DEFAULT_QUEUE)]


@pytest.mark.parametrize("database_url", ["postgres"], indirect=True)  # SQLite's locks are of processes of one machine
def test_a_job_is_given_back_though_its_worker_is_frozen_within_a_batch(
    bench: Workbench, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("contract.database.POSTGRES_IDLE_SECONDS", 0.5)
    job_id = lose(bench)
    url = bench.database.engine.url.set(drivername="postgresql").update_query_dict({"application_name": "other-worker"})
    with contextlib.closing(psycopg.connect(url.render_as_string(hide_password=False))) as frozen:
        frozen.pgconn.enter_pipeline_mode()
        frozen.pgconn.send_query_params(b"UPDATE jobs SET step = $1::integer", [b"9"])
        frozen.pgconn.send_flush_request()  # and no sync, with which a batch ends
        frozen.pgconn.flush()
        reaper = Reaper(bench.slot(), lambda *_: None)
        reaper.turn()
        assert bench.job(job_id).status == "running", "its row is locked"

        def is_queued() -> bool:
            reaper.turn()
            return bench.job(job_id).status == "queued"

        eventually(is_queued)
    assert bench.job(job_id).step != 9


def test_a_lost_job_is_found_and_finished_by_a_workers_own_threads(bench: Workbench) -> None:
    job_id = bench.add_job()
    run_next(bench.slot(Plan(num_steps=6, die_at_step=5)))
    lease = bench.claim("a worker that is then unplugged", lease_seconds=0.5)
    assert lease is not None
    slot = bench.slot(Plan(num_steps=6))
    threads = [make_reaper(slot, lambda *_: None), make_poller(slot)]
    for thread in threads:
        thread.start()
    try:
        eventually(lambda: bench.job(job_id).status == "succeeded")
    finally:
        slot.stopping.set()
        for thread in threads:
            thread.join(10)
    assert [attempt.status for attempt in bench.attempts(job_id)] == ["failed", "lost", "succeeded"]
    assert bench.attempts(job_id)[2].first_step == 4


def test_threads_outlive_a_database_that_cannot_be_opened(sqlite_bench: Workbench) -> None:
    slot = sqlite_bench.slot()
    a_folder = sqlite_bench.settings.data_dir
    a_folder.mkdir(parents=True, exist_ok=True)
    slot.settings = slot.settings.model_copy(update={"database_url": f"sqlite:///{a_folder}"})
    poller = make_poller(slot)
    poller.start()
    eventually(lambda: poller._last_error is not None)
    assert poller._thread.is_alive()
    slot.stopping.set()
    poller.join(5)
    assert not poller._thread.is_alive()
    assert threading.main_thread().is_alive()
