"""The matrix products of `linear_divergence`: from hidden states to logits, and from their gradient back.

Owns how each product is tiled for the processor; knows no divergence. Raw logits are the head's output before scale
and cap.

Shapes: N tokens, C tokens of a chunk, R rows of a block, V the shared vocabulary, X the student's padded vocabulary,
H a model's hidden size, K the teacher's top-k tokens.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Protocol

import torch
from torch import Tensor
from torch.nn.functional import linear

from trd_engine.models.head import LogitTransform, OutputHead
from trd_engine.runtime.hardware import has_bf16_matmul

LOGIT_TILE_ROWS = 1024
"""Rows of the head per product for fp32 logits on a CPU: 5 to 15 % faster than one product over all rows."""
GRADIENT_TILE_ROWS = 2048
"""Rows of the head's gradient per low-precision product, whose result is added in fp32."""


class LogitSource(Protocol):
    """A teacher's logits, computed for one chunk of tokens at a time."""

    @property
    def transform(self) -> LogitTransform:
        """Scale and cap that turn raw logits into logits."""
        ...

    @property
    def num_tokens(self) -> int:
        """Number of tokens N."""
        ...

    @property
    def num_vocabulary(self) -> int:
        """Number of logits V of a token."""
        ...

    @property
    def bytes_per_logit(self) -> int:
        """Bytes per logit of a buffer from `allocate`."""
        ...

    def allocate(self, max_rows: int) -> Tensor:
        """Allocate a buffer for the raw logits of at most `max_rows` tokens."""
        ...

    def write_logits(self, rows: slice, out_CV: Tensor) -> None:
        """Write the raw logits of `rows` into `out_CV`."""
        ...


