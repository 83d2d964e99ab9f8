"""Invariants of one optimizer step: how a batch is split does not change it."""

from __future__ import annotations

import pytest
import torch

from tests.trd_engine.step_batches import CPU, gradient_after, load, make_setup, sequences
from trd_engine.distillation.batching import PassTokens, split_into_micro_batches
from trd_engine.runtime.errors import NonFiniteError
from trd_engine.training.step import optimizer_step
from trd_engine.training.step_metrics import quantiles


@pytest.mark.parametrize("max_tokens", [1, 60, 100, 10_000, PassTokens(60, 10_000), PassTokens(10_000, 60)])
def test_accumulation_does_not_change_loss_or_gradient(max_tokens: PassTokens | int) -> None:
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


def test_quantiles_are_torchs_own_and_of_more_values_than_torch_takes() -> None:
    few = torch.randn(1001, generator=torch.Generator().manual_seed(0))
    shares = [0.5, 0.95, 0.99]
    assert quantiles(few, shares) == pytest.approx(torch.quantile(few, torch.tensor(shares)).tolist(), rel=1e-6)
    assert quantiles(torch.ones(2**24 + 1), [0.5]) == [1.0]


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
