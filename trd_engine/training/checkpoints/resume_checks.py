"""What makes a run the run that it is: the part of its spec that no resume may change.

A run that goes on under another learning rate, seed or split would train on batches that nobody asked for, and its
scores before and after would not compare. Where it runs, how often it saves and how its models are held in memory may
change. Data and models are told apart by what is in them, see `weights_fingerprint`: both may have moved.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from trd_engine.config import RunConfig
from trd_engine.runtime.errors import DataChangedError, SpecError

_MAY_CHANGE = {
    "student",
    "teacher",
    "student_name",
    "teacher_name",
    "dataset",
    "device",
    "devices",
    "checkpoints",
    "diagnosis",
    "evaluation.dataset",
    "evaluation.every_steps",
    "evaluation.num_probe_samples",
    "evaluation.at_start",
    "optim.micro_batch_tokens",
    "optim.gradient_checkpointing",
    "sampling.engine",
    "sampling.placement",
    "sampling.tensor_parallel_size",
    "sampling.gpu_memory_utilization",
}
"""Fields, and whole parts, of the spec."""
_MAX_NAMED = 5


def run_identity(config: RunConfig) -> dict[str, Any]:
    """Field by its dotted name → value, as JSON has it, of all that may not change."""
    return dict(_fields(config.model_dump(mode="json"), ""))


def require_same_run(started_with: Mapping[str, Any], config: RunConfig) -> None:
    """Raise `SpecError` that names what a resumed run's spec has changed.

    A field that one of the two does not know is another version's, and compares as nothing.
    """
    now = run_identity(config)
    changed = [name for name in now if name in started_with and started_with[name] != now[name]]
    if changed:
        named = "; ".join(f"{name} = {now[name]!r}, and was {started_with[name]!r}" for name in changed[:_MAX_NAMED])
        more = f"; and {len(changed) - _MAX_NAMED} more" if len(changed) > _MAX_NAMED else ""
        raise SpecError(
            f"a resumed run needs the spec that it started with: {named}{more}; start another run for these"
        )


def _fields(document: Mapping[str, Any], prefix: str) -> Iterator[tuple[str, Any]]:
    for key, value in document.items():
        name = f"{prefix}{key}"
        if name in _MAY_CHANGE:
            continue
        if isinstance(value, dict):
            yield from _fields(value, f"{name}.")
        else:
            yield name, value


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


def _require_same_data(name: str, started_with: str, found: str) -> None:
    if started_with != found:
        raise DataChangedError(
            f"the run started on {name} with fingerprint {started_with}, and now it is {found}; a resumed run needs "
            "the same rows in the same order"
        )


def _require_same_evaluation(started_with: str | None, found: str | None) -> None:
    if started_with != found:
        before, now = (f"data with fingerprint {one}" if one else "no data of its own" for one in (started_with, found))
        raise DataChangedError(
            f"the run started with evaluation {before}, and now it is {now}; a resumed run needs the "
            "evaluation.dataset that it started with, or none where it had none: what is held out hangs on it"
        )
