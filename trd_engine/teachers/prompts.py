"""What the teacher reads before a completion: to refine it, or to score it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from trd_data.prompts import BuiltPrompt, PromptBuilder
from trd_engine.types import Trajectory

TeacherContext = Literal["vanilla", "refine"]


@dataclass(frozen=True)
class TeacherPrompts:
    """Builds the prompts of one run's teacher."""

    builder: PromptBuilder
    """Renders in the teacher's chat template."""
    is_privileged: bool
    """True if the teacher reads the reference solution y*."""
    max_tokens: int
    """Limit of a prompt that holds an attempt or a reference; their tails are cut to fit."""

    def refine(self, trajectory: Trajectory) -> BuiltPrompt:
        """Return the prompt that asks for y_r, given y_o. It may exceed `max_tokens` if nothing is left to cut."""
        return self.builder.refine(
            trajectory.problem, trajectory.rollout.text, privileged=self.is_privileged, max_tokens=self.max_tokens
        )

    def scoring(self, trajectory: Trajectory, context: TeacherContext) -> Sequence[int]:
        """Return the prompt after which the teacher scores a completion: x (and y*), or the refining prompt."""
        if context == "refine":
            assert trajectory.refine_prompt_token_ids is not None, "the config allows context refine in mode trd only"
            return trajectory.refine_prompt_token_ids
        if self.is_privileged:
            return self.builder.privileged(trajectory.problem, max_tokens=self.max_tokens).token_ids
        return self.builder.solve(trajectory.problem)
