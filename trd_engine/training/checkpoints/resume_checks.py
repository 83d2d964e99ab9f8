"""The identity of a run: the part of its spec, weights and data that a resume must not change.

A run resumed with another learning rate, seed or split would train on other batches, and its scores before and after
would not be comparable. Devices, intervals and memory settings may change. Data and models are compared by content,
since their paths may change.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from trd_engine.config import RunConfig
from trd_engine.models.folders import weights_fingerprint
from trd_engine.runtime.errors import DataChangedError, SpecError
from trd_engine.training.checkpoints.state import TrainingState

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
    "max_pass_tokens",
    "optim.gradient_checkpointing",
    "strict",
    "sampling.engine",
    "sampling.placement",
    "sampling.tensor_parallel_size",
    "sampling.gpu_memory_utilization",
    "sampling.pool",
    "refine.pool",
}
"""Fields and whole parts of the spec that a resume may change."""
_MAX_NAMED = 5
_WEIGHTS = "weights."
"""Prefix of the weights' fingerprints in a run's identity."""


def run_identity(config: RunConfig) -> dict[str, Any]:
    """Return the JSON values, by dotted field name, that a resume must not change."""
    return dict(_fields(config.model_dump(mode="json"), ""))


def require_same_run(started_with: Mapping[str, Any], config: RunConfig) -> None:
    """Raise `SpecError` with the fields that differ between a resumed run's spec and the one it started with.

    A field that the run's version did not have counts as one at its default: an upgrade ends no run.
    """
    now, before = run_identity(config), {k: v for k, v in started_with.items() if not k.startswith(_WEIGHTS)}
    defaults = run_identity(RunConfig(mode="opsd", student="-"))
    before = {name: value for name, value in defaults.items() if _is_new(name, before)} | before
    changed = [name for name in dict.fromkeys([*now, *before]) if before.get(name) != now.get(name)]
    if changed:
        before_and_now = [(name, now.get(name), before.get(name)) for name in changed[:_MAX_NAMED]]
        named = "; ".join(f"{name} = {value!r}, and was {before!r}" for name, value, before in before_and_now)
        more = f"; and {len(changed) - _MAX_NAMED} more" if len(changed) > _MAX_NAMED else ""
        raise SpecError(
            f"a resumed run needs the spec that it started with: {named}{more}; restore these values, or start a new "
            "run"
        )


def _is_new(name: str, before: Mapping[str, Any]) -> bool:
    """Return whether a spec of `before` could not have this field; a part may be None, such as `lora`."""
    parts = name.split(".")
    around = {".".join(parts[:n]) for n in range(1, len(parts) + 1)}
    return not around & before.keys() and not any(known.startswith(f"{name}.") for known in before)


def _fields(document: Mapping[str, Any], prefix: str) -> Iterator[tuple[str, Any]]:
    for key, value in document.items():
        name = f"{prefix}{key}"
        if name in _MAY_CHANGE:
            continue
        if isinstance(value, dict):
            yield from _fields(value, f"{name}.")
        else:
            yield name, value


def weights_identity(config: RunConfig) -> dict[str, str]:
    """Return the fingerprints, by role, of the local weights that no checkpoint has and a resumed run loads again.

    These are the student's base with LoRA, a local teacher that is another model, and the frozen copy of a student
    that teaches itself with full fine-tuning.
    """
    folders = {}
    if config.lora is not None:
        folders[f"{_WEIGHTS}student"] = config.student
    if isinstance(config.teacher, str):
        folders[f"{_WEIGHTS}teacher"] = config.teacher
    elif config.served_teacher is None and config.lora is None and config.teacher_update.kind == "frozen":
        folders[f"{_WEIGHTS}teacher"] = config.student
    return {role: weights_fingerprint(Path(folder)) for role, folder in folders.items()}


def require_same_weights(started_with: Mapping[str, Any], now: Mapping[str, str]) -> None:
    """Raise `SpecError` with the roles whose weights differ from those that the run started with.

    A role that the run started without is not compared: its teacher was served.
    """
    changed = [role for role in now if role in started_with and started_with[role] != now[role]]
    if changed:
        named = " and ".join(f"the {role.removeprefix(_WEIGHTS)}'s" for role in changed)
        values = "; ".join(f"{role} = {now[role]:.12}, and was {started_with[role]:.12}" for role in changed)
        raise SpecError(
            f"a resumed run needs the weights that it started with, and {named} differ ({values}); give the path of "
            "the same model, or start a new run"
        )


def require_same_data(state: TrainingState, fingerprint: str, evaluation_fingerprint: str | None) -> None:
    """Raise `DataChangedError` unless a resumed run trains on, and is evaluated on, the data that it started with."""
    if state.data_fingerprint != fingerprint:
        raise DataChangedError(
            f"the run started on data with fingerprint {state.data_fingerprint}, and now it is {fingerprint}; a "
            "resumed run needs the same rows in the same order"
        )
    # Compared even if there is none: a run that held problems out would train on them if it were given other data.
    if state.evaluation_fingerprint != evaluation_fingerprint:
        before, now = (
            f"data with fingerprint {one}" if one else "no separate data"
            for one in (state.evaluation_fingerprint, evaluation_fingerprint)
        )
        raise DataChangedError(
            f"the run started with evaluation {before}, and now has {now}; a resumed run needs the evaluation.dataset "
            "that it started with, or none if it had none: the held-out problems depend on it"
        )
