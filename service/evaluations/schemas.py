"""Evaluations as the API shows them."""

from __future__ import annotations

from datetime import datetime
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict

from contract.tables import Evaluation


class EvaluationView(BaseModel):
    """Scores on one set of problems at one step, with their 95 % intervals."""

    model_config = ConfigDict(use_attribute_docstrings=True, from_attributes=True)

    object: Literal["evaluation"] = "evaluation"
    step: int
    """0 is the baseline, before training."""
    dataset: str
    k: int
    """Samples a problem."""
    num_problems: int
    avg_at_k: float
    avg_low: float
    avg_high: float
    pass_at_k: float
    pass_low: float
    pass_high: float
    detail: dict[str, Any]
    created_at: datetime


def evaluation_view(row: Evaluation) -> EvaluationView:
    """A row as the API shows it."""
    return EvaluationView.model_validate(row)
