"""A checkpoint's manifest, as the engine writes it and the storage keeps it."""

from __future__ import annotations

from pathlib import PurePosixPath
from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator

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
        """Of all files together."""
        return sum(file.num_bytes for file in self.files)


def parse_manifest(content: bytes) -> Manifest:
    """The manifest in `content`; raises `CheckpointCorruptError`."""
    try:
        return Manifest.model_validate_json(content)
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        where = ".".join(map(str, first["loc"])) or "document"
        raise CheckpointCorruptError(f"{MANIFEST_NAME}: {where}: {first['msg']}") from error
