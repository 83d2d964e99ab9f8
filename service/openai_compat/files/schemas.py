"""A dataset as the `openai` client knows it: a file."""

from __future__ import annotations

from typing import Literal

from pydantic import BaseModel, ConfigDict

from contract.tables import Dataset
from contract.views.datasets import DatasetView
from service.datasets.schemas import dataset_view

PURPOSE: Literal["fine-tune"] = "fine-tune"


class FileObject(BaseModel):
    """An uploaded, validated file of problems."""

    model_config = ConfigDict(use_attribute_docstrings=True)

    object: Literal["file"] = "file"
    id: str
    bytes: int
    created_at: int
    """Seconds since the epoch."""
    filename: str
    purpose: Literal["fine-tune"] = PURPOSE
    status: Literal["processed"] = "processed"
    """Always: a file is checked while it is received, and one with a bad row is refused there and then."""
    native: DatasetView
    """The dataset as ``GET /datasets/{id}`` shows it."""


class FileDeleted(BaseModel):
    """What was removed."""

    object: Literal["file"] = "file"
    id: str
    deleted: Literal[True] = True


def file_object(row: Dataset) -> FileObject:
    """Map a row to what the `openai` client reads."""
    return FileObject(
        id=row.id,
        bytes=row.num_bytes,
        created_at=int(row.created_at.timestamp()),
        filename=row.filename,
        native=dataset_view(row),
    )
