"""The real application on a real database, in this process."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager
from copy import deepcopy
from pathlib import Path
from typing import IO, Any

import pytest
from fastapi.testclient import TestClient

from service.app import create_app
from service.datasets.child import ChildPool
from service.settings import Settings
from tests.service.records import ROWS
from trd_data.child import ChildLimits

ADMIN_KEY = "an-admin-key-for-tests"
AUTHORIZED = {"authorization": f"Bearer {ADMIN_KEY}"}

MakeClient = Callable[..., TestClient]


def write_model(folder: Path, *, context: int, tokens: str = "abc", auto_map: bool = False) -> None:
    """Write a folder that looks like a model to whoever reads no weights."""
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
    """Return the settings of a service that keeps its things in `folder`; `changes` replace some."""
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


@pytest.fixture(autouse=True)
def rows_are_checked_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """The child's reply about `ROWS`, which most tests upload only to have a dataset, is kept for later tests."""
    ask = ChildPool.ask

    async def ask_once(pool: ChildPool, stream: IO[bytes], request: dict[str, Any], limits: ChildLimits) -> Any:
        stream.flush()
        # Not `read`: it would fill the buffer, and the child would find the file's end.
        if os.pread(stream.fileno(), len(ROWS) + 1, 0) != ROWS.encode():
            return await ask(pool, stream, request, limits)
        known = json.dumps(request)
        if known not in _REPLIES:
            _REPLIES[known] = await ask(pool, stream, request, limits)
        return deepcopy(_REPLIES[known])

    monkeypatch.setattr(ChildPool, "ask", ask_once)


_REPLIES: dict[str, Any] = {}


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


MakeStanding = Callable[..., AbstractContextManager[TestClient]]


@pytest.fixture(scope="session")
def standing(tmp_path_factory: pytest.TempPathFactory, models_dir: Path, migrated_sqlite_file: Path) -> MakeStanding:
    """Starts an application on SQLite that outlives a test, for requests that are refused: they leave nothing
    behind."""

    @contextmanager
    def make(**changes: Any) -> Iterator[TestClient]:
        folder = tmp_path_factory.mktemp("standing")
        shutil.copyfile(migrated_sqlite_file, folder / "trd.db")
        app = create_app(settings_in(folder, models_dir, f"sqlite:///{folder / 'trd.db'}", **changes))
        with TestClient(app, headers=AUTHORIZED) as client:
            yield client

    return make


@pytest.fixture(scope="session")
def shared_client(standing: MakeStanding) -> Iterator[TestClient]:
    """One application for all tests of requests that are refused."""
    with standing() as client:
        yield client


@pytest.fixture
def either_client(make_client: MakeClient, database_url: str) -> TestClient:
    """The application, on SQLite and on PostgreSQL."""
    return make_client(database_url)
