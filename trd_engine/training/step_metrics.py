"""Metrics of an optimizer step, computed from the per-token figures of its micro-batches.

Shapes: N trained tokens.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy
import torch
from torch import Tensor

from trd_engine.distillation.batching import MicroBatch
from trd_engine.distillation.losses.divergence import Divergence
from trd_engine.distillation.scoring import Scored
from trd_engine.runtime.distributed import ALONE, World


@dataclass(frozen=True)
class ScoredBatch:
    """Per-token figures of a step, N trained tokens in a row; detached."""

    divergence_N: Tensor
    weight_N: Tensor
    """Weights from the weigher, before any normalisation; 1 without a weigher."""
    sequence_N: Tensor
    """Numbered through the whole step."""
    student_logprob_N: Tensor
    teacher_logprob_N: Tensor
    student_entropy_N: Tensor
    top1_agreement_N: Tensor
    epistemic_mass_N: Tensor
    is_scored_N: Tensor
    """Whether the teacher returned a distribution; at the other tokens the loss is the cross-entropy."""

    @classmethod
    def of(cls, scored: Scored, batch: MicroBatch, *, first_sequence: int) -> ScoredBatch:
        """Take the figures of one micro-batch, whose sequences are numbered from `first_sequence`."""
        statistics = scored.statistics
        assert statistics.student_logprob_N is not None
        assert statistics.teacher_logprob_N is not None
        return cls(
            scored.divergence_N,
            scored.weights_N,
            batch.sequence_N + first_sequence,
            statistics.student_logprob_N,
            statistics.teacher_logprob_N,
            statistics.student_entropy_N,
            statistics.top1_agreement_N,
            statistics.teacher_epistemic_mass_N,
            batch.is_scored,
        )


def token_metrics(scored: Sequence[ScoredBatch], divergence: Divergence, world: World = ALONE) -> dict[str, float]:
    """Return how a step's token losses are spread, and how likely both models find the text.

    Percentiles are of single tokens' divergence in nats; `..._per_trajectory` is the mean over
    trajectories of their sums; perplexities are of the target y under each model in its own context. Unscored
    tokens are left out of the divergence's and the teacher's figures; `cross_entropy_token_share` is their share.
    """

    def gathered(name: str) -> Tensor:
        mine = [getattr(s, name) for s in scored]
        # A process without a sequence of this batch has figures of none.
        return world.concatenate(torch.cat(mine).float().cpu() if mine else torch.zeros(0))

    is_scored_N = gathered("is_scored_N") > 0
    unscored_share, all_unscored = float((~is_scored_N).float().mean()), not bool(is_scored_N.any())
    is_scored_N = is_scored_N | all_unscored
    divergence_N = gathered("divergence_N")[is_scored_N]
    num_sequences = world.sum(sum(int(s.sequence_N[s.is_scored_N | all_unscored].unique().numel()) for s in scored))
    p50, p95, p99 = quantiles(divergence_N, (0.5, 0.95, 0.99))

    def mean(name: str) -> float:
        return float(gathered(name).mean())

    def mean_scored(name: str) -> float:
        return float(gathered(name)[is_scored_N].mean())

    metrics = {
        "divergence_per_token": float(divergence_N.mean()),
        "divergence_per_trajectory": float(divergence_N.sum()) / num_sequences,
        "divergence_p50": p50,
        "divergence_p95": p95,
        "divergence_p99": p99,
        "divergence_max": float(divergence_N.max()),
        "student_perplexity": float(torch.exp(torch.tensor(-mean("student_logprob_N")))),
        "teacher_perplexity": float(torch.exp(torch.tensor(-mean_scored("teacher_logprob_N")))),
        "student_entropy": mean("student_entropy_N"),
        "top1_agreement": mean_scored("top1_agreement_N"),
        "epistemic_mass": mean_scored("epistemic_mass_N"),
        "kept_token_share": float((gathered("weight_N") > 0).float().mean()),
    }
    if divergence.token_clip:
        metrics["clip_share"] = float((divergence_N >= divergence.token_clip).float().mean())
    if unscored_share:
        metrics["cross_entropy_token_share"] = unscored_share
    return without_teacher(metrics) if all_unscored else metrics


def quantiles(values_N: Tensor, shares: Sequence[float]) -> list[float]:
    """Return quantiles of any number of values, on the CPU: torch's own refuses more than 16 million, which a large
    batch has."""
    return [float(value) for value in numpy.quantile(values_N.numpy(), shares)]


def without_teacher(metrics: Mapping[str, float]) -> dict[str, float]:
    """Return the metrics of a step without scored tokens, under names that say so."""
    from_teacher = ("teacher_perplexity", "top1_agreement", "epistemic_mass")
    return {
        name.replace("divergence", "cross_entropy"): value
        for name, value in metrics.items()
        if name not in from_teacher
    }
