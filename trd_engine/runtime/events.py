"""The events of a run: JSON lines in ``events.jsonl``, which the worker or a person follows.

Owns the events' format and throttling, and the check for a stop request: every long loop of the engine calls
`Reporter.boundary` or `Reporter.generation_progress`, which raise `StopRequested`.
"""

from __future__ import annotations

import json
import math
import os
import threading
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Self, TypeVar

from trd_data.notices import Notice
from trd_data.plain_json import finite
from trd_engine.runtime.distributed import ALONE, World
from trd_engine.runtime.errors import StopRequested, StrictNoticesError
from trd_engine.runtime.eta import EtaEstimator
from trd_engine.types import GenerationProgress

T = TypeVar("T")

PROGRESS_SECONDS = 1.0
"""Shortest time between two progress events, so that the file stays small."""

STAND_INS = {
    "rollout": ("evaluating", "refining"),
    "refining": ("rollout", "evaluating"),
    "evaluating": ("rollout",),
}
"""Phases whose pace each phase takes until it is timed itself, see `EtaEstimator`."""


_NOWHERE = {"round_index": 0, "num_rounds": 0, "step": 0, "num_steps": 0}


class Reporter:
    """Appends events to ``out_dir/events.jsonl``, one line each, flushed immediately.

    Only the main process writes. A stop request that any process sees stops all of them at the same boundary.
    """

    def __init__(
        self,
        out_dir: Path,
        *,
        stop: Callable[[], bool] = lambda: False,
        world: World = ALONE,
        on_event: Callable[[dict[str, Any]], None] | None = None,
    ) -> None:
        """`on_event` is called in the main process with each event, once it is written."""
        out_dir.mkdir(parents=True, exist_ok=True)
        self.out_dir = out_dir
        self.world = world
        path = out_dir / "events.jsonl" if world.is_main else Path(os.devnull)
        if path.is_file():
            # Without the incomplete last line of a killed process, to which the next event would be appended.
            with path.open("r+b") as file:
                file.truncate(file.read().rfind(b"\n") + 1)
        self._file = path.open("a", encoding="utf-8")
        self._writing = threading.RLock()
        self._stop = stop
        self._on_event = on_event
        self._position: Callable[[], dict[str, int]] = lambda: _NOWHERE
        self._phase: str | None = None
        self._phase_started_at = time.monotonic()
        self._last_progress_at = -math.inf
        self.warnings: list[dict[str, Any]] = []
        """Everything that was reported as a warning, in order."""
        self.eta = EtaEstimator(STAND_INS)
        self.seconds_by_phase: dict[str, float] = {}

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._close_phase()
        self._file.close()

    def event(self, type_: str, **fields: Any) -> None:
        """Append one event, from any thread. Numbers that are not finite become null: JSON has no NaN."""
        with self._writing:
            event = {"type": type_, "at": time.time(), **finite(fields)}
            self._file.write(json.dumps(event, allow_nan=False, ensure_ascii=False) + "\n")
            self._file.flush()
            if self._on_event is not None and self.world.is_main:
                self._on_event(event)

    def phase(self, phase: str, *, round_index: int, num_rounds: int, step: int, num_steps: int) -> None:
        """Report that the run enters `phase`."""
        self._close_phase()
        self._phase, self._phase_started_at, self._last_progress_at = phase, time.monotonic(), -math.inf
        self.eta.start(phase, step if phase == "training" else 0)  # steps are counted over the whole run
        self.event("phase", phase=phase, round=round_index, num_rounds=num_rounds, step=step, num_steps=num_steps)

    def track(self, position: Callable[[], dict[str, int]]) -> None:
        """Take the position of phases that are entered from now on from `position`: the arguments of `phase`."""
        self._position = position

    def also_stop_if(self, condition: Callable[[], bool]) -> None:
        """Stop the run at the next boundary once `condition` is true, as if it was asked to."""
        asked = self._stop
        self._stop = lambda: asked() or condition()

    def enter(self, phase: str) -> None:
        """Start `phase` at the tracked position, unless the run is in it already."""
        if self._phase != phase:
            self.phase(phase, **self._position())

    def report_progress(self, done: int, total: int, unit: str) -> None:
        """Report that `done` of `total` units of the current phase are finished."""
        self.eta.advance(done)
        now = time.monotonic()
        if done >= total or now - self._last_progress_at >= PROGRESS_SECONDS:
            self._last_progress_at = now
            remaining = self.eta.remaining_seconds()
            self.event("progress", phase=self._phase, done=done, total=total, unit=unit, eta_seconds=remaining)

    def generation_progress(self, progress: GenerationProgress) -> None:
        """Report a generator's progress on this process's share; call within `run_independently`.

        Raises `StopRequested` if this process was asked to stop.
        """
        size = self.world.size  # all processes have equal shares
        self.report_progress(progress.num_done * size, progress.num_requests * size, "samples")
        self.stop_if_asked()

    def stop_if_asked(self) -> None:
        """Raise `StopRequested` if this process was asked to stop; call within `run_independently`."""
        if self._stop():
            raise StopRequested

    def run_independently(self, work: Callable[[], T]) -> T:
        """Return the result of work during which the processes do not wait for each other. Collective.

        If any process saw a stop request meanwhile, `StopRequested` is raised in all of them afterwards.
        """
        try:
            result = work()
        except StopRequested:
            self.world.any(True)
            raise
        if self.world.any(False):
            raise StopRequested
        return result

    def boundary(self) -> None:
        """Raise `StopRequested` in all processes if any was asked to stop. Collective."""
        if self.world.any(self._stop()):
            raise StopRequested

    def metrics(self, step: int, round_index: int, values: Mapping[str, float]) -> None:
        """Report the metrics of one optimizer step."""
        self.event("metrics", step=step, round=round_index, values=dict(values))

    def notice(
        self, level: str, code: str, message: str, *, remedy: str = "", count: int = 1, example: str = "", **data: Any
    ) -> None:
        """Report a message for the user; `level` is info, warn or error. A strict run does not accept any warning."""
        found = {"code": code, "message": message, "remedy": remedy, "count": count, "example": example}
        if level == "warn":
            self.warnings.append(found)
        self.event("notice", level=level, **found, data=data)

    def report(self, notice: Notice) -> None:
        """Report a finding as a warning."""
        self.notice(
            "warn", notice.code, notice.message, remedy=notice.remedy, count=notice.count, example=notice.example
        )

    def require_no_warnings(self) -> None:
        """Raise `StrictNoticesError` if anything was reported as a warning so far. Collective."""
        if self.world.any(bool(self.warnings)):
            listed = [f"{w['code']}: {w['message']}; {w['remedy']}" for w in self.warnings] or ["see the other process"]
            raise StrictNoticesError("strict = true: " + " | ".join(listed))

    def failed(self, code: str, message: str, traceback: str | None = None, **facts: Any) -> None:
        """Report that the run failed."""
        self.event("failed", code=code, message=message, traceback=traceback, **facts)

    def finished(self, step: int, summary: Mapping[str, Any]) -> None:
        """Report that the run is complete."""
        self._close_phase()
        self.event("finished", step=step, summary={**summary, "seconds_by_phase": self.seconds_by_phase})

    def _close_phase(self) -> None:
        if self._phase is not None:
            spent = time.monotonic() - self._phase_started_at
            self.seconds_by_phase[self._phase] = self.seconds_by_phase.get(self._phase, 0.0) + spent
        self._phase = None
