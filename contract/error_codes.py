"""Stable codes of job failures, each with a hint for the user.

A code never changes its meaning: clients branch on it. ``retryable`` is true if the same job can succeed on another
attempt (after a lost worker), and false if it cannot (a model that does not exist).
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class ErrorCode:
    """One kind of failure."""

    code: str
    retryable: bool
    hint: str
    is_outage: bool = False
    """A resource that the job needs is unavailable or full, so that an immediate retry would fail in the same way."""


def _index(*codes: ErrorCode) -> dict[str, ErrorCode]:
    return {entry.code: entry for entry in codes}


ERROR_CODES: dict[str, ErrorCode] = _index(
    ErrorCode("invalid_spec", False, "Correct the named field and submit the job again."),
    ErrorCode(
        "model_not_found",
        False,
        "GET /models lists the available models; the operator can add others in TRD_MODELS.",
    ),
    ErrorCode(
        "model_refused",
        False,
        "The model's folder needs custom code, its weights are quantised, or its safetensors files lack some; convert "
        "it, or copy it again.",
    ),
    ErrorCode(
        "tokenizer_mismatch",
        False,
        "Student and teacher must have the same tokenizer; choose a teacher of the same family.",
    ),
    ErrorCode("dataset_invalid", False, "Correct the named rows and upload the file again."),
    ErrorCode("dataset_changed", False, "The data differs from the data that the run started with; submit a new job."),
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
        "Lower optim.learning_rate, or inspect the saved batch: the run stopped before the update.",
    ),
    ErrorCode(
        "sampler_drift",
        False,
        "The sampler's log-probabilities disagree with the trainer's: it does not use the trained weights.",
    ),
    ErrorCode(
        "out_of_memory",
        False,
        "Lower optim.micro_batch_tokens or sampling.max_new_tokens, or use LoRA or more devices.",
    ),
    ErrorCode(
        "host_out_of_memory",
        True,
        "The machine's memory ran out; the job resumes from its last checkpoint. If it happens again, give the worker "
        "more memory, or lower optim.micro_batch_tokens.",
        is_outage=True,
    ),
    ErrorCode(
        "passes_too_large",
        True,
        "The job resumes from its last checkpoint in training passes of half the size, with the same result. To save "
        "the attempts, set optim.micro_batch_tokens.",
    ),
    ErrorCode("device_unavailable", True, "This worker does not have the requested device.", is_outage=True),
    ErrorCode(
        "gpu_fault",
        True,
        "A GPU or a process on it failed; the job resumes from its last checkpoint. If it happens again, look for Xid "
        "errors in the machine's kernel log, and take the GPU out of use.",
    ),
    ErrorCode(
        "collective_timeout",
        True,
        "The processes of the run waited for one of them too long; see the named rank, and the machine it runs on.",
    ),
    ErrorCode("disk_full", True, "Free space in the data folder, then resume the job.", is_outage=True),
    ErrorCode(
        "storage_unavailable",
        True,
        "The job's files could not be read from or written to the storage; resume when it works again.",
        is_outage=True,
    ),
    ErrorCode(
        "checkpoint_corrupt",
        False,
        "No checkpoint is valid; resume when the storage has them again, or clone the job to start over.",
    ),
    ErrorCode(
        "verifier_unavailable",
        True,
        "The verifier does not start on this worker, for the given reason; resume when it does.",
        is_outage=True,
    ),
    ErrorCode(
        "teacher_unreachable", True, "The teacher's endpoint did not answer; resume when it does.", is_outage=True
    ),
    ErrorCode(
        "teacher_refused",
        False,
        "The teacher's endpoint refused the request for the given reason; the operator sets its key, model and limits.",
    ),
    ErrorCode(
        "samplers_unreachable",
        True,
        "No server of the sampler pool gave a usable answer; resume when they do.",
        is_outage=True,
    ),
    ErrorCode(
        "samplers_refused",
        False,
        "A server of the sampler pool refused the request for the given reason; the operator sets its key, model and "
        "limits.",
    ),
    ErrorCode(
        "worker_outdated",
        True,
        "The worker is older than the service that accepted the job; the operator updates it, and the job continues.",
        is_outage=True,
    ),
    ErrorCode("worker_lost", True, "The worker stopped responding; the job continues from its last checkpoint."),
    ErrorCode(
        "cluster_unavailable",
        True,
        "The Ray cluster did not answer, or had no room for the job; resume when it does.",
        is_outage=True,
    ),
    ErrorCode("crash_loop", False, "Several attempts ended without completing a step; see the job's events."),
    ErrorCode(
        "engine_crashed", True, "The engine ended without an error message; see the end of its log in the events."
    ),
    ErrorCode("internal_error", False, "A bug in the engine; include the event with the traceback in your report."),
)
"""All codes by name. An attempt that ends with an unknown code is recorded as ``internal_error``."""
