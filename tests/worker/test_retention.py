"""The retention policy removes what is due, nothing else, and says so."""

from __future__ import annotations

import threading
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from sqlalchemy import event, func, select, text

from contract import retention
from contract.events import NewEvent, append_events
from contract.job_state import FINAL_STATUSES, JobStatus
from contract.retention import RecordKind
from contract.tables import (
    AuditEntry,
    Checkpoint,
    Evaluation,
    JobEvent,
    MetricPoint,
    ProbeSample,
    Trajectory,
)
from tests.service.records import add_evaluation, add_events, add_metrics, add_probe_sample, add_trajectory
from tests.worker.scripted_engine import Plan
from tests.worker.test_leftovers import stored
from tests.worker.workbench import Workbench
from worker.reaper import Reaper
from worker.retention import Retention
from worker.supervisor import run_next

OF_RUN = (JobEvent, MetricPoint, Trajectory, ProbeSample, Evaluation, Checkpoint)
ALL = dict.fromkeys(RecordKind, 30.0)


def ago(days: float) -> datetime:
    return datetime.now(UTC) - timedelta(days=days)


def add_records(bench: Workbench, job_id: str, *, num_points: int = 3) -> None:
    add_events(bench.database, job_id, 3)
    add_metrics(bench.database, job_id, "loss", dict.fromkeys(range(1, num_points + 1), 0.5))
    for position in range(2):
        add_trajectory(bench.database, job_id, position)
    add_probe_sample(bench.database, job_id, 0)
    add_evaluation(bench.database, job_id, 0, 0.5)


def ended_job(bench: Workbench, *, days: float = 31, status: JobStatus = JobStatus.SUCCEEDED, **records: Any) -> str:
    job_id = bench.add_job()
    add_records(bench, job_id, **records)
    bench.set_job(job_id, status=status, finished_at=ago(days))
    return job_id


def counts(bench: Workbench, job_id: str) -> dict[str, int]:
    """Return the number of the job's rows by table, without empty tables."""
    with bench.database.read() as session:
        found = {table: session.scalar(select(func.count()).where(table.job_id == job_id)) for table in OF_RUN}
    return {table.__tablename__: number for table, number in found.items() if number}


def apply(bench: Workbench, policy: retention.Policy = ALL, *, seconds: float = 60.0) -> None:
    Retention(bench.database, bench.storage, policy).turn(seconds=seconds)


def audited(bench: Workbench) -> list[tuple[str, str, Any]]:
    with bench.database.read() as session:
        rows = session.scalars(select(AuditEntry).order_by(AuditEntry.id)).all()
    return [(row.owner, row.target, row.detail) for row in rows]


def test_only_jobs_that_ended_that_long_ago_lose_what_is_due(bench: Workbench) -> None:
    old, recent = ended_job(bench), ended_job(bench, days=29)
    open_jobs = []
    for status in set(JobStatus) - FINAL_STATUSES:
        open_jobs.append(bench.add_job(created_at=ago(400), started_at=ago(400)))
        add_records(bench, open_jobs[-1])
        # An end that an earlier version or a broken clock left behind.
        bench.set_job(open_jobs[-1], status=status, finished_at=ago(300))
    before = counts(bench, recent)
    apply(bench)
    assert counts(bench, old) == {"job_events": 1, "evaluations": 1}
    assert [event.sequence for event in bench.events(old)] == [3], "the last one says how the job ended"
    assert all(counts(bench, job_id) == before for job_id in [recent, *open_jobs])
    removed = bench.job(old).removed_before
    assert sorted(removed) == sorted(RecordKind)
    assert all(abs(datetime.now(UTC) - at) < timedelta(hours=1) for at in removed.values())
    assert bench.job(recent).removed_before == {}
    numbers = {"events": 2, "metrics": 3, "trajectories": 3}
    expected = [("retention", old, {"kind": k, "days": 30.0, "num_rows": n}) for k, n in numbers.items()]
    assert audited(bench) == expected
    apply(bench)
    assert audited(bench) == expected, "there is nothing left to do"


