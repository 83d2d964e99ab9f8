"""What a worker reads from its environment, once, when it starts."""

from __future__ import annotations

import os
import secrets
import socket
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Self

from pydantic import BaseModel, ConfigDict, Field, model_validator

from contract.database_url import DEFAULT_DATA_DIR, database_url
from contract.messages import DEFAULT_QUEUE
from contract.teacher_endpoints import ENDPOINTS_VARIABLE, TeacherEndpoint, parse_endpoints

COMMITTED_MODELS = Path(__file__).resolve().parent.parent / "testbed" / "models"

SHUTDOWN_MARGIN_SECONDS = 60.0
"""For uploads and the last writes, after the child's grace."""

Seconds = Annotated[float, Field(gt=0, le=86_400)]


class WorkerSettings(BaseModel):
    """One worker process. Each field's environment variable is in `_VARIABLES`."""

    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True)

    data_dir: Path = Path(DEFAULT_DATA_DIR)
    """Scratch of the attempts, and everything else in embedded mode."""
    database_url: str
    """As SQLAlchemy takes it."""
    broker_url: str | None = None
    """Without a broker (None) the worker polls the database more often."""
    storage_url: str
    """Where datasets and checkpoints lie, as fsspec takes it."""
    models: str = f"{COMMITTED_MODELS}/*"
    """The operator's allow-list, see `contract.model_catalog.parse_catalog`."""
    teacher_endpoints: dict[str, TeacherEndpoint] = {}
    """The operator's served teachers by name, see `contract.teacher_endpoints`."""
    queues: Annotated[tuple[str, ...], Field(min_length=1)] = (DEFAULT_QUEUE,)
    """Which queues this worker serves."""
    name: Annotated[str, Field(min_length=1, max_length=200)]
    """Unique to the process: it owns leases."""
    lease_seconds: Seconds = 30.0
    """A worker that has not renewed for so long is taken for lost."""
    heartbeat_seconds: Seconds = 5.0
    """How often a lease is renewed, and a cancel or pause noticed."""
    stop_grace_seconds: Seconds = 60.0
    """How long a child may take to reach a step boundary before it is killed."""
    poll_seconds: Seconds = Field(default_factory=lambda given: 0.5 if given.get("broker_url") is None else 3.0)
    """How often an idle worker polls the database for a job: every 0.5 s without a broker, 3 s with one."""
    progress_seconds: Seconds = 1.0
    """How often a child's events are written to the database."""
    reaper_seconds: Seconds = 10.0
    """How often the leader looks for expired leases."""
    ring_seconds: Seconds = 60.0
    """How long a job may wait, and how often, before its doorbell is rung again."""
    max_attempts: Annotated[int, Field(ge=1, le=1000)] = 3
    """Attempts in a row without a step of progress, after which a job fails."""

    @model_validator(mode="after")
    def _heartbeat_fits_lease(self) -> Self:
        if self.heartbeat_seconds * 2 > self.lease_seconds:
            raise ValueError(
                f"TRD_HEARTBEAT_SECONDS = {self.heartbeat_seconds} leaves no room for a late heartbeat within "
                f"TRD_LEASE_SECONDS = {self.lease_seconds}; set it to at most half of that"
            )
        return self

    @classmethod
    def from_environment(cls, environment: Mapping[str, str] = os.environ) -> Self:
        """The settings; raises ValueError that names what is wrong. Empty variables count as unset."""
        given: dict[str, Any] = {
            field: environment[variable] for variable, field in _VARIABLES.items() if environment.get(variable)
        }
        data_dir = Path(given.get("data_dir", DEFAULT_DATA_DIR)).resolve()
        given |= {"data_dir": data_dir, "database_url": database_url(environment)}
        given.setdefault("storage_url", f"file://{data_dir / 'storage'}")
        given["name"] = f"{socket.gethostname()}:{os.getpid()}:{secrets.token_hex(3)}"
        given["teacher_endpoints"] = parse_endpoints(given.get("teacher_endpoints", ""))
        if "queues" in given:
            given["queues"] = tuple(filter(None, (part.strip() for part in given["queues"].split(","))))
        return cls(**given)

    @property
    def scratch_dir(self) -> Path:
        """Folder of the attempts' folders."""
        return self.data_dir / "scratch"


_VARIABLES = {
    "TRD_DATA_DIR": "data_dir",
    "BROKER_URL": "broker_url",
    "STORAGE_URL": "storage_url",
    "TRD_MODELS": "models",
    ENDPOINTS_VARIABLE: "teacher_endpoints",
    "TRD_QUEUES": "queues",
    "TRD_LEASE_SECONDS": "lease_seconds",
    "TRD_HEARTBEAT_SECONDS": "heartbeat_seconds",
    "TRD_STOP_GRACE_SECONDS": "stop_grace_seconds",
    "TRD_POLL_SECONDS": "poll_seconds",
    "TRD_PROGRESS_SECONDS": "progress_seconds",
    "TRD_REAPER_SECONDS": "reaper_seconds",
    "TRD_RING_SECONDS": "ring_seconds",
    "TRD_MAX_ATTEMPTS": "max_attempts",
}
