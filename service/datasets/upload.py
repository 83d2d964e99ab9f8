"""One uploaded file: checked row by row, hashed and written to a temporary file while it arrives."""

from __future__ import annotations

import hashlib
from datetime import UTC, datetime
from typing import IO

from starlette.concurrency import run_in_threadpool

from contract.ids import DATASET_PREFIX, new_id
from contract.storage import Storage
from contract.storage_keys import dataset_key
from contract.tables import Dataset
from service.datasets.lines import LineReader
from service.datasets.parquet import MAGIC as PARQUET_MAGIC
from service.datasets.parquet import read_parquet
from service.datasets.rows import MAX_ERRORS, RowLedger
from service.errors import InvalidRequestError, PayloadTooLargeError
from service.settings import UploadLimits

MAX_FILENAME = 255
PIECE_BYTES = 2**20
"""An upload is processed in pieces of this size; a smaller one stays in memory."""

_UNLIMITED = UploadLimits(max_bytes=2**62, max_line_bytes=2**62, max_rows=2**62, max_json_depth=500)
"""For rows that were accepted under the limits of their time."""


class Upload:
    """A file that arrives in pieces; each is checked, hashed and written to `received`.

    Parquet is recognised by its first bytes, whatever the client calls it, and checked once it is complete.
    """

    def __init__(self, received: IO[bytes], limits: UploadLimits) -> None:
        self._received = received
        self._limits = limits
        self._ledger = RowLedger(limits)
        self._lines = LineReader(self._ledger, limits)
        self._is_parquet: bool | None = None
        self._sha256 = hashlib.sha256()
        self._num_bytes = 0
        self._buffer = bytearray()

    async def write(self, content: bytes) -> None:
        """Take the next piece. Pieces are collected first: a thread for each packet would be slow."""
        self._buffer += content
        if len(self._buffer) >= PIECE_BYTES:
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
            self._received.write(content)
            self._sha256.update(content)

    def _check_to_the_end(self) -> None:
        if self._is_parquet:
            self._received.seek(0)
            read_parquet(self._received, self._ledger, self._limits)
        else:
            self._lines.finish()
        _refuse_bad_rows(self._ledger)

    async def finish(self, owner: str, filename: str) -> Dataset:
        """Return the dataset's row, not stored yet; raise `InvalidRequestError` that names each bad row."""
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
    """Return the last part of a path, without control characters."""
    name = filename.replace("\\", "/").rpartition("/")[2]
    return "".join(character for character in name if character.isprintable())[:MAX_FILENAME] or "rows.jsonl"


def first_row_without_solution(storage: Storage, dataset: Dataset) -> int:
    """Return the number of the first row without a solution, for a message. Reads the stored file: the database
    holds only whether there is such a row."""
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
    while ledger.first_without_solution is None and (content := stream.read(PIECE_BYTES)):
        lines.feed(content)
    lines.finish()
