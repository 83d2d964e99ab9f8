"""Memory and time of a job, for a dry run."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from statistics import median
from typing import Any, Literal

from sqlalchemy.orm import Session

from contract.job_spec import JobSpec
from contract.routing import Needs, endpoint_name
from contract.teacher_spec import ServedTeacher
from service.jobs import history, repository
from service.models.service import ModelCatalog
from trd_estimate.counts import Counts, count
from trd_estimate.hardware import CPU, H100, Hardware, hardware_of_kind
from trd_estimate.memory import Models, is_served, least_bytes, takes_transformers
from trd_estimate.phases import PhaseEstimate, estimate_phases, shortfalls
from trd_estimate.shape import ModelShape

NUM_LOOKED_AT = 200
"""Number of the owner's jobs that are searched for similar ones, the newest ones."""
NUM_LIKE = 5
"""Number of similar jobs that are used, the newest ones."""
TimeSource = Literal["history", "peak_figures", "calibration"]


@dataclass(frozen=True)
class Forecast:
    """The forecast of a job; a note says why a value is unknown."""

    hardware: Hardware
    phases: list[PhaseEstimate]
    time_source: TimeSource | None
    """None if no times are known."""
    num_like_jobs: int
    notes: list[str]


@dataclass(frozen=True)
class PastRun:
    """What a similar job that succeeded in one attempt did."""

    num_trajectories: int
    num_trained: int
    """Trajectories in optimizer steps; one that is used several times is counted each time."""
    num_evaluated: int
    """Samples of all evaluations."""
    seconds_by_phase: dict[str, float]


def counts_of(spec: JobSpec, num_problems: int | None, num_evaluation_problems: int | None) -> Counts | None:
    """Return the counts of a resolved spec; None if the size of one of its datasets is unknown."""
    if num_problems is None or (spec.evaluation.dataset is not None and num_evaluation_problems is None):
        return None
    return count(spec, num_problems, spec.evaluation.num_heldout(num_problems), num_evaluation_problems)


def device_kind_of(session: Session, spec: JobSpec) -> str | None:
    """Return the kind of device that the newest live worker of the job's queue has reported."""
    for worker in repository.live_workers(session):
        if spec.queue in worker.queues and worker.device_kind is not None:
            with suppress(ValueError):  # of a worker of another version
                return hardware_of_kind(worker.device_kind).kind
    return None


def nodes_note(needs: Needs, devices_per_node: int | None) -> list[str]:
    """Return a note on the number of machines, if the job needs several."""
    num_nodes = needs.num_nodes(devices_per_node) if devices_per_node is not None else None
    if num_nodes is None or num_nodes == 1:
        return []
    return [f"nodes: {num_nodes}, each with up to {devices_per_node} devices (TRD_DEVICES_PER_NODE)"]


def needs_of(spec: JobSpec, catalog: ModelCatalog) -> Needs:
    """Return what a resolved spec requires of a worker."""
    models = _models(spec, catalog, [])
    teacher = endpoint_name(spec.teacher.endpoint) if isinstance(spec.teacher, ServedTeacher) else spec.teacher
    return Needs(
        num_processes=spec.devices,
        num_devices=spec.num_devices,
        models=tuple(dict.fromkeys(name for name in (spec.student, teacher) if name is not None)),
        gpu_bytes=least_bytes(spec, models, H100) if models is not None else None,  # the same on any GPU
        cpu_bytes=least_bytes(spec, models, CPU) * spec.devices if models is not None else None,
    )