@dataclass(frozen=True)
class Projection:
    """A model's logits as hidden states and output head: soft_cap · tanh(scale · (hidden weightᵀ + bias) / soft_cap).

    Holds the tensors themselves, not copies. Raises ValueError if their shapes do not match, or `soft_cap` is not
    above 0.
    """

    hidden_NH: Tensor
    """Final hidden states at the positions that predict the N tokens."""
    weight_VH: Tensor
    bias_V: Tensor | None = None
    scale: float = 1.0
    soft_cap: float | None = None
    """None: no cap; the logits are scale · (hidden weightᵀ + bias)."""

    def __post_init__(self) -> None:
        hidden, weight = self.hidden_NH.shape, self.weight_VH.shape
        if len(hidden) != 2 or len(weight) != 2 or hidden[1] != weight[1]:
            raise ValueError(
                "hidden states [tokens, hidden] and weight [vocabulary, hidden] must share the hidden size, not "
                f"{tuple(hidden)} and {tuple(weight)}"
            )
        if self.bias_V is not None and self.bias_V.shape != weight[:1]:
            raise ValueError(f"the head's bias must have shape ({weight[0]},), not {tuple(self.bias_V.shape)}")
        LogitTransform(self.scale, self.soft_cap)  # refuses a wrong cap

    @classmethod
    def of(cls, head: OutputHead, hidden_NH: Tensor) -> Projection:
        """Return the projection of hidden states by a model's head."""
        return cls(hidden_NH, head.weight_VH, head.bias_V, head.scale, head.soft_cap)

    @cached_property
    def transform(self) -> LogitTransform:
        """Scale and cap that turn raw logits into logits."""
        return LogitTransform(self.scale, self.soft_cap)

    @property
    def num_tokens(self) -> int:
        """Number of tokens N."""
        return len(self.hidden_NH)

    @property
    def num_vocabulary(self) -> int:
        """Number of logits V of a token."""
        return len(self.weight_VH)

    @property
    def bytes_per_logit(self) -> int:
        """Bytes per logit of a buffer from `allocate`."""
        return self.weight_VH.element_size()

    def allocate(self, max_rows: int) -> Tensor:
        """Allocate a buffer for the raw logits of at most `max_rows` tokens."""
        return self.hidden_NH.new_empty(min(max_rows, len(self.hidden_NH)), self.num_vocabulary)

    def write_logits(self, rows: slice, out_CV: Tensor) -> None:
        """Write the raw logits of `rows` into `out_CV`."""
        hidden_CH, num_rows = self.hidden_NH[rows], self.num_vocabulary
        if _is_better_in_fp32(hidden_CH):
            hidden_CH = hidden_CH.float()
            for tile in slices(0, num_rows, LOGIT_TILE_ROWS):
                bias = None if self.bias_V is None else self.bias_V[tile].float()
                out_CV[:, tile] = linear(hidden_CH, self.weight_VH[tile].float(), bias)
            return
        is_tiled = hidden_CH.device.type == "cpu" and hidden_CH.dtype == torch.float32
        for tile in slices(0, num_rows, LOGIT_TILE_ROWS if is_tiled else max(1, num_rows)):
            head_HV = self.weight_VH[tile].t()
            if self.bias_V is None:
                torch.mm(hidden_CH, head_HV, out=out_CV[:, tile])
            else:
                torch.addmm(self.bias_V[tile], hidden_CH, head_HV, out=out_CV[:, tile])

    def logits_at(self, rows: slice, ids_RK: Tensor, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
        """Compute the raw logits of K tokens per row, [R, K]; also return the head's rows used, [R, K, H]."""
        head_RKH = self.weight_VH[ids_RK].to(dtype)
        raw_RK = torch.bmm(head_RKH, self.hidden_NH[rows].to(dtype).unsqueeze(-1)).squeeze(-1)
        return (raw_RK if self.bias_V is None else raw_RK.add_(self.bias_V[ids_RK])), head_RKH


@dataclass(frozen=True)
class Gradients:
    """Sums of the gradients in the student's hidden states, head and bias; None: not needed."""

    hidden_NH: Tensor | None
    head_XH: Tensor | None
    bias_X: Tensor | None

    @classmethod
    def zeros(cls, inputs: Sequence[Tensor | None], wanted: Sequence[bool], student: Projection) -> Gradients:
        """Allocate the sums. Those over tokens are at least fp32."""
        sum_dtype = torch.promote_types(student.hidden_NH.dtype, torch.float32)
        dtypes = (student.hidden_NH.dtype, sum_dtype, sum_dtype)
        return cls(
            *[
                x.new_zeros(x.shape, dtype=dtype) if x is not None and is_wanted else None
                for x, is_wanted, dtype in zip(inputs, wanted, dtypes, strict=True)
            ]
        )

    @property
    def tensors(self) -> tuple[Tensor | None, Tensor | None, Tensor | None]:
        """Gradients of hidden states, head and bias."""
        return self.hidden_NH, self.head_XH, self.bias_X

    @property
    def any_wanted(self) -> bool:
        """Whether any gradient is needed; False in an evaluation."""
        return any(tensor is not None for tensor in self.tensors)

    def add(self, rows: slice, gradient_CV: Tensor, head_VH: Tensor, hidden_CH: Tensor) -> None:
        """Backpropagate a chunk's gradient in the raw logits of the whole shared vocabulary."""
        num_shared = gradient_CV.shape[1]
        if self.hidden_NH is not None:
            _write_product(self.hidden_NH[rows], gradient_CV, head_VH)
        if self.head_XH is not None:
            _add_product(self.head_XH[:num_shared], gradient_CV, hidden_CH)
        if self.bias_X is not None:
            self.bias_X[:num_shared] += gradient_CV.sum(0, dtype=self.bias_X.dtype)

    def add_at(self, rows: slice, ids_RK: Tensor, gradient_RK: Tensor, head_RKH: Tensor, hidden_RH: Tensor) -> None:
        """Backpropagate the gradient in the raw logits of K tokens per row; the other tokens have none."""
        if self.hidden_NH is not None:
            self.hidden_NH[rows] = torch.bmm(gradient_RK.unsqueeze(1), head_RKH).squeeze(1)
        if self.head_XH is not None:
            terms_RKH = gradient_RK.unsqueeze(-1) * hidden_RH.unsqueeze(1)
            _add_rows(self.head_XH, ids_RK.flatten(), terms_RKH.flatten(0, 1))
        if self.bias_X is not None:
            _add_rows(self.bias_X, ids_RK.flatten(), gradient_RK.flatten())


def slices(start: int, stop: int, step: int) -> Iterator[slice]:
    """Yield consecutive slices of at most `step`; one empty slice for an empty range."""
    return (slice(first, min(first + step, stop)) for first in range(start, max(stop, start + 1), step))


def _is_better_in_fp32(tensor: Tensor) -> bool:
    """Return whether this is bf16 without support by the processor: products in fp32, rounded afterwards, are equal and
    take a fraction of the time (docs/numerics.md)."""
    return tensor.device.type == "cpu" and tensor.dtype == torch.bfloat16 and not has_bf16_matmul()


def _write_product(into_CH: Tensor, gradient_CV: Tensor, head_VH: Tensor) -> None:
    if not _is_better_in_fp32(gradient_CV):
        torch.mm(gradient_CV, head_VH, out=into_CH)
        return
    sum_CH = into_CH.new_zeros(into_CH.shape, dtype=torch.float32)
    for tile in slices(0, len(head_VH), GRADIENT_TILE_ROWS):
        sum_CH.addmm_(gradient_CV[:, tile].float(), head_VH[tile].float())
    into_CH.copy_(sum_CH)


def _add_product(sum_VH: Tensor, gradient_CV: Tensor, hidden_CH: Tensor) -> None:
    if sum_VH.dtype == gradient_CV.dtype:
        sum_VH.addmm_(gradient_CV.t(), hidden_CH)
        return
    in_fp32 = _is_better_in_fp32(gradient_CV)
    if in_fp32:
        hidden_CH = hidden_CH.float()
    for tile in slices(0, len(sum_VH), GRADIENT_TILE_ROWS):
        if in_fp32:
            sum_VH[tile].addmm_(gradient_CV[:, tile].float().t(), hidden_CH)
        else:
            sum_VH[tile] += gradient_CV[:, tile].t() @ hidden_CH


def _add_rows(into: Tensor, ids: Tensor, rows: Tensor) -> None:
    # the operation that adds in a fixed order on each device: index_add_ races on a GPU, index_put_ on a CPU
    if into.device.type == "cpu":
        into.index_add_(0, ids, rows)
    else:
        into.index_put_((ids,), rows, accumulate=True)
