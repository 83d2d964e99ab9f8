"""A key-value cache that grows in place: a token's keys are written next to the others, which are not copied.

transformers' cache appends by concatenation, which copies the whole cache at every token. This owns the layers that
keep all columns; layers with a sliding window or another kind of state stay those of transformers.

Shapes: B rows, E key-value heads, S columns so far, C columns there is room for, D of a head.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from transformers import DynamicCache, PretrainedConfig
from transformers.cache_utils import DynamicLayer

_MIN_SPARE_COLUMNS = 32
"""Spare columns, at least; a quarter of those in use if that is more. So both growing and waste are rare."""


def preallocated_cache(config: PretrainedConfig) -> DynamicCache:
    """Return transformers' cache for this configuration, with layers that grow in place instead of concatenating."""
    cache = DynamicCache(config=config)
    cache.layers = [PreallocatedLayer() if type(layer) is DynamicLayer else layer for layer in cache.layers]
    return cache


class PreallocatedLayer(DynamicLayer):
    """`keys` and `values` [B, E, S, D] are the first columns of larger tensors. Without gradient only.

    `batch_select_indices` removes and repeats rows, `crop` removes the last columns; nothing else changes used columns.
    """

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]  # transformers leaves it untyped
        self._buffers: tuple[Tensor, Tensor] | None = None
        """[B, E, C, D] of keys and of values; None: there are no spare columns."""

    def update(self, key_states: Tensor, value_states: Tensor, *_: Any, **__: Any) -> tuple[Tensor, Tensor]:
        """Append the new columns; return all keys and values as views, which the next call does not change."""
        if not self.is_initialized:
            self.lazy_initialization(key_states, value_states)
        start = self.get_seq_length()
        end = start + key_states.shape[2]
        if self._buffers is None or end > self._buffers[0].shape[2]:
            num_columns = end + max(_MIN_SPARE_COLUMNS, end // 4)
            self._buffers = _buffer(self.keys, key_states, num_columns), _buffer(self.values, value_states, num_columns)
        keys, values = self._buffers
        keys.narrow(2, start, end - start).copy_(key_states)
        values.narrow(2, start, end - start).copy_(value_states)
        self.keys, self.values = keys.narrow(2, 0, end), values.narrow(2, 0, end)
        return self.keys, self.values

    def batch_select_indices(self, indices: Tensor) -> None:
        """Keep these rows, some perhaps more than once. They are copied, without spare columns."""
        super().batch_select_indices(indices)
        self._buffers = None


def _buffer(used: Tensor | None, new: Tensor, num_columns: int) -> Tensor:
    """Return [B, E, C, D], with the columns in use in their places."""
    buffer = torch.empty((*new.shape[:2], num_columns, new.shape[3]), dtype=new.dtype, device=new.device)
    if used is not None and used.numel():
        buffer[:, :, : used.shape[2]] = used
    return buffer
