"""What the first start makes, and what a later one finds."""

from __future__ import annotations

import logging
import re
import stat
from pathlib import Path

import httpx
import pytest
from fastapi.testclient import TestClient

from contract.server_groups import TeacherEndpoint
from service.app import create_app
from service.db import current_revision, expected_revision
from service.models.service import ModelCatalog
from service.settings import Settings
from tests.environment import settings_from
from tests.service.conftest import ADMIN_KEY, MakeClient
from tests.service.live_server import live_server
from tests.service.records import database_of

KEY = re.compile(r"API key, shown this once: (trd_\w+)")


def test_the_first_start_makes_everything_and_prints_a_key_once(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    settings = settings_from(Settings, {"TRD_DATA_DIR": str(tmp_path / "new" / "data")})
    assert settings.is_embedded
    assert not settings.data_dir.exists(), "nothing is made before the start"
    with TestClient(create_app(settings)) as client:
        (key,) = KEY.findall(capsys.readouterr().err)
        headers = {"authorization": f"Bearer {key}"}
        assert client.get("/readyz").json()["status"] == "ready"
        assert stat.S_IMODE(settings.data_dir.stat().st_mode) == 0o700
        assert client.get("/jobs", headers=headers).json()["data"] == []
        assert client.post("/keys", headers=headers, json={"name": "x"}).status_code == 201
    with TestClient(create_app(settings)) as client:
        assert KEY.findall(capsys.readouterr().err) == []
        assert client.get("/jobs", headers=headers).status_code == 200
    pepper = settings.data_dir / "key-pepper"
    assert stat.S_IMODE(pepper.stat().st_mode) == 0o600
    on_disk = b"".join(path.read_bytes() for path in settings.data_dir.rglob("*") if path.is_file())
    assert key.encode() not in on_disk


def test_a_given_key_is_taken_and_none_is_made(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    settings = settings_from(Settings, {"TRD_DATA_DIR": str(tmp_path), "TRD_API_KEY": ADMIN_KEY})
    with TestClient(create_app(settings), headers={"authorization": f"bearer {ADMIN_KEY}"}) as client:
        assert client.get("/keys").json()["data"] == []
    assert KEY.findall(capsys.readouterr().err) == []


@pytest.mark.parametrize(
    ("environment", "words"),
    [
        ({"TRD_API_KEY": "short"}, "^TRD_API_KEY: String should have at least 16 characters$"),
        ({"TRD_MAX_DEVICES": "0"}, "TRD_MAX_DEVICES = 0: .*greater than or equal to 1"),
        ({"TRD_MAX_ROWS": "many"}, "TRD_MAX_ROWS = many: .*valid integer"),
    ],
)
def test_a_bad_setting_is_refused(environment: dict[str, str], words: str) -> None:
    with pytest.raises(ValueError, match=words):
        settings_from(Settings, environment)


def test_a_hub_model_without_a_revision_is_warned_of(
    caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(logging.getLogger("service"), "propagate", True)
    ModelCatalog("Org/Pinned@v1")
    assert caplog.messages == []
    ModelCatalog("Org/Pinned@v1,short=Org/Moving")
    (message,) = set(caplog.messages)
    assert message.startswith("TRD_MODELS: Org/Moving without a revision")


def test_settings_come_from_the_environment(tmp_path: Path) -> None:
    settings = settings_from(
        Settings,
        {
            "TRD_DATA_DIR": str(tmp_path),
            "DATABASE_URL": "postgres://u:p@h/db",
            "BROKER_URL": "redis://h",
            "STORAGE_URL": "file:///elsewhere",
            "TRD_DATASET_ROOTS": "/a, /b",
            "TRD_HUB_DATASETS": "org/x,org/y",
            "TRD_TEACHER_ENDPOINTS": '{"big": {"url": "https://host/v1", "model": "m"}}',
            "TRD_MAX_UPLOAD_BYTES": "123",
            "TRD_API_KEY": "",
        },
    )
    assert settings.database_url == "postgresql+psycopg://u:p@h/db"
    assert not settings.is_embedded
    assert settings.api_key is None
    assert settings.dataset_roots == (Path("/a"), Path("/b"))
    assert settings.hub_datasets == {"org/x", "org/y"}
    assert settings.teacher_endpoints == {"big": TeacherEndpoint(url="https://host/v1", model="m")}
    assert settings.max_upload_bytes == 123
    assert not settings_from(Settings, {"BROKER_URL": "redis://h"}).is_embedded
    plain = Settings.from_environment()
    assert plain.database_url.endswith("/data/trd.db")
    assert plain.storage_url.startswith("file:///")
    assert plain.models.endswith("testbed/models/*")


def test_an_operators_database_is_reported_and_not_migrated(make_client: MakeClient, empty_database_url: str) -> None:
    client = make_client(empty_database_url)
    response = client.get("/readyz")
    assert response.status_code == 503
    state = response.json()
    assert (state["status"], state["database"]) == ("unready", "ok")
    assert "alembic upgrade head" in state["schema"]
    assert client.get("/healthz").status_code == 200
    assert current_revision(database_of(client)) is None


def test_readiness_names_what_does_not_answer(
    make_client: MakeClient, sqlite_url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("service.readiness.LOOK_SECONDS", 0.0)
    client = make_client(sqlite_url, broker_url="redis://127.0.0.1:1/0")
    state = client.get("/readyz").json()
    assert state["status"] == "ready", "workers look at the database too"
    assert state["broker"].startswith("unreachable")
    assert current_revision(database_of(client)) == expected_revision()
    (tmp_path / "storage" / "readiness").rmdir()
    (tmp_path / "storage" / "readiness").write_text("in the way")
    response = client.get("/readyz")
    assert response.status_code == 503
    assert response.json()["storage"].startswith("not writable")


def test_a_database_that_is_down_makes_the_service_unready(make_client: MakeClient) -> None:
    client = make_client("postgresql://nobody@127.0.0.1:1/none")
    response = client.get("/readyz")
    assert (response.status_code, response.json()["database"]) == (503, "unreachable")


def test_uvicorn_starts_with_nothing_configured(tmp_path: Path) -> None:
    data_dir = tmp_path / "data"
    with live_server(data_dir) as server:
        (key,) = KEY.findall(server.log.read_text())
        answer = httpx.get(f"{server.url}/jobs", headers={"authorization": f"Bearer {key}"})
        assert answer.json() == {"object": "list", "data": [], "has_more": False}
        assert httpx.get(f"{server.url}/readyz").json()["status"] == "ready"
    assert server.process.returncode is not None
    assert {path.name for path in data_dir.iterdir()} >= {"trd.db", "key-pepper", "storage"}
    settings = settings_from(Settings, {"TRD_DATA_DIR": str(data_dir)})
    with TestClient(create_app(settings), headers={"authorization": f"Bearer {key}"}) as client:
        assert client.get("/jobs").status_code == 200
