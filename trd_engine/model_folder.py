"""What a folder that people name holds: a model, an adapter on another model, or a checkpoint with either."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

from trd_engine.checkpoint import ADAPTER_FOLDER, MODEL_FOLDER
from trd_engine.errors import ModelRefusedError
from trd_engine.manifest import MANIFEST_FILE


@dataclass(frozen=True)
class FoundModel:
    """Where the weights are."""

    source: str
    """Folder or hub id of the model, or of the base that the adapter was trained on."""
    adapter: Path | None = None
    adapter_rank: int | None = None


def find_model(folder: Path) -> FoundModel:
    """The model of a folder; of a checkpoint's the merged one, where there is one, else its adapter.

    Raises `ModelRefusedError` where an adapter does not name its base.
    """
    if (folder / MANIFEST_FILE).is_file():
        has_model = (folder / MODEL_FOLDER).is_dir()
        folder = folder / (MODEL_FOLDER if has_model else ADAPTER_FOLDER)
    description = folder / "adapter_config.json"
    if (folder / "config.json").is_file() or not description.is_file():
        return FoundModel(str(folder.resolve()))
    adapter = json.loads(description.read_text(encoding="utf-8"))
    base = adapter.get("base_model_name_or_path")
    if not base:
        raise ModelRefusedError(f"{folder} holds an adapter that names no base model; ask for the merged model instead")
    return FoundModel(str(base), folder.resolve(), adapter.get("r"))
