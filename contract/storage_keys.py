"""Where things lie in the storage (`STORAGE_URL`). Keys are relative, with forward slashes."""

from __future__ import annotations


def dataset_key(dataset_id: str) -> str:
    """An uploaded dataset's rows, as validated."""
    return f"datasets/{dataset_id}/rows.jsonl"


def checkpoint_prefix(job_id: str, attempt: int, step: int) -> str:
    """A checkpoint's folder. The attempt is in it, so that a superseded attempt overwrites nothing."""
    return f"jobs/{job_id}/attempt-{attempt:04d}/step-{step:08d}"
