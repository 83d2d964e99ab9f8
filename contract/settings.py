"""Settings from environment variables: the base class, and the variables that more than one process reads.

An empty variable counts as unset, and white space around a value is not part of it. A wrong one is reported by its name
and value; the values of fields with ``repr=False`` (passwords, keys) are never shown.
"""

from __future__ import annotations

import json
import os
import re
import sys
from pathlib import Path
from typing import Annotated, Any, Literal, Self
from urllib.parse import urlsplit

from pydantic import AfterValidator, BeforeValidator, Field, ValidationError, field_validator, model_validator
from pydantic_settings import BaseSettings, NoDecode, SettingsConfigDict

from contract.messages import DEFAULT_QUEUE
from contract.model_catalog import parse_catalog
from contract.server_groups import SamplerPool, ServerName, TeacherEndpoint
from contract.storage_keys import StorageUrl, parse_storage_url

DEFAULT_DATA_DIR = "./data"
MAX_SHOWN = 200
"""Most characters of a wrong value in a message."""
PACKAGES_DIR = Path(__file__).resolve().parent.parent
"""The folder that holds this package and its siblings."""

Seconds = Annotated[float, Field(gt=0, le=86_400)]
Days = Annotated[float, Field(gt=0, le=36_500)]


def _split(value: Any) -> Any:
    """Return the items of a comma-separated text."""
    return [item.strip() for item in value.split(",") if item.strip()] if isinstance(value, str) else value


def from_json(value: Any) -> Any:
    """Return the object in a JSON text."""
    try:
        return json.loads(value) if isinstance(value, str) else value
    except ValueError:
        raise ValueError("is not a JSON object") from None


VariableName = Annotated[str, Field(pattern=r"^[A-Za-z_][A-Za-z0-9_]*$")]
CommaSeparated = (NoDecode, BeforeValidator(_split))
"""Annotations of a field that is a collection: its variable is comma-separated text, not JSON."""


def with_driver(url: str) -> str:
    """Return the URL with psycopg 3 named: for a bare ``postgresql://`` SQLAlchemy would import psycopg2."""
    scheme, separator, rest = url.partition("://")
    if separator and scheme.lower() in ("postgres", "postgresql"):
        return f"postgresql+psycopg://{rest}"
    return url


def _checked_database(url: str) -> str:
    """Return the URL with its driver; raises ValueError unless it names a database that `contract.database` opens."""
    from sqlalchemy import make_url  # takes long, and the command line, which imports this module, needs no database
    from sqlalchemy.exc import ArgumentError

    url = with_driver(url)
    try:
        parsed = make_url(url)
    except (ArgumentError, ValueError):
        parsed = None  # the error's text may have the password
    if parsed is None or parsed.drivername not in ("postgresql+psycopg", "sqlite"):
        raise ValueError("this is not a database; write it like postgresql://user:password@host/name or sqlite:///file")
    if parsed.drivername == "sqlite":
        if parsed.database in (None, "", ":memory:"):
            raise ValueError("a database in memory cannot be shared by processes; write it like sqlite:///file")
        file = Path(parsed.database)
        _checked_folder(file.parent)
        if file.is_dir() or (file.is_file() and file.stat().st_size and not _is_sqlite(file)):
            raise ValueError(f"{file} is there, and is no SQLite database; name another file")
    return url


def _is_sqlite(path: Path) -> bool:
    try:
        with path.open("rb") as file:
            return file.read(16) == b"SQLite format 3\0"
    except PermissionError:
        raise ValueError(f"this user may not read {path}; change its owner, or name another file") from None


def _checked_broker(url: str) -> str:
    """Return the URL with its scheme in lower case; raises ValueError unless it names a Redis server."""
    try:
        parts = urlsplit(url)
        is_redis = parts.scheme in ("redis", "rediss") and parts.hostname and parts.port != 0
    except ValueError:  # its text may have a part of the password
        is_redis = False
    if not is_redis or not re.fullmatch(r"(/\d*)?", parts.path):
        raise ValueError("this is not a Redis server; write it like redis://:password@host:6379/0")
    return parts.geturl()


def absolute(path: Path) -> Path:
    """Return the absolute path of a folder that a variable names, whether it is there or not."""
    return Path(os.path.expanduser(path)).resolve()  # noqa: PTH111 - Path's own fails without a home


