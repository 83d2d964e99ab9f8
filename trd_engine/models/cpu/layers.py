"""Linear layers and RMS norms as a CPU trains them in fp32: the same values, in fewer passes over memory.

- Linear: forward and backward through oneDNN, where the processor is not by the maker of MKL, which PyTorch calls.
- RMS norm: the gradient in closed form by layer norm's kernel, instead of one pass an operation.

Owns both, and which layers they may stand in for; a layer that is not known exactly is left alone. An accelerator's
layers, other dtypes and autocast keep PyTorch's and the model's own. Figures: docs/numerics.md.

Legend: T rows, I and O sizes of a linear layer, H of a norm.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.func import functional_call
from torch.nn.functional import linear

from trd_engine.models.cpu.onednn import OneDnn, has_plain_weight, onednn
from trd_engine.runtime.hardware import suits_mkl

_EPSILON_NAMES = ("variance_epsilon", "eps")
_PROBE_SCALES = (1e-3, 1.0)
"""Of the rows that a norm is tried with; the small one tells where epsilon stands."""
_PROBE_TOLERANCE = 1e-5


@contextmanager
def cpu_layers(*models: nn.Module) -> Iterator[None]:
    """Within it, the models' layers that have whole fp32 weights on a CPU compute as the file's head says.

    Values and gradients differ from the usual ones by rounding, and have no second derivative. The backward pass
    belongs within the block too: checkpointed layers compute there once more.
    """
    modules = {module for model in models for module in model.modules()}
    swapped = [(module, found) for module in modules if (found := _forward_for(module)) is not None]
    for module, forward in swapped:
        module.forward = forward
    try:
        yield
    finally:
        for module, _ in swapped:
            del module.forward  # the class's own again


def _forward_for(module: nn.Module) -> Callable[[Tensor], Tensor] | None:
    if not has_plain_weight(module):
        return None
    if type(module) is nn.Linear:
        library = None if suits_mkl() else onednn()
        return _LinearForward(module, library) if library is not None else None
    return _NormForward(module) if _is_rms_norm(module) else None


# -- linear ----------------------------------------------------------------------------------------


class _LinearForward:
    """A linear layer's forward."""

    def __init__(self, layer: nn.Linear, library: OneDnn) -> None:
        self._layer = layer
        self._library = library

    def __call__(self, rows: Tensor) -> Tensor:
        layer = self._layer
        if rows.dtype != torch.float32 or torch.is_autocast_enabled("cpu") or rows.numel() == 0:
            return linear(rows, layer.weight, layer.bias)
        rows_TI = rows.reshape(-1, layer.in_features)
        result_TO: Tensor = _Linear.apply(rows_TI, layer.weight, layer.bias, self._library)  # type: ignore[no-untyped-call]
        return result_TO.view(*rows.shape[:-1], layer.out_features)


class _Linear(torch.autograd.Function):
    """rows · weightᵀ + bias."""

    @staticmethod
    def forward(ctx: Any, rows_TI: Tensor, weight_OI: Tensor, bias_O: Tensor | None, library: OneDnn) -> Tensor:
        ctx.save_for_backward(rows_TI, weight_OI)
        ctx.library = library
        return library.multiply(rows_TI, weight_OI, bias_O)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_TO: Tensor) -> tuple[Tensor | None, Tensor | None, Tensor | None, None]:
        rows_TI, weight_OI = ctx.saved_tensors
        multiply = ctx.library.multiply
        wants_rows, wants_weight, wants_bias, _ = ctx.needs_input_grad
        return (
            multiply(grad_TO, weight_OI.t()) if wants_rows else None,
            multiply(grad_TO.t(), rows_TI.t()) if wants_weight else None,
            grad_TO.sum(0) if wants_bias else None,
            None,
        )


# -- RMS norm --------------------------------------------------------------------------------------


_is_known: WeakKeyDictionary[nn.Module, bool] = WeakKeyDictionary()