def forecast(
    session: Session, owner: str, spec: JobSpec, counts: Counts | None, catalog: ModelCatalog, device_kind: str | None
) -> Forecast:
    """Forecast the phases of a resolved spec; `counts` and `device_kind` are None if unknown."""
    notes: list[str] = []
    hardware = hardware_of_kind(device_kind) if device_kind is not None else CPU
    models = _models(spec, catalog, notes)
    past = _like_runs(session, owner, spec) if counts is not None else []
    known = seconds_like(counts, past) if counts is not None else {}
    # Nothing is known of a server's speed.
    seconds = known or ({} if is_served(spec) or spec.sampling.pool is not None else None)
    phases = estimate_phases(spec, models, counts, hardware, seconds)
    if models is not None:
        notes.extend(_assumptions(spec, hardware))
        notes.extend(shortfalls(spec, models, hardware, phases))
    if known:
        return Forecast(hardware, phases, "history", len(past), notes)
    if all(one.seconds is None for one in phases):
        return Forecast(hardware, phases, None, 0, notes)
    if hardware.is_gpu:
        notes.append(
            f"time: not measured, but computed from expected lengths and peak figures of {hardware.speed_source}"
        )
        return Forecast(hardware, phases, "peak_figures", 0, notes)
    notes.append("time: no like job of yours has succeeded; measured on a CPU, a GPU is far faster")
    return Forecast(hardware, phases, "calibration", 0, notes)


def _models(spec: JobSpec, catalog: ModelCatalog, notes: list[str]) -> Models | None:
    """Return the shapes; None, with a note, if one is unknown."""
    student = _shape("student", spec.student, catalog, notes)
    if not isinstance(spec.teacher, str):
        return Models(student) if student is not None else None
    teacher = _shape("teacher", spec.teacher, catalog, notes)
    return Models(student, teacher) if student is not None and teacher is not None else None


def _shape(role: str, name: str, catalog: ModelCatalog, notes: list[str]) -> ModelShape | None:
    found = catalog.find(name)
    if found is None or not found.entry.is_local:
        notes.append(f"{role} {name}: it is on a hub, and its sizes are unknown here; no memory estimate")
        return None
    shape = found.shape
    if shape is None:
        notes.append(f"{role} {name}: its config.json does not contain its sizes; no memory estimate")
    return shape


def _assumptions(spec: JobSpec, hardware: Hardware) -> list[str]:
    notes = [f"devices: taken as {hardware.kind}; an operator can set TRD_DEVICE_KIND"]
    if hardware.is_gpu and spec.sampling.engine == "auto" and not takes_transformers(spec, hardware):
        notes.append("memory: sampled by vLLM, whose engine takes what is free while it is awake")
    return notes


def _like_runs(session: Session, owner: str, spec: JobSpec) -> list[PastRun]:
    """Read only the owner's jobs, so that no median reveals those of others."""
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
    """Return what makes two jobs alike: models, mode, kind of weights, devices and budgets of new tokens."""
    budgets = (spec["sampling"]["max_new_tokens"], spec["refine"]["max_new_tokens"])
    return spec["student"], spec["teacher"], spec["mode"], spec["lora"] is None, spec["devices"], budgets


def seconds_by_phase(data: Mapping[str, Any]) -> dict[str, float]:
    """Return the times in the last event of a finished run; empty if it has none."""
    seconds = (data.get("summary") or {}).get("seconds_by_phase") or {}
    return {str(phase): float(spent) for phase, spent in seconds.items() if isinstance(spent, int | float)}


def seconds_like(expected: Counts, past: Sequence[PastRun]) -> dict[str, float]:
    """Return each phase's time: medians over similar jobs of the seconds of its unit; empty without a similar job."""
    ours = _units(expected.num_trajectories, expected.num_trained_trajectories, expected.num_evaluation_samples)
    rates: dict[str, list[float]] = {}
    for run in past:
        theirs = _units(run.num_trajectories, run.num_trained, run.num_evaluated)
        for phase, seconds in run.seconds_by_phase.items():
            if (num := theirs.get(phase, 1)) > 0:
                rates.setdefault(phase, []).append(seconds / num)
    return {phase: round(median(found) * ours.get(phase, 1), 3) for phase, found in rates.items()}


def _units(num_trajectories: int, num_trained: int, num_evaluated: int) -> dict[str, int]:
    """Return the counts that the phases' times grow with; other phases run once per run."""
    return {
        "rollout": num_trajectories,
        "refining": num_trajectories,
        "training": num_trained,
        "evaluating": num_evaluated,
    }
