"""What every test may ask for: databases with the newest schema, on both engines, and a broker."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NoReturn

import pytest
from hypothesis import settings

from tests.migrations.schema import upgrade
from tests.servers import PostgresServer, RedisServer, ServerMissingError

# Before any test imports torch or a hub client: one thread a process, and no test waits for a network.
os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("HF_HUB_OFFLINE", "1")


# CI tries the same examples every time, a developer's machine new ones; a slow machine is no failure.
settings.register_profile("developer", deadline=None)
settings.register_profile("ci", deadline=None, derandomize=True)
settings.load_profile("ci" if os.environ.get("CI") else "developer")


@pytest.fixture(autouse=True)
def no_settings_from_outside(monkeypatch: pytest.MonkeyPatch) -> None:
    """The shell that runs the tests may be set up for a real deployment; no test may touch that."""
    for name in list(os.environ):
        if name.startswith("TRD_") or name in ("DATABASE_URL", "BROKER_URL", "STORAGE_URL"):
            monkeypatch.delenv(name)


def _missing(error: Exception) -> NoReturn:
    """A visible skip on a developer's machine; in CI, where everything must run, a failure."""
    if os.environ.get("CI"):
        pytest.fail(str(error), pytrace=False)
    pytest.skip(str(error))


@pytest.fixture(scope="session")
def missing_server() -> Callable[[ServerMissingError], NoReturn]:
    """For tests that start servers of their own: what to do where the program is not installed."""
    return _missing


@pytest.fixture(scope="session")
def missing_part() -> Callable[[Exception], NoReturn]:
    """What to do where a test needs a program that is not installed; the error says how to install it."""
    return _missing


@pytest.fixture(scope="session")
def postgres_server() -> Iterator[PostgresServer]:
    """A PostgreSQL for the whole session."""
    try:
        server = PostgresServer()
    except ServerMissingError as error:
        _missing(error)
    yield server
    server.stop()


@pytest.fixture(scope="session")
def redis_server() -> Iterator[RedisServer]:
    """A Redis for the whole session."""
    try:
        server = RedisServer()
    except ServerMissingError as error:
        _missing(error)
    yield server
    server.stop()


@pytest.fixture
def redis_url(redis_server: RedisServer) -> str:
    """An empty Redis."""
    redis_server.clear()
    return redis_server.url


@pytest.fixture(scope="session")
def migrated_sqlite_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A SQLite file with the newest schema; tests get copies of it."""
    path = tmp_path_factory.mktemp("migrated") / "trd.db"
    upgrade(f"sqlite:///{path}")
    return path


@pytest.fixture(scope="session")
def migrated_postgres_url(postgres_server: PostgresServer) -> str:
    """A PostgreSQL database with the newest schema; tests get copies of it."""
    url = postgres_server.create_database()
    upgrade(url)
    return url


@pytest.fixture
def sqlite_url(migrated_sqlite_file: Path, tmp_path: Path) -> str:
    """A fresh SQLite database with the newest schema."""
    path = tmp_path / "database" / "trd.db"
    path.parent.mkdir()
    shutil.copyfile(migrated_sqlite_file, path)
    return f"sqlite:///{path}"


@pytest.fixture
def postgres_url(postgres_server: PostgresServer, migrated_postgres_url: str) -> Iterator[str]:
    """A fresh PostgreSQL database with the newest schema."""
    url = postgres_server.create_database(template=migrated_postgres_url)
    yield url
    postgres_server.drop_database(url)


@pytest.fixture(params=["sqlite", "postgres"])
def database_url(request: pytest.FixtureRequest) -> str:
    """A fresh database with the newest schema; the test runs once on each engine."""
    url: str = request.getfixturevalue(f"{request.param}_url")
    return url


@pytest.fixture(params=["sqlite", "postgres"])
def empty_database_url(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[str]:
    """A database that no migration has touched; the test runs once on each engine."""
    if request.param == "sqlite":
        yield f"sqlite:///{tmp_path / 'empty.db'}"
        return
    server: PostgresServer = request.getfixturevalue("postgres_server")
    url = server.create_database()
    yield url
    server.drop_database(url)
