"""Setting a run up: models, tokenizers, prompts and generators, each checked against the others."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Literal

import torch
from peft import PeftModel
from transformers import PreTrainedTokenizerBase

from trd_data.prompts import PromptBuilder
from trd_engine.config import RefineConfig, RunConfig, SamplingConfig
from trd_engine.distillation.losses.divergence import divergence_of
from trd_engine.distillation.model_pair import ModelPair
from trd_engine.distillation.token_weights import make_weigher
from trd_engine.evaluation.diagnosis.token_places import epistemic_token_ids
from trd_engine.generation.choice import EngineName, choose_and_report, sampling_settings
from trd_engine.generation.hf.generator import CopyGenerator, TransformersGenerator
from trd_engine.generation.protocol import Generator
from trd_engine.generation.samplers import Samplers
from trd_engine.generation.served.client import open_endpoint
from trd_engine.generation.served.generator import PoolGenerator
from trd_engine.generation.vllm.engines import vllm_generators
from trd_engine.generation.weight_sync import ServedWeights
from trd_engine.models.attention.packing import packing_notice, packing_of
from trd_engine.models.folders import MODEL_FOLDER
from trd_engine.models.fsdp import RunUnsharded, local_shard, run_directly, shard
from trd_engine.models.head import require_known_head
from trd_engine.models.loading import (
    TrainedModel,
    causal_lm_of,
    end_of_turn_ids,
    load_model,
    load_tokenizer,
    make_prompt_builder,
    require_context,
    special_token_ids,
    stop_ids,
)
from trd_engine.models.lora import TEACHER_ADAPTER, adapter_coverage, add_adapter, add_teacher_adapter
from trd_engine.models.tokenizer_agreement import require_same_end_of_turn, require_same_tokenizer
from trd_engine.runtime.distributed import ALONE, World
from trd_engine.runtime.errors import ModelRefusedError
from trd_engine.runtime.events import Reporter
from trd_engine.runtime.hardware import choose_compute_dtype, choose_device, local_device
from trd_engine.tasks.protocol import Task
from trd_engine.tasks.steps import epistemic_onsets
from trd_engine.teachers.endpoint.api import EndpointTeacher
from trd_engine.teachers.local import Teacher
from trd_engine.teachers.moving_weights import TeacherUpdate
from trd_engine.teachers.prompts import TeacherPrompts
from trd_engine.teachers.served import ServedTeacher
from trd_engine.training.checkpoints.checkpoint import STATE_FOLDER, restore_adapter
from trd_engine.training.checkpoints.state import read_state
from trd_estimate.memory import CONTEXT_BYTES, LOSS_CHUNK_BYTES, RESERVE_BYTES, SLEEPING_BYTES

MIN_ADAPTED_SHARE = 0.5
"""Share of a student's weights below which LoRA is worth a warning."""


@dataclass(frozen=True)
class Tokenizers:
    """The student's and the teacher's; the same object if the teacher is served or is the student itself."""

    student: PreTrainedTokenizerBase
    teacher: PreTrainedTokenizerBase


def load_tokenizers(config: RunConfig) -> Tokenizers:
    """Load both tokenizers, and check that they agree and that every context fits the models."""
    student = teacher = load_tokenizer(config.student)
    if isinstance(config.teacher, str):
        teacher = load_tokenizer(config.teacher)
        require_same_tokenizer(student, teacher)
        if config.refines:
            teacher_ids = end_of_turn_ids(config.teacher_folder, teacher)
            names = [str(token) for token in teacher.convert_ids_to_tokens(list(teacher_ids))]
            require_same_end_of_turn(end_of_turn_ids(config.student, student), teacher_ids, names)
    _require_contexts(config)
    return Tokenizers(student, teacher)


