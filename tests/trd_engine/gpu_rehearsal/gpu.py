"""A GPU for machines without one: tensors that say cuda:0, are computed on the CPU, and never mix with the CPU's.

Within `rehearsed_gpu` everything that is asked for on ``cuda`` is there, and code that a GPU would stop is stopped:
an operation between a tensor there and one here, a fused update whose step count is not on the device, NumPy on a
tensor of the device. Values are the CPU's, so that a run on it can be held against the same run on the CPU.

It shows nothing about speed, memory, kernels that PyTorch's CUDA build lacks for a dtype, nor NCCL and vLLM.
`load` of `device.py` must have been called before torch was imported.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from types import SimpleNamespace
from typing import Any
from unittest.mock import patch

import torch
import torch.nn.attention.varlen  # registers its operations
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode, return_and_correct_aliasing
from torch.utils._pytree import tree_leaves, tree_map

from tests.trd_engine.gpu_rehearsal.attention import varlen_attention, varlen_attention_gradient

GPU = torch.device("cuda", 0)
CPU = torch.device("cpu")

aten = torch.ops.aten
_MOVES = {aten._to_copy.default, aten.copy_.default}
_INDEXED = {aten.index.Tensor, aten.index_put.default, aten.index_put_.default, aten._unsafe_index.Tensor}
"""Their indices may be on the CPU, as on a real GPU."""
_ALL_ON_DEVICE = {aten.cat.default, aten.stack.default, aten._fused_adamw_.default, aten._fused_adam_.default}
"""They take no scalar tensor of the CPU either, which most operations do."""
_KERNELS: dict[Any, Callable[..., Any]] = {
    torch.ops.torch_attn._varlen_attn.default: varlen_attention,
    torch.ops.torch_attn._varlen_attn_backward.default: varlen_attention_gradient,
}
"""CUDA's alone; computed by their documented meaning."""


class MixedDevicesError(RuntimeError):
    """What a real GPU would have refused."""


class RehearsedTensor(Tensor):
    """A tensor on cuda:0 that holds a CPU's."""

    held: Tensor
    __torch_function__ = torch._C._disabled_torch_function_impl

    @staticmethod
    def __new__(cls, held: Tensor) -> RehearsedTensor:
        """Make a view with the layout of `held` and without memory."""
        made: RehearsedTensor = Tensor._make_wrapper_subclass(
            cls,
            held.size(),
            strides=held.stride(),
            storage_offset=held.storage_offset(),
            dtype=held.dtype,
            layout=held.layout,
            device=GPU,
        )
        made.held = held
        return made

    def tolist(self) -> Any:
        """Return the values, which PyTorch refuses for subclasses."""
        return _held(self.detach()).tolist()

    def untyped_storage(self) -> torch.UntypedStorage:
        """Return the memory of the tensor that it holds, which the end of a run frees."""
        return _held(self.detach()).untyped_storage()

    # nn.Module.to exchanges its parameters, which keeps tied ones tied, for tensors that have these two.
    def __tensor_flatten__(self) -> tuple[list[str], None]:
        return ["held"], None

    @staticmethod
    def __tensor_unflatten__(inner: dict[str, Tensor], _context: None, _size: Any, _stride: Any) -> RehearsedTensor:
        return RehearsedTensor(inner["held"])

    @classmethod
    def __torch_dispatch__(cls, func: Any, _types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return _compute(func, args, kwargs or {})


class _Rehearsal(TorchDispatchMode):
    """Sees every operation, those that make tensors too."""

    def __init__(self) -> None:
        super().__init__()
        self.kernel_calls: Counter[str] = Counter()

    def __torch_dispatch__(self, func: Any, _types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func in _KERNELS:
            self.kernel_calls[func._opname] += 1
        return _compute(func, args, kwargs or {})


@contextmanager
def rehearsed_gpu(capability: tuple[int, int] = (9, 0)) -> Iterator[Counter[str]]:
    """Within the block, make ``cuda`` a device of that compute capability; yield the number of calls of CUDA's own
    kernels."""
    mode = _Rehearsal()
    before = torch._C._only_lift_cpu_tensors()
    with ExitStack() as stack:
        for name, answer in _ANSWERS.items():
            stack.enter_context(patch.object(torch.cuda, name, answer))
        stack.enter_context(patch.object(torch.cuda, "get_device_capability", lambda _device=None: capability))
        for module in ("safetensors.torch", "transformers.pytorch_utils", "peft.utils.other"):
            for name in ("storage_ptr", "storage_size"):
                stack.enter_context(patch(f"{module}.{name}", _of_held(module, name)))
        # torch.tensor(..., device="cuda") makes the CPU's tensor first, and the move is seen by the mode.
        torch._C._set_only_lift_cpu_tensors(True)
        stack.callback(torch._C._set_only_lift_cpu_tensors, before)
        stack.enter_context(mode)
        yield mode.kernel_calls


_ANSWERS: dict[str, Callable[..., Any]] = {
    "_lazy_init": lambda: None,
    "is_available": lambda: True,
    "is_bf16_supported": lambda *_arguments, **_options: True,
    "current_device": lambda: 0,
    "set_device": lambda _device: None,
    "get_device_properties": lambda _device: SimpleNamespace(total_memory=79 * 2**30, name="NVIDIA H100 80GB HBM3"),
    "memory_allocated": lambda _device: 0,
}


def _of_held(module: str, name: str) -> Callable[[Tensor], Any]:
    """Return the function applied to the held tensor: saving weights asks whether two share memory."""
    original = getattr(__import__(module, fromlist=[name]), name)
    return lambda tensor: original(_held(tensor.detach()))


def _held(value: Any) -> Any:
    return value.held if isinstance(value, RehearsedTensor) else value


def _names(kwargs: dict[str, Any], device: torch.device) -> bool:
    wanted = kwargs.get("device")
    return wanted is not None and torch.device(wanted).type == device.type


def _compute(func: Any, args: Any, kwargs: dict[str, Any]) -> Any:
    tensors = [leaf for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, Tensor)]
    is_there = any(isinstance(tensor, RehearsedTensor) for tensor in tensors)
    if is_there and func not in _MOVES:
        _refuse_mixture(func, args, tensors)
    if kwargs.get("device") is not None:
        is_there = _names(kwargs, GPU)
        kwargs = {**kwargs, "device": kwargs["device"] if _names(kwargs, torch.device("meta")) else CPU}
    kernel = _KERNELS.get(func, func) if is_there else func
    result = kernel(*tree_map(_held, args), **tree_map(_held, kwargs))
    if func is aten.copy_.default:
        return args[0]
    if not is_there:
        return result
    there = tree_map(lambda x: RehearsedTensor(x) if isinstance(x, Tensor) else x, result)
    return there if func in _KERNELS else return_and_correct_aliasing(func, args, kwargs, there)


def _refuse_mixture(func: Any, args: Any, tensors: list[Tensor]) -> None:
    checked = [args[0]] if func in _INDEXED else tensors
    for tensor in checked:
        if not isinstance(tensor, RehearsedTensor) and (tensor.dim() or func in _ALL_ON_DEVICE):
            raise MixedDevicesError(f"{func}: a tensor of {tuple(tensor.shape)} is on the CPU, others on {GPU}")
