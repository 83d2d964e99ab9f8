"""The report's plots, as SVG files without dates, so that the same rows give the same bytes."""

from __future__ import annotations

from pathlib import Path

import matplotlib
from matplotlib.figure import Figure

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


def score_plot(groups: Groups, section: str, path: Path) -> bool:
    """avg@8 of the five variants in each setting with intervals, and the student before; False without rows."""
    settings = [s for s in SETTINGS if any(key[0] == section and key[1:3] == s for key in groups)]
    if not settings:
        return False
    figure = Figure(figsize=(2.6 * len(settings) + 0.6, 3.2))  # not pyplot's, which keeps every figure
    axes = figure.subplots(1, len(settings), sharey=True, squeeze=False)
    for axis, (teaching, student) in zip(axes[0], settings, strict=True):
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
    axes[0][0].set_ylabel("avg@8 (dashed: before)")
    figure.tight_layout()
    figure.savefig(path, format="svg", metadata={"Date": None})
    return True
