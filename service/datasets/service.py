"""What users do with datasets: upload, list, inspect, preview and delete them.

Each surface (the native one, `service.openai_compat`, pages) calls `DatasetService`, which opens the transactions.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from datetime import UTC, datetime, timedelta
from tempfile import SpooledTemporaryFile
from typing import IO

from sqlalchemy.exc import DBAPIError, SQLAlchemyError
from sqlalchemy.orm import Session
from starlette.concurrency import run_in_threadpool

from contract.database import Database, lock_identical_requests
from contract.storage import Storage
from contract.tables import Dataset
from contract.views.datasets import PreviewRow
from service.datasets import repository
from service.datasets.multipart import UploadBody
from service.datasets.preview import preview_rows
from service.datasets.schemas import PreviewQuery
from service.datasets.upload import PIECE_BYTES, Upload
from service.errors import ApiError, ConflictError, NotFoundError, QuotaError
from service.models.service import ModelShelf
from service.query import cut
from service.retries import RETRY_WINDOW, ClientTry
from service.settings import Settings

STALE = timedelta(days=1)
"""No upload takes longer: its process has died."""


class DatasetService:
    """The use cases of datasets."""

    def __init__(self, settings: Settings, database: Database, storage: Storage, models: ModelShelf) -> None:
        self._settings = settings
        self._database = database
        self._storage = storage
        self._models = models
        self._arriving = ArrivingBytes(settings)

    async def receive(
        self, owner: str, body: UploadBody, default_filename: str, client_try: ClientTry | None = None
    ) -> Dataset:
        """Check and store the rows in `body`. If the client reports that it repeats a request, return what the other
        request stored.

        Raises `InvalidRequestError` that names the bad rows, `PayloadTooLargeError`, `MediaTypeError` and `QuotaError`.
        """
        try:
            # What a client repeats may be stored already, and must be found even if it has filled the quota.
            is_repeated = client_try is not None and client_try.is_repeated
            num_stored = 0 if is_repeated else await run_in_threadpool(self._num_bytes_stored, owner)
            # A temporary file has no name: it is gone with the process.
            with SpooledTemporaryFile(PIECE_BYTES, dir=str(self._settings.data_dir)) as received:
                upload = Upload(received, self._settings.upload)
                with self._arriving.counted(owner, num_stored) as count:

                    async def take(content: bytes) -> None:
                        count(len(content))
                        await upload.write(content)

                    filename = await body.feed(take)
                    row = await upload.finish(owner, filename or default_filename)
                return await run_in_threadpool(self._store, received, row, client_try)
        except (ApiError, OSError, SQLAlchemyError):
            await body.drain()
            raise

    def _num_bytes_stored(self, owner: str) -> int:
        with self._database.read() as session:
            return repository.num_bytes_stored(session, owner)

    def _store(self, received: IO[bytes], row: Dataset, client_try: ClientTry | None) -> Dataset:
        """Store the file and its row, or return the dataset of the request that this one repeats.

        The row comes first, marked to count as deleted tomorrow: whatever fails from there on leaves a file that
        `service.leftovers` removes.
        """
        row.deleted_at = datetime.now(UTC) + STALE
        with self._database.write() as session:
            session.add(row)
        self._storage.store(received, row.storage_key, sha256=row.sha256)
        try:
            kept = self._publish(row, client_try)
        except SQLAlchemyError as error:
            self._discard_unpublished(row, error)
            raise
        if kept is row:
            return row
        self._storage.give_up(row.storage_key)
        if kept is not None:
            return kept
        raise no_room(self._settings)

    def _publish(self, row: Dataset, client_try: ClientTry | None) -> Dataset | None:
        """Return the row, visible from now on, or an earlier one; None if the quota is used up."""
        with self._database.write() as session:
            earlier = _uploaded_before(session, row, client_try) if client_try is not None else None
            num_bytes, num_rows = repository.num_stored(session, row.owner)
            has_room = num_bytes + row.num_bytes <= self._settings.max_stored_bytes
            has_room = has_room and num_rows + row.num_rows <= self._settings.max_stored_rows
            session.add(row)
            if earlier is not None or not has_room:
                session.delete(row)
                return earlier
            row.deleted_at = None
        return row

    def _discard_unpublished(self, row: Dataset, error: SQLAlchemyError) -> None:
        if isinstance(error, DBAPIError) and error.connection_invalidated:
            return  # the commit may still arrive
        with suppress(SQLAlchemyError):  # then it stays unknown, and a later start finds the file
            with self._database.read() as session:
                is_published = repository.is_published(session, row.id)
            if not is_published:
                self._storage.give_up(row.storage_key)

    def show(self, owner: str, dataset_id: str) -> Dataset:
        """Return the owner's dataset; raise `NotFoundError`, also for another owner's dataset."""
        with self._database.read() as session:
            return _get(session, owner, dataset_id)

    def page(
        self, owner: str, after: str | None, limit: int, *, oldest_first: bool = False
    ) -> tuple[Sequence[Dataset], bool]:
        """Return one page of the owner's datasets, newest first by default, and whether more follow."""
        with self._database.read() as session:
            return cut(repository.page(session, owner, after, limit, oldest_first=oldest_first), limit)

    def preview(self, owner: str, dataset_id: str, query: PreviewQuery) -> list[PreviewRow]:
        """Return the prompts that a job would make of the first rows."""
        return preview_rows(self._storage, self._models, self.show(owner, dataset_id), query)

    def delete(self, owner: str, dataset_id: str) -> str:
        """Delete a dataset that no job needs; return the storage key that the caller has to remove."""
        with self._database.write() as session:
            row = _get(session, owner, dataset_id, for_update=True)
            job_id = repository.user_of(session, owner, dataset_id)
            if job_id is not None:
                raise ConflictError(
                    f"{dataset_id} is in use: {job_id} trains or is evaluated on it; wait for it to end, or cancel it",
                    code="dataset_in_use",
                )
            row.deleted_at = datetime.now(UTC)
        return row.storage_key


