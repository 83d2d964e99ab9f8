"""The one-pass loss: its values against the float64 reference, its gradients against central differences."""

from __future__ import annotations

import os
from typing import Any

import numpy
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from tests.trd_engine.distillation.losses.loss_case import SUPPORTS, K, N, V, exact_logits, gradients, make_case
from tests.trd_engine.distillation.losses.loss_case import small_sizes as small_sizes
from tests.trd_engine.divergence_reference import SETTINGS, divergences, name_of
from trd_engine.distillation.losses import chunked_pass as fused_loss_pass
from trd_engine.distillation.losses import row_kernels
from trd_engine.distillation.losses.divergence import Divergence, token_divergence
from trd_engine.distillation.losses.linear_divergence import Projection, linear_divergence

IS_INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1"
"""Triton's interpreter takes milliseconds for a launch: fewer cases, and gradients along random directions only."""


@pytest.mark.parametrize("setting", SETTINGS, ids=name_of)
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float64, 1e-11), (torch.float32, 1e-5)])
def test_values_and_gradients_are_the_references(setting: dict[str, Any], dtype: torch.dtype, tolerance: float) -> None:
    case, divergence = make_case(dtype), Divergence(teacher_top_k=K, **setting)
    loss, per_token = case.loss(divergence, chunk_tokens=5)
    student, teacher = exact_logits(case)
    expected = divergences(
        student.detach().numpy(), teacher.numpy(), case.token_ids.tolist(), teacher_top_k=K, **setting
    )
    assert per_token.dtype == dtype
    assert not per_token.requires_grad
    numpy.testing.assert_allclose(per_token.double().numpy(), expected, rtol=tolerance, atol=tolerance)
    assert loss.item() == pytest.approx(
        float(case.token_weights.double().numpy() @ expected), rel=tolerance, abs=tolerance
    )
    dense = token_divergence(student, teacher, divergence, token_ids_N=case.token_ids)
    exact = gradients((case.token_weights.double() * dense).sum(), case)
    for ours, theirs in zip(gradients(loss, case), exact, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=tolerance, atol=tolerance * max(1.0, float(theirs.abs().max())))


@pytest.mark.parametrize("setting", SETTINGS, ids=name_of)
def test_gradient_is_the_central_difference(setting: dict[str, Any]) -> None:
    case = make_case(num_tokens=4, student_vocabulary=9, teacher_vocabulary=11, seed=1)
    divergence = Divergence(teacher_top_k=K, **setting)

    def loss(hidden: Tensor, head: Tensor, bias: Tensor) -> Tensor:
        return linear_divergence(
            Projection(hidden, head, bias),
            Projection(case.teacher_hidden, case.teacher_head),
            divergence,
            token_weights_N=case.token_weights,
            token_ids_N=case.token_ids,
            chunk_tokens=3,
        )[0]

    inputs = (case.student_hidden, case.student_head, case.student_bias)
    assert torch.autograd.gradcheck(loss, inputs, fast_mode=IS_INTERPRETED)


@pytest.mark.parametrize("divergence", SUPPORTS, ids=str)
@pytest.mark.parametrize("temperature", [1.0, 1.7])
def test_bias_scale_and_soft_cap_are_those_of_the_models(divergence: Divergence, temperature: float) -> None:
    case = make_case()
    divergence = Divergence(divergence.kind, divergence.support, K, temperature=temperature)
    loss, per_token = case.loss(
        divergence,
        {"bias_V": case.student_bias, "scale": 1.3, "soft_cap": 2.0},
        {"bias_V": case.teacher_bias, "scale": 0.8, "soft_cap": 3.0},
        chunk_tokens=3,
    )
    student = 2.0 * torch.tanh(1.3 * (case.student_logits() + case.student_bias) / 2.0)
    teacher = 3.0 * torch.tanh(0.8 * (case.teacher_logits() + case.teacher_bias) / 3.0)
    expected = token_divergence(student, teacher, divergence, token_ids_N=case.token_ids)
    torch.testing.assert_close(per_token, expected.detach(), rtol=1e-11, atol=1e-11)
    trained = (case.student_hidden, case.student_head, case.student_bias)
    for ours, theirs in zip(
        torch.autograd.grad(loss, trained),
        torch.autograd.grad((case.token_weights * expected).sum(), trained),
        strict=True,
    ):
        torch.testing.assert_close(ours, theirs, rtol=1e-11, atol=1e-11)


