r"""Task `math`: the content of the last ``\boxed{}`` must equal the reference answer as mathematics."""

from __future__ import annotations

import re
from collections.abc import Sequence

from trd_data.answers import boxed_answer
from trd_data.templates import MATH
from trd_engine.tasks.math.compare import compare, value_of
from trd_engine.tasks.math.equalities import check_equalities
from trd_engine.tasks.math.normal_form import in_latex, normalise
from trd_engine.tasks.math.structure import Question, Same, is_true, questions_of
from trd_engine.tasks.protocol import Pair
from trd_engine.tasks.steps import StepCheck
from trd_engine.tasks.verifier_pool.pool import TIME_OUT, GuardedPool, Reply, Request, shared_pool
from trd_engine.types import Problem, Verdict

LIMIT_SECONDS = 5.0
"""Limit of one comparison; honest ones take milliseconds, and a hang costs a new process."""
_MAX_KNOWN = 50_000
"""Comparisons that are remembered: each round samples the same problems, and many of the same answers."""
_MAX_ANSWER_CHARACTERS = 2000
"""No real final answer is longer, and sympy's parser is slower than linear."""

_WORDS = re.compile(r"[^\W\d_]+(?:[\s,.'’-]+[^\W\d_]+)*")


class MathTask:
    """Equal notation and plain numbers are settled at once; the rest goes to `math-verify` in guarded processes."""

    name = "math"
    prompts = MATH

    def __init__(self, pool: GuardedPool | None = None) -> None:
        self._pool = pool or shared_pool("math", LIMIT_SECONDS)
        self._known: dict[Same, Reply] = {}

    def verify(self, problem: Problem, completion_text: str) -> Verdict:
        """Correct if the boxed answer equals the reference; a comparison that hangs is a "time-out"."""
        return self.verify_many([(problem, completion_text)])[0]

    def verify_many(self, pairs: Sequence[Pair]) -> list[Verdict]:
        """Return verdicts in order; each different hard comparison is made once, side by side."""
        questions = [_question(problem, text) for problem, text in pairs]
        hard = [
            each for question, _ in questions if not isinstance(question, Verdict) for each in questions_of(question)
        ]
        replies = self._ask(list(dict.fromkeys(hard)))
        return [
            question if isinstance(question, Verdict) else _verdict(question, answer, replies)
            for question, answer in questions
        ]

    def can_read(self, references: Sequence[str]) -> list[bool]:
        """Return whether each is words or mathematics; of anything else only the same spelling is found equal."""
        bare = [_reference(reference) for reference in references]
        hard = [each for each in bare if not _is_plain(each)]
        replies = self._pool.map([Request({"reference": in_latex(reference)}) for reference in hard])
        judged = zip(hard, replies, strict=True)
        unread = {each for each, reply in judged if reply.value is not True and reply.failure != TIME_OUT}
        return [reference not in unread for reference in bare]

    def check_steps(self, problem: Problem, completion_text: str) -> StepCheck | None:
        """Recompute the plain equalities of the text; the reference is not used."""
        return check_equalities(completion_text)

    def _ask(self, hard: list[Same]) -> dict[Same, Reply]:
        known = {each: self._known[each] for each in hard if each in self._known}
        new = [each for each in hard if each not in known]
        requests = [Request({"reference": each.reference, "answer": each.answer}) for each in new]
        replies = dict(zip(new, self._pool.map(requests), strict=True))
        if len(self._known) > _MAX_KNOWN:
            self._known = {}
        self._known |= {each: reply for each, reply in replies.items() if reply.failure is None}
        return known | replies


def _question(problem: Problem, text: str) -> tuple[Question | Verdict, str]:
    answer = boxed_answer(text)
    if not answer:
        return Verdict(False, "no answer"), ""
    if len(answer) > _MAX_ANSWER_CHARACTERS:
        return Verdict(False, "answer too long"), answer
    return compare(_reference(problem.answer), answer), answer


def _verdict(question: Question, answer: str, replies: dict[Same, Reply]) -> Verdict:
    if is_true(question, {each: replies[each].value is True for each in questions_of(question)}):
        return Verdict(True, answer)
    # A comparison that failed may be the one that would have made it true.
    failed = [replies[each].failed_verdict() for each in questions_of(question)]
    return next((verdict for verdict in failed if verdict is not None), Verdict(False, answer))


def _is_plain(reference: str) -> bool:
    normal = normalise(reference)
    return value_of(reference) is not None or _WORDS.fullmatch(normal) is not None


def _reference(answer: str) -> str:
    """Return the bare reference: some data sets keep it in a box."""
    return boxed_answer(answer) or answer
