r"""Task `choice`: the answer is the letter of an option."""

from __future__ import annotations

from trd_data.answers import chosen_letter, reference_letter
from trd_data.templates import CHOICE, PromptTemplates
from trd_engine.tasks.protocol import Task
from trd_engine.types import Problem, Verdict


class ChoiceTask(Task):
    r"""Takes the letter in the last box, else the last called the answer, then option, else a lone last line."""

    name = "choice"

    @property
    def prompts(self) -> PromptTemplates:
        """Ask for a boxed letter."""
        return CHOICE

    def verify(self, problem: Problem, completion_text: str) -> Verdict:
        """Correct if the letters are the same."""
        letter = chosen_letter(completion_text)
        if letter is None:
            return Verdict(False, "no answer")
        return Verdict(letter == reference_letter(problem.answer), letter)
