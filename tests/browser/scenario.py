"""Jobs in every state, recorded as a worker records them, for the pages that show them.

Figures are drawn from fixed generators. What a run records grows with `num_steps`.
"""

from __future__ import annotations

import math
import random
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import httpx

from contract.database import Database
from contract.events import NewEvent, append_events
from contract.job_state import AttemptStatus, JobStatus
from contract.tables import Attempt, MetricPoint
from tests.service.engine_reports import engine_report
from tests.service.records import (
    add_checkpoint,
    add_diagnosis,
    add_evaluation,
    add_probe_sample,
    add_trajectory,
    set_job,
    submit,
)

MODELS = {"student": "tiny-student", "teacher": "tiny-teacher", "task": "exact"}
FILES = {
    "model/config.json": b'{"model_type": "qwen3"}\n',
    "model/model.safetensors": bytes(40_000),
    "adapter/adapter_config.json": b"{}\n",
}
HOSTILE = """<script>document.title="owned"</script>"><img src=x onerror=document.title="owned">{{ 7 * 7 }}${7*7}"""
PHASES = (("rollout", 60), ("refining", 140), ("diagnosing", 20), ("training", 190), ("saving", 6))


@dataclass(frozen=True)
class Scenario:
    """The ids of the jobs."""

    finished: str
    failed: str
    resumed: str
    running: str
    queued: str
    hostile: str


