"""Curves as images, by matplotlib, for ``trd report`` and the model card. The same curves give the same bytes.

Shared by the client and the engine, which may not import each other. It needs matplotlib, which takes most of a second
to import: import this where a plot is drawn.
"""

from __future__ import annotations

import io
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import matplotlib as mpl
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

COLORS = ("#2563eb", "#d97706", "#059669", "#dc2626", "#7c3aed", "#475569")
"""Colours of the runs, in their order."""
STYLE: Any = {
    "svg.fonttype": "none",  # text stays text
    "svg.hashsalt": "trd",  # the same ids for the same data
    "font.size": 10,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "axes.titlesize": "medium",
    "grid.alpha": 0.25,
    "legend.frameon": False,
    "text.parse_math": False,  # names may hold dollar signs
}


@dataclass(frozen=True)
class Curve:
    """One line of a plot."""

    xs: Sequence[float]
    ys: Sequence[float]
    color: str = COLORS[0]
    label: str | None = None
    """Name in the legend, which a plot has if a curve of it has a label."""
    linestyle: str = "-"
    marker: str | None = None
    ends: tuple[Sequence[float], Sequence[float]] | None = None
    """Ends of the values' intervals."""


@dataclass(frozen=True)
class Panel:
    """One plot."""

    name: str
    """Part of a file's name."""
    title: str
    curves: Sequence[Curve] = field(default_factory=list)
    x_label: str = "step"


def draw(panels: Sequence[Panel], *, has_titles: bool = True) -> Figure:
    """Draw the plots side by side."""
    labels = [curve.label for panel in panels for curve in panel.curves if curve.label is not None]
    height = 3.2 + 0.25 * len(labels)
    with mpl.rc_context(STYLE):
        figure = Figure(figsize=(max(6.4, 4.8 * len(panels)), height), layout="constrained")
        for axes, panel in zip(figure.subplots(1, len(panels), squeeze=False)[0], panels, strict=True):
            _fill(axes, panel)
            axes.set_title(panel.title if has_titles else "")
        if labels:  # below the plots, where it hides no curve
            figure.legend(loc="outside lower left", fontsize="small")
    return figure


def svg(figure: Figure) -> bytes:
    """Return the figure as SVG, without a background."""
    return _saved(figure, format="svg", transparent=True, metadata={"Date": None, "Creator": None})


def png(figure: Figure, *, dpi: int = 160) -> bytes:
    """Return the figure as PNG."""
    return _saved(figure, format="png", dpi=dpi, metadata={"Software": None})


def _saved(figure: Figure, **how: Any) -> bytes:
    file = io.BytesIO()
    with mpl.rc_context(STYLE):
        figure.savefig(file, **how)
    return file.getvalue()


def _fill(axes: Axes, panel: Panel) -> None:
    for curve in panel.curves:
        style: dict[str, Any] = {"color": curve.color, "linestyle": curve.linestyle, "label": curve.label}
        style["marker"] = curve.marker or ("o" if len(curve.xs) == 1 else None)  # one point has no line
        if curve.ends is not None:
            below = [value - low for value, low in zip(curve.ys, curve.ends[0], strict=True)]
            above = [high - value for value, high in zip(curve.ys, curve.ends[1], strict=True)]
            axes.errorbar(curve.xs, curve.ys, [below, above], capsize=4, **style)
        else:
            axes.plot(curve.xs, curve.ys, **style)
    axes.set_xlabel(panel.x_label)
    if panel.x_label == "step":
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    low, high = axes.get_ylim()
    low = 0.0 if axes.dataLim.y0 >= 0 else low
    axes.set_ylim(low, high + 0.05 * (high - low))
