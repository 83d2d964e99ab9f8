"""How long a job will take: from similar jobs, else from a constant that was measured once."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from statistics import median
from typing import Literal

from contract.job_spec import JobSpec
from service.jobs.estimate import Estimate
from service.models.shape import ModelShape

TimeSource = Literal["history", "calibration"]
NUM_LIKE = 5
"""Number of similar jobs that are used, the newest ones."""
SECONDS_PER_SAMPLING_FLOP = 5.0e-10
SECONDS_PER_TRAINING_FLOP = 1.2e-10
"""Measured with the committed small models, one thread of a busy CPU; see docs/estimate.md."""


@dataclass(frozen=True)
class PastRun:
    """What a like job that succeeded in one attempt did."""

    num_trajectories: int
    num_trained: int
    """Trajectories that went through optimizer steps, each as often as it did."""
    num_evaluated: int
    """Samples of all evaluations."""
    seconds_by_phase: dict[str, float]


@dataclass(frozen=True)
class Duration:
    """Of one attempt without a wait in the queue."""

    seconds: float
    seconds_by_phase: dict[str, float]
    time_source: TimeSource
    num_like_jobs: int


def by_history(expected: Estimate, past: Sequence[PastRun]) -> Duration | None:
    """Return medians over similar jobs of the seconds of each phase's unit; None without a similar job."""
    if not past:
        return None
    ours = _units(expected.num_trajectories, expected.num_trained_trajectories, expected.num_evaluation_samples)
    rates: dict[str, list[float]] = {}
    for run in past:
        theirs = _units(run.num_trajectories, run.num_trained, run.num_evaluated)
        for phase, seconds in run.seconds_by_phase.items():
            if (num := theirs.get(phase, 1)) > 0:
                rates.setdefault(phase, []).append(seconds / num)
    phases = {phase: round(median(found) * ours.get(phase, 1), 3) for phase, found in rates.items()}
    return Duration(round(sum(phases.values()), 3), phases, "history", len(past))


def _units(num_trajectories: int, num_trained: int, num_evaluated: int) -> dict[str, int]:
    """What a phase's time grows with; the others take their time once a run."""
    return {
        "rollout": num_trajectories,
        "refining": num_trajectories,
        "training": num_trained,
        "evaluating": num_evaluated,
    }


def by_calibration(spec: JobSpec, expected: Estimate, student: ModelShape, teacher: ModelShape | None) -> Duration:
    """An upper bound: every completion as long as its budget; 2 operations a parameter and token, 6 to train."""
    ours, theirs = student.num_parameters, (teacher or student).num_parameters
    seconds = {
        "rollout": 2 * ours * expected.max_rollout_tokens * SECONDS_PER_SAMPLING_FLOP,
        "refining": 2 * theirs * expected.max_refined_tokens * SECONDS_PER_SAMPLING_FLOP,
        "training": (6 * ours + 2 * theirs) * expected.max_trained_tokens * SECONDS_PER_TRAINING_FLOP,
        "evaluating": 2 * ours * expected.max_evaluation_tokens * SECONDS_PER_SAMPLING_FLOP,
    }
    phases = {phase: round(spent / spec.devices, 3) for phase, spent in seconds.items() if spent}
    return Duration(round(sum(phases.values()), 3), phases, "calibration", 0)
