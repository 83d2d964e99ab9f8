"""Datasets and checkpoint files, stored under keys where `STORAGE_URL` says: in a local folder, in this process's
memory, or in an S3-compatible object store. The service and the worker share this module.

A key has its whole content or does not exist, on all three: a write that fails or is interrupted leaves what was there
before. In a folder a file is on the disk before it gets its name.

Keys are relative, with forward slashes. They come from the database or from `contract.storage_keys`, never from a
client. Every method blocks: call it from a thread, never on an event loop. Failures of the store are `OSError`.

Credentials, region and endpoint of S3 come from the usual variables: AWS_ACCESS_KEY_ID, AWS_SECRET_ACCESS_KEY,
AWS_SESSION_TOKEN, AWS_REGION, AWS_ENDPOINT_URL, and AWS_ALLOW_HTTP=true if the endpoint has no TLS.
"""

from __future__ import annotations

import errno
import hashlib
import io
import logging
import os
import re
import secrets
import shutil
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from datetime import timedelta
from functools import cache, cached_property
from pathlib import Path
from tempfile import TemporaryFile
from typing import IO, Any, TypeVar

import obstore
from obstore.exceptions import BaseError
from obstore.store import LocalStore, MemoryStore, S3Store

from contract.settings import make_private_folder
from contract.storage_keys import checked_storage_url, parse_storage_url

logger = logging.getLogger(__name__)

T = TypeVar("T")

CHUNK_BYTES = 2**22
"""Bytes of a file held in memory at a time; each chunk is a separate request, so that slow readers hold no
connection."""
FETCH_BYTES = 2**25
"""The same, for copies to the disk."""
PART_BYTES = 2**24
"""Bytes of a part of a multipart upload: S3 allows 10,000 parts, so that a file may have 160 GB."""
NUM_PARALLEL_PARTS = 4
PRESIGNED_FOR = timedelta(minutes=15)
"""How long a presigned URL can be used to begin a download."""

_RETRIES = {"max_retries": 3, "retry_timeout": timedelta(seconds=30)}


class StoredFileMissingError(FileNotFoundError):
    """The store has nothing under the key."""


class ContentChangedError(Exception):
    """A copied file does not have the sha256 that is recorded for it; the message names the file."""


@cache
def _memory_store(_name: str) -> MemoryStore:
    """Return the store of the URL; it is the same for all callers in this process."""
    return MemoryStore()


class Storage:
    """The store of one URL. Nothing is opened before it is used, and it may be used by many threads."""

    def __init__(self, url: str) -> None:
        self._scheme, self._place = parse_storage_url(checked_storage_url(url))
        self._folder = Path(self._place).absolute() if self._scheme == "file" else None

    @cached_property
    def _store(self) -> LocalStore | MemoryStore | S3Store:
        if self._folder is not None:
            make_private_folder(self._folder)
            return LocalStore(self._folder)
        if self._scheme == "memory":
            return _memory_store(self._place)
        bucket, _, prefix = self._place.partition("/")
        return S3Store(bucket, prefix=prefix.rstrip("/") or None, retry_config=_RETRIES)  # type: ignore[arg-type]

    def store(self, source: IO[bytes], key: str, *, sha256: str | None = None) -> None:
        """Copy `source`, from its beginning, to `key`; raises `ContentChangedError` if it does not have `sha256`.

        `source` is no stored file: obstore reads it while it drives an event loop, in which it cannot be called again.
        """
        source.seek(0)
        pieces = iter(lambda: source.read(CHUNK_BYTES), b"")
        self._put(key, _verified(pieces, key, sha256) if sha256 is not None else pieces)

    def copy(self, source: str, key: str) -> None:
        """Give a stored file a second key without sending its content again. Each key is removed separately."""
        with _as_os_error(source):
            if self._folder is None:
                obstore.copy(self._store, source, key)
                return
            with _replacing(self._folder / key) as draft:
                draft.hardlink_to(self._folder / source)  # stored files are replaced, never changed

    def write(self, key: str, content: bytes) -> None:
        """Store a small content."""
        self._put(key, content)

    def _put(self, key: str, content: bytes | Iterator[bytes]) -> None:
        if self._folder is not None:
            with _replacing(self._folder / key) as draft, draft.open("wb") as file:
                file.writelines([content] if isinstance(content, bytes) else content)
                file.flush()
                os.fsync(file.fileno())
            return
        with _as_os_error(key):  # an exception that `content` raises aborts a multipart upload
            obstore.put(self._store, key, content, chunk_size=PART_BYTES, max_concurrency=NUM_PARALLEL_PARTS)

    def size(self, key: str) -> int:
        """Return the file's size in bytes; raise `StoredFileMissingError`, as every method that reads does."""
        with _as_os_error(key):
            return obstore.head(self._store, key)["size"]

    def read(self, key: str, *, sha256: str | None = None) -> bytes:
        """Return the whole of a small file; raise `ContentChangedError` if it does not have `sha256`."""

        def read() -> bytes:
            with _as_os_error(key):
                content = bytes(obstore.get(self._store, key).bytes())
            return b"".join(_verified([content], key, sha256)) if sha256 is not None else content

        return _twice_at_most(read)

    def read_range(self, key: str, start: int, stop: int, *, chunk_bytes: int = CHUNK_BYTES) -> Iterator[bytes]:
        """Yield the bytes from `start` to before `stop`, a chunk at a time."""
        while start < stop:
            chunk = self._read_at(key, start, min(chunk_bytes, stop - start))
            start += len(chunk)
            yield chunk

    def _read_at(self, key: str, start: int, num_bytes: int) -> bytes:
        with _as_os_error(key):
            chunk = bytes(obstore.get_range(self._store, key, start=start, length=num_bytes))
        if len(chunk) < num_bytes:
            raise StoredFileMissingError(errno.ENOENT, f"the file ends {num_bytes - len(chunk)} bytes early", key)
        return chunk

    def open(self, key: str) -> IO[bytes]:
        """Open the file for reading and seeking; close it like any other file."""
        return io.BufferedReader(_StoredFile(self, key), CHUNK_BYTES)

    def open_local(self, key: str, max_bytes: int) -> IO[bytes]:
        """Open the beginning of the file, at least `max_bytes`, as a file of this machine, which a child can read."""
        if self._folder is not None:
            with _as_os_error(key):
                return (self._folder / key).open("rb")
        copy = TemporaryFile()  # noqa: SIM115 - the caller closes it
        copy.writelines(self.read_range(key, 0, min(max_bytes, self.size(key))))
        copy.flush()
        copy.seek(0)
        return copy

    def fetch(self, key: str, target: Path, *, sha256: str) -> None:
        """Copy a stored file to `target`; raises `ContentChangedError`."""
        target.parent.mkdir(parents=True, exist_ok=True)

        def copy() -> None:
            with target.open("wb") as sink:
                chunks = self.read_range(key, 0, self.size(key), chunk_bytes=FETCH_BYTES)
                sink.writelines(_verified(chunks, key, sha256))

        _twice_at_most(copy)

    def folders(self, prefix: str) -> list[str]:
        """Return the names of the folders right below `prefix`, in order; none if there is no such folder."""
        with _as_os_error(prefix):
            found = obstore.list_with_delimiter(self._store, prefix)["common_prefixes"]
        return sorted(path.rpartition("/")[2] for path in found)

    def remove_tree(self, prefix: str) -> None:
        """Remove a file, or all files below `prefix`. Nothing happens if there are none."""
        if self._folder is not None:
            path = self._folder / prefix
            if path.is_dir():
                shutil.rmtree(path)
            else:
                path.unlink(missing_ok=True)
            return
        with _as_os_error(prefix):
            below = [found["path"] for batch in obstore.list(self._store, prefix) for found in batch]
            obstore.delete(self._store, [prefix, *below])

    def give_up(self, prefix: str) -> None:
        """Remove what the database no longer knows, as `remove_tree` does. A failure is only logged: it costs space."""
        try:
            self.remove_tree(prefix)
        except OSError:
            logger.exception("deleted, and still in the storage: %s", prefix)

    def presigned_url(self, key: str) -> str | None:
        """Return a URL that downloads the file from the store, without credentials, for `PRESIGNED_FOR`.

        None if the store is no HTTP server, as a folder is not.
        """
        if not isinstance(self._store, S3Store):
            return None
        with _as_os_error(key):
            return obstore.sign(self._store, "GET", key, PRESIGNED_FOR)

    def check(self) -> None:
        """Raise OSError unless files can be written, read and removed."""
        key = f"readiness/{secrets.token_hex(8)}"
        self.write(key, b"ready?")
        self.read(key)
        self.remove_tree(key)


