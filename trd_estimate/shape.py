"""How large a model is, by its config.json alone: no weights are read.

Knows the decoders whose layers are attention (q, k, v, o) and a gated MLP, which is Llama's and Qwen's family. A
mixture of experts, or a configuration that lacks a size, has no shape here.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

_MAX_SIZE = 2**31
"""Largest size in a configuration; a larger one is a mistake, and its products would not fit a JSON number."""
_EXPERTS = ("num_experts", "num_local_experts", "n_routed_experts")


@dataclass(frozen=True)
class ModelShape:
    """The sizes that memory and time depend on."""

    num_layers: int
    hidden: int
    intermediate: int
    query_width: int
    """Attention heads × head dimension."""
    key_width: int
    """Key and value heads × head dimension."""
    vocabulary: int
    is_tied: bool
    """Embedding and output head are one matrix."""

    @property
    def num_layer_parameters(self) -> int:
        """Matrices and both norms of one layer; biases and norms of queries and keys, under 0.1 %, are left out."""
        attention = 2 * self.hidden * (self.query_width + self.key_width)
        return attention + 3 * self.hidden * self.intermediate + 2 * self.hidden

    @property
    def num_root_parameters(self) -> int:
        """Embedding, head and the last norm."""
        return self.vocabulary * self.hidden * (1 if self.is_tied else 2) + self.hidden

    @property
    def num_parameters(self) -> int:
        """All of them."""
        return self.num_layers * self.num_layer_parameters + self.num_root_parameters

    def kv_bytes(self, width: int) -> int:
        """Return the bytes of keys and values of one token in all layers, at `width` bytes a value."""
        return 2 * self.num_layers * self.key_width * width

    def forward_flops(self, num_tokens: float) -> float:
        """Return the operations of a forward pass over one sequence: two a weight and token, and causal attention."""
        products = 2 * (self.num_layers * self.num_layer_parameters + self.vocabulary * self.hidden) * num_tokens
        return products + 2 * self.num_layers * self.query_width * num_tokens**2

    def num_adapter_parameters(self, rank: int, targets: tuple[str, ...] | None) -> int:
        """Count LoRA's A and B on the named linear layers of each decoder layer; None: on all seven."""
        widths = {
            "q_proj": self.hidden + self.query_width,
            "k_proj": self.hidden + self.key_width,
            "v_proj": self.hidden + self.key_width,
            "o_proj": self.query_width + self.hidden,
            "gate_proj": self.hidden + self.intermediate,
            "up_proj": self.hidden + self.intermediate,
            "down_proj": self.intermediate + self.hidden,
        }
        return self.num_layers * rank * sum(widths.get(name, 0) for name in targets or widths)


def shape_of(config: Mapping[str, Any]) -> ModelShape | None:
    """Return the shape of a model with this configuration; None if a size is missing."""
    names = ("num_hidden_layers", "hidden_size", "intermediate_size", "num_attention_heads", "vocab_size")
    sizes = [config.get(name) for name in names]
    sizes += [config.get("head_dim") or 1, config.get("num_key_value_heads") or 1]
    if not all(type(size) is int and 0 < size < _MAX_SIZE for size in sizes) or any(map(config.get, _EXPERTS)):
        return None
    layers, hidden, intermediate, heads, vocabulary = (int(size or 0) for size in sizes[:5])
    head_width = int(config.get("head_dim") or hidden // heads)
    key_heads = int(config.get("num_key_value_heads") or heads)
    is_tied = bool(config.get("tie_word_embeddings", False))
    return ModelShape(layers, hidden, intermediate, heads * head_width, key_heads * head_width, vocabulary, is_tied)
