"""Invariants of one optimizer step: how a batch is split does not change it."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM, PreTrainedModel

from trd_engine.batching import MicroBatch, split_into_micro_batches
from trd_engine.errors import NonFiniteError
from trd_engine.losses import Divergence
from trd_engine.step import ScoringSetup, optimizer_step
from trd_engine.teacher import Teacher
from trd_engine.types import TrainingSequence

MODELS = Path(__file__).parents[2] / "testbed" / "models"
CPU = torch.device("cpu")


def load(name: str) -> PreTrainedModel:
    model: PreTrainedModel = AutoModelForCausalLM.from_pretrained(MODELS / name)
    return model


def sequences() -> list[TrainingSequence]:
    """Eight, of uneven lengths, the teacher's prompts longer than the student's."""
    generator = torch.Generator().manual_seed(0)

    def ids(count: int) -> tuple[int, ...]:
        return tuple(torch.randint(3, 20, (count,), generator=generator).tolist())

    return [TrainingSequence(ids(5 + i), ids(11 + 2 * i), ids(4 + 3 * (i % 4)), i) for i in range(8)]


def make_setup(student: PreTrainedModel, divergence: Divergence | None = None) -> ScoringSetup:
    teacher = Teacher(load("tiny-teacher").requires_grad_(False))
    return ScoringSetup(student, teacher, divergence or Divergence(), torch.float32, ())


def gradient_after(micro_batches: list[MicroBatch]) -> tuple[float, torch.Tensor]:
    student = load("tiny-student")
    optimizer = torch.optim.SGD(student.parameters(), lr=0.0)
    metrics = optimizer_step(make_setup(student), micro_batches, optimizer, max_grad_norm=1e9)
    return metrics["loss"], torch.cat([p.grad.flatten() for p in student.parameters() if p.grad is not None])


@pytest.mark.parametrize("max_tokens", [1, 60, 100, 10_000])
def test_accumulation_does_not_change_loss_or_gradient(max_tokens: int) -> None:
    """1 × 8 = 8 × 1: each token weighs 1/N of the whole batch, however it is split and padded."""
    whole = split_into_micro_batches(sequences(), max_tokens=1_000_000, device=CPU)
    split = split_into_micro_batches(sequences(), max_tokens=max_tokens, device=CPU)
    assert len(whole) == 1
    loss, gradient = gradient_after(whole)
    split_loss, split_gradient = gradient_after(split)
    assert split_loss == pytest.approx(loss, rel=1e-5)
    assert (split_gradient - gradient).norm() <= 1e-5 * gradient.norm()


def test_the_step_is_the_dense_computation() -> None:
    """Against logits of whole sequences one by one, in float64, with the loss written out."""
    student, teacher = load("tiny-student").double(), load("tiny-teacher").double()
    total, count = 0.0, 0
    with torch.no_grad():
        for s in sequences():
            length = len(s.completion_ids)
            log_p = student(torch.tensor([s.student_prompt_ids + s.completion_ids])).logits[0, -length - 1 : -1]
            log_q = teacher(torch.tensor([s.teacher_prompt_ids + s.completion_ids])).logits[0, -length - 1 : -1]
            log_p, log_q = log_p.log_softmax(-1), log_q.log_softmax(-1)
            total += float((log_q.exp() * (log_q - log_p)).sum())
            count += length
    loss, _ = gradient_after(split_into_micro_batches(sequences(), max_tokens=100, device=CPU))
    assert loss == pytest.approx(total / count, rel=1e-5)


def test_a_gradient_that_is_not_finite_changes_nothing_and_names_the_batch() -> None:
    student = load("tiny-student")
    with torch.no_grad():
        student.get_output_embeddings().weight[5, 0] = float("nan")
    before = {name: p.detach().clone() for name, p in student.named_parameters()}
    optimizer = torch.optim.AdamW(student.parameters(), lr=1e-3)
    batches = split_into_micro_batches(sequences()[2:4], max_tokens=1000, device=CPU)
    with pytest.raises(NonFiniteError, match=r"positions|\[2, 3\]"):
        optimizer_step(make_setup(student), batches, optimizer, max_grad_norm=1.0)
    for name, parameter in student.named_parameters():
        assert torch.equal(parameter.nan_to_num(0.0), before[name].nan_to_num(0.0))
