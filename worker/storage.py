"""Moving files between an attempt's folder and the storage that `STORAGE_URL` names.

Whatever is copied is hashed on its way and held against the sha256 that is known of it. A file gets
its key when it is whole, and a checkpoint's manifest is stored last: without one there is no checkpoint.
"""

from __future__ import annotations

import hashlib
import os
import secrets
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any

import fsspec  # type: ignore[import-untyped]
from fsspec.implementations.local import LocalFileSystem  # type: ignore[import-untyped]

from worker.manifest import MANIFEST_NAME, CheckpointCorruptError, Manifest, ManifestFile, parse_manifest

CHUNK_BYTES = 2**22
"""Of a file held in memory at a time."""


class ContentChangedError(Exception):
    """A copied file is not what was known of it; the message names it."""


class Storage:
    """A tree of files behind fsspec; keys are relative, with forward slashes."""

    def __init__(self, url: str) -> None:
        self._files, root = fsspec.core.url_to_fs(url)
        self._root = str(root).rstrip("/")

    def read(self, key: str) -> bytes:
        """A small file, whole; raises FileNotFoundError."""
        content: bytes = self._files.cat_file(self._path(key))
        return content

    def fetch(self, key: str, target: Path, *, sha256: str) -> None:
        """Copy a stored file to `target`; raises FileNotFoundError and `ContentChangedError`."""
        target.parent.mkdir(parents=True, exist_ok=True)
        with self._files.open(self._path(key), "rb") as source, target.open("wb") as sink:
            _copy(source, sink, name=key, sha256=sha256)

    def store(self, source: Path, key: str, *, sha256: str) -> None:
        """Copy `source` to `key`, which has it whole or not at all; raises `ContentChangedError`."""
        with source.open("rb") as file, self._whole_file(key) as sink:
            _copy(file, sink, name=source.name, sha256=sha256)

    def write(self, key: str, content: bytes) -> None:
        """Store `content` at `key`, whole or not at all."""
        with self._whole_file(key) as sink:
            sink.write(content)

    def folders(self, prefix: str) -> list[str]:
        """Names of the folders right below `prefix`, in order; none where there is no such folder."""
        path = self._path(prefix)
        if not self._files.isdir(path):
            return []
        entries = self._files.ls(path, detail=True)
        return sorted(str(e["name"]).rstrip("/").rpartition("/")[2] for e in entries if e["type"] == "directory")

    def remove_tree(self, prefix: str) -> None:
        """Remove all files below `prefix`; nothing happens where there are none."""
        if self._files.exists(self._path(prefix)):
            self._files.rm(self._path(prefix), recursive=True)

    def _path(self, key: str) -> str:
        return f"{self._root}/{key}"

    @contextmanager
    def _whole_file(self, key: str) -> Iterator[IO[bytes]]:
        """A sink whose content appears at `key` when the block ends, and never where it raises."""
        if isinstance(self._files, LocalFileSystem):
            with _replacing(Path(self._path(key))) as file:
                yield file
            return
        # An object store shows an object when its upload is complete, and `discard` aborts one that is not.
        # Other file systems write in place: what is half there is taken away.
        path = self._path(key)
        sink: Any = self._files.open(path, "wb", autocommit=False)
        try:
            yield sink
            sink.close()
        except BaseException:
            sink.discard()
            if self._files.exists(path):
                self._files.rm_file(path)
            raise
        sink.commit()


@contextmanager
def _replacing(path: Path) -> Iterator[IO[bytes]]:
    path.parent.mkdir(parents=True, exist_ok=True)
    draft = path.with_name(f".{path.name}.{secrets.token_hex(8)}")
    try:
        with draft.open("wb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        draft.replace(path)
    finally:
        draft.unlink(missing_ok=True)


def _copy(source: IO[bytes], sink: IO[bytes], *, name: str, sha256: str) -> None:
    digest = hashlib.sha256()
    while chunk := source.read(CHUNK_BYTES):
        digest.update(chunk)
        sink.write(chunk)
    if digest.hexdigest() != sha256:
        raise ContentChangedError(f"{name}: its sha256 is {digest.hexdigest()}, and should be {sha256}")


def store_checkpoint(
    storage: Storage, folder: Path, prefix: str, *, interrupted: Callable[[], bool]
) -> tuple[Manifest, str]:
    """Copy a finished checkpoint to `prefix`; returns its manifest and the sha256 of the manifest's file.

    Raises `CheckpointCorruptError` where the folder is not what its manifest says, OSError where the
    storage or the folder fails, and InterruptedError once `interrupted` says so.
    """
    content = (folder / MANIFEST_NAME).read_bytes()
    manifest = parse_manifest(content)
    for file in manifest.files:
        if interrupted():
            raise InterruptedError(f"the upload of {folder.name} was given up")
        _store_file(storage, folder, prefix, file)
    storage.write(f"{prefix}/{MANIFEST_NAME}", content)
    return manifest, hashlib.sha256(content).hexdigest()


def _store_file(storage: Storage, folder: Path, prefix: str, file: ManifestFile) -> None:
    try:
        storage.store(folder / file.name, f"{prefix}/{file.name}", sha256=file.sha256)
    except ContentChangedError as error:
        raise CheckpointCorruptError(f"{folder.name}: {error}") from error


def fetch_checkpoint(storage: Storage, prefix: str, target: Path, *, manifest_sha256: str) -> Manifest:
    """Copy a stored checkpoint to the folder `target`, every file verified, the manifest last.

    Raises `CheckpointCorruptError` where a file is missing or not what it should be, OSError where the
    storage fails.
    """
    try:
        content = storage.read(f"{prefix}/{MANIFEST_NAME}")
        if hashlib.sha256(content).hexdigest() != manifest_sha256:
            raise CheckpointCorruptError(f"{prefix}: {MANIFEST_NAME} is not the one that was stored")
        manifest = parse_manifest(content)
        for file in manifest.files:
            storage.fetch(f"{prefix}/{file.name}", target / file.name, sha256=file.sha256)
    except (FileNotFoundError, ContentChangedError) as error:
        raise CheckpointCorruptError(f"{prefix}: {error}") from error
    (target / MANIFEST_NAME).write_bytes(content)
    return manifest
