"""Writes and reads the audit log.

`acting_as` says once a request who acts, and `record` adds an entry to the transaction of a use case: either both are
stored or neither.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextvars import ContextVar, copy_context
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Annotated, Any, TypeVar, cast

from pydantic import Field
from sqlalchemy import Connection, Table, insert, select
from sqlalchemy.orm import Session

from contract.database import Database
from contract.ids import AUDIT_PREFIX, first_id, new_id
from contract.tables import AuditEntry
from contract.views.audit import AuditAction
from service.query import Moment, PageQuery, cut

Result = TypeVar("Result")

# A statement that is built once; with the values in it SQLAlchemy would take half a millisecond for each entry.
INSERT_ENTRY = insert(cast("Table", AuditEntry.__table__))


@dataclass(frozen=True)
class Actor:
    """Who acts: the owner, with which key, in which request."""

    owner: str
    key_id: str
    request_id: str


SERVICE = Actor("service", "", "")
"""The service itself, outside any request: the key of the first start."""

_actor: ContextVar[Actor] = ContextVar("actor", default=SERVICE)


def acting_as(owner: str, key_id: str, request_id: str) -> None:
    """Set who acts, for what this task does from now on, and for the threads of `RequestThreads` that it uses."""
    _actor.set(Actor(owner, key_id, request_id))


def record(session: Session | Connection, action: AuditAction, target: str, **detail: Any) -> None:
    """Add an entry to the transaction. `target` is the id of the object, or a path that begins with one."""
    session.execute(INSERT_ENTRY, audit_entry(action, target, **detail))


def audit_entry(action: AuditAction, target: str, **detail: Any) -> dict[str, Any]:
    """Return the values of `INSERT_ENTRY`: an entry of who acts at present, and now."""
    actor = _actor.get()
    return {
        "id": new_id(AUDIT_PREFIX),
        "at": datetime.now(UTC),
        "owner": actor.owner,
        "key_id": actor.key_id,
        "request_id": actor.request_id,
        "action": action,
        "target": target,
        "detail": detail or None,
    }


class RequestThreads(ThreadPoolExecutor):
    """Threads that know who acts: the standard pool does not hand the task's context on."""

    def submit(self, call: Callable[..., Result], /, *arguments: Any, **named: Any) -> Future[Result]:
        """Schedule the call in a copy of the caller's context."""
        return super().submit(copy_context().run, call, *arguments, **named)


class AuditQuery(PageQuery):
    """Which entries to list: those that match everything given."""

    owner: Annotated[str, Field(max_length=100)] | None = None
    """Only what this owner did."""
    action: AuditAction | None = None
    """Only this action."""
    target: Annotated[str, Field(max_length=500)] | None = None
    """Only what was done to this object."""
    since: Moment | None = None
    """Only from this time on, with a time zone."""


class AuditLog:
    """Reads the entries, and writes those that belong to no other transaction."""

    def __init__(self, database: Database) -> None:
        self._database = database

    def record(self, action: AuditAction, target: str, **detail: Any) -> None:
        """Store an entry in a separate transaction."""
        with self._database.write() as session:
            record(session, action, target, **detail)

    def page(self, wanted: AuditQuery) -> tuple[Sequence[AuditEntry], bool]:
        """Return a page of entries of all owners, newest first, and whether more follow."""
        query = select(AuditEntry).order_by(AuditEntry.id.desc()).limit(wanted.limit + 1)
        for column in ("owner", "action", "target"):
            if (value := getattr(wanted, column)) is not None:
                query = query.where(getattr(AuditEntry, column) == value)
        if wanted.since is not None:
            query = query.where(AuditEntry.id >= first_id(AUDIT_PREFIX, wanted.since))
        if wanted.after is not None:
            query = query.where(AuditEntry.id < wanted.after)
        with self._database.read() as session:
            return cut(session.scalars(query).all(), wanted.limit)
