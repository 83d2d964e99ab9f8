"""The one-pass loss: its values against the float64 reference, its gradients against central differences."""

from __future__ import annotations

import os
from dataclasses import dataclass
from typing import Any

import numpy
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from tests.trd_engine.divergence_reference import SETTINGS, divergences, name_of
from trd_engine.distillation.losses import chunked_pass as fused_loss_pass
from trd_engine.distillation.losses import projection, row_kernels
from trd_engine.distillation.losses.divergence import Divergence, token_divergence
from trd_engine.distillation.losses.linear_divergence import StatisticsRequest, linear_divergence

N, H, G, V, V_TEACHER, K = 7, 4, 3, 11, 13, 4
SUPPORTS = [
    Divergence(kind, support, teacher_top_k=K)
    for kind, support in [
        ("forward_kl", "full"),
        ("reverse_kl", "full"),
        ("jsd", "full"),
        ("forward_kl", "top_k"),
        ("reverse_kl", "top_k"),
        ("forward_kl", "sampled"),
        ("reverse_kl", "sampled"),
    ]
]


@pytest.fixture(autouse=True)
def _small_sizes(monkeypatch: pytest.MonkeyPatch) -> None:
    """Vocabularies as small as these have too few tokens for the products that top-k tokens have of their own, and for
    several of the kernels' blocks (test_row_kernels.py runs this file with the kernels)."""
    monkeypatch.setattr(fused_loss_pass, "SPARSE_SHARE", 1)
    monkeypatch.setattr(row_kernels, "BLOCK", 8)
    monkeypatch.setattr(row_kernels, "ROWS", 8)


@dataclass
class Case:
    """Two last layers, the teacher's of another hidden size and with a wider vocabulary."""

    student_hidden: Tensor
    student_head: Tensor
    student_bias: Tensor
    teacher_hidden: Tensor
    teacher_head: Tensor
    teacher_bias: Tensor
    token_weights: Tensor
    token_ids: Tensor

    def loss(self, divergence: Divergence, **options: Any) -> Any:
        """The loss under test, with the case's weights and sampled tokens where the options say no other."""
        given = {"token_weights_N": self.token_weights, "token_ids_N": self.token_ids, **options}
        return linear_divergence(
            self.student_hidden, self.student_head, self.teacher_hidden, self.teacher_head, divergence, **given
        )

    def student_logits(self) -> Tensor:
        """Without bias, scale and cap."""
        return self.student_hidden @ self.student_head.t()

    def teacher_logits(self) -> Tensor:
        """Without bias, scale and cap."""
        return self.teacher_hidden @ self.teacher_head.t()


def make_case(
    dtype: torch.dtype = torch.float64,
    num_tokens: int = N,
    student_vocabulary: int = V,
    teacher_vocabulary: int = V_TEACHER,
    trained: tuple[str, ...] = ("student_hidden", "student_head", "student_bias"),
    seed: int = 0,
) -> Case:
    generator = torch.Generator().manual_seed(seed)

    def randn(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator, dtype=torch.float64).to(dtype)

    case = Case(
        randn(num_tokens, H),
        randn(student_vocabulary, H),
        randn(student_vocabulary),
        randn(num_tokens, G),
        randn(teacher_vocabulary, G),
        randn(teacher_vocabulary),
        torch.rand(num_tokens, generator=generator, dtype=torch.float64).to(dtype),
        torch.randint(min(student_vocabulary, teacher_vocabulary), (num_tokens,), generator=generator),
    )
    for name in trained:
        getattr(case, name).requires_grad_()
    return case


def exact_logits(case: Case) -> tuple[Tensor, Tensor]:
    """Both models' logits in float64, differentiable in the student's inputs."""
    return (
        case.student_hidden.double() @ case.student_head.double().t(),
        case.teacher_hidden.double() @ case.teacher_head.double().t(),
    )


def gradients(loss: Tensor, case: Case) -> tuple[Tensor, Tensor]:
    return torch.autograd.grad(loss, (case.student_hidden, case.student_head))


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
    case, divergence = make_case(), Divergence(teacher_top_k=K, **setting)

    def loss(hidden: Tensor, head: Tensor, bias: Tensor) -> Tensor:
        return linear_divergence(
            hidden,
            head,
            case.teacher_hidden,
            case.teacher_head,
            divergence,
            token_weights_N=case.token_weights,
            token_ids_N=case.token_ids,
            student_bias=bias,
            chunk_tokens=3,
        )[0]

    assert torch.autograd.gradcheck(loss, (case.student_hidden, case.student_head, case.student_bias))


