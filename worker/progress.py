"""Copies the events of a running child into the database, about once a second, and all of them by its end."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Iterator
from functools import singledispatchmethod
from itertools import islice
from pathlib import Path
from typing import Any, Self

from sqlalchemy.exc import InterfaceError, OperationalError
from sqlalchemy.exc import TimeoutError as PoolTimeoutError

from contract.events import NewEvent, notice
from contract.job_state import Phase
from contract.views.trajectories import outcome
from worker import repository
from worker.attempt import Attempt
from worker.engine_events import (
    BadEventError,
    CheckpointEvent,
    DiagnosisEvent,
    EngineEvent,
    EvaluationEvent,
    FailedEvent,
    FinishedEvent,
    MetricsEvent,
    NoticeEvent,
    PhaseEvent,
    ProbeSamplesEvent,
    ProgressEvent,
    TrajectoriesEvent,
    load_json_line,
    parse_event,
    short_problem_id,
)
from worker.lease import LeaseLostError
from worker.metrics import observe_step
from worker.periodic import ContextThread
from worker.repository import ProgressBatch
from worker.spans import PhaseSpans

logger = logging.getLogger(__name__)

PASSING_DATABASE_ERRORS = (OperationalError, InterfaceError, PoolTimeoutError)
"""Errors of a database that is unreachable for a while; retrying may help."""

TRAJECTORIES_A_WRITE = 200
MAX_TRACEBACK_CHARACTERS = 8_000


class EventFold:
    """The state that the events so far amount to, and the part that is not written yet."""

    def __init__(self, job_id: str) -> None:
        self._job_id = job_id
        self._latest_metrics: dict[str, float | None] = {}
        self.batch = ProgressBatch()
        self.trajectory_files: list[TrajectoriesEvent] = []
        self.checkpoints: list[CheckpointEvent] = []
        self.failed: FailedEvent | None = None
        self.finished: FinishedEvent | None = None

    @singledispatchmethod
    def add(self, event: EngineEvent) -> None:
        """Apply one more event."""
        raise NotImplementedError(type(event))

    @add.register
    def _(self, event: TrajectoriesEvent) -> None:
        self.trajectory_files.append(event)

    @add.register
    def _(self, event: CheckpointEvent) -> None:
        self.checkpoints.append(event)  # the run may be some steps on already

    @add.register
    def _(self, event: FinishedEvent) -> None:
        self.batch.job_columns |= {"step": event.step, "eta_seconds": 0.0}
        self.finished = event

    @add.register
    def _(self, event: DiagnosisEvent) -> None:
        row = {"job_id": self._job_id, "round": event.round, "step": event.step, "report": event.report}
        self.batch.diagnoses[event.round] = {**row, "created_at": event.happened_at}

    @add.register
    def _(self, event: ProbeSamplesEvent) -> None:
        for position, sample in enumerate(event.samples):
            key = {"job_id": self._job_id, "step": event.step, "position": position}
            row = {**key, **sample.model_dump(), "created_at": event.happened_at}
            self.batch.probe_samples[event.step, position] = row

    def add_bad_line(self, error: BadEventError) -> None:
        """Record a line that is not a valid event: the versions of engine and worker do not match."""
        message = f"The engine wrote an event that this worker does not understand: {error}"
        self.batch.events.append(notice("warn", "bad_event", message))

    @add.register
    def _(self, event: PhaseEvent) -> None:
        position = {"round": event.round, "num_rounds": event.num_rounds}
        if event.num_steps > 0:  # 0 while the engine does not know them yet: a resumed run would seem to start again
            position |= {"step": event.step, "num_steps": event.num_steps}
        self.batch.job_columns |= {**position, "phase": event.phase, "phase_done": None, "phase_total": None}
        message = f"Phase {event.phase}, round {event.round + 1} of {event.num_rounds}."
        data = {"phase": event.phase, **position}
        self.batch.events.append(NewEvent("phase", message, data, at=event.happened_at))

    @add.register
    def _(self, event: ProgressEvent) -> None:
        columns = {"phase": event.phase, "phase_done": event.done, "phase_total": event.total}
        self.batch.job_columns |= {**columns, "eta_seconds": event.eta_seconds}
        if event.phase == Phase.TRAINING:
            self.batch.job_columns["step"] = event.done

    @add.register
    def _(self, event: MetricsEvent) -> None:
        self._latest_metrics |= event.values
        observe_step(event.values)
        self.batch.job_columns |= {"step": event.step, "latest_metrics": dict(self._latest_metrics)}
        for name, value in event.values.items():
            row = {"job_id": self._job_id, "name": name, "step": event.step, "value": value, "at": event.happened_at}
            self.batch.metric_points[name, event.step] = row

    @add.register
    def _(self, event: EvaluationEvent) -> None:
        scores = event.model_dump(exclude={"at", "type"})
        row = {**scores, "job_id": self._job_id, "created_at": event.happened_at}
        self.batch.evaluations[event.step, event.dataset] = row
        message = (
            f"{event.dataset} at step {event.step}: avg@{event.k} {event.avg_at_k:.3f}, "
            f"pass@{event.k} {event.pass_at_k:.3f} on {event.num_problems} problems."
        )
        self.batch.events.append(NewEvent("evaluation", message, scores, at=event.happened_at))

    @add.register
    def _(self, event: NoticeEvent) -> None:
        details = {"code": event.code, "remedy": event.remedy, "count": event.count, "example": event.example}
        if event.level == "warn":
            self.batch.notices.append({**details, "message": event.message})
        data = {**event.data, **details}
        self.batch.events.append(NewEvent("notice", event.message, data, event.level, event.happened_at))

    @add.register
    def _(self, event: FailedEvent) -> None:
        self.failed = event
        data: dict[str, Any] = {"code": event.code}
        if event.pass_tokens is not None:
            data["pass_tokens"] = event.pass_tokens
        if event.traceback is not None:
            data["traceback"] = event.traceback[-MAX_TRACEBACK_CHARACTERS:]
        self.batch.events.append(NewEvent("notice", event.message, data, "error", event.happened_at))


class EventTail:
    """Reads the complete lines that were added to a growing file."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._offset = 0

    def new_lines(self) -> list[bytes]:
        """Return the new lines without their line ends; an incomplete line is returned by a later call."""
        if not self._path.exists():
            return []
        with self._path.open("rb") as file:
            file.seek(self._offset)
            complete, newline, _ = file.read().rpartition(b"\n")
        self._offset += len(complete) + len(newline)
        return [line for line in complete.split(b"\n") if line]


