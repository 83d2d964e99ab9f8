"""Metrics as the API shows them."""

from __future__ import annotations

from itertools import groupby
from typing import Literal

from pydantic import BaseModel, ConfigDict

from service.metrics.repository import Points


class MetricSeries(BaseModel):
    """One metric over the steps. The lists belong together by position."""

    model_config = ConfigDict(use_attribute_docstrings=True)

    object: Literal["metric_series"] = "metric_series"
    name: str
    num_points: int
    """Stored in the range; more than are shown where the curve was thinned."""
    is_thinned: bool
    """True where only the lowest and the highest point of each stretch of steps is shown."""
    steps: list[int]
    values: list[float | None]
    """Null where the value was not finite."""
    at: list[float]
    """Seconds since the epoch."""


def metric_series(rows: Points, num_points: dict[str, int]) -> list[MetricSeries]:
    """Points as the API shows them."""
    series = []
    for name, group in groupby(rows, key=lambda row: row.name):
        points = list(group)
        series.append(
            MetricSeries(
                name=name,
                num_points=num_points[name],
                is_thinned=len(points) < num_points[name],
                steps=[point.step for point in points],
                values=[point.value for point in points],
                at=[point.at.timestamp() for point in points],
            )
        )
    return series
