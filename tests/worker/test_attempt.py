"""One attempt, start to end, with a scripted child in a separate process."""

from __future__ import annotations

import os
import signal
import threading
import time
from pathlib import Path

import pytest
from sqlalchemy import text

from contract.job_state import JobStatus
from contract.storage_keys import checkpoint_prefix
from contract.tables import CheckpointFile, Evaluation, MetricPoint, Trajectory
from tests.outages import closed_to_all
from tests.worker.scripted_engine import Plan
from tests.worker.workbench import Workbench, ended, eventually, process_exists, running
from worker.failures import full_disk
from worker.supervisor import run_next


def test_a_run_is_recorded_in_full(bench: Workbench) -> None:
    job_id = bench.add_job()
    assert run_next(bench.slot(Plan(num_steps=4)))
    job, (attempt,) = bench.job(job_id), bench.attempts(job_id)
    assert (job.status, job.step, job.num_steps, job.round, job.num_rounds) == ("succeeded", 4, 4, 0, 1)
    assert (job.phase, job.eta_seconds, job.error_code) == (None, None, None)
    assert job.latest_metrics == {"loss": 0.25, "grad_norm": None}
    assert (attempt.status, attempt.exit_code, attempt.first_step, attempt.last_step) == ("succeeded", 0, None, 4)
    points = bench.rows(MetricPoint, job_id, MetricPoint.step)
    assert [(p.step, p.value) for p in points if p.name == "loss"] == [(n, 1.0 / n) for n in (1, 2, 3, 4)]
    assert [e.step for e in bench.rows(Evaluation, job_id, Evaluation.step)] == [0, 4]
    trajectories = bench.rows(Trajectory, job_id, Trajectory.position)
    assert [(t.position, t.outcome, t.rollout) for t in trajectories] == [
        (n, "fail_to_pass", "3\N{REPLACEMENT CHARACTER}") for n in range(3)
    ]
    types = [event.type for event in bench.events(job_id)]
    assert types[0] == types[-1] == "status"
    assert types.count("phase") == 2
    assert types.count("evaluation") == 2
    assert types.count("checkpoint") == 2
    assert bench.events(job_id)[-1].data["summary"] == {"seconds_by_phase": {"training": 1.0}}


def test_checkpoints_are_in_the_storage_as_their_rows_say(sqlite_bench: Workbench) -> None:
    job_id = sqlite_bench.add_job()
    run_next(sqlite_bench.slot(Plan(num_steps=4)))
    assert sqlite_bench.checkpoint_steps(job_id) == [2, 4]
    with sqlite_bench.database.read() as session:
        files = list(session.query(CheckpointFile))
    assert {file.name for file in files} == {"state/count.json", "model/model.safetensors", "model/README.md"}
    for file in files:
        assert len(sqlite_bench.storage.read(file.storage_key)) == file.num_bytes
    prefix = checkpoint_prefix(job_id, 1, 4)
    assert sqlite_bench.storage.read(f"{prefix}/manifest.json").startswith(b'{"step": 4')


def test_scratch_keeps_what_explains_and_nothing_heavy(sqlite_bench: Workbench) -> None:
    job_id = sqlite_bench.add_job()
    run_next(sqlite_bench.slot(Plan(prints="hello\n")))
    folder = sqlite_bench.attempt_folder(job_id)
    left = {path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()}
    assert left == {"spec.json", "engine.log", "run/events.jsonl"}
    assert (folder / "engine.log").read_text() == "hello\n"


def test_only_the_newest_checkpoints_are_kept(sqlite_bench: Workbench) -> None:
    job_id = sqlite_bench.add_job(spec={"checkpoints": {"keep": 2}})
    run_next(sqlite_bench.slot(Plan(num_steps=5, checkpoint_every=1)))
    assert sqlite_bench.checkpoint_steps(job_id) == [4, 5]
    kept = [sqlite_bench.settings.data_dir / "storage" / checkpoint_prefix(job_id, 1, step) for step in range(1, 6)]
    assert [path.exists() for path in kept] == [False, False, False, True, True]


def test_nothing_waits_and_a_taken_slot_takes_nothing(sqlite_bench: Workbench) -> None:
    slot = sqlite_bench.slot(Plan(num_steps=1000, step_seconds=0.02))
    assert not run_next(slot)
    first, second = sqlite_bench.add_job(), sqlite_bench.add_job()
    with running(slot):
        eventually(lambda: sqlite_bench.job(first).status == "running")
        assert not run_next(slot), "one slot, one job"
        assert sqlite_bench.job(second).status == "queued"


