"""Curves drawn in a terminal."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from client.cli.output import answers
from contract.views.metrics import MetricSeries

HEIGHT = 16
MAX_WIDTH = 110
NUM_TICKS = 8


@dataclass(frozen=True)
class Curve:
    """One line of a chart."""

    label: str | None
    series: MetricSeries


def draw(title: str, curves: Sequence[Curve], *, height: int = HEIGHT) -> None:
    """Print the curves over one another; points that are not finite are left out."""
    import plotext  # type: ignore[import-untyped]  # takes a while to import, and few commands draw

    console = answers()
    plotext.clear_figure()
    plotext.plotsize(min(console.width, MAX_WIDTH), height)
    for part in (plotext.canvas_color, plotext.axes_color, plotext.ticks_color):
        part("default")  # the terminal's own colours, light or dark
    plotext.title(title)
    plotext.xlabel("step")
    steps = [step for curve in curves for step in curve.series.steps]
    if steps:
        plotext.xticks(_ticks(min(steps), max(steps)))
    for curve in curves:
        points = [(x, y) for x, y in zip(curve.series.steps, curve.series.values, strict=True) if y is not None]
        if points:
            marker = "braille" if len(points) > 1 else "dot"
            plotext.plot([x for x, _ in points], [y for _, y in points], label=curve.label, marker=marker)
    drawing = plotext.build()
    if not console.is_terminal or console.no_color:
        drawing = plotext.uncolorize(drawing)
    console.file.write(drawing + "\n")


def _ticks(first: int, last: int) -> list[int]:
    """Whole steps, evenly spread: half of a step means nothing."""
    stride = max(1, -(-(last - first) // NUM_TICKS))
    return list(range(first, last + 1, stride))
