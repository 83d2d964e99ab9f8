"""The probes ``/healthz`` and ``/readyz``."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from contract.views import OpenEnum, View


class Health(View):
    """The process answers."""

    status: Literal["ok"] = "ok"


class WorkerFailure(View):
    """A check of a worker's machine that failed when the worker started."""

    check: str
    message: str
    remedy: str
    """What to do."""


class WorkerHealth(View):
    """A worker that is alive."""

    name: str
    queues: list[str]
    device_kind: str | None
    """Such as h100 or cpu; null until the checks have ended."""
    num_devices: int | None = None
    """GPUs of its machine, or of each node of its Ray cluster; null on a CPU, and if it is not known."""
    device_bytes: int | None = None
    """Memory of one GPU; null if it is not known."""
    num_passed: int | None
    """Checks of its machine that passed; null until they have ended, and if TRD_CHECK_MACHINE is off."""
    failures: list[WorkerFailure]


class Readiness(View):
    """Whether requests can be served, and the state of each part: ``ok`` or what is wrong with it."""

    status: OpenEnum[Literal["ready", "unready"]]
    database: str
    schema_state: str = Field(alias="schema")
    """Whether the database has the revision of the schema that this version of the service expects."""
    storage: str
    broker: str
    """Does not make the service unready: workers poll the database too."""
    workers: list[WorkerHealth] = []  # noqa: RUF012 - pydantic copies it
    """Does not make the service unready: jobs wait for a worker."""

    slow: list[str] = []  # noqa: RUF012 - pydantic copies it
    """The parts whose check took more than half a second, with its time, as in ``storage: 1.9 s``."""

    @property
    def is_ready(self) -> bool:
        """Whether requests can be served."""
        return self.status == "ready"
