"""Datasets and checkpoint files, wherever `STORAGE_URL` says they lie.

Keys are relative, come from the database or from `contract.storage_keys`, and never from a client.
"""

from __future__ import annotations

import logging
import os
import secrets
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from datetime import UTC, datetime, timedelta
from typing import IO, Any

import fsspec  # type: ignore[import-untyped]

logger = logging.getLogger(__name__)

CHUNK_BYTES = 2**20
"""Of a file held in memory at a time."""
STALE = timedelta(days=1)
"""No upload takes longer: whoever staged the file is gone."""


class StoredFileMissingError(Exception):
    """The database knows the file, the storage does not."""


class Storage:
    """A tree of files behind fsspec."""

    def __init__(self, url: str) -> None:
        self._files, root = fsspec.core.url_to_fs(url)
        self._root = str(root).rstrip("/")

    def _path(self, key: str) -> str:
        return f"{self._root}/{key}"

    @contextmanager
    def staged(self) -> Iterator[StagedFile]:
        """A new file without a place yet; it vanishes unless `StagedFile.keep` gives it one."""
        path = self._path(f"staging/{secrets.token_hex(16)}")
        self._files.makedirs(self._path("staging"), exist_ok=True)
        with self._files.open(path, "wb") as stream:
            staged = StagedFile(self, stream, path)
            try:
                yield staged
            finally:
                staged.discard()

    def open_staged(self, staged_path: str) -> IO[bytes]:
        """A staged file, for reading."""
        stream: IO[bytes] = self._files.open(staged_path, "rb")
        return stream

    def move_into_place(self, staged_path: str, key: str) -> None:
        """Give a staged file its key."""
        path = self._path(key)
        self._files.makedirs(path.rpartition("/")[0], exist_ok=True)
        self._files.mv(staged_path, path)

    def remove_staged(self, staged_path: str) -> None:
        """Forget a staged file; nothing happens where there is none."""
        if self._files.exists(staged_path):
            self._files.rm_file(staged_path)

    def read(self, key: str, start: int, stop: int) -> Iterator[bytes]:
        """The bytes from `start` to before `stop`, a chunk at a time."""
        with self.open(key) as stream:
            stream.seek(start)
            remaining = stop - start
            while remaining > 0:
                chunk = stream.read(min(CHUNK_BYTES, remaining))
                if not chunk:
                    raise StoredFileMissingError(f"{key} ends {remaining} bytes early")
                remaining -= len(chunk)
                yield chunk

    def open(self, key: str) -> IO[bytes]:
        """The file, open for reading; raises `StoredFileMissingError`."""
        try:
            stream: IO[bytes] = self._files.open(self._path(key), "rb")
        except FileNotFoundError as error:
            raise StoredFileMissingError(key) from error
        return stream

    def remove(self, key: str) -> None:
        """Remove a file; nothing happens where there is none."""
        self.remove_staged(self._path(key))

    def remove_tree(self, prefix: str) -> None:
        """Remove all files under `prefix`; nothing happens where there are none."""
        if self._files.exists(self._path(prefix)):
            self._files.rm(self._path(prefix), recursive=True)

    def give_up(self, prefix: str) -> None:
        """Remove what the database no longer knows, a file or all under a prefix. A failure is only logged: what
        stays costs space."""
        try:
            self.remove_tree(prefix)
        except OSError:
            logger.exception("deleted, and still in the storage: %s", prefix)

    def folders(self, prefix: str) -> list[str]:
        """Names of the folders right below `prefix`; none where there is no such folder."""
        path = self._path(prefix)
        if not self._files.isdir(path):
            return []
        entries = self._files.ls(path, detail=True)
        return [str(e["name"]).rstrip("/").rpartition("/")[2] for e in entries if e["type"] == "directory"]

    def remove_stale_uploads(self) -> None:
        """Remove staged files that a process left behind when it died."""
        folder = self._path("staging")
        if not self._files.exists(folder):
            return
        oldest = datetime.now(UTC) - STALE
        for path in self._files.ls(folder, detail=False):
            with suppress(FileNotFoundError):  # another process's upload that ends now
                if self._files.modified(path) < oldest:
                    self.remove_staged(path)

    def check(self) -> None:
        """Raise OSError unless files can be written."""
        with self.staged() as staged:
            staged.write(b"ready?")


class StagedFile:
    """A file that is being received."""

    def __init__(self, storage: Storage, stream: Any, path: str) -> None:
        self._storage = storage
        self._stream = stream
        self._path = path
        self._is_kept = False

    def write(self, content: bytes) -> None:
        """Append."""
        self._stream.write(content)

    def close(self) -> None:
        """The file is complete, on the disk too where it has one. Safe to repeat."""
        if self._stream.closed:
            return
        self._stream.flush()
        if hasattr(self._stream, "fileno"):
            os.fsync(self._stream.fileno())
        self._stream.close()

    def open(self) -> IO[bytes]:
        """The complete file, for reading."""
        return self._storage.open_staged(self._path)

    def keep(self, key: str) -> None:
        """Give the file its key."""
        self.close()
        self._storage.move_into_place(self._path, key)
        self._is_kept = True

    def discard(self) -> None:
        """Forget the file unless it was kept."""
        if self._is_kept:
            return
        with suppress(OSError):  # a full disk does not take what is buffered, now either
            self._stream.close()
        self._storage.remove_staged(self._path)
