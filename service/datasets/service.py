"""What users do with datasets: upload, list, inspect, preview and delete them.

Each surface (the native one, `service.openai_compat`, pages) calls `DatasetService`, which opens the transactions.
"""

from __future__ import annotations

import asyncio
import json
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import asdict
from datetime import UTC, datetime, timedelta
from tempfile import TemporaryFile
from typing import IO, Any, TypeVar

from sqlalchemy.exc import DBAPIError, SQLAlchemyError
from sqlalchemy.orm import Session
from starlette.types import Receive

from contract.database import Database, lock_identical_requests
from contract.storage import Storage
from contract.tables import Dataset
from contract.views.audit import AuditAction
from contract.views.datasets import PreviewRow
from service.audit.log import RequestThreads, record
from service.datasets import repository
from service.datasets.child import ChildPool, unless_disconnected
from service.datasets.multipart import UploadBody
from service.datasets.preview import preview_errors, preview_request
from service.datasets.rows import data_errors, refuse_bad_rows
from service.datasets.schemas import PreviewQuery
from service.datasets.upload import Upload
from service.errors import ApiError, ConflictError, InvalidRequestError, NotFoundError, QuotaError
from service.models.service import ModelCatalog
from service.query import cut
from service.retries import RETRY_WINDOW, ClientTry
from service.settings import Settings
from trd_data.check import FileReport
from trd_data.child import ChildLimits
from trd_data.readers import RowLimits
from trd_data.rows import ListedError
from trd_data.shapes.choose import require_known_fields

STALE = timedelta(days=1)
"""No upload takes longer: its process has died."""
NUM_THREADS = 16
"""Threads that write and store uploads. Checking them needs none."""
MAX_COLUMNS = 30
_NOT_KEPT = ("format", "num_rows", "num_errors", "errors", "references")
"""What of a report is not among a dataset's findings: another column has it, or it is of use only during the check."""
Answer = TypeVar("Answer")


