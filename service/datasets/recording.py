"""A checked file and its row come into being together, though storage and database know nothing of one another.

The row is there first, as one that will count as deleted tomorrow: whatever fails or dies from there on leaves a file
whose row says that it may go, see `service.leftovers`.
"""

from __future__ import annotations

from contextlib import suppress
from datetime import UTC, datetime

from sqlalchemy.exc import DBAPIError, SQLAlchemyError

from contract.tables import Dataset
from service.client_tries import ClientTry
from service.context import ServiceContext
from service.datasets import repository
from service.datasets.arriving import no_room
from service.datasets.service import uploaded_before
from service.storage import STALE, StagedFile


def store(context: ServiceContext, staged: StagedFile, row: Dataset, tried: ClientTry | None) -> Dataset:
    """The dataset, recorded and in its place; or that of an earlier request that this one repeats. Raises `QuotaError`
    where the owner has no room for it."""
    row.deleted_at = datetime.now(UTC) + STALE
    with context.database.write() as session:
        session.add(row)
    staged.keep(row.storage_key)
    try:
        kept = _publish(context, row, tried)
    except SQLAlchemyError as error:
        _give_up(context, row, error)
        raise
    if kept is row:
        return row
    context.storage.give_up(row.storage_key)
    if kept is not None:
        return kept
    raise no_room(context.settings)


def num_bytes_stored(context: ServiceContext, owner: str) -> int:
    """Of all datasets of the owner."""
    with context.database.read() as session:
        return repository.num_bytes_stored(session, owner)


def _publish(context: ServiceContext, row: Dataset, tried: ClientTry | None) -> Dataset | None:
    """What the client is to have: the row, an earlier one, or, where there is no room, neither."""
    with context.database.write() as session:
        earlier = uploaded_before(session, row, tried) if tried is not None else None
        num_bytes, num_rows = repository.num_stored(session, row.owner)
        settings = context.settings
        has_room = num_bytes + row.num_bytes <= settings.max_stored_bytes
        has_room = has_room and num_rows + row.num_rows <= settings.max_stored_rows
        session.add(row)
        if earlier is not None or not has_room:
            session.delete(row)
            return earlier
        row.deleted_at = None
    return row


def _give_up(context: ServiceContext, row: Dataset, error: SQLAlchemyError) -> None:
    if isinstance(error, DBAPIError) and error.connection_invalidated:
        return  # the commit may arrive yet
    with suppress(SQLAlchemyError):  # cannot be told either; a later start finds the file
        with context.database.read() as session:
            is_published = repository.is_published(session, row.id)
        if not is_published:
            context.storage.give_up(row.storage_key)
