"""Stable codes of a job's failure, each marked retryable or not, with a hint for the user.

A code never changes its meaning: clients branch on it. ``retryable`` tells whether the very same
job can succeed on another try (a lost worker) or not (a model that does not exist).
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class ErrorCode:
    """One way in which a job fails."""

    code: str
    retryable: bool
    hint: str
    is_outage: bool = False
    """Something around the job is away or full: another try at once would meet the same."""


def _index(*codes: ErrorCode) -> dict[str, ErrorCode]:
    return {entry.code: entry for entry in codes}


ERROR_CODES: dict[str, ErrorCode] = _index(
    ErrorCode("invalid_spec", False, "Correct the named field and submit the job again."),
    ErrorCode(
        "model_not_found",
        False,
        "GET /models lists what may be named; the operator's TRD_MODELS adds to it.",
    ),
    ErrorCode(
        "model_refused",
        False,
        "The model's folder needs code of its own or holds no safetensors weights; convert it first.",
    ),
    ErrorCode(
        "tokenizer_mismatch",
        False,
        "Student and teacher must have the same tokenizer; choose a teacher of the same family.",
    ),
    ErrorCode("dataset_invalid", False, "Correct the named rows and upload the file again."),
    ErrorCode("dataset_changed", False, "The data is not what the run started on; submit a new job."),
    ErrorCode(
        "no_training_data",
        False,
        "Every problem was dropped or held out; raise sampling.max_prompt_tokens or lower evaluation.holdout.",
    ),
    ErrorCode(
        "context_too_long",
        False,
        "Prompt and completion budgets exceed the model's context; lower max_prompt_tokens or max_new_tokens.",
    ),
    ErrorCode(
        "strict_notices",
        False,
        "The job is strict, and there is a notice; do what it says, or submit the job without strict.",
    ),
    ErrorCode(
        "non_finite_loss",
        False,
        "Lower optim.learning_rate, or look at the saved batch: the run stopped before the update.",
    ),
    ErrorCode(
        "sampler_drift",
        False,
        "The sampler's log-probabilities disagree with the trainer's: its weights are not the ones trained.",
    ),
    ErrorCode(
        "out_of_memory",
        False,
        "Lower optim.micro_batch_tokens or sampling.max_new_tokens, or use LoRA or more devices.",
    ),
    ErrorCode("device_unavailable", True, "The device that was asked for is not on this worker.", is_outage=True),
    ErrorCode("disk_full", True, "Free space in the data folder, then resume the job.", is_outage=True),
    ErrorCode(
        "storage_unavailable",
        True,
        "The storage did not give or take the job's files; resume when it does.",
        is_outage=True,
    ),
    ErrorCode(
        "checkpoint_corrupt",
        False,
        "No checkpoint verifies; resume once the storage has them again, or clone the job to begin anew.",
    ),
    ErrorCode(
        "verifier_unavailable",
        True,
        "The program that judges answers does not start on this worker, and says why; resume once it does.",
        is_outage=True,
    ),
    ErrorCode(
        "teacher_unreachable", True, "The teacher's endpoint did not answer; resume when it does.", is_outage=True
    ),
    ErrorCode(
        "teacher_refused",
        False,
        "The teacher's endpoint refused the request, and says why; its key, model and limits are the operator's.",
    ),
    ErrorCode("worker_lost", True, "The worker stopped answering; the job goes on from its last checkpoint."),
    ErrorCode("crash_loop", False, "Several attempts ended without a step of progress; see the job's events."),
    ErrorCode("engine_crashed", True, "The engine ended without saying why; see the end of its log in the events."),
    ErrorCode("internal_error", False, "A defect of the engine; the event with the traceback helps to report it."),
)
"""All codes by name. An attempt that ends with an unknown code is recorded as ``internal_error``."""
