"""Draw next tokens from logits, each request independently of its neighbours.

Legend: B rows, V vocabulary, K candidates, N blocks of a vocabulary, W tokens of a block.
"""

from __future__ import annotations

import torch
from torch.nn.functional import pad

from trd_engine.types import GenerationRequest, SamplingSettings

_BLOCK_SIZE = 256
"""Tokens. A float64 cumulative sum of the whole vocabulary takes ten times as long as one of blocks, then of one."""


def draw_uniforms(requests: list[GenerationRequest], num_tokens: int) -> torch.Tensor:
    """Return [B, num_tokens] in [0, 1): row i comes from the seed of request i alone.

    The generators are separate ones on the CPU: torch's global random state is neither read nor changed.
    """
    rows = [
        torch.rand(num_tokens, generator=torch.Generator().manual_seed(request.seed), dtype=torch.float64)
        for request in requests
    ]
    return torch.stack(rows)


def sample_tokens(logits_BV: torch.Tensor, uniforms_B: torch.Tensor, sampling: SamplingSettings) -> torch.Tensor:
    """Return [B] token ids by inverting the cumulative distribution at `uniforms_B`.

    Temperature first, then top-k, then top-p on what top-k left, as vLLM does; temperature 0 takes the most
    probable token.
    """
    if sampling.temperature == 0:
        return logits_BV.argmax(dim=-1)
    scores_BV = logits_BV.float() / sampling.temperature
    scores_BK, ids_BK = _candidates(scores_BV, sampling.top_k, sampling.top_p)
    if ids_BK is None:
        return _invert_by_blocks(scores_BV.softmax(dim=-1), uniforms_B)
    cumulative_BK = scores_BK.softmax(dim=-1).cumsum(dim=-1, dtype=torch.float64)
    num_kept_B1 = _num_kept(cumulative_BK, sampling.top_p)
    mass_B1 = cumulative_BK.gather(-1, num_kept_B1 - 1)
    targets_B1 = uniforms_B.to(cumulative_BK)[:, None] * mass_B1
    picks_B1 = torch.searchsorted(cumulative_BK, targets_B1, right=True).minimum(num_kept_B1 - 1)
    return ids_BK.gather(-1, picks_B1).squeeze(-1)


def _invert_by_blocks(probabilities_BV: torch.Tensor, uniforms_B: torch.Tensor) -> torch.Tensor:
    """Return [B] token ids, in vocabulary order: first find the block of a uniform, then the token in it."""
    num_missing = -probabilities_BV.shape[-1] % _BLOCK_SIZE
    if num_missing:
        probabilities_BV = pad(probabilities_BV, (0, num_missing))
    blocks_BNW = probabilities_BV.unflatten(-1, (-1, _BLOCK_SIZE))
    ends_BN = blocks_BNW.sum(dim=-1).cumsum(dim=-1, dtype=torch.float64)
    # Below the end, also for the largest uniform, 1 - 2⁻⁵³: a float64 times it is never rounded to itself.
    targets_B1 = uniforms_B.to(ends_BN)[:, None] * ends_BN[:, -1:]
    picks_B1 = torch.searchsorted(ends_BN, targets_B1, right=True)
    start_B1 = pad(ends_BN, (1, 0)).gather(-1, picks_B1)
    rows_B = torch.arange(len(picks_B1), device=picks_B1.device)
    cumulative_BW = blocks_BNW[rows_B, picks_B1[:, 0]].cumsum(dim=-1, dtype=torch.float64)
    # The block's sum, rounded otherwise, may be larger: below its end there is a token that can be.
    last_B1 = cumulative_BW[:, -1:].nextafter(torch.zeros_like(targets_B1))
    within_B1 = torch.searchsorted(cumulative_BW, (targets_B1 - start_B1).minimum(last_B1), right=True)
    return (picks_B1 * _BLOCK_SIZE + within_B1).squeeze(-1)


def keep_nucleus(scores_BV: torch.Tensor, top_k: int, top_p: float) -> torch.Tensor:
    """Return the scores [B, V] with everything outside top-k, and then outside top-p, at minus infinity."""
    scores_BK, ids_BK = _candidates(scores_BV, top_k, top_p)
    if ids_BK is None:
        return scores_BV
    cumulative_BK = scores_BK.softmax(dim=-1).cumsum(dim=-1, dtype=torch.float64)
    is_out_BK = torch.arange(scores_BK.shape[-1], device=scores_BK.device) >= _num_kept(cumulative_BK, top_p)
    nucleus_BV = torch.full_like(scores_BV, -torch.inf)
    return nucleus_BV.scatter_(-1, ids_BK, scores_BK.masked_fill(is_out_BK, -torch.inf))


def _candidates(scores_BV: torch.Tensor, top_k: int, top_p: float) -> tuple[torch.Tensor, torch.Tensor | None]:
    """Return scores, most probable first if an order is needed, and their token ids (None: all, in order)."""
    if 0 < top_k < scores_BV.shape[-1]:
        top = scores_BV.topk(top_k, dim=-1)
        return top.values, top.indices
    if top_p < 1:
        ordered = scores_BV.sort(dim=-1, descending=True, stable=True)
        return ordered.values, ordered.indices
    return scores_BV, None


def _num_kept(cumulative_BK: torch.Tensor, top_p: float) -> torch.Tensor:
    """Return [B, 1]: the length of the shortest prefix that holds at least `top_p`; all if top-p is off."""
    if top_p >= 1:
        return torch.full_like(cumulative_BK[:, :1], cumulative_BK.shape[-1], dtype=torch.long)
    num_below_B1 = (cumulative_BK < top_p).sum(dim=-1, keepdim=True)
    return (num_below_B1 + 1).clamp(max=cumulative_BK.shape[-1])
