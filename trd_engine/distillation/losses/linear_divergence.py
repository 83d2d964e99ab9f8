"""The token loss from hidden states: output head, divergence and gradient in one pass.

`linear_divergence` is the engine's loss. Both models' logits exist for one chunk of tokens at a time; the student's
gradient overwrites them and is backpropagated before the next chunk, so that backward only scales what forward has
computed. This file owns the call: checks, defaults and autograd. The loop is in `chunked_pass`, the closed forms are
in `gradient`, the definitions in `divergence`.

Shapes: N tokens, V vocabulary, H hidden size.
"""

from __future__ import annotations

from contextlib import nullcontext
from dataclasses import replace
from typing import Any, overload

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from trd_engine.distillation.losses.chunked_pass import ChunkedPass, Tokens, num_sparse_tokens
from trd_engine.distillation.losses.divergence import Divergence, check_token_ids
from trd_engine.distillation.losses.projection import Gradients, LogitSource, Projection
from trd_engine.distillation.losses.row_kernels import uses_kernels
from trd_engine.distillation.losses.token_statistics import StatisticsRequest, TokenStatistics, WantedStatistics

__all__ = ["Projection", "StatisticsRequest", "TokenStatistics", "linear_divergence"]

CHUNK_BYTES_CPU = 96 * 2**20
CHUNK_BYTES_ACCELERATOR = 2**30
"""Size of both models' logits of one chunk, if the caller gives no chunk size."""
BLOCK_BYTES_CPU = 2**20
BLOCK_BYTES_ACCELERATOR = 64 * 2**20
"""Size of one model's logits of one block in fp32, or of the head's rows at its top-k tokens: small enough for a CPU's
cache, large enough to keep an accelerator busy."""


@overload
def linear_divergence(
    student: Projection,
    teacher: LogitSource,
    divergence: Divergence,
    *,
    token_weights_N: Tensor | None = ...,
    token_ids_N: Tensor | None = ...,
    chunk_tokens: int | None = ...,
    statistics: None = None,
) -> tuple[Tensor, Tensor]: ...


@overload
def linear_divergence(
    student: Projection,
    teacher: LogitSource,
    divergence: Divergence,
    *,
    token_weights_N: Tensor | None = ...,
    token_ids_N: Tensor | None = ...,
    chunk_tokens: int | None = ...,
    statistics: StatisticsRequest,
) -> tuple[Tensor, Tensor, TokenStatistics]: ...


def linear_divergence(
    student: Projection,
    teacher: LogitSource,
    divergence: Divergence,
    *,
    token_weights_N: Tensor | None = None,
    token_ids_N: Tensor | None = None,
    chunk_tokens: int | None = None,
    statistics: StatisticsRequest | None = None,
) -> tuple[Tensor, Tensor] | tuple[Tensor, Tensor, TokenStatistics]:
    """Compute Σ wᵢ Dᵢ over N tokens from hidden states and output heads, without ever holding [N × V] logits.

    `teacher` is a `Projection`, too, possibly with another hidden size; D is taken over the vocabulary that both heads
    share. Any other `LogitSource`, such as a server's scores, must have the student's vocabulary.

    Args:
        token_weights_N: w, floating point; 1/N by default. Pass the weights here and do not multiply `per_token_N` by
            them: this pass already sums the gradient. A weight of exactly 0 removes a row from loss and gradient,
            whatever its values or token.
        token_ids_N: the sampled tokens, int64, as in `divergence.token_divergence`. If they are given, the statistics
            include both models' log-probabilities of them.
        chunk_tokens: how many tokens' logits exist at a time. It changes time and memory, not values; None chooses it
            for the device.
        statistics: which `TokenStatistics` to return as a third value.

    Returns:
        (loss, per_token_N), and the statistics if requested. `loss` is a scalar, differentiable in those of the
        student's hidden states, weight and bias that require a gradient; the teacher gets none. `per_token_N` is D in
        nats, after the clip and without the weight, and detached.

    Raises:
        ValueError: shapes do not match, or, on a CPU, `token_ids_N` has an id outside the shared vocabulary.

    Matrix products run in the models' dtype or autocast's; everything else, and the sum of the weight's gradient, in
    fp32 (fp64 for fp64 inputs). Nothing waits for an accelerator, and sums are taken in a fixed order.

    The divergences are those of MiniLLM (arXiv 2306.08543) and GKD (arXiv 2306.13649); the one pass, whose forward
    computes the gradient, follows Liger Kernel's fused linear losses (arXiv 2410.10989).
    """
    inputs = (student.hidden_NH, student.weight_VH, student.bias_V)
    num_shared = min(student.num_vocabulary, teacher.num_vocabulary)
    student = _detached(student, num_shared)
    if isinstance(teacher, Projection):
        teacher = _detached(teacher, num_shared)
    elif teacher.num_vocabulary != len(inputs[1]):
        raise ValueError(
            f"the teacher has logits of {teacher.num_vocabulary} tokens, but the student of {len(inputs[1])}: "
            "a teacher without a projection must have the student's vocabulary"
        )
    tokens = _tokens(student, teacher, divergence, token_weights_N, token_ids_N)
    wants_gradient = [x is not None and x.requires_grad and torch.is_grad_enabled() for x in inputs]
    gradients = Gradients.zeros(inputs, wants_gradient, student)
    one_pass = _make_pass(student, teacher, divergence, tokens, gradients, statistics, chunk_tokens)
    loss, per_token_N = _differentiable(one_pass, inputs)
    return (loss, per_token_N) if one_pass.statistics is None else (loss, per_token_N, one_pass.statistics)


