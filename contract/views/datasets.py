"""Datasets, and the prompts that a job would build from their rows."""

from __future__ import annotations

from datetime import datetime
from typing import Literal

from contract.views import NoticeView, OpenEnum, View


class DatasetView(View):
    """An uploaded, validated file of problems."""

    object: Literal["dataset"] = "dataset"
    id: str
    filename: str
    format: OpenEnum[Literal["jsonl", "json", "csv", "parquet"]]
    """The recognised format, of the decompressed file if it came as gzip or zstd."""
    num_rows: int
    num_bytes: int
    sha256: str
    """Digest of the file as it was uploaded."""
    has_solutions: bool
    """True if every row has a solution, which a student that is its own teacher needs."""
    notices: list[NoticeView] = []  # noqa: RUF012 - pydantic copies it
    """What the check of the file found; a job has those that hold for its task."""
    created_at: datetime


class PreviewPrompt(View):
    """One prompt as its model reads it."""

    kind: OpenEnum[Literal["solve", "privileged", "refine", "privileged_refine"]]
    text: str
    """The prompt with the chat template's special tokens."""
    num_tokens: int
    token_ids: list[int]
    num_cut_solution_tokens: int
    """Tokens cut from the end of the reference solution and replaced by a notice."""
    attempt_tokens_that_fit: int | None
    """Length up to which a rollout is not truncated in this prompt; null if the prompt does not contain one."""


class PreviewRow(View):
    """The prompts that a job would build from one row."""

    row: int
    """Its line in JSONL, otherwise its position; from 1."""
    id: str | None
    has_solution: bool
    is_exact: bool
    """Always true: the prompts are, token for token, those of a job."""
    dropped: str | None
    """Why a job would skip the row; null if it would not."""
    prompts: list[PreviewPrompt]


class DatasetPreview(View):
    """The first rows of a dataset as prompts."""

    object: Literal["dataset.preview"] = "dataset.preview"
    dataset_id: str
    data: list[PreviewRow]


class DeletedDataset(View):
    """What was deleted."""

    object: Literal["dataset"] = "dataset"
    id: str
    deleted: Literal[True] = True
