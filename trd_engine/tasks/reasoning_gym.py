"""Task `reasoning_gym`: each generator's own scorer decides."""

from __future__ import annotations

import re
from collections.abc import Sequence

from trd_data.answers import last_boxed
from trd_data.templates import REASONING_GYM
from trd_engine.tasks.protocol import Pair
from trd_engine.tasks.verifier_pool.pool import GuardedPool, Reply, Request, shared_pool
from trd_engine.types import Problem, Verdict

LIMIT_SECONDS = 10.0
FULL_SCORE = 1.0 - 1e-6
"""Scores below it are partial credit, which is not a right answer."""
_ANSWER = re.compile(r"<answer>(.*?)</answer>", re.DOTALL)


class ReasoningGymTask:
    r"""Scores the last ``<answer>…</answer>``, else the last ``\boxed{}``, else the whole text."""

    name = "reasoning_gym"
    prompts = REASONING_GYM  # between tags: grids and programs do not fit in a box

    def __init__(self, pool: GuardedPool | None = None) -> None:
        self._pool = pool or shared_pool("reasoning_gym", LIMIT_SECONDS)

    def verify(self, problem: Problem, completion_text: str) -> Verdict:
        """Correct at full score only."""
        return self.verify_many([(problem, completion_text)])[0]

    def verify_many(self, pairs: Sequence[Pair]) -> list[Verdict]:
        """Return verdicts in order, scored side by side."""
        answers = [given_answer(text) for _, text in pairs]
        requests = [gym_request(problem, answer) for (problem, _), answer in zip(pairs, answers, strict=True)]
        replies = self._pool.map(requests)
        return [_verdict(answer, reply) for answer, reply in zip(answers, replies, strict=True)]


def given_answer(text: str) -> str:
    """Return the answer that the completion gives."""
    tagged = _ANSWER.findall(text)
    if tagged:
        return str(tagged[-1]).strip()
    return last_boxed(text) or text.strip()


def gym_request(problem: Problem, answer: str) -> Request:
    """Return the call that scores an answer."""
    entry, made_by = problem.extra["entry"], problem.extra.get("generated")
    if made_by is None:
        shared = {"name": entry["metadata"]["source_dataset"], "index": None, "sizes": {}}
    else:
        sizes = {"size": made_by["size"], "seed": made_by["seed"]}
        shared = {"name": made_by["generator"], "index": made_by["index"], "sizes": sizes}
    return Request({"answer": answer, "entry": entry}, shared)


def _verdict(answer: str, reply: Reply) -> Verdict:
    failed = reply.failed_verdict()
    if failed is not None:
        return failed
    if not isinstance(reply.value, float):
        return Verdict(False, "error: the scorer returned no number", "error")
    return Verdict(reply.value >= FULL_SCORE, f"score {reply.value:.3g}: {answer}"[:500])