def make_scenario(client: httpx.Client, database: Database, storage: Path, num_steps: int = 240) -> Scenario:
    """Submit the jobs through the API and record their runs."""
    hostile = submit(client, **MODELS, name=HOSTILE, tags=["<b>tag</b>"])
    set_job(
        database, hostile, status=JobStatus.FAILED, error_code="bad_data", error_message=HOSTILE, error_hint=HOSTILE
    )
    with database.write() as session:
        append_events(session, hostile, NewEvent("notice", HOSTILE, {}, "error"))
    add_trajectory(database, hostile, 0, rollout=HOSTILE, refined=f"{HOSTILE} refined", prompt=HOSTILE, answer=HOSTILE)
    finished = submit(client, **MODELS, name="Sums, refined by the tiny teacher", tags=["sums", "baseline"])
    record_run(database, finished, num_steps, rounds=3, hours_ago=5)
    for step in (num_steps // 2, num_steps):
        add_checkpoint(database, storage, finished, step, FILES)
    notice = {"code": "unread_columns", "message": "The column 'source' is read by nothing.", "remedy": "Remove it."}
    set_job(database, finished, status=JobStatus.SUCCEEDED, notices=[notice], eta_seconds=0.0, phase=None)
    failed = submit(client, **MODELS, name="Sums, learning rate too high", optim={"learning_rate": 0.01})
    record_run(database, failed, num_steps // 4, rounds=1, hours_ago=3, end=AttemptStatus.FAILED)
    message = "loss = nan, gradient norm = nan: the step was not taken and the weights are as before it"
    hint = "Lower optim.learning_rate, and resume from the last checkpoint."
    set_job(
        database, failed, status=JobStatus.FAILED, error_code="non_finite", error_message=message,
        error_hint=hint, error_retryable=False, num_steps=num_steps, phase=None,
    )  # fmt: skip
    resumed = submit(client, **MODELS, name="Sums, resumed after a lost worker", tags=["sums"])
    record_run(database, resumed, num_steps // 2, rounds=2, hours_ago=2, lost_at=num_steps // 5)
    set_job(database, resumed, status=JobStatus.SUCCEEDED, phase=None)
    running = submit(client, **MODELS, name="Sums, three rounds", tags=["sums", "night"], rounds=3)
    record_run(database, running, num_steps // 3, rounds=1, hours_ago=0.4, end=None)
    progress: dict[str, Any] = {"phase": "training", "phase_done": num_steps // 3, "phase_total": num_steps}
    set_job(
        database, running, status=JobStatus.RUNNING, num_steps=num_steps, num_rounds=3, eta_seconds=2520.0,
        lease_expires_at=datetime.now(UTC) + timedelta(hours=9), finished_at=None, **progress,
    )  # fmt: skip
    queued = submit(client, **MODELS, name="Waits for a worker")
    return Scenario(finished, failed, resumed, running, queued, hostile)


def record_run(
    database: Database,
    job_id: str,
    num_steps: int,
    *,
    rounds: int,
    hours_ago: float,
    lost_at: int | None = None,
    end: AttemptStatus | None = AttemptStatus.SUCCEEDED,
) -> None:
    """Record a run: attempts, phases, metrics, trajectories, diagnoses, evaluations and probe samples."""
    begun = datetime.now(UTC) - timedelta(hours=hours_ago)
    finished_at = _add_attempts_and_phases(database, job_id, begun, num_steps, rounds, lost_at, end)
    add_curves(database, job_id, num_steps, begun)
    draw = random.Random(job_id[-4:])
    for round in range(rounds):
        for position in range(12):
            verdicts = (draw.random() < 0.4, draw.random() < 0.8)
            texts = {"rollout": "17 + 25: 7 + 5 is 11, so 41", "refined": "17 + 25: 7 + 5 is 12, so 42"}
            tokens = {"rollout_tokens": draw.randint(8, 60), "refined_tokens": draw.randint(8, 60)}
            add_trajectory(database, job_id, position, round=round, verdicts=verdicts, **texts, **tokens)
        add_diagnosis(database, job_id, round, engine_report())
    add_evaluation(database, job_id, 0, 0.22)
    add_evaluation(database, job_id, num_steps // 2, 0.47)
    if end is AttemptStatus.SUCCEEDED:
        add_evaluation(database, job_id, num_steps, 0.63)
    for step in (0, num_steps):
        add_probe_sample(database, job_id, step)
    latest = {"loss": 0.21, "grad_norm": 0.4}
    set_job(
        database, job_id, step=num_steps, num_steps=num_steps, round=rounds - 1, num_rounds=rounds,
        attempt=2 if lost_at else 1, latest_metrics=latest, created_at=begun - timedelta(seconds=90),
        started_at=begun, finished_at=finished_at,
    )  # fmt: skip


def _add_attempts_and_phases(
    database: Database,
    job_id: str,
    begun: datetime,
    num_steps: int,
    rounds: int,
    lost_at: int | None,
    end: AttemptStatus | None,
) -> datetime:
    at, events, attempts = begun, [], []
    first = {"job_id": job_id, "number": 1, "worker": "gpu-07:4711", "lease_token": 1, "started_at": begun}
    if lost_at is not None:
        events += [_phase(begun + timedelta(seconds=40 + 60 * i), name) for i, (name, _) in enumerate(PHASES[:4])]
        lost = begun + timedelta(minutes=17)
        what = {"error_code": "lost", "error_message": "The worker stopped renewing its lease."}
        attempts.append(
            Attempt(**first, status=AttemptStatus.LOST, first_step=0, last_step=lost_at, finished_at=lost, **what)
        )
        at = lost + timedelta(minutes=6)
        first |= {"number": 2, "worker": "gpu-02:911", "lease_token": 2, "started_at": at}
        events.append(
            NewEvent("status", "Attempt 1 was lost; the job is queued again.", {"status": "queued"}, "warn", lost)
        )
    at += timedelta(seconds=30)
    for _ in range(rounds):
        for name, seconds in (*PHASES, ("evaluating", 45)):
            events.append(_phase(at, name))
            at += timedelta(seconds=seconds)
    status = end or AttemptStatus.RUNNING
    attempts.append(
        Attempt(
            **first, status=status, first_step=lost_at or 0, last_step=num_steps if end else None,
            finished_at=at if end else None, error_code="non_finite" if end is AttemptStatus.FAILED else None,
        )
    )  # fmt: skip
    if end is not None:
        message = "The run is over." if end is AttemptStatus.SUCCEEDED else "Attempt 1 failed; the job failed."
        level = "info" if end is AttemptStatus.SUCCEEDED else "error"
        events.append(NewEvent("status", message, {"status": status}, level, at))  # type: ignore[arg-type]
    with database.write() as session:
        session.add_all(attempts)
        append_events(session, job_id, *events)
    return at


def _phase(at: datetime, name: str) -> NewEvent:
    return NewEvent("phase", f"Phase {name}, round 1.", {"phase": name}, at=at)


def add_curves(database: Database, job_id: str, num_steps: int, at: datetime, first: int = 1) -> None:
    """Record the metrics of steps, the last one `num_steps`."""
    draw = random.Random(7)
    rows = []
    for step in range(first, num_steps + 1):
        fall, noise = math.exp(-2.2 * step / num_steps), lambda: 1 + 0.12 * draw.gauss(0, 1)
        values = {
            "loss": 0.2 + 0.8 * fall * noise(),
            "divergence_per_token": 0.03 + 0.25 * fall * noise(),
            "divergence_p50": 0.01 + 0.05 * fall * noise(),
            "divergence_p95": 0.1 + 0.9 * fall * noise(),
            "divergence_p99": 0.3 + 1.8 * fall * noise(),
            "clip_share": max(0.0, 0.08 * fall * noise()),
            "grad_norm": 0.3 + 1.2 * fall * abs(noise()),
            "learning_rate": 5e-6 * min(1, step / (0.1 * num_steps)) * (1 - 0.9 * step / num_steps),
            "tokens_per_second": 8400 * noise() ** 0.3 if num_steps else 0,
            "student_entropy": 0.4 + 0.3 * fall * noise(),
            "top1_agreement": 0.95 - 0.2 * fall * noise(),
        }
        if step % max(1, num_steps // 12) == 0:
            values["heldout_forward_kl"] = 0.05 + 0.3 * fall
        now = at + timedelta(seconds=2 * step)
        rows += [{"job_id": job_id, "name": k, "step": step, "value": v, "at": now} for k, v in values.items()]
    with database.write() as session:
        session.execute(MetricPoint.__table__.insert(), rows)
