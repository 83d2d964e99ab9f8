"""The real application on a real database, in this process."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest
from fastapi.testclient import TestClient

from service.app import create_app
from service.settings import Settings

ADMIN_KEY = "an-admin-key-for-tests"
AUTHORIZED = {"authorization": f"Bearer {ADMIN_KEY}"}

MakeClient = Callable[..., TestClient]


def write_model(folder: Path, *, context: int, tokens: str = "abc", auto_map: bool = False) -> None:
    """A folder that looks like a model to whoever reads no weights."""
    folder.mkdir(parents=True)
    vocabulary = {token: position for position, token in enumerate(tokens)}
    config: dict[str, Any] = {"max_position_embeddings": context}
    if auto_map:
        config["auto_map"] = {"AutoModel": "code.py"}
    (folder / "config.json").write_text(json.dumps(config))
    (folder / "tokenizer.json").write_text(json.dumps({"model": {"vocab": vocabulary, "merges": []}}))
    (folder / "model.safetensors").write_bytes(b"")


@pytest.fixture(scope="session")
def models_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Models of every kind that matters to the checks."""
    folder = tmp_path_factory.mktemp("models")
    write_model(folder / "small", context=1024)
    write_model(folder / "small-teacher", context=2048)
    write_model(folder / "large", context=40_960)
    write_model(folder / "foreign", context=40_960, tokens="xyz")
    write_model(folder / "needs-code", context=1024, auto_map=True)
    return folder


def settings_in(folder: Path, models_dir: Path, database_url: str, **changes: Any) -> Settings:
    """Settings of a service that keeps its things in `folder`; `changes` replace some."""
    given: dict[str, Any] = {
        "data_dir": folder / "data",
        "database_url": database_url,
        "storage_url": f"file://{folder / 'storage'}",
        "api_key": ADMIN_KEY,
        "models": f"{models_dir}/*,Org/Hub-Model@v1",
        "queues": ("other", "gpu-8"),
        "judge_references": False,  # it takes a second; test_uploads_in_children has it
    }
    return Settings(**{**given, **changes})


@pytest.fixture(autouse=True)
def _fresh_looks(monkeypatch: pytest.MonkeyPatch) -> None:
    """A test that adds a worker sees it at once, not within a second."""
    monkeypatch.setattr("service.jobs.fleet.LOOK_SECONDS", 0.0)


@pytest.fixture
def make_client(tmp_path: Path, models_dir: Path) -> Iterator[MakeClient]:
    """Starts applications, whose clients send the admin's key."""

    def make(database_url: str, **changes: Any) -> TestClient:
        app = create_app(settings_in(tmp_path, models_dir, database_url, **changes))
        return running.enter_context(TestClient(app, headers=AUTHORIZED))

    with ExitStack() as running:
        yield make


@pytest.fixture
def client(make_client: MakeClient, sqlite_url: str) -> TestClient:
    """The application on SQLite."""
    return make_client(sqlite_url)


@pytest.fixture(scope="session")
def shared_client(
    tmp_path_factory: pytest.TempPathFactory, models_dir: Path, migrated_sqlite_file: Path
) -> Iterator[TestClient]:
    """One application for all tests of requests that are refused: they leave nothing behind."""
    folder = tmp_path_factory.mktemp("shared")
    shutil.copyfile(migrated_sqlite_file, folder / "trd.db")
    app = create_app(settings_in(folder, models_dir, f"sqlite:///{folder / 'trd.db'}"))
    with TestClient(app, headers=AUTHORIZED) as client:
        yield client


@pytest.fixture
def either_client(make_client: MakeClient, database_url: str) -> TestClient:
    """The application, on SQLite and on PostgreSQL."""
    return make_client(database_url)
