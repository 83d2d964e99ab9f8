"""Attention within the sequences of a packed row, registered with transformers under the name `NAME`.

Sequences lie end to end in one row [1, T]; each attends to itself alone, causally, so that the cost is the
sum of the lengths' squares. On a GPU one variable-length kernel serves the whole row, elsewhere PyTorch's
attention serves each run of equal lengths.

What may be seen comes from the model itself: transformers hands every mask that a model builds to
`_packed_mask`, which takes its window and refuses what is neither causal nor a causal sliding window.
Outside `packed_row` both functions are transformers' own, so that generation with a cache works as it
was, except for a soft-cap on the scores, which transformers' sdpa silently leaves out and which is kept here, and
for single tokens with grouped heads, which `decoding_attention` serves.

Shapes: T tokens of the row, R sequences of length L each in a run, A query heads, E key-value heads, D of a head.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from functools import cached_property
from inspect import signature
from itertools import accumulate, groupby
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.attention.varlen import varlen_attn
from torch.nn.functional import scaled_dot_product_attention
from transformers import AttentionInterface, AttentionMaskInterface
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import sdpa_mask

from trd_engine.models.attention import decoding as decoding_attention
from trd_engine.runtime.hardware import has_bf16_matmul

NAME = "trd_packed"
"""The name for a model's `set_attn_implementation`."""

_MAX_KERNEL_HEAD_SIZE = 256
_KERNEL_HEAD_STEP = 8  # what `scaled_dot_product_attention` pads heads to before its flash kernel
_MIN_KERNEL_CAPABILITY = (8, 0)  # the first GPUs that flash attention runs on
_KERNEL_GROUPS_HEADS = "enable_gqa" in signature(varlen_attn).parameters  # since torch 2.12


class UnservedAttentionError(ValueError):
    """The model needs attention that is not computed here."""


class Segments:
    """Where the sequences of a packed row begin and end.

    No dataclass: FSDP2 copies those among a layer's arguments, and every layer would make `bounds` again, for which
    the host waits for the GPU.
    """

    def __init__(self, lengths: tuple[int, ...], device: torch.device) -> None:
        self.lengths = lengths
        self.device = device

    @cached_property
    def runs(self) -> list[tuple[int, int]]:
        """(R, L) of each stretch of equal lengths, in order."""
        return [(len(list(equal)), length) for length, equal in groupby(self.lengths)]

    @cached_property
    def bounds(self) -> Tensor:
        """Cumulative lengths from 0 on, int32, as variable-length kernels take them."""
        return torch.tensor([0, *accumulate(self.lengths)], dtype=torch.int32, device=self.device)


@dataclass(frozen=True)
class PackedMask:
    """What takes the mask tensor's place between the model and its attention layers.

    It travels as an argument, so that layers recomputed in the backward pass have it too.
    """

    segments: Segments
    window: int | None
    """A token sees itself and the `window` − 1 before it; None: all before it."""


_row: ContextVar[Segments | None] = ContextVar("packed_row", default=None)


@contextmanager
def packed_row(segments: Segments) -> Iterator[None]:
    """Within the block, let a model whose implementation is `NAME` read its row as these segments."""
    token = _row.set(segments)
    try:
        yield
    finally:
        _row.reset(token)


def _packed_mask(**arguments: Any) -> PackedMask | Tensor | None:
    """Return the mask of a model's layers; called by transformers with what the model asked it for."""
    segments = _row.get()
    if segments is None:
        mask: Tensor | None = sdpa_mask(**arguments)
        return mask
    window = arguments.get("local_size")
    if arguments.get("use_vmap") or not _is_causal_window(arguments["mask_function"], window):
        raise UnservedAttentionError("the model's mask is neither causal nor a causal sliding window")
    return PackedMask(segments, window)


def _is_causal_window(mask_function: Callable[..., Tensor], window: int | None) -> bool:
    """Return whether a mask, given as a function of indices, is the causal one of that width: asked at its corners."""
    far = 2 * window + 1 if window else 1000
    near = window or 1
    pairs = [(0, 0), (0, 1), (near, near - 1), (near, 0), (far, far), (far, far + 1), (far, far - near), (far, 0)]
    pairs.append((far, far - near + 1))
    query, key = torch.tensor(pairs).unbind(1)
    zero = torch.zeros_like(query)
    wanted = key <= query
    if window is not None:
        wanted &= key > query - window
    return torch.equal(mask_function(zero, zero, query, key).cpu().expand_as(wanted), wanted)


