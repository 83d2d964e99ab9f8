"""Datasets as the API shows them."""

from __future__ import annotations

from datetime import datetime
from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field

from contract.tables import Dataset
from service.query_types import DECIMAL


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


class PreviewQuery(BaseModel):
    """What a job would say."""

    model_config = ConfigDict(extra="forbid", use_attribute_docstrings=True)

    model: Annotated[str, Field(max_length=500)]
    """The student, as a job names it."""
    teacher: Annotated[str, Field(max_length=500)] | None = None
    """As a job names it; none: the student teaches itself."""
    task: Literal["math", "exact", "choice", "code", "reasoning_gym"] = "math"
    """Whose built-in templates apply where a model's folder has none."""
    max_prompt_tokens: Annotated[int | None, Field(ge=1, le=10_000_000), DECIMAL] = None
    """sampling.max_prompt_tokens; by default what a TRD job of these models has."""
    refine_max_prompt_tokens: Annotated[int | None, Field(ge=1, le=10_000_000), DECIMAL] = None
    """refine.max_prompt_tokens; likewise."""
    limit: Annotated[int, Field(ge=1, le=20), DECIMAL] = 3
    """Rows."""


class PreviewPrompt(BaseModel):
    """One prompt as its model reads it."""

    model_config = ConfigDict(use_attribute_docstrings=True)

    kind: Literal["solve", "privileged", "refine", "privileged_refine"]
    text: str
    """With the chat template's special tokens."""
    num_tokens: int
    token_ids: list[int]
    num_cut_solution_tokens: int
    """Of the reference solution's tail, which gives way to a notice."""
    attempt_tokens_that_fit: int | None
    """How long a rollout may be before its tail is cut from this prompt; null where it has no place for one."""


class PreviewRow(BaseModel):
    """What a job would ask with one row."""

    model_config = ConfigDict(use_attribute_docstrings=True)

    row: int
    """Its line in JSONL, else its place; from 1."""
    id: str | None
    has_solution: bool
    is_exact: bool
    """False for programming problems: the worker adds starter code or a test to the question."""
    dropped: str | None
    """Why a job would leave the row out; null where it would not."""
    prompts: list[PreviewPrompt]


class DatasetPreview(BaseModel):
    """The first rows of a dataset as prompts."""

    object: Literal["dataset.preview"] = "dataset.preview"
    dataset_id: str
    data: list[PreviewRow]


class DeletedDataset(BaseModel):
    """What was removed."""

    object: Literal["dataset"] = "dataset"
    id: str
    deleted: Literal[True] = True


def dataset_view(row: Dataset) -> DatasetView:
    """A row as the API shows it."""
    return DatasetView.model_validate(row, from_attributes=True)
