"""Linear layers for few rows on a CPU, for which PyTorch's own product reads the weights slower than memory allows.

A decoding step multiplies a handful of rows with every weight, so it takes as long as reading the weights. For fp32,
PyTorch calls its BLAS library, which takes up to twice as long as oneDNN on processors that it was not made for.
PyTorch carries oneDNN too, which has its own order of a matrix in memory. For one or two rows the BLAS library is
faster if it computes W·xᵀ. The adapter of a LoRA layer is added to the reordered copy. This file owns the choice
between the libraries, and the copies, which live as long as the block that uses them. Figures: docs/numerics.md.

Legend: B rows, I and O sizes of a layer, P sizes of layers side by side.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from typing import Any, NamedTuple, TypeGuard

import torch
from peft.tuners.lora import Linear as LoraLinear
from torch import Tensor, nn
from torch.nn.functional import linear

Layer = nn.Linear | LoraLinear

MAX_ROWS = 64
"""With more rows both libraries are bound by arithmetic and equally fast."""
REORDER_AFTER = 8
"""Calls of a layer. By then it has lost as much time as reordering its weight takes."""
MIN_REORDER_ROWS = 3
"""With fewer, a product that needs no second copy of the weights is as fast."""
_EXPECTED_ROWS = 64
"""Rows that the order is made for. For fewer it is as fast as the order for 8, and made in half the time."""


class OneDnn(NamedTuple):
    """oneDNN's operators for fp32 matrices, which `torch.compile` uses and which have no public name."""

    product: Callable[..., Any]
    reorder: Callable[..., Any]
    """Copies a weight into oneDNN's own order, for a number of rows."""

    def multiply(self, rows_BI: Tensor, weight_OI: Tensor, bias_O: Tensor | None = None) -> Tensor:
        """Return rows · weightᵀ + bias, [B, O]; the weight in the usual order or in that of `reorder`."""
        result_BO: Tensor = self.product(rows_BI, weight_OI, bias_O, "none", [], "")
        return result_BO


def _onednn() -> OneDnn | None:
    """Return None if this PyTorch has no oneDNN, or it is switched off."""
    if not torch.backends.mkldnn.is_available() or not torch.backends.mkldnn.enabled:
        return None
    operators = torch.ops.mkldnn
    product, reorder = (getattr(operators, name, None) for name in ("_linear_pointwise", "_reorder_linear_weight"))
    return OneDnn(product, reorder) if product is not None and reorder is not None else None


@contextmanager
def skinny_products(model: nn.Module) -> Iterator[None]:
    """Within the block, let linear layers with fp32 weights on a CPU, and plain LoRA layers around such, use oneDNN.

    This holds for few rows and without gradient; weights and active adapters must not change within the block. Values
    differ from the usual ones by rounding. A layer whose forward is not PyTorch's own is left as it is, and so are all
    of them if PyTorch has no oneDNN.
    """
    library = _onednn()
    layers = [] if library is None else [layer for layer in called_modules(model, _is_served) if _is_served(layer)]
    layers = list(dict.fromkeys(layers))  # some models call a layer in several places
    for layer in layers:
        layer.forward = _SkinnyForward(layer, library)  # type: ignore[arg-type]
    try:
        yield
    finally:
        for layer in layers:
            del layer.forward  # the class's own again


def _is_served(layer: nn.Module) -> bool:
    if _is_plain_lora(layer):
        parts = [part for part in layer.modules() if isinstance(part, nn.Linear)]
        return "forward" not in vars(layer) and all(map(_is_plain_linear, parts))
    return _is_plain_linear(layer)


def _is_plain_linear(layer: nn.Module) -> bool:
    """Return whether this is PyTorch's linear layer, with an fp32 weight on a CPU that is not sharded."""
    if type(layer) is not nn.Linear or "forward" in vars(layer):
        return False
    weight = layer.weight
    return type(weight) is nn.Parameter and weight.device.type == "cpu" and weight.dtype == torch.float32


def _is_plain_lora(layer: nn.Module) -> TypeGuard[LoraLinear]:
    """Return whether the layer is W x + b + Σ s B A x over its active adapters: no dropout, and no variant of LoRA."""
    return (
        type(layer) is LoraLinear
        and type(layer.get_base_layer()) is nn.Linear
        and not layer.training
        and not layer.merged
        and not layer.lora_variant
        and not any(layer.lora_bias.values())
    )


def called_modules(module: nn.Module, is_whole: Callable[[nn.Module], bool]) -> Iterator[nn.Module]:
    """Yield the module and all modules below it, except those inside one for which `is_whole` holds."""
    yield module
    if not is_whole(module):
        for child in module.children():
            yield from called_modules(child, is_whole)


def has_skinny_products(layer: nn.Module) -> bool:
    """Return whether the layer is used within a block of `skinny_products`."""
    return isinstance(vars(layer).get("forward"), _SkinnyForward)


