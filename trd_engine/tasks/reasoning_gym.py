"""Task `reasoning_gym`: each generator's own scorer decides."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any

from trd_data.answers import last_boxed
from trd_data.templates import REASONING_GYM, PromptTemplates
from trd_engine.tasks.protocol import Pair
from trd_engine.tasks.verifier_pool.pool import GuardedPool, shared_pool
from trd_engine.types import Problem, Verdict

LIMIT_SECONDS = 10.0
FULL_SCORE = 1.0 - 1e-6
"""Scores below it are partial credit, which is not a right answer."""
_ANSWER = re.compile(r"<answer>(.*?)</answer>", re.DOTALL)


class ReasoningGymTask:
    r"""Scores the last ``<answer>…</answer>``, else the last ``\boxed{}``, else the whole text."""

    name = "reasoning_gym"

    def __init__(self, pool: GuardedPool | None = None) -> None:
        self._pool = pool or shared_pool("reasoning_gym", LIMIT_SECONDS)

    @property
    def prompts(self) -> PromptTemplates:
        """Ask for an answer between tags: grids and programs do not fit in a box."""
        return REASONING_GYM

    def verify(self, problem: Problem, completion_text: str) -> Verdict:
        """Correct at full score only."""
        return self.verify_many([(problem, completion_text)])[0]

    def verify_many(self, pairs: Sequence[Pair]) -> list[Verdict]:
        """Return verdicts in order, scored side by side."""
        answers = [given_answer(text) for _, text in pairs]
        requests = [_request(problem, answer) for (problem, _), answer in zip(pairs, answers, strict=True)]
        replies = self._pool.map(requests)
        return [
            reply.failed_verdict() or Verdict(reply.value >= FULL_SCORE, f"score {reply.value:.3g}: {answer}"[:500])
            for answer, reply in zip(answers, replies, strict=True)
        ]


def given_answer(text: str) -> str:
    """Return the answer that the completion gives."""
    tagged = _ANSWER.findall(text)
    if tagged:
        return str(tagged[-1]).strip()
    return last_boxed(text) or text.strip()


def _request(problem: Problem, answer: str) -> dict[str, Any]:
    return {"answer": answer, "entry": problem.extra["entry"], "generated": problem.extra.get("generated")}