@settings(max_examples=8 if IS_INTERPRETED else 40, deadline=None)
@given(
    divergence=st.sampled_from(SUPPORTS),
    num_tokens=st.integers(1, 9),
    chunk_tokens=st.integers(1, 10),
    student_vocabulary=st.integers(2, 20),
    teacher_vocabulary=st.integers(2, 20),
    seed=st.integers(0, 1000),
)
def test_any_shape_agrees_with_the_dense_loss(
    divergence: Divergence,
    num_tokens: int,
    chunk_tokens: int,
    student_vocabulary: int,
    teacher_vocabulary: int,
    seed: int,
) -> None:
    case = make_case(
        num_tokens=num_tokens,
        student_vocabulary=student_vocabulary,
        teacher_vocabulary=teacher_vocabulary,
        seed=seed,
    )
    loss, per_token = case.loss(divergence, chunk_tokens=chunk_tokens)
    dense = token_divergence(case.student_logits(), case.teacher_logits(), divergence, token_ids_N=case.token_ids)
    torch.testing.assert_close(per_token, dense.detach(), rtol=1e-9, atol=1e-11)
    for ours, theirs in zip(gradients(loss, case), gradients((case.token_weights * dense).sum(), case), strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-9, atol=1e-11)


@pytest.mark.parametrize("divergence", SUPPORTS, ids=str)
def test_many_chunks_blocks_and_tiles_agree_with_the_dense_loss(divergence: Divergence) -> None:
    """Large enough that a chunk falls into blocks of rows, and the head into tiles."""
    case = make_case(torch.float32, num_tokens=230, student_vocabulary=2500, teacher_vocabulary=2600)
    with torch.no_grad():
        case.student_head *= 2  # far enough from uniform for the top-k tokens to matter
    dense = token_divergence(case.student_logits(), case.teacher_logits(), divergence, token_ids_N=case.token_ids)
    expected = gradients((case.token_weights * dense).sum(), case)
    for chunk_tokens in (None, 1, 110, 230, 1000):
        loss, per_token = case.loss(divergence, chunk_tokens=chunk_tokens)
        torch.testing.assert_close(per_token, dense.detach(), rtol=1e-5, atol=1e-5)
        for ours, theirs in zip(gradients(loss, case), expected, strict=True):
            torch.testing.assert_close(ours, theirs, rtol=2e-5, atol=2e-5 * float(theirs.abs().max()))


@pytest.mark.parametrize("kind", ["forward_kl", "reverse_kl"])
@pytest.mark.parametrize("change", [{}, {"temperature": 0.6}, {"token_clip": 0.2}], ids=str)
def test_many_top_k_tokens_are_multiplied_out_to_the_same_values(
    kind: Any, change: dict[str, float], monkeypatch: pytest.MonkeyPatch
) -> None:
    """With the whole head, since separate products would take longer and more room."""
    case = make_case()
    case.token_weights[2] = 0.0
    divergence = Divergence(kind, "top_k", teacher_top_k=K, **change)
    student = {"bias_V": case.student_bias, "scale": 0.7, "soft_cap": 2.0}
    loss, per_token = case.loss(divergence, student, chunk_tokens=3)
    few = gradients(loss, case)
    monkeypatch.setattr(fused_loss_pass, "SPARSE_SHARE", V)
    assert fused_loss_pass.num_sparse_tokens(divergence, V) == 0
    same_loss, same_per_token = case.loss(divergence, student, chunk_tokens=3)
    torch.testing.assert_close(same_loss, loss, rtol=1e-13, atol=1e-14)
    torch.testing.assert_close(same_per_token, per_token, rtol=1e-13, atol=1e-14)
    for ours, theirs in zip(gradients(same_loss, case), few, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-13, atol=1e-14)
    assert float(few[0].abs().sum()) > 0


