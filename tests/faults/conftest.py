"""Places to run a worker process in: embedded, and with servers."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from service.enqueue import Doorbell
from tests.faults.worker_process import WorkerProcess
from tests.worker.scripted_engine import Plan
from tests.worker.workbench import Workbench


@dataclass
class Place:
    """A database, a broker and a data folder; the workbench looks at them from outside."""

    bench: Workbench
    environment: dict[str, str]
    broker_url: str | None

    def worker(self, plan: Plan, name: str = "worker", **environment: str) -> WorkerProcess:
        """Start a worker process here."""
        data_dir = self.bench.settings.data_dir
        return WorkerProcess({**self.environment, **environment}, data_dir / f"{name}.log", plan)

    def ring(self, *job_ids: str, queue: str = "trd-default") -> None:
        """Send doorbells as the API does."""
        bell = Doorbell(self.broker_url)
        for job_id in job_ids:
            bell.ring(job_id, queue)
        bell.close()


@pytest.fixture
def embedded(migrated_sqlite_file: Path, tmp_path: Path) -> Iterator[Place]:
    """Nothing but a data folder."""
    data_dir = tmp_path / "data"
    data_dir.mkdir()
    shutil.copyfile(migrated_sqlite_file, data_dir / "trd.db")
    bench = Workbench(f"sqlite:///{data_dir / 'trd.db'}", data_dir)
    yield Place(bench, {"TRD_DATA_DIR": str(data_dir)}, None)
    bench.close()


@pytest.fixture
def with_servers(postgres_url: str, redis_url: str, tmp_path: Path) -> Iterator[Place]:
    """PostgreSQL and Redis."""
    data_dir = tmp_path / "data"
    data_dir.mkdir()
    bench = Workbench(postgres_url, data_dir)
    environment = {"TRD_DATA_DIR": str(data_dir), "DATABASE_URL": postgres_url, "BROKER_URL": redis_url}
    yield Place(bench, environment, redis_url)
    bench.close()


@pytest.fixture(params=["embedded", "with_servers"])
def place(request: pytest.FixtureRequest) -> Place:
    """Each of the two."""
    found: Place = request.getfixturevalue(request.param)
    return found
