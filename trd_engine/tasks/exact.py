r"""Task `exact`: the answer must be the reference answer, character by character."""

from __future__ import annotations

from trd_data.answers import last_boxed
from trd_data.templates import EXACT, PromptTemplates
from trd_engine.tasks.protocol import Task
from trd_engine.types import Problem, Verdict


class ExactTask(Task):
    r"""Compares the content of the last ``\boxed{}``, or the whole text if there is no box at all."""

    name = "exact"

    @property
    def prompts(self) -> PromptTemplates:
        """Ask for a boxed answer."""
        return EXACT

    def verify(self, problem: Problem, completion_text: str) -> Verdict:
        """Correct if the answers are equal except for space around them."""
        answer = last_boxed(completion_text) if "\\boxed" in completion_text else completion_text.strip()
        if not answer:
            return Verdict(False, "no answer")
        return Verdict(answer == problem.answer.strip(), answer)