@pytest.mark.parametrize("divergence", SUPPORTS, ids=str)
def test_the_chunk_size_changes_no_value(divergence: Divergence) -> None:
    case = make_case()
    whole_loss, whole_per_token = case.loss(divergence, chunk_tokens=N)
    whole = gradients(whole_loss, case)
    for chunk_tokens in (1, 2, 3, N - 1, 10 * N):
        loss, per_token = case.loss(divergence, chunk_tokens=chunk_tokens)
        torch.testing.assert_close(per_token, whole_per_token, rtol=1e-13, atol=1e-14)
        for ours, theirs in zip(gradients(loss, case), whole, strict=True):
            torch.testing.assert_close(ours, theirs, rtol=1e-13, atol=1e-14)


@pytest.mark.parametrize("divergence", SUPPORTS, ids=str)
@pytest.mark.parametrize("garbage", [0.0, float("nan"), float("inf")])
def test_rows_of_weight_zero_give_exactly_nothing(divergence: Divergence, garbage: float) -> None:
    case = make_case()
    is_masked = torch.tensor([row in (0, 3, N - 1) for row in range(N)])
    with torch.no_grad():
        case.token_weights[is_masked] = 0.0
        case.student_hidden[is_masked] += garbage
        case.teacher_hidden[is_masked] += garbage
    loss, _ = case.loss(divergence, {"bias_V": case.student_bias}, chunk_tokens=3)
    inputs = (case.student_hidden, case.student_head, case.student_bias)
    hidden_gradient, head_gradient, bias_gradient = torch.autograd.grad(loss, inputs)
    assert torch.equal(hidden_gradient[is_masked], torch.zeros_like(hidden_gradient[is_masked]))

    kept_loss, _ = linear_divergence(
        Projection(case.student_hidden[~is_masked], case.student_head, case.student_bias),
        Projection(case.teacher_hidden[~is_masked], case.teacher_head),
        divergence,
        token_weights_N=case.token_weights[~is_masked],
        token_ids_N=case.token_ids[~is_masked],
    )
    kept = torch.autograd.grad(kept_loss, inputs)
    torch.testing.assert_close(loss, kept_loss, rtol=1e-13, atol=1e-13)
    for ours, theirs in zip((hidden_gradient, head_gradient, bias_gradient), kept, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-12, atol=1e-13)


@pytest.mark.parametrize(("beta", "kind"), [(0.0, "forward_kl"), (1.0, "reverse_kl")])
def test_the_ends_of_beta_are_the_two_divergences(beta: float, kind: Any) -> None:
    case = make_case()
    loss, per_token = case.loss(Divergence("jsd", beta=beta))
    expected_loss, expected_per_token = case.loss(Divergence(kind))
    assert torch.equal(per_token, expected_per_token)
    for ours, theirs in zip(gradients(loss, case), gradients(expected_loss, case), strict=True):
        assert torch.equal(ours, theirs)


@pytest.mark.parametrize(("beta", "kind"), [(1e-9, "forward_kl"), (1 - 1e-9, "reverse_kl")])
def test_near_the_ends_jsd_is_the_divergence_times_its_weight(beta: float, kind: Any) -> None:
    case = make_case()
    loss, _ = case.loss(Divergence("jsd", beta=beta))
    expected_loss, _ = case.loss(Divergence(kind))
    for ours, theirs in zip(gradients(loss, case), gradients(expected_loss, case), strict=True):
        torch.testing.assert_close(ours / min(beta, 1 - beta), theirs, rtol=1e-3, atol=1e-4)


def test_weights_default_to_the_mean() -> None:
    case = make_case()
    loss, per_token = case.loss(Divergence(), token_weights_N=None)
    torch.testing.assert_close(loss.detach(), per_token.mean())
    even, _ = case.loss(Divergence(), token_weights_N=torch.full((N,), 1 / N, dtype=torch.float64))
    for ours, theirs in zip(gradients(loss, case), gradients(even, case), strict=True):
        assert torch.equal(ours, theirs)


def test_kernels_compute_the_loss_if_they_are_interpreted() -> None:
    assert row_kernels.uses_kernels(torch.device("cpu")) == IS_INTERPRETED