def report_stop_ids(config: RunConfig, tokenizers: Tokenizers, reporter: Reporter) -> None:
    """Report whether the files of a model's folder disagree on what ends a completion."""
    sources = {config.student: ("student", tokenizers.student)}
    sources.setdefault(config.teacher_folder, ("teacher", tokenizers.teacher))
    for source, (role, tokenizer) in sources.items():
        if notice := stop_ids(source, tokenizer).notice(role):
            reporter.report(notice)


def open_served_teacher(
    config: RunConfig, tokenizer: PreTrainedTokenizerBase, resume_from: Path | None, reporter: Reporter
) -> ServedTeacher | None:
    """Connect to the spec's served teacher, and report what it gives; None if the teacher is local."""
    wanted, world = config.served_teacher, reporter.world
    if wanted is None:
        return None
    was_scored = None
    if resume_from is not None:
        was_scored = read_state(resume_from / STATE_FOLDER).identity["loss.divergence"] != "cross_entropy"
    client = EndpointTeacher(
        open_endpoint(wanted, wanted.endpoint, world, model=wanted.model, is_vllm=wanted.api == "vllm"),
        tokenizer,
        end_of_turn_ids=end_of_turn_ids(config.student, tokenizer),
        thinking=config.sampling.thinking,
    )
    refine = config.refine if config.refines else None
    served = ServedTeacher(client, wanted, config.loss, config.sampling, refine, world=world, was_scored=was_scored)
    served.report(reporter, is_diagnosed=config.diagnosis.num_trajectories > 0)
    return served


def load_models(
    config: RunConfig,
    tokenizer: PreTrainedTokenizerBase,
    served: ServedTeacher | None = None,
    resume_from: Path | None = None,
    world: World = ALONE,
) -> ModelPair:
    """Load student and teacher; with `resume_from`, the student's weights are the checkpoint's.

    Several processes divide both while they load them. Weights that are trained are kept in fp32,
    and the passes run in the compute dtype. With LoRA nothing of the base is trained, and it is held in the compute
    dtype. `tokenizer` is the student's.
    """
    device = local_device(choose_device(config.device))
    compute_dtype = choose_compute_dtype(config.precision, device)
    source = config.student
    if resume_from is not None and config.lora is None:
        source = str(resume_from / MODEL_FOLDER)
    world.wait()  # one may have had to fetch the weights
    dtype = torch.float32 if config.lora is None else compute_dtype
    base = load_model(source, dtype=dtype, device=device, world=world)
    student: TrainedModel = base
    if config.lora is not None:
        student = add_adapter(base, config.lora, seed=config.seed)
        student.peft_config["default"].base_model_name_or_path = config.student_name or config.student
        if resume_from is not None:
            restore_adapter(resume_from, student)
    is_checkpointed = config.optim.gradient_checkpointing
    if is_checkpointed or (is_checkpointed is None and device.type == "cuda"):
        student.gradient_checkpointing_enable({"use_reentrant": False})
    teacher = None if served is not None else _load_teacher(config, student, compute_dtype, device, world)
    run_unsharded, teacher = _divide(student, teacher, compute_dtype, world)
    return ModelPair(
        student,
        teacher,
        divergence_of(config.loss, served.top_k if served else None),
        compute_dtype,
        epistemic_token_ids(tokenizer, epistemic_onsets(config.task)),
        weigher=make_weigher(config.loss.token_weights, special_token_ids(config.student, tokenizer)),
        is_cross_entropy=config.loss.divergence == "cross_entropy",
        served_teacher=served,
        teacher_update=TeacherUpdate.of(config.teacher_update, teacher.model, student) if teacher is not None else None,
        world=world,
        run_student_unsharded=run_unsharded,
    )