def test_two_doorbells_run_a_job_once(bench: Workbench) -> None:
    job_id = bench.add_job()
    slots = [bench.slot(Plan()), bench.slot(Plan())]
    threads = [threading.Thread(target=run_next, args=[slot]) for slot in slots]
    for thread in threads:
        thread.start()
    for thread in threads:
        ended(thread)
    assert bench.job(job_id).status == "succeeded"
    assert len(bench.attempts(job_id)) == 1
    assert not run_next(bench.slot(Plan())), "a doorbell that comes late finds nothing to do"


def test_progress_is_visible_during_the_run(bench: Workbench) -> None:
    job_id = bench.add_job()
    with running(bench.slot(Plan(num_steps=1000, step_seconds=0.02))):
        eventually(lambda: bench.job(job_id).step >= 3)
        job = bench.job(job_id)
        assert (job.status, job.phase, job.phase_total, job.eta_seconds) == ("running", "training", 1000, 1.5)
        eventually(lambda: bench.checkpoint_steps(job_id))


def test_cancel_stops_the_child_within_seconds(bench: Workbench) -> None:
    job_id = bench.add_job()
    with running(bench.slot(Plan(num_steps=10_000, step_seconds=0.02))) as thread:
        pid = bench.child_pid(job_id)
        eventually(lambda: bench.job(job_id).step >= 1)
        bench.set_job(job_id, status=JobStatus.CANCELLING)
        asked_at = time.monotonic()
        ended(thread)
        assert time.monotonic() - asked_at < 10
    assert bench.job(job_id).status == "cancelled"
    assert bench.attempts(job_id)[0].status == "stopped"
    assert not process_exists(pid)


def test_a_paused_run_continues_from_where_it_stopped(bench: Workbench) -> None:
    job_id = bench.add_job()
    with running(bench.slot(Plan(num_steps=10_000, step_seconds=0.02, checkpoint_every=10_000))) as thread:
        eventually(lambda: bench.job(job_id).step >= 2)
        bench.set_job(job_id, status=JobStatus.PAUSING)
        ended(thread)
    assert bench.job(job_id).status == "paused"
    assert not run_next(bench.slot()), "a paused job is nobody's"
    (stopped_at,) = bench.checkpoint_steps(job_id)
    assert stopped_at >= 2
    bench.set_job(job_id, status=JobStatus.QUEUED)
    assert run_next(bench.slot(Plan(num_steps=stopped_at + 3)))
    assert bench.job(job_id).status == "succeeded"
    assert bench.attempts(job_id)[1].first_step == stopped_at
    points = bench.rows(MetricPoint, job_id, MetricPoint.step)
    assert [p.step for p in points if p.name == "loss"] == list(range(1, stopped_at + 4))


def test_a_worker_that_shuts_down_gives_the_job_back_with_its_checkpoint(bench: Workbench) -> None:
    job_id = bench.add_job()
    slot = bench.slot(Plan(num_steps=10_000, step_seconds=0.02, checkpoint_every=10_000))
    with running(slot) as thread:
        eventually(lambda: bench.job(job_id).step >= 2)
        slot.stopping.set()
        ended(thread)
    job = bench.job(job_id)
    assert (job.status, job.num_lost, job.error_code) == ("queued", 0, None)
    assert bench.attempts(job_id)[0].status == "stopped"
    (step,) = bench.checkpoint_steps(job_id)
    assert run_next(bench.slot(Plan(num_steps=step + 2)))
    assert bench.job(job_id).status == "succeeded"
    assert bench.attempts(job_id)[1].first_step == step
    assert not run_next(slot), "a worker that shuts down takes no job"


def test_a_deaf_child_is_killed_after_the_grace(sqlite_bench: Workbench) -> None:
    job_id = sqlite_bench.add_job()
    plan = Plan(num_steps=10_000, step_seconds=0.02, is_deaf=True)
    with running(sqlite_bench.slot(plan, stop_grace_seconds=0.5)) as thread:
        pid = sqlite_bench.child_pid(job_id)
        sqlite_bench.set_job(job_id, status=JobStatus.CANCELLING)
        ended(thread)
    assert sqlite_bench.job(job_id).status == "cancelled"
    assert sqlite_bench.codes(job_id) == ["stop_grace_exceeded"]
    assert not process_exists(pid)


