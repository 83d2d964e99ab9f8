"""A run that several files look at."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.trd_engine.tiny_runs import spec, write_data
from trd_engine.config import parse_config
from trd_engine.training.loop import distil


@pytest.fixture(scope="session")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_data(tmp_path_factory.mktemp("data"))


@pytest.fixture(scope="session")
def whole(data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The output of one uninterrupted TRD run of two rounds. Files that use it form the group ``whole_run``."""
    out = tmp_path_factory.mktemp("whole")
    distil(parse_config(spec(data, rounds=2)), out)
    return out
