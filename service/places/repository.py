"""Queries on ``offered_places``."""

from __future__ import annotations

from datetime import datetime

from sqlalchemy import delete, select
from sqlalchemy.orm import Session

from contract.tables import OfferedPlace


def is_waiting(session: Session, owner: str, now: datetime) -> bool:
    """Return whether a place waits for a tab of the owner."""
    mine = select(OfferedPlace.id).where(OfferedPlace.owner == owner, OfferedPlace.expires_at > now)
    return session.scalar(mine.limit(1)) is not None


def is_offered(session: Session, place_id: int) -> bool:
    """Return whether no tab has taken the place yet."""
    return session.get(OfferedPlace, place_id) is not None


def take(session: Session, owner: str, now: datetime) -> str | None:
    """Delete the owner's oldest place and return its path: of several tabs, one gets it."""
    mine = select(OfferedPlace.id).where(OfferedPlace.owner == owner, OfferedPlace.expires_at > now)
    oldest = mine.order_by(OfferedPlace.id).limit(1).with_for_update(skip_locked=True).scalar_subquery()
    return session.scalar(delete(OfferedPlace).where(OfferedPlace.id == oldest).returning(OfferedPlace.path))


def withdraw(session: Session, place_id: int) -> bool:
    """Delete the place; return False if a tab has taken it."""
    found = delete(OfferedPlace).where(OfferedPlace.id == place_id).returning(OfferedPlace.id)
    return session.scalar(found) is not None


def delete_expired(session: Session, now: datetime) -> None:
    """Delete what processes that ended have left."""
    session.execute(delete(OfferedPlace).where(OfferedPlace.expires_at <= now))
