"""Sessions of the dashboard: a browser signs in with a key, or by a link that works once, and gets a cookie.

The cookie holds a random token and never the key. A session ends when it expires, when its user signs out, and when
its key is revoked.
"""

from __future__ import annotations

import secrets
from datetime import UTC, datetime, timedelta

from contract.database import Database
from contract.tables import BrowserSession
from contract.views.audit import AuditAction
from service.audit.log import acting_as, record
from service.auth import SignedIn
from service.keys import repository
from service.keys.service import MAX_CACHED, KeyRing

LIFETIME = timedelta(days=7)
LINK_LIFETIME = timedelta(minutes=10)


class Sessions:
    """Opens, finds and ends sessions."""

    def __init__(self, database: Database, keys: KeyRing) -> None:
        self._database = database
        self._keys = keys
        self._cached: dict[str, tuple[SignedIn, str]] = {}
        """Sessions with their keys' digests. An entry holds as long as the key ring remembers the key."""

    def open(self, key: str) -> str | None:
        """Return the token of a new session; None if the key is unknown or revoked."""
        return self._open(self._keys.digest(key)) if self._keys.find(key) is not None else None

    def open_by_link(self, link_token: str) -> str | None:
        """Use up a link and return the token of a new session; None if the link is used, expired or unknown."""
        with self._database.write() as session:
            key_digest = repository.take_link(session, self._keys.digest(link_token), datetime.now(UTC))
        return self._open(key_digest) if key_digest is not None else None

    def make_link(self, key: str) -> str:
        """Return the token of a link that signs in once with the key, which must be valid."""
        return self._add(self._keys.digest(key), LINK_LIFETIME, AuditAction.SESSION_LINK)

    def find(self, token: str) -> SignedIn | None:
        """Return the open session with this token, else None."""
        digest = self._keys.digest(token)
        with self._database.read() as session:
            row = repository.browser_session(session, digest, datetime.now(UTC))
        caller = self._keys.find_by_digest(row.key_digest) if row is not None else None
        if row is None or caller is None:
            return None
        signed_in = SignedIn(caller, self._keys.digest(f"csrf {token}"))
        if len(self._cached) >= MAX_CACHED:
            self._cached.clear()
        self._cached[digest] = (signed_in, row.key_digest)
        return signed_in

    def find_cached(self, token: str) -> SignedIn | None:
        """Return the session if it and its key are cached; else None."""
        signed_in, key_digest = self._cached.get(self._keys.digest(token), (None, ""))
        return signed_in if self._keys.cached_by_digest(key_digest) is not None else None

    def end(self, token: str) -> None:
        """End the session. Repeating changes nothing."""
        digest = self._keys.digest(token)
        with self._database.write() as session:
            repository.end_browser_session(session, digest)
            record(session, AuditAction.SESSION_END, "")
        self._cached.pop(digest, None)

    def _open(self, key_digest: str) -> str | None:
        caller = self._keys.find_by_digest(key_digest)
        if caller is None:
            return None
        acting_as(caller.owner, caller.key_id, "")
        return self._add(key_digest, LIFETIME, AuditAction.SESSION_OPEN)

    def _add(self, key_digest: str, lifetime: timedelta, action: AuditAction) -> str:
        token, now = secrets.token_urlsafe(32), datetime.now(UTC)
        row = BrowserSession(
            digest=self._keys.digest(token),
            key_digest=key_digest,
            is_link=action is AuditAction.SESSION_LINK,
            expires_at=now + lifetime,
        )
        with self._database.write() as session:
            repository.delete_expired_sessions(session, now)
            session.add(row)
            record(session, action, "")
        return token
