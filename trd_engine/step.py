"""One optimizer step: both models' forward passes, the loss, the gradient, the update."""

from __future__ import annotations

import time
from collections.abc import Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass

import torch
from torch import Tensor

from trd_engine.batching import MicroBatch
from trd_engine.errors import NonFiniteError
from trd_engine.fused_loss import linear_divergence
from trd_engine.fused_loss_statistics import StatisticsRequest, TokenStatistics
from trd_engine.losses import Divergence
from trd_engine.models import TrainedModel, head_of
from trd_engine.teacher import Teacher, hidden_states


@dataclass(frozen=True)
class ScoringSetup:
    """What turns a micro-batch into a loss; the same in every step of a run."""

    student: TrainedModel
    teacher: Teacher
    divergence: Divergence
    compute_dtype: torch.dtype
    epistemic_token_ids: tuple[int, ...]

    def autocast(self) -> AbstractContextManager[object]:
        """Matrix products in the compute dtype, where that is not the weights' own fp32."""
        device_type = next(self.student.parameters()).device.type
        return torch.autocast(device_type, self.compute_dtype, enabled=self.compute_dtype != torch.float32)


@dataclass(frozen=True)
class ScoredBatch:
    """Per-token figures of a step, N trained tokens in a row; detached."""

    divergence_N: Tensor
    sequence_N: Tensor
    """Numbered through the whole step."""
    student_logprob_N: Tensor
    teacher_logprob_N: Tensor
    student_entropy_N: Tensor
    top1_agreement_N: Tensor
    epistemic_mass_N: Tensor


def score(
    setup: ScoringSetup,
    batch: MicroBatch,
    divergence: Divergence,
    token_weight: float,
    *,
    statistics: StatisticsRequest | None = None,
) -> tuple[Tensor, Tensor, TokenStatistics]:
    """Σ w·D over the micro-batch's tokens, each token's D, and their statistics (None: those of every step)."""
    with setup.autocast():
        student_hidden_NH = hidden_states(setup.student, batch.student)
        teacher_hidden_NG = setup.teacher.hidden(batch.teacher)
        student, teacher = head_of(setup.student), setup.teacher.head()
        return linear_divergence(
            student_hidden_NH,
            student.weight_VH,
            teacher_hidden_NG,
            teacher.weight_VH,
            divergence,
            token_weights_N=torch.full((batch.num_trained_tokens,), token_weight, device=batch.token_ids_N.device),
            token_ids_N=batch.token_ids_N,
            student_bias=student.bias_V,
            teacher_bias=teacher.bias_V,
            student_logit_scale=student.scale,
            teacher_logit_scale=teacher.scale,
            student_soft_cap=student.softcap,
            teacher_soft_cap=teacher.softcap,
            statistics=statistics or StatisticsRequest(setup.epistemic_token_ids),
        )


def optimizer_step(
    setup: ScoringSetup,
    micro_batches: Sequence[MicroBatch],
    optimizer: torch.optim.Optimizer,
    *,
    max_grad_norm: float,
) -> dict[str, float]:
    """Train on one global batch; the step's metrics.

    Every token weighs 1/N with N the trained tokens of the *whole* batch. A mean of micro-batch means
    would weigh a token by how its batch happened to be split.

    Raises `NonFiniteError`, before the update and with the weights as they were, where loss or gradient
    is not finite.
    """
    started_at = time.monotonic()
    num_trained_tokens = sum(batch.num_trained_tokens for batch in micro_batches)
    setup.student.train()
    optimizer.zero_grad(set_to_none=True)
    loss_sum = torch.zeros((), dtype=torch.float64)
    scored: list[ScoredBatch] = []
    num_sequences = 0
    for batch in micro_batches:
        loss, divergence_N, statistics = score(setup, batch, setup.divergence, 1.0 / num_trained_tokens)
        loss.backward()
        loss_sum += loss.detach().double().cpu()
        scored.append(_keep(batch, divergence_N, statistics, num_sequences))
        num_sequences += len(batch.positions)
    trainable = [p for p in setup.student.parameters() if p.grad is not None]
    grad_norm = float(torch.nn.utils.clip_grad_norm_(trainable, max_grad_norm))
    _require_finite(float(loss_sum), grad_norm, micro_batches)
    optimizer.step()
    seconds = time.monotonic() - started_at
    return {
        "loss": float(loss_sum),
        "grad_norm": grad_norm,
        "step_seconds": seconds,
        "trained_tokens": num_trained_tokens,
        "tokens_per_second": sum(batch.num_input_tokens for batch in micro_batches) / seconds,
        **token_metrics(scored, setup.divergence),
    }


