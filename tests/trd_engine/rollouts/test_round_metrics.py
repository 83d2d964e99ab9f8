"""What a round's verdicts come to."""

from __future__ import annotations

from array import array

import pytest

from trd_engine.rollouts.files import trajectory_from_json, trajectory_to_json
from trd_engine.rollouts.metrics import RolloutFacts, rollout_notices, round_metrics
from trd_engine.tasks.registry import load_task
from trd_engine.types import Completion, Problem, Trajectory, Verdict

PROBLEM = Problem("p", "?", "7")
TEXT = Completion(array("i", [1, 2]), "so", "stop")
PROMPT = array("i", [1])
RIGHT, WRONG = Verdict(True, "7"), Verdict(False, "8")
ERROR, TIME_OUT = Verdict(False, "error: TypeError: x", "error"), Verdict(False, "time-out", "time-out")


def trajectory(before: Verdict, after: Verdict | None = None) -> Trajectory:
    if after is None:
        return Trajectory(PROBLEM, 0, PROMPT, TEXT, before)
    return Trajectory(PROBLEM, 0, PROMPT, TEXT, before, PROMPT, TEXT, after)


def test_verdicts_that_failed_are_shares_of_all_verdicts() -> None:
    round_ = [trajectory(ERROR, RIGHT), trajectory(TIME_OUT, ERROR), trajectory(WRONG), trajectory(RIGHT, ERROR)]
    metrics = round_metrics(round_)
    assert metrics["verifier_error_share"] == pytest.approx(3 / 7)
    assert metrics["verifier_timeout_share"] == pytest.approx(1 / 7)
    assert metrics["rollout_accuracy"] == 0.25


def test_a_round_without_failures_says_so() -> None:
    metrics = round_metrics([trajectory(RIGHT), trajectory(WRONG)])
    assert (metrics["verifier_error_share"], metrics["verifier_timeout_share"]) == (0.0, 0.0)


def test_an_answer_that_spells_a_failure_is_none() -> None:
    for answer in ("time-out", "error: x"):
        assert load_task("exact").verify(PROBLEM, f"\\boxed{{{answer}}}").failure is None


@pytest.mark.parametrize("of", [trajectory(ERROR), trajectory(TIME_OUT, ERROR), trajectory(RIGHT, WRONG)])
def test_failures_survive_the_trajectory_file(of: Trajectory) -> None:
    line = trajectory_to_json(0, of, "")
    assert trajectory_from_json(line, {"p": PROBLEM}) == of


def test_a_trajectory_file_from_before_they_were_kept_is_read() -> None:
    line = trajectory_to_json(0, trajectory(ERROR, TIME_OUT), "")
    for name in ("rollout_verdict_failure", "refined_verdict_failure"):
        del line["detail"][name]
    read = trajectory_from_json(line, {"p": PROBLEM})
    assert read.refined_verdict is not None
    assert (read.rollout_verdict.failure, read.refined_verdict.failure) == (None, None)
    assert read.rollout_verdict.detail == ERROR.detail


def test_a_rollout_without_a_request_to_refine_is_no_refinement() -> None:
    left_out = Trajectory(PROBLEM, 0, PROMPT, TEXT, RIGHT, PROMPT, Completion(array("i"), "", "length"), None)
    metrics = round_metrics([left_out, trajectory(WRONG, RIGHT)])
    assert (metrics["pass_to_fail"], metrics["fail_to_pass"], metrics["refined_truncated_share"]) == (0.0, 1.0, 0.0)
    assert metrics["rollout_accuracy"] == 0.5
    read = trajectory_from_json(trajectory_to_json(0, left_out, ""), {"p": PROBLEM})
    assert (read.refined, read.refined_verdict) == (left_out.refined, None)
    assert "refined_accuracy" not in round_metrics([left_out])


def rollouts(texts: list[str], *, reason: str = "stop", num_problems: int | None = None) -> list[RolloutFacts]:
    problems = [Problem(f"p{i % (num_problems or len(texts))}", "?", "7") for i in range(len(texts))]
    return [
        RolloutFacts.of(Trajectory(problem, 0, (1,), Completion((1,), text, reason)))  # type: ignore[arg-type]
        for problem, text in zip(problems, texts, strict=True)
    ]


DIFFERENT = [f"it is {i}" for i in range(40)]


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        (rollouts(DIFFERENT, reason="length"), [("rollouts_cut", 40)]),
        (rollouts(DIFFERENT[:36], reason="length") + rollouts(DIFFERENT[:4]), [("rollouts_cut", 36)]),
        (rollouts(DIFFERENT[:35], reason="length") + rollouts(DIFFERENT[:5]), []),
        (rollouts(DIFFERENT[:4], reason="length"), [("rollouts_cut", 4)]),
        (rollouts(DIFFERENT[:3], reason="length"), []),
        (rollouts(DIFFERENT[:18], reason="length") + rollouts(["x"]), []),
        (rollouts([" \n"] * 8), [("rollouts_empty", 8)]),
        (rollouts([""] * 8, reason="length"), [("rollouts_cut", 8), ("rollouts_empty", 8)]),
        (rollouts(["the same "] * 8), [("rollouts_equal", 8)]),
        (rollouts(["the same"] * 7), []),
        (rollouts(["the same"] * 16, num_problems=2), []),
        (rollouts(["the same"] * 38 + ["other", "another"]), [("rollouts_equal", 38)]),
        (rollouts(["A", "B"] * 20), []),
        ([], []),
    ],
)
def test_a_first_round_that_is_cut_empty_or_equal_is_noticed(
    given: list[RolloutFacts], expected: list[tuple[str, int]]
) -> None:
    found = rollout_notices(given, 24)
    assert [(notice.code, notice.count) for notice in found] == expected
    assert all(notice.remedy and notice.message.startswith(f"{notice.count} of {len(given)} ") for notice in found)
