"""What the token loss is: one divergence per position between student and teacher.

Owns the definition, in plain differentiable operations on whole logits; it is the reference that the
one-pass form in `fused_loss` must agree with. It knows nothing of models, masks or means.

Shapes: N tokens, V the vocabulary, K the teacher's top-k tokens.
p is the student's distribution and q the teacher's, both softmax(logits / temperature).
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal, get_args

import torch
from torch import Tensor

Kind = Literal["forward_kl", "reverse_kl", "jsd"]
Support = Literal["full", "top_k", "sampled"]

MAX_LOG_RATIO = 20.0
"""Bound on log q/p in the k3 estimator, whose exponential would overflow without it."""


@dataclass(frozen=True)
class Divergence:
    """Which divergence, over which tokens of the vocabulary.

    forward_kl = KL(q‖p), reverse_kl = KL(p‖q), jsd = β KL(q‖m) + (1−β) KL(p‖m) with m = (1−β) p + β q.
    """

    kind: Kind = "forward_kl"
    support: Support = "full"
    """full: the whole vocabulary; top_k: the teacher's k likeliest tokens, both renormalised on them;
    sampled: the Monte-Carlo estimate on the one token that was sampled."""
    teacher_top_k: int = 32
    """Of support top_k; more than the vocabulary means all of it."""
    beta: float = 0.5
    """Of kind jsd. By convention 0 is the forward and 1 the reverse KL, where the formula itself gives 0."""
    temperature: float = 1.0
    token_clip: float = 0.0
    """Each token's divergence is cut to at most this, and has no gradient above it; 0: no cut."""

    def __post_init__(self) -> None:
        _require(self.kind in get_args(Kind), "kind", self.kind, f"use one of {', '.join(get_args(Kind))}")
        _require(
            self.support in get_args(Support), "support", self.support, f"use one of {', '.join(get_args(Support))}"
        )
        _require(
            isinstance(self.teacher_top_k, int) and self.teacher_top_k >= 1,
            "teacher_top_k",
            self.teacher_top_k,
            "use a whole number of tokens, 1 or more",
        )
        _require(0 <= self.beta <= 1, "beta", self.beta, "use a number from 0 (forward KL) to 1 (reverse KL)")
        _require(_is_positive(self.temperature), "temperature", self.temperature, "use a finite number above 0")
        _require(
            self.token_clip == 0 or _is_positive(self.token_clip),
            "token_clip",
            self.token_clip,
            "use 0 for no clip, or a finite number above 0",
        )
        _require(
            self.kind != "jsd" or self.support == "full",
            "support",
            self.support,
            "jsd is defined on the full vocabulary only; use support full, or kind forward_kl or reverse_kl",
        )

    @property
    def effective_kind(self) -> Kind:
        """The kind with jsd's two ends resolved: β=0 is forward_kl and β=1 reverse_kl."""
        if self.kind != "jsd" or 0 < self.beta < 1:
            return self.kind
        return "forward_kl" if self.beta == 0 else "reverse_kl"


def token_divergence(
    student_logits_NV: Tensor, teacher_logits_NV: Tensor, divergence: Divergence, *, token_ids_N: Tensor | None = None
) -> Tensor:
    """Divergence in nats at each of N positions, differentiable in the student's logits.

    Vocabularies padded to different sizes meet on their shared prefix: both softmaxes run over the first
    min(V_student, V_teacher) tokens. The teacher's logits get no gradient. bf16 and fp16 logits are taken
    up to fp32; the result is fp32, or fp64 for fp64 logits. Logits must be finite.

    `token_ids_N`, the sampled tokens, are needed by support "sampled", and by no other. There the forward
    kind is log q − log p, and the reverse kind the k3 estimator r − 1 − log r with r = q/p and log r at
    most 20 (beyond it the gradient is zero).

    Raises ValueError where shapes do not fit, or `token_ids_N` is missing or holds what is no token of both.
    """
    if student_logits_NV.dim() != 2 or teacher_logits_NV.dim() != 2 or len(student_logits_NV) != len(teacher_logits_NV):
        raise ValueError(
            "student and teacher logits must be [tokens, vocabulary] of the same tokens, not "
            f"{tuple(student_logits_NV.shape)} and {tuple(teacher_logits_NV.shape)}"
        )
    num_shared = min(student_logits_NV.shape[1], teacher_logits_NV.shape[1])
    check_token_ids(divergence, token_ids_N, len(student_logits_NV), num_shared)
    student_NV, teacher_NV = student_logits_NV[:, :num_shared], teacher_logits_NV[:, :num_shared].detach()
    if divergence.support == "top_k":
        teacher_NV, top_ids_NK = teacher_NV.topk(min(divergence.teacher_top_k, num_shared), dim=-1)
        student_NV = student_NV.gather(-1, top_ids_NK)
    log_p_NV, log_q_NV = _log_probs(student_NV, divergence), _log_probs(teacher_NV, divergence)
    if divergence.support == "sampled":
        assert token_ids_N is not None
        per_token_N = _sampled(log_p_NV, log_q_NV, token_ids_N, divergence)
    else:
        per_token_N = _summed(log_p_NV, log_q_NV, divergence)
    return per_token_N.clamp(max=divergence.token_clip) if divergence.token_clip else per_token_N