def _divide(
    student: TrainedModel, teacher: Teacher | None, dtype: torch.dtype, world: World
) -> tuple[RunUnsharded, Teacher | None]:
    """Shard both models among the processes and check them. Return how the student's is entered, and the teacher with
    its own way."""
    run_student = run_directly if world.size == 1 else shard(student, world, dtype).run_unsharded
    _require_readable("student", student, run_student, dtype, world)
    if teacher is None:
        return run_student, None
    if teacher.shares_student:
        shared = Teacher(student, shares_student=True, adapter=teacher.adapter, run_unsharded=run_student)
        return run_student, shared
    if world.size > 1:
        # Its passes take its weights as they are: it may be kept in another precision than the student's passes.
        root = shard(teacher.model, world, torch.float32, keeps_head_full=True)
        teacher = Teacher(teacher.model, run_unsharded=root.run_unsharded, free_full_weights=root.free_full_weights)
        _require_readable("teacher", teacher.model, root.run_unsharded, dtype, world)
        root.free_full_weights()
    else:
        _require_readable("teacher", teacher.model, run_directly, dtype, world)
    return run_student, teacher


@torch.no_grad()
def _require_readable(role: str, model: TrainedModel, run: RunUnsharded, dtype: torch.dtype, world: World) -> None:
    """Raise `ModelRefusedError` if the loss cannot compute the model's logits, or several processes cannot read it."""
    run(lambda: require_known_head(role, causal_lm_of(model)))
    if world.size == 1:
        return
    with torch.autocast(model.device.type, dtype, enabled=dtype != torch.float32):
        packing = run(lambda: packing_of(model))
    if packing.kind == "single":
        raise ModelRefusedError(
            f"the {role} reads one sequence a pass, so that processes would need different numbers of passes over "
            f"the layers that they divide; set devices to 1 (it is {world.size})"
        )


def _load_teacher(
    config: RunConfig, student: TrainedModel, dtype: torch.dtype, device: torch.device, world: World
) -> Teacher:
    moves = config.teacher_update.kind != "frozen"
    if config.teacher is None and isinstance(student, PeftModel):
        if moves:
            add_teacher_adapter(student)
        return Teacher(student, shares_student=True, adapter=TEACHER_ADAPTER if moves else None)
    if config.teacher_precision != "auto":
        dtype = choose_compute_dtype(config.teacher_precision, device)
    elif config.teacher_update.kind == "ema":
        dtype = torch.float32  # an average moves by less than bf16 can tell
    # Full fine-tuning moves every weight: teaching itself then needs a copy.
    model = load_model(config.teacher_folder, dtype=dtype, device=device, world=world)
    return Teacher(model.requires_grad_(False))


def report_packing(models: ModelPair, reporter: Reporter) -> None:
    """Try how each model reads packed rows, and report if this costs speed."""
    roles = {"student": models.student} | ({"teacher": models.teacher.model} if models.teacher else {})
    for role, model in roles.items():
        with models.autocast():
            notice = packing_notice(role, model)
        if notice:
            reporter.notice("info", "packing_fallback", notice)


def report_adapter(models: ModelPair, config: RunConfig, reporter: Reporter) -> None:
    """Report which layers of the student are adapted, as a warning if they hold less than half of its weights."""
    if config.lora is None or not isinstance(models.student, PeftModel):
        return
    found = adapter_coverage(models.student)
    layers = (
        f"LoRA adapts {found.share:.0%} of the weights in the student's blocks, the layers {', '.join(found.layers)}"
    )
    if found.share >= MIN_ADAPTED_SHARE:
        reporter.notice("info", "lora_layers", layers)
        return
    is_auto = config.lora.target_modules == "auto"
    reporter.notice(
        "warn",
        "lora_coverage",
        f"{layers}; without an adapter are {', '.join(found.left_out)}",
        remedy="train all weights (lora: null), or choose a model whose experts are linear layers"
        if is_auto
        else "set lora.target_modules to auto to adapt all linear layers, or keep it if this is what you want",
        count=len(found.left_out),
        example=found.left_out[0],
    )


