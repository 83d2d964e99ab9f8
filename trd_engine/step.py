"""One optimizer step: both models' forward passes, the loss, the gradient, the update."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, replace

import numpy
import torch
from torch import Tensor
from torch.nn.utils import clip_grads_with_norm_, get_total_norm

from trd_engine.batching import MicroBatch
from trd_engine.cpu_layers import cpu_layers
from trd_engine.distributed import ALONE, World
from trd_engine.errors import NonFiniteError
from trd_engine.fused_loss import linear_divergence
from trd_engine.fused_loss_statistics import StatisticsRequest, TokenStatistics
from trd_engine.losses import Divergence
from trd_engine.models import TrainedModel, head_of
from trd_engine.non_finite import gather_evidence
from trd_engine.served_loss import LossPass, served_pass
from trd_engine.sharding import Enter, directly, whole
from trd_engine.teacher import Teacher, hidden_states
from trd_engine.token_weights import TokenFigures, TokenWeigher


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
    enter_student: Enter = directly
    """Where the student's weights are whole, see `trd_engine.sharding`."""

    @property
    def models(self) -> tuple[TrainedModel, ...]:
        """All that compute here."""
        return (self.student,) if self.teacher is None else (self.student, self.teacher.model)

    def autocast(self) -> AbstractContextManager[object]:
        """Matrix products in the compute dtype, where that is not the weights' own fp32."""
        device_type = next(self.student.parameters()).device.type
        return torch.autocast(device_type, self.compute_dtype, enabled=self.compute_dtype != torch.float32)


@dataclass(frozen=True)
class ScoredBatch:
    """Per-token figures of a step, N trained tokens in a row; detached."""

    divergence_N: Tensor
    weight_N: Tensor
    """As the weigher gave it, before any normalisation; 1 without a weigher."""
    sequence_N: Tensor
    """Numbered through the whole step."""
    student_logprob_N: Tensor
    teacher_logprob_N: Tensor
    student_entropy_N: Tensor
    top1_agreement_N: Tensor
    epistemic_mass_N: Tensor
    is_told_N: Tensor
    """Where the teacher told a distribution; elsewhere the loss is the cross-entropy."""


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
        scored: tuple[Tensor, Tensor, TokenStatistics] = setup.enter_student(lambda: student_pass(teacher_hidden_NG))
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


def optimizer_step(
    setup: ScoringSetup,
    micro_batches: Sequence[MicroBatch],
    optimizer: torch.optim.Optimizer,
    *,
    max_grad_norm: float,
    filler: MicroBatch | None = None,
) -> dict[str, float]:
    """Train on one global batch, of which `micro_batches` are this process's part; the step's metrics.

    Every token weighs 1/N with N the trained tokens of the *whole* batch, of all processes. A mean of micro-batch
    means would weigh a token by how its batch happened to be split. With a weigher it weighs w/Σw, the sum over the
    whole batch too; a batch whose tokens all weigh nothing takes no update. Processes that divide a model compute
    together: one with fewer micro-batches passes `filler` with weight zero.

    Raises `NonFiniteError`, before the update and the weights as they were, where loss or gradient is not finite.
    """
    started_at = time.monotonic()
    world = setup.world
    num_trained_tokens = int(world.sum(sum(batch.num_trained_tokens for batch in micro_batches)))
    # Asked before the first pass: the processes meet in every one.
    num_passes = int(world.max(len(micro_batches)))
    setup.student.train()
    optimizer.zero_grad(set_to_none=True)
    loss_sum, num_sequences = 0.0, 0
    scored: list[ScoredBatch] = []
    with cpu_layers(*setup.models):
        for batch in micro_batches:
            loss, figures = _score_to_train(setup, batch, 1.0 / num_trained_tokens)
            loss.backward()
            loss_sum += float(loss.detach().double())
            scored.append(replace(figures, sequence_N=figures.sequence_N + num_sequences))
            num_sequences += len(batch.positions)
        for _ in range(num_passes - len(micro_batches)):
            assert filler is not None
            score(setup, filler, setup.divergence, 0.0)[0].backward()
    loss_sum = world.sum(loss_sum)
    trainable = [p for p in setup.student.parameters() if p.grad is not None]
    total_weight = world.sum(sum(float(s.weight_N.double().sum()) for s in scored))
    if setup.weigher is not None and total_weight > 0:
        # Σw is known only now; the gradient is linear in the weights.
        loss_sum *= _rescale(trainable, num_trained_tokens / total_weight)
    total_norm = get_total_norm([p.grad for p in trainable if p.grad is not None])
    grad_norm = float(whole(total_norm))
    # Before the gradients are clipped: a norm that is not finite would spoil them all, and hide where it came from.
    _require_finite(loss_sum, grad_norm, micro_batches, scored, setup)
    if grad_norm > max_grad_norm:  # else every gradient would be read and written to be multiplied by one
        clip_grads_with_norm_(trainable, max_grad_norm, total_norm)
    if total_weight > 0:
        optimizer.step()
    seconds = time.monotonic() - started_at
    metrics = token_metrics(scored, setup.divergence, world)
    return {
        "loss": loss_sum,
        "grad_norm": grad_norm,
        "step_seconds": seconds,
        "trained_tokens": num_trained_tokens,
        "tokens_per_second": world.sum(_num_read(setup, micro_batches)) / seconds,
        **(without_teacher(metrics) if setup.is_cross_entropy else metrics),
    }


