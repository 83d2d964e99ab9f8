"""A fixed held-out batch, and how far the student is from the teacher on it as training goes on.

The batch is sampled once, from the step-0 student: a yardstick that moves with the student would
measure its own rollouts instead.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass

from trd_engine.distillation.batching import MicroBatch
from trd_engine.distillation.scoring import ScoringSetup, mean_yardstick

MAX_HELDOUT_PROBLEMS = 32
"""Enough for a steady mean over their tokens, and seconds to score."""


@dataclass(frozen=True)
class HeldoutScore:
    """One measurement on the held-out batch."""

    divergence: float
    """`ScoringSetup.yardstick`, nats a trained token."""
    seconds_per_trajectory: float
    """Of both models' forward passes; what the first estimate of a step's time is made from."""


def score_heldout(setup: ScoringSetup, batches: Sequence[MicroBatch], filler: MicroBatch | None) -> HeldoutScore:
    """The student's distance from the teacher on the batch; `batches` and `filler` as in `optimizer_step`."""
    started_at = time.monotonic()
    divergence = mean_yardstick(setup, batches, filler)
    num_trajectories = setup.world.sum(sum(len(batch.positions) for batch in batches))
    return HeldoutScore(divergence, (time.monotonic() - started_at) / num_trajectories)
