"""What a run plans to do."""

from __future__ import annotations

import itertools
from typing import Any

import pytest

from trd_engine.config import RunConfig, parse_config
from trd_engine.training.optim import learning_rate_at
from trd_engine.training.plan import batch_positions, plan_run
from trd_engine.types import Problem

PROBLEMS = [Problem(str(i), f"{i}", "0") for i in range(100)]


def config(**changes: Any) -> RunConfig:
    base = {"mode": "opd", "student": "s", "teacher": "t", "dataset": {"path": "x"}, "optim": {"batch_size": 16}}
    return parse_config({**base, **changes})


def test_rounds_divide_the_problems_and_leave_none_out() -> None:
    plan = plan_run(PROBLEMS, config(rounds=3))
    ids = [problem.id for r in plan.rounds for problem in r.problems]
    assert sorted(ids, key=int) == [p.id for p in PROBLEMS]
    assert [r.num_trajectories for r in plan.rounds] == [33, 33, 34]
    assert plan.num_steps == 9


def test_more_rounds_than_problems_leave_rounds_out_and_no_problem() -> None:
    plan = plan_run(PROBLEMS[:2], config(rounds=5))
    assert [r.num_trajectories for r in plan.rounds] == [1, 1]
    assert plan.num_steps == 2


def test_max_steps_plans_no_rollout_that_is_not_trained_on() -> None:
    plan = plan_run(PROBLEMS, config(rounds=3, optim={"batch_size": 16, "max_steps": 4}))
    assert [r.num_steps for r in plan.rounds] == [3, 1]
    assert [r.num_trajectories for r in plan.rounds] == [33, 16]


@pytest.mark.parametrize("samples", [1, 3])
def test_an_epoch_trains_on_every_trajectory_once(samples: int) -> None:
    settings = config(samples_per_prompt=samples, optim={"batch_size": 16, "epochs": 2})
    (planned,) = plan_run(PROBLEMS, settings).rounds
    batches = [
        batch_positions(planned.num_trajectories, settings.optim.batch_size, settings.seed, 0, step)
        for step in range(planned.num_steps)
    ]
    half = len(batches) // 2
    for epoch in (batches[:half], batches[half:]):
        assert sorted(position for batch in epoch for position in batch) == list(range(100 * samples))
    assert batches[:half] != batches[half:]


def test_the_learning_rate_warms_up_and_ends_at_its_floor() -> None:
    optim = config(optim={"learning_rate": 1.0, "warmup_ratio": 0.1, "min_lr_ratio": 0.1}).optim
    rates = [learning_rate_at(step, 100, optim) for step in range(1, 101)]
    assert rates[:10] == pytest.approx([i / 10 for i in range(1, 11)])
    assert rates[9] == max(rates)
    assert rates[-1] == pytest.approx(0.1)
    assert all(a >= b for a, b in itertools.pairwise(rates[9:]))
