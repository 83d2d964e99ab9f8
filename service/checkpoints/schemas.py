"""Checkpoints as the API shows them."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime
from typing import Any, Literal
from urllib.parse import quote

from pydantic import BaseModel, ConfigDict

from contract.tables import Checkpoint, CheckpointFile


class CheckpointView(BaseModel):
    """A complete checkpoint."""

    model_config = ConfigDict(use_attribute_docstrings=True, from_attributes=True)

    object: Literal["checkpoint"] = "checkpoint"
    id: str
    job_id: str
    step: int
    attempt: int
    formats: list[str]
    """adapter: a PEFT folder; merged, full: a model folder that stands alone."""
    num_bytes: int
    manifest_sha256: str
    metrics: dict[str, Any]
    created_at: datetime


class CheckpointFileView(BaseModel):
    """One file, and where to get it."""

    model_config = ConfigDict(use_attribute_docstrings=True)

    name: str
    num_bytes: int
    sha256: str
    url: str
    """Path on this server."""


class ManifestView(CheckpointView):
    """A checkpoint with all its files."""

    files: list[CheckpointFileView]
    archive_url: str
    """All files as one tar."""


class DeletedCheckpoint(BaseModel):
    """What was removed."""

    object: Literal["checkpoint"] = "checkpoint"
    id: str
    deleted: Literal[True] = True


def checkpoint_view(row: Checkpoint) -> CheckpointView:
    """A row as the API shows it."""
    return CheckpointView.model_validate(row)


def manifest_view(row: Checkpoint, files: Sequence[CheckpointFile]) -> ManifestView:
    """A row with its files as the API shows them."""
    base = f"/jobs/{row.job_id}/checkpoints/{row.step}"
    views = [
        CheckpointFileView(
            name=file.name, num_bytes=file.num_bytes, sha256=file.sha256, url=f"{base}/files/{quote(file.name)}"
        )
        for file in files
    ]
    return ManifestView(**checkpoint_view(row).model_dump(), files=views, archive_url=f"{base}/archive")
