"""One optimizer step: both models' forward passes, the loss, the gradient, the update."""

from __future__ import annotations

import math
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import torch
from torch.nn.utils import clip_grads_with_norm_, get_total_norm

from trd_engine.distillation.batching import MicroBatch
from trd_engine.distillation.model_pair import ModelPair
from trd_engine.distillation.scoring import score
from trd_engine.models.fsdp import full_tensor
from trd_engine.runtime.errors import NonFiniteError, PassTooLargeError
from trd_engine.runtime.hardware import is_out_of_memory
from trd_engine.training.non_finite import gather_evidence
from trd_engine.training.step_metrics import ScoredBatch, token_metrics, without_teacher


def optimizer_step(
    models: ModelPair,
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

    Raises before the update, with the weights as they were: `NonFiniteError` if loss or gradient is not finite, and
    `PassTooLargeError` if the memory runs out in a pass.
    """
    started_at, world = time.monotonic(), models.world
    num_trained_tokens = int(world.sum(sum(batch.num_trained_tokens for batch in micro_batches)))
    # Asked before the first pass: the processes meet in every one.
    num_passes = int(world.max(len(micro_batches)))
    models.student.train()
    optimizer.zero_grad(set_to_none=True)
    loss_sum, num_sequences, scored = 0.0, 0, list[ScoredBatch]()
    for batch in micro_batches:
        with _named_if_too_large(batch):
            found = score(models, batch, models.divergence, 1.0 / num_trained_tokens, weigher=models.weigher)
            found.loss.backward()
        loss_sum += float(found.loss.detach().double())
        scored.append(ScoredBatch.of(found, batch, first_sequence=num_sequences))
        num_sequences += len(batch.positions)
    for _ in range(num_passes - len(micro_batches)):
        assert filler is not None
        with _named_if_too_large(filler):
            score(models, filler, models.divergence, 0.0).loss.backward()
    loss_sum = world.sum(loss_sum)
    trainable = [p for p in models.student.parameters() if p.grad is not None]
    total_weight = world.sum(sum(float(s.weight_N.double().sum()) for s in scored))
    if models.weigher is not None and total_weight > 0:
        # Σw is known only now; the gradient is linear in the weights.
        loss_sum *= _rescale(trainable, num_trained_tokens / total_weight)
    total_norm = get_total_norm([p.grad for p in trainable if p.grad is not None])
    grad_norm = float(full_tensor(total_norm))
    # Before the gradients are clipped: a norm that is not finite would spoil them all, and hide where it came from.
    _require_finite(loss_sum, grad_norm, micro_batches, scored, models)
    if grad_norm > max_grad_norm:  # else every gradient would be read and written to be multiplied by one
        clip_grads_with_norm_(trainable, max_grad_norm, total_norm)
    if total_weight > 0:
        optimizer.step()
    seconds = time.monotonic() - started_at
    metrics = token_metrics(scored, models.divergence, world)
    return {
        "loss": loss_sum,
        "grad_norm": grad_norm,
        "step_seconds": seconds,
        "trained_tokens": num_trained_tokens,
        "tokens_per_second": world.sum(_num_tokens_read(models, micro_batches)) / seconds,
        **(without_teacher(metrics) if models.is_cross_entropy else metrics),
    }


@contextmanager
def _named_if_too_large(batch: MicroBatch) -> Iterator[None]:
    try:
        yield
    except (RuntimeError, MemoryError) as error:
        if not is_out_of_memory(error):
            raise
        raise PassTooLargeError(
            f"the memory ran out in a pass over {len(batch.positions)} sequences, {batch.num_student_tokens} tokens "
            f"for the student and {batch.num_teacher_tokens} for the teacher"
        ) from error


def _num_tokens_read(models: ModelPair, micro_batches: Sequence[MicroBatch]) -> int:
    """Return the number of tokens that went through a model here: a served teacher reads elsewhere."""
    return sum(b.num_input_tokens if models.teacher is not None else b.num_student_tokens for b in micro_batches)


def _rescale(parameters: Sequence[torch.nn.Parameter], factor: float) -> float:
    for parameter in parameters:
        assert parameter.grad is not None
        parameter.grad.mul_(factor)
    return factor


def _require_finite(
    loss: float,
    grad_norm: float,
    micro_batches: Sequence[MicroBatch],
    scored: Sequence[ScoredBatch],
    models: ModelPair,
) -> None:
    """Raise `NonFiniteError` unless loss and norm are finite. Both are of the whole batch: all processes raise
    together."""
    if math.isfinite(loss) and math.isfinite(grad_norm):
        return
    figures = [{name: getattr(one, f"{name}_N") for name in _SAVED_FIGURES} for one in scored]
    evidence = gather_evidence(loss, grad_norm, micro_batches, figures, models.student)
    own = {"positions": evidence.positions, "bad": sorted({row["position"] for row in evidence.tokens})}
    all_parts = models.world.gather([own])
    positions, bad = (sorted(place for part in all_parts for place in part[name]) for name in ("positions", "bad"))
    named = f"; with tokens that are not finite: {bad}" if bad else ""
    raise NonFiniteError(
        f"loss = {loss}, gradient norm = {grad_norm}: the step was not taken and the weights are as before it; "
        f"trajectories of the batch, by position in the round: {positions}{named}",
        evidence,
    )


_SAVED_FIGURES = ("divergence", "weight", "student_logprob", "teacher_logprob", "student_entropy")
"""Figures of a token that are saved if one of them is not finite."""
