"""What an attempt starts with, and how it falls back to an older checkpoint."""

from __future__ import annotations

import json
import os
import stat
import time
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from sqlalchemy.orm import Session

from contract.storage_keys import checkpoint_prefix, dataset_key
from tests.outages import files_up_to
from tests.servers import free_port
from tests.worker.scripted_engine import Plan
from tests.worker.workbench import ROWS, Workbench, eventually, running
from worker import repository, staging
from worker.failures import JobFailedError
from worker.lease import Lease
from worker.reaper import reap
from worker.staging import Staged, stage
from worker.supervisor import run_next

DIES_AT_5 = Plan(num_steps=8, die_at_step=5)


def staged(bench: Workbench, lease: Lease) -> Staged:
    return stage(bench.attempt(lease))


def damage(bench: Workbench, job_id: str, step: int) -> None:
    key = f"{checkpoint_prefix(job_id, 1, step)}/model/model.safetensors"
    bench.storage.write(key, bench.storage.read(key)[:-1] + b"?")


def test_the_folder_has_the_spec_and_the_rows(sqlite_bench: Workbench) -> None:
    lease = sqlite_bench.claimed()
    result = staged(sqlite_bench, lease)
    folder = sqlite_bench.attempt_folder(lease.job_id)
    spec = json.loads((folder / "spec.json").read_text())
    assert Path(spec["dataset"]["path"]).read_bytes() == ROWS
    assert spec["student"].endswith("testbed/models/tiny-student")
    assert result.resumed_step is None
    assert not (folder / "resume").exists()
    assert stat.S_IMODE(folder.stat().st_mode) == stat.S_IMODE(folder.parent.stat().st_mode) == 0o700


def test_rows_that_are_not_what_was_uploaded_are_refused(sqlite_bench: Workbench) -> None:
    dataset_id = sqlite_bench.add_dataset()
    sqlite_bench.add_job(spec={"dataset": dataset_id})
    sqlite_bench.storage.write(dataset_key(dataset_id), b"changed")
    lease = sqlite_bench.claim()
    assert lease is not None
    with pytest.raises(JobFailedError) as caught:
        staged(sqlite_bench, lease)
    assert caught.value.failure.code == "dataset_changed"


def test_a_model_that_this_worker_lacks_is_named(sqlite_bench: Workbench) -> None:
    sqlite_bench.add_job(spec={"student": "not-here"})
    lease = sqlite_bench.claim()
    assert lease is not None
    with pytest.raises(JobFailedError, match=r"'not-here' is not in this worker's TRD_MODELS; it has: .*tiny-student"):
        staged(sqlite_bench, lease)


def test_a_run_is_staged_stored_and_resumed_over_every_kind_of_store(
    sqlite_url: str, storage_url: str, tmp_path: Path
) -> None:
    bench = Workbench(sqlite_url, tmp_path / "data", storage_url=storage_url)
    job_id = bench.add_job(spec={"checkpoints": {"keep": 2}})
    run_next(bench.slot(DIES_AT_5))
    assert bench.checkpoint_steps(job_id) == [2, 4]
    damage(bench, job_id, 4)
    run_next(bench.slot(DIES_AT_5))
    assert bench.job(job_id).status == "succeeded"
    assert bench.attempts(job_id)[1].first_step == 2
    assert bench.checkpoint_steps(job_id) == [6, 8]
    assert bench.storage.folders(f"jobs/{job_id}/attempt-0002") == ["step-00000006", "step-00000008"]
    assert bench.storage.folders(f"jobs/{job_id}/attempt-0001") == [], "replaced and damaged ones are gone"
    bench.close()


def test_a_corrupt_newest_checkpoint_gives_way_to_the_previous(bench: Workbench) -> None:
    job_id = bench.add_job()
    run_next(bench.slot(DIES_AT_5))
    assert bench.checkpoint_steps(job_id) == [2, 4]
    damage(bench, job_id, 4)
    run_next(bench.slot(DIES_AT_5))
    assert bench.job(job_id).status == "succeeded"
    assert bench.attempts(job_id)[1].first_step == 2
    assert "checkpoint_corrupt" in bench.codes(job_id)
    assert bench.checkpoint_steps(job_id) == [4, 6, 8], "step 4 is the second attempt's own"


