"""The interface of tasks: their prompt templates and the verification of answers."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol, runtime_checkable

from trd_data.templates import PromptTemplates as PromptTemplates
from trd_engine.tasks.steps import StepCheck
from trd_engine.types import Problem, Verdict

Pair = tuple[Problem, str]
"""A problem and the text of a completion for it."""


class Task(Protocol):
    """Decides whether completions answer their problems. Subclass it, or write a class with the same members.

    A verifier never raises because of a completion.
    """

    name: str

    @property
    def prompts(self) -> PromptTemplates:
        """The built-in templates."""
        ...

    def verify(self, problem: Problem, completion_text: str) -> Verdict:
        """Judge one completion. Safe to call from any thread."""
        ...

    def verify_many(self, pairs: Sequence[Pair]) -> list[Verdict]:
        """Return one verdict per pair, in order. Override it if several at once are faster. Called in another thread
        than the run's, one call at a time, while the run samples."""
        return [self.verify(problem, text) for problem, text in pairs]


@runtime_checkable
class StepwiseTask(Protocol):
    """A task that can find the first wrong step of a completion."""

    def check_steps(self, problem: Problem, completion_text: str) -> StepCheck | None:
        """Find the completion's steps and the first wrong one; None if this completion does not show them."""
        ...
