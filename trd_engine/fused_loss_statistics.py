"""What `fused_loss` can tell of each token besides its divergence, from the logits it holds anyway.

Shapes: N tokens, R the rows of one block of them, V the vocabulary, E the epistemic tokens.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields

import torch
from torch import Tensor

from trd_engine.fused_loss_gradient import Distribution


@dataclass(frozen=True)
class StatisticsRequest:
    """Asks `linear_divergence` for a `TokenStatistics`."""

    epistemic_token_ids: Sequence[int] = ()
    """Tokens that open a doubt ("Wait", "However"), each named once; none: the mass is 0."""


@dataclass(frozen=True)
class TokenStatistics:
    """Of both models' own, untempered distributions over the shared vocabulary; detached.

    Taken at temperature 1 over the full vocabulary whatever the loss takes, so that they compare across
    runs and with the sampler's log-probabilities. Entropies and log-probabilities are in nats.
    """

    student_entropy_N: Tensor
    teacher_entropy_N: Tensor
    top1_agreement_N: Tensor
    """1 where both models' likeliest token is the same, else 0."""
    teacher_epistemic_mass_N: Tensor
    """The teacher's probability of the requested epistemic tokens together."""
    student_logprob_N: Tensor | None
    """Of the sampled `token_ids_N`; None where none were given."""
    teacher_logprob_N: Tensor | None

    @classmethod
    def empty(cls, num_tokens: int, like: Tensor, *, with_sampled: bool) -> TokenStatistics:
        """Room for all tokens, in the dtype and on the device of `like`.

        Made before the pass begins: a small tensor that outlives its block of rows would stand in the gap that the
        block's large ones leave, and the heap would grow with every block (by 0.9 GB over 2,048 tokens).
        """
        always = [like.new_empty(num_tokens) for _ in range(4)]
        sampled = [like.new_empty(num_tokens) if with_sampled else None for _ in range(2)]
        return cls(always[0], always[1], always[2], always[3], sampled[0], sampled[1])

    def put(self, rows: slice, block: TokenStatistics) -> None:
        """Write the statistics of some rows into their place."""
        for field in fields(self):
            room_N, values_R = getattr(self, field.name), getattr(block, field.name)
            if room_N is not None:
                room_N[rows] = values_R


def block_statistics(
    student: Distribution, teacher: Distribution, epistemic_ids_E: Tensor, token_ids_R: Tensor | None
) -> TokenStatistics:
    """The statistics of one block of rows, from untempered distributions over the full vocabulary."""
    ids_R1 = None if token_ids_R is None else token_ids_R.unsqueeze(-1)
    agrees_R = student.logits_RV.argmax(-1) == teacher.logits_RV.argmax(-1)
    return TokenStatistics(
        student_entropy_N=_entropy(student),
        teacher_entropy_N=_entropy(teacher),
        top1_agreement_N=agrees_R.to(teacher.probs_RV.dtype),
        teacher_epistemic_mass_N=teacher.probs_RV.index_select(-1, epistemic_ids_E).sum(-1),
        student_logprob_N=None if ids_R1 is None else student.logprob(ids_R1).squeeze(-1),
        teacher_logprob_N=None if ids_R1 is None else teacher.logprob(ids_R1).squeeze(-1),
    )


def _entropy(distribution: Distribution) -> Tensor:
    mean_logit_R: Tensor = torch.linalg.vecdot(distribution.probs_RV, distribution.logits_RV)
    return distribution.log_normalizer_R1.squeeze(-1) - mean_logit_R