def check_token_ids(divergence: Divergence, token_ids_N: Tensor | None, num_tokens: int, num_shared: int) -> None:
    """Raises ValueError where the sampled tokens are missing, are not one a position, or, looked up where it costs
    nothing, lie beyond the vocabulary that both models share."""
    if divergence.support == "sampled" and token_ids_N is None:
        raise ValueError("support 'sampled' needs token_ids_N, the sampled token of each position")
    if token_ids_N is not None and token_ids_N.shape != (num_tokens,):
        raise ValueError(f"token_ids_N must have shape ({num_tokens},), not {tuple(token_ids_N.shape)}")
    if token_ids_N is None or token_ids_N.device.type != "cpu":  # an accelerator would have to be waited for
        return
    foreign_N = (token_ids_N < 0) | (token_ids_N >= num_shared)
    if bool(foreign_N.any()):
        row = int(foreign_N.nonzero()[0])
        raise ValueError(
            f"token_ids_N[{row}] is {int(token_ids_N[row])}: use ids of the {num_shared} tokens that student and "
            "teacher share"
        )


def _log_probs(logits_NV: Tensor, divergence: Divergence) -> Tensor:
    dtype = torch.promote_types(logits_NV.dtype, torch.float32)
    return (logits_NV.to(dtype) / divergence.temperature).log_softmax(-1)


def _summed(log_p_NV: Tensor, log_q_NV: Tensor, divergence: Divergence) -> Tensor:
    kind = divergence.effective_kind
    if kind == "forward_kl":
        return (log_q_NV.exp() * (log_q_NV - log_p_NV)).sum(-1)
    if kind == "reverse_kl":
        return (log_p_NV.exp() * (log_p_NV - log_q_NV)).sum(-1)
    beta = divergence.beta
    log_m_NV = torch.logaddexp(log_p_NV + math.log1p(-beta), log_q_NV + math.log(beta))
    teacher_part_N = (log_q_NV.exp() * (log_q_NV - log_m_NV)).sum(-1)
    student_part_N = (log_p_NV.exp() * (log_p_NV - log_m_NV)).sum(-1)
    return beta * teacher_part_N + (1 - beta) * student_part_N


def _sampled(log_p_NV: Tensor, log_q_NV: Tensor, token_ids_N: Tensor, divergence: Divergence) -> Tensor:
    ids_N1 = token_ids_N.unsqueeze(-1)
    log_ratio_N = (log_q_NV.gather(-1, ids_N1) - log_p_NV.gather(-1, ids_N1)).squeeze(-1)
    if divergence.kind == "forward_kl":
        return log_ratio_N
    log_ratio_N = log_ratio_N.clamp(max=MAX_LOG_RATIO)
    return log_ratio_N.expm1() - log_ratio_N


def _is_positive(number: float) -> bool:
    return math.isfinite(number) and number > 0


def _require(holds: bool, field: str, value: object, remedy: str) -> None:
    if not holds:
        raise ValueError(f"Divergence.{field} is {value!r}: {remedy}")
