"""Scores a micro-batch: teacher and student forward passes and the weighted divergence of each token.

Shapes: N trained tokens of a micro-batch, H the student's hidden size, G the teacher's.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass

import torch
from torch import Tensor

from trd_engine.distillation.batching import MicroBatch
from trd_engine.distillation.losses.divergence import Divergence
from trd_engine.distillation.losses.linear_divergence import linear_divergence
from trd_engine.distillation.losses.served import LossPass, served_pass
from trd_engine.distillation.losses.token_statistics import StatisticsRequest, TokenStatistics
from trd_engine.distillation.token_weights import TokenFigures, TokenWeigher
from trd_engine.models.attention.packing import hidden_states
from trd_engine.models.fsdp import RunUnsharded, run_directly
from trd_engine.models.head import head_of
from trd_engine.models.loading import TrainedModel
from trd_engine.runtime.distributed import ALONE, World
from trd_engine.teachers.local import Teacher


@dataclass(frozen=True)
class ScoringSetup:
    """What turns a micro-batch into a loss; the same in every step of a run."""

    student: TrainedModel
    teacher: Teacher | None
    """None: a served one, whose scores come with the batch; without them the loss is the cross-entropy."""
    divergence: Divergence
    compute_dtype: torch.dtype
    epistemic_token_ids: tuple[int, ...]
    weigher: TokenWeigher | None = None
    """None: every token of a batch weighs the same."""
    is_cross_entropy: bool = False
    """The batches have no scores: a metric must not pass for a divergence, nor tell of the teacher."""

    @property
    def yardstick(self) -> Divergence:
        """The same for every variant's run: forward KL at temperature 1, over all that the teacher tells."""
        if self.teacher is not None or self.is_cross_entropy:
            return Divergence()
        return Divergence(support="top_k", teacher_top_k=self.divergence.teacher_top_k)

    @property
    def yardstick_name(self) -> str:
        """What `yardstick` measures."""
        if self.is_cross_entropy:
            return "cross_entropy"
        return "forward_kl" if self.teacher is not None else "top_k_forward_kl"

    world: World = ALONE
    """Who shares a step's batch."""
    run_student_unsharded: RunUnsharded = run_directly
    """Where the student's weights are whole, see `trd_engine.models.fsdp`."""

    @property
    def models(self) -> tuple[TrainedModel, ...]:
        """All that compute here."""
        return (self.student,) if self.teacher is None else (self.student, self.teacher.model)

    def autocast(self) -> AbstractContextManager[object]:
        """Matrix products in the compute dtype, where that is not the weights' own fp32."""
        device_type = next(self.student.parameters()).device.type
        return torch.autocast(device_type, self.compute_dtype, enabled=self.compute_dtype != torch.float32)


Weigh = Callable[[MicroBatch, TokenFigures | None], Tensor]
"""Weights [N] of a micro-batch's tokens, from what the models say of them where the weigher needs it."""


def score(
    setup: ScoringSetup,
    batch: MicroBatch,
    divergence: Divergence,
    token_weight: float,
    *,
    statistics: StatisticsRequest | None = None,
    weigh: Weigh | None = None,
) -> tuple[Tensor, Tensor, TokenStatistics]:
    """Σ w·D over the micro-batch's tokens, each token's D, and their statistics (None: those of every step).

    w is `token_weight`, times what `weigh` gives. Weights must be known before the pass that takes the gradient; those
    that need figures are preceded by a pass over both heads alone, without gradient: the hidden states are used twice.
    """
    request = statistics or StatisticsRequest(setup.epistemic_token_ids)

    def student_pass(teacher_hidden_NG: Tensor | None) -> tuple[Tensor, Tensor, TokenStatistics]:
        student_hidden_NH = hidden_states(setup.student, batch.student)
        pass_over = _loss_pass(setup, batch, divergence, request, teacher_hidden_NG)
        weights_N = torch.full((batch.num_trained_tokens,), token_weight, device=batch.token_ids_N.device)
        if weigh is not None:
            figures = None
            if setup.weigher is not None and setup.weigher.needs_figures:
                with torch.no_grad():
                    figures = _figures(*pass_over(student_hidden_NH.detach(), torch.zeros_like(weights_N))[1:])
            weights_N = weights_N * weigh(batch, figures)
        return pass_over(student_hidden_NH, weights_N)

    with setup.autocast():
        teacher_hidden_NG = None if setup.teacher is None else setup.teacher.hidden(batch.teacher)
        scored: tuple[Tensor, Tensor, TokenStatistics] = setup.run_student_unsharded(
            lambda: student_pass(teacher_hidden_NG)
        )
        return scored


def _loss_pass(
    setup: ScoringSetup,
    batch: MicroBatch,
    divergence: Divergence,
    request: StatisticsRequest,
    teacher_hidden_NG: Tensor | None,
) -> LossPass:
    """The pass over both heads; a served teacher has neither hidden states nor a head."""
    student = head_of(setup.student)
    if setup.teacher is None or teacher_hidden_NG is None:
        return served_pass(student, batch.scores, batch.token_ids_N, divergence, request)
    teacher = setup.teacher.head()

    def pass_over(hidden_NH: Tensor, weights_N: Tensor) -> tuple[Tensor, Tensor, TokenStatistics]:
        return linear_divergence(
            hidden_NH,
            student.weight_VH,
            teacher_hidden_NG,
            teacher.weight_VH,
            divergence,
            token_weights_N=weights_N,
            token_ids_N=batch.token_ids_N,
            student_bias=student.bias_V,
            teacher_bias=teacher.bias_V,
            student_logit_scale=student.scale,
            teacher_logit_scale=teacher.scale,
            student_soft_cap=student.softcap,
            teacher_soft_cap=teacher.softcap,
            statistics=request,
        )

    return pass_over


def _figures(divergence_N: Tensor, statistics: TokenStatistics) -> TokenFigures:
    assert statistics.student_logprob_N is not None
    assert statistics.teacher_logprob_N is not None
    return TokenFigures(
        statistics.student_entropy_N, divergence_N, statistics.student_logprob_N, statistics.teacher_logprob_N
    )


@torch.no_grad()
def mean_yardstick(setup: ScoringSetup, micro_batches: Sequence[MicroBatch], filler: MicroBatch | None = None) -> float:
    """`ScoringSetup.yardstick` over fixed batches, per scored token; `filler` as in
    `optimizer_step`."""
    setup.student.eval()
    num_passes = int(setup.world.max(len(micro_batches)))
    total, num_tokens = 0.0, 0
    for batch in micro_batches:
        _, divergence_N, _ = score(setup, batch, setup.yardstick, 0.0)
        total += float(divergence_N[batch.is_scored].double().sum())
        num_tokens += int(batch.is_scored.sum())
    for _ in range(num_passes - len(micro_batches)):
        assert filler is not None
        score(setup, filler, setup.yardstick, 0.0)
    return setup.world.sum(total) / setup.world.sum(num_tokens)