def test_a_crashed_child_is_tried_again_from_its_checkpoint(bench: Workbench) -> None:
    job_id = bench.add_job()
    plan = Plan(num_steps=6, die_at_step=4, prints="CUDA error: an illegal instruction\n")
    assert run_next(bench.slot(plan))
    assert bench.job(job_id).status == "queued"
    assert run_next(bench.slot(plan))
    assert bench.job(job_id).status == "succeeded"
    first, second = bench.attempts(job_id)
    assert (first.status, first.exit_code, first.error_code, first.last_step) == ("failed", -9, "engine_crashed", 3)
    assert (second.status, second.first_step) == ("succeeded", 2)
    (log,) = (event for event in bench.events(job_id, "notice") if event.data["code"] == "engine_log")
    assert log.data["log"] == "CUDA error: an illegal instruction\n"


def test_a_child_that_always_dies_ends_as_a_crash_loop(sqlite_bench: Workbench) -> None:
    job_id = sqlite_bench.add_job()
    plan = Plan(die_at_step=1, die_once=False)
    while run_next(sqlite_bench.slot(plan)):
        pass
    job = sqlite_bench.job(job_id)
    assert (job.status, job.error_code, job.attempt) == ("failed", "crash_loop", 3)


def test_a_child_that_always_dies_between_checkpoints_is_not_tried_for_ever(sqlite_bench: Workbench) -> None:
    job_id = sqlite_bench.add_job()
    plan = Plan(num_steps=6, die_at_step=4, die_once=False)
    while run_next(sqlite_bench.slot(plan)):
        pass
    job = sqlite_bench.job(job_id)
    assert (job.status, job.error_code, job.attempt) == ("failed", "crash_loop", 4)


def test_the_childs_own_word_is_the_jobs_error(bench: Workbench) -> None:
    job_id = bench.add_job()
    run_next(bench.slot(Plan(failure=("tokenizer_mismatch", "token 'a' is 5 there"))))
    job = bench.job(job_id)
    assert (job.status, job.error_code, job.error_retryable) == ("failed", "tokenizer_mismatch", False)
    assert job.error_message == "token 'a' is 5 there"
    (notice,) = bench.events(job_id, "notice")
    assert (notice.level, notice.data["traceback"]) == ("error", "Traceback: line 1")


def test_an_end_without_the_word_finished_is_no_success(sqlite_bench: Workbench) -> None:
    job_id = sqlite_bench.add_job()
    run_next(sqlite_bench.slot(Plan(writes_finished=False)))
    assert sqlite_bench.attempts(job_id)[0].error_code == "engine_crashed"
    assert sqlite_bench.job(job_id).status == "queued"


