"""How long a job will take, from similar jobs."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from statistics import median

from trd_estimate.counts import Counts

NUM_LIKE = 5
"""Number of similar jobs that are used, the newest ones."""


@dataclass(frozen=True)
class PastRun:
    """What a like job that succeeded in one attempt did."""

    num_trajectories: int
    num_trained: int
    """Trajectories that went through optimizer steps, each as often as it did."""
    num_evaluated: int
    """Samples of all evaluations."""
    seconds_by_phase: dict[str, float]


def seconds_like(expected: Counts, past: Sequence[PastRun]) -> dict[str, float]:
    """Return each phase's time: medians over similar jobs of the seconds of its unit; empty without a similar job."""
    ours = _units(expected.num_trajectories, expected.num_trained_trajectories, expected.num_evaluation_samples)
    rates: dict[str, list[float]] = {}
    for run in past:
        theirs = _units(run.num_trajectories, run.num_trained, run.num_evaluated)
        for phase, seconds in run.seconds_by_phase.items():
            if (num := theirs.get(phase, 1)) > 0:
                rates.setdefault(phase, []).append(seconds / num)
    return {phase: round(median(found) * ours.get(phase, 1), 3) for phase, found in rates.items()}


def _units(num_trajectories: int, num_trained: int, num_evaluated: int) -> dict[str, int]:
    """What a phase's time grows with; the others take their time once a run."""
    return {
        "rollout": num_trajectories,
        "refining": num_trajectories,
        "training": num_trained,
        "evaluating": num_evaluated,
    }
