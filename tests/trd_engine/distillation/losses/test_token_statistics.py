"""Per-token statistics against plain float64 arithmetic."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from tests.trd_engine.distillation.losses.loss_case import projections
from trd_engine.distillation.losses import row_kernels
from trd_engine.distillation.losses.divergence import Divergence
from trd_engine.distillation.losses.linear_divergence import (
    Projection,
    StatisticsRequest,
    TokenStatistics,
    linear_divergence,
)

N, H, V, V_TEACHER = 23, 5, 1500, 1600
EPISTEMIC = (3, 40, 7)
WATCHED = torch.arange(N) * 7 % V
DIVERGENCES = [
    Divergence("forward_kl"),
    Divergence("reverse_kl", temperature=0.7),
    Divergence("jsd", token_clip=0.1),
    Divergence("forward_kl", "top_k", teacher_top_k=4),
    Divergence("reverse_kl", "sampled", temperature=2.0),
]


def tensors(dtype: torch.dtype = torch.float64) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(5)
    shapes = ((N, H), (V, H), (N, H), (V_TEACHER, H))
    hidden, head, teacher_hidden, teacher_head = (
        torch.randn(*shape, generator=generator, dtype=torch.float64) for shape in shapes
    )
    teacher_hidden[::2], teacher_head[:V] = hidden[::2] * 1.1, head  # every other row agrees on its likeliest token
    return hidden.to(dtype), head.to(dtype), teacher_hidden.to(dtype), teacher_head.to(dtype)


@pytest.fixture(autouse=True)
def _several_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of the kernels, with which test_row_kernels.py runs this file."""
    monkeypatch.setattr(row_kernels, "BLOCK", 512)
    monkeypatch.setattr(row_kernels, "ROWS", 8)


@pytest.fixture
def token_ids() -> Tensor:
    return torch.randint(V, (N,), generator=torch.Generator().manual_seed(6))


def expected(dtype: torch.dtype, token_ids: Tensor, scale: float = 1.0) -> dict[str, Tensor]:
    hidden, head, teacher_hidden, teacher_head = (tensor.double() for tensor in tensors(dtype))
    p = (scale * hidden @ head.t()).softmax(-1)
    q = (teacher_hidden @ teacher_head[:V].t()).softmax(-1)
    rows = torch.arange(N)
    plain = [sorted((row[v] for v in range(V) if v not in EPISTEMIC), reverse=True)[:2] for row in q.tolist()]
    return {
        "student_entropy_N": -(p * p.log()).sum(-1),
        "teacher_entropy_N": -(q * q.log()).sum(-1),
        "top1_agreement_N": (p.argmax(-1) == q.argmax(-1)).double(),
        "teacher_epistemic_mass_N": sum(q[:, token] for token in EPISTEMIC),
        "student_logprob_N": p[rows, token_ids].log(),
        "teacher_logprob_N": q[rows, token_ids].log(),
        "teacher_path_mass_N": torch.tensor([first for first, _ in plain], dtype=torch.float64),
        "teacher_second_path_mass_N": torch.tensor([second for _, second in plain], dtype=torch.float64),
        "teacher_watched_mass_N": q[rows, WATCHED],
    }


def statistics_of(divergence: Divergence, dtype: torch.dtype, token_ids: Tensor) -> TokenStatistics:
    request = StatisticsRequest(EPISTEMIC, modes=True, watched_ids_N=WATCHED)
    return linear_divergence(
        *projections(*tensors(dtype)), divergence, token_ids_N=token_ids, chunk_tokens=6, statistics=request
    )[2]


@pytest.mark.parametrize("divergence", DIVERGENCES, ids=str)
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float64, 1e-11), (torch.float32, 1e-5)])
def test_statistics_are_of_the_untempered_distributions_over_the_shared_vocabulary(
    divergence: Divergence, dtype: torch.dtype, tolerance: float, token_ids: Tensor
) -> None:
    statistics = statistics_of(divergence, dtype, token_ids)
    for name, values in expected(dtype, token_ids).items():
        ours = getattr(statistics, name)
        assert ours.dtype == dtype
        assert not ours.requires_grad
        torch.testing.assert_close(ours.double(), values, rtol=tolerance, atol=tolerance)


def test_both_models_agree_on_some_rows_and_not_on_others(token_ids: Tensor) -> None:
    agreement = statistics_of(Divergence(), torch.float64, token_ids).top1_agreement_N
    assert 0 < agreement.sum() < N


