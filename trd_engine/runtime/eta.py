"""How much longer a run takes: the work that is left, times the pace measured for its kind."""

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
    """Counts the units of each kind of work that are planned and done, and times them.

    A kind without a pace of its own borrows that of its `stand_ins`, in order: a refinement is
    sampled like a rollout, which is sampled like an evaluation. Where nothing stands in, there is
    no estimate, and None says so.
    """

    stand_ins: dict[str, tuple[str, ...]]
    _left: dict[str, float] = field(default_factory=dict)
    _paces: dict[str, _Pace] = field(default_factory=dict)
    _guesses: dict[str, float] = field(default_factory=dict)
    _started_at: float | None = None
    _kind: str | None = None
    _done_in_phase: float = 0.0

    def plan(self, kind: str, units: float) -> None:
        """Add `units` of work of this kind to what is left."""
        self._left[kind] = self._left.get(kind, 0.0) + units

    def start(self, kind: str, done: float = 0.0) -> None:
        """A stretch of work of this kind begins now, where `done` units are finished already."""
        self._kind, self._started_at, self._done_in_phase = kind, time.monotonic(), done

    def advance(self, done: float) -> None:
        """`done` units are finished, in all: with those before the stretch that `start` began."""
        if self._kind is None or self._started_at is None:
            return
        now = time.monotonic()
        pace = self._paces.setdefault(self._kind, _Pace())
        fresh = done - self._done_in_phase
        pace.units += fresh
        pace.seconds += now - self._started_at
        self._left[self._kind] = max(0.0, self._left.get(self._kind, 0.0) - fresh)
        self._started_at, self._done_in_phase = now, done

    def assume(self, kind: str, seconds_per_unit: float) -> None:
        """A first guess at a pace, in force until work of this kind has been timed."""
        self._guesses[kind] = seconds_per_unit

    def remaining_seconds(self) -> float | None:
        """Seconds to the end of all planned work; None while some of it has no pace."""
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
