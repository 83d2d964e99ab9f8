"""The plots of ``trd report``."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from client.cli.report_run import Run
from contract.views.diagnosis import PositionBin
from trd_data.plots import COLORS, Curve, Panel


def panels(runs: Sequence[Run]) -> list[Panel]:
    """Return the plots for which the runs have data."""
    wanted: tuple[tuple[str, str, Callable[[Run, str, str | None], list[Curve]]], ...] = (
        ("scores", "Share of correct answers (avg@k), 95 % intervals", _scores),
        ("loss", "Loss by step", lambda run, color, label: _metric(run, "loss", color, label)),
        ("divergence", "Divergence per token by step, nats (dotted: 95th percentile)", _divergence),
        ("gradient", "Gradient norm by step", lambda run, color, label: _metric(run, "grad_norm", color, label)),
        ("lengths", "Mean tokens of an evaluated answer", _lengths),
        ("kl-by-position", "Forward KL along the text (solid: y_o, dashed: y_r), nats", _kl_by_position),
    )
    drawn = []
    for name, title, curves_of in wanted:
        curves = [
            curve
            for run, color in zip(runs, COLORS, strict=False)
            for curve in curves_of(run, color, run.label if len(runs) > 1 else None)
            if curve.xs
        ]
        x_label = "position in the text, %" if name == "kl-by-position" else "step"
        drawn += [Panel(name, title, curves, x_label)] if curves else []
    return drawn


def _metric(run: Run, metric: str, color: str, label: str | None, linestyle: str = "-") -> list[Curve]:
    if (series := run.metrics.get(metric)) is None:
        return []
    points = [(step, value) for step, value in zip(series.steps, series.values, strict=True) if value is not None]
    return [Curve([step for step, _ in points], [value for _, value in points], color, label, linestyle)]


def _divergence(run: Run, color: str, label: str | None) -> list[Curve]:
    return _metric(run, "divergence_per_token", color, label) + _metric(run, "divergence_p95", color, None, ":")


def _scores(run: Run, color: str, label: str | None) -> list[Curve]:
    shown = [one for one in run.evaluations if one.dataset == run.evaluations[-1].dataset]
    ends = [one.avg_low for one in shown], [one.avg_high for one in shown]
    return [Curve([one.step for one in shown], [one.avg_at_k for one in shown], color, label, marker="o", ends=ends)]


def _lengths(run: Run, color: str, label: str | None) -> list[Curve]:
    points = [(one.step, one.detail["mean_tokens"]) for one in run.evaluations if "mean_tokens" in one.detail]
    return [Curve([step for step, _ in points], [tokens for _, tokens in points], color, label, marker="o")]


def _kl_by_position(run: Run, color: str, label: str | None) -> list[Curve]:
    if not run.diagnoses:
        return []
    report = run.diagnoses[-1].report
    refined = [_bins(report.refined.by_share, color, None, "--")] if report.refined is not None else []
    return [_bins(report.rollout.by_share, color, label, "-"), *refined]


def _bins(bins: Sequence[PositionBin], color: str, label: str | None, linestyle: str) -> Curve:
    points = [(50 * (one.low + one.high), one.forward_kl) for one in bins if one.forward_kl is not None]
    return Curve([x for x, _ in points], [kl for _, kl in points], color, label, linestyle, ".")
