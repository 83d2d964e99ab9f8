"""Probe samples as the API shows them."""

from __future__ import annotations

from datetime import datetime
from typing import Literal

from pydantic import BaseModel, ConfigDict

from contract.tables import ProbeSample


class ProbeSampleView(BaseModel):
    """What the student answers to one of a few fixed problems at one evaluation."""

    model_config = ConfigDict(use_attribute_docstrings=True)

    object: Literal["probe_sample"] = "probe_sample"
    id: str
    """``step:position``, for ``after``."""
    step: int
    """0 is the baseline, before training."""
    position: int
    """Of the problem: the same one at every step."""
    problem_id: str
    prompt: str
    """As the student sees it."""
    completion: str
    correct: bool
    created_at: datetime


def probe_sample_view(row: ProbeSample) -> ProbeSampleView:
    """A row as the API shows it."""
    return ProbeSampleView(
        id=f"{row.step}:{row.position}",
        step=row.step,
        position=row.position,
        problem_id=row.problem_id,
        prompt=row.prompt,
        completion=row.completion,
        correct=row.correct,
        created_at=row.created_at,
    )