def test_each_kind_has_its_own_limit_and_none_keeps_for_ever(sqlite_bench: Workbench) -> None:
    job_id = ended_job(sqlite_bench, days=50)
    apply(sqlite_bench, {})
    apply(sqlite_bench, {RecordKind.METRICS: 40.0, RecordKind.TRAJECTORIES: 60.0, RecordKind.EVENTS: 36_500.0})
    left = {"job_events": 3, "trajectories": 2, "probe_samples": 1, "evaluations": 1}
    assert counts(sqlite_bench, job_id) == left
    assert list(sqlite_bench.job(job_id).removed_before) == ["metrics"]


def test_a_deleted_job_and_a_clone_are_left_alone(sqlite_bench: Workbench) -> None:
    parent, gone = ended_job(sqlite_bench), ended_job(sqlite_bench)
    clone = sqlite_bench.add_job(cloned_from=parent)
    add_records(sqlite_bench, clone)
    before = counts(sqlite_bench, clone)
    sqlite_bench.set_job(gone, deleted_at=ago(1))
    apply(sqlite_bench)
    assert counts(sqlite_bench, parent) == {"job_events": 1, "evaluations": 1}
    assert counts(sqlite_bench, clone) == before
    assert sqlite_bench.job(gone).removed_before == {}


def test_a_job_that_a_user_resumed_is_due_again_after_its_next_end(bench: Workbench) -> None:
    job_id = ended_job(bench, status=JobStatus.FAILED)
    apply(bench)
    first = bench.job(job_id).removed_before["metrics"]
    bench.set_job(job_id, status=JobStatus.QUEUED, finished_at=None)
    add_metrics(bench.database, job_id, "loss", {9: 0.1})
    apply(bench)
    assert counts(bench, job_id)["metric_points"] == 1
    bench.set_job(job_id, status=JobStatus.SUCCEEDED, finished_at=datetime.now(UTC))
    apply(bench)
    assert counts(bench, job_id)["metric_points"] == 1
    # Its second end and the first removal before it are long ago.
    bench.set_job(job_id, finished_at=ago(31), metrics_removed_before=ago(32))
    apply(bench)
    assert "metric_points" not in counts(bench, job_id)
    assert bench.job(job_id).removed_before["metrics"] > first


