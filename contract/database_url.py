"""The address of the database, read the same way by the service, the worker and the migrations."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

DEFAULT_DATA_DIR = "./data"
"""`TRD_DATA_DIR` where it is not set."""


def database_url(environment: Mapping[str, str]) -> str:
    """`DATABASE_URL` as SQLAlchemy takes it; where it is unset or empty, SQLite in the data folder."""
    configured = environment.get("DATABASE_URL", "")
    if configured:
        return with_driver(configured)
    data_dir = Path(environment.get("TRD_DATA_DIR", "") or DEFAULT_DATA_DIR)
    return f"sqlite:///{data_dir.resolve() / 'trd.db'}"


def with_driver(url: str) -> str:
    """Name psycopg 3 in the URL: a bare ``postgresql://`` would ask SQLAlchemy for psycopg2."""
    scheme, separator, rest = url.partition("://")
    if separator and scheme in ("postgres", "postgresql"):
        return f"postgresql+psycopg://{rest}"
    return url
