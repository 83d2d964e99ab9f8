"""Scores a micro-batch: teacher and student forward passes, and the weighted divergence of each token.

Shapes: N trained tokens of a micro-batch, H the student's hidden size, G the teacher's.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor

from trd_engine.distillation.batching import MicroBatch
from trd_engine.distillation.losses.divergence import Divergence
from trd_engine.distillation.losses.linear_divergence import linear_divergence
from trd_engine.distillation.losses.projection import Projection
from trd_engine.distillation.losses.served import LossPass, served_pass
from trd_engine.distillation.losses.token_statistics import StatisticsRequest, TokenStatistics
from trd_engine.distillation.model_pair import ModelPair
from trd_engine.distillation.token_weights import TokenWeigher
from trd_engine.models.attention.packing import hidden_states
from trd_engine.models.head import head_of


@dataclass(frozen=True)
class Scored:
    """A micro-batch's part of a loss, and its per-token figures."""

    loss: Tensor
    """Σ token_weight · w · D, with gradient."""
    divergence_N: Tensor
    """D of each token, nats."""
    weights_N: Tensor
    """w of each token, as the weigher gives it; 1 without a weigher."""
    statistics: TokenStatistics


def score(
    models: ModelPair,
    batch: MicroBatch,
    divergence: Divergence,
    token_weight: float,
    *,
    weigher: TokenWeigher | None = None,
    statistics: StatisticsRequest | None = None,
) -> Scored:
    """Run both models over the micro-batch, and take the loss. `statistics` None: those of every step.

    `token_weight` multiplies every token's weight. Of several processes all call it together.
    """
    request = statistics or StatisticsRequest(models.epistemic_token_ids)
    with models.autocast():
        teacher_hidden_NG = None if models.teacher is None else models.teacher.hidden(batch.teacher)
        score_student = partial(
            _score_student, models, batch, divergence, token_weight, weigher, request, teacher_hidden_NG
        )
        scored: Scored = models.run_student_unsharded(score_student)
    if models.teacher is not None:  # the backward pass and engines need the memory, and the next pass gathers it again
        models.teacher.free_full_weights()
    return scored


def _score_student(
    models: ModelPair,
    batch: MicroBatch,
    divergence: Divergence,
    token_weight: float,
    weigher: TokenWeigher | None,
    request: StatisticsRequest,
    teacher_hidden_NG: Tensor | None,
) -> Scored:
    hidden_NH = hidden_states(models.student, batch.student)
    loss_pass = _loss_pass(models, batch, divergence, request, teacher_hidden_NG)
    weights_N = torch.ones(batch.num_trained_tokens, device=batch.token_ids_N.device)
    if weigher is not None:
        figures = None
        if weigher.needs_figures:
            # The weights must be known before the pass that takes the gradient. This one reads both heads again, and
            # the hidden states are computed once.
            with torch.no_grad():
                figures = loss_pass(hidden_NH.detach(), torch.zeros_like(weights_N))[1:]
        weights_N = weigher(batch, figures)
    loss, divergence_N, found = loss_pass(hidden_NH, weights_N * token_weight)
    return Scored(loss, divergence_N, weights_N, found)


def _loss_pass(
    models: ModelPair,
    batch: MicroBatch,
    divergence: Divergence,
    request: StatisticsRequest,
    teacher_hidden_NG: Tensor | None,
) -> LossPass:
    """Return the pass over both heads; a served teacher has neither hidden states nor a head."""
    student_head = head_of(models.student)
    if models.teacher is None or teacher_hidden_NG is None:
        return served_pass(student_head, batch.scores, batch.token_ids_N, divergence, request)
    teacher = Projection.of(models.teacher.head(), teacher_hidden_NG)

    def pass_over(hidden_NH: Tensor, weights_N: Tensor) -> tuple[Tensor, Tensor, TokenStatistics]:
        return linear_divergence(
            Projection.of(student_head, hidden_NH),
            teacher,
            divergence,
            token_weights_N=weights_N,
            token_ids_N=batch.token_ids_N,
            statistics=request,
        )

    return pass_over


@torch.no_grad()
def mean_heldout_divergence(
    models: ModelPair, micro_batches: Sequence[MicroBatch], filler: MicroBatch | None = None
) -> float:
    """Return `ModelPair.heldout_divergence` over fixed batches, in nats per scored token; `filler` as in
    `optimizer_step`."""
    models.student.eval()
    num_passes = int(models.world.max(len(micro_batches)))
    total, num_tokens = 0.0, 0
    for batch in micro_batches:
        divergence_N = score(models, batch, models.heldout_divergence, 0.0).divergence_N
        total += float(divergence_N[batch.is_scored].double().sum())
        num_tokens += int(batch.is_scored.sum())
    for _ in range(num_passes - len(micro_batches)):
        assert filler is not None
        score(models, filler, models.heldout_divergence, 0.0)
    return models.world.sum(total) / models.world.sum(num_tokens)