def _make_pass(
    student: Projection,
    teacher: LogitSource,
    divergence: Divergence,
    tokens: Tokens,
    gradients: Gradients,
    request: StatisticsRequest | None,
    chunk_tokens: int | None,
) -> ChunkedPass:
    """Check the rest of a call and choose the sizes of chunks and blocks."""
    num_shared, hidden_size = student.weight_VH.shape
    on_cpu = student.weight_VH.device.type == "cpu"
    if chunk_tokens is None:
        bytes_per_token = num_shared * (student.bytes_per_logit + teacher.bytes_per_logit)
        chunk_tokens = max(1, (CHUNK_BYTES_CPU if on_cpu else CHUNK_BYTES_ACCELERATOR) // bytes_per_token)
    elif chunk_tokens < 1:
        raise ValueError(f"chunk_tokens is {chunk_tokens}: use 1 or more, or None to choose it for the device")
    widest = max(num_shared, num_sparse_tokens(divergence, num_shared) * hidden_size)
    block_rows = max(1, (BLOCK_BYTES_CPU if on_cpu else BLOCK_BYTES_ACCELERATOR) // (4 * widest))
    by_kernels = uses_kernels(student.weight_VH.device)
    if by_kernels and divergence.support != "top_k":
        block_rows = chunk_tokens
    wanted, statistics = None, None
    if request is not None:
        wanted, has_sampled = _wanted(request, student), tokens.ids_N is not None
        statistics = TokenStatistics.empty(student.num_tokens, tokens.weights_N, wanted, with_sampled=has_sampled)
    return ChunkedPass(
        *(student, teacher, divergence, tokens, gradients, wanted, statistics), chunk_tokens, block_rows, by_kernels
    )


def _differentiable(one_pass: ChunkedPass, inputs: tuple[Tensor, Tensor, Tensor | None]) -> tuple[Tensor, Tensor]:
    """Run the pass and make its loss differentiable in the student's hidden states, weight and bias."""
    device_type = inputs[0].device.type
    # The pass casts what needs casting; autocast would cast again.
    is_on = _autocast_dtype(device_type) is not None
    with torch.no_grad(), torch.autocast(device_type, enabled=False) if is_on else nullcontext():
        loss, per_token_N = one_pass.run()
        sums = zip(one_pass.gradients.tensors, inputs, strict=True)
        gradients = [None if g is None or x is None else g.to(x.dtype) for g, x in sums]
    if one_pass.gradients.any_wanted:
        loss = _KnownGradient.apply(loss, gradients, *inputs)  # type: ignore[no-untyped-call]  # torch's stub
    return loss, per_token_N


def _autocast_dtype(device_type: str) -> torch.dtype | None:
    is_on = torch.amp.is_autocast_available(device_type) and torch.is_autocast_enabled(device_type)
    return torch.get_autocast_dtype(device_type) if is_on else None


class _KnownGradient(torch.autograd.Function):
    """A loss whose gradients were computed together with it."""

    @staticmethod
    def forward(ctx: Any, loss: Tensor, gradients: list[Tensor | None], *inputs: Tensor | None) -> Tensor:
        ctx.gradients = gradients
        return loss.clone()

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_loss: Tensor) -> tuple[Tensor | None, ...]:
        if ctx.gradients is None:
            raise RuntimeError("linear_divergence: for a second backward give the first retain_graph=True")
        # private, but torch's compiled backward calls it before it reuses buffers; without it, assume a kept graph
        is_kept = getattr(torch._C._autograd, "_get_current_graph_task_keep_graph", lambda: True)
        if is_kept():
            return None, None, *(g if g is None else g * grad_loss for g in ctx.gradients)
        # in place, and no reference is kept: autograd then takes the head's gradient over without a copy
        gradients, ctx.gradients = ctx.gradients, None
        if grad_loss.device.type == "cpu" and grad_loss == 1:  # reading it would wait for an accelerator
            return None, None, *gradients
        return None, None, *(g if g is None else g.mul_(grad_loss) for g in gradients)


def _detached(model: Projection, num_shared: int) -> Projection:
    """Cut the head to the shared vocabulary, detach, and cast to the dtype of the products."""
    hidden_NH, weight_VH, bias_V = model.hidden_NH, model.weight_VH, model.bias_V
    dtype = _autocast_dtype(hidden_NH.device.type) or torch.promote_types(hidden_NH.dtype, weight_VH.dtype)
    return replace(
        model,
        hidden_NH=hidden_NH.detach().to(dtype),
        weight_VH=weight_VH.detach()[:num_shared].to(dtype),
        bias_V=None if bias_V is None else bias_V.detach()[:num_shared].to(dtype),
    )


def _tokens(
    student: Projection, teacher: LogitSource, divergence: Divergence, weights_N: Tensor | None, ids_N: Tensor | None
) -> Tokens:
    num_tokens, device = len(student.hidden_NH), student.hidden_NH.device
    if teacher.num_tokens != num_tokens:
        raise ValueError(f"the teacher has {teacher.num_tokens} tokens, but the student {num_tokens}")
    dtype, num_shared = torch.promote_types(student.hidden_NH.dtype, torch.float32), len(student.weight_VH)
    if weights_N is None:
        check_token_ids(divergence, ids_N, num_tokens, num_shared)
        even_N = torch.full((num_tokens,), 1 / max(1, num_tokens), dtype=dtype, device=device)
        return Tokens(even_N, ids_N, may_be_masked=False)
    if weights_N.shape != (num_tokens,):
        raise ValueError(f"token_weights_N must have shape ({num_tokens},), not {tuple(weights_N.shape)}")
    # looked up on a CPU only: reading it would wait for an accelerator
    may_be_masked = weights_N.device.type != "cpu" or bool((weights_N == 0).any())
    weights_N = weights_N.detach().to(device, dtype)
    if ids_N is not None and ids_N.shape == weights_N.shape and may_be_masked:
        is_foreign_N = (ids_N < 0) | (ids_N >= num_shared)
        ids_N = ids_N.masked_fill(is_foreign_N & (weights_N == 0), 0)  # often set to −100, which is no token
    check_token_ids(divergence, ids_N, num_tokens, num_shared)
    return Tokens(weights_N, ids_N, may_be_masked)


def _wanted(request: StatisticsRequest, student: Projection) -> WantedStatistics:
    ids, num_shared, device = list(request.epistemic_token_ids), len(student.weight_VH), student.weight_VH.device
    if not all(0 <= token_id < num_shared for token_id in ids):
        raise ValueError(f"epistemic_token_ids must lie within the {num_shared} shared tokens, not {ids}")
    watched_N, num_tokens = request.watched_ids_N, len(student.hidden_NH)
    if watched_N is not None and watched_N.shape != (num_tokens,):
        raise ValueError(f"watched_ids_N must have shape ({num_tokens},), not {tuple(watched_N.shape)}")
    epistemic_E = torch.tensor(ids, dtype=torch.long).to(device, non_blocking=True)  # the plain copy waits for a GPU
    return WantedStatistics(epistemic_E, request.modes, None if watched_N is None else watched_N.to(device))
