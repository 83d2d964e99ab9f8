"""Settings from environment variables: the base class, and the variables that more than one process reads.

An empty variable counts as unset. A wrong one is reported by its name and value; the values of fields with
``repr=False`` (passwords, keys) are never shown.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated, Any, Literal, Self

from pydantic import AfterValidator, BeforeValidator, Field, ValidationError
from pydantic_settings import BaseSettings, NoDecode, SettingsConfigDict

from contract.messages import DEFAULT_QUEUE
from contract.server_groups import SamplerPool, ServerName, TeacherEndpoint
from contract.storage_keys import StorageUrl

DEFAULT_DATA_DIR = "./data"
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


CommaSeparated = (NoDecode, BeforeValidator(_split))
"""Annotations of a field that is a collection: its variable is comma-separated text, not JSON."""


def with_driver(url: str) -> str:
    """Return the URL with psycopg 3 named: for a bare ``postgresql://`` SQLAlchemy would import psycopg2."""
    scheme, separator, rest = url.partition("://")
    if separator and scheme in ("postgres", "postgresql"):
        return f"postgresql+psycopg://{rest}"
    return url


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
                shown = f" = {problem['input']}" if cls.model_fields[field].repr else ""
                inner = "".join(f"{part}." for part in problem["loc"][1:]).rstrip(".")
                problems.append(f"{cls.variable_of(field)}{shown}: {inner}{': ' if inner else ''}{message}")
        return problems


class DataFolderSettings(EnvironmentSettings):
    """The one variable that every process reads, the command line included."""

    data_dir: Annotated[Path, AfterValidator(Path.resolve)] = Path(DEFAULT_DATA_DIR)
    """Folder of everything that stays on this machine: in embedded mode the database and the storage too, otherwise
    the API's key pepper and the workers' scratch."""


class DatabaseSettings(DataFolderSettings):
    """What the API, the workers and the migrations share."""

    database_url: Annotated[str, AfterValidator(with_driver)] = Field(
        default_factory=lambda given: f"sqlite:///{given['data_dir'] / 'trd.db'}",
        validation_alias="database_url",
        repr=False,
    )
    """The database, as an SQLAlchemy URL (PostgreSQL or SQLite). Default: SQLite in the data folder."""


class DeploymentSettings(DatabaseSettings):
    """What the API and the workers share."""

    broker_url: str | None = Field(default=None, validation_alias="broker_url", repr=False)
    """Redis, as ``redis://…``. If unset, no messages are sent and the workers poll the database more often."""
    storage_url: StorageUrl = Field(
        default_factory=lambda given: f"file://{given['data_dir'] / 'storage'}",
        validation_alias="storage_url",
        repr=False,
    )
    """Where datasets and checkpoints are stored: a folder, ``file:///folder``, ``s3://bucket/prefix`` or ``memory:///``;
    S3 reads the usual ``AWS_`` variables too (docs/storage.md). Default: a folder in the data folder."""
    models: str = f"{PACKAGES_DIR}/testbed/models/*"
    """The models that jobs may name: comma-separated ``name=folder``, ``folder``, ``folder/*`` or
    ``owner/name@revision`` on the hub. Default: the tiny models of this repository."""
    devices_per_node: Annotated[int, Field(ge=1, le=1024)] | None = None
    """Devices of one machine. With TRD_LAUNCHER=ray a job that needs more runs on several; without a number, every job
    runs on one."""
    queues: Annotated[tuple[str, ...], *CommaSeparated, Field(min_length=1)] = (DEFAULT_QUEUE,)
    """Comma-separated names of queues: those that this worker serves, and on the API those that jobs may name, beside
    the default queues. Name those of all workers there."""
    dataset_roots: Annotated[tuple[Path, ...], *CommaSeparated] = ()
    """Comma-separated folders in which ``{"path": …}`` of a job may lie. The API checks the path, and the worker every
    file below it."""
    integration_secrets: Annotated[frozenset[str], *CommaSeparated] = frozenset()
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