def _checked_folder(path: Path) -> Path:
    """Return the absolute path; raises ValueError if a folder can neither be there nor be made there."""
    path = absolute(path)
    for place in (path, *path.parents):
        try:
            if place.is_dir():
                return path
            if os.path.lexists(place):
                raise ValueError(f"{place} is not a folder; give one, or a path at which one can be made")
        except OSError as error:
            raise ValueError(f"{place}: {error.strerror}") from None
    return path


def _checked_models(setting: str) -> str:
    parse_catalog(setting)
    return setting


def make_private_folder(path: Path) -> None:
    """Make a folder that only its user can read, and its missing parents. An existing folder keeps its mode, which its
    operator chose."""
    if not path.parent.exists():
        make_private_folder(path.parent)
    path.mkdir(mode=0o700, exist_ok=True)


class EnvironmentSettings(BaseSettings):
    """Base class of settings. A field's variable is ``TRD_`` and its name, or its alias alone, in upper case."""

    model_config = SettingsConfigDict(
        env_prefix="TRD_", env_ignore_empty=True, extra="forbid", frozen=True, use_attribute_docstrings=True
    )

    @classmethod
    def from_environment(cls, **given: Any) -> Self:
        """Return the settings; `given` overrides the environment. Raises ValueError that names every wrong variable."""
        try:
            return cls(**given)
        except ValidationError as error:
            raise ValueError("; ".join(cls._problems(error))) from None

    @classmethod
    def of_process(cls) -> Self:
        """Return the settings of a process that starts, or end it with one line that names every wrong variable."""
        try:
            return cls.from_environment()
        except ValueError as error:
            sys.exit(f"error: {error}")

    @field_validator("*", mode="before")
    @classmethod
    def _without_what_is_pasted_along(cls, value: Any) -> Any:
        """Remove white space around a value. Quotes are refused: in an ``--env-file`` they are part of it."""
        if not isinstance(value, str):
            return value
        text = value.strip()
        if value and not text:
            raise ValueError("this is white space; give a value, or leave it empty")
        if text and text[0] in "'\"" and text[-1] == text[0]:
            raise ValueError("the quotes would be part of the value; leave them out")
        return text

    @classmethod
    def variable_of(cls, field: str) -> str:
        """Return the environment variable of a field."""
        alias = cls.model_fields[field].validation_alias
        return alias.upper() if isinstance(alias, str) else f"TRD_{field.upper()}"

    @classmethod
    def _problems(cls, error: ValidationError) -> list[str]:
        problems = []
        for problem in error.errors(include_url=False):
            message = problem["msg"].removeprefix("Value error, ")
            field = str(problem["loc"][0]) if problem["loc"] else ""
            if field not in cls.model_fields:  # a validator of the whole model names the variables itself
                problems.append(message)
            elif problem["type"] != "default_factory_not_called":  # a consequence of another problem
                shown = f" = {_on_one_line(problem['input'])}" if cls.model_fields[field].repr else ""
                inner = "".join(f"{part}." for part in problem["loc"][1:]).rstrip(".")
                problems.append(f"{cls.variable_of(field)}{shown}: {inner}{': ' if inner else ''}{message}")
        return problems


def _on_one_line(value: Any) -> str:
    """Return a value for a message: without control characters and the password of a URL, and not for pages."""
    text = re.sub(r"//[^/@\s]*@", "//…@", str(value))
    text = "".join(c if c.isprintable() else repr(c)[1:-1] for c in text[: MAX_SHOWN + 1])
    return text if len(text) <= MAX_SHOWN else f"{text[:MAX_SHOWN]}…"


class DataFolderSettings(EnvironmentSettings):
    """The one variable that every process reads, the command line included."""

    data_dir: Annotated[Path, AfterValidator(_checked_folder)] = Path(DEFAULT_DATA_DIR)
    """Folder of everything that stays on this machine: in embedded mode the database and the storage too, otherwise
    the API's key pepper and the workers' scratch."""


class DatabaseSettings(DataFolderSettings):
    """What the API, the workers and the migrations share."""

    database_url: Annotated[str, AfterValidator(_checked_database)] = Field(
        default_factory=lambda given: f"sqlite:///{given['data_dir'] / 'trd.db'}",
        validation_alias="database_url",
        repr=False,
    )
    """The database, as an SQLAlchemy URL (PostgreSQL or SQLite). Default: SQLite in the data folder."""


