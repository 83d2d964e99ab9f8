"""Steps that between them take every way through the loss, the packed attention and the update."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import Any

import torch
from peft import PeftModel

from tests.trd_engine.step_batches import load, sequences
from trd_engine.config import LoraConfig, OptimConfig, TokenWeightsConfig
from trd_engine.distillation.batching import split_into_micro_batches
from trd_engine.distillation.losses.divergence import Divergence
from trd_engine.distillation.model_pair import ModelPair
from trd_engine.distillation.scoring import mean_heldout_divergence
from trd_engine.distillation.token_weights import TokenWeigher
from trd_engine.models.loading import TrainedModel
from trd_engine.models.lora import add_adapter
from trd_engine.teachers.local import Teacher
from trd_engine.training.optim import make_optimizer
from trd_engine.training.step import optimizer_step
from trd_engine.types import TokenScores, TrainingSequence

EPISTEMIC_IDS = (5, 9)


@dataclass(frozen=True)
class Variant:
    """One way through a step."""

    divergence: Divergence = field(default_factory=Divergence)
    dtype: torch.dtype = torch.float32
    lora: bool = False
    """The teacher is then the same weights with the adapter off."""
    served: bool = False
    weights: TokenWeightsConfig | None = None
    is_checkpointed: bool = False
    """Layers are computed again in the backward pass."""


VARIANTS: dict[str, Variant] = {
    "forward_kl": Variant(),
    "jsd, clipped": Variant(Divergence(kind="jsd", beta=0.3, token_clip=0.5)),
    "reverse_kl, top_k": Variant(Divergence(kind="reverse_kl", support="top_k", teacher_top_k=8)),
    "forward_kl, sampled": Variant(Divergence(support="sampled")),
    "weights": Variant(weights=TokenWeightsConfig(entropy_share=0.5, skip_special_tokens=True)),
    "served teacher": Variant(Divergence(support="top_k", teacher_top_k=4), served=True),
    "bf16": Variant(dtype=torch.bfloat16),
    "bf16, lora": Variant(dtype=torch.bfloat16, lora=True, is_checkpointed=True),
}


def take_two_steps(variant: Variant, device: torch.device) -> dict[str, Any]:
    """Return the metrics of two steps, the held-out divergence after them, and the norm of what they changed."""
    torch.manual_seed(0)
    student = _student(variant, device)
    # Copied, and not read: the device of what is trained may be another one than the copy's.
    before = {name: p.detach().cpu().clone() for name, p in student.named_parameters() if p.requires_grad}
    teacher = None if variant.served else _teacher(variant, student, device)
    weigher = None if variant.weights is None else TokenWeigher(variant.weights, special_ids=(0, 1, 2))
    models = ModelPair(student, teacher, variant.divergence, variant.dtype, EPISTEMIC_IDS, weigher)
    batches = split_into_micro_batches(_sequences(variant), max_tokens=100, device=device)
    optimizer = make_optimizer(student, OptimConfig(learning_rate=1e-3))
    metrics = [optimizer_step(models, batches, optimizer, max_grad_norm=1.0) for _ in range(2)]
    after = mean_heldout_divergence(models, batches)
    changed = [(p.detach().cpu() - before[name]).flatten() for name, p in student.named_parameters() if name in before]
    update = torch.cat(changed)
    devices = {p.device.type for p in student.parameters()}
    assert devices == {device.type}, devices
    return {
        "steps": metrics,
        "heldout_divergence": after,
        "num_batches": len(batches),
        "update_norm": float(update.norm()),
    }


def _student(variant: Variant, device: torch.device) -> TrainedModel:
    base = load("tiny-student").to(device)
    student: TrainedModel = base
    if variant.lora:
        student = add_adapter(base.to(variant.dtype), LoraConfig(rank=4, alpha=8), seed=0)
        with torch.no_grad():  # an adapter starts as the identity, and the student as its own teacher
            for name, parameter in student.named_parameters():
                if "lora_B" in name:
                    parameter.fill_(0.02)
    if variant.is_checkpointed:
        student.gradient_checkpointing_enable({"use_reentrant": False})
    return student


def _teacher(variant: Variant, student: TrainedModel, device: torch.device) -> Teacher:
    if variant.lora:
        assert isinstance(student, PeftModel)
        return Teacher(student, shares_student=True)
    return Teacher(load("tiny-teacher").requires_grad_(False).to(device, variant.dtype))


def _sequences(variant: Variant) -> list[TrainingSequence]:
    if not variant.served:
        return sequences()
    generator = torch.Generator().manual_seed(1)
    return [replace(s, scores=_scores(len(s.completion_ids), generator)) for s in sequences()]


def _scores(length: int, generator: torch.Generator) -> TokenScores:
    ids_TK = torch.stack([torch.randperm(20, generator=generator)[:4] for _ in range(length)])
    logprobs_TK = torch.randn(length, 4, generator=generator).log_softmax(-1) - 0.1
    return TokenScores(ids_TK, logprobs_TK.sort(-1, descending=True).values, torch.full((length,), -2.0))
