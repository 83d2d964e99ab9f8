"""The loop of `fused_loss.linear_divergence`: chunk by chunk, logits, divergence and gradients.

Owns the buffers and the order of the work. A chunk is as many tokens as there is room for logits; a block
is as many of its rows as the processor's cache holds, so that the arithmetic between the matrix products
does not go to memory for its intermediate results.

Shapes: N tokens, C tokens of a chunk, R rows of a block, V the shared vocabulary, K the teacher's top-k
tokens.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from trd_engine.distillation.losses.divergence import Divergence
from trd_engine.distillation.losses.gradient import Distribution, divergence_and_gradient
from trd_engine.distillation.losses.products import Gradients, LogitSource, Projection, slices
from trd_engine.distillation.losses.token_statistics import TokenStatistics, WantedStatistics, block_statistics

SPARSE_SHARE = 64
"""Up to this part of the vocabulary the teacher's top-k tokens have products of their own; for more, those with the
whole head are the faster ones and need less room."""


@dataclass(frozen=True)
class Tokens:
    """What is known of each token besides its hidden states."""

    weights_N: Tensor
    """In the dtype of all arithmetic between the products."""
    ids_N: Tensor | None
    may_be_masked: bool
    """Some weights may be 0: such rows are kept out of every sum, even where they are not finite."""

    def ids(self, rows: slice) -> Tensor | None:
        """The sampled tokens of some rows, where given."""
        return None if self.ids_N is None else self.ids_N[rows]

    def masked(self, values_RX: Tensor, rows: slice) -> Tensor:
        """The values of some rows, zero where the weight is; 0 · inf would not be."""
        if not self.may_be_masked:
            return values_RX
        return values_RX.masked_fill((self.weights_N[rows] == 0).unsqueeze(-1), 0.0)


@dataclass(frozen=True)
class ChunkedPass:
    """One pass over all tokens: what goes in, and how much of it at once."""

    student: Projection
    teacher: LogitSource
    divergence: Divergence
    tokens: Tokens
    wanted: WantedStatistics | None
    """None: no statistics."""
    chunk_tokens: int
    block_rows: int

    def run(self, gradients: Gradients) -> tuple[Tensor, Tensor, TokenStatistics | None]:
        """Fills `gradients`; returns Σ w D, D, and the statistics where wanted."""
        weights_N = self.tokens.weights_N
        per_token_N = torch.empty_like(weights_N)
        statistics = None
        if self.wanted is not None:
            with_sampled = self.tokens.ids_N is not None
            statistics = TokenStatistics.empty(len(weights_N), per_token_N, self.wanted, with_sampled=with_sampled)
        is_sparse = num_sparse_tokens(self.divergence, len(self.student.head_VH)) > 0
        needs_student = not is_sparse or self.wanted is not None
        student_CV = self.student.room(self.chunk_tokens if needs_student else 0)
        teacher_CV = self.teacher.room(self.chunk_tokens)
        for chunk in slices(0, len(weights_N), self.chunk_tokens):
            self.teacher.output(chunk, teacher_CV[: chunk.stop - chunk.start])
            if needs_student:
                self.student.output(chunk, student_CV[: chunk.stop - chunk.start])
            for rows in slices(chunk.start, chunk.stop, self.block_rows):
                within = slice(rows.start - chunk.start, rows.stop - chunk.start)
                student_RV, teacher_RV = student_CV[within], teacher_CV[within]
                block = self._sparse_block if is_sparse else self._block
                per_token_N[rows] = block(rows, student_RV, teacher_RV, statistics, gradients)
            if not is_sparse and gradients.any_wanted:
                gradient_CV = student_CV[: chunk.stop - chunk.start]
                hidden_CH = self.tokens.masked(self.student.hidden_NH[chunk], chunk)
                gradients.add(chunk, gradient_CV, self.student.head_VH, hidden_CH)
        weighted_N = (weights_N * per_token_N).masked_fill_(weights_N == 0, 0.0)
        return weighted_N.sum(), per_token_N, statistics

    def _block(
        self,
        rows: slice,
        student_RV: Tensor,
        teacher_RV: Tensor,
        statistics: TokenStatistics | None,
        gradients: Gradients,
    ) -> Tensor:
        """The block's divergence; its gradient takes the place of the student's output."""
        student_logits_RV = self.student.shape.apply(student_RV.to(self._dtype))
        teacher_logits_RV = self.teacher.shape.apply(teacher_RV.to(self._dtype))
        student, teacher = self._tempered(student_logits_RV), self._tempered(teacher_logits_RV)
        if statistics is not None and self.wanted is not None:
            is_own = self.divergence.temperature == 1.0
            own = (student, teacher) if is_own else _distributions(student_logits_RV, teacher_logits_RV)
            statistics.put(rows, block_statistics(*own, self.wanted, rows, self.tokens.ids(rows)))
        if self.divergence.support == "top_k":
            teacher_logits_RK, ids_RK = teacher_logits_RV.topk(self._top_k, dim=-1)
            student_logits_RK = student_logits_RV.gather(-1, ids_RK)
            divergence_R, gradient_RK = self._top_k_gradient(student_logits_RK, teacher_logits_RK, rows)
            if gradients.any_wanted:
                student_RV.zero_().scatter_(-1, ids_RK, gradient_RK.to(student_RV.dtype))
            return divergence_R
        divergence_R, gradient_RV = divergence_and_gradient(student, teacher, self.divergence, self.tokens.ids(rows))
        divergence_R, factor_R1 = self._weigh(divergence_R, rows)
        if gradients.any_wanted:
            self.student.shape.chain_(gradient_RV, student_logits_RV)
            torch.mul(self.tokens.masked(gradient_RV, rows), factor_R1, out=student_RV)
        return divergence_R

    def _sparse_block(
        self,
        rows: slice,
        student_RV: Tensor,
        teacher_RV: Tensor,
        statistics: TokenStatistics | None,
        gradients: Gradients,
    ) -> Tensor:
        """The block's divergence on the teacher's few top-k tokens; only their rows of the head are touched."""
        teacher_logits_RV = self.teacher.shape.apply(teacher_RV.to(self._dtype))
        if statistics is not None and self.wanted is not None:
            own = _distributions(self.student.shape.apply(student_RV.to(self._dtype)), teacher_logits_RV)
            statistics.put(rows, block_statistics(*own, self.wanted, rows, self.tokens.ids(rows)))
        teacher_logits_RK, ids_RK = teacher_logits_RV.topk(self._top_k, dim=-1)
        output_RK, head_RKH = self.student.output_at(rows, ids_RK, self._dtype)
        divergence_R, gradient_RK = self._top_k_gradient(self.student.shape.apply(output_RK), teacher_logits_RK, rows)
        if gradients.any_wanted:
            hidden_RH = self.tokens.masked(self.student.hidden_NH[rows], rows)
            gradients.add_at(rows, ids_RK, gradient_RK, head_RKH, hidden_RH)
        return divergence_R

    def _top_k_gradient(
        self, student_logits_RK: Tensor, teacher_logits_RK: Tensor, rows: slice
    ) -> tuple[Tensor, Tensor]:
        """The clipped divergence on the teacher's top-k tokens, and the weighted gradient in the student's output."""
        student, teacher = self._tempered(student_logits_RK), self._tempered(teacher_logits_RK)
        divergence_R, gradient_RK = divergence_and_gradient(student, teacher, self.divergence, None)
        divergence_R, factor_R1 = self._weigh(divergence_R, rows)
        self.student.shape.chain_(gradient_RK, student_logits_RK)
        return divergence_R, self.tokens.masked(gradient_RK, rows) * factor_R1

    @property
    def _top_k(self) -> int:
        return min(self.divergence.teacher_top_k, len(self.student.head_VH))

    @property
    def _dtype(self) -> torch.dtype:
        return self.tokens.weights_N.dtype

    def _tempered(self, logits_RV: Tensor) -> Distribution:
        temperature = self.divergence.temperature
        return Distribution.of(logits_RV if temperature == 1.0 else logits_RV / temperature)

    def _weigh(self, divergence_R: Tensor, rows: slice) -> tuple[Tensor, Tensor]:
        """The clipped divergence, and what its gradient in the tempered logits is to be multiplied by."""
        factor_R = self.tokens.weights_N[rows] / self.divergence.temperature
        if self.divergence.token_clip:
            factor_R = factor_R.masked_fill(divergence_R > self.divergence.token_clip, 0.0)
            divergence_R = divergence_R.clamp(max=self.divergence.token_clip)
        return divergence_R, factor_R.unsqueeze(-1)


def num_sparse_tokens(divergence: Divergence, num_shared: int) -> int:
    """How many tokens of a row have products of their own: K, or 0 where the whole vocabulary is multiplied out."""
    is_sparse = divergence.support == "top_k" and SPARSE_SHARE * divergence.teacher_top_k <= num_shared
    return divergence.teacher_top_k if is_sparse else 0


def _distributions(student_logits_RV: Tensor, teacher_logits_RV: Tensor) -> tuple[Distribution, Distribution]:
    return Distribution.of(student_logits_RV), Distribution.of(teacher_logits_RV)
