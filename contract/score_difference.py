"""The difference of two scores with its interval, for the command line's report and for pages."""

from __future__ import annotations

import math
from dataclasses import dataclass

from contract.views.runs import EvaluationView


@dataclass(frozen=True)
class ScoreDifference:
    """``after − before``, with a 95 % interval."""

    value: float
    low: float
    high: float

    @property
    def is_clear(self) -> bool:
        """Whether the interval excludes no difference."""
        return self.low > 0 or self.high < 0


def score_difference(before: EvaluationView, after: EvaluationView) -> ScoreDifference:
    """Return the difference of avg@k.

    The interval combines those of the two scores (MOVER: Zou and Donner, 2008; Newcombe, 1998). It assumes
    independent scores. Two scores on the same problems usually rise and fall together, and then the true
    interval is narrower.
    """
    one, two = before.avg_at_k, after.avg_at_k
    return ScoreDifference(
        two - one,
        two - one - math.hypot(two - after.avg_low, before.avg_high - one),
        two - one + math.hypot(after.avg_high - two, one - before.avg_low),
    )
