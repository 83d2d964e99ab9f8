"""Peak memory of a job on each of its devices, by the formula of docs/estimate.md.

Takes the models' shapes; what the libraries and the driver themselves hold is not in it.
"""

from __future__ import annotations

from dataclasses import dataclass

from contract.job_spec import JobSpec
from contract.teacher_spec import ServedTeacher
from service.models.shape import ModelShape

DEFAULT_MICRO_BATCH_TOKENS = 16_384
LOSS_CHUNK_BYTES = 2**30
"""Both are the engine's; a test compares."""
FP32_BYTES = 4


@dataclass(frozen=True)
class Memory:
    """Bytes on one device."""

    student_bytes: int
    """Weights, the adapter included."""
    teacher_bytes: int
    """Weights of its own; 0 where it shares the student's or is served elsewhere."""
    gradient_bytes: int
    optimizer_bytes: int
    """AdamW's two moments."""
    activation_bytes: int
    """Of the largest micro-batch."""
    loss_bytes: int
    """One chunk of both models' logits, and the gradient of the hidden states."""
    sampler_bytes: int
    """The sampler's copies of weights, and the keys and values of one longest sequence for each."""
    total_bytes: int


def memory(spec: JobSpec, student: ModelShape, teacher: ModelShape | None) -> Memory:
    """Of a resolved spec; `teacher` is a named teacher's shape."""
    width = 4 if spec.precision == "fp32" else 2
    trained = _num_trained(spec, student)
    parts = {
        "student_bytes": _student(spec, student, width) // spec.devices,
        "teacher_bytes": _teacher(spec, student, teacher, width) // spec.devices,
        "gradient_bytes": trained * FP32_BYTES // spec.devices,
        "optimizer_bytes": 2 * trained * FP32_BYTES // spec.devices,
        "activation_bytes": _activations(spec, student, width),
        "loss_bytes": _loss(spec, student, width),
        "sampler_bytes": _samplers(spec, student, teacher, width),
    }
    return Memory(**parts, total_bytes=sum(parts.values()))


def _num_trained(spec: JobSpec, student: ModelShape) -> int:
    return student.num_parameters if spec.lora is None else _num_adapter(spec, student)


def _num_adapter(spec: JobSpec, student: ModelShape) -> int:
    if spec.lora is None:
        return 0
    named = spec.lora.target_modules
    return student.num_adapter_parameters(spec.lora.rank, None if named == "auto" else tuple(named))


def _student(spec: JobSpec, student: ModelShape, width: int) -> int:
    """Trained weights are fp32; passes in bf16 keep a cast copy of them beside."""
    if spec.lora is not None:
        return student.num_parameters * width + _num_adapter(spec, student) * FP32_BYTES
    return student.num_parameters * (FP32_BYTES + (width if width < FP32_BYTES else 0))


def _teacher(spec: JobSpec, student: ModelShape, teacher: ModelShape | None, width: int) -> int:
    moves = spec.teacher_update.kind
    if isinstance(spec.teacher, ServedTeacher):
        return 0
    if spec.teacher is None and spec.lora is not None:
        return 0 if moves == "frozen" else _num_adapter(spec, student) * FP32_BYTES
    shape = student if spec.teacher is None else teacher
    assert shape is not None, "a named teacher without a shape has no estimate"
    if spec.teacher_precision != "auto":
        width = 4 if spec.teacher_precision == "fp32" else 2
    elif moves == "ema":
        width = FP32_BYTES
    return shape.num_parameters * width


def longest_sequences(spec: JobSpec) -> tuple[int, int]:
    """Most tokens of (the student's, the teacher's) prompt with its completion."""
    solving = spec.sampling.max_prompt_tokens + spec.sampling.max_new_tokens
    refine_prompt = spec.refine.max_prompt_tokens or spec.default_refine_prompt_tokens
    trained = spec.refine.max_new_tokens if spec.refines else spec.sampling.max_new_tokens
    shows_more = spec.is_privileged or spec.refines
    teacher = (refine_prompt if shows_more else spec.sampling.max_prompt_tokens) + trained
    return max(solving, spec.sampling.max_prompt_tokens + trained), teacher


def _micro_batch_tokens(spec: JobSpec) -> int:
    """A micro-batch is filled up to its budget, but holds one sequence at least and a device's share at most."""
    longest = max(longest_sequences(spec))
    budget = spec.optim.micro_batch_tokens or DEFAULT_MICRO_BATCH_TOKENS
    share = -(-spec.optim.batch_size // spec.devices)
    return max(longest, min(budget, share * longest))


def _activations(spec: JobSpec, student: ModelShape, width: int) -> int:
    """With checkpointing: each layer's input, and one layer whole; without: all layers whole."""
    values = 6 * student.hidden + 5 * student.query_width + 4 * student.key_width + 4 * student.intermediate
    layers = student.num_layers
    checkpointed = layers * student.hidden + values
    per_token = layers * values if spec.optim.gradient_checkpointing is False else checkpointed
    return _micro_batch_tokens(spec) * per_token * width


def _loss(spec: JobSpec, student: ModelShape, width: int) -> int:
    tokens = _micro_batch_tokens(spec)
    logits = tokens * student.vocabulary * 2 * width
    return min(logits, LOSS_CHUNK_BYTES) + tokens * student.hidden * width


def _samplers(spec: JobSpec, student: ModelShape, teacher: ModelShape | None, width: int) -> int:
    """Whole on each device. transformers on one device borrows the trained model, and copies nothing."""
    if spec.samples_apart:
        return 0  # on devices of their own
    solving, refining = longest_sequences(spec)
    borrows = spec.sampling.engine == "transformers" and spec.devices == 1
    shares = teacher is None
    length = max(solving, refining) if shares and spec.is_privileged else solving
    needed = [(student, length)]
    if teacher is not None and spec.refines:
        needed.append((teacher, refining))
    copies = 0 if borrows else sum(shape.num_parameters * width for shape, _ in needed)
    return copies + sum(2 * shape.num_layers * shape.key_width * tokens * width for shape, tokens in needed)
