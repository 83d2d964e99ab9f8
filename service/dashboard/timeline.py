"""Where a job's time went: its attempts, the phases within them, and the waits between, as segments of one line."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from itertools import pairwise

from contract.job_state import AttemptStatus, Phase
from contract.views.jobs import AttemptView, JobView

WIDTH = 1000.0
"""Width of the drawing; segments are in its units."""
NARROW = 1.0
"""Narrower segments are merged into the one before: a run has thousands of phases, and a line a thousand points."""


@dataclass(frozen=True)
class Segment:
    """A stretch of time."""

    kind: str
    """waiting, or a phase."""
    begin: datetime
    end: datetime

    @property
    def seconds(self) -> float:
        """Its length."""
        return (self.end - self.begin).total_seconds()


@dataclass(frozen=True)
class Timeline:
    """A job's time."""

    begin: datetime
    end: datetime
    segments: list[Segment]
    attempts: Sequence[AttemptView]

    def x(self, at: datetime) -> float:
        """Return the place of a moment in the drawing."""
        return WIDTH * (at - self.begin).total_seconds() / max(1e-9, (self.end - self.begin).total_seconds())

    @property
    def drawn(self) -> Iterator[tuple[str, float, float]]:
        """Kind, left edge and width of each rectangle."""
        kind, left = None, 0.0
        for segment in self.segments:
            begin = self.x(segment.begin)
            if kind is not None and segment.kind != kind and begin - left >= NARROW:
                yield kind, left, begin - left
                left, kind = begin, segment.kind
            kind = kind or segment.kind
        if kind is not None:
            yield kind, left, self.x(self.end) - left

    @property
    def lost(self) -> list[AttemptView]:
        """The attempts that ended without a message."""
        return [a for a in self.attempts if a.status == AttemptStatus.LOST and a.finished_at is not None]

    @property
    def totals(self) -> list[tuple[str, float]]:
        """Seconds of each kind, in the order of a run."""
        sums: dict[str, float] = {}
        for segment in self.segments:
            sums[segment.kind] = sums.get(segment.kind, 0.0) + segment.seconds
        order = ["waiting", *map(str, Phase)]
        return sorted(sums.items(), key=lambda pair: order.index(pair[0]) if pair[0] in order else len(order))


def timeline(job: JobView, attempts: Sequence[AttemptView], phases: Sequence[tuple[datetime, str]]) -> Timeline:
    """Return the timeline of a job from its creation to its end, or to now; a phase begins at its time."""
    now = datetime.now(UTC)
    end = max(job.finished_at or now, job.created_at)
    segments, cursor = [], job.created_at
    for attempt in attempts:
        stop = min(attempt.finished_at or end, end)
        if attempt.started_at > cursor:
            segments.append(Segment("waiting", cursor, attempt.started_at))
        inside = [(at, phase) for at, phase in phases if attempt.started_at <= at <= stop]
        marks = [(attempt.started_at, str(Phase.PREPARING)), *inside, (stop, "")]
        segments += [Segment(a[1], a[0], b[0]) for a, b in pairwise(marks) if b[0] > a[0]]
        cursor = max(cursor, stop)
    if cursor < end:
        segments.append(Segment("waiting", cursor, end))
    return Timeline(job.created_at, end, segments, attempts)
