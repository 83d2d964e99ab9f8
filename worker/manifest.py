"""A checkpoint's manifest, as the engine writes it, and copying a checkpoint to and from the storage by it.

Every file is compared with the manifest while it is copied, and the manifest is copied last: a folder without one is
not a checkpoint.
"""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Callable, MutableMapping
from pathlib import Path, PurePosixPath
from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator

from contract.storage import ContentChangedError, Storage

logger = logging.getLogger(__name__)

MANIFEST_NAME = "manifest.json"


class CheckpointCorruptError(Exception):
    """A checkpoint is not what its manifest says; the message names the first difference."""


class ManifestFile(BaseModel):
    """One file of a checkpoint."""

    model_config = ConfigDict(frozen=True, extra="ignore")

    name: Annotated[str, Field(min_length=1, max_length=255)]
    num_bytes: Annotated[int, Field(ge=0)]
    sha256: Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]

    @field_validator("name")
    @classmethod
    def _stays_inside(cls, name: str) -> str:
        parts = PurePosixPath(name).parts
        if name.startswith("/") or "\\" in name or ".." in parts or name == MANIFEST_NAME:
            raise ValueError("a file's name is a path below the checkpoint's folder")
        return name


class Manifest(BaseModel):
    """What a checkpoint holds. Its file is written last: without it a folder is no checkpoint."""

    model_config = ConfigDict(frozen=True, extra="ignore")

    step: Annotated[int, Field(ge=0)]
    formats: list[str]
    files: Annotated[list[ManifestFile], Field(min_length=1)]
    metrics: dict[str, Any] = {}

    @property
    def num_bytes(self) -> int:
        """Bytes of all files together."""
        return sum(file.num_bytes for file in self.files)


def parse_manifest(content: bytes) -> Manifest:
    """Parse and check the manifest in `content`; raise `CheckpointCorruptError`."""
    try:
        return Manifest.model_validate_json(content)
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        where = ".".join(map(str, first["loc"])) or "document"
        raise CheckpointCorruptError(f"{MANIFEST_NAME}: {where}: {first['msg']}") from error


def store_checkpoint(
    storage: Storage,
    folder: Path,
    prefix: str,
    *,
    interrupted: Callable[[], bool],
    stored: MutableMapping[str, str] | None = None,
) -> tuple[Manifest, str]:
    """Copy a finished checkpoint to `prefix`; returns its manifest and the sha256 of the manifest's file.

    `stored` has the keys, by sha256, of the checkpoint before, and gets those of this one. A file with the same
    content, such as a round's trajectories, is copied within the storage, not sent again.

    Raises `CheckpointCorruptError` if the folder is not what its manifest says, OSError if the storage or the folder
    fails, and InterruptedError once `interrupted` returns true.
    """
    content = (folder / MANIFEST_NAME).read_bytes()
    manifest = parse_manifest(content)
    for listed in manifest.files:
        if interrupted():
            raise InterruptedError(f"the upload of {folder.name} was interrupted")
        key = f"{prefix}/{listed.name}"
        if _is_copied(storage, (stored or {}).get(listed.sha256), key):
            continue
        try:
            with (folder / listed.name).open("rb") as file:
                storage.store(file, key, sha256=listed.sha256)
        except ContentChangedError as error:
            raise CheckpointCorruptError(str(error)) from error
    if stored is not None:
        stored.clear()
        stored.update({listed.sha256: f"{prefix}/{listed.name}" for listed in manifest.files})
    storage.write(f"{prefix}/{MANIFEST_NAME}", content)
    return manifest, hashlib.sha256(content).hexdigest()


def _is_copied(storage: Storage, source: str | None, key: str) -> bool:
    """Copy a stored file; return False if there is none, or if the storage cannot, for example above 5 GB on S3."""
    if source is None:
        return False
    try:
        storage.copy(source, key)
    except OSError as error:
        logger.info("%s is uploaded, not copied from %s: %s", key, source, error)
        return False
    return True


def fetch_checkpoint(storage: Storage, prefix: str, target: Path, *, manifest_sha256: str) -> Manifest:
    """Copy a stored checkpoint to the folder `target`.

    Raises `CheckpointCorruptError` if a file is missing or not what it should be, OSError if the storage fails.
    """
    try:
        content = storage.read(f"{prefix}/{MANIFEST_NAME}", sha256=manifest_sha256)
        manifest = parse_manifest(content)
        for file in manifest.files:
            storage.fetch(f"{prefix}/{file.name}", target / file.name, sha256=file.sha256)
    except (FileNotFoundError, ContentChangedError) as error:
        raise CheckpointCorruptError(f"{prefix}: {error}") from error
    (target / MANIFEST_NAME).write_bytes(content)
    return manifest
