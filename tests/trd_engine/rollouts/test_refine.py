"""Which refined trajectories are trained on."""

from __future__ import annotations

import itertools
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from tests.trd_engine.tiny_runs import WHOLE_ANSWERS, metric, spec, write_data
from trd_engine.config import parse_config
from trd_engine.runtime.errors import NoTrainingDataError, SpecError
from trd_engine.training.loop import distil
from trd_engine.training.plan import kept_positions
from trd_engine.types import Completion, Problem, Trajectory, Verdict

COMPLETION = Completion((1,), "1", "stop")
OUTCOMES = list(itertools.product([False, True], repeat=2))


def trajectory(before: bool, after: bool) -> Trajectory:
    problem = Problem("0", "1", "1")
    return Trajectory(problem, 0, (1,), COMPLETION, Verdict(before), (1,), COMPLETION, Verdict(after))


def test_all_are_kept_by_default_and_only_corrected_ones_on_request() -> None:
    trajectories = [trajectory(before, after) for before, after in OUTCOMES]
    assert kept_positions(trajectories, "all") == [0, 1, 2, 3]
    assert kept_positions(trajectories, "fail_to_pass") == [OUTCOMES.index((False, True))]


def test_a_target_without_a_token_is_not_trained_on() -> None:
    empty = replace(trajectory(False, True), refined=Completion((), "", "length"))
    assert kept_positions([empty, trajectory(False, True)], "all") == [1]
    assert kept_positions([empty, trajectory(False, True)], "fail_to_pass") == [1]
    with pytest.raises(NoTrainingDataError, match=r"none of the round's 1 targets holds a token"):
        kept_positions([empty], "all")


def test_nothing_to_keep_is_an_error_that_says_so() -> None:
    with pytest.raises(NoTrainingDataError, match=r"refine.keep = fail_to_pass.*none failed and was corrected"):
        kept_positions([trajectory(True, True)], "fail_to_pass")


def test_a_run_on_the_corrected_ones_takes_the_steps_of_a_run_on_all(tmp_path: Path) -> None:
    data = write_data(tmp_path, train=16)
    changes: dict[str, Any] = {**WHOLE_ANSWERS, "optim": {"learning_rate": 1e-3, "batch_size": 8}}
    changes |= {"evaluation": {"holdout": 0.0}, "diagnosis": {"num_trajectories": 0}}
    keep = {"refine": {**WHOLE_ANSWERS["refine"], "keep": "fail_to_pass"}}
    distil(parse_config(spec(data, **{**changes, **keep})), tmp_path / "corrected")
    distil(parse_config(spec(data, **changes)), tmp_path / "all")
    assert len(metric(tmp_path / "corrected", "loss")) == len(metric(tmp_path / "all", "loss")) == 2
    assert metric(tmp_path / "corrected", "loss") != metric(tmp_path / "all", "loss")


def test_nothing_is_kept_of_what_is_not_refined(tmp_path: Path) -> None:
    with pytest.raises(SpecError, match=r"refine\.keep = fail_to_pass: mode opd refines nothing"):
        parse_config(spec(tmp_path, mode="opd", loss={}, refine={"keep": "fail_to_pass"}))
