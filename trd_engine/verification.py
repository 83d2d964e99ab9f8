"""Verdicts on many completions, with a look at the stop request every few.

Programs and hard comparisons may take their whole time limits: a round's worth of them takes hours at the worst.
"""

from __future__ import annotations

from collections.abc import Sequence

from trd_engine.reporter import Reporter
from trd_engine.tasks import Task
from trd_engine.types import Problem, Verdict

PART = 32
"""Completions between two looks: enough to keep a verifier's processes busy side by side."""


def verify_all(pairs: Sequence[tuple[Problem, str]], task: Task, reporter: Reporter) -> list[Verdict]:
    """One verdict a pair, in order; within `Reporter.apart`, since a stop of this process alone is looked at.

    Raises `StopRequested`.
    """
    verdicts: list[Verdict] = []
    for start in range(0, len(pairs), PART):
        verdicts += task.verify_many(pairs[start : start + PART])
        reporter.stop_if_asked()
    return verdicts
