"""Attention of one new token to all before it, if several query heads share a key-value head.

Keys and values are read once for all query heads that share them, which take the place of query positions.
transformers repeats them for every query head instead, in memory and at every token, wherever there is a mask.

Shapes: B rows, A query heads, E key-value heads, G = A / E, S columns, D of a head.
"""

from __future__ import annotations

from typing import Any

from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention

_KNOWN_OPTIONS = {"scaling", "dropout", "is_causal", "sliding_window", "position_ids", "cache_position", "use_cache"}
"""What a layer may pass without changing what is computed here: a window is in the mask."""


def serves(query: Tensor, key: Tensor, mask: Tensor | None, options: dict[str, Any]) -> bool:
    """Return whether `shared_heads` computes this layer's attention: one token a row, grouped heads, nothing else."""
    if query.shape[2] != 1 or query.shape[1] == key.shape[1] or options.get("dropout", 0.0):
        return False
    if any(value is not None for name, value in options.items() if name not in _KNOWN_OPTIONS):
        return False
    return mask is None or (mask.dim() == 4 and mask.shape[1:3] == (1, 1))


def shared_heads(
    query_BA1D: Tensor,
    key_BESD: Tensor,
    value_BESD: Tensor,
    mask: Tensor | None,
    *,
    scaling: float | None = None,
    **_: Any,
) -> Tensor:
    """Return [B, 1, A, D]; `mask`, if there is one, is [B or 1, 1, 1, S], as transformers makes it."""
    query_BEGD = query_BA1D.view(*key_BESD.shape[:2], -1, query_BA1D.shape[3])
    output_BEGD = scaled_dot_product_attention(query_BEGD, key_BESD, value_BESD, attn_mask=mask, scale=scaling)
    return output_BEGD.reshape(len(query_BA1D), 1, query_BA1D.shape[1], -1)