def _is_rms_norm(module: nn.Module) -> bool:
    """Whether the module is weight · x / rms(x), found out by trying once, with a weight of the trial's own."""
    if module not in _is_known:
        names = [name for name, _ in module.named_parameters()]
        has_shape = names == ["weight"] and module.get_parameter("weight").ndim == 1
        _is_known[module] = has_shape and _epsilon(module) is not None and _agrees(module)
    return _is_known[module]


def _epsilon(module: nn.Module) -> float | None:
    found = [getattr(module, name) for name in _EPSILON_NAMES if isinstance(getattr(module, name, None), float)]
    return found[0] if found else None


@torch.no_grad()
def _agrees(module: nn.Module) -> bool:
    (weight_H,) = module.parameters()
    epsilon = _epsilon(module)
    assert epsilon is not None
    # Not random numbers: a run's own are left as they are.
    ramp_H = torch.linspace(-1.0, 2.0, weight_H.numel())
    rows_TH = torch.stack([scale * (ramp_H * 3).sin() for scale in _PROBE_SCALES])
    try:
        found_TH = functional_call(module, {"weight": ramp_H}, (rows_TH,))
    except (TypeError, ValueError, RuntimeError, AttributeError):
        return False  # not a layer of one tensor
    if not isinstance(found_TH, Tensor) or found_TH.shape != rows_TH.shape:
        return False
    expected_TH = rows_TH * _inverse_rms(rows_TH, epsilon) * ramp_H
    return torch.allclose(found_TH, expected_TH, rtol=_PROBE_TOLERANCE, atol=0.0)


def _inverse_rms(rows_TH: Tensor, epsilon: float) -> Tensor:
    return torch.rsqrt(rows_TH.pow(2).mean(-1, keepdim=True) + epsilon)


class _NormForward:
    """An RMS norm's forward."""

    def __init__(self, module: nn.Module) -> None:
        self._module = module
        self._epsilon = _epsilon(module)

    def __call__(self, rows: Tensor) -> Tensor:
        module = self._module
        if rows.dtype != torch.float32 or not torch.is_grad_enabled():
            own: Tensor = type(module).forward(module, rows)
            return own
        result: Tensor = _RmsNorm.apply(rows, module.weight, self._epsilon)  # type: ignore[no-untyped-call]
        return result


class _RmsNorm(torch.autograd.Function):
    """y = w · x̂ with x̂ = x / rms(x): ∂x = (g w − x̂ mean(g w x̂)) / rms, ∂w = Σ g x̂ over the rows.

    Layer norm's gradient is (g w − mean(g w) − x̂ mean(g w x̂)) / σ with x̂ = (x − μ) / σ. At μ = 0 and σ = rms its
    kernel gives all but mean(g w) / rms, which is added back.
    """

    @staticmethod
    def forward(ctx: Any, rows: Tensor, weight_H: Tensor, epsilon: float) -> Tensor:
        inverse_rms = _inverse_rms(rows, epsilon)
        ctx.save_for_backward(rows, weight_H, inverse_rms)
        return (rows * inverse_rms).mul_(weight_H)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, Tensor | None, None]:
        rows, weight_H, inverse_rms = ctx.saved_tensors
        wants_rows, wants_weight, _ = ctx.needs_input_grad
        grad = grad.contiguous()
        grad_rows, grad_weight_H, _ = torch.ops.aten.native_layer_norm_backward(
            grad,
            rows,
            weight_H.shape,
            torch.zeros_like(inverse_rms),
            inverse_rms,
            weight_H,
            None,
            [wants_rows, wants_weight, False],
        )
        if wants_rows:
            sums_T = torch.mv(grad.view(-1, len(weight_H)), weight_H)
            grad_rows.add_(sums_T.view_as(inverse_rms).mul_(inverse_rms).div_(len(weight_H)))
        return grad_rows, grad_weight_H, None
