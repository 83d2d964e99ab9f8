"""The token loss against an independent reference in float64, and what it refuses."""

from __future__ import annotations

import math
from typing import Any

import numpy
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from tests.trd_engine.divergence_reference import SETTINGS, divergences, name_of
from trd_engine.distillation.losses.divergence import Divergence, token_divergence

N, V, K = 7, 12, 4


def logits(seed: int, vocabulary: int = V, dtype: torch.dtype = torch.float64) -> Tensor:
    return torch.randn(N, vocabulary, generator=torch.Generator().manual_seed(seed), dtype=torch.float64).to(dtype)


def teacher_logits(dtype: torch.dtype = torch.float64) -> Tensor:
    """Return logits that are close to the student's in the first row and far from them in the last."""
    return (logits(1) + torch.linspace(0.1, 2, N, dtype=torch.float64).unsqueeze(-1) * logits(2)).to(dtype)


@pytest.fixture
def token_ids() -> Tensor:
    return torch.randint(V, (N,), generator=torch.Generator().manual_seed(3))


@pytest.mark.parametrize("setting", SETTINGS, ids=name_of)
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float64, 1e-12), (torch.float32, 3e-6)])
def test_value_is_the_reference(
    setting: dict[str, Any], dtype: torch.dtype, tolerance: float, token_ids: Tensor
) -> None:
    student, teacher = logits(1, dtype=dtype), teacher_logits(dtype)
    per_token = token_divergence(student, teacher, Divergence(teacher_top_k=K, **setting), token_ids_N=token_ids)
    expected = divergences(
        student.double().numpy(), teacher.double().numpy(), token_ids.tolist(), teacher_top_k=K, **setting
    )
    assert per_token.dtype == dtype
    numpy.testing.assert_allclose(per_token.double().numpy(), expected, rtol=tolerance, atol=tolerance)


@pytest.mark.parametrize("setting", SETTINGS, ids=name_of)
def test_gradient_is_the_central_difference(setting: dict[str, Any], token_ids: Tensor) -> None:
    divergence = Divergence(teacher_top_k=K, **setting)
    student, teacher = logits(1).requires_grad_(), teacher_logits()

    def per_token(student_logits: Tensor) -> Tensor:
        return token_divergence(student_logits, teacher, divergence, token_ids_N=token_ids)

    assert torch.autograd.gradcheck(per_token, (student,))


@pytest.mark.parametrize("setting", [{"kind": "forward_kl"}, {"kind": "reverse_kl"}, {"kind": "jsd"}], ids=name_of)
def test_the_clip_of_the_grid_cuts_some_tokens_and_not_others(setting: dict[str, Any]) -> None:
    per_token = token_divergence(logits(1), teacher_logits(), Divergence(**setting))
    assert 0 < int((per_token > 0.1).sum()) < N


def test_clipped_tokens_have_no_gradient_and_the_others_keep_theirs() -> None:
    student, teacher = logits(1).requires_grad_(), teacher_logits()
    whole = token_divergence(student, teacher, Divergence())
    clipped = token_divergence(student, teacher, Divergence(token_clip=0.1))
    (whole_gradient,) = torch.autograd.grad(whole.sum(), student)
    (clipped_gradient,) = torch.autograd.grad(clipped.sum(), student)
    is_cut = whole > 0.1
    assert torch.equal(clipped_gradient[is_cut], torch.zeros_like(clipped_gradient[is_cut]))
    assert torch.equal(clipped_gradient[~is_cut], whole_gradient[~is_cut])


@pytest.mark.parametrize(("beta", "kind"), [(0.0, "forward_kl"), (1.0, "reverse_kl")])
def test_the_ends_of_beta_are_the_two_divergences(beta: float, kind: Any) -> None:
    at_the_end = token_divergence(logits(1), teacher_logits(), Divergence(kind="jsd", beta=beta))
    assert torch.equal(at_the_end, token_divergence(logits(1), teacher_logits(), Divergence(kind=kind)))


@pytest.mark.parametrize(("beta", "kind"), [(1e-6, "forward_kl"), (1 - 1e-6, "reverse_kl")])
def test_near_the_ends_jsd_is_the_divergence_times_its_weight(beta: float, kind: Any) -> None:
    """JSD(β)/β → KL(q‖p) as β → 0 and JSD(β)/(1−β) → KL(p‖q) as β → 1."""
    near_the_end = token_divergence(logits(1), teacher_logits(), Divergence(kind="jsd", beta=beta)) / min(
        beta, 1 - beta
    )
    torch.testing.assert_close(
        near_the_end, token_divergence(logits(1), teacher_logits(), Divergence(kind=kind)), rtol=1e-4, atol=1e-5
    )


def test_padded_vocabularies_meet_on_the_shared_prefix(token_ids: Tensor) -> None:
    wide = torch.cat(
        [teacher_logits(), 50 + logits(5, vocabulary=5)], dim=1
    )  # the padding would dominate, if it counted
    for support in ("full", "top_k", "sampled"):
        divergence = Divergence(support=support, teacher_top_k=K)
        expected = token_divergence(logits(1), teacher_logits(), divergence, token_ids_N=token_ids)
        assert torch.equal(token_divergence(logits(1), wide, divergence, token_ids_N=token_ids), expected)
        swapped = token_divergence(wide, logits(1), divergence, token_ids_N=token_ids)
        assert torch.equal(swapped, token_divergence(teacher_logits(), logits(1), divergence, token_ids_N=token_ids))


