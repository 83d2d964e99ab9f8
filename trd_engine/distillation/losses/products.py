"""The matrix products of the fused loss: from hidden states to logits, and from their gradient back.

Owns how each product is cut for the processor; knows no divergence.

Shapes: N tokens, C tokens of a chunk, R rows of a block, V the shared vocabulary, X the student's own,
padded vocabulary, H a model's hidden size, K the teacher's top-k tokens.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor
from torch.nn.functional import linear

from trd_engine.models.head import LogitShape
from trd_engine.runtime.hardware import has_short_products

LOGIT_TILE_ROWS = 1024
"""Rows of the head at a time for fp32 logits on a CPU: 5 to 15 % faster than one product over all of them."""
GRADIENT_TILE_ROWS = 2048
"""Rows of the head's gradient that are multiplied in low precision before they are added in fp32."""


class LogitSource(Protocol):
    """Where a teacher's logits over the shared vocabulary come from, some rows at a time."""

    @property
    def shape(self) -> LogitShape:
        """What is still to be done to `output`."""
        ...

    @property
    def num_tokens(self) -> int:
        """N."""
        ...

    @property
    def bytes_per_logit(self) -> int:
        """Of the buffer that `room` makes."""
        ...

    def room(self, max_rows: int) -> Tensor:
        """A buffer for the output of at most `max_rows` tokens."""
        ...

    def output(self, rows: slice, out_CV: Tensor) -> None:
        """Writes the output, before scale and cap, of some rows."""
        ...


@dataclass(frozen=True)
class Projection:
    """One model's last step: hidden states, and the head cut to the shared vocabulary, in one dtype."""

    hidden_NH: Tensor
    head_VH: Tensor
    bias_V: Tensor | None
    shape: LogitShape

    @property
    def num_tokens(self) -> int:
        """N."""
        return len(self.hidden_NH)

    @property
    def bytes_per_logit(self) -> int:
        """Of the buffer that `room` makes."""
        return self.head_VH.element_size()

    def room(self, max_rows: int) -> Tensor:
        """A buffer for the output of at most `max_rows` tokens."""
        return self.hidden_NH.new_empty(min(max_rows, len(self.hidden_NH)), len(self.head_VH))

    def output(self, rows: slice, out_CV: Tensor) -> None:
        """The head's output, before scale and cap, of some rows."""
        hidden_CH, num_rows = self.hidden_NH[rows], len(self.head_VH)
        if _is_better_in_fp32(hidden_CH):
            hidden_CH = hidden_CH.float()
            for tile in slices(0, num_rows, LOGIT_TILE_ROWS):
                bias = None if self.bias_V is None else self.bias_V[tile].float()
                out_CV[:, tile] = linear(hidden_CH, self.head_VH[tile].float(), bias)
            return
        is_tiled = hidden_CH.device.type == "cpu" and hidden_CH.dtype == torch.float32
        for tile in slices(0, num_rows, LOGIT_TILE_ROWS if is_tiled else max(1, num_rows)):
            head_HV = self.head_VH[tile].t()
            if self.bias_V is None:
                torch.mm(hidden_CH, head_HV, out=out_CV[:, tile])
            else:
                torch.addmm(self.bias_V[tile], hidden_CH, head_HV, out=out_CV[:, tile])

    def output_at(self, rows: slice, ids_RK: Tensor, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
        """The head's output at K tokens a row, [R, K], and the head's rows that made it, [R, K, H]."""
        head_RKH = self.head_VH[ids_RK].to(dtype)
        output_RK = torch.bmm(head_RKH, self.hidden_NH[rows].to(dtype).unsqueeze(-1)).squeeze(-1)
        return (output_RK if self.bias_V is None else output_RK.add_(self.bias_V[ids_RK])), head_RKH


@dataclass(frozen=True)
class Gradients:
    """Of the student's hidden states, head and bias, being summed; None where not wanted."""

    hidden_NH: Tensor | None
    head_XH: Tensor | None
    bias_X: Tensor | None

    @classmethod
    def zeros(cls, inputs: Sequence[Tensor | None], wanted: Sequence[bool], student: Projection) -> Gradients:
        """Room for them. What is summed over tokens is summed in fp32 at least."""
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
        """Of hidden states, head and bias."""
        return self.hidden_NH, self.head_XH, self.bias_X

    @property
    def any_wanted(self) -> bool:
        """False where this is an evaluation."""
        return any(tensor is not None for tensor in self.tensors)

    def add(self, rows: slice, gradient_CV: Tensor, head_VH: Tensor, hidden_CH: Tensor) -> None:
        """Multiplies out the gradient in a chunk's output over the whole shared vocabulary."""
        num_shared = gradient_CV.shape[1]
        if self.hidden_NH is not None:
            _put_product(self.hidden_NH[rows], gradient_CV, head_VH)
        if self.head_XH is not None:
            _add_product(self.head_XH[:num_shared], gradient_CV, hidden_CH)
        if self.bias_X is not None:
            self.bias_X[:num_shared] += gradient_CV.sum(0, dtype=self.bias_X.dtype)

    def add_at(self, rows: slice, ids_RK: Tensor, gradient_RK: Tensor, head_RKH: Tensor, hidden_RH: Tensor) -> None:
        """Multiplies out the gradient in the output at K tokens a row; the other tokens have none."""
        if self.hidden_NH is not None:
            self.hidden_NH[rows] = torch.bmm(gradient_RK.unsqueeze(1), head_RKH).squeeze(1)
        if self.head_XH is not None:
            terms_RKH = gradient_RK.unsqueeze(-1) * hidden_RH.unsqueeze(1)
            _add_rows(self.head_XH, ids_RK.flatten(), terms_RKH.flatten(0, 1))
        if self.bias_X is not None:
            _add_rows(self.bias_X, ids_RK.flatten(), gradient_RK.flatten())


def slices(start: int, stop: int, step: int) -> Iterator[slice]:
    """Consecutive slices of at most `step`; of nothing, one empty slice."""
    return (slice(first, min(first + step, stop)) for first in range(start, max(stop, start + 1), step))


def _is_better_in_fp32(tensor: Tensor) -> bool:
    """Whether it is bf16 that the processor has no instructions for: products made in fp32 and then rounded are the
    same, and take a fraction of the time (docs/numerics.md)."""
    return tensor.device.type == "cpu" and tensor.dtype == torch.bfloat16 and not has_short_products()


def _put_product(into_CH: Tensor, gradient_CV: Tensor, head_VH: Tensor) -> None:
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
    # each in the form that adds in a fixed order: on a GPU index_add_ races, and on a CPU index_put_ does
    if into.device.type == "cpu":
        into.index_add_(0, ids, rows)
    else:
        into.index_put_((ids,), rows, accumulate=True)
