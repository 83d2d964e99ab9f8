"""Models named by a hub id: fetched once into a folder, before anything else reads them.

Prompts, end-of-turn tokens and samplers all read files beside the weights. A model is a folder for all of them.
"""

from __future__ import annotations

from pathlib import Path

from huggingface_hub import snapshot_download

from trd_engine.config import RunConfig
from trd_engine.errors import ModelNotFoundError

_PATTERNS = ["*.safetensors", "*.json", "*.jinja", "*.txt", "*.model", "*.tiktoken", "tokenizer*"]
"""What is fetched of a model. Never weights that are unpickled, and no code: *.bin, *.pt, *.py."""


def with_local_models(config: RunConfig) -> RunConfig:
    """The spec with folders in the place of hub ids, which stay the models' names. Raises `ModelNotFoundError`."""
    changes: dict[str, str] = {}
    for role in ("student", "teacher"):
        source = getattr(config, role)
        if isinstance(source, str) and (folder := local_folder(source)) != source:
            changes |= {role: folder, f"{role}_name": getattr(config, f"{role}_name") or source}
    return config.model_copy(update=changes)


def local_folder(source: str) -> str:
    """The folder of ``owner/name`` or ``owner/name@revision``, from the hub or its cache; a folder as it is.

    Raises `ModelNotFoundError`.
    """
    if Path(source).is_dir() or source.startswith(("/", ".")):
        return source
    name, _, revision = source.partition("@")
    try:
        return snapshot_download(name, revision=revision or None, allow_patterns=_PATTERNS)
    except (OSError, ValueError) as error:
        raise ModelNotFoundError(f"model {source!r}: no such folder, and no hub gave it: {error}") from error
