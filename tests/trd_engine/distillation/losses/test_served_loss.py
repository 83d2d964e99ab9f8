"""The loss of a served teacher's scores, against plain definitions in float64."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch

from trd_engine.distillation.losses.divergence import Divergence
from trd_engine.distillation.losses.linear_divergence import Projection, linear_divergence
from trd_engine.distillation.losses.served import ServedLogits, served_pass
from trd_engine.distillation.losses.token_statistics import StatisticsRequest
from trd_engine.models.head import OutputHead
from trd_engine.rollouts.files import with_stored_scores, write_scores
from trd_engine.types import Completion, Problem, TokenScores, Trajectory, Verdict

N, H, V, K = 23, 8, 57, 6


@pytest.fixture
def tensors() -> dict[str, torch.Tensor]:
    torch.manual_seed(3)
    return {
        "hidden": torch.randn(N, H, requires_grad=True),
        "head": torch.randn(V, H, requires_grad=True),
        "teacher": torch.randn(N, V).mul(2).log_softmax(-1),
        "targets": torch.randint(V, (N,)),
        "weights": torch.rand(N),
    }


def served(tensors: dict[str, torch.Tensor]) -> TokenScores:
    best = tensors["teacher"].topk(K, -1)
    return TokenScores(best.indices, best.values, tensors["teacher"].gather(-1, tensors["targets"][:, None])[:, 0])


@pytest.mark.parametrize("kind", ["forward_kl", "reverse_kl"])
@pytest.mark.parametrize("temperature", [1.0, 1.7])
@pytest.mark.parametrize("clip", [0.0, 0.4])
def test_a_loss_on_the_served_tokens(
    tensors: dict[str, torch.Tensor], kind: str, temperature: float, clip: float
) -> None:
    divergence = Divergence(kind, "top_k", K, temperature=temperature, token_clip=clip)  # type: ignore[arg-type]
    teacher = ServedLogits.from_scores(served(tensors), tensors["targets"], V)
    loss, per_token_N, statistics = linear_divergence(
        Projection(tensors["hidden"], tensors["head"]),
        teacher,
        divergence,
        statistics=StatisticsRequest(),
        token_ids_N=tensors["targets"],
        token_weights_N=tensors["weights"],
    )
    loss.backward()
    hidden, head = (tensors[name].detach().double().requires_grad_() for name in ("hidden", "head"))
    best = tensors["teacher"].double().topk(K, -1)
    log_q_NK = (best.values / temperature).log_softmax(-1)
    log_p_NK = ((hidden @ head.T).gather(-1, best.indices) / temperature).log_softmax(-1)
    pairs = (log_q_NK, log_p_NK) if kind == "forward_kl" else (log_p_NK, log_q_NK)
    expected_N = (pairs[0].exp() * (pairs[0] - pairs[1])).sum(-1)
    expected_N = expected_N.clamp(max=clip) if clip else expected_N
    (tensors["weights"].double() * expected_N).sum().backward()
    torch.testing.assert_close(per_token_N.double(), expected_N, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(tensors["hidden"].grad.double(), hidden.grad, rtol=1e-4, atol=1e-5)  # type: ignore[union-attr]
    torch.testing.assert_close(tensors["head"].grad.double(), head.grad, rtol=1e-4, atol=1e-5)  # type: ignore[union-attr]
    scored_N = tensors["teacher"].gather(-1, tensors["targets"][:, None])[:, 0]
    assert statistics.teacher_logprob_N is not None  # the server tells it, be it among the best or not
    torch.testing.assert_close(statistics.teacher_logprob_N, scored_N, rtol=1e-4, atol=1e-4)


def test_without_scores_it_is_the_cross_entropy(tensors: dict[str, torch.Tensor]) -> None:
    loss, per_token_N, statistics = linear_divergence(
        Projection(tensors["hidden"], tensors["head"]),
        ServedLogits.one_hot(tensors["targets"], V),
        Divergence(),
        statistics=StatisticsRequest(),
        token_ids_N=tensors["targets"],
        token_weights_N=tensors["weights"],
    )
    loss.backward()
    hidden, head = (tensors[name].detach().double().requires_grad_() for name in ("hidden", "head"))
    expected_N = torch.nn.functional.cross_entropy(hidden @ head.T, tensors["targets"], reduction="none")
    (tensors["weights"].double() * expected_N).sum().backward()
    torch.testing.assert_close(per_token_N.double(), expected_N, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(tensors["hidden"].grad.double(), hidden.grad, rtol=1e-4, atol=1e-5)  # type: ignore[union-attr]
    torch.testing.assert_close(tensors["head"].grad.double(), head.grad, rtol=1e-4, atol=1e-5)  # type: ignore[union-attr]
    assert statistics.student_logprob_N is not None
    torch.testing.assert_close(statistics.student_logprob_N.double(), -expected_N, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("share_told", [0.0, 0.6])
def test_unscored_tokens_are_taught_by_the_cross_entropy(tensors: dict[str, torch.Tensor], share_told: float) -> None:
    scored_N = torch.rand(N, generator=torch.Generator().manual_seed(5)) < share_told
    whole, nothing = served(tensors), TokenScores.unscored(tensors["targets"].tolist(), K)
    scores = TokenScores(
        torch.where(scored_N[:, None], whole.token_ids_TK, nothing.token_ids_TK),
        torch.where(scored_N[:, None], whole.logprobs_TK, nothing.logprobs_TK),
        torch.where(scored_N, whole.target_logprobs_T, nothing.target_logprobs_T),
    )
    divergence = Divergence("reverse_kl", "top_k", K, temperature=1.7)
    pass_over = served_pass(OutputHead(tensors["head"]), scores, tensors["targets"], divergence, StatisticsRequest())
    loss, per_token_N, statistics = pass_over(tensors["hidden"], tensors["weights"])
    loss.backward()
    hidden, head = (tensors[name].detach().double().requires_grad_() for name in ("hidden", "head"))
    logits_NV = hidden @ head.T
    best = tensors["teacher"].double().topk(K, -1)
    log_q_NK, log_p_NK = ((x / 1.7).log_softmax(-1) for x in (best.values, logits_NV.gather(-1, best.indices)))
    entropy_N = torch.nn.functional.cross_entropy(logits_NV, tensors["targets"], reduction="none")
    expected_N = torch.where(scored_N, (log_p_NK.exp() * (log_p_NK - log_q_NK)).sum(-1), entropy_N)
    (tensors["weights"].double() * expected_N).sum().backward()
    torch.testing.assert_close(per_token_N.double(), expected_N, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(tensors["hidden"].grad.double(), hidden.grad, rtol=1e-4, atol=1e-5)  # type: ignore[union-attr]
    torch.testing.assert_close(tensors["head"].grad.double(), head.grad, rtol=1e-4, atol=1e-5)  # type: ignore[union-attr]
    assert statistics.student_logprob_N is not None
    torch.testing.assert_close(statistics.student_logprob_N.double(), -entropy_N, rtol=1e-4, atol=1e-4)


def test_a_served_distribution_sums_to_one(tensors: dict[str, torch.Tensor]) -> None:
    teacher = ServedLogits.from_scores(served(tensors), tensors["targets"], V)
    room_NV = teacher.allocate(N)
    teacher.write_logits(slice(0, N), room_NV)
    torch.testing.assert_close(room_NV.exp().sum(-1), torch.ones(N), rtol=1e-4, atol=0)
    best = tensors["teacher"].topk(K, -1).indices
    assert torch.equal(room_NV.topk(K, -1).indices.sort(-1).values, best.sort(-1).values)


def test_scores_come_back_from_the_disk_as_they_were(tmp_path: Path, tensors: dict[str, torch.Tensor]) -> None:
    bare = Trajectory(Problem("p", "p", "1"), 0, (1,), Completion((2,), "a", "stop"), Verdict(True))
    whole = served(tensors)
    parts = [TokenScores(*(x[rows] for x in vars(whole).values())) for rows in (slice(0, 4), slice(4, 4), slice(4, N))]
    trajectories = [replace(bare, scores=part) for part in parts]
    write_scores(tmp_path / "scores.safetensors", trajectories)
    for before, after in zip(
        trajectories, with_stored_scores(tmp_path / "scores.safetensors", [bare] * 3), strict=True
    ):
        assert before.scores is not None
        assert after.scores is not None
        assert torch.equal(before.scores.token_ids_TK, after.scores.token_ids_TK)
        assert torch.equal(before.scores.logprobs_TK, after.scores.logprobs_TK)
        assert torch.equal(before.scores.target_logprobs_T, after.scores.target_logprobs_T)
    write_scores(tmp_path / "none.safetensors", [bare])
    assert with_stored_scores(tmp_path / "none.safetensors", [bare]) == [bare]
