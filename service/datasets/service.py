"""Receiving a dataset, piece by piece, and giving it up again."""

from __future__ import annotations

import hashlib
from datetime import UTC, datetime
from typing import IO

from sqlalchemy.orm import Session
from starlette.concurrency import run_in_threadpool

from contract.ids import DATASET_PREFIX, new_id
from contract.storage_keys import dataset_key
from contract.tables import Dataset
from service.client_tries import RETRY_WINDOW, ClientTry
from service.datasets import repository
from service.datasets.lines import LineReader
from service.datasets.parquet import MAGIC as PARQUET_MAGIC
from service.datasets.parquet import read_parquet
from service.datasets.rows import MAX_ERRORS, RowLedger
from service.errors import ConflictError, InvalidRequestError, NotFoundError, PayloadTooLargeError
from service.jobs.repository import uses_dataset, wait_for_like_requests
from service.settings import UploadLimits
from service.storage import CHUNK_BYTES, StagedFile, Storage

MAX_FILENAME = 255

_UNLIMITED = UploadLimits(max_bytes=2**62, max_line_bytes=2**62, max_rows=2**62, max_json_depth=500)
"""For rows that were accepted, under whatever limits held then."""


class Upload:
    """One file on its way in: every piece is checked, hashed and staged, and forgotten.

    Parquet is told by its first bytes, whatever the client calls it, and checked once it is whole.
    """

    def __init__(self, staged: StagedFile, limits: UploadLimits) -> None:
        self._staged = staged
        self._limits = limits
        self._ledger = RowLedger(limits)
        self._lines = LineReader(self._ledger, limits)
        self._is_parquet: bool | None = None
        self._sha256 = hashlib.sha256()
        self._num_bytes = 0
        self._buffer = bytearray()

    async def write(self, content: bytes) -> None:
        """The next piece. Pieces are gathered, so that a thread is not called for every packet."""
        self._buffer += content
        if len(self._buffer) >= CHUNK_BYTES:
            await self._flush()

    async def _flush(self) -> None:
        content = bytes(self._buffer)
        self._buffer.clear()
        await run_in_threadpool(self._process, content)

    def _process(self, content: bytes) -> None:
        self._num_bytes += len(content)
        if self._num_bytes > self._limits.max_bytes:
            raise PayloadTooLargeError(
                f"the file is over the limit of {self._limits.max_bytes} bytes; split it", code="dataset_too_large"
            )
        if self._is_parquet is None:
            self._is_parquet = content.startswith(PARQUET_MAGIC)
        if not self._is_parquet:
            self._lines.feed(content)
        if self._ledger.num_problems == 0:
            self._staged.write(content)
            self._sha256.update(content)

    def _check_to_the_end(self) -> None:
        self._staged.close()
        if self._is_parquet:
            with self._staged.open() as stream:
                read_parquet(stream, self._ledger, self._limits)
        else:
            self._lines.finish()
        _refuse_bad_rows(self._ledger)

    async def finish(self, owner: str, filename: str) -> Dataset:
        """The row of the file, that is not yet in its place; raises `InvalidRequestError` that names each bad row."""
        await self._flush()
        await run_in_threadpool(self._check_to_the_end)
        now = datetime.now(UTC)
        dataset_id = new_id(DATASET_PREFIX, now_seconds=now.timestamp())
        return Dataset(
            id=dataset_id,
            owner=owner,
            filename=_plain_filename(filename),
            format="parquet" if self._is_parquet else "jsonl",
            num_rows=self._ledger.num_rows,
            num_bytes=self._num_bytes,
            sha256=self._sha256.hexdigest(),
            has_solutions=self._ledger.first_without_solution is None,
            storage_key=dataset_key(dataset_id),
            created_at=now,
        )


def _refuse_bad_rows(ledger: RowLedger) -> None:
    if ledger.num_rows == 0:
        raise InvalidRequestError("the file has no rows; write one JSON object a line", code="dataset_invalid")
    if not ledger.problems:
        return
    first = ledger.problems[0]
    more = f" ({ledger.num_problems} problems in all"
    more += f", the first {MAX_ERRORS} are listed)" if ledger.num_problems > MAX_ERRORS else ")"
    raise InvalidRequestError(
        f"row {first.row}: {first.message}" + (more if ledger.num_problems > 1 else ""),
        code="dataset_invalid",
        param=first.field,
        errors=[problem.as_dict() for problem in ledger.problems],
    )


def _plain_filename(filename: str) -> str:
    """The last part, without what a terminal or a header would act on."""
    name = filename.replace("\\", "/").rpartition("/")[2]
    return "".join(character for character in name if character.isprintable())[:MAX_FILENAME] or "rows.jsonl"


def first_row_without_solution(storage: Storage, dataset: Dataset) -> int:
    """The number of the first row of a stored dataset that has no solution.

    For a message only: upload noted that there is one, not where.
    """
    ledger = RowLedger(_UNLIMITED)
    with storage.open(dataset.storage_key) as stream:
        if dataset.format == "parquet":
            read_parquet(stream, ledger, _UNLIMITED)
        else:
            _read_lines(stream, ledger)
    assert ledger.first_without_solution is not None, "a dataset is said to lack a solution and has them all"
    return ledger.first_without_solution


def _read_lines(stream: IO[bytes], ledger: RowLedger) -> None:
    lines = LineReader(ledger, _UNLIMITED)
    while ledger.first_without_solution is None and (content := stream.read(CHUNK_BYTES)):
        lines.feed(content)
    lines.finish()


def get_dataset(session: Session, owner: str, dataset_id: str, *, for_update: bool = False) -> Dataset:
    """The owner's dataset; raises `NotFoundError`, for another owner's too."""
    row = repository.find(session, owner, dataset_id, for_update=for_update)
    if row is None:
        raise NotFoundError(f"there is no dataset {dataset_id}", code="dataset_not_found", param="dataset_id")
    return row


def uploaded_before(session: Session, upload: Dataset, tried: ClientTry) -> Dataset | None:
    """What the client's earlier request stored; or its later one, which overtook this.

    Waits for a like upload that is being recorded, and marks `upload` for the requests that come after it.
    """
    wait_for_like_requests(session, upload.owner, f"{upload.sha256} {upload.filename}")
    upload.made_by_retry = tried.is_repeated or None
    if tried.is_repeated:
        return repository.newest_like(session, upload, upload.created_at - RETRY_WINDOW)
    return repository.newest_like(session, upload, tried.received_at, is_made_by_retry=True)


def delete(session: Session, owner: str, dataset_id: str) -> str:
    """Forget a dataset that no job needs, and return the storage key to remove after the commit."""
    row = get_dataset(session, owner, dataset_id, for_update=True)
    job_id = uses_dataset(session, owner, dataset_id)
    if job_id is not None:
        raise ConflictError(
            f"{dataset_id} is what {job_id} trains or is evaluated on; wait for it to end, or cancel it",
            code="dataset_in_use",
        )
    row.deleted_at = datetime.now(UTC)
    return row.storage_key
