"""The difference of two scores with its interval, for the command line's report and for pages."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

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


def score_difference(
    before: EvaluationView, after: EvaluationView, kind: Literal["avg", "pass"] = "avg"
) -> ScoreDifference:
    """Return the difference of avg@k or pass@k.

    The interval combines those of the two scores (MOVER: Zou and Donner, 2008; Newcombe, 1998). It assumes
    independent scores. Two scores on the same problems usually rise and fall together, and then the true
    interval is narrower.
    """
    one, low_1, high_1 = (getattr(before, f"{kind}_{end}") for end in ("at_k", "low", "high"))
    two, low_2, high_2 = (getattr(after, f"{kind}_{end}") for end in ("at_k", "low", "high"))
    value = two - one
    return ScoreDifference(
        value, value - math.hypot(two - low_2, high_1 - one), value + math.hypot(high_2 - two, one - low_1)
    )
