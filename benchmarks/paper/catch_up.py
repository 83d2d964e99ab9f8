"""When does the best baseline catch up with `trd`? Scores along four rounds, by what they cost.

A round's cost is the number of generated tokens, or its duration in seconds (of runs without other load). Between
rounds a problem's score is interpolated linearly.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from benchmarks.paper.rows import Row
from benchmarks.paper.summary import Estimate, Scores, avg_at_k, difference, mean_of
from benchmarks.paper.tables import SETTINGS, Groups, best_baseline, setting_name, table_or_missing

TRAINING_PHASES = ("rollout", "refining", "training")
"""Evaluations and checkpoints are not part of the method's cost."""


@dataclass(frozen=True)
class Curve:
    """One variant's scores by round: the start and R rounds."""

    scores_RSP: NDArray[np.float64]
    """[1 + R, S, P]: one score per seed and problem; the untrained student is first."""
    tokens_R: NDArray[np.float64]
    """[1 + R]: tokens generated so far, mean over the seeds."""

    @property
    def means(self) -> NDArray[np.float64]:
        """[1 + R]: avg@k."""
        return self.scores_RSP.mean(axis=(1, 2))

    def at(self, cost: float, costs_R: NDArray[np.float64]) -> Scores:
        """Return the scores [S, P] at `cost`; `costs_R` [1 + R] is the cumulative cost of the rounds."""
        index = int(np.clip(np.searchsorted(costs_R, cost), 1, len(costs_R) - 1))
        share = min(1.0, (cost - costs_R[index - 1]) / (costs_R[index] - costs_R[index - 1]))
        blended: Scores = (1 - share) * self.scores_RSP[index - 1] + share * self.scores_RSP[index]
        return blended


def curve_of(rows: Sequence[Row]) -> Curve:
    """Return the curve of one variant from its rows, one per seed; the first has the untrained student's score."""
    num_rounds = len(rows[0]["curve"])
    start_SP = np.repeat(avg_at_k(rows[:1], "before"), len(rows), axis=0)
    rounds = [avg_at_k([{"after": row["curve"][r]} for row in rows]) for r in range(num_rounds)]
    generated = [np.add(row["sampled_tokens"]["rollout"], row["sampled_tokens"]["refined"]) for row in rows]
    return Curve(np.stack([start_SP, *rounds]), np.concatenate([[0], np.cumsum(np.mean(generated, axis=0))]))


def curves(groups: Groups, teaching: str, student: str) -> dict[str, Curve]:
    """Return the curves of the best baseline and `trd`, if they were run."""
    best = best_baseline(groups, "rounds", teaching, student)
    names = [name for name in (best, "trd") if name and ("rounds", teaching, student, name) in groups]
    return {name: curve_of(groups["rounds", teaching, student, name]) for name in names}


def catch_up_table(groups: Groups) -> list[str]:
    """Return the table of scores after each round, with the paired differences at equal cost."""
    lines = []
    for teaching, student in SETTINGS:
        found = curves(groups, teaching, student)
        if len(found) == 2:
            lines += _setting_lines(groups, teaching, student, found)
    return table_or_missing(
        "| setting | variant | before | 1 | 2 | 3 | 4 | tokens a round | `trd` less baseline: as many tokens as "
        "`trd`'s 1st round | as many as the baseline's 4 | as many seconds as `trd`'s 1st | as the baseline's 4 |",
        lines,
    )


def gains_at_equal_tokens(groups: Groups) -> list[tuple[str, Estimate]]:
    """Return `trd` minus the best baseline by setting, at the tokens that the baseline generates in all rounds."""
    gains = []
    for teaching, student in SETTINGS:
        found = curves(groups, teaching, student)
        if len(found) == 2:
            baseline, trd = found.values()
            estimate = _at_equal_cost(trd, baseline, trd.tokens_R, baseline.tokens_R)[1]
            gains.append((setting_name(teaching, student), estimate))
    return gains


def _setting_lines(groups: Groups, teaching: str, student: str, found: dict[str, Curve]) -> list[str]:
    lines = []
    (best, baseline), (_, trd) = found.items()
    by_tokens = _at_equal_cost(trd, baseline, trd.tokens_R, baseline.tokens_R)
    seconds = [_seconds(groups, teaching, student, name, found[name]) for name in (best, "trd")]
    by_seconds = ["", ""]
    if seconds[0] is not None and seconds[1] is not None:
        by_seconds = _at_equal_cost(trd, baseline, seconds[1], seconds[0])
    for name, curve in found.items():
        means = " | ".join(f"{100 * mean:.1f}" for mean in curve.means)
        compared = [*by_tokens, *by_seconds] if name == "trd" else [""] * 4
        cells = " | ".join(str(each) for each in compared)
        tokens = f"{curve.tokens_R[-1] / (len(curve.tokens_R) - 1):,.0f}"
        lines.append(f"| {setting_name(teaching, student)} | {name} | {means} | {tokens} | {cells} |")
    return lines


def _at_equal_cost(
    trd: Curve, baseline: Curve, trd_costs_R: NDArray[np.float64], baseline_costs_R: NDArray[np.float64]
) -> list[Estimate]:
    costs = (trd_costs_R[1], min(baseline_costs_R[-1], trd_costs_R[-1]))
    return [difference(trd.at(cost, trd_costs_R), baseline.at(cost, baseline_costs_R)) for cost in costs]


def _seconds(groups: Groups, teaching: str, student: str, variant: str, curve: Curve) -> NDArray[np.float64] | None:
    """Return the cumulative seconds [1 + R], extrapolated from one undisturbed round; None if none was timed."""
    timed = groups.get(("timing", teaching, student, variant))
    if timed is None:
        return None
    a_round = mean_of(timed, lambda row: sum(row["seconds_by_phase"].get(phase, 0.0) for phase in TRAINING_PHASES))
    return a_round * np.arange(len(curve.tokens_R), dtype=np.float64)