def test_a_run_never_silently_begins_again_at_zero(sqlite_bench: Workbench) -> None:
    job_id = sqlite_bench.add_job()
    run_next(sqlite_bench.slot(DIES_AT_5))
    damage(sqlite_bench, job_id, 2)
    damage(sqlite_bench, job_id, 4)
    run_next(sqlite_bench.slot(DIES_AT_5))
    job = sqlite_bench.job(job_id)
    assert (job.status, job.error_code) == ("failed", "checkpoint_corrupt")


def test_a_storage_that_is_not_there_for_a_while_loses_no_checkpoint(sqlite_bench: Workbench) -> None:
    job_id = sqlite_bench.add_job(spec={"dataset": {"generator": "basic_arithmetic", "size": 10}})
    run_next(sqlite_bench.slot(DIES_AT_5))
    jobs = sqlite_bench.settings.data_dir / "storage" / "jobs"
    jobs.rename(jobs.with_name("unmounted"))
    for _ in range(2):
        run_next(sqlite_bench.slot(DIES_AT_5))
        job = sqlite_bench.job(job_id)
        assert (job.status, job.error_code) == ("failed", "checkpoint_corrupt")
        sqlite_bench.set_job(job_id, status="queued")
    jobs.with_name("unmounted").rename(jobs)
    run_next(sqlite_bench.slot(DIES_AT_5))
    assert sqlite_bench.job(job_id).status == "succeeded"
    assert sqlite_bench.attempts(job_id)[-1].first_step == 4


