"""Who holds how much of a device's memory in each phase, by the formulas of docs/estimate.md.

On a GPU with vLLM, the student's engine, the teacher's engine and the training take turns
(`trd_engine.generation.vllm.residence`), and the engine that is awake takes what the others leave for keys and values.
"""

from __future__ import annotations

from dataclasses import dataclass

from trd_estimate.hardware import GIB, Hardware
from trd_estimate.shape import ModelShape
from trd_estimate.spec import RunSpec

FP32_BYTES = 4
DEFAULT_PASS_TOKENS = 16_384
"""Tokens of one training pass of the student if the spec sets no number."""
MAX_TEACHER_PASS_TOKENS = 4 * DEFAULT_PASS_TOKENS
"""The same for the teacher, whose passes keep nothing for a backward pass."""
LOSS_CHUNK_BYTES = GIB
"""The engine's, of both models' logits; a test compares."""
RESERVE_BYTES = GIB
"""Left free on a GPU: fragments, and what CUDA's libraries take at their first use."""
CONTEXT_BYTES = 600 * 2**20
"""CUDA's context of the training process. An assumption."""
SLEEPING_BYTES = 3 * GIB // 2
"""What a sleeping engine keeps: its CUDA context, graphs and workspaces. An assumption."""
WORKSPACE_BYTES = 5 * GIB // 2
"""What an engine that is awake takes besides weights and cache: activations of its largest step, context, graphs. An
assumption."""
SEPARATE_SHARE = 0.9
"""Share of a GPU's memory for engines on separate GPUs."""

SAMPLING_PHASES = ("preparing", "rollout", "refining", "evaluating")
TRAINING_PHASES = ("diagnosing", "training")


@dataclass(frozen=True)
class Models:
    """The shapes of a run's models."""

    student: ModelShape
    teacher: ModelShape | None = None
    """Shape of a named teacher; None if the student teaches itself, or if the teacher is served."""

    def sampling(self, phase: str) -> ModelShape:
        """Return the model that samples in a phase."""
        return self.teacher if phase == "refining" and self.teacher is not None else self.student


def is_served(spec: RunSpec) -> bool:
    """Return whether the teacher is on a server."""
    return spec.teacher is not None and not isinstance(spec.teacher, str)


def value_bytes(spec: RunSpec, hardware: Hardware) -> int:
    """Return the bytes of a value in the passes; auto is bf16 on a GPU that has it, else fp32."""
    is_auto_bf16 = hardware.is_gpu and hardware.has_bf16
    return 2 if spec.precision == "bf16" or (spec.precision == "auto" and is_auto_bf16) else FP32_BYTES


def checkpoints_activations(spec: RunSpec, hardware: Hardware) -> bool:
    """Return whether the backward pass computes activations again."""
    wanted = spec.optim.gradient_checkpointing
    return hardware.is_gpu if wanted is None else wanted


def num_adapter(spec: RunSpec, student: ModelShape) -> int:
    """Return the number of the adapter's weights; 0 with full fine-tuning."""
    if spec.lora is None:
        return 0
    named = spec.lora.target_modules
    return student.num_adapter_parameters(spec.lora.rank, None if named == "auto" else tuple(named))


def num_trained(spec: RunSpec, student: ModelShape) -> int:
    """Return the number of weights that the optimizer changes."""
    return student.num_parameters if spec.lora is None else num_adapter(spec, student)


def longest_sequences(spec: RunSpec) -> tuple[int, int]:
    """Return the most tokens of (the student's, the teacher's) prompt with its completion."""
    solving = spec.sampling.max_prompt_tokens + spec.sampling.max_new_tokens
    refine_prompt = spec.refine.max_prompt_tokens or 0
    trained = spec.refine.max_new_tokens if spec.refines else spec.sampling.max_new_tokens
    teacher_prompt = refine_prompt if spec.is_privileged or spec.refines else spec.sampling.max_prompt_tokens
    return max(solving, spec.sampling.max_prompt_tokens + trained), teacher_prompt + trained


