"""Queries on ``datasets``."""

from __future__ import annotations

from collections.abc import Sequence

from sqlalchemy import func, select
from sqlalchemy.orm import Session

from contract.tables import Dataset


def find(session: Session, owner: str, dataset_id: str, *, for_update: bool = False) -> Dataset | None:
    """The owner's dataset, locked until the transaction's end where asked for."""
    query = select(Dataset).where(Dataset.id == dataset_id, Dataset.owner == owner, Dataset.deleted_at.is_(None))
    return session.scalar(query.with_for_update() if for_update else query)


def page(session: Session, owner: str, after: str | None, limit: int) -> Sequence[Dataset]:
    """Datasets of the owner, newest first, one more than `limit`."""
    query = select(Dataset).where(Dataset.owner == owner, Dataset.deleted_at.is_(None))
    if after is not None:
        query = query.where(Dataset.id < after)
    return session.scalars(query.order_by(Dataset.id.desc()).limit(limit + 1)).all()


def num_stored_bytes(session: Session, owner: str) -> int:
    """Bytes of all datasets of the owner."""
    query = select(func.coalesce(func.sum(Dataset.num_bytes), 0))
    return int(session.scalar(query.where(Dataset.owner == owner, Dataset.deleted_at.is_(None))) or 0)
