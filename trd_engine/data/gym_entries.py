"""Entries of `reasoning-gym` generators: making them, and whether a generator can score those of a file.

Generators run in a process with fixed string hashing: several iterate over sets, and would otherwise make different
problems in every process, so that a resumed run would find other data than it started on.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Sequence
from typing import Any

from trd_engine.runtime.errors import DataError
from trd_engine.tasks.verifier_pool.pool import TIME_OUT, Request, shared_pool
from trd_engine.types import Problem

_POOL = "reasoning_gym_entries"
_MAKING_SECONDS = 300.0
"""Limit for one request of rows; the slowest generators make a few problems per second."""
_SCORING_SECONDS = 60.0
_ROWS_PER_REQUEST = 200
_MAX_NAME = 80


def generate_rows(name: str, size: int, seed: int) -> Iterator[dict[str, Any]]:
    """Yield the entries of the generator `name`, each with what its scorer needs to make it again."""
    origin = {"generator": name, "size": size, "seed": seed}
    pool = shared_pool(_POOL, _MAKING_SECONDS)
    for start in range(0, size, _ROWS_PER_REQUEST):
        stop = min(size, start + _ROWS_PER_REQUEST)
        reply = pool.call(Request({**origin, "start": start, "stop": stop}))
        if reply.failure is not None:
            raise DataError(f"generator {name}, rows {start + 1} to {stop}: {reply.failure}")
        for index, entry in enumerate(reply.value, start=start):
            yield {**entry, "id": f"{name}-{seed}-{index}", "generated": {**origin, "index": index}}


def entry_errors(problems: Sequence[Problem]) -> Iterator[tuple[Problem, str]]:
    """Yield the first problem of each generator that cannot score its entries of a file, and why.

    Such a scorer would find every answer wrong, because the entry lacks what it compares with.
    """
    by_source: dict[str, list[Problem]] = defaultdict(list)
    for problem in problems:
        if "entry" in problem.extra and "generated" not in problem.extra:
            by_source[problem.extra["entry"]["metadata"]["source_dataset"]].append(problem)
    if not by_source:
        return
    pool = shared_pool(_POOL, _SCORING_SECONDS)
    for source, entries in by_source.items():
        reply = pool.call(Request({"generator": source, "size": 1, "seed": 0, "start": 0, "stop": 1}))
        without = [problem for problem in entries if problem.extra["entry"]["answer"] is None]
        if reply.failure == TIME_OUT:
            continue  # the scorer of a slow generator may be fast
        if reply.failure is not None:
            reason = reply.failure.removeprefix("error: ValueError: ")
            yield (
                entries[0],
                f"metadata: source_dataset = {source[:_MAX_NAME]} scores no answer: {reason}{_more(len(entries))}; "
                "for answers that are compared as text, use task exact",
            )
        elif without and reply.value[0].get("answer") is not None:
            yield (
                without[0],
                f"answer: this field is required; the scorer of {source} compares with it{_more(len(without))}; "
                "map it with columns",
            )


def _more(count: int) -> str:
    return f" (as in {count - 1} more)" if count > 1 else ""