def test_an_object_store_that_does_not_answer_is_an_outage(
    sqlite_url: str, s3_url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    stored = Workbench(sqlite_url, tmp_path / "data", storage_url=s3_url)
    job_id = stored.add_job()
    monkeypatch.setenv("AWS_ENDPOINT_URL", f"http://127.0.0.1:{free_port()}")
    run_next(stored.slot())
    attempt = stored.attempts(job_id)[0]
    assert (attempt.error_code, stored.job(job_id).status) == ("storage_unavailable", "queued")
    assert attempt.error_message is not None
    assert "error sending request" in attempt.error_message
    assert "127.0.0.1" not in attempt.error_message
    stored.close()


def test_a_full_disk_is_reported_and_can_be_retried(sqlite_bench: Workbench) -> None:
    job_id = sqlite_bench.add_job(spec={"dataset": sqlite_bench.add_dataset(ROWS * 100_000)})
    with files_up_to(2_000_000):
        run_next(sqlite_bench.slot())
    attempt, job = sqlite_bench.attempts(job_id)[0], sqlite_bench.job(job_id)
    assert (attempt.error_code, job.status) == ("disk_full", "queued")


def test_a_folder_that_cannot_be_made_is_no_defect(sqlite_bench: Workbench) -> None:
    job_id = sqlite_bench.add_job()
    sqlite_bench.settings.scratch_dir.write_text("a file where the folder should be")
    run_next(sqlite_bench.slot())
    assert sqlite_bench.attempts(job_id)[0].error_code == "storage_unavailable"


def test_a_spec_of_another_version_is_refused_by_its_field(sqlite_bench: Workbench) -> None:
    """A field that this worker does not know is a newer service's: a worker of that version may take the job."""
    job_id = sqlite_bench.add_job()
    spec = sqlite_bench.job(job_id).spec
    sqlite_bench.set_job(job_id, spec={**spec, "from_the_future": 1})
    run_next(sqlite_bench.slot())
    (attempt,) = sqlite_bench.attempts(job_id)
    assert (sqlite_bench.job(job_id).status, attempt.error_code) == ("queued", "worker_outdated")
    assert attempt.error_message is not None
    assert "from_the_future" in attempt.error_message
    assert not run_next(sqlite_bench.slot()), "not at once"
    other = sqlite_bench.add_job()
    sqlite_bench.set_job(other, spec={**spec, "seed": "from the past"})
    run_next(sqlite_bench.slot())
    assert (sqlite_bench.job(other).status, sqlite_bench.job(other).error_code) == ("failed", "invalid_spec")


def test_the_checkpoint_resumed_from_outlives_the_attempt_that_needs_it(sqlite_bench: Workbench) -> None:
    job_id = sqlite_bench.add_job(spec={"checkpoints": {"keep": 1}})
    run_next(sqlite_bench.slot(Plan(num_steps=8, die_at_step=3)))
    assert sqlite_bench.checkpoint_steps(job_id) == [2]
    with running(sqlite_bench.slot(Plan(num_steps=10_000, step_seconds=0.03))):
        eventually(lambda: sqlite_bench.checkpoint_steps(job_id)[-1] >= 6)
        assert sqlite_bench.checkpoint_steps(job_id)[0] == 2
    assert len(sqlite_bench.checkpoint_steps(job_id)) == 1


def test_what_a_killed_worker_left_is_cleared_and_a_live_attempt_is_not(sqlite_bench: Workbench) -> None:
    alive, dead = sqlite_bench.claimed(), sqlite_bench.claimed()
    folders = [sqlite_bench.attempt_folder(lease.job_id) for lease in (alive, dead)]
    for folder in folders:
        (folder / "run" / "checkpoints").mkdir(parents=True)
        (folder / "engine.log").touch()
    sqlite_bench.set_job(dead.job_id, lease_expires_at=datetime.now(UTC) - timedelta(seconds=1))
    reap(sqlite_bench.database, max_attempts=3)
    staging.clear_dead_attempts(sqlite_bench.database, sqlite_bench.settings.scratch_dir)
    assert [(folder / "run" / "checkpoints").exists() for folder in folders] == [True, False]
    assert (folders[1] / "engine.log").exists()


def test_an_attempt_that_begins_while_the_dead_are_looked_for_is_left_alone(
    sqlite_bench: Workbench, monkeypatch: pytest.MonkeyPatch
) -> None:
    begun: list[Path] = []
    running_attempts = repository.running_attempts

    def and_then_another_worker_begins(session: Session, job_ids: set[str]) -> set[tuple[str, int]]:
        alive = running_attempts(session, job_ids)
        folder = sqlite_bench.attempt_folder(sqlite_bench.claimed().job_id)
        folder.mkdir(parents=True)
        begun.append(folder / "rows.jsonl")
        begun[0].touch()
        return alive

    monkeypatch.setattr(repository, "running_attempts", and_then_another_worker_begins)
    staging.clear_dead_attempts(sqlite_bench.database, sqlite_bench.settings.scratch_dir)
    assert begun[0].exists()


def test_what_is_kept_of_an_attempt_goes_after_two_weeks(sqlite_bench: Workbench) -> None:
    alive, dead = sqlite_bench.claimed(), sqlite_bench.add_job()
    folders = [sqlite_bench.attempt_folder(job_id) for job_id in (alive.job_id, dead, "job_young")]
    for folder in folders:
        folder.mkdir(parents=True)
        (folder / "engine.log").touch()
    for folder in folders[:2]:
        os.utime(folder, (time.time() - staging.KEPT_SECONDS - 60,) * 2)
    staging.clear_dead_attempts(sqlite_bench.database, sqlite_bench.settings.scratch_dir)
    assert [(folder / "engine.log").exists() for folder in folders] == [True, False, True]
    assert not folders[1].parent.exists()


def test_clearing_keeps_the_small_files(tmp_path: Path) -> None:
    for name in ("spec.json", "run/events.jsonl", "run/checkpoints/step-1/model", "resume/state/x", "rows.jsonl"):
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("x")
    (tmp_path / "link").symlink_to(tmp_path / "resume")
    staging.clear(tmp_path)
    left = {path.relative_to(tmp_path).as_posix() for path in tmp_path.rglob("*")}
    assert left == {"spec.json", "run", "run/events.jsonl"}
