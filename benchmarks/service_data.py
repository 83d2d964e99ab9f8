"""Fills a database with as many jobs and metric points as years of use may leave, in one statement each.

The jobs are copies of a submitted one, with ids older than any new one's, in typical states: nearly all are finished,
the newest are waiting. The points belong to the jobs in equal shares.
"""

from __future__ import annotations

import hashlib
import os
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

from sqlalchemy import Engine, text

from contract.database import Database
from contract.ids import CHECKPOINT_PREFIX, new_id
from contract.storage_keys import checkpoint_prefix
from contract.tables import Checkpoint, CheckpointFile, Job

NUM_WAITING = 200
METRICS = ("loss", "grad_norm", "learning_rate", "tokens_per_second", "step_seconds")
NUM_STEPS = 200
FILE_NAME = "model/model.safetensors"
POINTS_OF_A_JOB = len(METRICS) * NUM_STEPS


@dataclass(frozen=True)
class Volume:
    """Numbers of stored rows."""

    num_jobs: int
    num_points: int

    def __str__(self) -> str:
        return f"{self.num_jobs:,} jobs, {self.num_points:,} points"


def stored_id(number: int) -> str:
    """Return the id of the stored job with this number, from 1; the newest has the highest."""
    return f"job_00{number:024d}"


def fill(engine: Engine, template_id: str, volume: Volume) -> None:
    """Insert copies of the job `template_id`, and points of the newest finished ones."""
    is_sqlite = engine.dialect.name == "sqlite"
    with engine.begin() as connection:
        if not is_sqlite:
            # Skips the foreign-key trigger of each row.
            connection.execute(text("SET LOCAL session_replication_role = replica"))
        over = f"number <= {volume.num_jobs - NUM_WAITING}"
        ended = "CASE WHEN number % 50 = 0 THEN 'failed' ELSE 'succeeded' END"
        changed = {
            "id": _stored_id_sql("number", is_sqlite),
            "status": f"CASE WHEN {over} THEN {ended} ELSE 'queued' END",
            "step": f"CASE WHEN {over} THEN {NUM_STEPS} ELSE 0 END",
            "finished_at": f"CASE WHEN {over} THEN created_at END",
        }
        columns = [column.name for column in Job.__table__.columns]
        values = ", ".join(changed.get(name, f'job."{name}"') for name in columns)
        names = ", ".join(f'"{name}"' for name in columns)
        copies = text(
            f"WITH RECURSIVE {_series('numbers', 'number')} "
            f"INSERT INTO jobs ({names}) SELECT {values} FROM numbers, jobs AS job WHERE job.id = :template"
        )
        connection.execute(copies, {"numbers_first": 1, "numbers_last": volume.num_jobs, "template": template_id})
        newest = volume.num_jobs - NUM_WAITING
        oldest = newest - volume.num_points // POINTS_OF_A_JOB + 1
        metrics = "metrics(name) AS (VALUES " + ", ".join(f"('{name}')" for name in METRICS) + ")"
        at = "'2026-01-01 00:00:00'" if is_sqlite else "timestamptz '2026-01-01 00:00:00+00'"
        points = text(
            f"WITH RECURSIVE {_series('numbers', 'number')}, {_series('steps', 'step')}, {metrics} "
            "INSERT INTO metric_points (job_id, name, step, value, at) "
            f"SELECT {_stored_id_sql('number', is_sqlite)}, name, step, 1.0 / step, {at} FROM numbers, metrics, steps"
        )
        ends = {"numbers_first": oldest, "numbers_last": newest, "steps_first": 1, "steps_last": NUM_STEPS}
        connection.execute(points, ends)
    if is_sqlite:
        with engine.connect() as connection:
            connection.exec_driver_sql("COMMIT")
            connection.exec_driver_sql("PRAGMA wal_checkpoint(TRUNCATE)")
        return
    with engine.connect().execution_options(isolation_level="AUTOCOMMIT") as connection:
        connection.execute(text("VACUUM ANALYZE"))  # as autovacuum does after some time


def _stored_id_sql(number: str, is_sqlite: bool) -> str:
    padded = f"printf('%024d', {number})" if is_sqlite else f"lpad(({number})::text, 24, '0')"
    return f"'job_00' || {padded}"


def _series(table: str, column: str) -> str:
    """Return SQL of a table of the integers from one bound value to another."""
    first, last = f"CAST(:{table}_first AS INTEGER)", f"CAST(:{table}_last AS INTEGER)"
    return f"{table}({column}) AS (SELECT {first} UNION ALL SELECT {column} + 1 FROM {table} WHERE {column} < {last})"


def add_checkpoint(database: Database, storage_dir: Path, job_id: str, num_bytes: int) -> str:
    """Store a checkpoint of one file of random bytes (a multiple of 1 MiB); return its sha256."""
    key = f"{checkpoint_prefix(job_id, 1, 1)}/{FILE_NAME}"
    path = storage_dir / key
    path.parent.mkdir(parents=True)
    digest, block = hashlib.sha256(), os.urandom(2**20)
    with path.open("wb") as file:
        for _ in range(num_bytes // len(block)):
            file.write(block)
            digest.update(block)
    checkpoint = Checkpoint(
        id=new_id(CHECKPOINT_PREFIX),
        job_id=job_id,
        step=1,
        attempt=1,
        formats=["full"],
        num_bytes=num_bytes,
        manifest_sha256="0" * 64,
        storage_prefix=checkpoint_prefix(job_id, 1, 1),
        metrics={},
        created_at=datetime.now(UTC),
    )
    with database.write() as session:
        session.add(checkpoint)
        session.flush()
        row = {"name": FILE_NAME, "num_bytes": num_bytes, "sha256": digest.hexdigest(), "storage_key": key}
        session.add(CheckpointFile(checkpoint_id=checkpoint.id, **row))
    return digest.hexdigest()
