"""The environment, read once."""

from __future__ import annotations

from pathlib import Path

import pytest

from contract.messages import DEFAULT_QUEUE
from tests.environment import settings_from
from worker.attempt import Slot
from worker.settings import WorkerSettings


def test_an_empty_environment_is_embedded_mode(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    settings = settings_from(WorkerSettings, {"BROKER_URL": ""})
    assert settings.database_url == f"sqlite:///{tmp_path}/data/trd.db"
    assert settings.broker_url is None
    assert settings.storage_url == f"file://{tmp_path}/data/storage"
    assert settings.queues == (DEFAULT_QUEUE,)
    assert (settings.lease_seconds, settings.heartbeat_seconds, settings.max_attempts) == (30, 5, 3)


def test_the_environment_is_honoured() -> None:
    settings = settings_from(
        WorkerSettings,
        {
            "TRD_DATA_DIR": "/srv/trd",
            "DATABASE_URL": "postgres://u:p@h/d",
            "BROKER_URL": "redis://h/0",
            "TRD_QUEUES": "a, b,",
            "TRD_LEASE_SECONDS": "2.5",
            "TRD_HEARTBEAT_SECONDS": "0.5",
        },
    )
    assert settings.database_url == "postgresql+psycopg://u:p@h/d"
    assert settings.broker_url == "redis://h/0"
    assert settings.queues == ("a", "b")
    assert settings.lease_seconds == 2.5
    assert settings.scratch_dir == Path("/srv/trd/scratch")


def test_two_slots_have_two_names() -> None:
    settings = WorkerSettings()
    assert Slot(settings).name != Slot(settings).name


@pytest.mark.parametrize(
    ("variable", "value", "said"),
    [
        ("TRD_MAX_ATTEMPTS", "0", r"TRD_MAX_ATTEMPTS = 0: .*greater than or equal to 1"),
        ("TRD_LEASE_SECONDS", "soon", "TRD_LEASE_SECONDS = soon: .*valid number"),
        ("TRD_HEARTBEAT_SECONDS", "20", "set it to at most half"),
        ("TRD_QUEUES", " , ", "TRD_QUEUES = .*at least 1 item"),
    ],
)
def test_nonsense_is_refused_by_name(variable: str, value: str, said: str) -> None:
    with pytest.raises(ValueError, match=said):
        settings_from(WorkerSettings, {variable: value})


def test_every_wrong_variable_is_named_and_no_secret_is_shown() -> None:
    environment = {
        "TRD_MAX_ATTEMPTS": "many",
        "TRD_DATA_DIR": "",
        "DATABASE_URL": "postgres://trd:pa55@host/trd",
        "BROKER_URL": "redis://:pa55@host",
        "TRD_TEACHER_ENDPOINTS": "pa55",
    }
    with pytest.raises(ValueError, match="TRD_MAX_ATTEMPTS = many: ") as raised:
        settings_from(WorkerSettings, environment)
    assert "TRD_MAX_ATTEMPTS" in str(raised.value)
    assert "TRD_TEACHER_ENDPOINTS" in str(raised.value)
    assert "pa55" not in str(raised.value)
    del environment["TRD_MAX_ATTEMPTS"], environment["TRD_TEACHER_ENDPOINTS"]
    assert "pa55" not in repr(settings_from(WorkerSettings, environment))
