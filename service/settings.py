"""What the API reads from its environment, once, when it starts."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Any, Self

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from contract.database_url import DEFAULT_DATA_DIR, database_url
from contract.teacher_endpoints import ENDPOINTS_VARIABLE, TeacherEndpoint, parse_endpoints

PACKAGES_DIR = Path(__file__).resolve().parent.parent
"""The folder that holds this package and its siblings."""

Limit = Annotated[int, Field(ge=1)]


class UploadLimits(BaseModel):
    """What an uploaded dataset may be at most. Each guards memory or disk against one request."""

    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True)

    max_bytes: Limit = 2**30
    """Of the whole file."""
    max_line_bytes: Limit = 2**20
    """Of one row."""
    max_rows: Limit = 1_000_000
    """Of the whole file, blank lines aside."""
    max_json_depth: Limit = 16
    """Objects and lists within one another."""


class Settings(BaseModel):
    """One API process. Each field's environment variable is in `_VARIABLES`."""

    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True)

    data_dir: Path
    """The key pepper, and everything else in embedded mode."""
    database_url: str
    """As SQLAlchemy takes it."""
    broker_url: str | None = None
    """Without a broker (None) no doorbells are sent: workers poll the database."""
    storage_url: str
    """Where datasets and checkpoints lie, as fsspec takes it."""
    is_embedded: bool
    """True where neither DATABASE_URL nor BROKER_URL is set: the first start sets everything up."""
    api_key: Annotated[str, Field(min_length=16, max_length=500)] | None = None
    """A bootstrap key with every scope, owned by ``admin``."""
    key_pepper: Annotated[str, Field(min_length=16)] | None = None
    """Secret of the key digests; None keeps one in the data folder. Processes of one service share it."""
    models: str = f"{PACKAGES_DIR}/testbed/models/*"
    """The allow-list of models, see `contract.model_catalog.parse_catalog`."""
    teacher_endpoints: dict[str, TeacherEndpoint] = {}
    """What ``{"endpoint": …}`` may name, see `contract.teacher_endpoints`."""
    dataset_roots: tuple[Path, ...] = ()
    """Folders in which ``{"path": …}`` may lie."""
    hub_datasets: frozenset[str] = frozenset()
    """Ids that ``{"hub": …}`` may give."""
    max_devices: Limit = 1
    """Most devices that one job may ask for."""
    max_queued_jobs: Limit = 1000
    """Most jobs of one owner that wait or run at once."""
    max_stored_bytes: Limit = 50 * 2**30
    """Most bytes of uploaded datasets of one owner."""
    max_stored_rows: Limit = 20_000_000
    """Most rows of uploaded datasets of one owner."""
    max_requests_per_minute: Limit = 6000
    """Of one key, in one process."""
    max_streams_per_key: Limit = 100
    """Event streams of one key that are open at once, in one process."""
    max_streams: Limit = 2000
    """Event streams of all keys that are open at once, in one process."""
    max_body_bytes: Limit = 2**20
    """Of a request's JSON body."""
    max_header_bytes: Limit = 2**15
    """Of a request's headers together."""
    upload: UploadLimits = UploadLimits()

    @classmethod
    def from_environment(cls, environment: Mapping[str, str] = os.environ) -> Self:
        """The settings; raises ValueError that names what is wrong. Empty variables count as unset."""
        given: dict[str, Any] = {
            field: environment[variable] for variable, field in _VARIABLES.items() if environment.get(variable)
        }
        limits: dict[str, Any] = {
            field: environment[variable] for variable, field in _UPLOAD_VARIABLES.items() if environment.get(variable)
        }
        with _naming_variables():
            return cls._of(given, limits, environment)

    @classmethod
    def _of(cls, given: dict[str, Any], limits: dict[str, Any], environment: Mapping[str, str]) -> Self:
        data_dir = Path(given.get("data_dir", DEFAULT_DATA_DIR)).resolve()
        given |= {"data_dir": data_dir, "database_url": database_url(environment), "upload": UploadLimits(**limits)}
        given["is_embedded"] = not environment.get("DATABASE_URL") and not environment.get("BROKER_URL")
        given.setdefault("storage_url", f"file://{data_dir / 'storage'}")
        for field in ("dataset_roots", "hub_datasets"):
            given[field] = _names(given.get(field, ""))
        given["teacher_endpoints"] = parse_endpoints(given.get("teacher_endpoints", ""))
        return cls(**given)


def _names(value: str) -> tuple[str, ...]:
    """Comma-separated items."""
    return tuple(item.strip() for item in value.split(",") if item.strip())


@contextmanager
def _naming_variables() -> Iterator[None]:
    """Say which variable is wrong, and never show its value: it may be a secret, and this is logged."""
    try:
        yield
    except ValidationError as error:
        names = {field: variable for variable, field in {**_VARIABLES, **_UPLOAD_VARIABLES}.items()}
        problems = [f"{names.get(str(e['loc'][0]), e['loc'][0])}: {e['msg']}" for e in error.errors()]
        raise ValueError("; ".join(problems)) from None


_VARIABLES = {
    "TRD_DATA_DIR": "data_dir",
    "BROKER_URL": "broker_url",
    "STORAGE_URL": "storage_url",
    "TRD_API_KEY": "api_key",
    "TRD_KEY_PEPPER": "key_pepper",
    "TRD_MODELS": "models",
    ENDPOINTS_VARIABLE: "teacher_endpoints",
    "TRD_DATASET_ROOTS": "dataset_roots",
    "TRD_HUB_DATASETS": "hub_datasets",
    "TRD_MAX_DEVICES": "max_devices",
    "TRD_MAX_QUEUED_JOBS": "max_queued_jobs",
    "TRD_MAX_STORED_BYTES": "max_stored_bytes",
    "TRD_MAX_STORED_ROWS": "max_stored_rows",
    "TRD_MAX_REQUESTS_PER_MINUTE": "max_requests_per_minute",
    "TRD_MAX_STREAMS_PER_KEY": "max_streams_per_key",
    "TRD_MAX_STREAMS": "max_streams",
    "TRD_MAX_BODY_BYTES": "max_body_bytes",
    "TRD_MAX_HEADER_BYTES": "max_header_bytes",
}
_UPLOAD_VARIABLES = {
    "TRD_MAX_UPLOAD_BYTES": "max_bytes",
    "TRD_MAX_LINE_BYTES": "max_line_bytes",
    "TRD_MAX_ROWS": "max_rows",
    "TRD_MAX_JSON_DEPTH": "max_json_depth",
}
