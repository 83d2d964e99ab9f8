"""Queries on ``api_keys`` and ``browser_sessions``."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import UTC, datetime

from sqlalchemy import ColumnElement, and_, delete, or_, select
from sqlalchemy.orm import Session

from contract.tables import ApiKey, BrowserSession


def by_digest(session: Session, digest: str) -> ApiKey | None:
    """Return the key unless it is revoked or has expired."""
    return session.scalar(select(ApiKey).where(ApiKey.digest == digest, _is_valid()))


def valid(session: Session, key_id: str) -> ApiKey | None:
    """Return the key, locked, unless it is revoked or has expired."""
    return session.scalar(select(ApiKey).where(ApiKey.id == key_id, _is_valid()).with_for_update())


def is_good(session: Session, key_id: str) -> bool:
    """Return True if the key exists, is not revoked and has not expired."""
    return session.scalar(select(ApiKey.id).where(ApiKey.id == key_id, _is_valid())) is not None


def _is_valid() -> ColumnElement[bool]:
    has_time = or_(ApiKey.expires_at.is_(None), ApiKey.expires_at > datetime.now(UTC))
    return and_(ApiKey.revoked_at.is_(None), has_time)


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
