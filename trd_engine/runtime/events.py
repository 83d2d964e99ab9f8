"""What a run says while it goes: JSON lines in ``events.jsonl``, which the worker, or a person, follows.

Owns the format of the events, their throttling, and the check for a stop request; every long loop
of the engine passes through `Reporter.boundary` or `Reporter.progress`, and stops there when asked to.
"""

from __future__ import annotations

import json
import math
import os
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from types import TracebackType
from typing import Any, Self, TypeVar

from trd_engine.runtime.distributed import ALONE, World
from trd_engine.runtime.errors import StopRequested
from trd_engine.runtime.eta import EtaEstimator
from trd_engine.runtime.plain_json import finite
from trd_engine.types import GenerationProgress

T = TypeVar("T")

PROGRESS_SECONDS = 1.0
"""At most one progress event in so much time: the file stays small and the reader keeps up."""

STAND_INS = {
    "rollout": ("evaluating", "refining"),
    "refining": ("rollout", "evaluating"),
    "evaluating": ("rollout",),
}
"""Whose pace each phase borrows before it has one, see `EtaEstimator`."""


class Reporter:
    """Appends events to ``out_dir/events.jsonl``, one line each, flushed at once.

    Of several processes the main one alone writes; a stop that one of them sees ends all at the same boundary.
    """

    def __init__(self, out_dir: Path, *, stop: Callable[[], bool] = lambda: False, world: World = ALONE) -> None:
        out_dir.mkdir(parents=True, exist_ok=True)
        self.out_dir = out_dir
        self.world = world
        path = out_dir / "events.jsonl" if world.is_main else Path(os.devnull)
        if path.is_file():
            _drop_half_a_line(path)
        self._file = path.open("a", encoding="utf-8")
        self._stop = stop
        self._phase: str | None = None
        self._phase_started_at = time.monotonic()
        self._last_progress_at = -math.inf
        self.eta = EtaEstimator(STAND_INS)
        self.seconds_by_phase: dict[str, float] = {}

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._close_phase()
        self._file.close()

    @property
    def current_phase(self) -> str | None:
        """The phase that the run is in."""
        return self._phase

    def event(self, type_: str, **fields: Any) -> None:
        """Append one event. Numbers that are not finite become null: JSON has no NaN."""
        line = json.dumps({"type": type_, "at": time.time(), **finite(fields)}, allow_nan=False, ensure_ascii=False)
        self._file.write(line + "\n")
        self._file.flush()

    def phase(self, phase: str, *, round_index: int, num_rounds: int, step: int, num_steps: int) -> None:
        """The run is now in `phase`."""
        self._close_phase()
        self._phase, self._phase_started_at, self._last_progress_at = phase, time.monotonic(), -math.inf
        self.eta.start(phase, step if phase == "training" else 0)  # steps are counted through the whole run
        self.event("phase", phase=phase, round=round_index, num_rounds=num_rounds, step=step, num_steps=num_steps)

    def report_progress(self, done: int, total: int, unit: str) -> None:
        """`done` of `total` units of the current phase are finished."""
        self.eta.advance(done)
        now = time.monotonic()
        if done >= total or now - self._last_progress_at >= PROGRESS_SECONDS:
            self._last_progress_at = now
            remaining = self.eta.remaining_seconds()
            self.event("progress", phase=self._phase, done=done, total=total, unit=unit, eta_seconds=remaining)

    def generation_progress(self, progress: GenerationProgress) -> None:
        """Report a generator's progress on this process's share; call within `run_independently`.

        Raises `StopRequested` when this process was asked to stop.
        """
        size = self.world.size  # shares are alike: this one tells how far all are
        self.report_progress(progress.num_done * size, progress.num_requests * size, "samples")
        self.stop_if_asked()

    def stop_if_asked(self) -> None:
        """Raise `StopRequested` when this process was asked to stop; within `run_independently`."""
        if self._stop():
            raise StopRequested

    def run_independently(self, work: Callable[[], T]) -> T:
        """The result of work at which the processes do not wait for one another.

        A stop that one of them saw meanwhile is raised in all of them, after it.
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
        """Raise `StopRequested` when the run was asked to stop; all processes come here together."""
        if self.world.any(self._stop()):
            raise StopRequested

    def metrics(self, step: int, round_index: int, values: Mapping[str, float]) -> None:
        """One optimizer step's numbers."""
        self.event("metrics", step=step, round=round_index, values=dict(values))

    def notice(self, level: str, code: str, message: str, **data: Any) -> None:
        """Something the user should know; `level` is info, warn or error."""
        self.event("notice", level=level, code=code, message=message, data=data)

    def failed(self, code: str, message: str, traceback: str | None = None) -> None:
        """The run ends here, for this reason."""
        self.event("failed", code=code, message=message, traceback=traceback)

    def finished(self, step: int, summary: Mapping[str, Any]) -> None:
        """The run is complete."""
        self._close_phase()
        self.event("finished", step=step, summary={**summary, "seconds_by_phase": self.seconds_by_phase})

    def _close_phase(self) -> None:
        if self._phase is not None:
            spent = time.monotonic() - self._phase_started_at
            self.seconds_by_phase[self._phase] = self.seconds_by_phase.get(self._phase, 0.0) + spent
        self._phase = None


def _drop_half_a_line(path: Path) -> None:
    """What a process that was killed had begun to write: the next event would be appended to it."""
    with path.open("r+b") as file:
        file.truncate(file.read().rfind(b"\n") + 1)