class DatasetService:
    """The use cases of datasets."""

    def __init__(self, settings: Settings, database: Database, storage: Storage, models: ModelCatalog) -> None:
        self._settings = settings
        self._database = database
        self._storage = storage
        self._models = models
        self._arriving = ArrivingBytes(settings)
        self._children = ChildPool(settings)
        # Of its own, so that uploads that wait for a disk or the store leave the framework's threads to other requests.
        self.threads = RequestThreads(NUM_THREADS, thread_name_prefix="datasets")

    async def receive(
        self,
        owner: str,
        body: UploadBody,
        default_filename: str,
        client_try: ClientTry | None = None,
        columns: str | None = None,
    ) -> Dataset:
        """Check and store the rows in `body`. If the client reports that it repeats a request, return what the other
        request stored. `columns`: a JSON object from our fields to the file's columns; a form may hold it, too.

        Raises `InvalidRequestError` that names the bad rows, `PayloadTooLargeError`, `MediaTypeError`, `QuotaError` and
        `RateLimitError`.
        """
        async with self._children.present(owner):
            try:
                # A temporary file has no name: it is gone with the process.
                with TemporaryFile(dir=str(self._settings.data_dir)) as received:
                    upload = Upload(received, self._settings.max_upload_bytes, self.threads)
                    filename, mapped = await self._receive_body(owner, body, upload, client_try)
                    mapping = _columns(mapped or columns)
                    check = self._check(owner, received, upload.num_bytes, mapping)
                    report, findings = await unless_disconnected(body.receive, check)
                    row = upload.dataset(owner, filename or default_filename, report, findings, mapping)
                    return await self._in_thread(self._store, received, row, client_try)
            except (ApiError, OSError, SQLAlchemyError):
                await body.drain()
                raise

    async def _receive_body(
        self, owner: str, body: UploadBody, upload: Upload, client_try: ClientTry | None
    ) -> tuple[str | None, str | None]:
        """Take the file into `upload`; return its name and the form's field ``columns``, if the body is a form."""
        # What a client repeats may be stored already, and must be found even if it has filled the quota.
        is_repeated = client_try is not None and client_try.is_repeated
        num_stored = 0 if is_repeated else (await self._in_thread(self.usage, owner))[0]
        with self._arriving.counted(owner, num_stored) as count:

            async def take(content: bytes) -> None:
                count(len(content))
                await upload.write(content)

            form = await body.feed(take)
            await upload.flush()
        return form.filename, form.fields.get("columns")

    async def _check(
        self, owner: str, received: IO[bytes], num_bytes: int, columns: dict[str, str] | None
    ) -> tuple[FileReport, dict[str, Any]]:
        """Return what a child found in an upload without errors, and what of that is kept."""
        settings = self._settings
        # A few kilobytes may stand for any number of rows: a small file must not hold a slot for long.
        cpu_seconds = min(settings.check_cpu_seconds, 120 + 2 * num_bytes // 2**20)
        limits = ChildLimits(settings.check_memory_bytes, cpu_seconds, min(settings.check_seconds, 2.0 * cpu_seconds))
        rows = RowLimits(
            settings.max_line_bytes, settings.max_rows, settings.max_json_depth, settings.max_unpacked_bytes
        )
        request = {"check": {"limits": asdict(rows), "columns": columns}}
        async with self._children.slot(owner):
            with data_errors():
                found = await self._children.ask(received, request, limits)
            report = FileReport(**{**found, "errors": [ListedError(**error) for error in found["errors"]]})
            refuse_bad_rows(report)
            judged = await self._children.judge_references(report.references)
        findings = {name: value for name, value in found.items() if name not in _NOT_KEPT}
        findings["notices"] += judged
        return report, findings

    async def _in_thread(self, call: Callable[..., Answer], *arguments: Any) -> Answer:
        return await asyncio.get_running_loop().run_in_executor(self.threads, call, *arguments)

    def _store(self, received: IO[bytes], row: Dataset, client_try: ClientTry | None) -> Dataset:
        """Store the file and its row, or return the dataset of the request that this one repeats.

        The row comes first, marked to count as deleted tomorrow: whatever fails from there on leaves a file that
        `service.leftovers` removes.
        """
        row.deleted_at = datetime.now(UTC) + STALE
        with self._database.write() as session:
            session.add(row)
        dataset_id, key = row.id, row.storage_key  # a transaction that is rolled back takes the row's values with it
        self._storage.store(received, key, sha256=row.sha256)
        try:
            kept = self._publish(row, client_try)
        except SQLAlchemyError as error:
            if isinstance(error, DBAPIError) and error.connection_invalidated:
                raise  # the commit may still arrive
            with suppress(SQLAlchemyError):  # then it stays unknown, and a later start finds the file
                with self._database.read() as session:
                    is_published = repository.is_published(session, dataset_id)
                if not is_published:
                    self._storage.give_up(key)
            raise
        if kept is row:
            return row
        self._storage.give_up(key)
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
            record(session, AuditAction.DATASET_CREATE, row.id)
        return row

    def usage(self, owner: str) -> tuple[int, int]:
        """Return the bytes and rows of the owner's datasets, which the quotas limit."""
        with self._database.read() as session:
            return repository.num_stored(session, owner)

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

    async def preview(self, owner: str, dataset_id: str, query: PreviewQuery, receive: Receive) -> list[PreviewRow]:
        """Return the prompts that a job would make of the first rows; raise `InvalidRequestError` and
        `RateLimitError`."""
        async with self._children.present(owner):
            return await unless_disconnected(receive, self._preview(owner, dataset_id, query))

    async def _preview(self, owner: str, dataset_id: str, query: PreviewQuery) -> list[PreviewRow]:
        settings = self._settings
        limits = ChildLimits(settings.check_memory_bytes, settings.preview_cpu_seconds, settings.preview_seconds)
        dataset = await self._in_thread(self.show, owner, dataset_id)
        request = await self._in_thread(preview_request, self._models, dataset, query)
        # Enough for the longest rows that a preview has, if the file is one of lines.
        most = query.limit * settings.max_line_bytes + 1 if dataset.format == "jsonl" else 2**62
        with await self._in_thread(self._storage.open_local, dataset.storage_key, most) as stream:
            async with self._children.slot(owner):
                with preview_errors():
                    found = await self._children.ask(stream, request, limits)
        return [PreviewRow(**row) for row in found]

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
            record(session, AuditAction.DATASET_DELETE, dataset_id)
        return row.storage_key


def _get(session: Session, owner: str, dataset_id: str, *, for_update: bool = False) -> Dataset:
    row = repository.find(session, owner, dataset_id, for_update=for_update)
    if row is None:
        raise NotFoundError(f"there is no dataset {dataset_id}", code="dataset_not_found", param="dataset_id")
    return row


def _columns(given: str | None) -> dict[str, str] | None:
    """Return the mapping of an upload's columns; raise `InvalidRequestError`."""
    if given is None:
        return None
    try:
        columns = json.loads(given)
    except (ValueError, RecursionError):
        columns = None
    is_mapping = isinstance(columns, dict) and all(isinstance(name, str) and name for name in columns.values())
    if not is_mapping or len(columns) > MAX_COLUMNS:
        raise InvalidRequestError(
            f"columns = {given[:80]}: must be a JSON object with up to {MAX_COLUMNS} of our fields and the file's "
            'column for each, such as {"problem": "question"}',
            param="columns",
        )
    with data_errors("columns"):
        require_known_fields(columns)
    return columns or None


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
            is_too_large = num_arrived > self._settings.max_upload_bytes  # whatever the quota: the upload reports it
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
