"""The migrations lead to the models, and back, on both databases."""

from __future__ import annotations

import os
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import sqlalchemy as sa
from alembic.autogenerate import compare_metadata
from alembic.migration import MigrationContext
from alembic.script import ScriptDirectory

from contract.tables import Base
from tests.migrations.schema import MIGRATIONS, alembic_config, downgrade, upgrade

CHECKOUT = MIGRATIONS.parent


def tables_in(url: str) -> set[str]:
    engine = sa.create_engine(url, poolclass=sa.NullPool)
    with engine.connect() as connection:
        return set(sa.inspect(connection).get_table_names())


def differences(url: str) -> list[object]:
    """Return the changes that autogenerate would still make."""
    engine = sa.create_engine(url, poolclass=sa.NullPool)
    with engine.connect() as connection:
        context = MigrationContext.configure(connection, opts={"compare_type": True, "compare_server_default": True})
        return list(compare_metadata(context, Base.metadata))


def run_alembic(*arguments: str, environment: dict[str, str], folder: Path = CHECKOUT) -> str:
    """Run the command line as an operator does."""
    result = subprocess.run(
        [sys.executable, "-m", "alembic", *arguments],
        cwd=folder,
        env={**os.environ, **environment},
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert result.returncode == 0, result.stdout + result.stderr
    return result.stdout


def test_there_is_one_head() -> None:
    assert len(ScriptDirectory(str(MIGRATIONS)).get_heads()) == 1


def test_head_equals_the_models(database_url: str) -> None:
    assert differences(database_url) == []


def test_a_column_that_the_models_lack_is_noticed(empty_database_url: str) -> None:
    """The test above can fail."""
    upgrade(empty_database_url)
    engine = sa.create_engine(empty_database_url, poolclass=sa.NullPool)
    with engine.begin() as connection:
        connection.execute(sa.text("ALTER TABLE jobs ADD COLUMN surprise INTEGER"))
    assert differences(empty_database_url) != []


def test_down_to_nothing_and_up_again(empty_database_url: str) -> None:
    upgrade(empty_database_url)
    downgrade(empty_database_url, "base")
    assert tables_in(empty_database_url) == {"alembic_version"}
    upgrade(empty_database_url)
    assert differences(empty_database_url) == []


def test_a_second_upgrade_changes_nothing(database_url: str) -> None:
    before = tables_in(database_url)
    upgrade(database_url)
    assert tables_in(database_url) == before


def test_processes_that_start_together_migrate_one_after_the_other(empty_database_url: str) -> None:
    def migrate(_: int) -> str:
        return run_alembic("upgrade", "head", environment={"DATABASE_URL": empty_database_url})

    with ThreadPoolExecutor(3) as pool:
        list(pool.map(migrate, range(3)))
    assert differences(empty_database_url) == []


def test_a_failed_upgrade_leaves_nothing_behind(empty_database_url: str) -> None:
    engine = sa.create_engine(empty_database_url, poolclass=sa.NullPool)
    with engine.begin() as connection:
        connection.execute(sa.text("CREATE TABLE trajectories (already INTEGER)"))
    with pytest.raises(sa.exc.DBAPIError, match="trajectories"):
        upgrade(empty_database_url)
    assert tables_in(empty_database_url) == {"trajectories"}


def test_the_command_line_defaults_to_the_data_folder(tmp_path: Path) -> None:
    run_alembic("upgrade", "head", environment={"DATABASE_URL": "", "TRD_DATA_DIR": str(tmp_path / "data")})
    assert "jobs" in tables_in(f"sqlite:///{tmp_path / 'data' / 'trd.db'}")


def test_the_short_form_of_a_postgres_address_is_enough(postgres_url: str) -> None:
    short = postgres_url.replace("postgresql+psycopg://", "postgres://")
    assert "head" in run_alembic("current", environment={"DATABASE_URL": short})


def test_a_percent_sign_in_the_address_is_kept(tmp_path: Path) -> None:
    url = f"sqlite:///{tmp_path / 'a%b.db'}"
    assert alembic_config(url).get_main_option("sqlalchemy.url") == url
    upgrade(url)
    assert "jobs" in tables_in(url)
