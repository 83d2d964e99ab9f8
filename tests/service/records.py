"""What a worker would have written, put into the database and the storage by the test."""

from __future__ import annotations

import hashlib
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import httpx
from fastapi.testclient import TestClient
from sqlalchemy import update

from contract.database import Database
from contract.events import NewEvent, append_events
from contract.ids import CHECKPOINT_PREFIX, new_id
from contract.job_state import JobStatus
from contract.storage import Storage
from contract.storage_keys import checkpoint_prefix
from contract.tables import (
    Checkpoint,
    CheckpointFile,
    Diagnosis,
    Evaluation,
    Job,
    MetricPoint,
    ProbeSample,
    Trajectory,
)
from contract.views.trajectories import outcome
from service.context import ServiceContext

ROWS = "".join(f'{{"problem": "{i} + {i}", "answer": "{2 * i}", "solution": "{2 * i}"}}\n' for i in range(1, 41))


def context_of(client: TestClient) -> ServiceContext:
    context: ServiceContext = client.app.state.context  # type: ignore[attr-defined]
    return context


Source = TestClient | Database
"""The application in this process, or the database of one elsewhere."""


def database_of(source: Source) -> Database:
    return source if isinstance(source, Database) else context_of(source).database


def upload(client: httpx.Client, rows: str = ROWS, **headers: str) -> str:
    response = client.post("/datasets", content=rows, headers={"content-type": "application/jsonl", **headers})
    assert response.status_code == 201, response.text
    return str(response.json()["id"])


def job_body(client: httpx.Client, **changes: Any) -> dict[str, Any]:
    """Return a body that is accepted, on its own dataset."""
    dataset = changes.pop("dataset", None) or upload(client)
    return {"mode": "trd", "student": "small", "teacher": "small-teacher", "dataset": dataset, **changes}


def submit(client: httpx.Client, **changes: Any) -> str:
    response = client.post("/jobs", json=job_body(client, **changes))
    assert response.status_code == 201, response.text
    return str(response.json()["id"])


def set_job(client: Source, job_id: str, **values: Any) -> None:
    with database_of(client).write() as session:
        session.execute(update(Job).where(Job.id == job_id).values(**values))


def add_events(database: Database, job_id: str, count: int) -> None:
    for number in range(count):
        with database.write() as session:
            append_events(session, job_id, NewEvent("notice", f"number {number}", {"number": number}))


def finish_job(database: Database, job_id: str, status: JobStatus = JobStatus.SUCCEEDED) -> None:
    with database.write() as session:
        session.execute(update(Job).where(Job.id == job_id).values(status=status, finished_at=datetime.now(UTC)))
        append_events(session, job_id, NewEvent("status", "The run is over.", {"status": status}))


def add_metrics(client: Source, job_id: str, name: str, values: dict[int, float | None]) -> None:
    now = datetime.now(UTC)
    with database_of(client).write() as session:
        session.add_all(
            MetricPoint(job_id=job_id, name=name, step=step, value=value, at=now) for step, value in values.items()
        )


def add_trajectory(client: Source, job_id: str, position: int, **values: Any) -> None:
    right, refined_right = values.pop("verdicts", (False, True))
    row: dict[str, Any] = {
        "round": 0,
        "problem_id": str(position),
        "sample": 0,
        "prompt": "1 + 1",
        "answer": "2",
        "rollout": "1 + 1 is 3",
        "refined": "1 + 1 is 2" if refined_right is not None else None,
        "rollout_tokens": 5,
        "refined_tokens": 5 if refined_right is not None else None,
        "detail": {},
        **values,
    }
    with database_of(client).write() as session:
        session.add(
            Trajectory(
                job_id=job_id,
                position=position,
                outcome=outcome(right, refined_right),
                rollout_correct=right,
                refined_correct=refined_right,
                **row,
            )
        )


def add_evaluation(client: Source, job_id: str, step: int, avg: float) -> None:
    scores = {"avg_at_k": avg, "avg_low": avg - 0.1, "avg_high": avg + 0.1}
    scores |= {name.replace("avg", "pass"): value for name, value in scores.items()}
    with database_of(client).write() as session:
        session.add(
            Evaluation(
                job_id=job_id,
                step=step,
                dataset="holdout",
                k=4,
                num_problems=10,
                detail={},
                created_at=datetime.now(UTC),
                **scores,
            )
        )


def add_probe_sample(client: Source, job_id: str, step: int, **values: Any) -> None:
    row: dict[str, Any] = {"problem_id": "1", "prompt": "1 + 1", "completion": "2", "correct": True}
    row |= {"created_at": datetime.now(UTC), **values}
    with database_of(client).write() as session:
        session.add(ProbeSample(job_id=job_id, step=step, position=0, **row))


def add_diagnosis(client: Source, job_id: str, round: int, report: dict[str, Any] | None = None) -> None:
    with database_of(client).write() as session:
        session.add(Diagnosis(job_id=job_id, round=round, step=0, report=report or {}, created_at=datetime.now(UTC)))


def add_checkpoint(client: Source, storage: Path | str, job_id: str, step: int, files: dict[str, bytes]) -> str:
    """Add a checkpoint whose files are in the storage, a folder or a URL, as if by a worker; return its id."""
    checkpoint_id = new_id(CHECKPOINT_PREFIX)
    prefix = checkpoint_prefix(job_id, 1, step)
    rows = []
    for name, content in files.items():
        Storage(str(storage)).write(f"{prefix}/{name}", content)
        rows.append(
            CheckpointFile(
                checkpoint_id=checkpoint_id,
                name=name,
                num_bytes=len(content),
                sha256=hashlib.sha256(content).hexdigest(),
                storage_key=f"{prefix}/{name}",
            )
        )
    with database_of(client).write() as session:
        session.add(
            Checkpoint(
                id=checkpoint_id,
                job_id=job_id,
                step=step,
                attempt=1,
                formats=["full"],
                num_bytes=sum(map(len, files.values())),
                manifest_sha256="0" * 64,
                storage_prefix=prefix,
                metrics={"loss": 0.5},
                created_at=datetime.now(UTC),
            )
        )
        session.flush()
        session.add_all(rows)
    return checkpoint_id