class Progress:
    """A context manager whose thread copies a child's events until the child has exited and all are written.

    `on_checkpoint` is called with each checkpoint's event, in order. Leaving the context writes the remaining events
    and raises the error that stopped the thread: `LeaseLostError`, or a database error that a retry does not help.
    """

    def __init__(self, attempt: Attempt, *, on_checkpoint: Callable[[CheckpointEvent], None]) -> None:
        self._attempt = attempt
        self._on_checkpoint = on_checkpoint
        self._tail = EventTail(attempt.run_dir / "events.jsonl")
        self._fold = EventFold(attempt.job_id)
        self._phases = PhaseSpans()
        self._unwritten: ProgressBatch | None = None
        """A batch whose commit may have succeeded or not; nothing is added to it before it is written."""
        self._num_writes: int | None = None
        """Writes of the attempt so far; None until it is read."""
        self._child_exited = threading.Event()
        self._error: Exception | None = None
        self._thread = ContextThread(self._follow, f"progress-{attempt.job_id}")

    @property
    def is_broken(self) -> bool:
        """Whether the thread ended early, so that the child would run unobserved."""
        return self._error is not None

    @property
    def failed(self) -> FailedEvent | None:
        """The event in which the child reports its failure."""
        return self._fold.failed

    @property
    def finished(self) -> FinishedEvent | None:
        """The event in which the child reports that its run is complete."""
        return self._fold.finished

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, kind: object, error: object, trace: object) -> None:
        self._child_exited.set()
        self._thread.join()
        if self._error is not None and error is None:
            raise self._error

    def _follow(self) -> None:
        try:
            while not self._child_exited.wait(self._attempt.settings.progress_seconds):
                self._take_new_lines()
                self._try_to_write()
            self._take_new_lines()
            while not self._try_to_write():
                if self._attempt.is_lost():
                    raise LeaseLostError(
                        f"{self._attempt.job_id}: the database was unreachable until the lease expired"
                    )
                time.sleep(self._attempt.settings.progress_seconds)
        except Exception as error:
            if not isinstance(error, LeaseLostError):
                logger.exception("the progress of %s cannot be recorded", self._attempt.job_id)
            self._error = error
        finally:
            self._phases.close()

    def _take_new_lines(self) -> None:
        for line in self._tail.new_lines():
            try:
                event = parse_event(line)
                self._fold.add(event)
                self._phases.add(event)
            except BadEventError as error:
                self._fold.add_bad_line(error)

    def _try_to_write(self) -> bool:
        """Write everything that is pending; return False if the database is unreachable."""
        try:
            self._write_batch()
            self._write_trajectories()
        except PASSING_DATABASE_ERRORS as error:
            logger.warning("progress of %s waits for the database: %s", self._attempt.job_id, error)
            return False
        while self._fold.checkpoints:
            self._on_checkpoint(self._fold.checkpoints.pop(0))
        return True

    def _write_batch(self) -> None:
        while self._unwritten is not None or not self._fold.batch.is_empty:
            if self._unwritten is None:
                self._unwritten, self._fold.batch = self._fold.batch, ProgressBatch()
            lease = self._attempt.lease
            if self._num_writes is None:
                with self._attempt.database.read() as session:
                    self._num_writes = repository.count_writes(session, lease)
            number = self._num_writes + 1
            with self._attempt.write() as session:
                if repository.is_new_write(session, lease, number):
                    repository.write_progress(session, lease, self._unwritten)
            self._unwritten, self._num_writes = None, number

    def _write_trajectories(self) -> None:
        while self._fold.trajectory_files:
            event = self._fold.trajectory_files[0]
            num_written = 0
            remaining = trajectory_rows(self._attempt.run_dir, event, self._attempt.job_id)
            while rows := list(islice(remaining, TRAJECTORIES_A_WRITE)):
                with self._attempt.write() as session:
                    repository.write_trajectories(session, rows)
                num_written += len(rows)
            with self._attempt.write() as session:
                repository.forget_trajectories_from(session, self._attempt.lease, event.round, num_written)
            self._fold.trajectory_files.pop(0)


