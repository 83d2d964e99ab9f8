"""The loop of `fused_loss.linear_divergence`: chunk by chunk, logits, divergence and gradients.

Owns the buffers and the order of the products. A chunk is as many tokens as there is room for logits; a
block is as many of its rows as the processor's cache holds, so that the arithmetic between the products
does not go to memory for its intermediate results.

Shapes: N tokens, C tokens of a chunk, R rows of a block, V the shared vocabulary, X the student's padded
one, H a model's hidden size, K the teacher's top-k tokens.
"""

# ruff: noqa: N815 - fields that are tensors carry their shape in the name

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

from trd_engine.fused_loss_gradient import divergence_and_gradient
from trd_engine.fused_loss_statistics import StatisticsRequest, TokenStatistics, block_statistics, concatenate
from trd_engine.losses import Divergence

HEAD_TILE_ROWS = 8192
"""Rows of the head's gradient that are multiplied in bf16 before they are added in fp32."""


@dataclass(frozen=True)
class LogitShape:
    """What a model does to its head's output: soft_cap · tanh(scale · output / soft_cap); None: no cap."""

    scale: float = 1.0
    soft_cap: float | None = None

    def __post_init__(self) -> None:
        if self.soft_cap is not None and not self.soft_cap > 0:
            raise ValueError(f"LogitShape.soft_cap is {self.soft_cap!r}: use a number above 0, or None for no cap")

    def apply(self, output_RV: Tensor) -> Tensor:
        """The logits of the head's output."""
        if self.scale != 1.0:
            output_RV = output_RV * self.scale
        return output_RV if self.soft_cap is None else (output_RV / self.soft_cap).tanh_().mul_(self.soft_cap)

    def chain_(self, gradient_RV: Tensor, logits_RV: Tensor) -> Tensor:
        """Turns the gradient in the logits into the one in the head's output, in place."""
        if self.soft_cap is not None:
            gradient_RV.mul_(1 - (logits_RV / self.soft_cap).square_())
        return gradient_RV.mul_(self.scale) if self.scale != 1.0 else gradient_RV


@dataclass(frozen=True)
class Projection:
    """One model's last step: hidden states, and the head cut to the shared vocabulary, in one dtype."""

    hidden_NH: Tensor
    head_VH: Tensor
    bias_V: Tensor | None
    shape: LogitShape

    def room(self, max_rows: int) -> Tensor:
        """A buffer for the output of at most `max_rows` tokens."""
        return self.hidden_NH.new_empty(min(max_rows, len(self.hidden_NH)), len(self.head_VH))

    def output(self, rows: slice, out_CV: Tensor) -> None:
        """The head's output for `rows` of the hidden states, before scale and cap."""
        if self.bias_V is None:
            torch.mm(self.hidden_NH[rows], self.head_VH.t(), out=out_CV)
        else:
            torch.addmm(self.bias_V, self.hidden_NH[rows], self.head_VH.t(), out=out_CV)


@dataclass(frozen=True)
class Gradients:
    """Sums under way; None where the gradient is not wanted."""

    hidden_NH: Tensor | None
    head_XH: Tensor | None
    bias_X: Tensor | None

    @classmethod
    def zeros(cls, inputs: Sequence[Tensor | None], wanted: Sequence[bool], student: Projection) -> Gradients:
        """Room for the gradients of the student's hidden states, head and bias; sums over tokens in fp32."""
        hidden_dtype = student.hidden_NH.dtype
        dtypes = (hidden_dtype, *[torch.promote_types(hidden_dtype, torch.float32)] * 2)
        room = [
            torch.zeros_like(x, dtype=dtype, memory_format=torch.contiguous_format)
            if x is not None and is_wanted
            else None
            for x, is_wanted, dtype in zip(inputs, wanted, dtypes, strict=True)
        ]
        return cls(*room)

    @property
    def tensors(self) -> tuple[Tensor | None, Tensor | None, Tensor | None]:
        """Of hidden states, head and bias."""
        return self.hidden_NH, self.head_XH, self.bias_X

    def add_chunk(self, rows: slice, gradient_CV: Tensor, student: Projection) -> None:
        """Multiplies out one chunk's gradient in the head's output."""
        num_shared = gradient_CV.shape[1]
        if self.hidden_NH is not None:
            torch.mm(gradient_CV, student.head_VH, out=self.hidden_NH[rows])
        if self.head_XH is not None:
            _add_product(self.head_XH[:num_shared], gradient_CV, student.hidden_NH[rows])
        if self.bias_X is not None:
            self.bias_X[:num_shared] += gradient_CV.sum(0, dtype=self.bias_X.dtype)


