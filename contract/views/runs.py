"""What a run measured: metrics, evaluations and probe samples."""

from __future__ import annotations

from datetime import datetime
from typing import Any, Literal

from pydantic import ConfigDict

from contract.views import Page, View


class MetricSeries(View):
    """One metric over the steps. The lists have the same length and order."""

    object: Literal["metric_series"] = "metric_series"
    name: str
    num_points: int
    """Stored in the range; more than are shown if the curve was thinned."""
    is_thinned: bool
    """True if only the lowest and the highest point of each group of steps is shown."""
    steps: list[int]
    values: list[float | None]
    """Null if the value was not finite."""
    at: list[float]
    """Seconds since the epoch."""


class MetricPage(Page[MetricSeries]):
    """The metrics of a job."""

    model_config = ConfigDict(use_attribute_docstrings=True)

    removed_before: datetime | None = None
    """The retention policy has removed points from before this time; null if it removed none."""


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


class ProbeSampleView(View):
    """The student's answer to one of a few fixed problems at one evaluation."""

    object: Literal["probe_sample"] = "probe_sample"
    id: str
    """``step:position``, for ``after``."""
    step: int
    """0 is the baseline, before training."""
    position: int
    """Position of the problem: the same problem at every step."""
    problem_id: str
    prompt: str
    """The prompt that the student sees."""
    completion: str
    correct: bool
    created_at: datetime
