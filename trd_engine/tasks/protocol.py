"""What a task is to the rest of the engine: prompts, and what makes an answer right."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol, runtime_checkable

from trd_engine.tasks.steps import StepCheck
from trd_engine.types import Problem, Verdict

_PLACEHOLDER = re.compile(r"\{(problem|solution|attempt)\}")

Pair = tuple[Problem, str]
"""A problem and the text of a completion for it."""


@dataclass(frozen=True)
class PromptTemplates:
    """User messages with the placeholders {problem}, {solution} and {attempt}, put in by `fill`."""

    solve: str
    """The student's prompt; always the context in which it is trained."""
    privileged: str
    """The teacher's where it sees the reference solution y*."""
    refine: str
    """Asks for y_r, given the rollout as {attempt}."""
    privileged_refine: str
    """Asks for y_r, given the rollout and the reference."""
    truncation_notice: str
    """Stands where the tail of an attempt or a reference was cut off."""


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
        """The verdict on one completion. Safe to call from any thread."""
        ...

    def verify_many(self, pairs: Sequence[Pair]) -> list[Verdict]:
        """Return one verdict per pair, in order. Override it if several at once are faster."""
        return [self.verify(problem, text) for problem, text in pairs]


@runtime_checkable
class StepwiseTask(Protocol):
    """A task that can tell where a completion first goes wrong."""

    def check_steps(self, problem: Problem, completion_text: str) -> StepCheck | None:
        """The completion's steps and the first wrong one; None where this completion lets nothing be told."""
        ...


def fill(template: str, *, problem: str = "", solution: str = "", attempt: str = "") -> str:
    """`template` with its placeholders replaced in one pass, so that braces inside the texts stay as they are."""
    values = {"problem": problem, "solution": solution, "attempt": attempt}
    return _PLACEHOLDER.sub(lambda match: values[match.group(1)], template)
