"""oneDNN's products of fp32 matrices on a CPU, which PyTorch carries beside the BLAS library that it calls.

`torch.compile` makes them of linear layers; they have no public name. This file owns their names, and which layers
they may stand in for. Legend: T rows, I and O sizes of a linear layer.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn


class OneDnn(NamedTuple):
    """The two operators."""

    product: Callable[..., Any]
    reorder: Callable[..., Any]
    """A copy of a weight in an order of oneDNN's own, for so many rows."""

    def multiply(self, rows_TI: Tensor, weight_OI: Tensor, bias_O: Tensor | None = None) -> Tensor:
        """Rows · weightᵀ + bias, [T, O]; the weight in the usual order or in that of `reorder`."""
        result_TO: Tensor = self.product(rows_TI, weight_OI, bias_O, "none", [], "")
        return result_TO


def onednn() -> OneDnn | None:
    """None where this PyTorch has no oneDNN, or it is switched off."""
    if not torch.backends.mkldnn.is_available() or not torch.backends.mkldnn.enabled:
        return None
    operators = torch.ops.mkldnn
    product, reorder = (getattr(operators, name, None) for name in ("_linear_pointwise", "_reorder_linear_weight"))
    return OneDnn(product, reorder) if product is not None and reorder is not None else None


def has_plain_weight(module: nn.Module) -> bool:
    """Whether the module has a whole fp32 weight on a CPU, and its class's forward.

    A weight of another type than a parameter is one that comes and goes, such as a sharded one.
    """
    weight = getattr(module, "weight", None)
    is_plain = type(weight) is nn.Parameter and weight.device.type == "cpu" and weight.dtype == torch.float32
    return is_plain and "forward" not in vars(module)