def student_token_bytes(
    shape: ModelShape, width: int, *, is_checkpointed: bool, stream_width: int | None = None
) -> int:
    """Return the bytes of activations that a training pass keeps for each token.

    With checkpointing: each layer's input, and one layer whole; without: all layers whole. And the hidden states of the
    loss. `stream_width` is the bytes of a value between layers. It is more than `width` where autocast meets weights in
    fp32: products are cast, and their sum is not, nor are the norms' inputs and results, which are kept beside.
    """
    stream = stream_width or width
    values = 6 * shape.hidden + 5 * shape.query_width + 4 * shape.key_width + 4 * shape.intermediate
    layer, end = values * width, shape.hidden * width
    if stream > width:
        layer, end = layer + 4 * shape.hidden * stream, end + shape.hidden * stream
    layers = shape.num_layers * shape.hidden * stream + layer if is_checkpointed else shape.num_layers * layer
    return layers + end


def teacher_token_bytes(shape: ModelShape, width: int) -> int:
    """Return the bytes that a pass without gradient holds for each token: the widest part of one layer."""
    return (4 * shape.hidden + 2 * shape.query_width + 2 * shape.key_width + 3 * shape.intermediate) * width


def default_pass_tokens(free_bytes: int, student_token: int, teacher_token: int) -> tuple[int, int]:
    """Return the tokens of one pass of (the student, the teacher) on a GPU with so much memory for either."""
    student = min(DEFAULT_PASS_TOKENS, free_bytes // max(1, student_token))
    teacher = min(MAX_TEACHER_PASS_TOKENS, free_bytes // max(1, teacher_token))
    return max(1, student), max(1, student, teacher)


def phase_memory(spec: RunSpec, models: Models, hardware: Hardware) -> dict[str, dict[str, int]]:
    """Return the bytes of each owner on one training device, by phase."""
    trainer = _trainer(spec, models, hardware)
    asleep = {"sleeping_engines": SLEEPING_BYTES * num_engines(spec)} if takes_turns(spec, hardware) else {}
    awake = {} if takes_turns(spec, hardware) else _engines_always_awake(spec, models, hardware)
    training = {**trainer, **_pass(spec, models, hardware, trainer), **asleep, **awake}
    found = dict.fromkeys(TRAINING_PHASES, training) | {"saving": {**trainer, **asleep, **awake}}
    for phase in SAMPLING_PHASES:
        engine = _awake_engine(spec, models, hardware, trainer, phase) if takes_turns(spec, hardware) else awake
        found[phase] = {**trainer, **engine}
    return found


def least_bytes(spec: RunSpec, models: Models, hardware: Hardware) -> int:
    """Return what each training device holds at an optimizer step, whatever the lengths of the texts: weights of both
    models, gradients and moments, without activations and what libraries take."""
    held = _trainer(spec, models, hardware)
    gradients = num_trained(spec, models.student) * FP32_BYTES // spec.devices
    return sum(held.values()) - held.get("context", 0) + gradients


def num_engines(spec: RunSpec) -> int:
    """Return the number of engines of student and teacher; one if the teacher samples nothing, or is the student."""
    return 2 if spec.refines and isinstance(spec.teacher, str) else 1


def takes_transformers(spec: RunSpec, hardware: Hardware) -> bool:
    """Return whether transformers samples for certain: if the spec wants it, or with LoRA in fp32, which vLLM does not
    compute on a GPU."""
    is_refused = hardware.is_gpu and spec.lora is not None and value_bytes(spec, hardware) == FP32_BYTES
    return spec.sampling.engine == "transformers" or (spec.sampling.engine == "auto" and is_refused)


def takes_turns(spec: RunSpec, hardware: Hardware) -> bool:
    """Return whether engines of vLLM share the GPU with the training."""
    sampling = spec.sampling
    is_here = sampling.placement == "colocated" and sampling.pool is None
    return hardware.is_gpu and not takes_transformers(spec, hardware) and is_here


def engine_weights(spec: RunSpec, models: Models, hardware: Hardware, phase: str) -> tuple[int, int]:
    """Return (weights, bytes of one token's keys and values) of the engine that samples in a phase."""
    shape, width = models.sampling(phase), value_bytes(spec, hardware)
    size = spec.sampling.tensor_parallel_size
    return shape.num_parameters * width // size, shape.kv_bytes(width) // size


def host_bytes(spec: RunSpec, models: Models, hardware: Hardware, phase: str) -> int:
    """Return what the models take of the machine's memory: engines that sleep at level 1 keep a pinned copy of their
    weights, and a checkpoint is put together in the main process."""
    num = 0
    if takes_turns(spec, hardware) and spec.lora is not None:
        roles = ("rollout", "refining")[: num_engines(spec)]
        is_awake = {"rollout": phase in ("rollout", "evaluating"), "refining": phase == "refining"}
        num = sum(engine_weights(spec, models, hardware, role)[0] for role in roles if not is_awake[role])
    whole = models.student.num_parameters * (FP32_BYTES if spec.lora is None else value_bytes(spec, hardware))
    writes = phase == "saving" and (spec.lora is None or spec.checkpoints.merged)
    return num * spec.devices + (whole if writes else 0)


def checkpoint_bytes(spec: RunSpec, models: Models, hardware: Hardware) -> int:
    """Return the size of one checkpoint: weights, and AdamW's two moments."""
    trained = num_trained(spec, models.student)
    is_merged = spec.lora is not None and spec.checkpoints.merged
    merged = models.student.num_parameters * value_bytes(spec, hardware) if is_merged else 0
    return 3 * trained * FP32_BYTES + merged


def _trainer(spec: RunSpec, models: Models, hardware: Hardware) -> dict[str, int]:
    """Return the bytes of the trained weights, in fp32; one device keeps a copy of them in the dtype of the passes."""
    width, student = value_bytes(spec, hardware), models.student
    if spec.lora is not None:
        own = student.num_parameters * width + num_adapter(spec, student) * FP32_BYTES
    else:
        own = student.num_parameters * (FP32_BYTES + (width if width < FP32_BYTES and spec.devices == 1 else 0))
    found = {
        "student_weights": own // spec.devices,
        "teacher_weights": _teacher(spec, models, width)[0] // spec.devices,
        "moments": 2 * num_trained(spec, student) * FP32_BYTES // spec.devices,
    }
    return found | ({"context": CONTEXT_BYTES + RESERVE_BYTES} if hardware.is_gpu else {})


def _teacher(spec: RunSpec, models: Models, width: int) -> tuple[int, int]:
    """Return (bytes of its own weights, bytes of a value)."""
    moves = spec.teacher_update.kind
    if is_served(spec):
        return 0, width
    if spec.teacher is None and spec.lora is not None:
        return (0 if moves == "frozen" else num_adapter(spec, models.student) * FP32_BYTES), width
    shape = models.student if spec.teacher is None else models.teacher
    assert shape is not None, "a named teacher without a shape has no estimate"
    if spec.teacher_precision != "auto":
        width = FP32_BYTES if spec.teacher_precision == "fp32" else 2
    elif moves == "ema":
        width = FP32_BYTES
    return shape.num_parameters * width, width


def _pass(spec: RunSpec, models: Models, hardware: Hardware, trainer: dict[str, int]) -> dict[str, int]:
    """Return the bytes of gradients and of the largest pass: the teacher's is over before the student's begins."""
    width, student = value_bytes(spec, hardware), models.student
    gradients = num_trained(spec, student) * FP32_BYTES // spec.devices
    is_checkpointed = checkpoints_activations(spec, hardware)
    stream_width = FP32_BYTES if spec.lora is None and spec.devices == 1 else width  # FSDP casts what it gathers
    student_token = student_token_bytes(student, width, is_checkpointed=is_checkpointed, stream_width=stream_width)
    shape = None if is_served(spec) else models.teacher or student
    teacher_token = teacher_token_bytes(shape, width) if shape is not None else 0
    teacher_head = 0
    if spec.devices > 1 and models.teacher is not None:
        # FSDP keeps the teacher's head complete until the loss is computed, see `trd_engine.models.fsdp`.
        teacher_head = models.teacher.num_root_parameters * _teacher(spec, models, width)[1]
    free = 0
    if hardware.memory_bytes is not None:
        engines = SLEEPING_BYTES * num_engines(spec) if takes_turns(spec, hardware) else 0
        free = hardware.memory_bytes - sum(trainer.values()) - gradients - engines - LOSS_CHUNK_BYTES - teacher_head
    student_tokens, teacher_tokens = _pass_tokens(spec, free, student_token, teacher_token, hardware)
    found = {
        "gradients": gradients,
        "activations": max(student_tokens * student_token, teacher_tokens * teacher_token),
        "loss": min(student_tokens * student.vocabulary * 2 * width, LOSS_CHUNK_BYTES),
    }
    if spec.devices > 1:
        # FSDP: two layers at a time, and embedding and head; with full fine-tuning their gradients, too.
        complete = 2 * student.num_layer_parameters + student.num_root_parameters
        if spec.lora is None:
            complete += student.num_layer_parameters + student.num_root_parameters
        found["complete_weights"] = teacher_head + complete * width
    return found


def _pass_tokens(
    spec: RunSpec, free_bytes: int, student_token: int, teacher_token: int, hardware: Hardware
) -> tuple[int, int]:
    """Return the tokens of a pass, which is filled up to its budget, but holds one sequence at least and a device's
    share at most."""
    longest = longest_sequences(spec)
    budgets = (spec.optim.micro_batch_tokens or DEFAULT_PASS_TOKENS,) * 2
    if spec.optim.micro_batch_tokens is None and hardware.is_gpu:
        budgets = default_pass_tokens(max(0, free_bytes), student_token, teacher_token)
    share = -(-spec.optim.batch_size // spec.devices)
    student, teacher = (max(n, min(budget, share * n)) for n, budget in zip(longest, budgets, strict=True))
    return student, teacher


def _awake_engine(
    spec: RunSpec, models: Models, hardware: Hardware, trainer: dict[str, int], phase: str
) -> dict[str, int]:
    """Return the bytes of a phase's engine, which takes what is left for keys and values; the other one sleeps."""
    assert hardware.memory_bytes is not None
    weights = engine_weights(spec, models, hardware, phase)[0]
    asleep = SLEEPING_BYTES * (num_engines(spec) - 1)
    left = hardware.memory_bytes - sum(trainer.values()) - asleep
    wanted = spec.sampling.gpu_memory_utilization
    room = left if wanted is None else min(left, int(wanted * hardware.memory_bytes))
    return {
        "engine_weights": weights,
        "engine_workspace": WORKSPACE_BYTES,
        "kv_cache": max(0, room - weights - WORKSPACE_BYTES),
        **({"sleeping_engines": asleep} if asleep else {}),
    }


def _engines_always_awake(spec: RunSpec, models: Models, hardware: Hardware) -> dict[str, int]:
    """Return the bytes of samplers that do not sleep: copies on a CPU. transformers on one device borrows the trained
    module, and samplers on separate devices or servers take nothing here."""
    if spec.sampling.placement == "separate" or spec.sampling.pool is not None:
        return {}
    borrows = takes_transformers(spec, hardware) and spec.devices == 1
    solving, refining = longest_sequences(spec)
    roles = {"rollout": max(solving, refining) if spec.teacher is None and spec.is_privileged else solving}
    if num_engines(spec) == 2:
        roles["refining"] = refining
    sizes = {role: engine_weights(spec, models, hardware, role) for role in roles}
    return {
        "engine_weights": 0 if borrows else sum(weights for weights, _ in sizes.values()),
        "kv_cache": sum(sizes[role][1] * tokens for role, tokens in roles.items()),
    }
