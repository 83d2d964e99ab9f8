"""Whether the generators that a file's `reasoning-gym` entries name can score them.

Their scorers find every answer wrong, and say nothing, where an entry lacks what they compare with.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Sequence

from trd_engine.tasks.verifier_pool.pool import TIME_OUT, GuardedPool
from trd_engine.types import Problem

_LIMIT_SECONDS = 60.0
_MAX_NAME = 80


def entry_errors(problems: Sequence[Problem]) -> Iterator[tuple[Problem, str]]:
    """The first problem of each generator that cannot score its problems, and why; none of rows made by a generator."""
    by_source: dict[str, list[Problem]] = defaultdict(list)
    for problem in problems:
        if "entry" in problem.extra and "generated" not in problem.extra:
            by_source[problem.extra["entry"]["metadata"]["source_dataset"]].append(problem)
    if not by_source:
        return
    pool = GuardedPool("reasoning_gym_entries", _LIMIT_SECONDS, num_workers=1)
    try:
        for source, entries in by_source.items():
            yield from _errors_of(source, entries, pool)
    finally:
        pool.close()


def _errors_of(source: str, entries: list[Problem], pool: GuardedPool) -> Iterator[tuple[Problem, str]]:
    reply = pool.call({"generator": source, "size": 1, "seed": 0, "start": 0, "stop": 1})
    if reply.failure == TIME_OUT:
        return  # a slow generator's scorer may well be quick
    if reply.failure is not None:
        reason = reply.failure.removeprefix("error: ValueError: ")
        yield (
            entries[0],
            (
                f"field 'metadata' has source_dataset {source[:_MAX_NAME]!r}, which scores no answer: {reason}"
                f"{_more(len(entries))}; for answers that are compared as text, use task exact"
            ),
        )
    elif reply.value[0].get("answer") is not None:
        without = [problem for problem in entries if problem.extra["entry"]["answer"] is None]
        if without:
            yield (
                without[0],
                (
                    f"field 'answer' is missing; the scorer of {source!r} compares with it{_more(len(without))}; "
                    "map it with columns"
                ),
            )


def _more(count: int) -> str:
    return f" (as in {count - 1} more)" if count > 1 else ""
