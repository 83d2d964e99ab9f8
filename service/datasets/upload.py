"""One uploaded file: hashed and written to a temporary file while it arrives. Its rows are read by a child process."""

from __future__ import annotations

import asyncio
import hashlib
from concurrent.futures import Executor
from datetime import UTC, datetime
from typing import IO, Any

from contract.ids import DATASET_PREFIX, new_id
from contract.storage_keys import dataset_key
from contract.tables import Dataset
from service.errors import PayloadTooLargeError
from trd_data.check import FileReport

MAX_FILENAME = 255
PIECE_BYTES = 2**20
"""An upload is written in pieces of this size: a thread for each packet would be slow."""


class Upload:
    """A file that arrives in pieces; each is hashed and written to `received`."""

    def __init__(self, received: IO[bytes], max_bytes: int, threads: Executor) -> None:
        self._received = received
        self._max_bytes = max_bytes
        self._threads = threads
        self._sha256 = hashlib.sha256()
        self.num_bytes = 0
        """Bytes that have arrived."""
        self._buffer = bytearray()

    async def write(self, content: bytes) -> None:
        """Take the next piece."""
        self.num_bytes += len(content)
        if self.num_bytes > self._max_bytes:
            raise PayloadTooLargeError(
                f"the file is over the limit of {self._max_bytes} bytes; split it", code="dataset_too_large"
            )
        self._buffer += content
        if len(self._buffer) >= PIECE_BYTES:
            await self.flush()

    async def flush(self) -> None:
        """Write what was collected."""
        content = bytes(self._buffer)
        self._buffer.clear()
        await asyncio.get_running_loop().run_in_executor(self._threads, self._process, content)

    def _process(self, content: bytes) -> None:
        self._received.write(content)
        self._received.flush()
        self._sha256.update(content)

    def dataset(
        self,
        owner: str,
        filename: str,
        report: FileReport,
        findings: dict[str, Any],
        columns: dict[str, str] | None,
    ) -> Dataset:
        """Return the dataset's row, not stored yet."""
        now = datetime.now(UTC)
        dataset_id = new_id(DATASET_PREFIX, now_seconds=now.timestamp())
        name = filename.replace("\\", "/").rpartition("/")[2]
        return Dataset(
            id=dataset_id,
            owner=owner,
            filename="".join(character for character in name if character.isprintable())[:MAX_FILENAME] or "rows.jsonl",
            format=report.format,
            num_rows=report.num_rows,
            num_bytes=self.num_bytes,
            sha256=self._sha256.hexdigest(),
            has_solutions=report.first_without_solution is None,
            findings=findings,
            columns=columns,
            storage_key=dataset_key(dataset_id),
            created_at=now,
        )
