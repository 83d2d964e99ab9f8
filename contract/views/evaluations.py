"""Evaluations."""

from __future__ import annotations

from datetime import datetime
from typing import Any, Literal

from contract.views import View


class EvaluationView(View):
    """Scores on one set of problems at one step, with their 95 % intervals."""

    object: Literal["evaluation"] = "evaluation"
    step: int
    """0 is the baseline, before training."""
    dataset: str
    k: int
    """Samples per problem."""
    num_problems: int
    avg_at_k: float
    avg_low: float
    avg_high: float
    pass_at_k: float
    pass_low: float
    pass_high: float
    detail: dict[str, Any]
    created_at: datetime
