"""Checkpoints."""

from __future__ import annotations

from datetime import datetime
from typing import Any, Literal

from pydantic import Field

from contract.views import View


class CheckpointView(View):
    """A complete checkpoint."""

    object: Literal["checkpoint"] = "checkpoint"
    id: str
    job_id: str
    step: int
    attempt: int
    formats: list[str]
    """adapter: a PEFT folder; merged, full: a model folder that can be loaded without the base model."""
    num_bytes: int
    manifest_sha256: str
    metrics: dict[str, Any]
    created_at: datetime


class CheckpointFileView(View):
    """One file of a checkpoint, and where to download it."""

    name: str
    num_bytes: int = Field(ge=0)
    sha256: str = Field(pattern=r"^[0-9a-f]{64}$")  # a client names a partial download after it
    url: str
    """Path on this server."""


class ManifestView(CheckpointView):
    """A checkpoint with all its files."""

    files: list[CheckpointFileView]
    archive_url: str
    """All files as one tar."""


class DeletedCheckpoint(View):
    """What was deleted."""

    object: Literal["checkpoint"] = "checkpoint"
    id: str
    deleted: Literal[True] = True
