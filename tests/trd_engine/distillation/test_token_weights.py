"""Each weight against its formula in plain float64, and that a step takes them as they are."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from tests.trd_engine.step_batches import CPU, gradient_after, load, make_setup, sequences
from trd_engine.config import TokenWeightsConfig
from trd_engine.distillation.batching import split_into_micro_batches
from trd_engine.distillation.losses.divergence import Divergence, divergence_at
from trd_engine.distillation.token_weights import (
    drift_weights,
    make_weigher,
    place_mask,
    plain_mask,
    problem_weights,
    soft_or,
    top_share_mask,
)
from trd_engine.training.step import optimizer_step
from trd_engine.types import Completion, Problem, TrainingSequence, Trajectory, Verdict

COUNTS = (5, 1, 8, 3)
SPECIAL = (3, 7, 19)
SETTINGS: dict[str, dict[str, Any]] = {
    "special": {"skip_special_tokens": True},
    "first": {"skip_first_tokens": 2},
    "prefix": {"prefix_tokens": 4},
    "entropy": {"entropy_share": 0.5},
    "soft_or": {"entropy_share": 0.3, "entropy_score": "soft_or"},
    "drift": {"drift_gamma": 0.5},
    "all": {
        "skip_special_tokens": True,
        "skip_first_tokens": 1,
        "prefix_tokens": 9,
        "entropy_share": 0.6,
        "entropy_score": "soft_or",
        "drift_gamma": 2.0,
    },
}


def values(seed: int, *, positive: bool = False) -> NDArray[np.float64]:
    found = np.random.default_rng(seed).normal(size=sum(COUNTS))
    return np.abs(found) if positive else found


def by_trajectory(values_N: NDArray[np.float64], counts: tuple[int, ...] = COUNTS) -> list[NDArray[np.float64]]:
    return np.split(values_N, np.cumsum(counts)[:-1])


def soft_or_reference(
    entropy_N: NDArray[np.float64], divergence_N: NDArray[np.float64], counts: tuple[int, ...]
) -> NDArray[np.float64]:
    def unit(x: NDArray[np.float64]) -> NDArray[np.float64]:
        return (x - x.min()) / (x.max() - x.min()) if x.max() > x.min() else np.zeros_like(x)

    parts = []
    for entropy, divergence in zip(by_trajectory(entropy_N, counts), by_trajectory(divergence_N, counts), strict=True):
        h, d = unit(np.minimum(entropy, np.quantile(entropy, 0.98))), unit(divergence)
        parts.append(h + d - h * d)
    return np.concatenate(parts)


def drift_reference(ratio_N: NDArray[np.float64], counts: tuple[int, ...], gamma: float) -> NDArray[np.float64]:
    weights = []
    for ratio in by_trajectory(ratio_N, counts):
        for t in range(len(ratio)):
            behind = sum(abs(ratio[s]) for s in range(t)) / sum(abs(x) for x in ratio)
            weights.append(1 + gamma * (1 - behind))
    return np.array(weights)


def top_share_reference(
    score_N: NDArray[np.float64], candidate_N: NDArray[np.bool_], counts: tuple[int, ...], share: float
) -> NDArray[np.float64]:
    kept = np.zeros(len(score_N))
    start = 0
    for count in counts:
        candidates = [i for i in range(start, start + count) if candidate_N[i]]
        best = sorted(candidates, key=lambda i: (-score_N[i], i))[: math.ceil(share * len(candidates))]
        kept[best] = 1.0
        start += count
    return kept


def test_places() -> None:
    assert place_mask(COUNTS, 0, None).tolist() == [1.0] * 17
    assert place_mask(COUNTS, 2, None).tolist() == [0, 0, 1, 1, 1, 0, 0, 0, 1, 1, 1, 1, 1, 1, 0, 0, 1]
    assert place_mask(COUNTS, 1, 3).tolist() == [0, 1, 1, 0, 0, 0, 0, 1, 1, 0, 0, 0, 0, 0, 0, 1, 1]


def test_special_tokens() -> None:
    assert plain_mask(torch.tensor([3, 4, 19, 7, 5]), SPECIAL).tolist() == [0, 1, 0, 0, 1]
    assert plain_mask(torch.tensor([3, 4]), ()).tolist() == [1, 1]


@pytest.mark.parametrize("share", [0.01, 0.3, 0.5, 0.99])
def test_the_top_share_of_each_trajectory(share: float) -> None:
    score, candidate = np.round(values(0), 1), values(1) > -0.5
    found = top_share_mask(torch.tensor(score), torch.tensor(candidate), COUNTS, share)
    assert found.tolist() == top_share_reference(score, candidate, COUNTS, share).tolist()


def test_ties_go_to_the_earlier() -> None:
    everywhere = torch.ones(6, dtype=torch.bool)
    assert top_share_mask(torch.ones(6), everywhere, (4, 2), 0.5).tolist() == [1, 1, 0, 0, 1, 0]


def test_soft_or() -> None:
    entropy, divergence = values(2, positive=True), values(3, positive=True)
    found = soft_or(torch.tensor(entropy), torch.tensor(divergence), COUNTS)
    np.testing.assert_allclose(found.numpy(), soft_or_reference(entropy, divergence, COUNTS), atol=1e-6)
    assert soft_or(torch.ones(3), torch.ones(3), (3,)).tolist() == [0, 0, 0]


@pytest.mark.parametrize("gamma", [0.5, 3.0])
def test_drift(gamma: float) -> None:
    ratio = values(4)
    found = drift_weights(torch.tensor(ratio), COUNTS, gamma)
    np.testing.assert_allclose(found.numpy(), drift_reference(ratio, COUNTS, gamma), rtol=1e-6)
    assert found.max() == pytest.approx(1 + gamma)
    assert found.min() >= 1.0
    assert drift_weights(torch.zeros(3), (3,), gamma).tolist() == pytest.approx([1 + gamma] * 3)


def test_problems_by_their_pass_rate() -> None:
    def trajectory(problem: str, correct: bool) -> Trajectory:
        answer = Completion((1,), "", "stop")
        return Trajectory(Problem(problem, "", ""), 0, (1,), answer, Verdict(correct))

    outcomes = [("a", True), ("b", False), ("a", False), ("b", False), ("a", False), ("c", True), ("a", False)]
    found = problem_weights([trajectory(*outcome) for outcome in outcomes])
    assert found == pytest.approx([3 / 16, 0, 3 / 16, 0, 3 / 16, 0, 3 / 16])


def dense_reference(settings: TokenWeightsConfig, rows: list[TrainingSequence]) -> float:
    """Compute Σ w D / Σ w from whole logits, one sequence after the other, in float64."""
    student, teacher = load("tiny-student").double(), load("tiny-teacher").double()
    total, total_weight = 0.0, 0.0
    for row in rows:
        count = len(row.completion_ids)
        ids = torch.tensor(row.completion_ids)
        with torch.no_grad():
            log_p = student(torch.tensor([row.student_prompt_ids + row.completion_ids])).logits[0, -count - 1 : -1]
            log_q = teacher(torch.tensor([row.teacher_prompt_ids + row.completion_ids])).logits[0, -count - 1 : -1]
        log_p, log_q = log_p.log_softmax(-1), log_q.log_softmax(-1)
        divergence = (log_q.exp() * (log_q - log_p)).sum(-1).numpy()
        entropy = -(log_p.exp() * log_p).sum(-1).numpy()
        ratio = (log_q - log_p)[torch.arange(count), ids].numpy()
        weight = np.full(count, row.weight)
        weight[: settings.skip_first_tokens] = 0.0
        if settings.prefix_tokens is not None:
            weight[settings.prefix_tokens :] = 0.0
        if settings.skip_special_tokens:
            weight *= np.array([token not in SPECIAL for token in row.completion_ids])
        if settings.entropy_share is not None:
            is_soft = settings.entropy_score == "soft_or"
            score = soft_or_reference(entropy, divergence, (count,)) if is_soft else entropy
            weight *= top_share_reference(score, weight > 0, (count,), settings.entropy_share)
        if settings.drift_gamma:
            weight *= drift_reference(ratio, (count,), settings.drift_gamma)
        total += float(weight @ divergence)
        total_weight += float(weight.sum())
    return total / total_weight


def weighed_rows() -> list[TrainingSequence]:
    return [
        TrainingSequence(s.student_prompt_ids, s.teacher_prompt_ids, s.completion_ids, s.position, weight)
        for s, weight in zip(sequences(), [0.25, 0.0, 0.1875, 0.25, 0.25, 0.0, 0.1, 0.2], strict=True)
    ]


@pytest.mark.parametrize("name", SETTINGS)
@pytest.mark.parametrize("rows", [sequences(), weighed_rows()], ids=["plain", "by_problem"])
def test_a_step_is_the_weighted_mean_of_the_dense_computation(name: str, rows: list[TrainingSequence]) -> None:
    """And however the batch is split."""
    settings = TokenWeightsConfig(**SETTINGS[name])
    expected = dense_reference(settings, rows)
    weigher = make_weigher(settings, SPECIAL)
    gradients = []
    for max_tokens in (1, 100, 10_000):
        batches = split_into_micro_batches(rows, max_tokens=max_tokens, device=CPU)
        loss, gradient = gradient_after(batches, weigher)
        assert loss == pytest.approx(expected, rel=1e-5)
        gradients.append(gradient)
    for gradient in gradients[1:]:
        assert (gradient - gradients[0]).norm() <= 1e-5 * gradients[0].norm()


def test_a_constant_weight_changes_nothing() -> None:
    rows = [
        TrainingSequence(s.student_prompt_ids, s.teacher_prompt_ids, s.completion_ids, s.position, 0.125)
        for s in sequences()
    ]
    plain_loss, plain_gradient = gradient_after(split_into_micro_batches(sequences(), max_tokens=100, device=CPU))
    weigher = make_weigher(TokenWeightsConfig(pass_rate=True), ())
    loss, gradient = gradient_after(split_into_micro_batches(rows, max_tokens=100, device=CPU), weigher)
    assert loss == pytest.approx(plain_loss, rel=1e-6)
    assert (gradient - plain_gradient).norm() <= 1e-6 * plain_gradient.norm()


def test_a_batch_without_weight_takes_no_update() -> None:
    """AdamW would move the weights even by a gradient of zero: by its momentum and its decay."""
    rows = [
        TrainingSequence(s.student_prompt_ids, s.teacher_prompt_ids, s.completion_ids, s.position, 0.0)
        for s in sequences()
    ]
    student = load("tiny-student")
    models = make_setup(student, weigher=make_weigher(TokenWeightsConfig(pass_rate=True), ()))
    optimizer = torch.optim.AdamW(student.parameters(), lr=1e-2, weight_decay=0.1)
    before = [p.detach().clone() for p in student.parameters()]
    batches = split_into_micro_batches(rows, max_tokens=100, device=CPU)
    metrics = optimizer_step(models, batches, optimizer, max_grad_norm=1.0)
    assert (metrics["loss"], metrics["kept_token_share"], metrics["grad_norm"]) == (0.0, 0.0, 0.0)
    assert all(torch.equal(p, b) for p, b in zip(student.parameters(), before, strict=True))


def test_without_settings_there_are_no_weights() -> None:
    assert make_weigher(TokenWeightsConfig(), SPECIAL) is None


@pytest.mark.parametrize(
    ("step", "kind"), [(1, "forward_kl"), (6, "forward_kl"), (7, "reverse_kl"), (10, "reverse_kl")]
)
def test_forward_gives_way_to_reverse(step: int, kind: str) -> None:
    given = Divergence(support="top_k", teacher_top_k=5, token_clip=0.1)
    found = divergence_at(given, 0.6, step, 10)
    assert (found.kind, found.support, found.teacher_top_k, found.token_clip) == (kind, "top_k", 5, 0.1)
    assert divergence_at(given, None, step, 10) is given
