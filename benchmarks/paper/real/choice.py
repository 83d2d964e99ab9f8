"""The choice of the task: the score of each candidate's warmed-up student, and the chosen tasks."""

from __future__ import annotations

from collections.abc import Sequence

from benchmarks.paper.real.grid import WARM_UP, WARM_UP_BATCH_SIZE, K
from benchmarks.paper.real.tasks import CANDIDATES, SIZES
from benchmarks.paper.rows import Row
from benchmarks.paper.summary import avg_at_k

RANGE = (0.10, 0.60)
NUM_SHOWN = 70
"""Number of characters of a sample in the table."""


def choose(rows: Sequence[Row], limit: int) -> list[str]:
    """Return at most `limit` candidates in range, of different generators, the nearest to the middle first."""
    middle = sum(RANGE) / 2
    scores = {task: share for task, (_, share) in _scores(rows).items() if RANGE[0] <= share <= RANGE[1]}
    best: dict[str, str] = {}
    for task in sorted(scores, key=lambda task: abs(scores[task] - middle)):
        best.setdefault(CANDIDATES[task].generator, task)
    return list(best.values())[:limit]


def page(rows: Sequence[Row], chosen: Sequence[str], model_name: str) -> list[str]:
    """Return the Markdown table, with the chosen candidates in bold."""
    low, high = (f"{100 * share:.0f}" for share in RANGE)
    lines = [
        f"# What {model_name} solves",
        "",
        "Written by `python -m benchmarks.paper.real --choose-tasks`. The model as it comes hardly ever puts its",
        "answer where a verifier looks: tried by hand, 39 settings of generators under the built-in prompt gave",
        "nothing right in 16 samples each, and some ten other wordings, worked examples among them, no answer tags at",
        f"all. So the model is first warmed up: cross-entropy on {SIZES['warm_up']} reference solutions,",
        f"{SIZES['warm_up'] // WARM_UP_BATCH_SIZE} steps. Scored on {SIZES['search']} problems, {K['search']} samples",
        "each; neither these nor the warm-up's are used again. Of the candidates with",
        f"{low} to {high} % after the warm-up the one nearest to the middle is taken (bold).",
        "",
        "| candidate | settings | as it comes | warmed up | a sample as it comes | and warmed up |",
        "|---|---|---|---|---|---|",
    ]
    samples = {row["cell"]["task"]: row["samples"] for row in rows if row["cell"]["section"] == WARM_UP}
    for task, (before, after) in _scores(rows).items():
        settings = ", ".join(f"{key} {value}" for key, value in CANDIDATES[task].parameters.items())
        escaped = (text.replace("\n", "⏎").replace("|", "\\|").replace("`", "'")[:NUM_SHOWN] for text in samples[task])
        shown = " | ".join(f"`{text}`" for text in escaped)
        name = f"**{task}**" if task in chosen else task
        lines.append(f"| {name} | {settings} | {100 * before:.0f} % | {100 * after:.0f} % | {shown} |")
    return lines


def _scores(rows: Sequence[Row]) -> dict[str, tuple[float, float]]:
    """Return avg@k before and after the warm-up by task."""
    warm_ups = [row for row in rows if row["cell"]["section"] == WARM_UP]
    means = {
        row["cell"]["task"]: [float(avg_at_k([row], when).mean()) for when in ("before", "after")] for row in warm_ups
    }
    return {task: (before, after) for task, (before, after) in means.items()}
