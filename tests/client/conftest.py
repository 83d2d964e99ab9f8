"""A real server, clients of it, and a relay that breaks their connections."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import urlsplit

import pytest

from client import Client
from contract.database import Database
from tests.client.breaking_proxy import BreakingProxy, breaking_proxy
from tests.service.conftest import ADMIN_KEY, write_model
from tests.service.live_server import live_server
from tests.service.records import ROWS


@dataclass(frozen=True)
class RunningService:
    """A service that runs elsewhere, and what of it the tests reach into."""

    url: str
    data_dir: Path
    database: Database

    @property
    def port(self) -> int:
        port = urlsplit(self.url).port
        assert port is not None
        return port

    @property
    def storage_dir(self) -> Path:
        return self.data_dir / "storage"


@pytest.fixture(scope="session")
def service(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningService]:
    """One for all tests: each makes its own jobs and datasets."""
    folder = tmp_path_factory.mktemp("service")
    for name in ("small", "small-teacher"):
        write_model(folder / "models" / name, context=40_960)
    data_dir = folder / "data"
    with live_server(data_dir, TRD_API_KEY=ADMIN_KEY, TRD_MODELS=f"{folder / 'models'}/*") as server:
        database = Database(f"sqlite:///{data_dir / 'trd.db'}")
        yield RunningService(server.url, data_dir, database)
        database.dispose()


@pytest.fixture
def trd(service: RunningService) -> Iterator[Client]:
    """A client with the admin's key."""
    with Client(service.url, ADMIN_KEY) as client:
        yield client


@pytest.fixture
def proxy(service: RunningService) -> Iterator[BreakingProxy]:
    """A relay in front of the service."""
    with breaking_proxy(service.port) as running:
        yield running


@pytest.fixture
def through_proxy(proxy: BreakingProxy) -> Iterator[Client]:
    """A client that reaches the service by way of the relay."""
    with Client(proxy.url, ADMIN_KEY) as client:
        yield client


@pytest.fixture(scope="session")
def rows_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Forty good rows."""
    path = tmp_path_factory.mktemp("rows") / "rows.jsonl"
    path.write_text(ROWS)
    return path


@pytest.fixture
def job_id(trd: Client, rows_file: Path) -> str:
    """A queued job; no worker runs here."""
    return trd.jobs.create(spec_of(trd.datasets.upload(rows_file).id)).id


def spec_of(dataset: str) -> dict[str, object]:
    return {"mode": "trd", "student": "small", "teacher": "small-teacher", "dataset": dataset}
