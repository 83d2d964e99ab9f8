"""What refining made of a rollout, by the verifier's verdicts."""

from __future__ import annotations

from enum import StrEnum


class Outcome(StrEnum):
    """The verdict on y_o, then the one on y_r; without refinement only the first half."""

    FAIL_TO_PASS = "fail_to_pass"
    PASS_TO_FAIL = "pass_to_fail"
    BOTH_RIGHT = "both_right"
    BOTH_WRONG = "both_wrong"
    RIGHT = "right"
    WRONG = "wrong"


def outcome(rollout_correct: bool, refined_correct: bool | None) -> Outcome:
    """Return the outcome of one trajectory; `refined_correct` is None if nothing was refined."""
    if refined_correct is None:
        return Outcome.RIGHT if rollout_correct else Outcome.WRONG
    if rollout_correct:
        return Outcome.BOTH_RIGHT if refined_correct else Outcome.PASS_TO_FAIL
    return Outcome.FAIL_TO_PASS if refined_correct else Outcome.BOTH_WRONG
