"""Find the model in a folder: a model, an adapter on another model, or a checkpoint with either."""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass
from pathlib import Path

from huggingface_hub import snapshot_download

from trd_engine.config import RunConfig
from trd_engine.runtime.errors import ModelNotFoundError, ModelRefusedError

MODEL_FOLDER = "model"
ADAPTER_FOLDER = "adapter"
MANIFEST_FILE = "manifest.json"
"""Its presence makes a folder a checkpoint."""
_PATTERNS = ["*.safetensors", "*.json", "*.jinja", "*.txt", "*.model", "*.tiktoken", "tokenizer*"]
"""Files to download. Never weights that are unpickled, and no code: *.bin, *.pt, *.py."""

_WHOLE_BYTES = 32 * 2**20
"""A file up to this size is read whole; a larger one in blocks, for speed."""
_BLOCK_BYTES = 2**16
_NUM_BLOCKS = 128
"""Blocks of a large file that are read, at equal distances from its start to its end."""


@dataclass(frozen=True)
class FoundModel:
    """Where the weights are."""

    source: str
    """Folder or hub id of the model, or of the base that the adapter was trained on."""
    adapter: Path | None = None
    adapter_rank: int | None = None


def find_model(folder: Path) -> FoundModel:
    """Return the model of a folder; of a checkpoint the merged model, if it has one, else its adapter.

    Raises `ModelRefusedError` if an adapter cannot be read or does not name its base.
    """
    if (folder / MANIFEST_FILE).is_file():
        has_model = (folder / MODEL_FOLDER).is_dir()
        folder = folder / (MODEL_FOLDER if has_model else ADAPTER_FOLDER)
    description = folder / "adapter_config.json"
    if (folder / "config.json").is_file() or not description.is_file():
        return FoundModel(str(folder.resolve()))
    try:
        adapter = json.loads(description.read_text(encoding="utf-8"))
        base = adapter.get("base_model_name_or_path")
    except (OSError, ValueError, AttributeError) as error:
        raise ModelRefusedError(f"{description} describes no adapter: {error}") from error
    if not base:
        raise ModelRefusedError(f"the adapter in {folder} does not name its base model; use the merged model instead")
    return FoundModel(str(base), folder.resolve(), adapter.get("r"))


def with_local_models(config: RunConfig) -> RunConfig:
    """Return the spec with folders instead of hub ids, which stay the models' names. Raises `ModelNotFoundError`."""
    changes: dict[str, str] = {}
    for role in ("student", "teacher"):
        source = getattr(config, role)
        if isinstance(source, str) and (folder := local_folder(source)) != source:
            changes |= {role: folder, f"{role}_name": getattr(config, f"{role}_name") or source}
    return config.model_copy(update=changes)


def local_folder(source: str) -> str:
    """Return the folder of ``owner/name`` or ``owner/name@revision``, from the hub or its cache; a folder as it is.

    Raises `ModelNotFoundError`.
    """
    if Path(source).is_dir() or source.startswith(("/", ".")):
        return source
    name, _, revision = source.partition("@")
    try:
        return snapshot_download(name, revision=revision or None, allow_patterns=_PATTERNS)
    except (OSError, ValueError) as error:
        raise ModelNotFoundError(
            f"model {source!r} is no folder, and the hub did not provide it: {error}; check the name"
        ) from error


def weights_fingerprint(folder: Path) -> str:
    """Return the sha256 of names, sizes and samples of the safetensors files in a folder."""
    digest = hashlib.sha256()
    for path in sorted(folder.glob("*.safetensors")):  # no other weights are loaded
        size = path.stat().st_size
        digest.update(f"{path.name}\n{size}\n".encode())
        with path.open("rb") as file:
            for start, length in _samples(size):
                file.seek(start)
                digest.update(file.read(length))
    return digest.hexdigest()


def _samples(size: int) -> list[tuple[int, int]]:
    """Return (start, length) of the parts of a file that are read."""
    if size <= _WHOLE_BYTES:
        return [(0, size)]
    return [(place * (size - _BLOCK_BYTES) // (_NUM_BLOCKS - 1), _BLOCK_BYTES) for place in range(_NUM_BLOCKS)]
