"""How points become a series."""

from __future__ import annotations

from itertools import groupby

from contract.views.metrics import MetricSeries
from service.metrics.repository import Points


def metric_series(rows: Points, num_points: dict[str, int]) -> list[MetricSeries]:
    """Return one series for each metric in `rows`."""
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