def _num_read(setup: ScoringSetup, micro_batches: Sequence[MicroBatch]) -> int:
    """Tokens that went through a model here: a served teacher reads elsewhere."""
    return sum(b.num_input_tokens if setup.teacher is not None else b.num_student_tokens for b in micro_batches)


def _rescale(parameters: Sequence[torch.nn.Parameter], factor: float) -> float:
    for parameter in parameters:
        assert parameter.grad is not None
        parameter.grad.mul_(factor)
    return factor


def _score_to_train(setup: ScoringSetup, batch: MicroBatch, token_weight: float) -> tuple[Tensor, ScoredBatch]:
    """The micro-batch's part of the loss, and its figures, numbered from its own first sequence."""
    given: list[Tensor] = []

    def weigh(batch: MicroBatch, figures: TokenFigures | None) -> Tensor:
        assert setup.weigher is not None
        given.append(setup.weigher(batch, figures))
        return given[-1]

    loss, divergence_N, statistics = score(
        setup, batch, setup.divergence, token_weight, weigh=weigh if setup.weigher is not None else None
    )
    assert statistics.student_logprob_N is not None
    assert statistics.teacher_logprob_N is not None
    return loss, ScoredBatch(
        divergence_N,
        given[0] if given else torch.ones_like(divergence_N, dtype=torch.float32),
        batch.sequence_N,
        statistics.student_logprob_N,
        statistics.teacher_logprob_N,
        statistics.student_entropy_N,
        statistics.top1_agreement_N,
        statistics.teacher_epistemic_mass_N,
        batch.is_told,
    )


def _require_finite(
    loss: float,
    grad_norm: float,
    micro_batches: Sequence[MicroBatch],
    scored: Sequence[ScoredBatch],
    setup: ScoringSetup,
) -> None:
    """Loss and norm are the whole batch's, so that of several processes all come here, and name its trajectories."""
    if math.isfinite(loss) and math.isfinite(grad_norm):
        return
    figures = [{name: getattr(one, f"{name}_N") for name in _LOOKED_AT} for one in scored]
    evidence = gather_evidence(loss, grad_norm, micro_batches, figures, setup.student)
    own = {"positions": evidence.positions, "bad": sorted({row["position"] for row in evidence.tokens})}
    all_parts = setup.world.gather_documents([own])
    positions, bad = (sorted(place for part in all_parts for place in part[name]) for name in ("positions", "bad"))
    named = f"; with tokens that are not finite: {bad}" if bad else ""
    raise NonFiniteError(
        f"loss = {loss}, gradient norm = {grad_norm}: the step was not taken and the weights are as before it; "
        f"trajectories of the batch, by position in the round: {positions}{named}",
        evidence,
    )


