"""Models as the `openai` client reads them, and the names of trained ones.

A trained model is called ``ft:<student>:<owner>:<suffix>:<job id>``, as OpenAI builds such names. With
``:ckpt-step-<step>`` it is one checkpoint, without it the job's newest. A name holds the job's id, so that it is found
again without a table of names.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Literal

from pydantic import BaseModel, ConfigDict

from contract.tables import Checkpoint, CheckpointFile, Job
from contract.views.checkpoints import ManifestView
from contract.views.models import ModelView
from service.checkpoints.service import manifest_view
from service.models.service import CatalogModel, model_view

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


class ModelObject(BaseModel):
    """A model that a job may name, or that a job has made."""

    model_config = ConfigDict(use_attribute_docstrings=True)

    object: Literal["model"] = "model"
    id: str
    created: int
    """Seconds since the epoch; 0 if unknown here (a model on a hub)."""
    owned_by: str
    """``operator``, or who owns the job."""
    native: ModelView | ManifestView
    """The model as ``GET /models/{name}`` shows it; for a trained one, its checkpoint's manifest with the files'
    addresses."""


def catalog_model_object(model: CatalogModel) -> ModelObject:
    """Map an entry of the operator's allow-list to what the `openai` client reads."""
    return ModelObject(id=model.entry.name, created=_created(model), owned_by="operator", native=model_view(model))


def _created(model: CatalogModel) -> int:
    if not model.entry.is_local:
        return 0
    try:
        return int((Path(model.entry.source) / "config.json").stat().st_mtime)
    except OSError:
        return 0


def trained_model_object(name: str, job: Job, checkpoint: Checkpoint, files: Sequence[CheckpointFile]) -> ModelObject:
    """Return a checkpoint under the requested name."""
    return ModelObject(
        id=name,
        created=int(checkpoint.created_at.timestamp()),
        owned_by=job.owner,
        native=manifest_view(checkpoint, files),
    )
