"""Queries of an attempt, except for its lease. Every write is made inside `lease.fenced`."""

from __future__ import annotations

import re
from collections.abc import Collection, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any

from sqlalchemy import delete, insert, inspect, select, update
from sqlalchemy.dialects import postgresql, sqlite
from sqlalchemy.orm import Session

from contract.database import Database, DatabaseNow
from contract.events import NewEvent, append_events
from contract.ids import CHECKPOINT_PREFIX, new_id
from contract.job_state import AttemptStatus
from contract.tables import (
    Attempt,
    Base,
    Checkpoint,
    CheckpointFile,
    Dataset,
    Diagnosis,
    Evaluation,
    Job,
    JobEvent,
    MetricPoint,
    ProbeSample,
    Trajectory,
)
from worker.lease import Lease
from worker.manifest import Manifest

MAX_NOTICES = 50
"""Most notices of one job."""
IDS_A_QUERY = 500
"""SQLite takes 32,766 values in one statement."""


def schema_is_ready(database: Database) -> bool:
    """Return whether the database has every table and column that this worker uses; it may have more.

    A worker of a new version may start before the migration: a job that it claimed then would fail at a missing column.
    """
    there = inspect(database.engine).get_multi_columns()
    columns = {name: {column["name"] for column in found} for (_, name), found in there.items()}
    return all(set(table.columns.keys()) <= columns.get(table.name, set()) for table in Base.metadata.tables.values())


@dataclass
class ProgressBatch:
    """What the child reported since the last write."""

    job_columns: dict[str, Any] = field(default_factory=dict)
    metric_points: dict[tuple[str, int], dict[str, Any]] = field(default_factory=dict)
    """Rows by name and step: one statement may not write a row twice."""
    evaluations: dict[tuple[int, str], dict[str, Any]] = field(default_factory=dict)
    """Rows by step and dataset."""
    diagnoses: dict[int, dict[str, Any]] = field(default_factory=dict)
    """Rows by round."""
    probe_samples: dict[tuple[int, int], dict[str, Any]] = field(default_factory=dict)
    """Rows by step and position."""
    notices: list[dict[str, Any]] = field(default_factory=list)
    """Documents of `NoticeView`, for the top of the job."""
    events: list[NewEvent] = field(default_factory=list)

    @property
    def is_empty(self) -> bool:
        """Whether there is nothing to write."""
        rows = (self.metric_points, self.evaluations, self.diagnoses, self.probe_samples)
        return not (self.job_columns or self.events or any(rows))


def count_writes(session: Session, lease: Lease) -> int:
    """Return how many writes of the attempt's progress are committed."""
    mine = select(Attempt.num_writes).where(Attempt.job_id == lease.job_id, Attempt.number == lease.attempt)
    return session.execute(mine).scalar_one()


def is_new_write(session: Session, lease: Lease, number: int) -> bool:
    """Count a write of the attempt's progress in its transaction; return False if it was committed before.

    If the connection is lost during a commit, it is unknown whether it succeeded, so the write is repeated.
    """
    fresh = _attempt_update(lease).where(Attempt.num_writes < number).values(num_writes=number)
    return session.execute(fresh.returning(Attempt.number)).one_or_none() is not None


def write_progress(session: Session, lease: Lease, batch: ProgressBatch) -> None:
    """Update the job's row, and store metrics, evaluations, diagnoses, samples and events."""
    if batch.job_columns:
        session.execute(_job_update(lease).values(**batch.job_columns))
    if "step" in batch.job_columns:
        session.execute(_attempt_update(lease).values(last_step=batch.job_columns["step"]))
    _upsert(session, MetricPoint, list(batch.metric_points.values()))
    _upsert(session, Evaluation, list(batch.evaluations.values()))
    _upsert(session, Diagnosis, list(batch.diagnoses.values()))
    _upsert(session, ProbeSample, list(batch.probe_samples.values()))
    if batch.notices:
        _add_notices(session, lease, batch.notices)
    append_events(session, lease.job_id, *batch.events)


