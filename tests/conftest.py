"""What every test may request: databases with the newest schema, on both engines, and a broker.

It also decides how pytest-xdist divides the tests: a file's tests run on one worker, one after the other, so that what
its fixtures build is built once; tests that use the fixture `vllm_engine` or are marked `xdist_group("vllm")` share one
worker, so that one engine lives at a time; those marked `xdist_group("ranks")` share one and its server of forks.
"""

from __future__ import annotations

import gc
import os
import shutil
from collections import Counter
from collections.abc import Generator, Iterator
from functools import cache, partial
from pathlib import Path
from typing import Any

import pytest
from httpx._transports import default
from hypothesis import settings
from sqlalchemy import create_engine
from sqlalchemy.engine.default import DefaultDialect
from xdist.scheduler import LoadGroupScheduling

from tests.migrations.schema import upgrade
from tests.servers import PostgresServer, RedisServer, S3Server, ServerMissingError

TESTS = Path(__file__).parent

# Before any test imports torch or a hub client: one thread a process, and no test waits for a network.
os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("HF_HUB_OFFLINE", "1")


LONGEST_FIRST = ("trd_engine", "e2e", "compose", "faults", "properties", "benchmarks", "worker", "examples", "browser")
"""Rooms whose files are handed out first, so that no worker still has a long file when the others have finished."""


class FileScheduling(LoadGroupScheduling):
    """A worker takes a whole group, or a whole file of tests without a group."""

    def _split_scope(self, nodeid: str) -> str:
        group: str = super()._split_scope(nodeid)
        return nodeid.partition("::")[0] if group == nodeid else group


def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> FileScheduling:
    """Make the scheduler, for pytest-xdist."""
    return FileScheduling(config, log)


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Order the files: groups such as vLLM's, then the longest rooms, then the rest."""
    for item in items:
        if "vllm_engine" in getattr(item, "fixturenames", ()):
            item.add_marker(pytest.mark.xdist_group("vllm"))

    def place(item: pytest.Item) -> tuple[bool, int]:
        room = item.path.relative_to(TESTS).parts[0]
        order = LONGEST_FIRST.index(room) if room in LONGEST_FIRST else len(LONGEST_FIRST)
        return item.get_closest_marker("xdist_group") is None, order

    items.sort(key=place)


@pytest.hookimpl(wrapper=True)
def pytest_collection() -> Generator[None, object, object]:
    """Import the tests without the garbage collector, which would find nothing: what an import makes stays."""
    gc.disable()
    try:
        return (yield)
    finally:
        gc.enable()


def pytest_collection_finish() -> None:
    """Keep the garbage collector off what the imports made: each full collection would look at a million objects."""
    gc.collect()
    gc.freeze()


def pytest_unconfigure() -> None:
    """Let the interpreter collect at its end: libraries would report leaks otherwise."""
    gc.unfreeze()


# CI tries the same examples every time, a developer's machine new ones; a slow machine is no failure.
settings.register_profile("developer", deadline=None)
settings.register_profile("ci", deadline=None, derandomize=True)
settings.load_profile("ci" if os.environ.get("CI") else "developer")


@pytest.fixture(autouse=True)
def no_settings_from_outside(monkeypatch: pytest.MonkeyPatch) -> None:
    """The shell that runs the tests may be set up for a real deployment; no test may touch that. TRD_LOSS_KERNEL stays:
    tests of the loss run again with Triton's kernels."""
    for name in os.environ.keys() - {"TRD_LOSS_KERNEL"}:
        if name.startswith(("TRD_", "AWS_")) or name in ("DATABASE_URL", "BROKER_URL", "STORAGE_URL"):
            monkeypatch.delenv(name)


