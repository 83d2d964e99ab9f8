"""Queries on ``datasets``."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from datetime import UTC, datetime
from types import MappingProxyType
from typing import Any, NamedTuple

from sqlalchemy import Connection, bindparam, func, or_, select
from sqlalchemy.orm import Session

from contract.ids import DATASET_PREFIX, first_id
from contract.job_state import JobStatus
from contract.tables import Dataset, Job


class Size(NamedTuple):
    """The facts about a dataset that decide whether a job may train on it."""

    num_rows: int
    has_solutions: bool
    """True if every row has one."""
    notices: Sequence[Mapping[str, Any]] = ()
    """What the check of the upload found, as `NoticeView` documents of all tasks."""
    tasks: Mapping[str, Mapping[str, Any]] = MappingProxyType({})
    """How each task can read the rows, as `trd_data.check.TaskReport` documents; empty if it is unknown."""


# Built once: building a statement takes longer than running it.
_FIND = select(Dataset).where(
    Dataset.id == bindparam("dataset_id"), Dataset.owner == bindparam("owner"), Dataset.deleted_at.is_(None)
)
_FIND_AND_LOCK = _FIND.with_for_update()
_SIZES = select(
    Dataset.id, Dataset.num_rows, Dataset.has_solutions, Dataset.findings["notices"], Dataset.findings["tasks"]
).where(
    Dataset.id.in_((bindparam("first"), bindparam("second"))),
    Dataset.owner == bindparam("owner"),
    Dataset.deleted_at.is_(None),
)
SIZES_AND_KEEP = _SIZES.with_for_update(read=True, key_share=True, of=Dataset)
"""Sizes of the datasets `first` and `second` of `owner`, which nobody can delete until the transaction ends."""


def find(session: Session, owner: str, dataset_id: str, *, for_update: bool = False) -> Dataset | None:
    """Return the owner's dataset; `for_update` locks it until the transaction ends."""
    return session.scalar(_FIND_AND_LOCK if for_update else _FIND, {"dataset_id": dataset_id, "owner": owner})


def sizes(session: Session, owner: str, dataset_ids: Collection[str], *, keep: bool = False) -> dict[str, Size]:
    """Return the sizes of up to two datasets of the owner, by id; unknown ids are left out.

    With `keep`, nobody can delete them until the transaction ends.
    """
    if not dataset_ids:
        return {}
    first, *others = dataset_ids
    values = {"owner": owner, "first": first, "second": others[0] if others else first}
    rows = session.connection().execute(SIZES_AND_KEEP if keep else _SIZES, values)
    return sizes_of(rows)


def sizes_of(rows: Iterable[Sequence[Any]]) -> dict[str, Size]:
    """Return what rows of `SIZES_AND_KEEP` say, by id."""
    return {row[0]: Size(row[1], row[2], row[3] or (), row[4] or {}) for row in rows}


def first_without_solution(connection: Connection, dataset_id: str) -> int | None:
    """Return the first row without a solution; None if it is unknown, because an earlier version checked the file."""
    row = Dataset.findings["first_without_solution"].as_integer()
    return connection.scalar(select(row).where(Dataset.id == dataset_id))


def user_of(session: Session, owner: str, dataset_id: str) -> str | None:
    """Return the id of a job of the owner that is not over and names the dataset."""
    dataset = Job.spec["dataset"].as_string()
    evaluated = Job.spec["evaluation"]["dataset"].as_string()
    query = select(Job.id).where(Job.owner == owner, Job.status.in_([s for s in JobStatus if not s.is_final]))
    return session.scalar(query.where(or_(dataset == dataset_id, evaluated == dataset_id)).limit(1))


def deleted_among(session: Session, dataset_ids: Collection[str]) -> Sequence[str]:
    """Return those of the datasets, of any owner, that were deleted or whose upload was never completed."""
    deleted = select(Dataset.id).where(Dataset.id.in_(dataset_ids), Dataset.deleted_at <= datetime.now(UTC))
    return session.scalars(deleted).all()


def is_published(session: Session, dataset_id: str) -> bool:
    """Return True if the dataset is visible to its owner."""
    published = select(Dataset.id).where(Dataset.id == dataset_id, Dataset.deleted_at.is_(None))
    return session.scalar(published) is not None


def page(
    session: Session, owner: str, after: str | None, limit: int, *, oldest_first: bool = False
) -> Sequence[Dataset]:
    """Return datasets of the owner, newest first by default, one more than `limit`."""
    query = select(Dataset).where(Dataset.owner == owner, Dataset.deleted_at.is_(None))
    if after is not None:
        query = query.where(Dataset.id > after if oldest_first else Dataset.id < after)
    order = Dataset.id.asc() if oldest_first else Dataset.id.desc()
    return session.scalars(query.order_by(order).limit(limit + 1)).all()


def newest_like(
    session: Session, upload: Dataset, since: datetime, *, is_made_by_retry: bool = False
) -> Dataset | None:
    """Return the owner's newest dataset since then with the name and content of `upload`; `is_made_by_retry` accepts
    only datasets of a repeated request."""
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


def num_stored(session: Session, owner: str) -> tuple[int, int]:
    """Return (bytes, rows) of all datasets of the owner."""
    query = select(func.sum(Dataset.num_bytes), func.sum(Dataset.num_rows))
    num_bytes, num_rows = session.execute(query.where(Dataset.owner == owner, Dataset.deleted_at.is_(None))).one()
    return int(num_bytes or 0), int(num_rows or 0)
