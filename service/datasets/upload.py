"""One uploaded file: checked row by row, hashed and written to a temporary file while it arrives."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from datetime import UTC, datetime
from typing import IO

from starlette.concurrency import run_in_threadpool

from contract.ids import DATASET_PREFIX, new_id
from contract.storage_keys import dataset_key
from contract.tables import Dataset
from service.datasets.rows import data_errors, refuse_bad_rows, row_limits
from service.errors import PayloadTooLargeError
from service.settings import UploadLimits
from trd_data.parquet_child import check_parquet
from trd_data.readers import PARQUET_MAGIC, LineReader, RawRow
from trd_data.rows import RowChecker

MAX_FILENAME = 255
PIECE_BYTES = 2**20
"""An upload is processed in pieces of this size; a smaller one stays in memory."""


class Upload:
    """A file that arrives in pieces; each is checked, hashed and written to `received`.

    Parquet is recognised by its first bytes, whatever the client calls it, and checked once it is complete.
    """

    def __init__(self, received: IO[bytes], limits: UploadLimits) -> None:
        self._received = received
        self._limits = limits
        self._checker = RowChecker(row_limits(limits))
        self._report = self._checker.report
        self._lines = LineReader(row_limits(limits))
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
            self._check(self._lines.feed(content))
        if self._report.num_errors == 0:
            self._received.write(content)
            self._sha256.update(content)

    def _check(self, rows: Iterable[RawRow]) -> None:
        with data_errors():
            for row in rows:
                self._checker.add(row)

    def _check_to_the_end(self) -> None:
        if self._is_parquet:
            self._received.seek(0)
            with data_errors():
                self._report = check_parquet(self._received, row_limits(self._limits))
        else:
            self._check(self._lines.finish())
        refuse_bad_rows(self._report)

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
            num_rows=self._report.num_rows,
            num_bytes=self._num_bytes,
            sha256=self._sha256.hexdigest(),
            has_solutions=self._report.first_without_solution is None,
            storage_key=dataset_key(dataset_id),
            created_at=now,
        )


def _plain_filename(filename: str) -> str:
    """Return the last part of a path, without control characters."""
    name = filename.replace("\\", "/").rpartition("/")[2]
    return "".join(character for character in name if character.isprintable())[:MAX_FILENAME] or "rows.jsonl"
