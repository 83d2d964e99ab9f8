"""Calls of the `openai` client that many tests make."""

from __future__ import annotations

from typing import Any

from openai import OpenAI
from openai.types.fine_tuning import FineTuningJob

from tests.service.records import ROWS


def upload_file(openai: OpenAI, rows: str = ROWS, filename: str = "mine.jsonl") -> str:
    return openai.files.create(file=(filename, rows.encode()), purpose="fine-tune").id


def create_job(openai: OpenAI, **changes: Any) -> FineTuningJob:
    """Create a job that is accepted, on its own file; `changes` replace arguments."""
    arguments: dict[str, Any] = {
        "model": "small",
        "method": {"type": "trd", "trd": {"teacher": "small-teacher"}},
        **changes,
    }
    if "training_file" not in arguments:
        arguments["training_file"] = upload_file(openai)
    return openai.fine_tuning.jobs.create(**arguments)


def native_of(answer: Any) -> dict[str, Any]:
    """Return the fields of the answer that the client does not know."""
    native: dict[str, Any] = answer.model_extra["native"]
    return native
