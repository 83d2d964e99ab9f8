"""Which weights a run stands on that no checkpoint of it holds, so that a resumed run can tell them from others.

What is read of a file hangs on its size: of a small one all, of a large one its start (a safetensors header: names,
types and shapes) and blocks spread evenly to its end, so that models of tens of gigabytes cost no more than a moment.
It sees other models, other sizes, other trainings and other shardings; it does not see a change of single values that
lies between the blocks, nor anything of the folder but its weights. Where the folder is does not matter.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from trd_engine.config import RunConfig
from trd_engine.errors import SpecError

_WHOLE_BYTES = 32 * 2**20
_BLOCK_BYTES = 2**16
_NUM_BLOCKS = 128


def weights_identity(config: RunConfig) -> dict[str, str]:
    """Role → fingerprint, of the local weights that a resumed run loads again rather than take from its checkpoint.

    With LoRA that is the student's base; with a teacher of its own, that; and where a fully trained student teaches
    itself, the frozen copy of it.
    """
    folders = {}
    if config.lora is not None:
        folders["weights.student"] = config.student
    if isinstance(config.teacher, str):
        folders["weights.teacher"] = config.teacher
    elif config.served_teacher is None and config.lora is None and config.teacher_update.kind == "frozen":
        folders["weights.teacher"] = config.student
    return {role: weights_fingerprint(Path(folder)) for role, folder in folders.items()}


def require_same_weights(started_with: Mapping[str, Any], now: Mapping[str, str]) -> None:
    """Raise `SpecError` that names whose weights a resumed run has changed.

    A checkpoint of a version that kept no fingerprint is taken as it is.
    """
    changed = [role for role in now if role in started_with and started_with[role] != now[role]]
    if changed:
        named = " and ".join(f"the {role.removeprefix('weights.')}'s" for role in changed)
        told = "; ".join(f"{role} = {now[role]:.12}, and was {started_with[role]:.12}" for role in changed)
        raise SpecError(
            f"a resumed run needs the weights that it started with, and {named} are others ({told}); give the same "
            "model, from wherever it is, or start another run"
        )


def weights_fingerprint(folder: Path) -> str:
    """sha256 over the names, the sizes and samples of the folder's files of weights."""
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
    """(start, length) of what is read of a file."""
    if size <= _WHOLE_BYTES:
        return [(0, size)]
    return [(place * (size - _BLOCK_BYTES) // (_NUM_BLOCKS - 1), _BLOCK_BYTES) for place in range(_NUM_BLOCKS)]
