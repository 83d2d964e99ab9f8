"""The loop of `linear_divergence`: logits, divergence and gradients, one chunk of tokens after another.

Owns the buffers and the order of the work. A chunk is as many tokens as the logits' buffers hold. A block is as many
rows of a chunk as fit the processor's cache, so that intermediate results between the matrix products stay in it.

Shapes: N tokens, C tokens of a chunk, R rows of a block, V the shared vocabulary, K the teacher's top-k tokens.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from trd_engine.distillation.losses.divergence import Divergence
from trd_engine.distillation.losses.gradient import Distribution, divergence_and_gradient
from trd_engine.distillation.losses.projection import Gradients, LogitSource, Projection, slices
from trd_engine.distillation.losses.row_kernels import LogitRows
from trd_engine.distillation.losses.token_statistics import TokenStatistics, WantedStatistics, block_statistics

SPARSE_SHARE = 64
"""The student's logits are computed at the teacher's top-k tokens alone if K is at most V / SPARSE_SHARE; for more
tokens the product with the whole head is faster and takes less memory."""


@dataclass(frozen=True)
class Tokens:
    """Weights and ids of the tokens."""

    weights_N: Tensor
    """Their dtype is that of all arithmetic between the matrix products."""
    ids_N: Tensor | None
    """The sampled tokens; None if they were not given."""
    may_be_masked: bool
    """Whether some weights may be 0. Such rows are left out of every sum, even if they are not finite."""

    def ids(self, rows: slice) -> Tensor | None:
        """Return the sampled tokens of `rows`, if they were given."""
        return None if self.ids_N is None else self.ids_N[rows]

    def masked(self, values_RX: Tensor, rows: slice) -> Tensor:
        """Set the values of rows of weight 0 to zero; multiplying by the weight would not: 0 · inf is NaN."""
        if not self.may_be_masked:
            return values_RX
        return values_RX.masked_fill((self.weights_N[rows] == 0).unsqueeze(-1), 0.0)


@dataclass(frozen=True)
class ChunkedPass:
    """One pass over all tokens: its inputs, and the sizes of a chunk and a block."""

    student: Projection
    teacher: LogitSource
    divergence: Divergence
    tokens: Tokens
    gradients: Gradients
    """What the pass adds up; no gradient is computed if it wants none."""
    wanted: WantedStatistics | None
    statistics: TokenStatistics | None
    """Filled by the pass; None, as `wanted`: no statistics."""
    chunk_tokens: int
    block_rows: int
    by_kernels: bool
    """Whether Triton's kernels do the work between the products; then a block is a whole chunk."""

    def run(self) -> tuple[Tensor, Tensor]:
        """Fill gradients and statistics; return Σ w D, and D [N]."""
        weights_N = self.tokens.weights_N
        per_token_N = torch.empty_like(weights_N)
        is_top_k = self.divergence.support == "top_k"
        block = self._top_k_block if is_top_k else self._kernel_block if self.by_kernels else self._block
        needs_student = not self._is_sparse or self.wanted is not None
        student_CV = self.student.allocate(self.chunk_tokens if needs_student else 0)
        teacher_CV = self.teacher.allocate(self.chunk_tokens)
        for chunk in slices(0, len(weights_N), self.chunk_tokens):
            num_rows = chunk.stop - chunk.start
            self.teacher.write_logits(chunk, teacher_CV[:num_rows])
            if needs_student:
                self.student.write_logits(chunk, student_CV[:num_rows])
            if is_top_k and self.by_kernels:  # of the whole chunk: a block is too small for a kernel
                self._write_statistics(chunk, student_CV[:num_rows], teacher_CV[:num_rows])
            for rows in slices(chunk.start, chunk.stop, self.block_rows):
                within = slice(rows.start - chunk.start, rows.stop - chunk.start)
                per_token_N[rows] = block(rows, student_CV[within], teacher_CV[within])
            if not self._is_sparse and self.gradients.any_wanted:
                hidden_CH = self.tokens.masked(self.student.hidden_NH[chunk], chunk)
                self.gradients.add(chunk, student_CV[:num_rows], self.student.weight_VH, hidden_CH)
        weighted_N = (weights_N * per_token_N).masked_fill_(weights_N == 0, 0.0)
        return weighted_N.sum(), per_token_N

    def _kernel_block(self, rows: slice, student_RV: Tensor, teacher_RV: Tensor) -> Tensor:
        """Return the block's divergence, and write its gradient over `student_RV`, by Triton's kernels."""
        token_ids_R, logits = self.tokens.ids(rows), self._logit_rows(student_RV, teacher_RV)
        sums = logits.sums(self.divergence, self.wanted)
        if self.statistics is not None and self.wanted is not None:
            plain = sums if self.divergence.temperature == 1.0 else logits.sums(Divergence(), self.wanted)
            self.statistics.write(rows, logits.statistics(plain, self.wanted, rows, token_ids_R))
        found = logits.divergence(sums, self.divergence, token_ids_R)
        divergence_R, factor_R1 = self._clip(found.divergence_R, rows)
        if self.gradients.any_wanted:
            found.write_gradient(factor_R1.squeeze(-1), self.tokens.weights_N[rows], token_ids_R)
        return divergence_R

    def _block(self, rows: slice, student_RV: Tensor, teacher_RV: Tensor) -> Tensor:
        """Return the block's divergence, and write its gradient over `student_RV`, by plain operations."""
        student_logits_RV = self.student.transform.apply(student_RV.to(self._dtype))
        teacher_logits_RV = self.teacher.transform.apply(teacher_RV.to(self._dtype))
        student, teacher = self._with_temperature(student_logits_RV), self._with_temperature(teacher_logits_RV)
        if self.statistics is not None and self.wanted is not None:
            plain = (student, teacher)
            if self.divergence.temperature != 1.0:
                plain = Distribution.of(student_logits_RV), Distribution.of(teacher_logits_RV)
            self.statistics.write(rows, block_statistics(*plain, self.wanted, rows, self.tokens.ids(rows)))
        divergence_R, gradient_RV = divergence_and_gradient(student, teacher, self.divergence, self.tokens.ids(rows))
        divergence_R, factor_R1 = self._clip(divergence_R, rows)
        if self.gradients.any_wanted:
            self.student.transform.chain_(gradient_RV, student_logits_RV)
            torch.mul(self.tokens.masked(gradient_RV, rows), factor_R1, out=student_RV)
        return divergence_R

    def _top_k_block(self, rows: slice, student_RV: Tensor, teacher_RV: Tensor) -> Tensor:
        """Return the block's divergence on the teacher's top-k tokens, and backpropagate it to their rows of the head,
        or write its gradient over `student_RV` if there are too many."""
        if not self.by_kernels:
            self._write_statistics(rows, student_RV, teacher_RV)
        teacher_RK, ids_RK = teacher_RV.topk(self._top_k, dim=-1)  # scale and cap keep the order of raw logits
        teacher_logits_RK = self.teacher.transform.apply(teacher_RK.to(self._dtype))
        if self._is_sparse:
            raw_RK, head_RKH = self.student.logits_at(rows, ids_RK, self._dtype)
        else:
            raw_RK, head_RKH = student_RV.gather(-1, ids_RK).to(self._dtype), None
        divergence_R, gradient_RK = self._top_k_gradient(self.student.transform.apply(raw_RK), teacher_logits_RK, rows)
        if self.gradients.any_wanted and head_RKH is not None:
            hidden_RH = self.tokens.masked(self.student.hidden_NH[rows], rows)
            self.gradients.add_at(rows, ids_RK, gradient_RK, head_RKH, hidden_RH)
        elif self.gradients.any_wanted:
            student_RV.zero_().scatter_(-1, ids_RK, gradient_RK.to(student_RV.dtype))
        return divergence_R

    def _write_statistics(self, rows: slice, student_RV: Tensor, teacher_RV: Tensor) -> None:
        if self.statistics is None or self.wanted is None:
            return
        token_ids_R = self.tokens.ids(rows)
        if self.by_kernels:
            logits = self._logit_rows(student_RV, teacher_RV)
            sums = logits.sums(Divergence(), self.wanted)
            self.statistics.write(rows, logits.statistics(sums, self.wanted, rows, token_ids_R))
            return
        student = Distribution.of(self.student.transform.apply(student_RV.to(self._dtype)))
        teacher = Distribution.of(self.teacher.transform.apply(teacher_RV.to(self._dtype)))
        self.statistics.write(rows, block_statistics(student, teacher, self.wanted, rows, token_ids_R))

    def _logit_rows(self, student_RV: Tensor, teacher_RV: Tensor) -> LogitRows:
        return LogitRows(student_RV, teacher_RV, self.student.transform, self.teacher.transform, self._dtype)

    def _top_k_gradient(
        self, student_logits_RK: Tensor, teacher_logits_RK: Tensor, rows: slice
    ) -> tuple[Tensor, Tensor]:
        """Return the clipped divergence on the teacher's top-k tokens and the weighted gradient in the student's raw
        logits."""
        student, teacher = self._with_temperature(student_logits_RK), self._with_temperature(teacher_logits_RK)
        divergence_R, gradient_RK = divergence_and_gradient(student, teacher, self.divergence, None)
        divergence_R, factor_R1 = self._clip(divergence_R, rows)
        self.student.transform.chain_(gradient_RK, student_logits_RK)
        return divergence_R, self.tokens.masked(gradient_RK, rows) * factor_R1

    @property
    def _is_sparse(self) -> bool:
        return num_sparse_tokens(self.divergence, len(self.student.weight_VH)) > 0

    @property
    def _top_k(self) -> int:
        return min(self.divergence.teacher_top_k, len(self.student.weight_VH))

    @property
    def _dtype(self) -> torch.dtype:
        return self.tokens.weights_N.dtype

    def _with_temperature(self, logits_RV: Tensor) -> Distribution:
        temperature = self.divergence.temperature
        return Distribution.of(logits_RV if temperature == 1.0 else logits_RV / temperature)

    def _clip(self, divergence_R: Tensor, rows: slice) -> tuple[Tensor, Tensor]:
        """Return the clipped divergence, and the factor [R, 1] of its gradient in the tempered logits."""
        factor_R = self.tokens.weights_N[rows] / self.divergence.temperature
        if self.divergence.token_clip:
            factor_R = factor_R.masked_fill(divergence_R > self.divergence.token_clip, 0.0)
            divergence_R = divergence_R.clamp(max=self.divergence.token_clip)
        return divergence_R, factor_R.unsqueeze(-1)


def num_sparse_tokens(divergence: Divergence, num_shared: int) -> int:
    """Return how many of a row's logits are computed one by one: K, or 0 if all are computed by one product."""
    is_sparse = divergence.support == "top_k" and SPARSE_SHARE * divergence.teacher_top_k <= num_shared
    return divergence.teacher_top_k if is_sparse else 0
