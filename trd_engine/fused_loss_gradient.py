"""The divergences of `losses` once more, with their gradients in the student's logits in closed form.

Owns the arithmetic on one block of logits; `losses` owns what it means, and the tests tie the two.

Shapes: R the rows of a block, V the vocabulary, K the teacher's top-k tokens.
With z the student's logits, p = softmax(z), q the teacher's distribution and a_v the per-token terms:

    forward KL    D = Σ q (log q − log p)                        ∂D/∂z = p − q
    reverse KL    D = Σ p a,  a = log p − log q                  ∂D/∂z = p (a − D)
    JSD(β)        D = β Σ q (log q − log m) + (1−β) A,
                  A = Σ p a,  a = log p − log m                  ∂D/∂z = (1−β) p (a − A)
    sampled y     forward: D = log q_y − log p_y                 ∂D/∂z = p − 1_y
                  reverse: D = r − 1 − log r,  r = q_y / p_y     ∂D/∂z = (r − 1) (p − 1_y)

JSD's gradient is so short because the terms through m cancel: β q + (1−β) p = m.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from trd_engine.losses import MAX_LOG_RATIO, Divergence


def divergence_and_gradient(
    log_p_RV: Tensor, log_q_RV: Tensor, divergence: Divergence, token_ids_R: Tensor | None
) -> tuple[Tensor, Tensor]:
    """Per-token divergence [R], unclipped, and its gradient [R, V] in the student's tempered logits.

    Takes tempered log-probabilities over the support. Both may be overwritten.
    """
    if divergence.support == "sampled":
        assert token_ids_R is not None
        return _sampled(log_p_RV, log_q_RV, divergence, token_ids_R.unsqueeze(-1))
    kind = divergence.effective_kind
    if kind == "forward_kl":
        return _forward(log_p_RV, log_q_RV)
    if kind == "reverse_kl":
        return _reverse(log_p_RV, log_q_RV)
    return _jsd(log_p_RV, log_q_RV, divergence.beta)


def _forward(log_p_RV: Tensor, log_q_RV: Tensor) -> tuple[Tensor, Tensor]:
    q_RV = log_q_RV.exp()
    divergence_R = _row_dot(q_RV, log_q_RV.sub_(log_p_RV))
    return divergence_R, log_p_RV.exp_().sub_(q_RV)


def _reverse(log_p_RV: Tensor, log_q_RV: Tensor) -> tuple[Tensor, Tensor]:
    a_RV = torch.sub(log_p_RV, log_q_RV, out=log_q_RV)
    p_RV = log_p_RV.exp_()
    divergence_R = _row_dot(p_RV, a_RV)
    return divergence_R, a_RV.sub_(divergence_R.unsqueeze(-1)).mul_(p_RV)


def _jsd(log_p_RV: Tensor, log_q_RV: Tensor, beta: float) -> tuple[Tensor, Tensor]:
    log_m_RV = torch.logaddexp(log_p_RV + math.log1p(-beta), log_q_RV + math.log(beta))
    q_RV = log_q_RV.exp()
    teacher_part_R = _row_dot(q_RV, log_q_RV.sub_(log_m_RV))
    p_RV = log_p_RV.exp()
    a_RV = log_p_RV.sub_(log_m_RV)
    student_part_R = _row_dot(p_RV, a_RV)
    gradient_RV = a_RV.sub_(student_part_R.unsqueeze(-1)).mul_(p_RV).mul_(1 - beta)
    return beta * teacher_part_R + (1 - beta) * student_part_R, gradient_RV


def _sampled(log_p_RV: Tensor, log_q_RV: Tensor, divergence: Divergence, ids_R1: Tensor) -> tuple[Tensor, Tensor]:
    log_ratio_R1 = log_q_RV.gather(-1, ids_R1) - log_p_RV.gather(-1, ids_R1)
    p_RV = log_p_RV.exp_()
    gradient_RV = p_RV.scatter_add_(-1, ids_R1, p_RV.new_full((1, 1), -1.0).expand_as(ids_R1))
    if divergence.kind == "forward_kl":
        return log_ratio_R1.squeeze(-1), gradient_RV
    bounded_R1 = log_ratio_R1.clamp(max=MAX_LOG_RATIO)
    slope_R1 = bounded_R1.expm1()
    gradient_RV.mul_(slope_R1.where(log_ratio_R1 <= MAX_LOG_RATIO, 0.0))
    return (slope_R1 - bounded_R1).squeeze(-1), gradient_RV


def _row_dot(left_RV: Tensor, right_RV: Tensor) -> Tensor:
    # a batched product of one row with one column: no [R, V] of terms is written
    return torch.bmm(left_RV.unsqueeze(1), right_RV.unsqueeze(2)).view(-1)
