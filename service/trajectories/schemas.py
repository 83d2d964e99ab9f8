"""Trajectories as the API shows them."""

from __future__ import annotations

from itertools import takewhile
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict

from contract.tables import Trajectory
from contract.trajectory_outcome import Outcome


class TokenKl(BaseModel):
    """Forward KL of teacher and student at each token, in nats; null where it is not finite."""

    initial: list[float | None]
    """Along the rollout y_o."""
    refined: list[float | None] | None
    """Along the refinement y_r."""


class TrajectoryView(BaseModel):
    """A rollout, its refinement where there is one, and what the verifier says of both."""

    model_config = ConfigDict(use_attribute_docstrings=True, from_attributes=True)

    object: Literal["trajectory"] = "trajectory"
    id: str
    """``round:position``, for ``after``."""
    round: int
    position: int
    problem_id: str
    sample: int
    outcome: Outcome
    prompt: str
    answer: str
    rollout: str
    """y_o, what the student wrote."""
    refined: str | None
    """y_r, what the teacher made of it."""
    parts_at: int | None
    """Characters that rollout and refinement begin with alike; null without a refinement."""
    parts_at_token: int | None
    """Tokens that both begin with alike."""
    rollout_correct: bool
    refined_correct: bool | None
    rollout_tokens: int
    refined_tokens: int | None
    detail: dict[str, Any]
    per_token_kl: TokenKl | None
    """With ``per_token_kl=true``, of the trajectories that the round's diagnosis took in; else null."""


class OutcomeCount(BaseModel):
    """How many trajectories of a round had an outcome."""

    object: Literal["outcome_count"] = "outcome_count"
    round: int
    outcome: Outcome
    num_trajectories: int


_SAME_NAMES = (
    "round",
    "position",
    "problem_id",
    "sample",
    "prompt",
    "answer",
    "rollout",
    "refined",
    "rollout_correct",
    "refined_correct",
    "rollout_tokens",
    "refined_tokens",
    "parts_at_token",
    "detail",
)


def trajectory_view(row: Trajectory, *, with_token_kl: bool = False) -> TrajectoryView:
    """A row as the API shows it."""
    kl = row.token_kl if with_token_kl else None
    return TrajectoryView(
        id=f"{row.round}:{row.position}",
        outcome=Outcome(row.outcome),
        parts_at=_num_alike(row.rollout, row.refined) if row.refined is not None else None,
        per_token_kl=TokenKl.model_validate(kl) if kl is not None else None,
        **{name: getattr(row, name) for name in _SAME_NAMES},
    )


def _num_alike(rollout: str, refined: str) -> int:
    return sum(1 for _ in takewhile(lambda pair: pair[0] == pair[1], zip(rollout, refined, strict=False)))