def test_scale_counts_as_part_of_the_model(token_ids: Tensor) -> None:
    hidden, head, *teacher = tensors()
    _, _, statistics = linear_divergence(
        Projection(hidden, head, scale=0.5),
        Projection(*teacher),
        Divergence(),
        token_ids_N=token_ids,
        statistics=StatisticsRequest(EPISTEMIC),
    )
    torch.testing.assert_close(
        statistics.student_entropy_N, expected(torch.float64, token_ids, scale=0.5)["student_entropy_N"]
    )


@pytest.mark.parametrize("divergence", DIVERGENCES, ids=str)
def test_asking_changes_neither_loss_nor_gradient(divergence: Divergence, token_ids: Tensor) -> None:
    results = []
    for request in (None, StatisticsRequest(EPISTEMIC, modes=True, watched_ids_N=WATCHED)):
        hidden, head, *teacher = tensors()
        hidden.requires_grad_()
        loss, per_token, *_ = linear_divergence(
            *projections(hidden, head, *teacher), divergence, token_ids_N=token_ids, statistics=request
        )
        results.append((loss, per_token, torch.autograd.grad(loss, hidden)[0]))
    assert all(torch.equal(without, with_them) for without, with_them in zip(*results, strict=True))


def test_without_sampled_tokens_there_are_no_logprobs() -> None:
    *_, statistics = linear_divergence(*projections(*tensors()), Divergence(), statistics=StatisticsRequest())
    assert statistics.student_logprob_N is None
    assert statistics.teacher_logprob_N is None
    assert statistics.teacher_path_mass_N is None
    assert statistics.teacher_watched_mass_N is None
    assert torch.equal(statistics.teacher_epistemic_mass_N, torch.zeros(N, dtype=torch.float64))


def test_likely_epistemic_tokens_are_no_path_of_their_own() -> None:
    """Where the doubt itself is the likeliest of all, the path's masses are those of the next ones."""
    logits = torch.full((1, 6), -3.0, dtype=torch.float64)
    logits[0, :4] = torch.tensor([0.1, 0.5, 0.25, 0.15], dtype=torch.float64).log()
    head, request = torch.eye(6, dtype=torch.float64), StatisticsRequest((1,), modes=True)
    *_, statistics = linear_divergence(*projections(logits, head, logits, head), Divergence(), statistics=request)
    assert statistics.teacher_path_mass_N is not None
    assert statistics.teacher_second_path_mass_N is not None
    q = logits.softmax(-1)[0]
    torch.testing.assert_close(statistics.teacher_path_mass_N[0], q[2])
    torch.testing.assert_close(statistics.teacher_second_path_mass_N[0], q[3])
    torch.testing.assert_close(statistics.teacher_epistemic_mass_N[0], q[1])


def test_where_no_token_is_epistemic_the_paths_are_the_two_likeliest() -> None:
    *_, statistics = linear_divergence(*projections(*tensors()), Divergence(), statistics=StatisticsRequest(modes=True))
    _, _, hidden, head = tensors()
    first, second = (hidden @ head[:V].t()).softmax(-1).topk(2).values.unbind(-1)
    torch.testing.assert_close(statistics.teacher_path_mass_N, first)
    torch.testing.assert_close(statistics.teacher_second_path_mass_N, second)


def test_watched_tokens_are_one_a_position() -> None:
    with pytest.raises(ValueError, match="watched_ids_N must have shape"):
        linear_divergence(
            *projections(*tensors()), Divergence(), statistics=StatisticsRequest(watched_ids_N=WATCHED[1:])
        )


def test_no_tokens_have_empty_statistics() -> None:
    hidden, head, teacher_hidden, teacher_head = tensors()
    _, _, statistics = linear_divergence(
        *projections(hidden[:0], head, teacher_hidden[:0], teacher_head),
        Divergence(),
        statistics=StatisticsRequest(EPISTEMIC),
    )
    assert statistics.student_entropy_N.shape == (0,)


@pytest.mark.parametrize("token_id", [-1, V])
def test_an_epistemic_token_outside_the_shared_vocabulary_is_refused(token_id: int) -> None:
    with pytest.raises(ValueError, match="must lie within the 1500 shared tokens"):
        linear_divergence(*projections(*tensors()), Divergence(), statistics=StatisticsRequest((token_id,)))