def _require_contexts(config: RunConfig) -> None:
    """Raise `ContextTooLongError` unless sampling, refining, and scoring y after either prompt fit the model that does
    it."""
    _require_budgets_fit("student", config.student, config, "sampling", "sampling")
    if isinstance(config.teacher, str) and config.loss.teacher_context == "vanilla":
        _require_budgets_fit("teacher", config.teacher, config, "sampling", "refine" if config.refines else "sampling")
    if not config.refines:
        return
    if config.served_teacher is None:
        role = "teacher" if config.teacher else "student (which teaches itself)"
        _require_budgets_fit(role, config.teacher_folder, config, "refine", "refine")
    _require_budgets_fit("student", config.student, config, "sampling", "refine")


def _require_budgets_fit(
    role: str,
    source: str,
    config: RunConfig,
    prompt: Literal["sampling", "refine"],
    completion: Literal["sampling", "refine"],
) -> None:
    """Raise `ContextTooLongError` unless the prompt and completion budgets of these parts of the spec fit the model."""
    budgets: dict[str, SamplingConfig | RefineConfig] = {"sampling": config.sampling, "refine": config.refine}
    require_context(
        role,
        source,
        prompt_tokens=budgets[prompt].max_prompt_tokens,
        new_tokens=budgets[completion].max_new_tokens,
        fields=f"{prompt}.max_prompt_tokens + {completion}.max_new_tokens",
    )


def make_prompt_builders(config: RunConfig, tokenizers: Tokenizers, task: Task) -> tuple[PromptBuilder, TeacherPrompts]:
    """Make the student's and the teacher's: each in its own chat template and with its own folder's templates."""
    teacher = make_prompt_builder(tokenizers.teacher, config.teacher_folder, task.prompts, config)
    return (
        make_prompt_builder(tokenizers.student, config.student, task.prompts, config),
        TeacherPrompts(teacher, config.is_privileged, config.refine.max_prompt_tokens),
    )


def make_samplers(config: RunConfig, models: ModelPair, tokenizers: Tokenizers, reporter: Reporter) -> Samplers:
    """Make the generators that `sampling.engine` or `sampling.pool` asks for, and decide how new weights reach them."""
    student_sampling = sampling_settings(config.sampling, end_of_turn_ids(config.student, tokenizers.student))
    refine_sampling = replace(
        student_sampling,
        max_new_tokens=config.refine.max_new_tokens,
        stop_token_ids=end_of_turn_ids(config.teacher_folder, tokenizers.teacher),
    )
    served = models.served_teacher.client if models.served_teacher is not None else None
    engine: EngineName | None = None
    if config.sampling.pool is None:
        sources = list(dict.fromkeys([config.student, config.teacher_folder]))
        adapter_dtype = None if config.lora is None else models.compute_dtype
        engine = choose_and_report(config.sampling, sources, models.device, reporter, adapter_dtype=adapter_dtype)
    if engine is None:
        student, teacher = _pool_generators(config, tokenizers, reporter)
    elif engine == "transformers" and models.world.size == 1:
        student, teacher = _borrowed_generators(models, tokenizers)
        return Samplers(student, teacher, None, student_sampling, refine_sampling, served)
    elif engine == "transformers":
        student, teacher = _copy_generators(config, models, tokenizers)
    else:
        # AdamW's two moments are made by the first step; gradients and activations exist only while engines sleep.
        moments_bytes = 2 * _trained_bytes(models)
        student, teacher = vllm_generators(
            config, models.device, models.compute_dtype, models.world, pending_bytes=moments_bytes
        )
    switch = ServedWeights(
        student,
        models.student,
        step0_folder=Path(config.student),
        sync_folder=reporter.out_dir / "sampler-weights",
        teacher=models.teacher.model if models.teacher is not None else None,
        dtype=models.compute_dtype if engine == "vllm" else None,
        world=models.world,
    )
    return Samplers(student, teacher, switch, student_sampling, refine_sampling, served)


def _trained_bytes(models: ModelPair) -> int:
    """Return the size of this process's shard of the trained weights."""
    return _shard_bytes(p for p in models.student.parameters() if p.requires_grad)