_LOOKED_AT = ("divergence", "weight", "student_logprob", "teacher_logprob", "student_entropy")
"""Figures of a token that are saved where one of them is not finite."""


def token_metrics(scored: Sequence[ScoredBatch], divergence: Divergence, world: World = ALONE) -> dict[str, float]:
    """How a step's token losses are spread, and how likely both models find the text.

    Percentiles are of single tokens' divergence in nats; `..._per_trajectory` is the mean over
    trajectories of their sums; perplexities are of the target y under each model in its own context. Tokens that the
    teacher told nothing of are in none of its figures, and `cross_entropy_token_share` says how many they are.
    """

    def gathered(name: str) -> Tensor:
        mine = [getattr(s, name) for s in scored]
        # A process without a sequence of this batch has figures of none.
        return world.concatenate(torch.cat(mine).float().cpu() if mine else torch.zeros(0))

    is_told_N = gathered("is_told_N") > 0
    untold_share, all_untold = float((~is_told_N).float().mean()), not bool(is_told_N.any())
    is_told_N = is_told_N | all_untold
    divergence_N = gathered("divergence_N")[is_told_N]
    num_sequences = world.sum(sum(int(s.sequence_N[s.is_told_N | all_untold].unique().numel()) for s in scored))
    p50, p95, p99 = quantiles(divergence_N, (0.5, 0.95, 0.99))

    def mean(name: str) -> float:
        return float(gathered(name).mean())

    def mean_told(name: str) -> float:
        return float(gathered(name)[is_told_N].mean())

    metrics = {
        "divergence_per_token": float(divergence_N.mean()),
        "divergence_per_trajectory": float(divergence_N.sum()) / num_sequences,
        "divergence_p50": p50,
        "divergence_p95": p95,
        "divergence_p99": p99,
        "divergence_max": float(divergence_N.max()),
        "student_perplexity": float(torch.exp(torch.tensor(-mean("student_logprob_N")))),
        "teacher_perplexity": float(torch.exp(torch.tensor(-mean_told("teacher_logprob_N")))),
        "student_entropy": mean("student_entropy_N"),
        "top1_agreement": mean_told("top1_agreement_N"),
        "epistemic_mass": mean_told("epistemic_mass_N"),
        "kept_token_share": float((gathered("weight_N") > 0).float().mean()),
    }
    if divergence.token_clip:
        metrics["clip_share"] = float((divergence_N >= divergence.token_clip).float().mean())
    if untold_share:
        metrics["cross_entropy_token_share"] = untold_share
    return without_teacher(metrics) if all_untold else metrics


def quantiles(values_N: Tensor, shares: Sequence[float]) -> list[float]:
    """Of any number of values, on the CPU; torch's own refuses more than 16 million, which a large batch has."""
    return [float(value) for value in numpy.quantile(values_N.numpy(), shares)]


def without_teacher(metrics: Mapping[str, float]) -> dict[str, float]:
    """The metrics of a step whose teacher told no distribution, under names that say so."""
    told_by_teacher = ("teacher_perplexity", "top1_agreement", "epistemic_mass")
    return {
        name.replace("divergence", "cross_entropy"): value
        for name, value in metrics.items()
        if name not in told_by_teacher
    }


@torch.no_grad()
def mean_yardstick(setup: ScoringSetup, micro_batches: Sequence[MicroBatch], filler: MicroBatch | None = None) -> float:
    """`ScoringSetup.yardstick` over fixed batches, per trained token that the teacher told of; `filler` as in
    `optimizer_step`."""
    setup.student.eval()
    num_passes = int(setup.world.max(len(micro_batches)))
    total, num_tokens = 0.0, 0
    for batch in micro_batches:
        _, divergence_N, _ = score(setup, batch, setup.yardstick, 0.0)
        total += float(divergence_N[batch.is_told].double().sum())
        num_tokens += int(batch.is_told.sum())
    for _ in range(num_passes - len(micro_batches)):
        assert filler is not None
        score(setup, filler, setup.yardstick, 0.0)
    return setup.world.sum(total) / setup.world.sum(num_tokens)
