"""The cache that grows in place holds what transformers' own holds."""

from __future__ import annotations

import torch
from transformers import DynamicCache, MistralConfig, Qwen3Config
from transformers.cache_utils import DynamicSlidingWindowLayer

from trd_engine.generation.hf.kv_cache import PreallocatedLayer, preallocated_cache

CONFIG = Qwen3Config(num_hidden_layers=2)


def test_values_are_those_of_transformers_cache() -> None:
    """Over several growths, and with rows that leave."""
    generator = torch.Generator().manual_seed(0)
    caches = [DynamicCache(config=CONFIG), preallocated_cache(CONFIG)]
    num_rows = 4
    for step in range(120):
        new = [torch.randn(num_rows, 2, 7 if step == 0 else 1, 8, generator=generator) for _ in range(4)]
        for layer in (0, 1):
            found = [cache.update(*new[2 * layer : 2 * layer + 2], layer) for cache in caches]
            for expected, ours in zip(*found, strict=True):
                assert torch.equal(expected, ours)
        assert caches[0].get_seq_length() == caches[1].get_seq_length() == 7 + step
        if step in (50, 51, 90):
            num_rows -= 1
            for cache in caches:
                cache.batch_select_indices(torch.arange(num_rows))


def test_a_token_copies_nothing_of_the_others() -> None:
    layer = PreallocatedLayer()
    column = torch.ones(2, 1, 1, 4)
    places = {layer.update(column, column)[0].data_ptr() for _ in range(30)}
    assert len(places) == 1


def test_sliding_windows_stay_transformers_own() -> None:
    cache = preallocated_cache(MistralConfig(num_hidden_layers=2, sliding_window=8))
    assert [type(layer) for layer in cache.layers] == [DynamicSlidingWindowLayer] * 2
