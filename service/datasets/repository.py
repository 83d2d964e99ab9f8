"""Queries on ``datasets``."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from datetime import UTC, datetime
from typing import NamedTuple

from sqlalchemy import bindparam, func, select
from sqlalchemy.orm import Session

from contract.ids import DATASET_PREFIX, first_id
from contract.tables import Dataset


class Size(NamedTuple):
    """What a new job asks of its dataset."""

    num_rows: int
    has_solutions: bool
    """Every row has one."""


# Built once: building a statement takes longer than running it.
_FIND = select(Dataset).where(
    Dataset.id == bindparam("dataset_id"), Dataset.owner == bindparam("owner"), Dataset.deleted_at.is_(None)
)
_SIZE = _FIND.with_only_columns(Dataset.num_rows, Dataset.has_solutions)
_FIND_AND_LOCK = _FIND.with_for_update()
_FIND_AND_KEEP = _FIND.with_for_update(read=True, key_share=True)


def find(session: Session, owner: str, dataset_id: str, *, for_update: bool = False) -> Dataset | None:
    """The owner's dataset, locked until the transaction's end where asked for."""
    return session.scalar(_FIND_AND_LOCK if for_update else _FIND, {"dataset_id": dataset_id, "owner": owner})


def is_kept(session: Session, owner: str, dataset_id: str) -> bool:
    """True where the owner has the dataset; until the transaction's end nobody deletes it."""
    return session.scalar(_FIND_AND_KEEP, {"dataset_id": dataset_id, "owner": owner}) is not None


def size(session: Session, owner: str, dataset_id: str) -> Size | None:
    """Of the owner's dataset."""
    row = session.connection().execute(_SIZE, {"dataset_id": dataset_id, "owner": owner}).one_or_none()
    return None if row is None else Size(*row)


def deleted_among(session: Session, dataset_ids: Collection[str]) -> Sequence[str]:
    """Those of the datasets, of any owner, that were deleted, or whose upload ended without a word."""
    deleted = select(Dataset.id).where(Dataset.id.in_(dataset_ids), Dataset.deleted_at <= datetime.now(UTC))
    return session.scalars(deleted).all()


def is_published(session: Session, dataset_id: str) -> bool:
    """True where the dataset is there for its owner."""
    published = select(Dataset.id).where(Dataset.id == dataset_id, Dataset.deleted_at.is_(None))
    return session.scalar(published) is not None


def page(
    session: Session, owner: str, after: str | None, limit: int, *, oldest_first: bool = False
) -> Sequence[Dataset]:
    """Datasets of the owner, newest first unless asked for otherwise, one more than `limit`."""
    query = select(Dataset).where(Dataset.owner == owner, Dataset.deleted_at.is_(None))
    if after is not None:
        query = query.where(Dataset.id > after if oldest_first else Dataset.id < after)
    order = Dataset.id.asc() if oldest_first else Dataset.id.desc()
    return session.scalars(query.order_by(order).limit(limit + 1)).all()


def newest_like(
    session: Session, upload: Dataset, since: datetime, *, is_made_by_retry: bool = False
) -> Dataset | None:
    """The owner's newest dataset since then with the name and the content of `upload`; with `is_made_by_retry` of a
    repeated request."""
    recent = select(Dataset).where(
        Dataset.owner == upload.owner,
        Dataset.id >= first_id(DATASET_PREFIX, since),
        Dataset.filename == upload.filename,
        Dataset.sha256 == upload.sha256,
        Dataset.deleted_at.is_(None),
    )
    if is_made_by_retry:
        recent = recent.where(Dataset.made_by_retry.is_(True))
    return session.scalar(recent.order_by(Dataset.id.desc()).limit(1))


def num_bytes_stored(session: Session, owner: str) -> int:
    """Of all datasets of the owner."""
    query = select(func.sum(Dataset.num_bytes)).where(Dataset.owner == owner, Dataset.deleted_at.is_(None))
    return int(session.scalar(query) or 0)


def num_stored(session: Session, owner: str) -> tuple[int, int]:
    """(bytes, rows) of all datasets of the owner."""
    query = select(func.sum(Dataset.num_bytes), func.sum(Dataset.num_rows))
    num_bytes, num_rows = session.execute(query.where(Dataset.owner == owner, Dataset.deleted_at.is_(None))).one()
    return int(num_bytes or 0), int(num_rows or 0)
