"""The schema: brought up to date at an embedded start, and compared with what this code expects."""

from __future__ import annotations

import logging
from functools import cache

from alembic import command
from alembic.config import Config
from alembic.migration import MigrationContext
from alembic.script import ScriptDirectory

from contract.database import Database
from contract.settings import PACKAGES_DIR

logger = logging.getLogger(__name__)


def _config(url: str) -> Config:
    config = Config()
    config.set_main_option("script_location", str(PACKAGES_DIR / "migrations").replace("%", "%%"))
    config.set_main_option("path_separator", "os")
    config.set_main_option("sqlalchemy.url", url.replace("%", "%%"))
    return config


def migrate(url: str) -> None:
    """Upgrade the database to the newest schema. Processes that start together take turns."""
    command.upgrade(_config(url), "head")


@cache
def expected_revision() -> str | None:
    """Return the newest revision of this code."""
    return ScriptDirectory.from_config(_config("")).get_current_head()


def current_revision(database: Database) -> str | None:
    """Return the database's revision; None if it was never migrated."""
    with database.engine.connect() as connection:
        return MigrationContext.configure(connection).get_current_revision()
