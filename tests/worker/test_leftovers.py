"""Files that no checkpoint's row names go once their attempts are over; files of a row never do."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

from contract.job_state import JobStatus
from contract.storage_keys import checkpoint_prefix, job_prefix
from contract.tables import Checkpoint
from tests.worker.scripted_engine import Plan
from tests.worker.workbench import Workbench
from worker.leftovers import collect, collect_of_ended
from worker.reaper import Reaper
from worker.supervisor import run_next


def stored(bench: Workbench, job_id: str) -> list[str]:
    """Return the folders of the job's checkpoints in the storage, with or without a row."""
    prefix = job_prefix(job_id)
    attempts = [f"{prefix}/{name}" for name in bench.storage.folders(prefix)]
    return [f"{attempt}/{name}" for attempt in attempts for name in bench.storage.folders(attempt)]


def leave(bench: Workbench, job_id: str, attempt: int, step: int) -> str:
    """Leave what an interrupted upload leaves behind."""
    prefix = checkpoint_prefix(job_id, attempt, step)
    bench.storage.write(f"{prefix}/model.safetensors", b"half")
    return prefix


def test_only_what_is_over_and_unnamed_goes(bench: Workbench) -> None:
    job_id = bench.add_job()
    run_next(bench.slot(Plan(num_steps=4)))
    named = [row.storage_prefix for row in bench.rows(Checkpoint, job_id, Checkpoint.step)]
    assert stored(bench, job_id) == named
    half_done, at_work = leave(bench, job_id, 1, 6), leave(bench, job_id, 2, 6)
    assert collect(bench.database, bench.storage, job_id, before_attempt=2) == [half_done]
    assert stored(bench, job_id) == [*named, at_work]


def test_the_next_attempt_collects_and_still_resumes(bench: Workbench) -> None:
    job_id = bench.add_job()
    run_next(bench.slot(Plan(num_steps=4)))
    half_done = leave(bench, job_id, 1, 6)
    bench.set_job(job_id, status=JobStatus.QUEUED)
    run_next(bench.slot(Plan(num_steps=5)))
    assert bench.attempts(job_id)[1].first_step == 4
    assert half_done not in stored(bench, job_id)
    assert stored(bench, job_id) == sorted(
        row.storage_prefix for row in bench.rows(Checkpoint, job_id, Checkpoint.step)
    )


def test_a_running_job_is_left_alone(bench: Workbench) -> None:
    lease = bench.claimed()
    prefix = leave(bench, lease.job_id, 1, 2)
    collect_of_ended(bench.database, bench.storage, lease.job_id)
    assert stored(bench, lease.job_id) == [prefix]


def test_the_reaper_collects_of_a_job_that_it_ends(bench: Workbench) -> None:
    lease = bench.claimed()
    leave(bench, lease.job_id, 1, 2)
    past = datetime.now(UTC) - timedelta(seconds=1)
    bench.set_job(lease.job_id, status=JobStatus.CANCELLING, lease_expires_at=past)
    Reaper(bench.slot(), lambda _job_id, _queue: None).turn()
    assert bench.job(lease.job_id).status == "cancelled"
    assert stored(bench, lease.job_id) == []


def test_a_storage_that_fails_harms_nothing(bench: Workbench) -> None:
    lease = bench.claimed()
    prefix = leave(bench, lease.job_id, 1, 2)

    def fail(_prefix: str) -> None:
        raise OSError("the storage is away")

    bench.storage.remove_tree = fail  # type: ignore[method-assign]
    assert collect(bench.database, bench.storage, lease.job_id, before_attempt=2) == []
    assert stored(bench, lease.job_id) == [prefix]
