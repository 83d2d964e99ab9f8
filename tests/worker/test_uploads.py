"""Checkpoints are stored in order, with patience, and the newest or nothing."""

from __future__ import annotations

import hashlib
import json
import shutil
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from contract.storage_keys import checkpoint_prefix, job_prefix
from contract.tables import Checkpoint, CheckpointFile
from tests.faults.harness.proxies import PostgresProxy, StoreProxy
from tests.servers import PostgresServer, S3Server
from tests.worker.workbench import Workbench, eventually
from worker.engine_events import CheckpointEvent
from worker.failures import JobFailedError
from worker.lease import Lease, LeaseLostError
from worker.uploads import CheckpointUploads


@pytest.fixture(autouse=True)
def no_patience(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("worker.uploads.RETRY_SECONDS", (0.01, 0.01))


def write_checkpoint(run_dir: Path, step: int, content: str = "weights", **more: str) -> CheckpointEvent:
    """Write a checkpoint; `more` are the contents of further files by their names."""
    path = f"checkpoints/step-{step:08d}"
    folder = run_dir / path
    folder.mkdir(parents=True)
    files = []
    for name, text in {"model.safetensors": content, **more}.items():
        (folder / name).write_text(text)
        files.append({"name": name, "num_bytes": len(text), "sha256": hashlib.sha256(text.encode()).hexdigest()})
    manifest = {"step": step, "formats": ["full"], "files": files, "metrics": {"loss": 0.5}}
    (folder / "manifest.json").write_text(json.dumps(manifest))
    return CheckpointEvent(type="checkpoint", at=1.0, step=step, path=path)


def uploads(bench: Workbench, lease: Lease, run_dir: Path, **options: Any) -> CheckpointUploads:
    attempt = bench.attempt(lease)
    attempt.run_dir = run_dir
    attempt.is_lost = options.pop("is_lost", attempt.is_lost)  # type: ignore[method-assign]
    return CheckpointUploads(attempt, **{"keep": 3, "resumed_step": None, **options})


def test_each_is_recorded_and_one_local_copy_stays(bench: Workbench, tmp_path: Path) -> None:
    lease = bench.claimed()
    with uploads(bench, lease, tmp_path) as stored:
        for step in (2, 4, 6):
            stored.submit(write_checkpoint(tmp_path, step))
    assert bench.checkpoint_steps(lease.job_id) == [2, 4, 6]
    newest = bench.rows(Checkpoint, lease.job_id, Checkpoint.step)[-1]
    assert (newest.attempt, newest.formats, newest.num_bytes, newest.metrics) == (1, ["full"], 7, {"loss": 0.5})
    assert newest.storage_prefix == checkpoint_prefix(lease.job_id, 1, 6)
    assert [path.name for path in (tmp_path / "checkpoints").iterdir()] == ["step-00000006"]
    assert [event.data["step"] for event in bench.events(lease.job_id, "checkpoint")] == [2, 4, 6]


def test_a_step_that_is_stored_again_replaces_its_row_and_files(bench: Workbench, tmp_path: Path) -> None:
    lease = bench.claimed()
    with uploads(bench, lease, tmp_path) as stored:
        stored.submit(write_checkpoint(tmp_path, 2, "first"))
    shutil.rmtree(tmp_path / "checkpoints")
    with uploads(bench, lease, tmp_path) as stored:
        stored.submit(write_checkpoint(tmp_path, 2, "second"))
    with bench.database.read() as session:
        (file,) = session.query(CheckpointFile)
    assert bench.storage.read(file.storage_key) == b"second"
    assert bench.checkpoint_steps(lease.job_id) == [2]


def test_a_newest_that_cannot_be_stored_is_a_failure_and_an_older_one_a_warning(
    bench: Workbench, tmp_path: Path
) -> None:
    lease = bench.claimed()
    broken = write_checkpoint(tmp_path, 2)
    (tmp_path / broken.path / "model.safetensors").write_text("torn")
    with uploads(bench, lease, tmp_path) as stored:
        stored.submit(broken)
        stored.submit(write_checkpoint(tmp_path, 4))
    assert bench.checkpoint_steps(lease.job_id) == [4]
    assert bench.codes(lease.job_id) == ["checkpoint_not_stored"]
    broken = write_checkpoint(tmp_path, 6)
    (tmp_path / broken.path / "model.safetensors").unlink()
    with (
        pytest.raises(JobFailedError, match="step 6 was not stored") as caught,
        uploads(bench, lease, tmp_path) as stored,
    ):
        stored.submit(broken)
    assert caught.value.failure.code == "storage_unavailable"


def test_a_storage_that_comes_back_in_time_is_waited_for(sqlite_bench: Workbench, tmp_path: Path) -> None:
    lease = sqlite_bench.claimed()
    in_the_way = sqlite_bench.settings.data_dir / "storage" / "jobs"
    in_the_way.write_text("a file where the folder should be")
    asked = threading.Event()

    def repair_after_the_first_try() -> bool:
        if asked.is_set() and in_the_way.is_file():
            in_the_way.unlink()
        asked.set()
        return False

    with uploads(sqlite_bench, lease, tmp_path, is_lost=repair_after_the_first_try) as stored:
        stored.submit(write_checkpoint(tmp_path, 2))
    assert sqlite_bench.checkpoint_steps(lease.job_id) == [2]
    assert sqlite_bench.codes(lease.job_id) == []


@pytest.fixture
def failing_store(
    sqlite_url: str, s3_server: S3Server, s3_url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Iterator[tuple[Workbench, StoreProxy]]:
    """A workbench whose store fails on request, and whose client repeats no request by itself."""
    proxy = StoreProxy(s3_server.port)
    monkeypatch.setenv("AWS_ENDPOINT_URL", f"http://127.0.0.1:{proxy.port}")
    monkeypatch.setattr("contract.storage._RETRIES", {"max_retries": 0})
    bench = Workbench(sqlite_url, tmp_path / "data", storage_url=s3_url)
    yield bench, proxy
    bench.close()
    proxy.stop()


def num_tries(proxy: StoreProxy, step: int) -> int:
    return sum(method == "PUT" and f"step-{step:08d}/state" in path for method, path in proxy.requests)


def test_while_the_store_stays_full_only_the_newest_is_retried(
    failing_store: tuple[Workbench, StoreProxy], tmp_path: Path
) -> None:
    bench, proxy = failing_store
    lease = bench.claimed()
    proxy.fail("507", method="PUT", path="/state")
    stored = uploads(bench, lease, tmp_path)
    for step in (2, 4, 6, 8):
        stored.submit(write_checkpoint(tmp_path, step, state=f"moments of {step}"))
    with pytest.raises(JobFailedError, match="step 8 was not stored"), stored:
        pass
    assert num_tries(proxy, 2) > 1, "every checkpoint is stored if the outage is short"
    assert [num_tries(proxy, step) for step in (4, 6, 8)] == [1, 1, 3]
    assert [event.message.partition(": ")[0] for event in bench.events(lease.job_id, "notice")] == [
        f"The checkpoint of step {step} was not stored" for step in (2, 4, 6, 8)
    ]
    assert bench.checkpoint_steps(lease.job_id) == []
    assert bench.storage.folders(f"{job_prefix(lease.job_id)}/attempt-0001") == [], "models without their states"
    assert [path.name for path in (tmp_path / "checkpoints").iterdir()] == ["step-00000008"]


def test_a_newer_checkpoint_ends_the_wait_of_an_older_one_after_a_long_outage(
    failing_store: tuple[Workbench, StoreProxy], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    bench, proxy = failing_store
    lease = bench.claimed()
    proxy.fail("507", method="PUT", path="/state")
    with uploads(bench, lease, tmp_path) as stored:
        stored.submit(write_checkpoint(tmp_path, 2, state="moments of 2"))
        eventually(lambda: bench.codes(lease.job_id))
        monkeypatch.setattr("worker.uploads.RETRY_SECONDS", (60.0,))
        stored._failing_since -= 60.0  # type: ignore[operator]
        stored.submit(write_checkpoint(tmp_path, 4, state="moments of 4"))
        eventually(lambda: num_tries(proxy, 4) == 1)
        stored.submit(write_checkpoint(tmp_path, 6, state="moments of 6"))
        eventually(lambda: num_tries(proxy, 6) == 1)
        proxy.heal()
        for step in (8, 10):
            stored.submit(write_checkpoint(tmp_path, step, state=f"moments of {step}"))
    assert bench.checkpoint_steps(lease.job_id)[-2:] == [8, 10]
    assert set(bench.checkpoint_steps(lease.job_id)) <= {6, 8, 10}, "6 failed before 8 came, or after"


def test_a_superseded_attempt_records_no_checkpoint(bench: Workbench, tmp_path: Path) -> None:
    lease = bench.claimed()
    bench.set_job(lease.job_id, lease_token=lease.token + 1)
    with pytest.raises(LeaseLostError), uploads(bench, lease, tmp_path) as stored:
        stored.submit(write_checkpoint(tmp_path, 2))
    assert bench.checkpoint_steps(lease.job_id) == []


def test_the_step_resumed_from_is_kept_while_the_attempt_lives(bench: Workbench, tmp_path: Path) -> None:
    lease = bench.claimed()
    with uploads(bench, lease, tmp_path) as stored:
        stored.submit(write_checkpoint(tmp_path, 2))
    resumed = uploads(bench, lease, tmp_path, keep=1, resumed_step=2)
    resumed._store(write_checkpoint(tmp_path, 4))
    resumed._store(write_checkpoint(tmp_path, 6))
    assert bench.checkpoint_steps(lease.job_id) == [2, 6]
    with resumed:
        resumed.submit(write_checkpoint(tmp_path, 8))
    assert bench.checkpoint_steps(lease.job_id) == [8]


def test_a_checkpoint_is_recorded_once_if_the_answer_to_the_commit_is_lost(
    postgres_server: PostgresServer, postgres_url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("worker.uploads.RETRY_SECONDS", (0.1, 0.1))
    proxy = PostgresProxy(lambda: postgres_server.port)
    bench = Workbench(postgres_url.replace(f":{postgres_server.port}/", f":{proxy.port}/"), tmp_path / "data")
    lease = bench.claimed()
    proxy.lose_answers_of_commits("INSERT INTO checkpoints ")
    with uploads(bench, lease, tmp_path) as stored:
        stored.submit(write_checkpoint(tmp_path, 2))
    assert proxy.num_lost == 1
    assert [event.data["step"] for event in bench.events(lease.job_id, "checkpoint")] == [2]
    assert bench.checkpoint_steps(lease.job_id) == [2]
    bench.close()
    proxy.stop()