def joint_product(layers: Sequence[Layer]) -> SkinnyProduct:
    """Return one product for layers that read the same rows, have skinny products, and all have a bias or none.

    For a single layer it is the product that the layer has already, with its copy of the weights.
    """
    forwards = [vars(layer)["forward"] for layer in layers]
    return forwards[0].product if len(layers) == 1 else SkinnyProduct(layers, forwards[0].product.library)


class _SkinnyForward:
    """A linear layer's forward: the usual one if there are many rows, a gradient, or another precision."""

    def __init__(self, layer: Layer, library: OneDnn) -> None:
        self._usual: Callable[[Tensor], Tensor] = partial(type(layer).forward, layer)  # type: ignore[arg-type]
        self.product = SkinnyProduct([layer], library)

    def __call__(self, rows: Tensor) -> Tensor:
        num_rows = rows.numel() // rows.shape[-1]
        is_skinny = 0 < num_rows <= MAX_ROWS and rows.dtype == torch.float32
        if not is_skinny or torch.is_autocast_enabled("cpu") or torch.is_grad_enabled():
            return self._usual(rows)
        result_BO = self.product(rows.reshape(num_rows, -1))
        return result_BO.view(*rows.shape[:-1], -1)


class SkinnyProduct:
    """Rows times the weights of some layers; after some calls as one product in oneDNN's order."""

    def __init__(self, layers: Sequence[Layer], library: OneDnn) -> None:
        self.library = library
        self._layers = layers
        self._joint_weight_PI: Tensor | None = None
        self._joint_bias_P: Tensor | None = None
        self._num_calls = 0

    def __call__(self, rows_BI: Tensor) -> Tensor:
        """Return [B, P] of one fp32 row or more [B, I], the layers' results side by side, contiguous."""
        num_rows = rows_BI.shape[0]
        if num_rows > MAX_ROWS:
            return self._each(rows_BI, lambda base: linear(rows_BI, base.weight, base.bias))
        if num_rows < MIN_REORDER_ROWS:
            return self._each(rows_BI, lambda base: _weights_first(base, rows_BI))
        self._num_calls += 1
        if self._num_calls == REORDER_AFTER:
            self._reorder()
        if self._joint_weight_PI is None:
            return self._each(rows_BI, lambda base: self.library.multiply(rows_BI, base.weight, base.bias))
        return self.library.multiply(rows_BI, self._joint_weight_PI, self._joint_bias_P)

    def _each(self, rows_BI: Tensor, product: Callable[[nn.Linear], Tensor]) -> Tensor:
        """Return the results of a product with the weights of each base layer."""
        results = []
        for layer in self._layers:
            result_BO = product(_base(layer))
            results.append(_add_adapters(layer, rows_BI, result_BO) if isinstance(layer, LoraLinear) else result_BO)
        return results[0] if len(results) == 1 else torch.cat(results, dim=-1)

    def _reorder(self) -> None:
        weights = [_merged_weight(layer) if isinstance(layer, LoraLinear) else layer.weight for layer in self._layers]
        biases: list[Tensor] = [_base(layer).bias for layer in self._layers]
        is_single = len(weights) == 1
        self._joint_weight_PI = self.library.reorder(weights[0] if is_single else torch.cat(weights), _EXPECTED_ROWS)
        self._joint_bias_P = biases[0] if is_single or biases[0] is None else torch.cat(biases)


def _base(layer: Layer) -> nn.Linear:
    base = layer.get_base_layer() if isinstance(layer, LoraLinear) else layer
    assert isinstance(base, nn.Linear)
    return base


def _weights_first(layer: nn.Linear, rows_BI: Tensor) -> Tensor:
    """Return [B, O] for one or two rows. A single row is doubled: the library is slower for one vector."""
    two_BI = rows_BI if rows_BI.shape[0] == 2 else torch.cat([rows_BI, rows_BI])
    # Contiguous: what is computed from it keeps its strides, and the next product would be of a matrix in other order.
    result_BO = torch.mm(layer.weight, two_BI.t()).t()[: rows_BI.shape[0]].contiguous()
    return result_BO if layer.bias is None else result_BO + layer.bias


def _add_adapters(layer: LoraLinear, rows_BI: Tensor, base_BO: Tensor) -> Tensor:
    """Return the output of a plain LoRA layer for `rows_BI`, for which its base layer returns `base_BO`."""
    result_BO = base_BO
    for name in _active_adapters(layer):
        result_BO = result_BO + layer.lora_B[name](layer.lora_A[name](rows_BI)) * layer.scaling[name]
    return result_BO


def _merged_weight(layer: LoraLinear) -> Tensor:
    """Return the weight [O, I] with the active adapters added; without any, the layer's own tensor and no copy."""
    weight_OI = layer.get_base_layer().get_parameter("weight").detach()
    for name in _active_adapters(layer):
        weight_OI = weight_OI + layer.get_delta_weight(name)
    return weight_OI


def _active_adapters(layer: LoraLinear) -> list[str]:
    return [] if layer.disable_adapters else [name for name in layer.active_adapters if name in layer.lora_A]
