"""What a run will do, worked out before it starts: which problems in which round, and how many steps."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from trd_engine.config import EvaluationConfig, RunConfig
from trd_engine.runtime.errors import NoTrainingDataError
from trd_engine.runtime.seeds import shuffled
from trd_engine.types import Problem, Trajectory


@dataclass(frozen=True)
class RoundPlan:
    """One collection of rollouts and the steps on it."""

    problems: tuple[Problem, ...]
    num_trajectories: int
    num_steps: int


@dataclass(frozen=True)
class RunPlan:
    """All rounds of a run."""

    rounds: tuple[RoundPlan, ...]

    @property
    def num_steps(self) -> int:
        """Optimizer steps of the whole run."""
        return sum(r.num_steps for r in self.rounds)


def evaluation_is_due(wanted: EvaluationConfig, step: int, num_steps: int) -> bool:
    """Return whether to evaluate: at the end, every `every_steps` steps, and at the baseline if the spec says so."""
    if step == 0:
        return wanted.at_start
    return step == num_steps or (wanted.every_steps is not None and step % wanted.every_steps == 0)


def plan_run(problems: Sequence[Problem], config: RunConfig) -> RunPlan:
    """Divide the problems, shuffled by the seed, among the rounds, as evenly as they go.

    With `optim.max_steps`, steps are cut from the last rounds, and no rollout is planned that no step
    would train on. A round without a problem, or without a step, is left out. The last batch of an epoch
    may be smaller than the others; none is left out.
    """
    order = shuffled(len(problems), config.seed, "division")
    steps_left = config.optim.max_steps if config.optim.max_steps is not None else math.inf
    rounds: list[RoundPlan] = []
    optim, samples = config.optim, config.samples_per_prompt
    for number in range(config.rounds):
        start, stop = (len(order) * (number + i) // config.rounds for i in (0, 1))
        chosen = [problems[i] for i in order[start:stop]]
        if steps_left < math.inf:
            steps_an_epoch = math.ceil(steps_left / optim.epochs)
            chosen = chosen[: math.ceil(steps_an_epoch * optim.batch_size / samples)]
        num_trajectories = len(chosen) * samples
        num_steps = int(min(optim.epochs * math.ceil(num_trajectories / optim.batch_size), steps_left))
        if num_steps > 0:
            rounds.append(RoundPlan(tuple(chosen), num_trajectories, num_steps))
            steps_left -= num_steps
    return RunPlan(tuple(rounds))


def batch_positions(num_kept: int, batch_size: int, seed: int, round_index: int, round_step: int) -> list[int]:
    """Return which of the round's `num_kept` trajectories step number `round_step` (from 0) trains on.

    An epoch takes each once, in its own order; its last batch may be smaller. A pure function of its arguments: a
    resumed run continues with exactly the batch that was next.
    """
    epoch, batch = divmod(round_step, math.ceil(num_kept / batch_size))
    order = shuffled(num_kept, seed, "order", round_index, epoch)
    return order[batch * batch_size : (batch + 1) * batch_size]


def first_steps(
    trajectories: Sequence[Trajectory], config: RunConfig, round_index: int, num_steps: int
) -> dict[int, int]:
    """Return, by position in the round, the first of its `num_steps` steps, from 0, that trains on a trajectory.

    A trajectory that no step of the first epoch trains on is left out, and so are all if none is kept.
    """
    try:
        kept = kept_positions(trajectories, config.refine.keep)
    except NoTrainingDataError:
        return {}
    batch_size = config.optim.batch_size
    return {
        kept[i]: round_step
        for round_step in range(min(num_steps, math.ceil(len(kept) / batch_size)))
        for i in batch_positions(len(kept), batch_size, config.seed, round_index, round_step)
    }


def kept_positions(trajectories: Sequence[Trajectory], keep: Literal["all", "fail_to_pass"]) -> list[int]:
    """Return the positions in the round of the trajectories that are trained on: never one without a token, as a server
    may give.

    Raises `NoTrainingDataError` if `keep` leaves none.
    """
    written = [position for position, t in enumerate(trajectories) if t.target.token_ids]
    if not written:
        raise NoTrainingDataError(
            f"none of the round's {len(trajectories)} targets holds a token: what wrote them ended before its first; "
            "raise refine.max_new_tokens or refine.max_prompt_tokens, or choose another teacher"
        )
    if keep == "all":
        return written
    verdicts = [(i, trajectories[i].rollout_verdict, trajectories[i].refined_verdict) for i in written]
    kept = [i for i, before, after in verdicts if after is not None and after.correct and not before.correct]
    if not kept:
        raise NoTrainingDataError(
            f"refine.keep = {keep}: of the round's {len(trajectories)} rollouts none failed and was corrected, so that "
            'nothing is left to train on; set refine.keep to "all"'
        )
    return kept
