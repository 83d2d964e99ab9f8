r"""``python -m trd_engine.tasks.references``: find reference answers that no answer could match, before a job does.

Reads JSON lines ``{"row", "answer", "solution"}`` of task `math` on standard input, and writes one JSON object on
standard output: ``{"num_judged", "num_references", "notices"}``. It judges as a job would, in confined processes; if
there are none, it exits with 2 and the reason on standard error. It loads no torch.
"""

from __future__ import annotations

import argparse
import json
import re
import resource
import sys
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import closing
from dataclasses import asdict, dataclass
from typing import Any

from trd_data.answers import last_boxed
from trd_data.notices import Notice
from trd_engine.runtime.errors import EngineError
from trd_engine.tasks.math.task import MathTask
from trd_engine.tasks.verifier_pool.pool import GuardedPool
from trd_engine.types import Problem, Verdict

MAX_REFERENCES = 1000
"""Distinct references that are judged, evenly spread over the file."""
_COMPARISON_SECONDS = 2.0
_BATCH = 16
"""Comparisons between two looks at the clock."""
_MAX_INPUT_BYTES = 64 * 2**20
_MAX_WORDS = 12
"""A reference of more words is a sentence, which an answer would have to repeat word by word."""
_MAX_SHOWN = 120
_WORD = re.compile(r"(?<![\\A-Za-z])[A-Za-z]{2,}")


@dataclass(frozen=True)
class _Reference:
    row: int
    answer: str
    solution: str | None

    def shown(self) -> str:
        """Return the reference for a notice, as `row 3: 3e8`."""
        return f"row {self.row}: {self.answer[:_MAX_SHOWN]}"


@dataclass(frozen=True)
class JudgedReferences:
    """What was found."""

    num_judged: int
    num_references: int
    """Distinct ones that were given."""
    notices: list[Notice]


def judge_references(rows: Iterable[Mapping[str, Any]], limit_seconds: float, pool: GuardedPool) -> JudgedReferences:
    """Judge a sample of rows of ``row``, ``answer`` and ``solution`` within `limit_seconds` of wall time.

    A comparison that takes longer than the pool's limit finds nothing. The pool's processes are started only if exact
    arithmetic does not settle all references.
    """
    references = _distinct(rows)
    unmatchable: list[_Reference] = []
    contradicted: list[_Reference] = []
    num_judged = 0
    deadline = time.monotonic() + limit_seconds
    task = MathTask(pool)
    count = min(MAX_REFERENCES, len(references))
    sample = [references[place * len(references) // count] for place in range(count)]
    for start in range(0, len(sample), _BATCH):
        if time.monotonic() > deadline:
            break
        batch = sample[start : start + _BATCH]
        unmatchable += _unmatchable(batch, task)
        contradicted += _contradicted(batch, task)
        num_judged += len(batch)
    return JudgedReferences(num_judged, len(references), list(_notices(unmatchable, contradicted, num_judged)))


def _distinct(rows: Iterable[Mapping[str, Any]]) -> list[_Reference]:
    """Return the first row of each reference."""
    found: dict[str, _Reference] = {}
    for row in rows:
        answer, solution = row["answer"], row.get("solution")
        if isinstance(answer, str):
            found.setdefault(answer, _Reference(row["row"], answer, solution if isinstance(solution, str) else None))
    return list(found.values())


def _unmatchable(batch: Sequence[_Reference], task: MathTask) -> list[_Reference]:
    pairs = [(_problem(each), f"\\boxed{{{last_boxed(each.answer) or each.answer}}}") for each in batch]
    judged = zip(batch, task.verify_many(pairs), task.can_read([each.answer for each in batch]), strict=True)
    return [
        each
        for each, verdict, is_read in judged
        if _is_certainly_wrong(verdict) or not is_read or len(_WORD.findall(each.answer)) > _MAX_WORDS  # prose
    ]


def _contradicted(batch: Sequence[_Reference], task: MathTask) -> list[_Reference]:
    solved = [each for each in batch if each.solution and last_boxed(each.solution)]
    verdicts = task.verify_many([(_problem(each), each.solution or "") for each in solved])
    return [each for each, verdict in zip(solved, verdicts, strict=True) if _is_certainly_wrong(verdict)]


def _is_certainly_wrong(verdict: Verdict) -> bool:
    """Return whether the reference is certainly wrong: a comparison that took too long contradicts nothing."""
    return not verdict.correct and verdict.failure is None


def _problem(reference: _Reference) -> Problem:
    return Problem(str(reference.row), "", reference.answer)


def _notices(
    unmatchable: Sequence[_Reference], contradicted: Sequence[_Reference], num_judged: int
) -> Iterator[Notice]:
    if unmatchable:
        yield Notice(
            "unmatchable_references",
            f"{len(unmatchable)} of {num_judged} reference answers that were judged cannot be matched: task math does "
            "not find such a reference equal to itself, cannot read it as mathematics, or it is a sentence. Almost "
            "every answer to these problems will count as wrong",
            "give a final answer as a number, an expression or a few words, in closed LaTeX, or use task exact or "
            "choice; remove rows that have none, such as proofs",
            len(unmatchable),
            unmatchable[0].shown(),
            ("math",),
        )
    if contradicted:
        boxed = last_boxed(contradicted[0].solution or "") or ""
        yield Notice(
            "reference_contradicts_solution",
            f"{len(contradicted)} of {num_judged} reference answers that were judged differ from the last box of their "
            "own solution",
            "correct the reference or the solution: a student that follows the solution would count as wrong",
            len(contradicted),
            f"{contradicted[0].shown()}; its solution: {boxed}"[:200],
            ("math",),
        )


def main() -> int:
    """Judge what standard input has, within limits of wall time and of this process's CPU time."""
    parser = argparse.ArgumentParser(prog="python -m trd_engine.tasks.references", description=__doc__)
    parser.add_argument("--seconds", type=float, default=60.0, help="limit of wall time (default: 60)")
    seconds = parser.parse_args().seconds
    resource.setrlimit(resource.RLIMIT_CPU, (int(seconds) + 10, int(seconds) + 10))
    try:
        lines = sys.stdin.buffer.read(_MAX_INPUT_BYTES).splitlines()
        with closing(GuardedPool("math", _COMPARISON_SECONDS)) as pool:
            report = judge_references(map(json.loads, lines), seconds, pool)
    except (EngineError, ValueError, KeyError, TypeError) as error:
        print(f"references were not judged: {error}", file=sys.stderr)  # noqa: T201 - read by whoever started it
        return 2
    print(json.dumps(asdict(report)))  # noqa: T201
    return 0


if __name__ == "__main__":
    sys.exit(main())
