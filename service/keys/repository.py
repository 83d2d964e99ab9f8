"""Queries on ``api_keys`` and ``browser_sessions``."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime

from sqlalchemy import delete, select
from sqlalchemy.orm import Session

from contract.tables import ApiKey, BrowserSession


def by_digest(session: Session, digest: str) -> ApiKey | None:
    """Return the key unless it is revoked."""
    return session.scalar(select(ApiKey).where(ApiKey.digest == digest, ApiKey.revoked_at.is_(None)))


def is_good(session: Session, key_id: str) -> bool:
    """Return True if the key exists and is not revoked."""
    return session.scalar(select(ApiKey.id).where(ApiKey.id == key_id, ApiKey.revoked_at.is_(None))) is not None


def any_key(session: Session) -> bool:
    """Return True if a key was ever created."""
    return session.scalar(select(ApiKey.id).limit(1)) is not None


def page(session: Session, after: str | None, limit: int) -> Sequence[ApiKey]:
    """Return keys of all owners, newest first, one more than `limit`."""
    query = select(ApiKey).order_by(ApiKey.id.desc()).limit(limit + 1)
    if after is not None:
        query = query.where(ApiKey.id < after)
    return session.scalars(query).all()


def find(session: Session, key_id: str) -> ApiKey | None:
    """Return the key, also if it is revoked."""
    return session.get(ApiKey, key_id)


def browser_session(session: Session, digest: str, now: datetime) -> BrowserSession | None:
    """Return the session with this token unless it has expired."""
    query = select(BrowserSession).where(BrowserSession.digest == digest, BrowserSession.is_link.is_(False))
    return session.scalar(query.where(BrowserSession.expires_at > now))


def take_link(session: Session, digest: str, now: datetime) -> str | None:
    """Delete a sign-in link and return its key's digest; None if it was used before, has expired or never existed."""
    found = delete(BrowserSession).where(BrowserSession.digest == digest, BrowserSession.is_link.is_(True))
    return session.scalar(found.where(BrowserSession.expires_at > now).returning(BrowserSession.key_digest))


def end_browser_session(session: Session, digest: str) -> None:
    """Delete a session."""
    session.execute(delete(BrowserSession).where(BrowserSession.digest == digest))


def delete_expired_sessions(session: Session, now: datetime) -> None:
    """Delete the sessions and links that have expired."""
    session.execute(delete(BrowserSession).where(BrowserSession.expires_at <= now))
