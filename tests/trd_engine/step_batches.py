"""Batches and set-ups of single optimizer steps on the committed small models."""

from __future__ import annotations

from pathlib import Path

import torch
from transformers import AutoModelForCausalLM, PreTrainedModel

from trd_engine.distillation.batching import MicroBatch
from trd_engine.distillation.losses.divergence import Divergence
from trd_engine.distillation.model_pair import ModelPair
from trd_engine.distillation.token_weights import TokenWeigher
from trd_engine.teachers.local import Teacher
from trd_engine.training.step import optimizer_step
from trd_engine.types import TrainingSequence

MODELS = Path(__file__).parents[2] / "testbed" / "models"
CPU = torch.device("cpu")


def load(name: str) -> PreTrainedModel:
    model: PreTrainedModel = AutoModelForCausalLM.from_pretrained(MODELS / name)
    return model


def sequences() -> list[TrainingSequence]:
    """Make eight sequences of uneven lengths, the teacher's prompts longer than the student's."""
    generator = torch.Generator().manual_seed(0)

    def ids(count: int) -> tuple[int, ...]:
        return tuple(torch.randint(3, 20, (count,), generator=generator).tolist())

    return [TrainingSequence(ids(5 + i), ids(11 + 2 * i), ids(4 + 3 * (i % 4)), i) for i in range(8)]


def make_setup(
    student: PreTrainedModel, divergence: Divergence | None = None, weigher: TokenWeigher | None = None
) -> ModelPair:
    teacher = Teacher(load("tiny-teacher").requires_grad_(False))
    return ModelPair(student, teacher, divergence or Divergence(), torch.float32, (), weigher=weigher)


def gradient_after(micro_batches: list[MicroBatch], weigher: TokenWeigher | None = None) -> tuple[float, torch.Tensor]:
    student = load("tiny-student")
    optimizer = torch.optim.SGD(student.parameters(), lr=0.0)
    metrics = optimizer_step(make_setup(student, weigher=weigher), micro_batches, optimizer, max_grad_norm=1e9)
    return metrics["loss"], torch.cat([p.grad.flatten() for p in student.parameters() if p.grad is not None])