@pytest.fixture(scope="session", autouse=True)
def one_tls_context() -> Iterator[None]:
    """Let the HTTP clients of a process share their TLS context: to read all certificates takes each 50 ms, and the
    tests talk to 127.0.0.1."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(default, "create_ssl_context", cache(default.create_ssl_context))
        yield


UNAVOIDABLE_SKIPS = ("SQLite has no server that could go away",)
"""Reasons of the skips that are allowed in CI, since no installation could avoid them."""


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport() -> Generator[None, pytest.TestReport, pytest.TestReport]:
    """Report a skip as a failure in CI, where everything that a test needs has to be installed."""
    report = yield
    if report.skipped and not hasattr(report, "wasxfail") and os.environ.get("CI"):
        reason = str(report.longrepr[2]) if isinstance(report.longrepr, tuple) else str(report.longrepr)
        if not reason.endswith(UNAVOIDABLE_SKIPS):
            report.outcome, report.longrepr = "failed", f"a skip in CI is a failure: {reason}"
    return report


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """Say how many tests of each tier passed; `.ci/run` fails if it is none."""
    counts = Counter(
        next((tier for tier in ("slow", "extended") if tier in report.keywords), "fast")
        for report in terminalreporter.stats.get("passed", [])
    )
    line = ", ".join(f"{tier} {counts[tier]}" for tier in ("fast", "slow", "extended"))
    terminalreporter.write_line(f"passed by tier: {line}")


@pytest.fixture(scope="session")
def postgres_server() -> Iterator[PostgresServer]:
    """A PostgreSQL for the whole session."""
    try:
        server = PostgresServer()
    except ServerMissingError as error:
        pytest.skip(str(error))
    yield server
    server.stop()


@pytest.fixture(scope="session")
def redis_server() -> Iterator[RedisServer]:
    """A Redis for the whole session."""
    try:
        server = RedisServer()
    except ServerMissingError as error:
        pytest.skip(str(error))
    yield server
    server.stop()


@pytest.fixture(scope="session")
def s3_server() -> Iterator[S3Server]:
    """An S3 API server for the whole session."""
    server = S3Server()
    yield server
    server.stop()


@pytest.fixture
def s3_url(s3_server: S3Server, monkeypatch: pytest.MonkeyPatch) -> str:
    """An empty bucket, which this process can reach."""
    for name, value in s3_server.environment.items():
        monkeypatch.setenv(name, value)
    return f"s3://{s3_server.create_bucket()}/some/prefix"


@pytest.fixture(params=["folder", "memory", "s3"])
def storage_url(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """An empty storage; the test runs once on each kind."""
    if request.param == "s3":
        return str(request.getfixturevalue("s3_url"))
    return f"memory://{tmp_path}" if request.param == "memory" else f"file://{tmp_path / 'storage'}"


@pytest.fixture
def redis_url(redis_server: RedisServer) -> str:
    """An empty Redis."""
    redis_server.clear()
    return redis_server.url


@pytest.fixture(scope="session")
def statements_compiled_once() -> Iterator[None]:
    """Let the databases of a process share the statements that SQLAlchemy has compiled: each test opens a database of
    its own, and to compile the same statements again was a sixth of the service tests' CPU time."""

    def same_kind(dialect: DefaultDialect, other: object) -> bool:
        return type(dialect) is type(other)

    with pytest.MonkeyPatch.context() as patch:
        # A compiled statement is kept by its text and its dialect, of which each engine has one.
        patch.setattr(DefaultDialect, "__eq__", same_kind)
        patch.setattr(DefaultDialect, "__hash__", lambda dialect: hash(type(dialect)))
        options = {"compiled_cache": {}}
        patch.setattr("contract.database.create_engine", partial(create_engine, execution_options=options))
        yield


@pytest.fixture(scope="session")
def migrated_sqlite_file(tmp_path_factory: pytest.TempPathFactory, statements_compiled_once: None) -> Path:
    """A SQLite file with the newest schema; tests get copies of it."""
    path = tmp_path_factory.mktemp("migrated") / "trd.db"
    upgrade(f"sqlite:///{path}")
    return path


@pytest.fixture(scope="session")
def migrated_postgres_url(postgres_server: PostgresServer, statements_compiled_once: None) -> str:
    """A PostgreSQL database with the newest schema."""
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
    """A PostgreSQL database with the newest schema, without a row."""
    yield migrated_postgres_url
    postgres_server.clear_database(migrated_postgres_url)


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