def _add_notices(session: Session, lease: Lease, notices: Sequence[dict[str, Any]]) -> None:
    """Add to the job's notices. One that differs from an earlier one in numbers alone replaces it: a resumed attempt
    reports its own again, and so does each round."""
    listed = session.scalar(select(Job.notices).where(Job.id == lease.job_id)) or []
    by_kind = {(notice["code"], re.sub(r"\d+", "#", notice["message"])): notice for notice in [*listed, *notices]}
    session.execute(_job_update(lease).values(notices=list(by_kind.values())[:MAX_NOTICES]))


def write_trajectories(session: Session, rows: Sequence[dict[str, Any]]) -> None:
    """Store trajectories of a round; storing them again changes nothing."""
    _upsert(session, Trajectory, rows)


def forget_trajectories_from(session: Session, lease: Lease, round_index: int, num_kept: int) -> None:
    """Remove trajectories of the round from position `num_kept` on, which an earlier attempt stored."""
    beyond = delete(Trajectory).where(
        Trajectory.job_id == lease.job_id, Trajectory.round == round_index, Trajectory.position >= num_kept
    )
    session.execute(beyond.execution_options(synchronize_session=False))


def record_resume(session: Session, lease: Lease, step: int) -> None:
    """Record the step from which the attempt resumes."""
    session.execute(_attempt_update(lease).values(first_step=step))
    session.execute(_job_update(lease).values(step=step))


def max_pass_tokens(session: Session, job_id: str) -> list[int] | None:
    """Return the sizes of training passes that an earlier attempt chose when its memory ran out, the newest ones."""
    codes = JobEvent.data["code"].as_string().in_(("passes_too_large", "passes_halved"))
    query = select(JobEvent.data).where(JobEvent.job_id == job_id, JobEvent.type == "notice", codes)
    data = session.scalar(query.order_by(JobEvent.sequence.desc()).limit(1))
    return None if data is None else data.get("pass_tokens")


def _job_update(lease: Lease) -> Any:
    return update(Job).where(Job.id == lease.job_id).execution_options(synchronize_session=False)


def _attempt_update(lease: Lease) -> Any:
    mine = update(Attempt).where(Attempt.job_id == lease.job_id, Attempt.number == lease.attempt)
    return mine.execution_options(synchronize_session=False)


def _upsert(session: Session, table: type[Base], rows: Sequence[dict[str, Any]]) -> None:
    """Insert the rows, or overwrite those with the same primary key; the syntax is the same in both dialects."""
    if not rows:
        return
    dialect = sqlite if session.get_bind().dialect.name == "sqlite" else postgresql
    key = [column.name for column in table.__table__.primary_key]
    statement = dialect.insert(table)
    new_values = {name: statement.excluded[name] for name in rows[0] if name not in key}
    session.execute(statement.on_conflict_do_update(index_elements=key, set_=new_values), list(rows))


@dataclass(frozen=True)
class Standing:
    """Status and newest attempt of a job."""

    status: str
    attempt: int


def find_standing(session: Session, job_id: str) -> Standing | None:
    """Return the job's standing; None if it is unknown or deleted."""
    row = session.execute(
        select(Job.status, Job.attempt).where(Job.id == job_id, Job.deleted_at.is_(None))
    ).one_or_none()
    return Standing(row.status, row.attempt) if row is not None else None


def running_attempts(session: Session, job_ids: Collection[str]) -> set[tuple[str, int]]:
    """Return job id and number of every attempt at one of the jobs that has not ended, on any machine."""
    running = select(Attempt.job_id, Attempt.number).where(Attempt.status == AttemptStatus.RUNNING)
    ids = list(job_ids)
    parts = [ids[start : start + IDS_A_QUERY] for start in range(0, len(ids), IDS_A_QUERY)]
    found = [row for part in parts for row in session.execute(running.where(Attempt.job_id.in_(part)))]
    return {(row.job_id, row.number) for row in found}


