"""Metrics."""

from __future__ import annotations

from typing import Literal

from contract.views import View


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
