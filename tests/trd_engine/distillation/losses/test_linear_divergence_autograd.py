"""The one-pass loss as a function of autograd: what gets a gradient, and which inputs are refused."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from tests.trd_engine.distillation.losses.loss_case import SUPPORTS, H, N, V, gradients, make_case
from tests.trd_engine.distillation.losses.loss_case import small_sizes as small_sizes
from trd_engine.distillation.losses.divergence import Divergence
from trd_engine.distillation.losses.linear_divergence import Projection, StatisticsRequest, linear_divergence
from trd_engine.distillation.losses.served import ServedLogits


@pytest.mark.parametrize("divergence", SUPPORTS, ids=str)
@pytest.mark.parametrize("trained", [("student_hidden",), ("student_head",), ("student_bias",)])
def test_what_is_frozen_gets_no_gradient_and_changes_no_other(divergence: Divergence, trained: tuple[str, ...]) -> None:
    everything, some = make_case(), make_case(trained=trained)
    case_loss, _ = everything.loss(divergence, {"bias_V": everything.student_bias})
    case_loss.backward()
    some_loss, _ = some.loss(divergence, {"bias_V": some.student_bias})
    some_loss.backward()
    for name in ("student_hidden", "student_head", "student_bias"):
        gradient = getattr(some, name).grad
        if name in trained:
            assert torch.equal(gradient, getattr(everything, name).grad)
        else:
            assert gradient is None


@pytest.mark.parametrize("divergence", SUPPORTS, ids=str)
def test_an_evaluation_has_the_same_values_and_no_gradient(divergence: Divergence) -> None:
    case = make_case()
    loss, per_token = case.loss(divergence)
    with torch.no_grad():
        evaluated, evaluated_per_token = case.loss(divergence)
    assert loss.requires_grad
    assert not evaluated.requires_grad
    assert torch.equal(evaluated, loss)
    assert torch.equal(evaluated_per_token, per_token)


@pytest.mark.parametrize("divergence", SUPPORTS, ids=str)
def test_padding_rows_of_the_head_have_a_gradient_of_exactly_zero(divergence: Divergence) -> None:
    case = make_case(student_vocabulary=V + 6, teacher_vocabulary=V)
    loss, _ = case.loss(divergence)
    _, head_gradient = gradients(loss, case)
    assert torch.equal(head_gradient[V:], torch.zeros(6, H, dtype=torch.float64))
    assert head_gradient[:V].abs().sum() > 0


def test_the_teacher_gets_no_gradient() -> None:
    case = make_case(trained=("student_hidden", "teacher_hidden", "teacher_head"))
    case.loss(Divergence())[0].backward()
    assert case.student_hidden.grad is not None
    assert case.teacher_hidden.grad is None
    assert case.teacher_head.grad is None


def test_the_gradient_follows_what_is_done_to_the_loss() -> None:
    case = make_case()
    plain = gradients(case.loss(Divergence())[0], case)
    for ours, theirs in zip(gradients(-3 * case.loss(Divergence())[0] + 1, case), plain, strict=True):
        torch.testing.assert_close(ours, -3 * theirs, rtol=1e-14, atol=1e-15)


def test_micro_batches_sum_to_the_batch() -> None:
    case = make_case()
    whole = gradients(case.loss(Divergence())[0], case)
    for rows in (slice(0, 2), slice(2, N)):
        loss, _ = linear_divergence(
            Projection(case.student_hidden[rows], case.student_head),
            Projection(case.teacher_hidden[rows], case.teacher_head),
            Divergence(),
            token_weights_N=case.token_weights[rows],
        )
        loss.backward()
    torch.testing.assert_close(case.student_hidden.grad, whole[0], rtol=1e-13, atol=1e-14)
    torch.testing.assert_close(case.student_head.grad, whole[1], rtol=1e-13, atol=1e-14)


def test_a_second_backward_needs_the_graph_kept_as_everywhere() -> None:
    case = make_case()
    loss, _ = case.loss(Divergence())
    first = torch.autograd.grad(2 * loss, case.student_head, retain_graph=True)[0]
    second = torch.autograd.grad(loss, case.student_head)[0]
    assert torch.equal(first, 2 * second)
    with pytest.raises(RuntimeError, match="retain_graph"):
        loss.backward()


def test_no_tokens_are_no_loss() -> None:
    case = make_case(num_tokens=0)
    for divergence in SUPPORTS:
        loss, per_token = case.loss(divergence)
        assert loss.item() == 0.0
        assert per_token.shape == (0,)
        assert torch.equal(gradients(loss, case)[1], torch.zeros_like(case.student_head))


@pytest.mark.parametrize("support", ["full", "sampled"])
def test_the_token_of_a_row_of_weight_zero_may_be_anything_and_another_is_refused_by_name(support: Any) -> None:
    case = make_case()
    case.token_weights[2] = 0.0
    divergence, wanted = Divergence(support=support), StatisticsRequest()
    expected, _, _ = case.loss(divergence, statistics=wanted)
    case.token_ids[2] = -100
    marked, _, _ = case.loss(divergence, statistics=wanted)
    assert torch.equal(marked, expected)
    case.token_ids[4] = V  # in the teacher's wider vocabulary alone
    with pytest.raises(ValueError, match=rf"token_ids_N\[4\] is {V}: use ids of the {V} tokens"):
        case.loss(divergence, statistics=wanted)


def test_wrong_shapes_are_refused() -> None:
    case = make_case()
    hidden, head = case.student_hidden, case.student_head
    with pytest.raises(ValueError, match="must share the hidden size"):
        Projection(hidden, head[:, 1:])
    with pytest.raises(ValueError, match="the teacher has 6 tokens, but the student 7"):
        linear_divergence(
            Projection(hidden, head), Projection(case.teacher_hidden[1:], case.teacher_head), Divergence()
        )
    scores = ServedLogits.one_hot(case.token_ids, V + 1)
    with pytest.raises(ValueError, match=f"logits of {V + 1} tokens, but the student of {V}"):
        linear_divergence(Projection(hidden, head), scores, Divergence())
    with pytest.raises(ValueError, match="token_weights_N must have shape"):
        case.loss(Divergence(), token_weights_N=case.token_weights[1:])
    with pytest.raises(ValueError, match="needs token_ids_N"):
        case.loss(Divergence(support="sampled"), token_ids_N=None)
    with pytest.raises(ValueError, match="bias must have shape"):
        case.loss(Divergence(), {"bias_V": case.student_bias[1:]})
    with pytest.raises(ValueError, match="soft-cap is 0"):
        case.loss(Divergence(), {"soft_cap": 0.0})
    with pytest.raises(ValueError, match="chunk_tokens is 0"):
        case.loss(Divergence(), chunk_tokens=0)
