"""PyTorch's attention over sequences of different lengths, and its gradient, by what its documentation says.

The parameters are those of PyTorch's own operations, in their order.

Shapes: T tokens of all sequences, A query heads, E key-value heads, D of a head; `bounds` are cumulative lengths.
"""

from __future__ import annotations

from collections.abc import Iterator
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor


def varlen_attention(
    query_TAD: Tensor,
    key_TED: Tensor,
    value_TED: Tensor,
    bounds: Tensor,
    other_bounds: Tensor,
    _max_q: int,
    _max_k: int,
    _is_causal: bool,
    scale: float | None,
    window: list[int],
    *_options: Any,
) -> tuple[Tensor, Tensor, Tensor]:
    """Return output [T, A, D], log-sum-exp and the state of a random generator; nobody reads the last two."""
    assert query_TAD.dtype in (torch.float16, torch.bfloat16), "the kernel has 16 bits only"
    assert query_TAD.shape[-1] % 8 == 0, "the kernel takes heads of multiples of 8"
    assert bounds.dtype == torch.int32
    sequences = _sequences(query_TAD, key_TED, value_TED, bounds, other_bounds, scale, window)
    outputs = [(weights @ value).transpose(0, 1) for _, _, _, value, weights, _ in sequences]
    output_TAD = torch.cat(outputs).to(query_TAD.dtype)
    return output_TAD, torch.zeros(query_TAD.shape[1], len(query_TAD)), torch.zeros(2, dtype=torch.uint64)


def varlen_attention_gradient(
    gradient_TAD: Tensor,
    query_TAD: Tensor,
    key_TED: Tensor,
    value_TED: Tensor,
    _output: Tensor,
    _lse: Tensor,
    bounds: Tensor,
    other_bounds: Tensor,
    _max_q: int,
    _max_k: int,
    _is_causal: bool,
    _random: Tensor,
    scale: float | None,
    window: list[int],
) -> tuple[Tensor, ...]:
    """Return the gradients of query, key and value."""
    # The operation is called below the autograd engine, where nothing is recorded; written out therefore.
    gradients = [torch.zeros_like(x, dtype=torch.float32) for x in (query_TAD, key_TED, value_TED)]
    for sequence, query, key, value, weights, scaling in _sequences(
        query_TAD, key_TED, value_TED, bounds, other_bounds, scale, window
    ):
        gradient = gradient_TAD[sequence].float().transpose(0, 1)
        of_weights = gradient @ value.mT
        of_scores = weights * (of_weights - (of_weights * weights).sum(dim=-1, keepdim=True)) * scaling
        of_inputs = (of_scores @ key, of_scores.mT @ query, weights.mT @ gradient)
        for whole, part in zip(gradients, of_inputs, strict=True):
            # Query heads that share a key's head add up.
            shared = part.unflatten(0, (whole.shape[1], -1)).sum(dim=1)
            whole[sequence] = shared.transpose(0, 1)
    return tuple(gradient.to(query_TAD.dtype) for gradient in gradients)


def _sequences(
    query_TAD: Tensor,
    key_TED: Tensor,
    value_TED: Tensor,
    bounds: Tensor,
    other_bounds: Tensor,
    scale: float | None,
    window: list[int],
) -> Iterator[tuple[slice, Tensor, Tensor, Tensor, Tensor, float]]:
    """Yield for each sequence its slice, query, key and value [A, T, D] in fp32, the weights [A, T, T], and the
    scale."""
    assert torch.equal(bounds, other_bounds), "each token attends within its own sequence"
    left, right = window
    assert right == 0, "a causal mask"
    repeats = query_TAD.shape[1] // key_TED.shape[1]
    scaling = query_TAD.shape[-1] ** -0.5 if scale is None else scale
    for start, end in pairwise(bounds.tolist()):
        sequence = slice(start, end)
        query, key, value = (x[sequence].float().transpose(0, 1) for x in (query_TAD, key_TED, value_TED))
        key, value = key.repeat_interleave(repeats, dim=0), value.repeat_interleave(repeats, dim=0)
        behind = torch.arange(end - start)[:, None] - torch.arange(end - start)
        is_seen = (behind >= 0) & ((behind <= left) if left >= 0 else True)
        scores = (query @ key.mT * scaling).masked_fill(~is_seen, -torch.inf)
        yield sequence, query, key, value, scores.softmax(dim=-1), scaling
