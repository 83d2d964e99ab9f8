"""Stages with random models: packed rows, one large step, and a model that FSDP divides."""

from __future__ import annotations

import time
from typing import Any

import torch
import torch.distributed as dist
from peft import PeftModel
from torch import Tensor, nn
from transformers import PreTrainedModel, Qwen3Config, Qwen3ForCausalLM

from benchmarks.gpu_check.figures import (
    Case,
    Figure,
    expect,
    peak_gb,
    relative_error,
    reset_peak,
    rounded,
    synchronize,
)
from trd_engine.config import LoraConfig
from trd_engine.distillation.batching import split_into_micro_batches
from trd_engine.distillation.losses.divergence import Divergence
from trd_engine.distillation.model_pair import ModelPair
from trd_engine.models.attention.packing import packing_of, read_row
from trd_engine.models.fsdp import full_tensor, run_directly, shard
from trd_engine.models.lora import add_adapter
from trd_engine.runtime.distributed import ALONE
from trd_engine.teachers.local import Teacher
from trd_engine.training.step import optimizer_step
from trd_engine.types import TrainingSequence
from trd_estimate.hardware import FLOPS_SHARE
from trd_estimate.memory import CONTEXT_BYTES, LOSS_CHUNK_BYTES, student_token_bytes, teacher_token_bytes
from trd_estimate.shape import shape_of

MAX_ERRORS = {torch.float32: 1e-4, torch.bfloat16: 0.05}
"""Of hidden states and gradients against eager attention in fp32, relative, in the norm."""
TINY = {
    "vocab_size": 512,
    "hidden_size": 256,
    "intermediate_size": 512,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 64,
}
QWEN3_1_7B = {
    "vocab_size": 151_936,
    "hidden_size": 2048,
    "intermediate_size": 6144,
    "num_hidden_layers": 28,
    "num_attention_heads": 16,
    "num_key_value_heads": 8,
    "head_dim": 128,
    "tie_word_embeddings": True,
}
QWEN3_8B = {
    "vocab_size": 151_936,
    "hidden_size": 4096,
    "intermediate_size": 12_288,
    "num_hidden_layers": 36,
    "num_attention_heads": 32,
    "num_key_value_heads": 8,
    "head_dim": 128,
    "tie_word_embeddings": False,
}


def random_model(case: Case, dtype: torch.dtype, seed: int, **changes: Any) -> PreTrainedModel:
    """Create a model with random weights on the device."""
    torch.manual_seed(seed)
    config = Qwen3Config(**{"max_position_embeddings": 40_960, **TINY, **changes})
    before = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    try:
        with case.device:
            model: PreTrainedModel = Qwen3ForCausalLM(config)
    finally:
        torch.set_default_dtype(before)
    return model


def packed_rows(case: Case) -> list[Figure]:
    """Packed rows with grouped heads, with and without a window, with layers computed again: hidden states and
    gradients are those of eager attention in fp32, and a changed neighbour changes nothing."""
    lengths = (60, 40, 21) if case.small else (8192, 8192, 8192, 8192, 2048)
    window = 16 if case.small else 1024
    dtype = torch.bfloat16 if case.is_gpu else torch.float32
    found = []
    for name, changes in (
        ("causal", {}),
        ("window", {"use_sliding_window": True, "sliding_window": window, "max_window_layers": 0}),
    ):
        exact = random_model(case, torch.float32, 0, attn_implementation="eager", **changes)
        model = random_model(case, dtype, 0, **changes)
        model.load_state_dict(exact.state_dict())
        for one in (exact, model):
            nn.Module.train(one)
            one.gradient_checkpointing_enable({"use_reentrant": False})
        kernel = packing_of(model)
        ids_1T, positions_1T = _row(case, lengths)
        packed_TH = read_row(model, ids_1T, positions_1T, lengths)
        weights_TH = torch.randn(packed_TH.shape, generator=torch.Generator().manual_seed(1)).to(case.device)
        (packed_TH.float() * weights_TH).sum().backward()
        changed_1T = ids_1T.clone()
        changed_1T[:, lengths[0] :] = 3
        with torch.no_grad():
            first_TH = read_row(model, changed_1T, positions_1T, lengths)[: lengths[0]]
        expect(bool(torch.equal(first_TH, packed_TH[: lengths[0]].detach())), "a sequence sees its neighbour")
        alone = []
        for ids, weights in zip(ids_1T.split(list(lengths), dim=1), weights_TH.split(list(lengths)), strict=True):
            hidden_TH = exact.model(input_ids=ids, use_cache=False).last_hidden_state[0]
            (hidden_TH * weights).sum().backward()
            alone.append(hidden_TH.detach())
        gradients = [one.get_input_embeddings().weight.grad for one in (model, exact)]
        errors = (relative_error(packed_TH.detach(), torch.cat(alone)), relative_error(*gradients))
        expect(max(errors) <= MAX_ERRORS[dtype], f"{name}: errors {errors[0]:.1e} and {errors[1]:.1e}")
        found.append(Figure(f"{name}, kernel", _kernel_name(case, model, lengths) or kernel.implementation))
        found.append(Figure(f"{name}, error of hidden states", rounded(errors[0])))
        found.append(Figure(f"{name}, error of gradients", rounded(errors[1])))
    return found


def _row(case: Case, lengths: tuple[int, ...]) -> tuple[Tensor, Tensor]:
    ids_1T = (torch.arange(sum(lengths), device=case.device) * 7 % TINY["vocab_size"]).unsqueeze(0)
    return ids_1T, torch.cat([torch.arange(n, device=case.device) for n in lengths]).unsqueeze(0)


