"""The report's plots, as SVG files without dates, so that the same rows give the same bytes."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import matplotlib
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from benchmarks.paper.catch_up import curves
from benchmarks.paper.mechanism import diagnosis
from benchmarks.paper.summary import avg_at_k, estimate
from benchmarks.paper.tables import MAIN_NAMES, SETTINGS, Groups, setting_name

matplotlib.rcParams["svg.hashsalt"] = "paper"  # otherwise ids in the file are random

COLOURS = {
    "forward_kl": "#9ecae1",
    "forward_kl_clip": "#c6dbef",
    "reverse_kl": "#6baed6",
    "reverse_kl_topk": "#2171b5",
    "trd": "#e6550d",
}


def score_plot(section: str) -> Callable[[Groups, Path], bool]:
    """Return a function that draws the section's avg@8 with intervals; it returns False without rows."""

    def draw(groups: Groups, path: Path) -> bool:
        settings = [s for s in SETTINGS if any(key[0] == section and key[1:3] == s for key in groups)]
        if not settings:
            return False
        figure, axes = _panels(len(settings))
        for axis, (teaching, student) in zip(axes, settings, strict=True):
            present = [name for name in MAIN_NAMES if (section, teaching, student, name) in groups]
            for x, name in enumerate(present):
                score = estimate(avg_at_k(groups[section, teaching, student, name]))
                errors = [[score.mean - score.low], [score.high - score.mean]]
                axis.bar(x, score.mean, color=COLOURS[name], yerr=errors, capsize=2, error_kw={"linewidth": 0.8})
            before = [row for row in groups[section, teaching, student, present[0]] if row["before"]]
            if before:
                axis.axhline(avg_at_k(before, "before").mean(), color="black", linewidth=0.8, linestyle="--")
            axis.set_xticks(range(len(present)), present, rotation=60, ha="right", fontsize=7)
            axis.set_title(setting_name(teaching, student), fontsize=9)
        axes[0].set_ylabel("avg@8 (dashed: before)")
        _save(figure, path)
        return True

    return draw


def catch_up_plot(groups: Groups, path: Path) -> bool:
    """Draw avg@8 by generated tokens of the best baseline and `trd`; return False without four rounds of both."""
    found = {setting: curves(groups, *setting) for setting in SETTINGS}
    complete = {setting: both for setting, both in found.items() if len(both) == 2}
    if not complete:
        return False
    figure, axes = _panels(len(complete))
    for axis, (setting, both) in zip(axes, complete.items(), strict=True):
        for name, curve in both.items():
            axis.plot(curve.tokens_R / 1000, curve.means, marker="o", markersize=3, color=COLOURS[name], label=name)
        axis.legend(fontsize=7, loc="lower right")
        axis.set_title(setting_name(*setting), fontsize=9)
        axis.set_xlabel("generated tokens, thousands", fontsize=8)
    axes[0].set_ylabel("avg@8 after each round")
    _save(figure, path)
    return True


def fragmented_plot(groups: Groups, path: Path) -> bool:
    """Draw the mass on the correction's first token by the distance from where y_o and y_r diverge."""
    reports = {setting: diagnosis(groups, *setting) for setting in SETTINGS}
    reports = {setting: report for setting, report in reports.items() if report is not None}
    if not reports:
        return False
    figure, axes = _panels(1)
    for setting, report in reports.items():
        points = [p for p in report["parting"]["correction_by_token"] if p["mass"] is not None]
        distances, masses = [p["distance"] for p in points], [p["mass"] for p in points]
        axes[0].plot(distances, masses, marker="o", markersize=3, label=setting_name(*setting))
    axes[0].legend(fontsize=7)
    axes[0].set_xlabel("tokens of y_o after the divergence", fontsize=8)
    axes[0].set_ylabel("teacher's mass")
    _save(figure, path)
    return True


def _panels(number: int) -> tuple[Figure, list[Axes]]:
    figure = Figure(figsize=(2.6 * max(number, 2) + 0.6, 3.2))  # not pyplot's, which keeps every figure
    return figure, list(figure.subplots(1, number, sharey=True, squeeze=False)[0])


def _save(figure: Figure, path: Path) -> None:
    figure.tight_layout()
    figure.savefig(path, format="svg", metadata={"Date": None})
