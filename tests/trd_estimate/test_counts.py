from __future__ import annotations

from typing import Any

import pytest

from contract.job_spec import JobSpec
from service.jobs.forecast import counts_of
from trd_engine.config import parse_config
from trd_engine.training.plan import plan_run
from trd_engine.types import Problem
from trd_estimate.counts import Counts


def estimate(spec: JobSpec, num_problems: int, num_evaluation_problems: int | None) -> Counts:
    counts = counts_of(spec, num_problems, num_evaluation_problems)
    assert counts is not None
    return counts


def spec(**changes: Any) -> JobSpec:
    body: dict[str, Any] = {
        "mode": "trd",
        "student": "S",
        "teacher": "T",
        "dataset": "ds_1",
        "sampling": {"max_new_tokens": 100},
        "refine": {"max_new_tokens": 50},
        "evaluation": {"holdout": 0.0},
    }
    return JobSpec.model_validate({**body, **changes}).resolved()


PLANS: list[dict[str, Any]] = [
    {"optim": {"batch_size": 32}},
    {"optim": {"batch_size": 7, "epochs": 3}, "rounds": 4},
    {"optim": {"batch_size": 32, "max_steps": 5}, "rounds": 3},
    {"optim": {"batch_size": 16, "epochs": 2, "max_steps": 7}, "samples_per_prompt": 3, "rounds": 2},
    {"optim": {"batch_size": 1000}, "rounds": 1000},
]


@pytest.mark.parametrize(("num_problems", "num_heldout"), [(2, 1), (1_000, 20), (40_315, 64)])
def test_by_default_few_problems_are_held_out(num_problems: int, num_heldout: int) -> None:
    assert estimate(spec(evaluation={}), num_problems, None).num_heldout == num_heldout
    assert estimate(spec(evaluation={"holdout": 0.02}), 40_315, None).num_heldout == 806


@pytest.mark.parametrize("changes", PLANS)
@pytest.mark.parametrize("num_problems", [1, 10, 333])
def test_steps_are_those_the_engine_plans(changes: dict[str, Any], num_problems: int) -> None:
    document = {"mode": "trd", "student": "S", "teacher": "T", "dataset": {"path": "x"}, **changes}
    problems = [Problem(str(i), str(i), "") for i in range(num_problems)]
    plan = plan_run(problems, parse_config(document))
    expected = estimate(spec(**changes), num_problems, None)
    assert expected.num_steps == plan.num_steps
    assert expected.num_trajectories == sum(r.num_trajectories for r in plan.rounds)


def test_tokens_are_upper_bounds() -> None:
    assert estimate(
        spec(evaluation={"holdout": 0.1, "k": 4, "every_steps": 1}, optim={"batch_size": 10, "epochs": 2}), 100, None
    ) == Counts(
        num_problems=100,
        num_heldout=10,
        num_trajectories=90,
        num_steps=18,
        num_evaluations=19,
        num_trained_trajectories=2 * 90,
        num_evaluation_samples=10 * 19 * 4,
        max_rollout_tokens=9000,
        max_refined_tokens=4500,
        max_trained_tokens=2 * 90 * 50,
        max_evaluation_tokens=10 * 19 * 4 * 100,
    )


def test_without_refinement_the_rollout_is_trained_on() -> None:
    expected = estimate(spec(mode="opd"), 10, None)
    assert expected.max_refined_tokens == 0
    assert expected.max_trained_tokens == 1000
    assert expected.num_evaluations == 0


def test_problems_to_evaluate_on_may_be_others() -> None:
    expected = estimate(spec(evaluation={"dataset": "ds_2", "k": 2}), 10, 30)
    assert expected.num_heldout == 0
    assert expected.max_evaluation_tokens == 30 * 2 * 2 * 100
