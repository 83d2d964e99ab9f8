"""Whether what the service needs works. Anybody may ask, without a key, so that it is looked at once a second at most:
a look takes a connection to the database and writes a file into the storage. Nobody waits for another's look: what
hangs would hold as many threads as somebody cares to take."""

from __future__ import annotations

import threading
import time

from sqlalchemy.exc import SQLAlchemyError

from contract.database import Database
from contract.storage import Storage
from service.db import current_revision, expected_revision
from service.enqueue import Doorbell

LOOK_SECONDS = 1.0
HANGING_SECONDS = 10.0
"""A look that takes longer is an answer of its own."""

_PARTS = ("database", "schema", "storage")


class Readiness:
    """Remembers the last look."""

    def __init__(self, database: Database, storage: Storage, doorbell: Doorbell) -> None:
        self._database = database
        self._storage = storage
        self._doorbell = doorbell
        self._looking = threading.Lock()
        self._parts = dict.fromkeys(_PARTS, "is being looked at")
        self._look_at = 0.0
        self._began_at = 0.0

    def parts(self) -> dict[str, str]:
        """Each part, and ok or what is wrong with it. The broker is not needed: workers look at the database too."""
        if time.monotonic() < self._look_at:
            return self._parts
        if not self._looking.acquire(blocking=False):
            hangs = time.monotonic() - self._began_at > HANGING_SECONDS
            return dict.fromkeys(_PARTS, "does not answer") if hangs else self._parts
        try:
            self._began_at = time.monotonic()
            database, schema = self._database_state()
            self._parts = {"database": database, "schema": schema, "storage": self._storage_state()}
            self._look_at = time.monotonic() + LOOK_SECONDS
        finally:
            self._looking.release()
        return self._parts

    def broker(self) -> str:
        """ok, or what follows."""
        return "ok" if self._doorbell.is_reachable() else "unreachable; jobs wait until a worker looks by itself"

    def _database_state(self) -> tuple[str, str]:
        try:
            current = current_revision(self._database)
        except SQLAlchemyError:
            return "unreachable", "unknown"
        expected = expected_revision()
        if current != expected:
            return "ok", f"is at {current or 'nothing'}, expected {expected}: run alembic upgrade head"
        return "ok", "ok"

    def _storage_state(self) -> str:
        try:
            self._storage.check()
        except OSError as error:
            reason = error.strerror or type(error).__name__
            return f"not writable: {reason}; check STORAGE_URL and the AWS_ variables"
        return "ok"
