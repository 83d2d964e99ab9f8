"""Models as the `openai` client reads them."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Literal

from pydantic import BaseModel, ConfigDict

from contract.tables import Checkpoint, CheckpointFile, Job
from contract.views.checkpoints import ManifestView
from contract.views.models import ModelView
from service.checkpoints.service import manifest_view
from service.models.service import CatalogModel, model_view


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
