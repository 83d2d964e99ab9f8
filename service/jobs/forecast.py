"""Memory and time of a job, for a dry run."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sqlalchemy.orm import Session

from contract.job_spec import JobSpec
from contract.teacher_spec import ServedTeacher
from service.jobs import history
from service.jobs.duration import NUM_LIKE, Duration, PastRun, by_calibration, by_history
from service.jobs.estimate import Estimate
from service.jobs.memory import Memory, memory
from service.models.service import ModelShelf
from service.models.shape import ModelShape, read_shape

NUM_LOOKED_AT = 200
"""Number of the owner's jobs that are searched for similar ones, the newest ones."""


@dataclass(frozen=True)
class Forecast:
    """What is known; for each None a note says why."""

    memory: Memory | None
    duration: Duration | None
    notes: list[str]


def forecast(session: Session, owner: str, spec: JobSpec, expected: Estimate | None, models: ModelShelf) -> Forecast:
    """Forecast memory and time of a resolved spec; `expected` is None if its counts are unknown."""
    notes: list[str] = []
    shapes = _shapes(spec, models, notes)
    needed = memory(spec, *shapes) if shapes is not None else None
    if needed is not None:
        notes.extend(_assumptions(spec))
    duration = _duration(session, owner, spec, expected, shapes)
    if duration is not None and duration.time_source == "calibration":
        notes.append("time: no like job of yours has succeeded; measured on a CPU, a GPU is far faster")
    return Forecast(needed, duration, notes)


def _shapes(spec: JobSpec, models: ModelShelf, notes: list[str]) -> tuple[ModelShape, ModelShape | None] | None:
    """Return (student's, named teacher's); None, with a note, if one is unknown."""
    student = _shape("student", spec.student, models, notes)
    if not isinstance(spec.teacher, str):
        return (student, None) if student is not None else None
    teacher = _shape("teacher", spec.teacher, models, notes)
    return (student, teacher) if student is not None and teacher is not None else None


def _shape(role: str, name: str, models: ModelShelf, notes: list[str]) -> ModelShape | None:
    found = models.find(name)
    if found is None or not found.entry.is_local:
        notes.append(f"{role} {name}: it is on a hub, and its sizes are unknown here; no memory estimate")
        return None
    shape = read_shape(Path(found.entry.source))
    if shape is None:
        notes.append(f"{role} {name}: its config.json does not contain its sizes; no memory estimate")
    return shape


def _assumptions(spec: JobSpec) -> list[str]:
    notes = []
    if spec.precision == "auto":
        notes.append("memory: precision auto is taken as bf16, as on a GPU; on a CPU it is fp32")
    if spec.optim.gradient_checkpointing is None:
        notes.append("memory: with gradient checkpointing, as on a GPU")
    if spec.sampling.engine != "transformers" and not spec.samples_apart:
        notes.append("memory: sampled by vLLM, which on a GPU reserves half of the device whatever it needs")
    return notes


def _duration(
    session: Session,
    owner: str,
    spec: JobSpec,
    expected: Estimate | None,
    shapes: tuple[ModelShape, ModelShape | None] | None,
) -> Duration | None:
    if expected is None:
        return None
    found = by_history(expected, _like_runs(session, owner, spec))
    if found is None and shapes is not None and not isinstance(spec.teacher, ServedTeacher):
        found = by_calibration(spec, expected, *shapes)
    return found


def _like_runs(session: Session, owner: str, spec: JobSpec) -> list[PastRun]:
    """The owner's alone: another's jobs do not show, not even in a median."""
    wanted = kind_of(spec.model_dump(mode="json"))
    runs: list[PastRun] = []
    for job_id, past, data in history.finished_at_once(session, owner, NUM_LOOKED_AT):
        seconds = seconds_by_phase(data)
        if seconds and kind_of(past) == wanted and len(runs) < NUM_LIKE:
            num_trajectories, steps, samples = history.work_done(session, job_id)
            optim = past["optim"]
            num_trained = min(num_trajectories * optim["epochs"], steps * optim["batch_size"])
            runs.append(PastRun(num_trajectories, num_trained, samples, seconds))
    return runs


def kind_of(spec: Mapping[str, Any]) -> tuple[Any, ...]:
    """What makes two jobs alike: models, mode, kind of weights, devices and budgets of new tokens."""
    budgets = (spec["sampling"]["max_new_tokens"], spec["refine"]["max_new_tokens"])
    return spec["student"], spec["teacher"], spec["mode"], spec["lora"] is None, spec["devices"], budgets


def seconds_by_phase(data: Mapping[str, Any]) -> dict[str, float]:
    """Return the times in the last event of a finished run; empty if it has none."""
    seconds = (data.get("summary") or {}).get("seconds_by_phase") or {}
    return {str(phase): float(spent) for phase, spent in seconds.items() if isinstance(spent, int | float)}
