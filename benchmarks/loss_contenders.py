"""The contenders of `benchmarks.loss`: each does one forward and one backward pass on the same inputs.

N tokens, H hidden size, V vocabulary; all are the forward KL with a mean over tokens.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional

from trd_engine.distillation.losses.divergence import Divergence
from trd_engine.distillation.losses.linear_divergence import CHUNK_BYTES_CPU, StatisticsRequest, linear_divergence
from trd_engine.distillation.losses.projection import Gradients, Projection, slices

FORWARD_KL = Divergence("forward_kl")


@dataclass(frozen=True)
class Inputs:
    """Last hidden states and heads of two models of the same size."""

    student_hidden_NH: Tensor
    student_head_VH: Tensor
    teacher_hidden_NH: Tensor
    teacher_head_VH: Tensor

    @classmethod
    def random(
        cls, num_tokens: int, hidden: int, vocabulary: int, dtype: torch.dtype, device: torch.device | str = "cpu"
    ) -> Inputs:
        """Create inputs whose logits have unit size, as in trained models; equal for every contender."""
        generator = torch.Generator(device).manual_seed(0)

        def randn(*shape: int) -> Tensor:
            return torch.randn(*shape, generator=generator, device=device).to(dtype)

        scale = hidden**-0.5
        return cls(
            randn(num_tokens, hidden).requires_grad_(),
            randn(vocabulary, hidden).mul_(scale).requires_grad_(),
            randn(num_tokens, hidden),
            randn(vocabulary, hidden).mul_(scale),
        )

    def head(self, *, frozen: bool) -> Tensor:
        """Return the student's head, with or without its gradient."""
        return self.student_head_VH.detach() if frozen else self.student_head_VH

    def forget_gradients(self) -> None:
        """Clear the gradients, as an optimizer does between steps."""
        self.student_hidden_NH.grad = self.student_head_VH.grad = None


Contender = Callable[[Inputs], Tensor]


def dense(inputs: Inputs, *, frozen: bool = False) -> Tensor:
    """Compute the loss in the straightforward way: both models' logits, log_softmax, kl_div."""
    log_p_NV = functional.log_softmax(inputs.student_hidden_NH @ inputs.head(frozen=frozen).t(), dim=-1)
    with torch.no_grad():
        log_q_NV = functional.log_softmax(inputs.teacher_hidden_NH @ inputs.teacher_head_VH.t(), dim=-1)
    loss = functional.kl_div(log_p_NV, log_q_NV, reduction="batchmean", log_target=True)
    loss.backward()
    return loss.detach()


def ours(inputs: Inputs, *, frozen: bool = False, statistics: StatisticsRequest | None = None) -> Tensor:
    """Run `trd_engine.distillation.losses.linear_divergence.linear_divergence` at its defaults."""
    loss = linear_divergence(
        Projection(inputs.student_hidden_NH, inputs.head(frozen=frozen)),
        Projection(inputs.teacher_hidden_NH, inputs.teacher_head_VH),
        FORWARD_KL,
        statistics=statistics,
    )[0]
    loss.backward()
    return loss.detach()


def products(inputs: Inputs, *, frozen: bool = False) -> Tensor:
    """Compute the lower bound: only the matrix products that every exact loss needs, computed as in `ours`."""
    with torch.no_grad():
        student = Projection(inputs.student_hidden_NH, inputs.student_head_VH)
        teacher = Projection(inputs.teacher_hidden_NH, inputs.teacher_head_VH)
        leaves = (inputs.student_hidden_NH, inputs.student_head_VH, None)
        gradients = Gradients.zeros(leaves, (True, not frozen, False), student)
        chunk_tokens = CHUNK_BYTES_CPU // (2 * student.weight_VH.nbytes // student.weight_VH.shape[1])
        student_CV, teacher_CV = student.allocate(chunk_tokens), teacher.allocate(chunk_tokens)
        for rows in slices(0, len(student.hidden_NH), chunk_tokens):
            num_rows = rows.stop - rows.start
            teacher.write_logits(rows, teacher_CV[:num_rows])
            student.write_logits(rows, student_CV[:num_rows])
            gradients.add(rows, student_CV[:num_rows], student.weight_VH, student.hidden_NH[rows])
    return torch.tensor(float("nan"))


@contextmanager
def trl_tiles(num_tokens: int | None, num_vocabulary: int | None) -> Iterator[None]:
    """Within the block, give TRL these tile sizes, which it reads from its module; None leaves the default."""
    from trl.kernels import chunked_divergence

    before = chunked_divergence.TOKEN_CHUNK_SIZE, chunked_divergence.VOCAB_CHUNK_SIZE
    chunked_divergence.TOKEN_CHUNK_SIZE = num_tokens or before[0]
    chunked_divergence.VOCAB_CHUNK_SIZE = num_vocabulary or before[1]
    try:
        yield
    finally:
        chunked_divergence.TOKEN_CHUNK_SIZE, chunked_divergence.VOCAB_CHUNK_SIZE = before


def trl(inputs: Inputs, *, tiles: tuple[int | None, int | None], frozen: bool = False) -> Tensor:
    """Run TRL's chunked divergence, which recomputes the logits in the backward pass."""
    from trl.kernels.chunked_divergence import ChunkedDivergenceFunction

    with trl_tiles(*tiles):
        per_token_N, _ = ChunkedDivergenceFunction.apply(
            inputs.student_hidden_NH,
            inputs.head(frozen=frozen),
            None,
            inputs.teacher_hidden_NH,
            inputs.teacher_head_VH,
            None,
            0.0,
        )
        loss = per_token_N.mean()
        loss.backward()
    return loss.detach()


def liger(inputs: Inputs, *, chunk_size: int, compiled: bool) -> Tensor:
    """Run Liger's chunked JSD at β = 0, which Liger also defines as the forward KL; it has no frozen head."""
    from liger_kernel.chunked_loss import LigerFusedLinearJSDLoss

    loss_of = LigerFusedLinearJSDLoss(
        weight_hard_loss=0.0, weight_soft_loss=1.0, beta=0.0, compiled=compiled, chunk_size=chunk_size
    )
    labels_N = torch.zeros_like(inputs.student_hidden_NH[:, 0], dtype=torch.long)
    loss = loss_of(
        inputs.student_hidden_NH, inputs.student_head_VH, inputs.teacher_hidden_NH, inputs.teacher_head_VH, labels_N
    )
    loss.backward()
    return loss.detach()


CONTENDERS: dict[str, Contender] = {
    "dense": dense,
    "ours": ours,
    "ours, with statistics": lambda inputs: ours(inputs, statistics=StatisticsRequest((1, 2, 3))),
    "products alone": products,
    "TRL, default tiles": lambda inputs: trl(inputs, tiles=(None, None)),
    "TRL, tiles 256 x 8192": lambda inputs: trl(inputs, tiles=(256, 8192)),
    "Liger, chunk 128": lambda inputs: liger(inputs, chunk_size=128, compiled=False),
    "Liger, default chunk, compiled": lambda inputs: liger(inputs, chunk_size=1024, compiled=True),
    "dense, frozen head": lambda inputs: dense(inputs, frozen=True),
    "ours, frozen head": lambda inputs: ours(inputs, frozen=True),
    "products alone, frozen head": lambda inputs: products(inputs, frozen=True),
    "TRL, tiles 256 x 8192, frozen head": lambda inputs: trl(inputs, tiles=(256, 8192), frozen=True),
}
