"""The remaining time of a run: the remaining work of each kind, times its measured pace."""

from __future__ import annotations

import time
from dataclasses import dataclass, field


@dataclass
class EtaEstimator:
    """Counts and times the units of each kind of work, planned and done.

    A kind that has not been timed takes the pace of the first of its `stand_ins` that has: a refinement is sampled like
    a rollout, which is sampled like an evaluation. If there is none, the estimate is None.
    """

    stand_ins: dict[str, tuple[str, ...]]
    _left: dict[str, float] = field(default_factory=dict)
    _timed: dict[str, tuple[float, float]] = field(default_factory=dict)
    """Units done and seconds that they took, by kind."""
    _guesses: dict[str, float] = field(default_factory=dict)
    _started_at: float | None = None
    _kind: str | None = None
    _done_in_phase: float = 0.0

    def plan(self, kind: str, units: float) -> None:
        """Add `units` of this kind to the remaining work."""
        self._left[kind] = self._left.get(kind, 0.0) + units

    def start(self, kind: str, done: float = 0.0) -> None:
        """Start the clock for work of this kind, of which `done` units are finished already."""
        self._kind, self._started_at, self._done_in_phase = kind, time.monotonic(), done

    def advance(self, done: float) -> None:
        """Record that `done` units are finished in total, including those given to `start`."""
        if self._kind is None or self._started_at is None:
            return
        now = time.monotonic()
        num_new = done - self._done_in_phase
        units, seconds = self._timed.get(self._kind, (0.0, 0.0))
        self._timed[self._kind] = (units + num_new, seconds + now - self._started_at)
        self._left[self._kind] = max(0.0, self._left.get(self._kind, 0.0) - num_new)
        self._started_at, self._done_in_phase = now, done

    def assume(self, kind: str, seconds_per_unit: float) -> None:
        """Set a pace that applies until work of this kind has been timed."""
        self._guesses[kind] = seconds_per_unit

    def remaining_seconds(self) -> float | None:
        """Return the seconds to the end of all planned work; None while some of it has no pace."""
        total = 0.0
        for kind, units in self._left.items():
            if units <= 0:
                continue
            timed = (self._timed.get(one, (0.0, 0.0)) for one in (kind, *self.stand_ins.get(kind, ())))
            pace = next((spent / done for done, spent in timed if done > 0), self._guesses.get(kind))
            if pace is None:
                return None
            total += units * pace
        return total
