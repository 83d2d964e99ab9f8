"""Two last layers and a float64 reference for tests of the one-pass loss."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import pytest
import torch
from torch import Tensor

from trd_engine.distillation.losses import chunked_pass as fused_loss_pass
from trd_engine.distillation.losses import row_kernels
from trd_engine.distillation.losses.divergence import Divergence
from trd_engine.distillation.losses.linear_divergence import Projection, linear_divergence

N, H, G, V, V_TEACHER, K = 7, 4, 3, 11, 13, 4
SUPPORTS = [
    Divergence(kind, support, teacher_top_k=K)
    for kind, support in [
        ("forward_kl", "full"),
        ("reverse_kl", "full"),
        ("jsd", "full"),
        ("forward_kl", "top_k"),
        ("reverse_kl", "top_k"),
        ("forward_kl", "sampled"),
        ("reverse_kl", "sampled"),
    ]
]


@pytest.fixture(autouse=True)
def small_sizes(monkeypatch: pytest.MonkeyPatch) -> None:
    """Vocabularies as small as these have too few tokens for the separate products of top-k tokens, and for
    several of the kernels' blocks (test_row_kernels.py runs these tests with the kernels)."""
    monkeypatch.setattr(fused_loss_pass, "SPARSE_SHARE", 1)
    monkeypatch.setattr(row_kernels, "BLOCK", 8)
    monkeypatch.setattr(row_kernels, "ROWS", 8)


def projections(
    student_hidden: Tensor, student_head: Tensor, teacher_hidden: Tensor, teacher_head: Tensor
) -> tuple[Projection, Projection]:
    """Return the student's and the teacher's logits, without bias, scale and cap."""
    return Projection(student_hidden, student_head), Projection(teacher_hidden, teacher_head)


@dataclass
class Case:
    """Two last layers, the teacher's of another hidden size and with a wider vocabulary."""

    student_hidden: Tensor
    student_head: Tensor
    student_bias: Tensor
    teacher_hidden: Tensor
    teacher_head: Tensor
    teacher_bias: Tensor
    token_weights: Tensor
    token_ids: Tensor

    def loss(
        self,
        divergence: Divergence,
        student: dict[str, Any] | None = None,
        teacher: dict[str, Any] | None = None,
        **options: Any,
    ) -> Any:
        """Compute the loss under test with the case's weights and sampled tokens, unless the options have others;
        `student` and `teacher` are options of the projections."""
        return linear_divergence(
            Projection(self.student_hidden, self.student_head, **(student or {})),
            Projection(self.teacher_hidden, self.teacher_head, **(teacher or {})),
            divergence,
            **{"token_weights_N": self.token_weights, "token_ids_N": self.token_ids, **options},
        )

    def student_logits(self) -> Tensor:
        """Compute the student's logits without bias, scale and cap."""
        return self.student_hidden @ self.student_head.t()

    def teacher_logits(self) -> Tensor:
        """Compute the teacher's logits without bias, scale and cap."""
        return self.teacher_hidden @ self.teacher_head.t()


def make_case(
    dtype: torch.dtype = torch.float64,
    num_tokens: int = N,
    student_vocabulary: int = V,
    teacher_vocabulary: int = V_TEACHER,
    trained: tuple[str, ...] = ("student_hidden", "student_head", "student_bias"),
    seed: int = 0,
) -> Case:
    generator = torch.Generator().manual_seed(seed)

    def randn(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator, dtype=torch.float64).to(dtype)

    case = Case(
        randn(num_tokens, H),
        randn(student_vocabulary, H),
        randn(student_vocabulary),
        randn(num_tokens, G),
        randn(teacher_vocabulary, G),
        randn(teacher_vocabulary),
        torch.rand(num_tokens, generator=generator, dtype=torch.float64).to(dtype),
        torch.randint(min(student_vocabulary, teacher_vocabulary), (num_tokens,), generator=generator),
    )
    for name in trained:
        getattr(case, name).requires_grad_()
    return case


def exact_logits(case: Case) -> tuple[Tensor, Tensor]:
    """Compute both models' logits in float64, differentiable in the student's inputs."""
    return (
        case.student_hidden.double() @ case.student_head.double().t(),
        case.teacher_hidden.double() @ case.teacher_head.double().t(),
    )


def gradients(loss: Tensor, case: Case) -> tuple[Tensor, Tensor]:
    return torch.autograd.grad(loss, (case.student_hidden, case.student_head))
