"""What a trained model is called: ``ft:<student>:<owner>:<suffix>:<job id>``, as OpenAI builds such names.

With ``:ckpt-step-<step>`` it is one checkpoint, without it the job's newest. A name holds the job's id, so
that it is found again without a table of names.
"""

from __future__ import annotations

import re

from contract.tables import Job

_MAX_SUFFIX = 64
_NAME = re.compile(r"ft:.*:(?P<job_id>job_[0-9a-z]{26})(?::ckpt-step-(?P<step>\d{1,9}))?", re.DOTALL | re.ASCII)


def model_name(job: Job, step: int | None = None) -> str:
    """Return the name of the model that the job trains."""
    suffix = re.sub(r"[^\w.-]+", "-", job.name or "")[:_MAX_SUFFIX]
    checkpoint = "" if step is None else f":ckpt-step-{step}"
    return f"ft:{job.spec['student']}:{job.owner}:{suffix}:{job.id}{checkpoint}"


def parse_model_name(name: str) -> tuple[str, int | None] | None:
    """Return the job's id and the checkpoint's step, None for the newest; None if no trained model has such a name."""
    match = _NAME.fullmatch(name)
    return None if match is None else (match["job_id"], int(match["step"]) if match["step"] is not None else None)
