"""Query parameters of ``/datasets``, and how a dataset becomes a view."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from contract.tables import Dataset
from contract.views.datasets import DatasetView
from service.query import DECIMAL, RequestModel


def dataset_view(dataset: Dataset) -> DatasetView:
    """Return the view of a dataset."""
    return DatasetView.of(dataset, notices=(dataset.findings or {}).get("notices", []))


class PreviewQuery(RequestModel):
    """The models, the task and the budgets of the job that is previewed."""

    model: Annotated[str, Field(max_length=500)]
    """The student, as a job names it."""
    teacher: Annotated[str, Field(max_length=500)] | None = None
    """The teacher, as a job names it; without one, the student teaches itself."""
    task: Literal["math", "exact", "choice", "code", "reasoning_gym"] = "math"
    """The task that reads the rows, and whose built-in templates apply if a model's folder has none."""
    max_prompt_tokens: Annotated[int | None, Field(ge=1, le=10_000_000), DECIMAL] = None
    """sampling.max_prompt_tokens; by default that of a TRD job of these models."""
    refine_max_prompt_tokens: Annotated[int | None, Field(ge=1, le=10_000_000), DECIMAL] = None
    """refine.max_prompt_tokens; by default that of a TRD job of these models."""
    limit: Annotated[int, Field(ge=1, le=20), DECIMAL] = 3
    """Number of rows to show."""