def attention(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: PackedMask | Tensor | None,
    *,
    softcap: float | None = None,
    **options: Any,
) -> tuple[Tensor, None]:
    """Implement transformers' attention function: query [B, A, T, D], key and value [B, E, T, D] to [B, T, A, D].

    Raises `UnservedAttentionError` in a packed row if the layer is not causal or has sinks or
    position biases.
    """
    kernel = _Kernel(options.get("scaling"), softcap, options.get("dropout", 0.0))
    if isinstance(attention_mask, PackedMask):
        _require_served(module, options)
        return _packed_attention(query, key, value, attention_mask, kernel), None
    if softcap is None and decoding_attention.serves(query, key, attention_mask, options):
        return decoding_attention.shared_heads(query, key, value, attention_mask, **options), None
    if softcap is None:
        output: tuple[Tensor, None] = sdpa_attention_forward(module, query, key, value, attention_mask, **options)
        return output
    if attention_mask is None and query.shape[2] > 1:
        attention_mask = _causal_mask(query.shape[2], None, query.device)
    return kernel(query, key, value, attention_mask).transpose(1, 2).contiguous(), None


def _require_served(module: nn.Module, options: Mapping[str, Any]) -> None:
    is_causal = options.get("is_causal")
    causal = is_causal if is_causal is not None else getattr(module, "is_causal", True)
    if not causal or options.get("s_aux") is not None or options.get("position_bias") is not None:
        raise UnservedAttentionError("the model's attention is not causal, or has sinks or position biases")


def _packed_attention(
    query_1ATD: Tensor, key_1ETD: Tensor, value_1ETD: Tensor, mask: PackedMask, kernel: _Kernel
) -> Tensor:
    """Compute the attention of a packed row, [1, T, A, D]."""
    if _has_kernel(query_1ATD, value_1ETD) and kernel.softcap is None and kernel.dropout == 0.0:
        return _by_kernel(query_1ATD, key_1ETD, value_1ETD, mask, kernel.scaling)
    if not _is_better_in_fp32(query_1ATD, key_1ETD, value_1ETD):
        return _by_runs(query_1ATD, key_1ETD, value_1ETD, mask, kernel)
    dtype = working_dtype(query_1ATD)
    with torch.autocast("cpu", enabled=False):
        return _by_runs(query_1ATD.float(), key_1ETD.float(), value_1ETD.float(), mask, kernel).to(dtype)


def _is_better_in_fp32(*qkv: Tensor) -> bool:
    """Return whether a CPU should compute 16-bit attention in fp32.

    Without bf16 instructions, the kernel's gradient takes two to three times as long in bf16; the forward pass does not
    (docs/numerics.md).
    """
    wants_gradient = torch.is_grad_enabled() and any(x.requires_grad for x in qkv)
    is_short = qkv[0].device.type == "cpu" and working_dtype(qkv[0]).itemsize < 4
    return wants_gradient and is_short and not has_bf16_matmul()


def working_dtype(tensor: Tensor) -> torch.dtype:
    """Return the dtype that autocast would choose: custom kernels are not on its list."""
    device = tensor.device.type
    return torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else tensor.dtype


def _has_kernel(query_1ATD: Tensor, value_1ETD: Tensor) -> bool:
    return (
        query_1ATD.is_cuda
        and working_dtype(query_1ATD) in (torch.float16, torch.bfloat16)
        and query_1ATD.shape[-1] == value_1ETD.shape[-1] <= _MAX_KERNEL_HEAD_SIZE
        and query_1ATD.shape[-1] % _KERNEL_HEAD_STEP == 0
        and torch.cuda.get_device_capability(query_1ATD.device) >= _MIN_KERNEL_CAPABILITY
    )


