"""The token loss: one divergence per position between student and teacher, and its schedule over a run.

Owns the definition, in plain differentiable operations on whole logits: the reference that `linear_divergence` must
agree with. It knows nothing of models, masks or means.

Shapes: N tokens, V the vocabulary, K the teacher's top-k tokens.
p is the student's distribution and q the teacher's, both softmax(logits / temperature).
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import Literal, get_args

import torch
from torch import Tensor

from trd_engine.config import LossConfig

Kind = Literal["forward_kl", "reverse_kl", "jsd"]
Support = Literal["full", "top_k", "sampled"]

MAX_LOG_RATIO = 20.0
"""Upper bound on log q/p in the k3 estimator, whose exponential would overflow without it."""


@dataclass(frozen=True)
class Divergence:
    """Which divergence, over which tokens of the vocabulary.

    forward_kl = KL(q‖p), reverse_kl = KL(p‖q), jsd = β KL(q‖m) + (1−β) KL(p‖m) with m = (1−β) p + β q.
    """

    kind: Kind = "forward_kl"
    support: Support = "full"
    """full: the whole vocabulary; top_k: the teacher's k most likely tokens, with both distributions renormalised on
    them; sampled: the Monte-Carlo estimate on the sampled token."""
    teacher_top_k: int = 32
    """Support top_k only. A number above the vocabulary's size means all of it."""
    beta: float = 0.5
    """Kind jsd only. By convention 0 is the forward KL and 1 the reverse KL; the formula itself gives 0 there."""
    temperature: float = 1.0
    token_clip: float = 0.0
    """Upper bound on each token's divergence, which has no gradient above it; 0: no bound."""

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
        """Kind, with jsd at β = 0 resolved to forward_kl and at β = 1 to reverse_kl."""
        if self.kind != "jsd" or 0 < self.beta < 1:
            return self.kind
        return "forward_kl" if self.beta == 0 else "reverse_kl"


def divergence_of(loss: LossConfig, served_top_k: int | None) -> Divergence:
    """Return the divergence of a spec's loss; `served_top_k` is the number of tokens that a served teacher scores.

    The cross-entropy is the forward KL from a teacher whose probability of each target token is 1.
    """
    return Divergence(
        kind="forward_kl" if loss.divergence == "cross_entropy" else loss.divergence,
        support=loss.support,
        teacher_top_k=served_top_k or loss.teacher_top_k,
        beta=loss.beta,
        temperature=loss.temperature,
        token_clip=loss.token_clip,
    )


def divergence_at(divergence: Divergence, reverse_after: float | None, step: int, num_steps: int) -> Divergence:
    """Return the divergence of step `step` (from 1) of `num_steps`: the given one, and reverse KL after the share
    `reverse_after` of all steps. None: always the given one.

    These are the two stages of PACED, arXiv 2603.11178: first cover the teacher's modes, then choose one. A pure
    function of the step, so that a resumed run needs no state for it.
    """
    if reverse_after is None or step <= reverse_after * num_steps:
        return divergence
    return replace(divergence, kind="reverse_kl")


def token_divergence(
    student_logits_NV: Tensor, teacher_logits_NV: Tensor, divergence: Divergence, *, token_ids_N: Tensor | None = None
) -> Tensor:
    """Compute the divergence in nats at each of N positions, differentiable in the student's logits.

    If the vocabularies are padded to different sizes, both softmaxes run over the first min(V_student, V_teacher)
    tokens. The teacher's logits get no gradient. bf16 and fp16 logits are converted to fp32; the result is fp32, or
    fp64 for fp64 logits. Logits must be finite.

    Only support "sampled" needs `token_ids_N`, the sampled tokens. Its forward kind is log q − log p, and its reverse
    kind the k3 estimator r − 1 − log r with r = q/p and log r at most 20 (above it the gradient is zero).

    Raises ValueError if shapes do not match, or if `token_ids_N` is missing or has an id outside a vocabulary.
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
    """Raise ValueError if the sampled tokens are missing, are not one per position, or are outside the vocabulary that
    both models share; the last is checked on a CPU only, since it costs nothing there."""
    if divergence.support == "sampled" and token_ids_N is None:
        raise ValueError("support 'sampled' needs token_ids_N, the sampled token of each position")
    if token_ids_N is not None and token_ids_N.shape != (num_tokens,):
        raise ValueError(f"token_ids_N must have shape ({num_tokens},), not {tuple(token_ids_N.shape)}")
    if token_ids_N is None or token_ids_N.device.type != "cpu":  # reading it would wait for an accelerator
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