@pytest.mark.parametrize("divergence", SUPPORTS, ids=str)
@pytest.mark.parametrize("temperature", [1.0, 1.7])
def test_bias_scale_and_soft_cap_are_those_of_the_models(divergence: Divergence, temperature: float) -> None:
    case = make_case()
    divergence = Divergence(divergence.kind, divergence.support, K, temperature=temperature)
    loss, per_token = case.loss(
        divergence,
        student_bias=case.student_bias,
        teacher_bias=case.teacher_bias,
        student_logit_scale=1.3,
        teacher_logit_scale=0.8,
        student_soft_cap=2.0,
        teacher_soft_cap=3.0,
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


@settings(max_examples=40, deadline=None)
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
    """With the whole head, where their own products would take longer and more room."""
    case = make_case()
    case.token_weights[2] = 0.0
    divergence = Divergence(kind, "top_k", teacher_top_k=K, **change)
    shape = {"student_bias": case.student_bias, "student_logit_scale": 0.7, "student_soft_cap": 2.0}
    loss, per_token = case.loss(divergence, chunk_tokens=3, **shape)
    few = gradients(loss, case)
    monkeypatch.setattr(fused_loss_pass, "SPARSE_SHARE", V)
    assert fused_loss_pass.num_sparse_tokens(divergence, V) == 0
    same_loss, same_per_token = case.loss(divergence, chunk_tokens=3, **shape)
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
    loss, _ = case.loss(divergence, student_bias=case.student_bias, chunk_tokens=3)
    inputs = (case.student_hidden, case.student_head, case.student_bias)
    hidden_gradient, head_gradient, bias_gradient = torch.autograd.grad(loss, inputs)
    assert torch.equal(hidden_gradient[is_masked], torch.zeros_like(hidden_gradient[is_masked]))

    kept_loss, _ = linear_divergence(
        case.student_hidden[~is_masked],
        case.student_head,
        case.teacher_hidden[~is_masked],
        case.teacher_head,
        divergence,
        token_weights_N=case.token_weights[~is_masked],
        token_ids_N=case.token_ids[~is_masked],
        student_bias=case.student_bias,
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


def test_far_apart_models_stay_finite_in_fp32() -> None:
    """Probabilities that underflow, on both sides, and logits with a large common offset."""
    case = make_case(torch.float32)
    with torch.no_grad():
        case.student_head *= 60
        case.teacher_head *= 60
    for divergence in SUPPORTS:
        bias = torch.full((V,), 500.0)
        loss, per_token = case.loss(divergence, student_bias=bias)
        dense = token_divergence(
            case.student_logits().double() + 500, case.teacher_logits().double(), divergence, token_ids_N=case.token_ids
        )
        torch.testing.assert_close(per_token.double(), dense.detach(), rtol=2e-4, atol=2e-4)
        assert all(gradient.isfinite().all() for gradient in gradients(loss, case))


def test_weights_default_to_the_mean() -> None:
    case = make_case()
    loss, per_token = case.loss(Divergence(), token_weights_N=None)
    torch.testing.assert_close(loss.detach(), per_token.mean())
    even, _ = case.loss(Divergence(), token_weights_N=torch.full((N,), 1 / N, dtype=torch.float64))
    for ours, theirs in zip(gradients(loss, case), gradients(even, case), strict=True):
        assert torch.equal(ours, theirs)


@pytest.mark.parametrize("divergence", SUPPORTS, ids=str)
@pytest.mark.parametrize("trained", [("student_hidden",), ("student_head",), ("student_bias",)])
def test_what_is_frozen_gets_no_gradient_and_changes_no_other(divergence: Divergence, trained: tuple[str, ...]) -> None:
    everything, some = make_case(), make_case(trained=trained)
    case_loss, _ = everything.loss(divergence, student_bias=everything.student_bias)
    case_loss.backward()
    some_loss, _ = some.loss(divergence, student_bias=some.student_bias)
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


@pytest.fixture(params=[True, False], ids=["with bf16 products", "without"])
def any_processor(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(projection, "has_bf16_matmul", lambda: request.param)
    monkeypatch.setattr(row_kernels, "BLOCK", 128)
    monkeypatch.setattr(row_kernels, "ROWS", 32)


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
        biases = {"student_bias": case.student_bias, "teacher_bias": case.teacher_bias}
        loss, per_token = case.loss(Divergence(), chunk_tokens=17, **biases)
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
            case.student_hidden[rows],
            case.student_head,
            case.teacher_hidden[rows],
            case.teacher_head,
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
    hidden, head, teacher = case.student_hidden, case.student_head, (case.teacher_hidden, case.teacher_head)
    with pytest.raises(ValueError, match="must share the hidden size"):
        linear_divergence(hidden, head[:, 1:], *teacher, Divergence())
    with pytest.raises(ValueError, match="teacher_hidden_NG has 6 rows"):
        linear_divergence(hidden, head, teacher[0][1:], teacher[1], Divergence())
    with pytest.raises(ValueError, match="token_weights_N must have shape"):
        case.loss(Divergence(), token_weights_N=case.token_weights[1:])
    with pytest.raises(ValueError, match="needs token_ids_N"):
        case.loss(Divergence(support="sampled"), token_ids_N=None)
    with pytest.raises(ValueError, match="bias must have shape"):
        case.loss(Divergence(), student_bias=case.student_bias[1:])
    with pytest.raises(ValueError, match="soft-cap is 0"):
        case.loss(Divergence(), student_soft_cap=0.0)
    with pytest.raises(ValueError, match="chunk_tokens is 0"):
        case.loss(Divergence(), chunk_tokens=0)


def test_kernels_compute_the_loss_if_they_are_interpreted() -> None:
    assert row_kernels.uses_kernels(torch.device("cpu")) == (os.environ.get("TRITON_INTERPRET") == "1")
