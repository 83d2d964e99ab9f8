"""Datasets as the API shows them."""

from __future__ import annotations

from datetime import datetime
from typing import Literal

from pydantic import BaseModel, ConfigDict

from contract.tables import Dataset


class DatasetView(BaseModel):
    """An uploaded, validated file of problems."""

    model_config = ConfigDict(use_attribute_docstrings=True)

    object: Literal["dataset"] = "dataset"
    id: str
    filename: str
    format: Literal["jsonl", "parquet"]
    num_rows: int
    num_bytes: int
    sha256: str
    """Of the file as it was uploaded."""
    has_solutions: bool
    """True where every row has one: what a student that teaches itself needs."""
    created_at: datetime


class DeletedDataset(BaseModel):
    """What was removed."""

    object: Literal["dataset"] = "dataset"
    id: str
    deleted: Literal[True] = True


def dataset_view(row: Dataset) -> DatasetView:
    """A row as the API shows it."""
    return DatasetView.model_validate(row, from_attributes=True)
