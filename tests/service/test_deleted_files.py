"""What was deleted goes from the storage, if not at once, then at the next start; and nothing else does."""

from __future__ import annotations

import logging
import time
from pathlib import Path

import pytest

from contract.job_state import JobStatus
from service.storage import Storage
from tests.service.conftest import MakeClient
from tests.service.records import add_checkpoint, context_of, finish_job, submit, upload

SECONDS = 20


def _failing(*_: object) -> None:
    raise OSError("the storage is away")


def test_what_could_not_be_removed_goes_at_the_next_start(
    make_client: MakeClient,
    database_url: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    client, storage = make_client(database_url), tmp_path / "storage"
    monkeypatch.setattr(logging.getLogger("service"), "propagate", True)
    deleted, kept = submit(client), submit(client)
    for job_id in (deleted, kept):
        add_checkpoint(client, storage, job_id, 1, {"model/model.safetensors": b"weights"})
        finish_job(context_of(client).database, job_id, JobStatus.SUCCEEDED)
    dataset = upload(client)
    (storage / "jobs" / "job_of_another_database").mkdir()
    with monkeypatch.context() as broken:
        broken.setattr(Storage, "remove_tree", _failing)
        assert client.delete(f"/jobs/{deleted}").status_code == 200
        assert client.delete(f"/datasets/{dataset}").status_code == 200
        assert client.delete(f"/jobs/{kept}/checkpoints/1").status_code == 200
    assert len({record.message for record in caplog.records if "still in the storage" in record.message}) == 3
    assert "unhandled" not in caplog.text
    assert (storage / "jobs" / deleted).exists()
    assert (storage / "datasets" / dataset).exists()
    make_client(database_url)
    deadline = time.monotonic() + SECONDS
    while (storage / "jobs" / deleted).exists() or (storage / "datasets" / dataset).exists():
        assert time.monotonic() < deadline
        time.sleep(0.02)
    assert sorted(path.name for path in (storage / "jobs").iterdir()) == sorted([kept, "job_of_another_database"])
    assert len(list((storage / "datasets").iterdir())) == 2, "those of the two jobs"
