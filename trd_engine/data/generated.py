"""Rows that a `reasoning-gym` generator makes.

Made in a process of their own whose string hashing is fixed: several generators walk over sets, and would
give other problems in every process, so that a resumed run would find other data than it started on.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from trd_engine.runtime.errors import DataError
from trd_engine.tasks.verifier_pool.pool import GuardedPool

_LIMIT_SECONDS = 300.0
"""Of one request; the slowest generators make a few problems a second."""
_ROWS_PER_REQUEST = 200


def generate_rows(name: str, size: int, seed: int) -> Iterator[dict[str, Any]]:
    """The entries of the generator `name`, each with what its scorer needs to make it again."""
    pool = GuardedPool("reasoning_gym_entries", _LIMIT_SECONDS, num_workers=1)
    origin = {"generator": name, "size": size, "seed": seed}
    try:
        for start in range(0, size, _ROWS_PER_REQUEST):
            stop = min(size, start + _ROWS_PER_REQUEST)
            reply = pool.call({**origin, "start": start, "stop": stop})
            if reply.failure is not None:
                raise DataError(f"generator {name}, rows {start + 1} to {stop}: {reply.failure}")
            for index, entry in enumerate(reply.value, start=start):
                yield {**entry, "id": f"{name}-{seed}-{index}", "generated": {**origin, "index": index}}
    finally:
        pool.close()
