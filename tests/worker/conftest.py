"""A workbench on each database, and on SQLite alone for what does not touch the dialects."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.worker.workbench import Workbench


@pytest.fixture
def bench(database_url: str, tmp_path: Path) -> Iterator[Workbench]:
    """A workbench on SQLite, then on PostgreSQL."""
    made = Workbench(database_url, tmp_path / "data")
    yield made
    made.close()


@pytest.fixture
def sqlite_bench(sqlite_url: str, tmp_path: Path) -> Iterator[Workbench]:
    """A workbench on SQLite."""
    made = Workbench(sqlite_url, tmp_path / "data", dataset_roots=(tmp_path,))
    yield made
    made.close()
