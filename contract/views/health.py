"""The probes ``/healthz`` and ``/readyz``."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from contract.views import OpenEnum, View


class Health(View):
    """The process answers."""

    status: Literal["ok"] = "ok"


class Readiness(View):
    """Whether requests can be served, and the state of each part: ``ok`` or what is wrong with it."""

    status: OpenEnum[Literal["ready", "unready"]]
    database: str
    schema_state: str = Field(alias="schema")
    """Whether the database has the revision of the schema that this version of the service expects."""
    storage: str
    broker: str
    """Does not make the service unready: workers poll the database too."""

    @property
    def is_ready(self) -> bool:
        """Whether requests can be served."""
        return self.status == "ready"
