"""``/datasets``: upload, list, look at, delete."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Callable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path

from client.call import Call, part
from client.errors import TrdError
from client.paging import Cursor, page_size, walk, walk_async
from client.settings import ClientSettings
from client.transport import AsyncTransport, Transport
from contract.views.datasets import DatasetPreview, DatasetView, DeletedDataset
from contract.views.page import Page

PIECE_BYTES = 2**18
PARQUET_SUFFIXES = (".parquet", ".pq")

OnBytes = Callable[[int], None]
"""Told how many bytes more are there, or fewer where a part is fetched again. Called from several threads."""


@dataclass(frozen=True)
class FileBody:
    """A file, sent in pieces: it is never whole in memory."""

    path: Path
    on_bytes: OnBytes | None = None

    def pieces(self) -> Iterator[bytes]:
        """From the beginning each time."""
        with self.path.open("rb") as file:
            while piece := file.read(PIECE_BYTES):
                yield piece
                if self.on_bytes is not None:
                    self.on_bytes(len(piece))

    async def pieces_async(self) -> AsyncIterator[bytes]:
        """From the beginning each time; the disk is read in another thread."""
        pieces = self.pieces()
        with contextlib.closing(pieces):  # type: ignore[type-var]  # a generator function's iterator has close()
            while (piece := await asyncio.to_thread(next, pieces, None)) is not None:
                yield piece


def _upload(settings: ClientSettings, path: Path, on_bytes: OnBytes | None) -> Call[DatasetView]:
    try:
        num_bytes = path.stat().st_size
        path.open("rb").close()
    except OSError as error:
        raise TrdError(f"{path} cannot be read: {error.strerror}") from error
    is_parquet = path.suffix.lower() in PARQUET_SUFFIXES
    media_type = "application/vnd.apache.parquet" if is_parquet else "application/jsonl"
    return Call(
        "POST",
        "/datasets",
        DatasetView,
        params={"filename": path.name},
        headers={"content-type": media_type, "content-length": str(num_bytes)},
        body=FileBody(path, on_bytes),
        is_repeatable=False,  # the second time makes a second dataset
        read_seconds=settings.upload_seconds,
    )


def _page(after: Cursor, limit: int) -> Call[Page[DatasetView]]:
    return Call("GET", "/datasets", Page[DatasetView], params={"after": after, "limit": limit})


def _get(dataset_id: str) -> Call[DatasetView]:
    return Call("GET", f"/datasets/{part(dataset_id)}", DatasetView)


@dataclass(frozen=True)
class PreviewOptions:
    """What a job would say; None leaves it to the service."""

    teacher: str | None = None
    task: str | None = None
    max_prompt_tokens: int | None = None
    refine_max_prompt_tokens: int | None = None
    limit: int | None = None


def _preview(dataset_id: str, model: str, options: PreviewOptions | None) -> Call[DatasetPreview]:
    params = {"model": model, **asdict(options or PreviewOptions())}
    return Call("GET", f"/datasets/{part(dataset_id)}/preview", DatasetPreview, params=params)


def _delete(dataset_id: str) -> Call[DeletedDataset]:
    return Call("DELETE", f"/datasets/{part(dataset_id)}", DeletedDataset, is_repeatable=False)


class Datasets:
    """Uploaded problems of the key's owner."""

    def __init__(self, transport: Transport) -> None:
        self._transport = transport

    def upload(self, path: Path | str, *, on_bytes: OnBytes | None = None) -> DatasetView:
        """Upload a file, Parquet by its suffix, else JSON Lines. Raises `InvalidRequestError`, whose `errors`
        name rows and fields."""
        return self._transport.send(_upload(self._transport.settings, Path(path), on_bytes))

    def page(self, *, after: str | None = None, limit: int = 20) -> Page[DatasetView]:
        """One page, newest first, after the dataset `after`."""
        return self._transport.send(_page(after, limit))

    def list(self, *, num_wanted: int | None = None) -> Iterator[DatasetView]:
        """Datasets over all pages, newest first; at most `num_wanted`."""
        limit = page_size(num_wanted)
        return walk(lambda after: self._transport.send(_page(after, limit)), lambda row: row.id, num_wanted=num_wanted)

    def get(self, dataset_id: str) -> DatasetView:
        """One dataset."""
        return self._transport.send(_get(dataset_id))

    def preview(self, dataset_id: str, *, model: str, options: PreviewOptions | None = None) -> DatasetPreview:
        """The prompts that a job with the student `model` would make of the first rows."""
        return self._transport.send(_preview(dataset_id, model, options))

    def delete(self, dataset_id: str) -> DeletedDataset:
        """Delete a dataset that no open job needs."""
        return self._transport.send(_delete(dataset_id))


class AsyncDatasets:
    """As `Datasets`."""

    def __init__(self, transport: AsyncTransport) -> None:
        self._transport = transport

    async def upload(self, path: Path | str, *, on_bytes: OnBytes | None = None) -> DatasetView:
        """Upload a file, Parquet by its suffix, else JSON Lines. Raises `InvalidRequestError`, whose `errors`
        name rows and fields."""
        return await self._transport.send(_upload(self._transport.settings, Path(path), on_bytes))

    async def page(self, *, after: str | None = None, limit: int = 20) -> Page[DatasetView]:
        """One page, newest first, after the dataset `after`."""
        return await self._transport.send(_page(after, limit))

    def list(self, *, num_wanted: int | None = None) -> AsyncIterator[DatasetView]:
        """Datasets over all pages, newest first; at most `num_wanted`."""
        limit = page_size(num_wanted)
        return walk_async(
            lambda after: self._transport.send(_page(after, limit)), lambda row: row.id, num_wanted=num_wanted
        )

    async def get(self, dataset_id: str) -> DatasetView:
        """One dataset."""
        return await self._transport.send(_get(dataset_id))

    async def preview(self, dataset_id: str, *, model: str, options: PreviewOptions | None = None) -> DatasetPreview:
        """The prompts that a job with the student `model` would make of the first rows."""
        return await self._transport.send(_preview(dataset_id, model, options))

    async def delete(self, dataset_id: str) -> DeletedDataset:
        """Delete a dataset that no open job needs."""
        return await self._transport.send(_delete(dataset_id))
