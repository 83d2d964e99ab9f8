"""Uploads and previews as both clients know them."""

from __future__ import annotations

import asyncio
import contextlib
import stat
from collections.abc import AsyncIterator, Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from client.call import Call, json_text
from client.errors import TrdError
from client.settings import ClientSettings
from contract.views.datasets import DatasetView

PIECE_BYTES = 2**18
PARQUET_SUFFIXES = (".parquet", ".pq")

OnBytes = Callable[[int], None]
"""Called with the number of bytes transferred since the last call, from several threads. Negative if a part is
transferred again."""


@dataclass(frozen=True)
class PreviewOptions:
    """Fields of the job whose prompts are previewed; None takes the service's default."""

    teacher: str | None = None
    task: str | None = None
    max_prompt_tokens: int | None = None
    refine_max_prompt_tokens: int | None = None
    limit: int | None = None
    """Number of rows."""


@dataclass(frozen=True)
class FileBody:
    """A file as a request body, sent in pieces so that it is never in memory as a whole."""

    path: Path
    on_bytes: OnBytes | None = None

    def pieces(self) -> Iterator[bytes]:
        """Yield the file from its beginning."""
        with self.path.open("rb") as file:
            while piece := file.read(PIECE_BYTES):
                yield piece
                if self.on_bytes is not None:
                    self.on_bytes(len(piece))

    async def async_pieces(self) -> AsyncIterator[bytes]:
        """Yield the file from its beginning, reading the disk on another thread."""
        pieces = self.pieces()
        with contextlib.closing(pieces):  # type: ignore[type-var]  # a generator function's iterator has close()
            while (piece := await asyncio.to_thread(next, pieces, None)) is not None:
                yield piece


def upload_call(
    settings: ClientSettings, path: Path, columns: Mapping[str, str] | None, on_bytes: OnBytes | None
) -> Call[DatasetView]:
    """Return the request that uploads a file; raises `TrdError` if the file cannot be read."""
    try:
        status = path.stat()
        if stat.S_ISFIFO(status.st_mode) or stat.S_ISCHR(status.st_mode):  # opening one would take its first bytes
            raise TrdError(f"{path} is a stream, not a file", hint="write the rows to a file, and upload that")
        path.open("rb").close()
    except OSError as error:
        raise TrdError(f"{path} cannot be read: {error.strerror}") from error
    is_parquet = path.suffix.lower() in PARQUET_SUFFIXES
    media_type = "application/vnd.apache.parquet" if is_parquet else "application/jsonl"
    return Call(
        "POST",
        "/datasets",
        DatasetView,
        params={"filename": path.name, "columns": json_text(columns) if columns else None},
        headers={"content-type": media_type, "content-length": str(status.st_size)},
        body=FileBody(path, on_bytes),
        is_repeatable=False,  # a second upload would create a second dataset
        read_seconds=settings.upload_seconds,
    )
