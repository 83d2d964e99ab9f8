"""The environment, read once."""

from __future__ import annotations

from pathlib import Path

import pytest
from pydantic import ValidationError

from contract.messages import DEFAULT_QUEUE
from worker.settings import WorkerSettings


def test_an_empty_environment_is_embedded_mode(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    settings = WorkerSettings.from_environment({"BROKER_URL": ""})
    assert settings.database_url == f"sqlite:///{tmp_path}/data/trd.db"
    assert settings.broker_url is None
    assert settings.storage_url == f"file://{tmp_path}/data/storage"
    assert settings.queues == (DEFAULT_QUEUE,)
    assert (settings.lease_seconds, settings.heartbeat_seconds, settings.max_attempts) == (30, 5, 3)


def test_the_environment_is_honoured() -> None:
    settings = WorkerSettings.from_environment(
        {
            "TRD_DATA_DIR": "/srv/trd",
            "DATABASE_URL": "postgres://u:p@h/d",
            "BROKER_URL": "redis://h/0",
            "TRD_QUEUES": "a, b,",
            "TRD_LEASE_SECONDS": "2.5",
            "TRD_HEARTBEAT_SECONDS": "0.5",
        }
    )
    assert settings.database_url == "postgresql+psycopg://u:p@h/d"
    assert settings.broker_url == "redis://h/0"
    assert settings.queues == ("a", "b")
    assert settings.lease_seconds == 2.5
    assert settings.scratch_dir == Path("/srv/trd/scratch")


def test_two_processes_have_two_names() -> None:
    assert WorkerSettings.from_environment({}).name != WorkerSettings.from_environment({}).name


@pytest.mark.parametrize(
    ("variable", "value", "said"),
    [
        ("TRD_MAX_ATTEMPTS", "0", "max_attempts"),
        ("TRD_LEASE_SECONDS", "soon", "lease_seconds"),
        ("TRD_HEARTBEAT_SECONDS", "20", "set it to at most half"),
        ("TRD_QUEUES", " , ", "queues"),
    ],
)
def test_nonsense_is_refused_by_name(variable: str, value: str, said: str) -> None:
    with pytest.raises(ValidationError, match=said):
        WorkerSettings.from_environment({variable: value})
