"""The next token's logits of a Llama-shaped decoder on a CPU, in as few operations as possible.

Decoding a token with a small model spends half of its time between the products: in modules, small operations and
checks. This forward joins the products that read the same rows, and does little else. It owns the families that it
knows (`_FAMILIES`), whose layers are norm, attention with rotary positions, norm, gated feed-forward; it is used only
after its logits have matched those of the model's own forward. `lean_decoder` refuses other families, adapters other
than plain LoRA, weights that are not fp32 on a CPU, autocast, modules with hooks or a changed forward, and
`can_write_to` refuses caches of other layers than `PreallocatedLayer`.

Legend: B rows, H hidden size, S columns with the new one, V vocabulary; A query heads, E key-value heads, D of a head,
R = D / 2.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, cast

import torch
from peft import PeftModel
from peft.tuners.lora import LoraLayer
from torch import Tensor, nn
from torch.linalg import vector_norm
from transformers import DynamicCache

from trd_engine.generation.hf.kv_cache import PreallocatedLayer
from trd_engine.generation.hf.small_batch_linear import (
    SkinnyProduct,
    called_modules,
    has_skinny_products,
    joint_product,
)
from trd_engine.models.attention.decoding import shared_heads
from trd_engine.models.loading import causal_lm_of

_FAMILIES = {"LlamaForCausalLM", "MistralForCausalLM", "Qwen2ForCausalLM", "Qwen3ForCausalLM"}
_TOLERANCE = 1e-4
"""Relative to the largest logit: ten times the effect of rounding."""


def lean_decoder(model: nn.Module) -> LeanDecoder | None:
    """Return the decoder of a model within its block of `skinny_products`; None if it is not supported."""
    decoder = causal_lm_of(model) if isinstance(model, PeftModel) else model
    is_known = type(decoder).__name__ in _FAMILIES and type(decoder).__module__.startswith("transformers.models.")
    if not is_known or torch.is_autocast_enabled("cpu"):
        return None
    is_served = all(_is_plain(module) for module in called_modules(decoder, has_skinny_products)) and all(
        weight.dtype == torch.float32 and weight.device.type == "cpu" for weight in decoder.parameters()
    )
    return LeanDecoder(decoder) if is_served else None


def _is_plain(module: nn.Module) -> bool:
    """Return whether calling the module runs its class's forward, or for a linear layer its skinny product."""
    if isinstance(module, nn.Linear | LoraLayer) and not has_skinny_products(module):
        return False
    is_own = "forward" not in vars(module) or has_skinny_products(module)
    return is_own and not module._forward_hooks and not module._forward_pre_hooks


class LeanDecoder:
    """A model's forward for one new token per row, with the model's weights, in the block of its skinny products."""

    def __init__(self, model: Any) -> None:
        self._embedding = model.model.embed_tokens
        self._rotary = model.model.rotary_emb
        self._layers = [_Layer.of(layer) for layer in model.model.layers]
        self._norm = _Norm.of(model.model.norm)
        self._head = joint_product([model.lm_head])
        self.is_alike: bool | None = None
        """Whether its logits match those of the model; None: not compared yet."""

    def compare(self, found_BV: Tensor, expected_BV: Tensor) -> None:
        """Compare its logits with those of the model's forward after the same tokens."""
        largest_difference = (found_BV - expected_BV).abs().max()
        self.is_alike = bool(largest_difference <= _TOLERANCE * expected_BV.abs().max())

    def __call__(self, ids_B: Tensor, positions_B: Tensor, mask_BS: Tensor, cache: DynamicCache) -> Tensor:
        """Return logits [B, V] after the tokens `ids_B`, and append their keys and values to the cache.

        `mask_BS`: 1 if a column is a token of the row, the new column included.
        """
        hidden_BH = self._embedding(ids_B)
        mask_B11S = torch.zeros(mask_BS.shape).masked_fill_(mask_BS == 0, -torch.inf)[:, None, None]
        turn = _Turn.of(*self._rotary(hidden_BH[:, None], positions_B[:, None]))
        for layer, columns in zip(self._layers, cast(list[PreallocatedLayer], cache.layers), strict=True):
            layer.add_to(hidden_BH, turn, mask_B11S, columns)
        return self._head(self._norm(hidden_BH))


def can_write_to(cache: DynamicCache) -> bool:
    """Return whether every layer of the cache keeps all columns, as the lean forward requires."""
    return all(type(layer) is PreallocatedLayer for layer in cache.layers)