def test_killed_in_the_middle_it_goes_on_where_it_stopped(bench: Workbench, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(retention, "BATCH_ROWS", 10)
    job_id = ended_job(bench, num_points=35)
    only = {RecordKind.METRICS: 30.0}
    for _ in range(2):  # two of the batches, each committed
        with bench.database.write() as session:
            assert retention.remove_batch(session, RecordKind.METRICS, 30.0, job_id) is not None
    with suppress(KeyboardInterrupt), bench.database.write() as session:
        retention.remove_batch(session, RecordKind.METRICS, 30.0, job_id)
        raise KeyboardInterrupt
    assert counts(bench, job_id)["metric_points"] == 15
    assert bench.job(job_id).removed_before == {"metrics": bench.job(job_id).finished_at}, (
        "some are gone, and it says so"
    )
    apply(bench, only)
    assert "metric_points" not in counts(bench, job_id)
    assert [detail["num_rows"] for _, _, detail in audited(bench)] == [35]


def test_a_turn_ends_after_its_time_and_the_next_continues(sqlite_bench: Workbench) -> None:
    jobs = [ended_job(sqlite_bench) for _ in range(3)]
    apply(sqlite_bench, seconds=0)
    assert audited(sqlite_bench) == []
    apply(sqlite_bench)
    assert {target for _, target, _ in audited(sqlite_bench)} == set(jobs)


def test_several_at_once_do_no_harm(bench: Workbench, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(retention, "BATCH_ROWS", 5)
    jobs = [ended_job(bench, num_points=12) for _ in range(5)]
    with ThreadPoolExecutor(4) as threads:
        list(threads.map(lambda _: apply(bench), range(4)))
    apply(bench)  # a job that another held is skipped
    assert all(counts(bench, job_id) == {"job_events": 1, "evaluations": 1} for job_id in jobs)
    written = audited(bench)
    assert len(written) == len({(target, detail["kind"]) for _, target, detail in written}) == 15


def test_a_resume_waits_for_the_batch_and_ends_the_removal(bench: Workbench, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(retention, "BATCH_ROWS", 5)
    job_id = ended_job(bench, status=JobStatus.CANCELLED, num_points=12)

    def resume() -> None:
        with bench.database.write() as session:
            append_events(session, job_id, NewEvent("status", "again", {"status": "queued"}))
        bench.set_job(job_id, status=JobStatus.QUEUED, finished_at=None)

    with bench.database.write() as session:
        assert retention.remove_batch(session, RecordKind.METRICS, 30.0, job_id) is not None
        user = threading.Thread(target=resume)
        user.start()
    user.join(30)
    apply(bench)
    assert counts(bench, job_id)["metric_points"] == 7
    assert list(bench.job(job_id).removed_before) == ["metrics"]


def test_the_last_checkpoint_stays_and_the_files_of_the_others_go(bench: Workbench) -> None:
    job_id = bench.add_job(spec={"checkpoints": {"every_steps": 2, "keep": 5}})
    run_next(bench.slot(Plan(num_steps=6)))
    before = bench.checkpoint_steps(job_id)
    assert len(before) > 1
    bench.set_job(job_id, finished_at=ago(31))
    last = bench.rows(Checkpoint, job_id, Checkpoint.step)[-1]
    removes = bench.storage.remove_tree

    def fail(_prefix: str) -> None:
        raise OSError("the storage is away")

    bench.storage.remove_tree = fail  # type: ignore[method-assign]
    apply(bench)
    assert bench.checkpoint_steps(job_id) == [last.step], "no row names a file that may be gone"
    assert len(stored(bench, job_id)) == len(before)
    bench.storage.remove_tree = removes  # type: ignore[method-assign]
    apply(bench)
    assert stored(bench, job_id) == [last.storage_prefix]
    apply(bench)
    assert bench.checkpoint_steps(job_id) == [last.step]
    assert [d["num_rows"] for _, _, d in audited(bench) if d["kind"] == "checkpoints"] == [len(before) - 1]


def test_the_leading_reaper_applies_the_workers_settings(sqlite_bench: Workbench) -> None:
    job_id = ended_job(sqlite_bench)
    slot = sqlite_bench.slot()
    Reaper(slot, lambda *_: None).turn()
    assert sqlite_bench.job(job_id).removed_before == {}
    slot.settings = slot.settings.model_copy(update={"retain_metrics_days": 30.0})
    Reaper(slot, lambda *_: None).turn()
    assert list(sqlite_bench.job(job_id).removed_before) == ["metrics"]


def test_due_jobs_are_found_by_an_index_of_what_is_left(bench: Workbench) -> None:
    """However many jobs the policy has been applied to."""
    with bench.database.write() as session:
        asked: list[tuple[str, Any]] = []
        event.listen(session.connection(), "before_cursor_execute", lambda *given: asked.append((given[2], given[3])))
        retention.due_jobs(session, RecordKind.METRICS, 30.0, 5)
        ((sql, values),) = asked
        if not bench.database.is_sqlite:  # in a small table it would read and sort all rows
            session.execute(text("SET LOCAL enable_seqscan = off"))
            session.execute(text("SET LOCAL enable_sort = off"))
        explain = "EXPLAIN QUERY PLAN" if bench.database.is_sqlite else "EXPLAIN"
        plan = str(session.connection().exec_driver_sql(f"{explain} {sql}", values).all())
    assert "ix_jobs_with_metrics" in plan, plan
    bounds = "(finished_at<?)" if bench.database.is_sqlite else "Index Cond: (finished_at < "
    assert bounds in plan, plan
    assert "TEMP B-TREE" not in plan, plan
    assert "Sort" not in plan, plan
