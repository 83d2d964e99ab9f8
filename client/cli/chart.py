"""Curves in a terminal: charts, and sparklines of one line."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from client.cli.output import answers
from contract.views.runs import MetricSeries

HEIGHT = 16
MAX_WIDTH = 110
NUM_TICKS = 8
_LEVELS = "▁▂▃▄▅▆▇█"


@dataclass(frozen=True)
class Curve:
    """One line of a chart."""

    label: str | None
    series: MetricSeries


def draw(title: str, curves: Sequence[Curve], *, height: int = HEIGHT) -> None:
    """Print the curves in one chart, without points that are not finite."""
    import plotext  # type: ignore[import-untyped]  # takes a while to import, and few commands draw

    console = answers()
    plotext.clear_figure()
    plotext.plotsize(min(console.width, MAX_WIDTH), height)
    for part in (plotext.canvas_color, plotext.axes_color, plotext.ticks_color):
        part("default")  # the colours of the terminal, light or dark
    plotext.title(title)
    plotext.xlabel("step")
    steps = [step for curve in curves for step in curve.series.steps]
    if steps:
        first, last = min(steps), max(steps)
        stride = max(1, -(-(last - first) // NUM_TICKS))
        plotext.xticks(list(range(first, last + 1, stride)))
    for curve in curves:
        points = [(x, y) for x, y in zip(curve.series.steps, curve.series.values, strict=True) if y is not None]
        if points:
            marker = "braille" if len(points) > 1 else "dot"
            plotext.plot([x for x, _ in points], [y for _, y in points], label=curve.label, marker=marker)
    drawing = plotext.build()
    if not console.is_terminal or console.no_color:
        drawing = plotext.uncolorize(drawing)
    console.file.write(drawing + "\n")


def sparkline(values: Sequence[float | None], width: int) -> str:
    """Return the curve in at most `width` characters; a value that is not finite is a gap."""
    if len(values) > width:
        values = [_mean(values[i * len(values) // width : (i + 1) * len(values) // width]) for i in range(width)]
    finite = [value for value in values if value is not None and math.isfinite(value)]
    if not finite:
        return ""
    low, high = min(finite), max(finite)
    return "".join(_level(value, low, high) for value in values)


def _mean(values: Sequence[float | None]) -> float | None:
    finite = [value for value in values if value is not None and math.isfinite(value)]
    return sum(finite) / len(finite) if finite else None


def _level(value: float | None, low: float, high: float) -> str:
    if value is None or not math.isfinite(value):
        return " "
    share = (value - low) / (high - low) if high > low else 0.5
    return _LEVELS[min(int(share * len(_LEVELS)), len(_LEVELS) - 1)]
