"""The divergences of `divergence` with their gradients in the student's logits in closed form.

Owns the arithmetic on one block of logits. `divergence` owns the definitions, which the tests compare it with.

Shapes: R rows of a block, V the vocabulary or the teacher's top-k tokens.
With z the student's tempered logits, p = softmax(z) and q the teacher's distribution:

    forward KL    D = Σ q log q/p                                      ∂D/∂z = p − q
    reverse KL    D = Σ p log p/q                                      ∂D/∂z = p (log p/q − D)
    JSD(β)        D = β Σ q log q/m + (1−β) A,  A = Σ p log p/m        ∂D/∂z = (1−β) p (log p/m − A)
    sampled y     forward: D = log q_y/p_y                             ∂D/∂z = p − 1_y
                  reverse: D = r − 1 − log r,  r = q_y/p_y             ∂D/∂z = (r − 1) (p − 1_y)

JSD's gradient is so short because the terms through m cancel: β q + (1−β) p = m.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from trd_engine.distillation.losses.divergence import MAX_LOG_RATIO, Divergence, Kind

SOFTPLUS_THRESHOLD = 80.0
"""Beyond it softplus(x) is x to the last bit of fp64, and e^x still fits fp32."""


@dataclass(frozen=True)
class Distribution:
    """softmax(logits). Log-probabilities are logits − log_normalizer and are not stored."""

    logits_RV: Tensor
    probs_RV: Tensor
    log_normalizer_R1: Tensor

    @classmethod
    def of(cls, logits_RV: Tensor) -> Distribution:
        """Compute the softmax with one exponential per logit: the normalizer is z_max − log p_max."""
        probs_RV = logits_RV.softmax(-1)
        log_normalizer_R1 = logits_RV.amax(-1, keepdim=True) - probs_RV.amax(-1, keepdim=True).log_()
        return cls(logits_RV, probs_RV, log_normalizer_R1)

    def logprob(self, ids_R1: Tensor) -> Tensor:
        """Return the log-probability of one token per row, [R, 1]."""
        return self.logits_RV.gather(-1, ids_R1) - self.log_normalizer_R1


def divergence_and_gradient(
    student: Distribution, teacher: Distribution, divergence: Divergence, token_ids_R: Tensor | None
) -> tuple[Tensor, Tensor]:
    """Return the divergence [R] before the clip and its gradient [R, V] in the student's tempered logits.

    Both distributions are over the support. Overwrites the student's probabilities.
    """
    if divergence.support == "sampled":
        assert token_ids_R is not None
        return _sampled(student, teacher, divergence, token_ids_R.unsqueeze(-1))
    kind = divergence.effective_kind
    if kind == "forward_kl":
        divergence_R = row_dot(teacher.probs_RV, _log_ratio(teacher, student))
        return divergence_R, student.probs_RV.sub_(teacher.probs_RV)
    if kind == "reverse_kl":
        log_ratio_RV = _log_ratio(student, teacher)
        divergence_R = row_dot(student.probs_RV, log_ratio_RV)
        return divergence_R, log_ratio_RV.sub_(divergence_R.unsqueeze(-1)).mul_(student.probs_RV)
    return _jsd(student, teacher, divergence.beta)


def _jsd(student: Distribution, teacher: Distribution, beta: float) -> tuple[Tensor, Tensor]:
    log_q_over_p_RV = _log_ratio(teacher, student)
    # m/p = (1−β) + β q/p = (1−β) (1 + e^x) with x = log q/p + log β/(1−β): no probability can underflow
    x_RV = log_q_over_p_RV + (math.log(beta) - math.log1p(-beta))
    log_m_over_p_RV = torch.nn.functional.softplus(x_RV, threshold=SOFTPLUS_THRESHOLD).add_(math.log1p(-beta))
    student_part_R = row_dot(student.probs_RV, log_m_over_p_RV).neg_()
    teacher_part_R = row_dot(teacher.probs_RV, log_q_over_p_RV.sub_(log_m_over_p_RV))
    gradient_RV = log_m_over_p_RV.add_(student_part_R.unsqueeze(-1)).mul_(student.probs_RV).mul_(beta - 1)
    return beta * teacher_part_R + (1 - beta) * student_part_R, gradient_RV


def sampled_divergence(log_ratio_R: Tensor, kind: Kind) -> tuple[Tensor, Tensor]:
    """Return the divergence on the sampled token from log q_y/p_y, and the factor of p − 1_y in its gradient."""
    if kind == "forward_kl":
        return log_ratio_R, torch.ones_like(log_ratio_R)
    bounded_R = log_ratio_R.clamp(max=MAX_LOG_RATIO)
    slope_R = bounded_R.expm1()
    return slope_R - bounded_R, slope_R.masked_fill(log_ratio_R > MAX_LOG_RATIO, 0.0)


def _sampled(
    student: Distribution, teacher: Distribution, divergence: Divergence, ids_R1: Tensor
) -> tuple[Tensor, Tensor]:
    log_ratio_R1 = teacher.logprob(ids_R1) - student.logprob(ids_R1)
    gradient_RV = student.probs_RV.scatter_add_(-1, ids_R1, torch.full_like(log_ratio_R1, -1.0))
    divergence_R1, slope_R1 = sampled_divergence(log_ratio_R1, divergence.kind)
    if divergence.kind == "reverse_kl":
        gradient_RV.mul_(slope_R1)
    return divergence_R1.squeeze(-1), gradient_RV


def _log_ratio(left: Distribution, right: Distribution) -> Tensor:
    # subtract the logits' common offset before any sum: the remaining terms are as small as the divergence
    return (left.logits_RV - right.logits_RV).sub_(left.log_normalizer_R1 - right.log_normalizer_R1)


def row_dot(left_RV: Tensor, right_RV: Tensor) -> Tensor:
    """Return Σ left · right of each row. On a CPU no product [R, V] is written: one dot product a row reads both."""
    if left_RV.device.type != "cpu" or not len(left_RV):
        return (left_RV * right_RV).sum(-1)
    return torch.stack([left_V.dot(right_V) for left_V, right_V in zip(left_RV, right_RV, strict=True)])