def _kernel_name(case: Case, model: PreTrainedModel, lengths: tuple[int, ...]) -> str:
    """Return the name of the attention's kernel on a GPU."""
    if not case.is_gpu:
        return ""
    with torch.no_grad(), torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CUDA]) as profile:
        read_row(model, *_row(case, lengths), lengths)
    names = [event.key for event in profile.key_averages()]
    return next((name[:60] for name in names if any(part in name.lower() for part in ("flash", "fmha", "attn"))), "")


def large_step(case: Case) -> list[Figure]:
    """One update of a 1.7B student with LoRA and an 8B teacher in bf16, at 18k and 35k tokens."""
    prompt, teacher_prompt, completion = (30, 60, 40) if case.small else (1536, 18_432, 16_384)
    dtype = torch.bfloat16 if case.is_gpu else torch.float32
    sizes = (TINY, TINY) if case.small else (QWEN3_1_7B, QWEN3_8B)
    lora = LoraConfig(rank=64, alpha=128)
    base, teacher = random_model(case, dtype, 0, **sizes[0]), random_model(case, dtype, 1, **sizes[1])
    student = add_adapter(base, lora, seed=0)
    student.gradient_checkpointing_enable({"use_reentrant": False})
    models = ModelPair(student, Teacher(teacher.requires_grad_(False)), Divergence(), dtype, ())
    optimizer = torch.optim.AdamW([p for p in student.parameters() if p.requires_grad], lr=1e-5)
    vocabulary = sizes[0]["vocab_size"]
    ids = [tuple((i * 31 + n) % vocabulary for i in range(n)) for n in (prompt, teacher_prompt, completion)]
    batches = split_into_micro_batches([TrainingSequence(*ids, position=0)], max_tokens=2**20, device=case.device)
    seconds = []
    for step in range(2):
        if step:
            reset_peak(case)
        started_at = time.perf_counter()
        optimizer_step(models, batches, optimizer, max_grad_norm=1.0)
        synchronize(case)
        seconds.append(time.perf_counter() - started_at)
    tokens = (prompt + completion, teacher_prompt + completion)
    shapes = [shape_of(model.config.to_dict()) for model in (base, teacher)]
    assert shapes[0] is not None
    assert shapes[1] is not None
    numbers = [sum(p.numel() for p in model.parameters()) for model in (base, teacher)]
    trained = sum(p.numel() for p in student.parameters() if p.requires_grad)
    activations = max(
        tokens[0] * student_token_bytes(shapes[0], 2, is_checkpointed=True),
        tokens[1] * teacher_token_bytes(shapes[1], 2),
    )
    predicted = (2 * sum(numbers) + 14 * trained + activations + LOSS_CHUNK_BYTES) / 1e9
    # LoRA: no gradient of the base's weights, so forward and the gradient of the inputs
    flops = 4 * numbers[0] * tokens[0] + 2 * numbers[1] * tokens[1]
    found = [Figure("tokens of both models", rounded(sum(tokens) / seconds[1]), "tokens/s")]
    if case.is_gpu:
        share = flops / seconds[1] / case.hardware.flops
        found.append(Figure("peak", peak_gb(case), f"GB, without {CONTEXT_BYTES / 1e9:.1f} of context", predicted))
        found.append(Figure("model FLOP utilisation", rounded(share), "", FLOPS_SHARE))
    return found


def sharding(case: Case) -> list[Figure]:
    """FSDP2 in one process, full fine-tuning and LoRA: loss and gradients are those of the undivided model."""
    backend = "nccl" if case.is_gpu else "gloo"
    dist.init_process_group(backend, init_method=f"file://{case.scratch}/rendezvous", rank=0, world_size=1)
    try:
        found = []
        for name, lora in (("full", None), ("LoRA", LoraConfig(rank=8, alpha=16))):
            loss, gradients = _sharding_step(case, lora, sharded=False)
            sharded_loss, sharded_gradients = _sharding_step(case, lora, sharded=True)
            error = max(abs(sharded_loss - loss) / loss, relative_error(sharded_gradients, gradients))
            expect(error <= MAX_ERRORS[torch.float32], f"{name}: sharded and undivided differ by {error:.1e}")
            found.append(Figure(f"{name}, difference", rounded(error)))
        return found
    finally:
        dist.destroy_process_group()


def _sharding_step(case: Case, lora: LoraConfig | None, *, sharded: bool) -> tuple[float, Tensor]:
    student: PreTrainedModel | PeftModel = random_model(case, torch.float32, 0)
    if lora is not None:
        student = add_adapter(student, lora, seed=0)
        for name, parameter in student.named_parameters():
            if "lora_B" in name:
                nn.init.normal_(parameter, std=0.02)
    teacher = Teacher(random_model(case, torch.float32, 1).requires_grad_(False))
    packing_of(student)  # tried out while the model is whole
    run = shard(student, ALONE, torch.float32).run_unsharded if sharded else run_directly
    models = ModelPair(student, teacher, Divergence(), torch.float32, (), run_student_unsharded=run)
    ids = [tuple(range(3, 3 + n)) for n in (7, 12, 20)]
    batches = split_into_micro_batches([TrainingSequence(*ids, position=0)], max_tokens=2**20, device=case.device)
    optimizer = torch.optim.SGD([p for p in student.parameters() if p.requires_grad], lr=0.0)
    loss = optimizer_step(models, batches, optimizer, max_grad_norm=1e9)["loss"]
    gradients = [full_tensor(p.grad).flatten() for p in student.parameters() if p.grad is not None]
    return loss, torch.cat(gradients).detach().clone()
