"""A job with a row of every kind, as a run would have left it; for what looks at everything the API shows."""

from __future__ import annotations

from pathlib import Path

import httpx

from contract.database import Database
from contract.job_state import JobStatus
from tests.service.engine_reports import engine_report
from tests.service.records import (
    add_checkpoint,
    add_diagnosis,
    add_evaluation,
    add_metrics,
    add_probe_sample,
    add_trajectory,
    finish_job,
    submit,
)

MODELS = {"student": "tiny-student", "teacher": "tiny-teacher"}
CONTENT = {"model/config.json": b'{"model_type": "qwen3"}\n', "model/model.safetensors": b"weights"}


def add_finished_job(client: httpx.Client, database: Database, storage_dir: Path, **changes: object) -> str:
    """Add a succeeded job on the committed models; return its id."""
    job_id = submit(client, **{**MODELS, "task": "exact", **changes})
    for name, values in {"loss": {1: 0.9, 2: 0.4}, "learning_rate": {1: 5e-6, 2: 4e-6}}.items():
        add_metrics(database, job_id, name, dict(values))
    add_trajectory(database, job_id, 0)
    add_evaluation(database, job_id, 0, 0.3)
    add_evaluation(database, job_id, 2, 0.6)
    add_probe_sample(database, job_id, 0)
    add_diagnosis(database, job_id, 0, engine_report())
    for step in (1, 2):
        add_checkpoint(database, storage_dir, job_id, step, CONTENT)
    finish_job(database, job_id, JobStatus.SUCCEEDED)
    return job_id
