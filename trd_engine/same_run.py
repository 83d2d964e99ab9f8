"""What makes a run the run that it is: the part of its spec that no resume may change.

A run that goes on under another learning rate, seed or split would train on batches that nobody asked for, and its
scores before and after would not compare. Where it runs, how often it saves and how its models are held in memory may
change. Data and models are told apart by what is in them, see `weights_fingerprint`: both may have moved.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from trd_engine.config import RunConfig
from trd_engine.errors import SpecError

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