def _keep(batch: MicroBatch, divergence_N: Tensor, statistics: TokenStatistics, first_sequence: int) -> ScoredBatch:
    assert statistics.student_logprob_N is not None
    assert statistics.teacher_logprob_N is not None
    return ScoredBatch(
        divergence_N,
        batch.sequence_N + first_sequence,
        statistics.student_logprob_N,
        statistics.teacher_logprob_N,
        statistics.student_entropy_N,
        statistics.top1_agreement_N,
        statistics.teacher_epistemic_mass_N,
    )


def _require_finite(loss: float, grad_norm: float, micro_batches: Sequence[MicroBatch]) -> None:
    if torch.isfinite(torch.tensor([loss, grad_norm])).all():
        return
    positions = sorted(position for batch in micro_batches for position in batch.positions)
    raise NonFiniteError(
        f"loss = {loss}, gradient norm = {grad_norm}: the step was not taken and the weights are as before it; "
        f"trajectories of the batch, by position in the round: {positions}"
    )


def token_metrics(scored: Sequence[ScoredBatch], divergence: Divergence) -> dict[str, float]:
    """How a step's token losses are spread, and how likely both models find the text.

    Percentiles are of single tokens' divergence in nats; `..._per_trajectory` is the mean over
    trajectories of their sums; perplexities are of the target y under each model in its own context.
    """
    divergence_N = torch.cat([s.divergence_N for s in scored]).float()
    sequence_N = torch.cat([s.sequence_N for s in scored])
    sums_B = torch.zeros(int(sequence_N.max()) + 1, device=divergence_N.device).index_add_(0, sequence_N, divergence_N)
    p50, p95, p99 = torch.quantile(divergence_N, torch.tensor([0.5, 0.95, 0.99], device=divergence_N.device)).tolist()

    def mean(name: str) -> float:
        return float(torch.cat([getattr(s, name) for s in scored]).float().mean())

    metrics = {
        "divergence_per_token": float(divergence_N.mean()),
        "divergence_per_trajectory": float(sums_B.mean()),
        "divergence_p50": p50,
        "divergence_p95": p95,
        "divergence_p99": p99,
        "divergence_max": float(divergence_N.max()),
        "student_perplexity": float(torch.exp(torch.tensor(-mean("student_logprob_N")))),
        "teacher_perplexity": float(torch.exp(torch.tensor(-mean("teacher_logprob_N")))),
        "student_entropy": mean("student_entropy_N"),
        "top1_agreement": mean("top1_agreement_N"),
        "epistemic_mass": mean("epistemic_mass_N"),
    }
    if divergence.token_clip:
        metrics["clip_share"] = float((divergence_N >= divergence.token_clip).float().mean())
    return metrics


@torch.no_grad()
def mean_forward_kl(setup: ScoringSetup, micro_batches: Sequence[MicroBatch]) -> float:
    """Forward KL per trained token over fixed batches, full vocabulary, temperature 1: the same yardstick
    for every variant's run."""
    setup.student.eval()
    total, num_tokens = 0.0, 0
    for batch in micro_batches:
        _, divergence_N, _ = score(setup, batch, Divergence(), 0.0)
        total += float(divergence_N.double().sum())
        num_tokens += batch.num_trained_tokens
    return total / num_tokens
