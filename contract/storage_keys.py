"""Where things lie in the storage (`STORAGE_URL`). Keys are relative, with forward slashes."""

from __future__ import annotations

DATASETS_PREFIX = "datasets"
JOBS_PREFIX = "jobs"
"""In each a folder an id."""


def dataset_key(dataset_id: str) -> str:
    """An uploaded dataset's rows, as validated."""
    return f"{DATASETS_PREFIX}/{dataset_id}/rows.jsonl"


def job_prefix(job_id: str) -> str:
    """All files of a job, whichever attempt stored them."""
    return f"{JOBS_PREFIX}/{job_id}"


def checkpoint_prefix(job_id: str, attempt: int, step: int) -> str:
    """A checkpoint's folder. The attempt is in it, so that a superseded attempt overwrites nothing."""
    return f"{job_prefix(job_id)}/attempt-{attempt:04d}/step-{step:08d}"


def attempt_number(prefix: str) -> int:
    """The attempt in whose folder `prefix` is, of the form that `checkpoint_prefix` makes; raises ValueError."""
    return int(prefix.split("/")[2].removeprefix("attempt-"))
