"""Creates, lists, revokes and recognises keys."""

from __future__ import annotations

import hmac
import time
from collections.abc import Sequence
from datetime import UTC, datetime, timedelta

from contract.database import Database
from contract.ids import KEY_PREFIX, new_id
from contract.tables import ApiKey
from contract.views.audit import AuditAction
from contract.views.keys import KeyScope
from service.audit.log import record
from service.auth import Caller
from service.errors import NotFoundError
from service.keys import repository
from service.keys.secret import is_well_formed, key_digest, new_key
from service.query import cut

CACHE_SECONDS = 5.0
"""How long another process may still honour a key that was revoked."""
MAX_CACHED = 10_000

BOOTSTRAP_ID = "bootstrap"
BOOTSTRAP_OWNER = "admin"


class KeyRing:
    """The keys: the bootstrap key from the settings, all others in the database."""

    def __init__(self, database: Database, pepper: str, bootstrap_key: str | None) -> None:
        self._database = database
        self._pepper = pepper
        self._bootstrap_digest = key_digest(bootstrap_key, pepper) if bootstrap_key is not None else None
        self._cached: dict[str, tuple[Caller, float]] = {}
        self._good_until: dict[str, float] = {}

    def digest(self, text: str) -> str:
        """Return the digest under which a key or a token is stored."""
        return key_digest(text, self._pepper)

    def find(self, key: str) -> Caller | None:
        """Return the owner of a valid key, else None."""
        digest = self.digest(key)
        is_bootstrap = self._bootstrap_digest is not None and hmac.compare_digest(digest, self._bootstrap_digest)
        return self.find_by_digest(digest) if is_bootstrap or is_well_formed(key) else None

    def find_by_digest(self, digest: str) -> Caller | None:
        """Return the owner of the valid key with this digest, else None."""
        if self._bootstrap_digest is not None and hmac.compare_digest(digest, self._bootstrap_digest):
            caller: Caller | None = Caller(BOOTSTRAP_ID, BOOTSTRAP_OWNER, frozenset({KeyScope.ADMIN}))
        else:
            with self._database.read() as session:
                row = repository.by_digest(session, digest)
            caller = Caller(row.id, row.owner, frozenset(map(KeyScope, row.scopes))) if row is not None else None
        if caller is not None:
            if len(self._cached) >= MAX_CACHED:
                self._cached.clear()
            self._cached[digest] = (caller, time.monotonic() + CACHE_SECONDS)
        return caller

    def find_cached(self, key: str) -> Caller | None:
        """Return the owner if the key is cached and the entry has not expired."""
        return self.cached_by_digest(self.digest(key))

    def cached_by_digest(self, digest: str) -> Caller | None:
        """Return the same for a key's digest."""
        caller, good_until = self._cached.get(digest, (None, 0.0))
        return caller if time.monotonic() < good_until else None

    def is_good(self, key_id: str) -> bool:
        """Return True if the key, which was found before, is not revoked."""
        if key_id == BOOTSTRAP_ID or time.monotonic() < self._good_until.get(key_id, 0.0):
            return True
        asked_at = time.monotonic()
        with self._database.read() as session:
            is_good = repository.is_good(session, key_id)
        if is_good:
            if len(self._good_until) >= MAX_CACHED:
                self._good_until.clear()
            self._good_until[key_id] = asked_at + CACHE_SECONDS
        return is_good

    def create(
        self, owner: str, name: str, scopes: list[KeyScope], expires_at: datetime | None = None
    ) -> tuple[ApiKey, str]:
        """Store a new key; return its row, and the key itself, which is not stored."""
        row, key = self._new(owner, name, list(map(str, scopes)), expires_at)
        with self._database.write() as session:
            session.add(row)
            record(session, AuditAction.KEY_CREATE, row.id, owner=owner, name=name, scopes=row.scopes)
        return row, key

    def rotate(self, key_id: str, grace: timedelta) -> tuple[ApiKey, str]:
        """Replace a key by a new one with the same rights; the old one expires after `grace`.

        Returns the new row and the new key; raises `NotFoundError` if there is no valid key with this id.
        """
        with self._database.write() as session:
            old = repository.valid(session, key_id)
            if old is None:
                raise NotFoundError(f"there is no valid key {key_id}")
            row, key = self._new(old.owner, old.name, old.scopes, None)
            session.add(row)
            ends_at = datetime.now(UTC) + grace
            old.expires_at = min(old.expires_at or ends_at, ends_at)
            record(session, AuditAction.KEY_ROTATE, old.id, new_key_id=row.id, expires_at=old.expires_at.isoformat())
        self._forget()
        return row, key

    def _new(self, owner: str, name: str, scopes: list[str], expires_at: datetime | None) -> tuple[ApiKey, str]:
        key = new_key()
        row = ApiKey(
            id=new_id(KEY_PREFIX),
            owner=owner,
            name=name,
            digest=self.digest(key),
            scopes=scopes,
            created_at=datetime.now(UTC),
            expires_at=expires_at,
        )
        return row, key

    def page(self, after: str | None, limit: int) -> tuple[Sequence[ApiKey], bool]:
        """Return a page of all owners' keys, newest first, and whether more follow."""
        with self._database.read() as session:
            return cut(repository.page(session, after, limit), limit)

    def revoke(self, key_id: str) -> ApiKey:
        """Revoke a key and return it; raise `NotFoundError`. Repeating changes nothing."""
        with self._database.write() as session:
            row = repository.find(session, key_id)
            if row is None:
                raise NotFoundError(f"there is no key {key_id}")
            row.revoked_at = row.revoked_at or datetime.now(UTC)
            record(session, AuditAction.KEY_REVOKE, key_id)
        self._forget()
        return row

    def _forget(self) -> None:
        self._cached.clear()
        self._good_until.clear()
