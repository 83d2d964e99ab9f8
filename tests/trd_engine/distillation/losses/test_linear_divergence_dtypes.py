"""The one-pass loss in bf16, in fp32, under autocast and with mixed dtypes."""

from __future__ import annotations

import pytest
import torch

from tests.trd_engine.distillation.losses.loss_case import SUPPORTS, V, exact_logits, gradients, make_case
from tests.trd_engine.distillation.losses.loss_case import small_sizes as small_sizes
from trd_engine.distillation.losses import chunked_pass as fused_loss_pass
from trd_engine.distillation.losses import projection, row_kernels
from trd_engine.distillation.losses.divergence import Divergence, token_divergence


@pytest.fixture(params=[True, False], ids=["with bf16 products", "without"])
def any_processor(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(projection, "has_bf16_matmul", lambda: request.param)
    monkeypatch.setattr(row_kernels, "BLOCK", 128)
    monkeypatch.setattr(row_kernels, "ROWS", 32)


def test_far_apart_models_stay_finite_in_fp32() -> None:
    """Probabilities that underflow, on both sides, and logits with a large common offset."""
    case = make_case(torch.float32)
    with torch.no_grad():
        case.student_head *= 60
        case.teacher_head *= 60
    for divergence in SUPPORTS:
        bias = torch.full((V,), 500.0)
        loss, per_token = case.loss(divergence, {"bias_V": bias})
        dense = token_divergence(
            case.student_logits().double() + 500, case.teacher_logits().double(), divergence, token_ids_N=case.token_ids
        )
        torch.testing.assert_close(per_token.double(), dense.detach(), rtol=2e-4, atol=2e-4)
        assert all(gradient.isfinite().all() for gradient in gradients(loss, case))


@pytest.mark.usefixtures("any_processor")
@pytest.mark.parametrize("divergence", SUPPORTS, ids=str)
@pytest.mark.parametrize("sparse_share", [1, 1000], ids=["top-k tokens alone", "whole head"])
def test_bf16_is_the_loss_of_bf16_logits(
    divergence: Divergence, sparse_share: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(fused_loss_pass, "SPARSE_SHARE", sparse_share)
    case = make_case(torch.bfloat16, num_tokens=40, student_vocabulary=300, teacher_vocabulary=300)
    loss, per_token = case.loss(divergence, chunk_tokens=17)
    exact = token_divergence(case.student_logits(), case.teacher_logits(), divergence, token_ids_N=case.token_ids)
    ours = gradients(loss, case)
    assert per_token.dtype == torch.float32
    assert [gradient.dtype for gradient in ours] == [torch.bfloat16] * 2
    if not fused_loss_pass.num_sparse_tokens(divergence, 300):  # whose few logits are not rounded to bf16
        torch.testing.assert_close(per_token, exact.detach(), rtol=1e-4, atol=1e-5)
    whole = make_case(torch.bfloat16, num_tokens=40, student_vocabulary=300, teacher_vocabulary=300)
    student, teacher = exact_logits(whole)
    if divergence.support == "top_k":  # on the tokens that bf16 logits choose
        teacher = whole.teacher_logits().double()
    dense = token_divergence(student, teacher, divergence, token_ids_N=whole.token_ids)
    for mine, theirs in zip(ours, gradients((whole.token_weights.double() * dense).sum(), whole), strict=True):
        error = (mine.double() - theirs.double()).norm() / theirs.double().norm()
        assert error < 0.02


def test_bf16_is_the_same_whether_the_processor_multiplies_it_or_not(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(projection, "LOGIT_TILE_ROWS", 128)
    monkeypatch.setattr(projection, "GRADIENT_TILE_ROWS", 128)
    found = []
    for has_bf16_matmul in (True, False):
        monkeypatch.setattr(projection, "has_bf16_matmul", lambda has=has_bf16_matmul: has)
        case = make_case(torch.bfloat16, num_tokens=40, student_vocabulary=300, teacher_vocabulary=310)
        biases = ({"bias_V": case.student_bias}, {"bias_V": case.teacher_bias})
        loss, per_token = case.loss(Divergence(), *biases, chunk_tokens=17)
        trained = (case.student_hidden, case.student_head, case.student_bias)
        found.append([per_token, *torch.autograd.grad(loss, trained)])
    for with_products, without in zip(*found, strict=True):
        assert with_products.dtype == without.dtype
        difference = (with_products.double() - without.double()).norm()
        assert difference < 0.01 * with_products.double().norm()


@pytest.mark.usefixtures("any_processor")
def test_autocast_multiplies_in_bf16_and_sums_in_fp32() -> None:
    case = make_case(torch.float32, num_tokens=40, student_vocabulary=300, teacher_vocabulary=300)
    plain_loss, plain_per_token = case.loss(Divergence())
    plain = gradients(plain_loss, case)
    with torch.autocast("cpu", torch.bfloat16):
        loss, per_token = case.loss(Divergence())
    ours = gradients(loss, case)
    assert not torch.equal(per_token, plain_per_token)
    torch.testing.assert_close(per_token, plain_per_token, rtol=0.05, atol=0.05)
    for mine, theirs in zip(ours, plain, strict=True):
        assert mine.dtype == torch.float32
        assert (mine - theirs).norm() / theirs.norm() < 0.02


def test_mixed_dtypes_meet_in_the_wider_one() -> None:
    case = make_case(torch.float32)
    case.student_hidden = case.student_hidden.detach().bfloat16().requires_grad_()
    loss, per_token = case.loss(Divergence())
    loss.backward()
    assert per_token.dtype == torch.float32
    assert case.student_hidden.grad is not None
    assert case.student_hidden.grad.dtype == torch.bfloat16
    assert case.student_head.grad is not None
    assert case.student_head.grad.dtype == torch.float32
