"""What was deleted goes from the storage, if not at once, then at the next start; and nothing else does."""

from __future__ import annotations

import logging
import time
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path
from types import SimpleNamespace

import pytest
from fastapi.testclient import TestClient
from sqlalchemy.exc import OperationalError
from sqlalchemy.orm import Session

from contract.job_state import JobStatus
from contract.storage import Storage
from service.leftovers import collect_deleted
from tests.service.conftest import MakeClient
from tests.service.records import ROWS, add_checkpoint, context_of, finish_job, submit, upload

SECONDS = 20
JSONL = {"content-type": "application/jsonl"}


def stored(folder: Path) -> list[Path]:
    return [path for path in (folder / "storage" / "datasets").rglob("*") if path.is_file()]


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


def test_the_file_of_an_upload_that_cannot_be_recorded_goes(
    client: TestClient, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("service.datasets.service.record", _locked)
    for _ in range(3):
        assert client.post("/datasets", content=ROWS, headers=JSONL).json()["error"]["code"] == "database_unavailable"
    assert stored(tmp_path) == []
    assert client.get("/datasets").json()["data"] == []
    monkeypatch.undo()
    upload(client)
    assert len(stored(tmp_path)) == 1


def _locked(*_: object) -> None:
    raise OperationalError("INSERT", {}, Exception("database is locked"))


def test_a_file_stays_where_the_database_may_have_its_row(
    client: TestClient, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    database = context_of(client).database
    write = database.write

    @contextmanager
    def answer_lost() -> Iterator[Session]:
        with write() as session:
            yield session
        if stored(tmp_path):
            raise OperationalError("COMMIT", {}, Exception("connection reset"))

    monkeypatch.setattr(database, "write", answer_lost)
    assert client.post("/datasets", content=ROWS, headers=JSONL).status_code == 503
    monkeypatch.undo()
    (dataset,) = client.get("/datasets").json()["data"]
    assert [path.parent.name for path in stored(tmp_path)] == [dataset["id"]]


def test_what_an_upload_left_without_a_word_goes_a_day_later(
    client: TestClient, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    context = context_of(client)
    monkeypatch.setattr("service.datasets.service.record", _gone)
    assert client.post("/datasets", content=ROWS, headers=JSONL).status_code == 503
    monkeypatch.undo()
    dataset = upload(client)
    collect_deleted(context.database, context.storage)
    assert len(stored(tmp_path)) == 2, "one may be an upload of now"
    tomorrow = datetime.now(UTC) + timedelta(days=1, minutes=1)
    with monkeypatch.context() as later:
        later.setattr("service.datasets.repository.datetime", SimpleNamespace(now=lambda zone: tomorrow))
        collect_deleted(context.database, context.storage)
    assert [path.parent.name for path in stored(tmp_path)] == [dataset]


def _gone(*_: object) -> None:
    raise OperationalError("COMMIT", {}, Exception("server closed the connection"), connection_invalidated=True)
