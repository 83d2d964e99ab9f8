"""What can go wrong in a run, as one tree.

EngineError                     a stable code, a message for the user, and whether another try can help
├── SpecError                   invalid_spec
├── ModelNotFoundError          model_not_found
├── ModelRefusedError           model_refused
├── TokenizerMismatchError      tokenizer_mismatch
├── DataError                   dataset_invalid
├── DataChangedError            dataset_changed
├── NoTrainingDataError         no_training_data
├── ContextTooLongError         context_too_long
├── NonFiniteError              non_finite_loss
├── SamplerDriftError           sampler_drift
├── DeviceUnavailableError      device_unavailable
├── CheckpointCorruptError      checkpoint_corrupt
├── VerifierUnavailableError    verifier_unavailable
├── TeacherUnreachableError     teacher_unreachable
└── TeacherRefusedError         teacher_refused

`StopRequested` is no error: the run was asked to stop, and did, where it can be resumed.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any


class EngineError(Exception):
    """A failure that the user can be told about: `code` is stable, the message names value and remedy."""

    code = "internal_error"


class SpecError(EngineError):
    """The spec contradicts itself, or the models, or the data."""

    code = "invalid_spec"


class ModelNotFoundError(EngineError):
    """No such folder or hub id."""

    code = "model_not_found"


class ModelRefusedError(EngineError):
    """The model's folder needs code of its own, or has no safetensors weights."""

    code = "model_refused"


class TokenizerMismatchError(EngineError):
    """Student and teacher do not agree token for token."""

    code = "tokenizer_mismatch"


class DataError(EngineError):
    """A row of the data is not what the task needs."""

    code = "dataset_invalid"


class DataChangedError(EngineError):
    """A run is resumed on other data than it started on."""

    code = "dataset_changed"


class NoTrainingDataError(EngineError):
    """Nothing is left to train on."""

    code = "no_training_data"


class ContextTooLongError(EngineError):
    """A prompt budget and a completion budget together exceed a model's context."""

    code = "context_too_long"


class NonFiniteError(EngineError):
    """A loss or a gradient is not finite; raised before the update."""

    code = "non_finite_loss"

    def __init__(self, message: str, evidence: NonFiniteEvidence | None = None) -> None:
        """`evidence`: what to look at, until it is saved."""
        super().__init__(message)
        self.evidence = evidence


class SamplerDriftError(EngineError):
    """The sampler's log-probabilities are not the trainer's."""

    code = "sampler_drift"


class DeviceUnavailableError(EngineError):
    """The device asked for is not on this machine."""

    code = "device_unavailable"


class CheckpointCorruptError(EngineError):
    """A checkpoint's files are not what its manifest says."""

    code = "checkpoint_corrupt"


class VerifierUnavailableError(EngineError):
    """What judges the answers does not start, so that every answer would be wrong."""

    code = "verifier_unavailable"


class TeacherUnreachableError(EngineError):
    """The teacher's endpoint did not answer in time, after its retries."""

    code = "teacher_unreachable"


class TeacherRefusedError(EngineError):
    """The teacher's endpoint refused a request, and would refuse it again."""

    code = "teacher_refused"


class StopRequested(Exception):  # noqa: N818 - not an error: the run stopped where it can be resumed
    """Raised at a boundary after a stop was asked for."""


@dataclass(frozen=True)
class NonFiniteEvidence:
    """What was found before the update that did not happen."""

    loss: float
    grad_norm: float
    positions: tuple[int, ...]
    """Of the batch's trajectories in their round, rising."""
    num_tokens: int
    tokens: tuple[dict[str, Any], ...]
    """Position in the round, number in the completion, token id and all figures of each bad token."""
    parameters: tuple[dict[str, Any], ...]
    """Name, size, and how many weights and gradients are not finite."""