def _get(session: Session, owner: str, dataset_id: str, *, for_update: bool = False) -> Dataset:
    row = repository.find(session, owner, dataset_id, for_update=for_update)
    if row is None:
        raise NotFoundError(f"there is no dataset {dataset_id}", code="dataset_not_found", param="dataset_id")
    return row


def _uploaded_before(session: Session, upload: Dataset, client_try: ClientTry) -> Dataset | None:
    """Return what the client's earlier request stored, or its later one if that overtook this request.

    Waits for an identical upload that is being recorded, and marks `upload` for the requests that come after it.
    """
    lock_identical_requests(session, f"{upload.owner} {upload.sha256} {upload.filename}")
    upload.made_by_retry = client_try.is_repeated or None
    if client_try.is_repeated:
        return repository.newest_like(session, upload, upload.created_at - RETRY_WINDOW)
    return repository.newest_like(session, upload, client_try.received_at, is_made_by_retry=True)


class ArrivingBytes:
    """Bytes of unfinished uploads by owner, which count towards the owner's quota.

    Of one process; used on its event loop only.
    """

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self._by_owner: Counter[str] = Counter()

    @contextmanager
    def counted(self, owner: str, num_stored: int) -> Iterator[Callable[[int], None]]:
        """Yield a function to call with the size of each piece of an upload; it raises `QuotaError` once the owner's
        unfinished uploads and the `num_stored` bytes exceed the quota."""
        num_arrived = 0

        def add(num_bytes: int) -> None:
            nonlocal num_arrived
            num_arrived += num_bytes
            self._by_owner[owner] += num_bytes
            is_too_large = num_arrived > self._settings.upload.max_bytes  # whatever the quota: the upload reports it
            if not is_too_large and num_stored + self._by_owner[owner] > self._settings.max_stored_bytes:
                raise no_room(self._settings)

        try:
            yield add
        finally:
            self._by_owner[owner] -= num_arrived
            if self._by_owner[owner] == 0:
                del self._by_owner[owner]


def no_room(settings: Settings) -> QuotaError:
    """Return the error for an owner whose datasets are as large together as allowed."""
    max_bytes, max_rows = settings.max_stored_bytes, settings.max_stored_rows
    return QuotaError(f"your datasets may have {max_bytes} bytes and {max_rows} rows in all; delete some first")