def trajectory_rows(run_dir: Path, event: TrajectoriesEvent, job_id: str) -> Iterator[dict[str, Any]]:
    """Yield the rows of the event's file; raises `BadEventError` if it is outside the run's folder."""
    path = (run_dir / event.path).resolve()
    if not path.is_relative_to(run_dir.resolve()):
        raise BadEventError(f"trajectories: {event.path!r} is outside the run's folder")
    with path.open("rb") as file:
        for line in file:
            yield _trajectory_row(load_json_line(line), event.round, job_id)


_COPIED_FIELDS = (
    "position",
    "sample",
    "prompt",
    "answer",
    "rollout",
    "refined",
    "rollout_correct",
    "refined_correct",
    "rollout_tokens",
    "refined_tokens",
    "detail",
)


def _trajectory_row(line: dict[str, Any], round_index: int, job_id: str) -> dict[str, Any]:
    verdicts = outcome(line["rollout_correct"], line["refined_correct"])
    token_kl = None
    if "kl_per_token_rollout" in line:  # the trajectory was diagnosed
        token_kl = {"rollout": line["kl_per_token_rollout"], "refined": line.get("kl_per_token_refined")}
    return {
        "job_id": job_id,
        "round": round_index,
        "outcome": verdicts,
        "problem_id": short_problem_id(line["problem_id"]),
        "step": line.get("step"),
        "parts_at_token": line.get("parts_at_token"),
        "token_kl": token_kl,
        "token_detail": line.get("token_detail"),
        **{name: line[name] for name in _COPIED_FIELDS},
    }
