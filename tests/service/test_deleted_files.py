"""What was deleted goes from the storage, if not at once, then at the next start; and nothing else does."""

from __future__ import annotations

import time
from pathlib import Path

import pytest

from contract.job_state import JobStatus
from service.storage import Storage
from tests.service.conftest import MakeClient
from tests.service.records import add_checkpoint, context_of, finish_job, submit, upload

SECONDS = 20


def _failing_quietly(*_: object) -> None:
    """A process that ends before it has removed anything."""


def test_what_could_not_be_removed_goes_at_the_next_start(
    make_client: MakeClient, database_url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    client, storage = make_client(database_url), tmp_path / "storage"
    deleted, kept = submit(client), submit(client)
    for job_id in (deleted, kept):
        add_checkpoint(client, storage, job_id, 1, {"model/model.safetensors": b"weights"})
        finish_job(context_of(client).database, job_id, JobStatus.SUCCEEDED)
    dataset = upload(client)
    (storage / "jobs" / "job_of_another_database").mkdir()
    with monkeypatch.context() as broken:
        broken.setattr("service.jobs.endpoints._remove_files", _failing_quietly)
        broken.setattr(Storage, "remove", _failing_quietly)
        assert client.delete(f"/jobs/{deleted}").status_code == 200
        assert client.delete(f"/datasets/{dataset}").status_code == 200
    assert (storage / "jobs" / deleted).exists()
    assert (storage / "datasets" / dataset).exists()
    make_client(database_url)
    deadline = time.monotonic() + SECONDS
    while (storage / "jobs" / deleted).exists() or (storage / "datasets" / dataset).exists():
        assert time.monotonic() < deadline
        time.sleep(0.02)
    assert sorted(path.name for path in (storage / "jobs").iterdir()) == sorted([kept, "job_of_another_database"])
    assert len(list((storage / "datasets").iterdir())) == 2, "those of the two jobs"
