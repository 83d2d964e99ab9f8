r"""Tasks `exact` and `choice`: the answer must be the reference answer, character by character, or the letter of an
option."""

from __future__ import annotations

from trd_data.answers import chosen_letter, last_boxed, reference_letter
from trd_data.templates import CHOICE, EXACT
from trd_engine.tasks.protocol import Task
from trd_engine.types import Problem, Verdict


class ExactTask(Task):
    r"""Compares the content of the last ``\boxed{}``, or the whole text if there is no box at all."""

    name = "exact"
    prompts = EXACT

    def verify(self, problem: Problem, completion_text: str) -> Verdict:
        """Correct if the answers are equal except for space around them."""
        answer = last_boxed(completion_text) if "\\boxed" in completion_text else completion_text.strip()
        if not answer:
            return Verdict(False, "no answer")
        return Verdict(answer == problem.answer.strip(), answer)


class ChoiceTask(Task):
    r"""Takes the letter in the last box, else the last called the answer, then option, else a lone last line."""

    name = "choice"
    prompts = CHOICE

    def verify(self, problem: Problem, completion_text: str) -> Verdict:
        """Correct if the letters are the same."""
        letter = chosen_letter(completion_text)
        if letter is None:
            return Verdict(False, "no answer")
        return Verdict(letter == reference_letter(problem.answer), letter)
