"""Trajectories: rollouts, their refinements and the verdicts."""

from __future__ import annotations

from typing import Any, Literal

from contract.trajectory_outcome import Outcome
from contract.views import OpenEnum, View


class TokenKl(View):
    """Forward KL of teacher and student at each token, in nats; null if it is not finite."""

    rollout: list[float | None]
    """Along the rollout y_o."""
    refined: list[float | None] | None
    """Along the refinement y_r."""


class TrajectoryView(View):
    """A rollout, its refinement if there is one, and the verifier's verdicts on both."""

    object: Literal["trajectory"] = "trajectory"
    id: str
    """``round:position``, for ``after``."""
    round: int
    position: int
    problem_id: str
    sample: int
    outcome: OpenEnum[Outcome]
    prompt: str
    answer: str
    rollout: str
    """y_o, what the student wrote."""
    refined: str | None
    """y_r, the rollout as revised under the teacher's guidance."""
    parts_at: int | None
    """Length in characters of the common prefix of rollout and refinement; null without a refinement."""
    parts_at_token: int | None
    """Length in tokens of the common prefix."""
    rollout_correct: bool
    refined_correct: bool | None
    rollout_tokens: int
    refined_tokens: int | None
    detail: dict[str, Any]
    per_token_kl: TokenKl | None
    """With ``per_token_kl=true``, for the trajectories in the round's diagnosis; otherwise null."""


class OutcomeCount(View):
    """How many trajectories of a round had an outcome."""

    object: Literal["outcome_count"] = "outcome_count"
    round: int
    outcome: OpenEnum[Outcome]
    num_trajectories: int
