r"""Task `math`: the content of the last ``\boxed{}`` must equal the reference answer as mathematics."""

from __future__ import annotations

import re
from collections.abc import Sequence

from trd_data.answers import last_boxed
from trd_data.templates import MATH, PromptTemplates
from trd_engine.tasks.math.equalities import check_equalities
from trd_engine.tasks.math.normal_form import (
    as_number,
    contradicts_itself,
    differ_in_denial,
    differ_in_marks,
    differ_in_negation,
    differ_in_units,
    in_latex,
    normalise,
)
from trd_engine.tasks.protocol import Pair
from trd_engine.tasks.steps import StepCheck
from trd_engine.tasks.verifier_pool.pool import GuardedPool, Request, shared_pool
from trd_engine.types import Problem, Verdict

LIMIT_SECONDS = 5.0
"""Of one comparison; honest ones take milliseconds, and a hang costs a new process."""
_MAX_ANSWER_CHARACTERS = 2000
"""No real final answer is longer, and sympy's parser is slower than linear."""

_WORDS = re.compile(r"[^\W\d_]+(?:[\s,.'’-]+[^\W\d_]+)*")


class MathTask:
    """Equal notation and plain numbers are settled at once; the rest goes to `math-verify` in guarded processes."""

    name = "math"

    def __init__(self, pool: GuardedPool | None = None) -> None:
        self._pool = pool or shared_pool("math", LIMIT_SECONDS)

    @property
    def prompts(self) -> PromptTemplates:
        """Ask for a boxed answer."""
        return MATH

    def verify(self, problem: Problem, completion_text: str) -> Verdict:
        """Correct if the boxed answer equals the reference; a comparison that hangs is a "time-out"."""
        return self.verify_many([(problem, completion_text)])[0]

    def verify_many(self, pairs: Sequence[Pair]) -> list[Verdict]:
        """Return verdicts in order; each different hard comparison is made once, side by side."""
        verdicts: list[Verdict | None] = []
        hard: dict[int, tuple[str, str]] = {}
        for place, (problem, text) in enumerate(pairs):
            reference, answer = _reference(problem.answer), last_boxed(text) or ""
            verdicts.append(quick_verdict(reference, answer))
            if verdicts[place] is None:
                hard[place] = reference, answer
        settled = self._compare_all(sorted(set(hard.values())))
        return [verdict or settled[hard[place]] for place, verdict in enumerate(verdicts)]

    def can_read(self, references: Sequence[str]) -> list[bool]:
        """Return whether each is words or mathematics; of anything else only the same spelling is found equal."""
        bare = [_reference(reference) for reference in references]
        hard = [each for each in bare if not _is_plain(each)]
        replies = self._pool.map([Request({"reference": in_latex(reference)}) for reference in hard])
        unread = {reference for reference, reply in zip(hard, replies, strict=True) if reply.value is not True}
        return [reference not in unread for reference in bare]

    def check_steps(self, problem: Problem, completion_text: str) -> StepCheck | None:
        """Recompute the plain equalities of the text; the reference is not used."""
        return check_equalities(completion_text)

    def _compare_all(self, hard: list[tuple[str, str]]) -> dict[tuple[str, str], Verdict]:
        requests = [
            Request({"reference": in_latex(reference), "answer": in_latex(answer)}) for reference, answer in hard
        ]
        replies = self._pool.map(requests)
        return {
            pair: reply.failed_verdict() or Verdict(reply.value is True, pair[1])
            for pair, reply in zip(hard, replies, strict=True)
        }


def quick_verdict(reference: str, answer: str) -> Verdict | None:
    """Return the verdict if notation or plain arithmetic decides it; None if mathematics is needed."""
    if not answer:
        return Verdict(False, "no answer")
    if len(answer) > _MAX_ANSWER_CHARACTERS:
        return Verdict(False, "answer too long")
    if differ_in_units(reference, answer) or differ_in_denial(reference, answer):
        return Verdict(False, answer)
    ours, theirs = normalise(reference), normalise(answer)
    if ours and ours == theirs:
        return Verdict(True, answer)
    if differ_in_marks(ours, theirs) or differ_in_negation(ours, theirs) or contradicts_itself(ours, theirs):
        return Verdict(False, answer)
    numbers = as_number(ours), as_number(theirs)
    if None not in numbers:
        return Verdict(numbers[0] == numbers[1], answer)
    return None


def _is_plain(reference: str) -> bool:
    normal = normalise(reference)
    return as_number(normal) is not None or _WORDS.fullmatch(normal) is not None


def _reference(answer: str) -> str:
    """Return the bare reference: some data sets keep it in a box."""
    return last_boxed(answer) or answer