def _by_kernel(
    query_1ATD: Tensor, key_1ETD: Tensor, value_1ETD: Tensor, mask: PackedMask, scaling: float | None
) -> Tensor:
    """Compute [1, T, A, D] by PyTorch's variable-length flash attention, which takes the whole row at once."""
    dtype = working_dtype(query_1ATD)
    query_TAD, key_TED, value_TED = (
        x.squeeze(0).transpose(0, 1).to(dtype).contiguous() for x in (query_1ATD, key_1ETD, value_1ETD)
    )
    bounds, longest = mask.segments.bounds, max(mask.segments.lengths)
    num_groups = query_TAD.shape[1] // key_TED.shape[1]
    if num_groups > 1 and not _KERNEL_GROUPS_HEADS:
        key_TED, value_TED = (x.repeat_interleave(num_groups, dim=1) for x in (key_TED, value_TED))
    grouping: dict[str, Any] = {"enable_gqa": num_groups > 1} if _KERNEL_GROUPS_HEADS else {}
    output_TAD = varlen_attn(
        query_TAD,
        key_TED,
        value_TED,
        bounds,
        bounds,
        longest,
        longest,
        scale=scaling,
        # Tokens to the left, besides the token itself.
        window_size=(-1 if mask.window is None else mask.window - 1, 0),
        **grouping,
    )
    assert isinstance(output_TAD, Tensor)
    return output_TAD.unsqueeze(0)


def _by_runs(query_1ATD: Tensor, key_1ETD: Tensor, value_1ETD: Tensor, mask: PackedMask, kernel: _Kernel) -> Tensor:
    """Compute [1, T, A, D], a batch for each run of equal lengths."""
    runs = mask.segments.runs
    # One split, not a slice a run: the gradient of a slice is as large as the whole row.
    pieces = [x.split([count * length for count, length in runs], dim=2) for x in (query_1ATD, key_1ETD, value_1ETD)]
    outputs = []
    for (count, length), *qkv in zip(runs, *pieces, strict=True):
        query_RALD, key_RELD, value_RELD = (x.squeeze(0).unflatten(1, (count, length)).transpose(0, 1) for x in qkv)
        is_whole = mask.window is None or length <= mask.window
        seen_LL = None if is_whole and kernel.softcap is None else _causal_mask(length, mask.window, query_1ATD.device)
        output_RALD = kernel(query_RALD, key_RELD, value_RELD, seen_LL, is_causal=seen_LL is None)
        outputs.append(output_RALD.transpose(1, 2).flatten(0, 1))
    return torch.cat(outputs).unsqueeze(0)


def _causal_mask(length: int, window: int | None, device: torch.device) -> Tensor:
    """Return [L, L], True if a query (row) sees a key (column)."""
    causal_LL = torch.ones(length, length, dtype=torch.bool, device=device).tril_()
    return causal_LL if window is None else causal_LL.triu_(1 - window)


@dataclass(frozen=True)
class _Kernel:
    """Attention of a batch of equally long sequences."""

    scaling: float | None
    softcap: float | None
    dropout: float

    def __call__(
        self, query: Tensor, key: Tensor, value: Tensor, seen: Tensor | None, *, is_causal: bool = False
    ) -> Tensor:
        """Return […, A, L, D]. `seen`: which keys a query sees; None: all, or with `is_causal` those up to itself."""
        is_grouped = query.shape[1] != key.shape[1]
        if is_grouped and (seen is not None or self.softcap is not None or query.is_cuda):
            # Grouped heads together with a mask would leave the fast kernels. So would those on a GPU whose flash
            # attention does not serve the row (fp32, an older GPU): the scores [R, A, L, L] would exist as a whole.
            repeats = query.shape[1] // key.shape[1]
            key, value = key.repeat_interleave(repeats, dim=1), value.repeat_interleave(repeats, dim=1)
            is_grouped = False
        if self.softcap is not None:
            return self._softcapped(query, key, value, seen)
        return scaled_dot_product_attention(
            query,
            key,
            value,
            attn_mask=seen,
            dropout_p=self.dropout,
            is_causal=is_causal,
            scale=self.scaling,
            enable_gqa=is_grouped,
        )

    def _softcapped(self, query: Tensor, key: Tensor, value: Tensor, seen: Tensor | None) -> Tensor:
        """Compute attention with scores c · tanh(s / c) for s, as in Gemma 2 (arXiv 2408.00118, section 2). No fused
        kernel has this together with variable lengths, so the scores of a run exist as a whole: [R, A, L, L] in
        fp32."""
        assert self.softcap is not None
        scale = self.scaling if self.scaling is not None else query.shape[-1] ** -0.5
        scores = (query @ key.transpose(-1, -2)).float() * scale
        scores = self.softcap * torch.tanh(scores / self.softcap)
        if seen is not None:
            scores = scores.masked_fill(~seen, torch.finfo(scores.dtype).min)
        weights = nn.functional.dropout(scores.softmax(dim=-1), self.dropout)
        return weights.to(value.dtype) @ value


AttentionInterface.register(NAME, attention)
AttentionMaskInterface.register(NAME, _packed_mask)