@dataclass(frozen=True)
class ChunkedPass:
    """One pass over all tokens."""

    student: Projection
    teacher: Projection
    divergence: Divergence
    token_weights_N: Tensor
    token_ids_N: Tensor | None
    request: StatisticsRequest | None
    chunk_tokens: int
    block_rows: int

    def run(self, gradients: Gradients) -> tuple[Tensor, Tensor, TokenStatistics | None, Gradients]:
        """Returns Σ w D, D, the statistics where asked for, and the filled `gradients`."""
        num_tokens = len(self.student.hidden_NH)
        per_token_N = torch.empty_like(self.token_weights_N)
        statistics: list[TokenStatistics] = []
        student_CV, teacher_CV = self.student.room(self.chunk_tokens), self.teacher.room(self.chunk_tokens)
        for rows in _slices(0, num_tokens, self.chunk_tokens):
            num_rows = rows.stop - rows.start
            self.student.output(rows, student_CV[:num_rows])
            self.teacher.output(rows, teacher_CV[:num_rows])
            for block in _slices(rows.start, rows.stop, self.block_rows):
                within = slice(block.start - rows.start, block.stop - rows.start)
                self._block(block, student_CV[within], teacher_CV[within], per_token_N, statistics)
            gradients.add_chunk(rows, student_CV[:num_rows], self.student)
        weighted_N = (self.token_weights_N * per_token_N).masked_fill(self.token_weights_N == 0, 0.0)
        return weighted_N.sum(), per_token_N, concatenate(statistics) if statistics else None, gradients

    def _block(
        self,
        rows: slice,
        student_RV: Tensor,
        teacher_RV: Tensor,
        per_token_N: Tensor,
        statistics: list[TokenStatistics],
    ) -> None:
        """Fills `per_token_N` and adds to `statistics`; the gradient takes the place of `student_RV`."""
        dtype = per_token_N.dtype
        student_logits_RV = self.student.shape.apply(student_RV.to(dtype))
        teacher_logits_RV = self.teacher.shape.apply(teacher_RV.to(dtype))
        ids_R = None if self.token_ids_N is None else self.token_ids_N[rows]
        if self.request is not None:
            statistics.append(block_statistics(student_logits_RV, teacher_logits_RV, self._epistemic_ids, ids_R))
        divergence_R, gradient_RV = self._divergence(student_logits_RV, teacher_logits_RV, ids_R)
        factor_R = self.token_weights_N[rows] / self.divergence.temperature
        if self.divergence.token_clip:
            factor_R = factor_R.where(divergence_R <= self.divergence.token_clip, 0.0)
            divergence_R = divergence_R.clamp(max=self.divergence.token_clip)
        per_token_N[rows] = divergence_R
        gradient_RV.mul_(factor_R.unsqueeze(-1))
        gradient_RV.masked_fill_((factor_R == 0).unsqueeze(-1), 0.0)  # 0 · inf is not 0
        student_RV.copy_(self.student.shape.chain_(gradient_RV, student_logits_RV))

    def _divergence(self, student_RV: Tensor, teacher_RV: Tensor, ids_R: Tensor | None) -> tuple[Tensor, Tensor]:
        """Divergence and its gradient in the tempered logits, over the whole vocabulary."""
        temperature = self.divergence.temperature
        if self.divergence.support != "top_k":
            log_p_RV, log_q_RV = _log_softmax(student_RV, temperature), _log_softmax(teacher_RV, temperature)
            return divergence_and_gradient(log_p_RV, log_q_RV, self.divergence, ids_R)
        top_RK, top_ids_RK = teacher_RV.topk(min(self.divergence.teacher_top_k, teacher_RV.shape[1]), dim=-1)
        log_p_RK, log_q_RK = (
            _log_softmax(student_RV.gather(-1, top_ids_RK), temperature),
            _log_softmax(top_RK, temperature),
        )
        divergence_R, gradient_RK = divergence_and_gradient(log_p_RK, log_q_RK, self.divergence, None)
        return divergence_R, torch.zeros_like(student_RV).scatter_(-1, top_ids_RK, gradient_RK)

    @cached_property
    def _epistemic_ids(self) -> Tensor:
        ids = [] if self.request is None else list(self.request.epistemic_token_ids)
        return torch.tensor(ids, dtype=torch.long, device=self.token_weights_N.device)


def _log_softmax(logits_RV: Tensor, temperature: float) -> Tensor:
    return (logits_RV if temperature == 1.0 else logits_RV / temperature).log_softmax(-1)


def _add_product(sum_VH: Tensor, gradient_CV: Tensor, hidden_CH: Tensor) -> None:
    if sum_VH.dtype == gradient_CV.dtype:
        sum_VH.addmm_(gradient_CV.t(), hidden_CH)
        return
    for tile in _slices(0, len(sum_VH), HEAD_TILE_ROWS):
        sum_VH[tile] += gradient_CV[:, tile].t() @ hidden_CH


def _slices(start: int, stop: int, step: int) -> Iterator[slice]:
    return (slice(first, min(first + step, stop)) for first in range(start, stop, step))
