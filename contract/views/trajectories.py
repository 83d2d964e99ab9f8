"""Trajectories: rollouts, their refinements and the verdicts."""

from __future__ import annotations

from datetime import datetime
from enum import StrEnum
from typing import Any, Literal

from pydantic import ConfigDict

from contract.views import OpenEnum, Page, View


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


class TokenKl(View):
    """Forward KL of teacher and student at each token, in nats; null if it is not finite."""

    rollout: list[float | None]
    """Along the rollout y_o."""
    refined: list[float | None] | None
    """Along the refinement y_r."""


class LikelyToken(View):
    """A token that a model would have written with some probability."""

    text: str
    probability: float
    """Probability at temperature 1."""


class Alternatives(View):
    """The likeliest next tokens of both models at one token of a text."""

    token: int
    """Its number, from 0."""
    student: list[LikelyToken]
    teacher: list[LikelyToken]


class TokenText(View):
    """A text token by token."""

    tokens: list[str] | None
    """What each token writes; together they are the text. Null if unknown."""
    kl: list[float | None]
    """Forward KL of teacher and student at each token, in nats; null if it is not finite."""
    alternatives: list[Alternatives] | None
    """Alternatives at the tokens with the largest KL; null if they were not recorded for this trajectory."""


class TokensView(View):
    """A diagnosed trajectory token by token."""

    rollout: TokenText
    refined: TokenText | None
    first_wrong_step: tuple[int, int] | None
    """The first token of the rollout's first wrong step, and the first token after it; null if none was found."""


class Stretch(View):
    """A part of one or of both texts, in an alignment that goes through both from the beginning to the end."""

    op: OpenEnum[Literal["equal", "removed", "added", "replaced"]]
    """What refining did: ``removed`` has a rollout alone, ``added`` a refinement alone."""
    rollout: tuple[int, int]
    """First unit of the rollout, and the first one after the stretch."""
    refined: tuple[int, int]
    """The same of the refinement."""


class AlignmentView(View):
    """The rollout and its refinement, aligned."""

    unit: OpenEnum[Literal["token", "word"]]
    """``token`` if the trajectory was diagnosed, otherwise words, spaces and signs."""
    rollout: list[str]
    """The rollout's units; together they are its text."""
    refined: list[str]
    stretches: list[Stretch]


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
    step: int | None = None
    """The first step that trains on it; null if none does, or if the run did not record it."""
    rollout_correct: bool
    refined_correct: bool | None
    rollout_tokens: int
    refined_tokens: int | None
    detail: dict[str, Any]
    per_token_kl: TokenKl | None
    """With ``per_token_kl=true``, for the trajectories in the round's diagnosis; otherwise null."""


class TrajectoryDetailView(TrajectoryView):
    """One trajectory, on request token by token and aligned."""

    tokens: TokensView | None = None
    """The tokens, with ``tokens=true`` and if the trajectory was diagnosed; otherwise null."""
    alignment: AlignmentView | None = None
    """The alignment, with ``alignment=true`` and if there is a refinement; otherwise null."""


class TrajectoryPage(Page[TrajectoryView]):
    """A page of trajectories."""

    model_config = ConfigDict(use_attribute_docstrings=True)

    searched_to: str | None = None
    """With ``text``: the id of the last trajectory that was searched, if the page ends before the search does. Continue
    after it; a request searches a bounded number of texts, so that the page may even be empty."""
    removed_before: datetime | None = None
    """The retention policy has removed trajectories from before this time; null if it removed none."""


class OutcomeCount(View):
    """How many trajectories of a round had an outcome."""

    object: Literal["outcome_count"] = "outcome_count"
    round: int
    outcome: OpenEnum[Outcome]
    num_trajectories: int


class LengthsView(View):
    """How many trajectories of a round had an outcome, and how many tokens they have."""

    round: int
    outcome: OpenEnum[Outcome]
    num_trajectories: int
    mean_rollout_tokens: float
    max_rollout_tokens: int
    mean_refined_tokens: float | None
    max_refined_tokens: int | None