def find_dataset(session: Session, dataset_id: str) -> Dataset | None:
    """Return the dataset; None if it is unknown or deleted."""
    return session.scalar(select(Dataset).where(Dataset.id == dataset_id, Dataset.deleted_at.is_(None)))


@dataclass(frozen=True)
class StoredCheckpoint:
    """A checkpoint in the storage."""

    id: str
    step: int
    storage_prefix: str
    manifest_sha256: str


def list_checkpoints(session: Session, job_id: str) -> list[StoredCheckpoint]:
    """Return the job's checkpoints, newest step first."""
    columns = select(Checkpoint.id, Checkpoint.step, Checkpoint.storage_prefix, Checkpoint.manifest_sha256)
    rows = session.execute(columns.where(Checkpoint.job_id == job_id).order_by(Checkpoint.step.desc()))
    return [StoredCheckpoint(*row) for row in rows]


def add_checkpoint(session: Session, lease: Lease, prefix: str, manifest: Manifest, manifest_sha256: str) -> list[str]:
    """Record a stored checkpoint, replacing one of the same step; return prefixes of files to remove.

    Recording it again, after a commit whose answer was lost, changes nothing.
    """
    same_step = [c for c in list_checkpoints(session, lease.job_id) if c.step == manifest.step]
    if any((c.storage_prefix, c.manifest_sha256) == (prefix, manifest_sha256) for c in same_step):
        return []
    replaced = remove_checkpoints(session, same_step)
    checkpoint_id = new_id(CHECKPOINT_PREFIX)
    session.execute(
        insert(Checkpoint).values(
            id=checkpoint_id,
            job_id=lease.job_id,
            step=manifest.step,
            attempt=lease.attempt,
            formats=manifest.formats,
            num_bytes=manifest.num_bytes,
            manifest_sha256=manifest_sha256,
            storage_prefix=prefix,
            metrics=manifest.metrics,
            created_at=DatabaseNow(),
        )
    )
    files = [
        {
            "checkpoint_id": checkpoint_id,
            "name": file.name,
            "num_bytes": file.num_bytes,
            "sha256": file.sha256,
            "storage_key": f"{prefix}/{file.name}",
        }
        for file in manifest.files
    ]
    session.execute(insert(CheckpointFile), files)
    message = f"Checkpoint of step {manifest.step} stored" + ("." if manifest.step else ", to resume from; no result.")
    data = {"id": checkpoint_id, "step": manifest.step, "formats": manifest.formats, "num_bytes": manifest.num_bytes}
    append_events(session, lease.job_id, NewEvent("checkpoint", message, data))
    return [p for p in replaced if p != prefix]


def newest_status_changes(session: Session, job_id: str, num: int) -> Sequence[datetime]:
    """Return the times of the job's last changes of status, newest first."""
    changes = select(JobEvent.created_at).where(JobEvent.job_id == job_id, JobEvent.type == "status")
    return session.scalars(changes.order_by(JobEvent.sequence.desc()).limit(num)).all()


def remove_old_checkpoints(session: Session, lease: Lease, *, keep: int, protected_step: int | None) -> list[str]:
    """Delete the rows of all but the newest `keep` and `protected_step`; return prefixes of files to remove."""
    old = list_checkpoints(session, lease.job_id)[keep:]
    return remove_checkpoints(session, [c for c in old if c.step != protected_step])


def remove_checkpoints(session: Session, checkpoints: Sequence[StoredCheckpoint]) -> list[str]:
    """Delete the rows of checkpoints; return prefixes of files to remove after them: a row is offered for download."""
    ids = [checkpoint.id for checkpoint in checkpoints]
    if ids:
        session.execute(delete(CheckpointFile).where(CheckpointFile.checkpoint_id.in_(ids)))
        session.execute(delete(Checkpoint).where(Checkpoint.id.in_(ids)))
    return [checkpoint.storage_prefix for checkpoint in checkpoints]
