"""The remaining time of a run: the remaining work of each kind, times its measured pace."""

from __future__ import annotations

import time
from dataclasses import dataclass, field


@dataclass
class _Pace:
    units: float = 0.0
    seconds: float = 0.0

    @property
    def seconds_per_unit(self) -> float | None:
        return self.seconds / self.units if self.units > 0 else None


@dataclass
class EtaEstimator:
    """Counts and times the units of each kind of work, planned and done.

    A kind that has not been timed takes the pace of the first of its `stand_ins` that has: a refinement is sampled like
    a rollout, which is sampled like an evaluation. If there is none, the estimate is None.
    """

    stand_ins: dict[str, tuple[str, ...]]
    _left: dict[str, float] = field(default_factory=dict)
    _paces: dict[str, _Pace] = field(default_factory=dict)
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
        pace = self._paces.setdefault(self._kind, _Pace())
        num_new = done - self._done_in_phase
        pace.units += num_new
        pace.seconds += now - self._started_at
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
            pace = self._pace_of(kind)
            if pace is None:
                return None
            total += units * pace
        return total

    def _pace_of(self, kind: str) -> float | None:
        for candidate in (kind, *self.stand_ins.get(kind, ())):
            pace = self._paces.get(candidate)
            if pace is not None and pace.seconds_per_unit is not None:
                return pace.seconds_per_unit
        return self._guesses.get(kind)
