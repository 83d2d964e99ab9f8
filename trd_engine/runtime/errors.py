"""The errors of a run, as one tree.

EngineError                     a stable code and a message for the user
├── SpecError                   invalid_spec
├── ModelNotFoundError          model_not_found
├── ModelRefusedError           model_refused
├── TokenizerMismatchError      tokenizer_mismatch
├── DataError                   dataset_invalid
├── DataChangedError            dataset_changed
├── NoTrainingDataError         no_training_data
├── ContextTooLongError         context_too_long
├── StrictNoticesError          strict_notices
├── NonFiniteError              non_finite_loss
├── SamplerDriftError           sampler_drift
├── SamplersUnreachableError    samplers_unreachable
├── SamplersRefusedError        samplers_refused
├── PassTooLargeError           out_of_memory
│   └── PassesTooLargeError     passes_too_large
├── DeviceUnavailableError      device_unavailable
├── CheckpointCorruptError      checkpoint_corrupt
├── VerifierUnavailableError    verifier_unavailable
├── TeacherUnreachableError     teacher_unreachable
└── TeacherRefusedError         teacher_refused

`StopRequested` is not an error: the run stopped on request at a point from which it can be resumed.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any


class EngineError(Exception):
    """A failure to report to the user: `code` is stable, the message names the value and what to do."""

    code = "internal_error"


class SpecError(EngineError):
    """The spec contradicts itself, the models or the data."""

    code = "invalid_spec"


class ModelNotFoundError(EngineError):
    """No such folder or hub id."""

    code = "model_not_found"


class ModelRefusedError(EngineError):
    """The model's folder needs custom code, its weights are quantised, or its safetensors files lack weights."""

    code = "model_refused"


class TokenizerMismatchError(EngineError):
    """The tokenizers of student and teacher differ."""

    code = "tokenizer_mismatch"


class DataError(EngineError):
    """A row of the data does not fit the task."""

    code = "dataset_invalid"


class DataChangedError(EngineError):
    """A run is resumed with other data than it started with."""

    code = "dataset_changed"


class NoTrainingDataError(EngineError):
    """Nothing is left to train on."""

    code = "no_training_data"


class ContextTooLongError(EngineError):
    """A prompt budget and a completion budget together exceed a model's context."""

    code = "context_too_long"


class StrictNoticesError(EngineError):
    """A strict run has a notice."""

    code = "strict_notices"


class PassTooLargeError(EngineError):
    """The memory ran out in a training pass; the weights are as before the step."""

    code = "out_of_memory"


class PassesTooLargeError(PassTooLargeError):
    """The memory ran out in one of several processes, and the others wait in the pass: the run can continue from its
    last checkpoint in smaller passes."""

    code = "passes_too_large"

    def __init__(self, message: str, pass_tokens: tuple[int, int]) -> None:
        """`pass_tokens`: most tokens of a pass of the student and of the teacher that may fit."""
        super().__init__(message)
        self.pass_tokens = pass_tokens


class NonFiniteError(EngineError):
    """A loss or a gradient is not finite; raised before the update."""

    code = "non_finite_loss"

    def __init__(self, message: str, evidence: NonFiniteEvidence | None = None) -> None:
        """Keep `evidence` until it is saved."""
        super().__init__(message)
        self.evidence = evidence


class SamplerDriftError(EngineError):
    """The sampler's log-probabilities differ from the trainer's."""

    code = "sampler_drift"


class SamplersUnreachableError(EngineError):
    """No server of the sampler pool answered in time, after the retries."""

    code = "samplers_unreachable"


class SamplersRefusedError(EngineError):
    """A server of the sampler pool refused a request, and a retry would not help."""

    code = "samplers_refused"


class DeviceUnavailableError(EngineError):
    """The spec's device is not on this machine."""

    code = "device_unavailable"


class CheckpointCorruptError(EngineError):
    """A checkpoint's files do not match its manifest."""

    code = "checkpoint_corrupt"


class VerifierUnavailableError(EngineError):
    """The verifier does not start, so that every answer would count as wrong."""

    code = "verifier_unavailable"


class TeacherUnreachableError(EngineError):
    """The teacher's endpoint did not answer in time, after its retries."""

    code = "teacher_unreachable"


class TeacherRefusedError(EngineError):
    """The teacher's endpoint refused a request, and a retry would not help."""

    code = "teacher_refused"


class StopRequested(Exception):  # noqa: N818 - not an error: the run stopped where it can be resumed
    """Raised at a boundary after a stop was requested."""


@dataclass(frozen=True)
class NonFiniteEvidence:
    """Figures of the step whose update was not made."""

    loss: float
    grad_norm: float
    positions: tuple[int, ...]
    """Positions of the batch's trajectories in their round, ascending."""
    num_tokens: int
    tokens: tuple[dict[str, Any], ...]
    """Of each token that is not finite: position in the round, number in the completion, token id and all figures."""
    parameters: tuple[dict[str, Any], ...]
    """Of each parameter: name, size, and how many weights and gradients are not finite."""
