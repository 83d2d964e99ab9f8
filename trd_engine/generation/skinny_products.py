"""Linear layers for few rows on a CPU, where PyTorch's own product does not read the weights as fast as memory could.

A decoding step multiplies a handful of rows with every weight, and takes as long as the weights take to be read.
For fp32 PyTorch calls its BLAS library, which on processors that it was not made for takes up to twice as long as
oneDNN, which PyTorch carries too and which has its own order of a matrix in memory. For one row or two the library is
the faster one, where it is asked for W·xᵀ. This file owns the choice between them and the reordered copies, which live
as long as the block in which they are used. Figures: docs/numerics.md.

Legend: B rows, I and O sizes of a layer.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn.functional import linear

MAX_ROWS = 64
"""Beyond, both libraries are bound by arithmetic, and are alike."""
REORDER_AFTER = 16
"""Calls. Reordering a layer costs as much as a dozen of its products."""
MIN_REORDER_ROWS = 3
"""With fewer, a product that needs no second copy of the weights is as fast."""
_EXPECTED_ROWS = 8
"""What the order is made for; it serves other numbers nearly as well."""


class _OneDnn(NamedTuple):
    product: Callable[..., Any]
    reorder: Callable[..., Any]


@contextmanager
def skinny_products(model: nn.Module) -> Iterator[None]:
    """Within it, linear layers of `model` that have fp32 weights on a CPU multiply few rows by oneDNN.

    Without gradient only, and the weights must stay as they are. Values differ from the usual ones by rounding.
    Nothing changes where PyTorch has no oneDNN or a layer's forward is not PyTorch's own.
    """
    library = _library()
    layers = [layer for layer in model.modules() if isinstance(layer, nn.Linear) and _is_eligible(layer)]
    if library is None:
        layers = []
    for layer in layers:
        layer.forward = _SkinnyForward(layer, library)  # type: ignore[assignment, arg-type]
    try:
        yield
    finally:
        for layer in layers:
            del layer.forward  # the class's own again


def _is_eligible(layer: nn.Linear) -> bool:
    # A weight of another type is one that comes and goes, such as a sharded one.
    is_plain = type(layer) is nn.Linear and type(layer.weight) is nn.Parameter and "forward" not in vars(layer)
    return is_plain and layer.weight.device.type == "cpu" and layer.weight.dtype == torch.float32


def _library() -> _OneDnn | None:
    """What `torch.compile` makes of a linear layer on a CPU; it has no public name."""
    if not torch.backends.mkldnn.is_available() or not torch.backends.mkldnn.enabled:
        return None
    operators = torch.ops.mkldnn
    product, reorder = (getattr(operators, name, None) for name in ("_linear_pointwise", "_reorder_linear_weight"))
    return _OneDnn(product, reorder) if product is not None and reorder is not None else None


class _SkinnyForward:
    """A linear layer's forward, with its weights in oneDNN's order once it has been called often."""

    def __init__(self, layer: nn.Linear, library: _OneDnn) -> None:
        self._layer = layer
        self._library = library
        self._weight_OI: Tensor = layer.weight
        self._num_calls = 0

    def __call__(self, rows: Tensor) -> Tensor:
        layer = self._layer
        num_rows = rows.numel() // layer.in_features
        is_skinny = 0 < num_rows <= MAX_ROWS and rows.dtype == torch.float32
        if not is_skinny or torch.is_autocast_enabled("cpu") or torch.is_grad_enabled():
            return linear(rows, layer.weight, layer.bias)
        self._num_calls += num_rows >= MIN_REORDER_ROWS
        if self._num_calls >= REORDER_AFTER and self._weight_OI is layer.weight:
            self._weight_OI = self._library.reorder(layer.weight, _EXPECTED_ROWS)
        rows_BI = rows.reshape(num_rows, layer.in_features)
        if num_rows < MIN_REORDER_ROWS:
            result_BO = _weights_first(layer, rows_BI)
        else:
            result_BO = self._library.product(rows_BI, self._weight_OI, layer.bias, "none", [], "")
        return result_BO.view(*rows.shape[:-1], layer.out_features)


def _weights_first(layer: nn.Linear, rows_BI: Tensor) -> Tensor:
    """[B, O] of one row or two. The library's product of a matrix and a single vector is the slower one."""
    two_BI = rows_BI if rows_BI.shape[0] == 2 else torch.cat([rows_BI, rows_BI])
    # Contiguous: what is computed from it keeps its strides, and the next product would be of a matrix in other order.
    result_BO = torch.mm(layer.weight, two_BI.t()).t()[: rows_BI.shape[0]].contiguous()
    return result_BO if layer.bias is None else result_BO + layer.bias
