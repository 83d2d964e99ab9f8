"""The size of a job before it runs: steps as the engine plans them, and upper bounds on tokens."""

from __future__ import annotations

import math
from dataclasses import dataclass

from trd_estimate.spec import RunSpec


@dataclass(frozen=True)
class Counts:
    """Counts of a whole run. Token counts are upper bounds: every completion as long as its budget."""

    num_problems: int
    num_heldout: int
    num_trajectories: int
    num_steps: int
    num_evaluations: int
    num_trained_trajectories: int
    num_evaluation_samples: int
    max_rollout_tokens: int
    max_refined_tokens: int
    max_trained_tokens: int
    max_evaluation_tokens: int


def count(spec: RunSpec, num_problems: int, num_heldout: int, num_evaluation_problems: int | None) -> Counts:
    """Return the counts for `num_problems` rows, of which `num_heldout` are held out.

    `num_evaluation_problems` is the size of a separate dataset; None evaluates on what is held out.
    """
    num_evaluated = num_heldout if num_evaluation_problems is None else num_evaluation_problems
    num_trajectories, num_steps = _plan(spec, num_problems - num_heldout)
    num_evaluations = _num_evaluations(spec, num_steps) if num_evaluated else 0
    max_new = spec.refine.max_new_tokens if spec.refines else spec.sampling.max_new_tokens
    num_trained = min(num_trajectories * spec.optim.epochs, num_steps * spec.optim.batch_size)
    num_samples = num_evaluated * num_evaluations * spec.evaluation.k
    return Counts(
        num_problems=num_problems,
        num_heldout=num_heldout,
        num_trajectories=num_trajectories,
        num_steps=num_steps,
        num_evaluations=num_evaluations,
        num_trained_trajectories=num_trained,
        num_evaluation_samples=num_samples,
        max_rollout_tokens=num_trajectories * spec.sampling.max_new_tokens,
        max_refined_tokens=num_trajectories * spec.refine.max_new_tokens if spec.refines else 0,
        max_trained_tokens=num_trained * max_new,
        max_evaluation_tokens=num_samples * spec.sampling.max_new_tokens,
    )


def _plan(spec: RunSpec, num_problems: int) -> tuple[int, int]:
    """Return (trajectories, steps): the problems are divided among the rounds; max_steps cuts from the last ones."""
    optim = spec.optim
    trajectories = steps = 0
    for number in range(spec.rounds):
        in_round = num_problems * (number + 1) // spec.rounds - num_problems * number // spec.rounds
        steps_left = math.inf if optim.max_steps is None else optim.max_steps - steps
        if steps_left < math.inf:
            in_epoch = math.ceil(steps_left / optim.epochs)
            in_round = min(in_round, math.ceil(in_epoch * optim.batch_size / spec.samples_per_prompt))
        sampled = in_round * spec.samples_per_prompt
        in_round_steps = int(min(optim.epochs * math.ceil(sampled / optim.batch_size), steps_left))
        if in_round_steps > 0:  # the engine leaves out a round without a step
            trajectories += sampled
            steps += in_round_steps
    return trajectories, steps


def _num_evaluations(spec: RunSpec, num_steps: int) -> int:
    """Count the evaluations: before training, at its end, and every `every_steps` steps in between."""
    between = (num_steps - 1) // spec.evaluation.every_steps if spec.evaluation.every_steps else 0
    return 2 + between
