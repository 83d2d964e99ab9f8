"""A curve in one line of text."""

from __future__ import annotations

import math
from collections.abc import Sequence

_LEVELS = "▁▂▃▄▅▆▇█"


def sparkline(values: Sequence[float | None], width: int) -> str:
    """The values' course in at most `width` characters; a value that is not finite is a gap."""
    if len(values) > width:
        values = [_mean(values[i * len(values) // width : (i + 1) * len(values) // width]) for i in range(width)]
    finite = [value for value in values if value is not None and math.isfinite(value)]
    if not finite:
        return ""
    low, high = min(finite), max(finite)
    return "".join(_level(value, low, high) for value in values)


def _mean(values: Sequence[float | None]) -> float | None:
    finite = [value for value in values if value is not None and math.isfinite(value)]
    return sum(finite) / len(finite) if finite else None


def _level(value: float | None, low: float, high: float) -> str:
    if value is None or not math.isfinite(value):
        return " "
    share = (value - low) / (high - low) if high > low else 0.5
    return _LEVELS[min(int(share * len(_LEVELS)), len(_LEVELS) - 1)]