@dataclass(frozen=True, slots=True)
class _Norm:
    """x·w / sqrt(mean(x²) + ε) as x / sqrt(Σx² + nε) · w·sqrt(n) for n values: half the operations of PyTorch's own."""

    scaled_weight: Tensor
    floor: Tensor

    @classmethod
    def of(cls, norm: Any) -> _Norm:
        size = norm.weight.shape[0]
        return cls(norm.weight * size**0.5, torch.tensor((size * norm.variance_epsilon) ** 0.5))

    def __call__(self, rows: Tensor) -> Tensor:
        length: Tensor = vector_norm(rows, dim=-1, keepdim=True)
        return (rows / length.hypot(self.floor)).mul_(self.scaled_weight)


@dataclass(frozen=True, slots=True)
class _Turn:
    """A rotation of heads by their positions; the halves of a head are the two coordinates."""

    cos_B12R: Tensor
    sin_B12R: Tensor
    """Sines with the sign of each half."""

    @classmethod
    def of(cls, cos_B1D: Tensor, sin_B1D: Tensor) -> _Turn:
        cos_B12R, sin_B12R = (values.unflatten(-1, (2, -1)) for values in (cos_B1D, sin_B1D))
        return cls(cos_B12R, torch.stack([-sin_B12R[:, :, 0], sin_B12R[:, :, 1]], dim=2))

    def __call__(self, heads: Tensor) -> Tensor:
        """Return [B, any number of heads, D], contiguous."""
        halves = heads.view(*heads.shape[:2], 2, -1)
        return torch.addcmul(halves * self.cos_B12R, halves.flip(2), self.sin_B12R).flatten(2)


@dataclass(frozen=True, slots=True)
class _Layer:
    attention_norm: _Norm
    query_key_value: SkinnyProduct
    head_norms: tuple[_Norm, _Norm] | None
    """Norms of queries and of keys."""
    num_heads: tuple[int, int]
    """A and E."""
    head_size: int
    scaling: float
    attention_output: SkinnyProduct
    feed_forward_norm: _Norm
    gate_up: SkinnyProduct
    activation: nn.Module
    down: SkinnyProduct

    @classmethod
    def of(cls, layer: Any) -> _Layer:
        attention, mlp, size = layer.self_attn, layer.mlp, layer.self_attn.head_dim
        return cls(
            _Norm.of(layer.input_layernorm),
            joint_product([attention.q_proj, attention.k_proj, attention.v_proj]),
            (_Norm.of(attention.q_norm), _Norm.of(attention.k_norm)) if hasattr(attention, "q_norm") else None,
            (attention.q_proj.out_features // size, attention.k_proj.out_features // size),
            size,
            attention.scaling,
            joint_product([attention.o_proj]),
            _Norm.of(layer.post_attention_layernorm),
            joint_product([mlp.gate_proj, mlp.up_proj]),
            mlp.act_fn,
            joint_product([mlp.down_proj]),
        )

    def add_to(self, hidden_BH: Tensor, turn: _Turn, mask_B11S: Tensor, columns: PreallocatedLayer) -> None:
        """Add the results of attention and then of the feed-forward to `hidden_BH`, in place."""
        hidden_BH += self._attend(self.attention_norm(hidden_BH), turn, mask_B11S, columns)
        gate, up = self.gate_up(self.feed_forward_norm(hidden_BH)).chunk(2, dim=-1)
        hidden_BH += self.down(self.activation(gate).mul_(up))

    def _attend(self, rows_BH: Tensor, turn: _Turn, mask_B11S: Tensor, columns: PreallocatedLayer) -> Tensor:
        num_query, num_key = self.num_heads
        heads = self.query_key_value(rows_BH).view(len(rows_BH), -1, self.head_size)
        turned = heads[:, : num_query + num_key]
        if self.head_norms is not None:
            query_norm, key_norm = self.head_norms
            turned = torch.cat([query_norm(turned[:, :num_query]), key_norm(turned[:, num_query:])], dim=1)
        turned = turn(turned)[:, :, None]
        key_BESD, value_BESD = columns.update(turned[:, num_query:], heads[:, num_query + num_key :, None])
        attended = shared_heads(turned[:, :num_query], key_BESD, value_BESD, mask_B11S, scaling=self.scaling)
        return self.attention_output(attended.flatten(1))
