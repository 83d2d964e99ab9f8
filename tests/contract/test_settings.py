"""Environment variables with odd values: named and refused with one line, in every process."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from unittest.mock import Mock

import pytest
from pydantic.fields import FieldInfo

from client.errors import SettingsError
from client.settings import ClientSettings
from contract.settings import EnvironmentSettings
from service.settings import Settings
from tests.environment import settings_from
from worker.settings import WorkerSettings

FIELDS = [(cls, name) for cls in (Settings, WorkerSettings, ClientSettings) for name in cls.model_fields]
NONSENSE = ("abc", "-1", "1e400", "nan", "9" * 30, "1,5", "a\nb", "{")
FREE_TEXT = ("DATA_DIR", "STORAGE_URL", "TRD_QUEUES", "TRD_DATASET_ROOTS", "TRD_INTEGRATION_SECRETS", "TRD_OIDC_",
             "RAY_", "TRD_METRICS_HOST", "API_KEY", "PEPPER")  # fmt: skip
"""Variables that may have any text, or names and folders that only other places know."""


def refusal(cls: type[EnvironmentSettings], variable: str, value: str) -> str:
    """Return what is said of the value; nothing if it is taken."""
    try:
        settings_from(cls, {variable: value})
    except (ValueError, SettingsError) as error:
        said = str(error)
    else:
        said = ""
    assert "\n" not in said
    return said


@pytest.mark.parametrize(("cls", "name"), FIELDS, ids=lambda part: part if isinstance(part, str) else part.__name__)
def test_nonsense_is_refused_by_name_and_on_one_line(cls: type[EnvironmentSettings], name: str) -> None:
    variable = cls.variable_of(name)
    field: FieldInfo = cls.model_fields[name]
    for value in (" ", " \t", "'5'", '"/srv/trd"'):
        said = refusal(cls, variable, value)
        assert said.startswith(f"{variable} = " if field.repr else f"{variable}: ")
        assert "white space" in said or "quotes" in said
    for value in NONSENSE:
        said = refusal(cls, variable, value)
        assert said.startswith(variable) or any(part in variable for part in FREE_TEXT), f"{variable} takes {value}"
        assert field.repr or value[:2] not in said.partition(":")[0]
    if not any(part in variable for part in FREE_TEXT) and isinstance(field.default, int | float):
        usual = str(field.default)
        assert getattr(settings_from(cls, {variable: f" {usual} "}), name) == field.default


@pytest.mark.parametrize(
    ("variable", "value", "said"),
    [
        ("TRD_DATA_DIR", "{file}", "TRD_DATA_DIR = {file}: {file} is not a folder"),
        ("TRD_DATA_DIR", "{file}/data", "{file} is not a folder"),
        ("TRD_DATA_DIR", "{folder}/" + "a" * 300, "File name too long"),
        ("STORAGE_URL", "file://{file}", "STORAGE_URL: {file} is not a folder"),
        ("TRD_DATASET_ROOTS", "{folder},{file}", "TRD_DATASET_ROOTS = {file}: 1: {file} is not a folder"),
        ("DATABASE_URL", "sqlite:///{file}", "DATABASE_URL: {file} is there, and is no SQLite database"),
        ("DATABASE_URL", "sqlite:///{folder}", "DATABASE_URL: {folder} is there, and is no SQLite database"),
        ("DATABASE_URL", "sqlite:///{file}/trd.db", "DATABASE_URL: {file} is not a folder"),
        ("DATABASE_URL", "sqlite://", "DATABASE_URL: a database in memory cannot be shared"),
        ("DATABASE_URL", "mysql://me:secret@host/db", "DATABASE_URL: this is not a database; write it like"),
        ("DATABASE_URL", "postgresql://me:secret@host:port/db", "DATABASE_URL: this is not a database; write it like"),
        ("BROKER_URL", "redis://:secret@host:port", "BROKER_URL: this is not a Redis server; write it like"),
        ("BROKER_URL", "redis://host/queue", "BROKER_URL: this is not a Redis server; write it like"),
        ("BROKER_URL", "amqp://host", "BROKER_URL: this is not a Redis server; write it like"),
        ("TRD_MODELS", "tiny", "TRD_MODELS = tiny: 'tiny' is neither a folder (./x or /x) nor a hub id"),
        ("TRD_INTEGRATION_SECRETS", "sk-secret-key", "TRD_INTEGRATION_SECRETS: "),
        ("TRD_HUB_DATASETS", "https://huggingface.co/datasets/a/b", "TRD_HUB_DATASETS = https://huggingface.co"),
        ("TRD_ENABLE_CODE_TASKS", "true", "TRD_ENABLE_CODE_TASKS = true: Input should be '0' or '1'"),
        ("TRD_LOSS_KERNEL", "fast", "TRD_LOSS_KERNEL = fast: Input should be 'auto', 'triton' or 'torch'"),
        ("OTEL_EXPORTER_OTLP_ENDPOINT", "host:4318", "OTEL_EXPORTER_OTLP_ENDPOINT = host:4318: this is not a URL"),
    ],
)
def test_what_cannot_work_is_refused_at_the_start(variable: str, value: str, said: str, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("no database")
    (tmp_path / "folder").mkdir()
    paths = {"file": tmp_path / "file", "folder": tmp_path / "folder"}
    cls = Settings if variable == "TRD_HUB_DATASETS" else WorkerSettings
    message = refusal(cls, variable, value.format(**paths))
    assert said.format(**paths) in message
    assert "secret" not in message


def test_a_database_of_another_user_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "trd.db").write_bytes(b"SQLite format 3\0")
    monkeypatch.setattr(Path, "open", Mock(side_effect=PermissionError))  # root, who runs tests in CI, may read all
    said = refusal(Settings, "DATABASE_URL", f"sqlite:///{tmp_path}/trd.db")
    assert said == f"DATABASE_URL: this user may not read {tmp_path}/trd.db; change its owner, or name another file"


def test_other_forms_of_a_right_value_are_taken(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    environment = {
        "DATABASE_URL": "POSTGRES://u:p@h/d\n",
        "BROKER_URL": " REDIS://h:6379/0 ",
        "TRD_DATA_DIR": "~/data ",
    }
    settings = settings_from(WorkerSettings, environment)
    assert (settings.database_url, settings.broker_url) == ("postgresql+psycopg://u:p@h/d", "redis://h:6379/0")
    assert settings.data_dir == tmp_path / "data"
    on_a_node = {"TRD_LAUNCHER": "ray", "RAY_AUTH_MODE": "token", "RAY_ADDRESS": "auto"}
    assert settings_from(WorkerSettings, on_a_node).ray_address == "auto"
    assert settings_from(Settings, {"TRD_API_KEY": " a-key-from-a-file\n"}).api_key == "a-key-from-a-file"


@pytest.mark.parametrize(
    "command",
    [
        ("uvicorn", "service.app:app", "--port", "0"),
        ("celery", "-A", "worker.celery_app", "worker"),
        ("alembic", "upgrade", "head"),
        ("client.cli", "up"),
    ],
    ids=lambda command: command[0],
)
def test_a_process_ends_with_one_line(command: tuple[str, ...], tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    environment = {**os.environ, "TRD_DATA_DIR": str(tmp_path / "file")}
    ended = subprocess.run(
        [sys.executable, "-m", *command], env=environment, capture_output=True, text=True, timeout=60, check=False
    )
    first, *others = (ended.stdout + ended.stderr).splitlines()
    assert ended.returncode != 0
    assert first.startswith(f"error: TRD_DATA_DIR = {tmp_path}/file: {tmp_path}/file is not a folder; give one, or")
    assert [line[:5] for line in others] == (["hint:"] if command[0] == "client.cli" else [])