def test_the_teacher_gets_no_gradient() -> None:
    student, teacher = logits(1).requires_grad_(), teacher_logits().requires_grad_()
    token_divergence(student, teacher, Divergence(kind="jsd")).sum().backward()
    assert teacher.grad is None
    assert student.grad is not None


def test_top_k_beyond_the_vocabulary_is_the_full_vocabulary() -> None:
    top_k = token_divergence(logits(1), teacher_logits(), Divergence(support="top_k", teacher_top_k=V + 5))
    torch.testing.assert_close(
        top_k, token_divergence(logits(1), teacher_logits(), Divergence()), rtol=1e-13, atol=1e-13
    )


def test_k3_is_bounded_where_the_student_all_but_excludes_the_token() -> None:
    student = torch.tensor([[0.0, -100.0]], dtype=torch.float64, requires_grad=True)
    teacher = torch.zeros(1, 2, dtype=torch.float64)
    divergence = Divergence(kind="reverse_kl", support="sampled")
    value = token_divergence(student, teacher, divergence, token_ids_N=torch.tensor([1]))
    value.sum().backward()
    assert value.item() == pytest.approx(math.exp(20) - 21, rel=1e-12)
    assert torch.equal(student.grad, torch.zeros(1, 2, dtype=torch.float64))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_low_precision_logits_are_taken_up_to_fp32(dtype: torch.dtype) -> None:
    student, teacher = logits(1, dtype=dtype), teacher_logits(dtype)
    per_token = token_divergence(student, teacher, Divergence())
    assert per_token.dtype == torch.float32
    assert torch.equal(per_token, token_divergence(student.float(), teacher.float(), Divergence()))


@given(
    student=st.lists(st.floats(-30, 30), min_size=4, max_size=4),
    teacher=st.lists(st.floats(-30, 30), min_size=4, max_size=4),
    beta=st.floats(0, 1),
)
def test_divergences_are_finite_not_negative_and_jsd_is_bounded(
    student: list[float], teacher: list[float], beta: float
) -> None:
    rows = torch.tensor([student], dtype=torch.float64), torch.tensor([teacher], dtype=torch.float64)
    for kind in ("forward_kl", "reverse_kl", "jsd"):
        value = token_divergence(*rows, Divergence(kind=kind, beta=beta)).item()
        assert math.isfinite(value)
        assert value > -1e-12
        if kind == "jsd" and 0 < beta < 1:
            assert value <= math.log(2) + 1e-9


def test_equal_logits_have_no_divergence_and_no_gradient() -> None:
    for setting in SETTINGS:
        student = logits(1).requires_grad_()
        per_token = token_divergence(
            student, logits(1), Divergence(teacher_top_k=K, **setting), token_ids_N=torch.zeros(N, dtype=torch.long)
        )
        (gradient,) = torch.autograd.grad(per_token.sum(), student)
        torch.testing.assert_close(per_token, torch.zeros(N, dtype=torch.float64), rtol=0, atol=1e-15)
        if setting["support"] != "sampled" or setting["kind"] != "forward_kl":  # there only the mean gradient is 0
            torch.testing.assert_close(gradient, torch.zeros_like(gradient), rtol=0, atol=1e-15)


@pytest.mark.parametrize(
    ("field", "value", "remedy"),
    [
        ("kind", "kl", "use one of forward_kl, reverse_kl, jsd"),
        ("support", "top-k", "use one of full, top_k, sampled"),
        ("teacher_top_k", 0, "1 or more"),
        ("teacher_top_k", 2.5, "whole number"),
        ("beta", -0.1, "from 0"),
        ("beta", 1.01, "from 0"),
        ("beta", math.nan, "from 0"),
        ("temperature", 0.0, "above 0"),
        ("temperature", math.inf, "above 0"),
        ("token_clip", -0.1, "use 0 for no clip"),
        ("token_clip", math.nan, "use 0 for no clip"),
    ],
)
def test_a_wrong_field_is_named_with_its_value_and_the_remedy(field: str, value: Any, remedy: str) -> None:
    with pytest.raises(ValueError, match=remedy) as caught:
        Divergence(**{field: value})
    assert f"Divergence.{field} is {value!r}" in str(caught.value)


@pytest.mark.parametrize("support", ["top_k", "sampled"])
def test_jsd_is_refused_on_a_part_of_the_vocabulary(support: Any) -> None:
    with pytest.raises(ValueError, match="jsd is defined on the full vocabulary only"):
        Divergence(kind="jsd", support=support)


def test_wrong_shapes_are_refused(token_ids: Tensor) -> None:
    with pytest.raises(ValueError, match="needs token_ids_N"):
        token_divergence(logits(1), teacher_logits(), Divergence(support="sampled"))
    with pytest.raises(ValueError, match=r"token_ids_N must have shape \(7,\), not \(6,\)"):
        token_divergence(logits(1), teacher_logits(), Divergence(support="sampled"), token_ids_N=token_ids[1:])
    with pytest.raises(ValueError, match="of the same tokens"):
        token_divergence(logits(1), teacher_logits()[1:], Divergence())
    with pytest.raises(ValueError, match="of the same tokens"):
        token_divergence(logits(1)[0], logits(2)[0], Divergence())