def test_a_child_that_cannot_write_its_reason_on_a_full_disk_is_an_outage(
    sqlite_bench: Workbench, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert full_disk(Path("/proc")) is not None, "it has no byte free"
    monkeypatch.setattr("worker.failures.FULL_DISK_BYTES", 2**62)
    job_id = sqlite_bench.add_job()
    run_next(sqlite_bench.slot(Plan(exit_code_at_end=1, writes_finished=False)))
    (attempt,) = sqlite_bench.attempts(job_id)
    assert (attempt.error_code, sqlite_bench.job(job_id).status) == ("disk_full", "queued")


def test_what_the_child_leaves_behind_is_killed(sqlite_bench: Workbench) -> None:
    job_id = sqlite_bench.add_job()
    folder = sqlite_bench.attempt_folder(job_id)
    with running(sqlite_bench.slot(Plan(num_steps=40, step_seconds=0.02, leaves_process_behind=True))) as thread:
        left_behind = int(
            eventually(lambda: (folder / "left_behind").exists() and (folder / "left_behind").read_text())
        )
        assert process_exists(left_behind)
        ended(thread)
    assert sqlite_bench.job(job_id).status == "succeeded"
    eventually(lambda: not process_exists(left_behind))


def test_a_superseded_attempt_kills_its_child_and_writes_nothing(bench: Workbench) -> None:
    job_id = bench.add_job()
    with running(bench.slot(Plan(num_steps=10_000, step_seconds=0.02))) as thread:
        pid = bench.child_pid(job_id)
        eventually(lambda: bench.job(job_id).step >= 1)
        bench.set_job(job_id, lease_token=77, lease_owner="another", step=1234, attempt=2)
        ended(thread)
    assert not process_exists(pid)
    job = bench.job(job_id)
    assert (job.status, job.lease_token, job.lease_owner, job.step) == ("running", 77, "another", 1234)
    assert bench.attempts(job_id)[0].status == "running", "its end is the reaper's to record"


def test_a_child_dies_when_the_database_stays_away_for_longer_than_the_lease(sqlite_bench: Workbench) -> None:
    """The lock makes every statement of the worker's hang, as a lost network would."""
    job_id = sqlite_bench.add_job()
    slot = sqlite_bench.slot(Plan(num_steps=10_000, step_seconds=0.02), lease_seconds=1.5)
    with running(slot) as thread:
        pid = sqlite_bench.child_pid(job_id)
        eventually(lambda: sqlite_bench.job(job_id).step >= 1)
        with sqlite_bench.database.write() as session:
            session.execute(text("SELECT 1"))  # a session begins its transaction with its first statement
            locked_at = time.monotonic()
            eventually(lambda: not process_exists(pid))
            assert time.monotonic() - locked_at < 4
        ended(thread)
    assert sqlite_bench.job(job_id).status == "running", "nobody knows yet: the reaper will find it"


def test_a_short_absence_of_the_database_loses_nothing(bench: Workbench) -> None:
    """Longer than several heartbeats and progress writes, shorter than the lease."""
    if bench.database.is_sqlite:
        pytest.skip("SQLite has no server that could go away")
    job_id = bench.add_job()
    with running(bench.slot(Plan(num_steps=60, step_seconds=0.03))) as thread:
        eventually(lambda: bench.job(job_id).step >= 2)
        with closed_to_all(bench.database):
            time.sleep(1.5)
        ended(thread)
    assert bench.job(job_id).status == "succeeded"
    points = bench.rows(MetricPoint, job_id, MetricPoint.step)
    assert [p.step for p in points if p.name == "loss"] == list(range(1, 61))
    assert bench.checkpoint_steps(job_id) == [56, 58, 60]


def test_a_child_that_is_terminated_by_somebody_else_is_not_a_stop(sqlite_bench: Workbench) -> None:
    job_id = sqlite_bench.add_job()
    with running(sqlite_bench.slot(Plan(num_steps=10_000, step_seconds=0.02))) as thread:
        os.kill(sqlite_bench.child_pid(job_id), signal.SIGSEGV)
        ended(thread)
    attempt = sqlite_bench.attempts(job_id)[0]
    assert (attempt.status, attempt.error_message) == ("failed", "The engine was ended by SIGSEGV.")


def test_a_missing_dataset_fails_the_job_before_a_child_starts(sqlite_bench: Workbench) -> None:
    job_id = sqlite_bench.add_job(spec={"dataset": "ds_gone"})
    run_next(sqlite_bench.slot())
    job = sqlite_bench.job(job_id)
    assert (job.status, job.error_code) == ("failed", "dataset_invalid")
    assert not (sqlite_bench.attempt_folder(job_id) / "engine.log").exists()


def test_a_storage_that_takes_nothing_fails_the_attempt_not_silently(
    sqlite_bench: Workbench, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("worker.uploads.RETRY_SECONDS", (0.01,))
    job_id = sqlite_bench.add_job()
    (sqlite_bench.settings.data_dir / "storage" / "jobs").write_text("a file where the folder should be")
    run_next(sqlite_bench.slot())
    job, (attempt,) = sqlite_bench.job(job_id), sqlite_bench.attempts(job_id)
    assert (job.status, attempt.error_code) == ("queued", "storage_unavailable")
    assert "checkpoint_not_stored" in sqlite_bench.codes(job_id)
    assert sqlite_bench.checkpoint_steps(job_id) == []


def test_a_worker_error_ends_the_attempt_and_not_the_worker(sqlite_bench: Workbench) -> None:
    job_id = sqlite_bench.add_job()
    slot = sqlite_bench.slot()
    slot.command_for = lambda folder, devices: ["\0"]
    assert run_next(slot)
    job = sqlite_bench.job(job_id)
    assert (job.status, job.error_code) == ("failed", "internal_error")
