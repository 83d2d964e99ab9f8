"""The plots of ``trd report``, by matplotlib: as SVG in the page, and as PNG."""

from __future__ import annotations

import io
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import matplotlib as mpl
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from contract.views.diagnosis import PositionBin

if TYPE_CHECKING:
    from client.cli.report import Run

COLORS = ("#2563eb", "#d97706", "#059669", "#dc2626", "#7c3aed", "#475569")
"""Of the runs, in their order."""
STYLE: Any = {
    "svg.fonttype": "none",  # text stays text
    "svg.hashsalt": "trd",  # the same ids for the same data
    "font.size": 10,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "grid.alpha": 0.25,
    "legend.frameon": False,
    "text.parse_math": False,  # names may hold dollar signs
}


@dataclass(frozen=True)
class Plot:
    """One drawn plot."""

    name: str
    title: str
    svg: bytes
    png: bytes


def draw_plots(runs: Sequence[Run]) -> list[Plot]:
    """Return the plots for which the runs have data."""
    wanted: tuple[tuple[str, str, Callable[[Axes, Run, str], bool]], ...] = (
        ("scores", "Share of correct answers (avg@k), 95 % intervals", _scores),
        ("loss", "Loss by step", lambda axes, run, color: _curve(axes, run, color, "loss")),
        (
            "divergence",
            "Divergence per token by step, nats (dotted: 95th percentile)",
            lambda axes, run, color: any(
                [
                    _curve(axes, run, color, "divergence_per_token"),
                    _curve(axes, run, color, "divergence_p95", linestyle=":", label=None),
                ]
            ),
        ),
        ("gradient", "Gradient norm by step", lambda axes, run, color: _curve(axes, run, color, "grad_norm")),
        ("lengths", "Mean tokens of an evaluated answer", _lengths),
        ("kl-by-position", "Forward KL along the text (solid: y_o, dashed: y_r), nats", _kl_by_position),
    )
    with mpl.rc_context(STYLE):
        drawn = [_draw(name, title, runs, add) for name, title, add in wanted]
    return [plot for plot in drawn if plot is not None]


def _draw(name: str, title: str, runs: Sequence[Run], add: Callable[[Axes, Run, str], bool]) -> Plot | None:
    figure = Figure(figsize=(6.4, 3.2), layout="constrained")
    axes = figure.add_subplot()
    has_data = [add(axes, run, color) for run, color in zip(runs, COLORS, strict=False)]
    if not any(has_data):
        return None
    axes.set_xlabel("position in the text, %" if name == "kl-by-position" else "step")
    if name != "kl-by-position":
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    low, high = axes.get_ylim()
    low = min(0.0, low)
    axes.set_ylim(low, high + 0.05 * (high - low))
    if len(runs) > 1:
        axes.legend(fontsize="small")
    svg, png = io.BytesIO(), io.BytesIO()
    figure.savefig(svg, format="svg", metadata={"Date": None, "Creator": None, "Title": title})
    figure.savefig(png, format="png", dpi=160, metadata={"Software": None})
    return Plot(name, title, svg.getvalue(), png.getvalue())


def _curve(axes: Axes, run: Run, color: str, metric: str, *, linestyle: str = "-", label: str | None = "") -> bool:
    series = run.metrics.get(metric)
    if series is None:
        return False
    points = [(step, value) for step, value in zip(series.steps, series.values, strict=True) if value is not None]
    marker = "o" if len(points) == 1 else None
    name = run.label if label == "" else "_"
    axes.plot(*zip(*points, strict=True), color=color, linestyle=linestyle, marker=marker, label=name)
    return bool(points)


def _scores(axes: Axes, run: Run, color: str) -> bool:
    if not run.evaluations:
        return False
    dataset = run.evaluations[-1].dataset
    shown = [one for one in run.evaluations if one.dataset == dataset]
    values = [one.avg_at_k for one in shown]
    below = [one.avg_at_k - one.avg_low for one in shown]
    above = [one.avg_high - one.avg_at_k for one in shown]
    steps = [one.step for one in shown]
    axes.errorbar(steps, values, [below, above], color=color, marker="o", capsize=4, label=run.label)
    return True


def _lengths(axes: Axes, run: Run, color: str) -> bool:
    points = [(one.step, one.detail["mean_tokens"]) for one in run.evaluations if "mean_tokens" in one.detail]
    if not points:
        return False
    axes.plot(*zip(*points, strict=True), color=color, marker="o", label=run.label)
    return True


def _kl_by_position(axes: Axes, run: Run, color: str) -> bool:
    if not run.diagnoses:
        return False
    report = run.diagnoses[-1].report
    has_points = _bins(axes, report.rollout.by_share, color, "-", run.label)
    if report.refined is not None:
        has_points |= _bins(axes, report.refined.by_share, color, "--", "_")
    return has_points


def _bins(axes: Axes, bins: Sequence[PositionBin], color: str, linestyle: str, label: str) -> bool:
    points = [(50 * (one.low + one.high), one.forward_kl) for one in bins if one.forward_kl is not None]
    if points:
        axes.plot(*zip(*points, strict=True), color=color, linestyle=linestyle, marker=".", label=label)
    return bool(points)