class _StoredFile(io.RawIOBase):
    """A stored file as Python's own buffered reader takes it."""

    def __init__(self, storage: Storage, key: str) -> None:
        self._storage = storage
        self._key = key
        self._size = storage.size(key)
        self._position = 0

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def seek(self, offset: int, whence: int = os.SEEK_SET, /) -> int:
        start = {os.SEEK_SET: 0, os.SEEK_CUR: self._position, os.SEEK_END: self._size}[whence]
        self._position = max(0, start + offset)
        return self._position

    def tell(self) -> int:
        return self._position

    def readinto(self, buffer: Any, /) -> int:
        view = memoryview(buffer)
        num_bytes = min(len(view), self._size - self._position)
        if num_bytes <= 0:
            return 0
        view[:num_bytes] = self._storage._read_at(self._key, self._position, num_bytes)
        self._position += num_bytes
        return num_bytes


def _twice_at_most(read: Callable[[], T]) -> T:
    """Repeat a read that ended early or came damaged: it may be the transfer's fault, and not the stored file's."""
    try:
        return read()
    except (ContentChangedError, StoredFileMissingError) as error:
        logger.warning("read again: %s", error)
        return read()


@contextmanager
def _as_os_error(key: str) -> Iterator[None]:
    """Raise the store's failures as `OSError` and `StoredFileMissingError`, without addresses: users read them."""
    try:
        yield
    except (BaseError, FileNotFoundError) as error:
        report = str(error).partition("\n")[0]
        if isinstance(error, FileNotFoundError) and "NoSuchBucket" not in str(error):
            raise StoredFileMissingError(errno.ENOENT, "not in the storage", key) from error
        logger.warning("the storage failed: %s", report)
        reason = "the bucket does not exist" if "NoSuchBucket" in str(error) else report
        raise OSError(errno.EIO, re.sub(r"^.* - |: <\?xml.*$", "", reason), key) from error


@contextmanager
def _replacing(path: Path) -> Iterator[Path]:
    """Yield a path to make a file at, which gets its name `path` only once the block has made it whole."""
    make_private_folder(path.parent)
    draft = path.with_name(f".{path.name}.{secrets.token_hex(8)}")
    try:
        yield draft
        draft.replace(path)
    finally:
        draft.unlink(missing_ok=True)


def _verified(pieces: Iterable[bytes], name: str, sha256: str) -> Iterator[bytes]:
    """Pass the pieces on, and raise `ContentChangedError` at their end if they are not what is recorded."""
    digest = hashlib.sha256()
    for piece in pieces:
        digest.update(piece)
        yield piece
    if digest.hexdigest() != sha256:
        raise ContentChangedError(f"{name}: its sha256 is {digest.hexdigest()}, and should be {sha256}")
