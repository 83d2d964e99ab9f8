"""Verdicts a second of the tasks that evaluate answers, and what confinement costs.

    python -m benchmarks.verifiers

judges each set of answers as a job does, and again in one process that the answers share, as no job does.
"""

from __future__ import annotations

import argparse
import os
import sys
import time
from collections.abc import Callable, Sequence
from contextlib import closing
from pathlib import Path

import reasoning_gym  # type: ignore[import-untyped]

from benchmarks.machine import describe_machine
from trd_data.plain_json import plain_json
from trd_engine.tasks.math.task import MathTask
from trd_engine.tasks.protocol import Pair
from trd_engine.tasks.reasoning_gym import ReasoningGymTask, gym_request
from trd_engine.tasks.verifier_pool import child
from trd_engine.tasks.verifier_pool.pool import GuardedPool, Request
from trd_engine.types import Problem

RESULTS = Path(__file__).parent / "results"
GENERATORS = {
    "simple_equations": "compares texts",
    "countdown": "sympy",
    "sudoku": "its own program",
}


def _math_pairs(count: int) -> list[Pair]:
    """Return equal pairs that exact arithmetic does not settle, no two alike."""
    return [
        (Problem(str(n), "", rf"\frac{{x+{n}}}{{2}}"), rf"so \boxed{{\frac{{x}}{{2}}+\frac{{{n}}}{{2}}}}")
        for n in range(1, 2 * count, 2)
    ]


def _gym_pairs(generator: str, count: int) -> list[Pair]:
    entries = [plain_json(entry) for entry in reasoning_gym.create_dataset(generator, size=count, seed=0)]
    return [
        (Problem(str(n), entry["question"], str(entry["answer"]), extra={"entry": entry}), f"<answer>{n} + 1</answer>")
        for n, entry in enumerate(entries)
    ]


def _per_second(judge: Callable[[Sequence[Pair]], object], pairs: Sequence[Pair]) -> float:
    judge(pairs[:8])  # starts the processes
    began = time.perf_counter()
    judge(pairs[8:])
    return (len(pairs) - 8) / (time.perf_counter() - began)


def _shared(verifier: str, requests: Callable[[Pair], Request]) -> Callable[[Sequence[Pair]], object]:
    loaded = child._load(verifier)

    def judge(pairs: Sequence[Pair]) -> list[object]:
        return [loaded.judge(loaded.prepare(r.shared or {}), r.body) for r in map(requests, pairs)]

    return judge


def measure(count: int) -> list[str]:
    """Return the table's lines."""
    lines = []
    with closing(GuardedPool("math", 60.0)) as pool:
        task = MathTask(pool)
        shared = _shared("math", lambda p: Request({"reference": p[0].answer, "answer": p[1][10:-1]}))
        plain = [(Problem(str(n), "", rf"\frac{{{n}}}{{8}}"), rf"so \boxed{{{n / 8}}}") for n in range(count)]
        for name, pairs in (("math, exact arithmetic", plain), ("math, math-verify", _math_pairs(count))):
            as_job = _per_second(task.verify_many, pairs)
            alone = "–" if "exact" in name else f"{_per_second(shared, pairs):.0f}"
            lines.append(f"| {name} | {as_job:.0f} | {alone} |")
        lines.append(f"| the same answers again | {_per_second(task.verify_many, pairs):.0f} | – |")
    with closing(GuardedPool("reasoning_gym", 60.0)) as pool:
        shared = _shared("reasoning_gym", lambda p: gym_request(p[0], p[1][8:-9]))
        for generator, kind in GENERATORS.items():
            pairs = _gym_pairs(generator, count)
            as_job = _per_second(ReasoningGymTask(pool).verify_many, pairs)
            lines.append(f"| reasoning-gym {generator}, {kind} | {as_job:.0f} | {_per_second(shared, pairs):.0f} |")
    return lines


def main() -> int:
    """Run the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--count", type=int, default=208, help="answers of each set")
    parser.add_argument("--out", type=Path, default=RESULTS / "verifiers.md")
    options = parser.parse_args()
    load_before = os.getloadavg()[0]
    lines = measure(options.count)
    header = [
        "# Verdicts a second",
        "",
        f"{options.count} answers of each kind, all different, judged as a job judges them, in as many children as "
        "there are processors; and in one process that all answers share, which would let one change later verdicts.",
        *describe_machine(("math-verify", "sympy", "reasoning-gym")),
        f"Load average before and after: {load_before:.1f}, {os.getloadavg()[0]:.1f}.",
        "",
        "| answers | as a job | in one shared process |",
        "|---|---:|---:|",
    ]
    options.out.write_text("\n".join([*header, *lines, ""]), encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
