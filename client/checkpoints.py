"""``/jobs/{id}/checkpoints``: list, manifest, delete, and downloads that go on where they broke off."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from concurrent.futures import FIRST_EXCEPTION, ThreadPoolExecutor, wait
from pathlib import Path
from threading import Event
from typing import Any

from client.call import Call, is_worth_repeating, part, pause_seconds
from client.datasets import OnBytes
from client.downloads import Download, PartialFile, on_disk, wanted_files
from client.errors import TrdError
from client.transport import AsyncTransport, Transport
from contract.views import View
from contract.views.checkpoints import CheckpointView, DeletedCheckpoint, ManifestView
from contract.views.page import Page

LATEST = "latest"
NUM_PARALLEL = 4
MAX_FAILURES = 8
"""In a row, without a byte between them, before the download of a file is given up."""


def _list(job_id: str) -> Call[Page[CheckpointView]]:
    return Call("GET", f"/jobs/{part(job_id)}/checkpoints", Page[CheckpointView])


def _manifest(job_id: str, step: int | str) -> Call[ManifestView]:
    return Call("GET", f"/jobs/{part(job_id)}/checkpoints/{part(str(step))}", ManifestView)


def _delete(job_id: str, step: int | str) -> Call[DeletedCheckpoint]:
    return Call("DELETE", f"/jobs/{part(job_id)}/checkpoints/{part(str(step))}", DeletedCheckpoint, is_repeatable=False)


def _content(file: PartialFile) -> Call[Any]:
    return Call("GET", file.url, View, headers=file.headers())


class _Failures:
    """Of one file: counts those in a row between which nothing came."""

    def __init__(self, file: PartialFile) -> None:
        self._file = file
        self._num = 0
        self._num_bytes_before = file.num_bytes

    def pause(self, error: TrdError) -> float:
        """Seconds to wait before going on; raises `error` where that is not worth while."""
        self._num = 1 if self._file.num_bytes > self._num_bytes_before else self._num + 1
        self._num_bytes_before = self._file.num_bytes
        if self._num > MAX_FAILURES or not is_worth_repeating(error, is_repeatable=True):
            raise error
        return pause_seconds(self._num, error)


class Checkpoints:
    """Of one job."""

    def __init__(self, transport: Transport) -> None:
        self._transport = transport

    def list(self, job_id: str) -> Sequence[CheckpointView]:
        """Complete ones, by step."""
        return self._transport.send(_list(job_id)).data

    def manifest(self, job_id: str, step: int | str = LATEST) -> ManifestView:
        """One checkpoint with its files, their sizes and digests."""
        return self._transport.send(_manifest(job_id, step))

    def delete(self, job_id: str, step: int | str) -> DeletedCheckpoint:
        """Delete one; refused for the one that the job would go on from."""
        return self._transport.send(_delete(job_id, step))

    def download(
        self,
        manifest: ManifestView,
        target: Path | str,
        *,
        folder: str | None = None,
        num_parallel: int = NUM_PARALLEL,
        on_bytes: OnBytes | None = None,
    ) -> Download:
        """Bring the checkpoint's files, or one folder's (model, adapter, state), into the folder `target`.

        What is there already is kept where its digest is right; a file that broke off, in this process or an
        earlier one, goes on at its last byte. Every file gets its name only once its sha256 is the manifest's.
        Raises `DownloadError`, and what stopped the download; then it may simply be called again.
        """
        with on_disk():
            files = wanted_files(manifest, Path(target), folder, on_bytes)
        stop = Event()
        with ThreadPoolExecutor(num_parallel, thread_name_prefix="download") as pool:
            tasks = [pool.submit(self._fetch, file, stop) for file in files]
            try:
                wait(tasks, return_when=FIRST_EXCEPTION)
            finally:
                stop.set()  # the other files' threads end at their next piece
        for task in tasks:
            with on_disk():
                task.result()
        return Download(Path(target), manifest.step, [file.path for file in files], sum(f.size for f in files))

    def _fetch(self, file: PartialFile, stop: Event) -> None:
        failures = _Failures(file)
        while not stop.is_set() and not file.is_complete():
            try:
                with self._transport.stream(_content(file)) as response, file.receiving(response) as write:
                    for piece in response.iter_raw():
                        write(piece)
                        if stop.is_set():
                            return
            except TrdError as error:
                stop.wait(failures.pause(error))


class AsyncCheckpoints:
    """As `Checkpoints`."""

    def __init__(self, transport: AsyncTransport) -> None:
        self._transport = transport

    async def list(self, job_id: str) -> Sequence[CheckpointView]:
        """Complete ones, by step."""
        return (await self._transport.send(_list(job_id))).data

    async def manifest(self, job_id: str, step: int | str = LATEST) -> ManifestView:
        """One checkpoint with its files, their sizes and digests."""
        return await self._transport.send(_manifest(job_id, step))

    async def delete(self, job_id: str, step: int | str) -> DeletedCheckpoint:
        """Delete one; refused for the one that the job would go on from."""
        return await self._transport.send(_delete(job_id, step))

    async def download(
        self,
        manifest: ManifestView,
        target: Path | str,
        *,
        folder: str | None = None,
        num_parallel: int = NUM_PARALLEL,
        on_bytes: OnBytes | None = None,
    ) -> Download:
        """As `Checkpoints.download`; disk and digests are another thread's work."""
        with on_disk():
            files = await asyncio.to_thread(wanted_files, manifest, Path(target), folder, on_bytes)
        turns = asyncio.Semaphore(num_parallel)

        async def fetch_in_turn(file: PartialFile) -> None:
            async with turns:
                await self._fetch(file)

        try:
            async with asyncio.TaskGroup() as group:
                for file in files:
                    group.create_task(fetch_in_turn(file))
        except ExceptionGroup as errors:
            with on_disk():
                raise errors.exceptions[0] from None
        return Download(Path(target), manifest.step, [file.path for file in files], sum(f.size for f in files))

    async def _fetch(self, file: PartialFile) -> None:
        failures = _Failures(file)
        while not await asyncio.to_thread(file.is_complete):
            try:
                async with self._transport.stream(_content(file)) as response:
                    with file.receiving(response) as write:
                        async for piece in response.aiter_raw():
                            await asyncio.to_thread(write, piece)
            except TrdError as error:
                await asyncio.sleep(failures.pause(error))