def _shard_bytes(tensors: Iterable[torch.Tensor]) -> int:
    return sum(local_shard(tensor).numel() * tensor.element_size() for tensor in set(tensors))


def bytes_for_a_pass(models: ModelPair, samplers: Samplers, sampling: SamplingConfig) -> int | None:
    """Return what a GPU has for the activations of one pass, beside weights and their copies for sampling, gradients,
    moments and sleeping engines; None on a CPU. What torch has allocated would include an engine in this process, even
    while it sleeps."""
    if models.device.type != "cuda":
        return None
    total = torch.cuda.get_device_properties(models.device).total_memory
    is_elsewhere = sampling.pool is not None or sampling.placement == "separate"
    engines = set() if is_elsewhere or samplers.weights is None else {samplers.student, samplers.teacher}
    modules = [models.student] if models.teacher is None else [models.student, models.teacher.model]
    modules += [engine.model for engine in engines if isinstance(engine, CopyGenerator)]
    weights = _shard_bytes(tensor for module in modules for tensor in (*module.parameters(), *module.buffers()))
    rest = CONTEXT_BYTES + RESERVE_BYTES + LOSS_CHUNK_BYTES + len(engines) * SLEEPING_BYTES
    if models.world.size > 1:  # embedding and head, complete in a pass: the student's, their gradients, the teacher's
        causal_lm = causal_lm_of(models.student)
        outside = {causal_lm.get_input_embeddings().weight, causal_lm.get_output_embeddings().weight}
        rest += 3 * sum(weight.numel() for weight in outside) * models.compute_dtype.itemsize
    elif models.compute_dtype != torch.float32:  # autocast keeps its cast copies of trained weights through a pass
        rest += _trained_bytes(models) * models.compute_dtype.itemsize // torch.float32.itemsize
    return max(0, total - weights - 3 * _trained_bytes(models) - rest)


def _pool_generators(config: RunConfig, tokenizers: Tokenizers, reporter: Reporter) -> tuple[Generator, Generator]:
    """Return the student's and the teacher's; one for both unless the teacher is another model."""
    pool, teacher_pool = config.sampling.pool, config.refine.pool
    assert pool is not None
    pools = [pool] if teacher_pool is None else [pool, teacher_pool]
    named = " and ".join(f"{one.name} ({1 + len(one.replicas)} servers)" for one in pools)
    reporter.notice("info", "engine_chosen", f"sampling with the servers of pool {named}: requested by the spec")
    student = PoolGenerator(pool, Path(config.student), tokenizers.student, reporter.world)
    if teacher_pool is None:
        return student, student
    return student, PoolGenerator(teacher_pool, Path(config.teacher_folder), tokenizers.teacher, reporter.world)


def _borrowed_generators(models: ModelPair, tokenizers: Tokenizers) -> tuple[Generator, Generator]:
    """Return the student's and the teacher's; one for both if the teacher is served, and never asked."""
    autocast = models.compute_dtype if models.compute_dtype != torch.float32 else None
    student = TransformersGenerator(models.student, tokenizers.student, autocast_dtype=autocast)
    if models.teacher is None:
        return student, student
    return student, TransformersGenerator(
        models.teacher.model, tokenizers.teacher, autocast_dtype=autocast, adapter=models.teacher.adapter
    )


def _copy_generators(config: RunConfig, models: ModelPair, tokenizers: Tokenizers) -> tuple[Generator, Generator]:
    """Return a generator with a whole copy for each role: the models themselves are divided among the processes."""
    autocast = models.compute_dtype if models.compute_dtype != torch.float32 else None
    make = partial(CopyGenerator, device=models.device, autocast_dtype=autocast)
    dtype = torch.float32 if config.lora is None else models.compute_dtype
    student = make(config.student, tokenizers.student, dtype=dtype)
    if not isinstance(config.teacher, str):
        return student, student
    return student, make(config.teacher, tokenizers.teacher, dtype=models.compute_dtype)