class DeploymentSettings(DatabaseSettings):
    """What the API and the workers share."""

    broker_url: Annotated[str, AfterValidator(_checked_broker)] | None = Field(
        default=None, validation_alias="broker_url", repr=False
    )
    """Redis, as ``redis://…``. If unset, no messages are sent and the workers poll the database more often."""
    storage_url: StorageUrl = Field(
        default_factory=lambda given: f"file://{given['data_dir'] / 'storage'}",
        validation_alias="storage_url",
        repr=False,
    )
    """Where datasets and checkpoints are stored: a folder, ``file:///folder``, ``s3://bucket/prefix`` or ``memory:///``;
    S3 reads the usual ``AWS_`` variables too (docs/storage.md). Default: a folder in the data folder."""
    models: Annotated[str, AfterValidator(_checked_models)] = f"{PACKAGES_DIR}/testbed/models/*"
    """The models that jobs may name: comma-separated ``name=folder``, ``folder``, ``folder/*`` or
    ``owner/name@revision`` on the hub. Default: the tiny models of this repository."""
    devices_per_node: Annotated[int, Field(ge=1, le=1024)] | None = None
    """Devices of one machine. With TRD_LAUNCHER=ray a job that needs more runs on several; without a number, every job
    runs on one."""
    queues: Annotated[tuple[str, ...], *CommaSeparated, Field(min_length=1)] = (DEFAULT_QUEUE,)
    """Comma-separated names of queues: those that this worker serves, and on the API those that jobs may name, beside
    the default queues. Name those of all workers there."""
    dataset_roots: Annotated[tuple[Annotated[Path, AfterValidator(_checked_folder)], ...], *CommaSeparated] = ()
    """Comma-separated folders in which ``{"path": …}`` of a job may lie. The API checks the path, and the worker every
    file below it."""
    integration_secrets: Annotated[frozenset[VariableName], *CommaSeparated] = Field(default=frozenset(), repr=False)
    """Comma-separated names of the workers' environment variables that a job may name as the key of a tracker."""
    retain_events_days: Days | None = None
    """Days after a job's end at which a worker removes its events, all but the last. If unset, they are kept forever,
    as is the rest below; `trd retention --events-days 30` shows what would go. Give API and workers the same."""
    retain_metrics_days: Days | None = None
    """Days after a job's end at which its metrics by step are removed."""
    retain_trajectories_days: Days | None = None
    """Days after a job's end at which its trajectories and its answers to the probe problems are removed."""
    retain_checkpoints_days: Days | None = None
    """Days after a job's end at which its checkpoints are removed, all but the last."""
    webhook_network: Literal["public", "private", "loopback"] = "public"
    """Which addresses webhooks may have: public ones, also private networks, or this machine only (for tests). Only
    ``loopback`` allows http; the others require https."""
    allow_unconfined_verifiers: Literal["0", "1"] = "0"
    """``1`` lets tasks ``math`` and ``reasoning_gym`` judge answers on a machine that cannot confine the processes that
    evaluate them. Without it such a machine refuses their jobs. The API judges the references of uploads."""
    teacher_endpoints: Annotated[dict[ServerName, TeacherEndpoint], NoDecode, BeforeValidator(from_json)] = Field(
        default={}, repr=False
    )
    """The served teachers that jobs may name: a JSON object from name to endpoint, with the fields ``url``,
    ``replicas``, ``model``, ``api``, ``api_key_env``, ``network``, ``context_tokens``, ``max_logprobs``,
    ``timeout_seconds``, ``max_tries`` and ``max_concurrency`` of `contract.server_groups.TeacherEndpoint`."""
    sampler_pools: Annotated[dict[ServerName, SamplerPool], NoDecode, BeforeValidator(from_json)] = Field(
        default={}, repr=False
    )
    """The pools of vLLM servers that jobs may name in ``sampling.pool`` and ``refine.pool``: a JSON object from name to
    pool, with the fields ``url``, ``replicas``, ``model``, ``api_key_env``, ``network``, ``timeout_seconds``,
    ``max_tries`` and ``max_concurrency`` of `contract.server_groups.SamplerPool`; see docs/samplers.md."""

    @model_validator(mode="after")
    def _spans_can_be_sent(self) -> Self:
        from contract.tracing import sends_spans  # the command line, which imports this module, sends none

        sends_spans()
        return self

    @field_validator("storage_url")
    @classmethod
    def _storage_folder_can_be_made(cls, url: str) -> str:
        scheme, place = parse_storage_url(url)
        if scheme == "file":
            _checked_folder(Path(place))
        return url
