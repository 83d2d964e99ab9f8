"""Statistics of each token that `linear_divergence` computes from the logits it has anyway.

Shapes: N tokens, R the rows of one block of them, V the vocabulary, E the epistemic tokens.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields

from torch import Tensor

from trd_engine.distillation.losses.gradient import Distribution, row_dot


@dataclass(frozen=True)
class StatisticsRequest:
    """Which `TokenStatistics` to compute."""

    epistemic_token_ids: Sequence[int] = ()
    """Distinct tokens that open a doubt ("Wait", "However"); if there are none, their mass is 0."""
    modes: bool = False
    """Compute the probabilities of the teacher's two most likely tokens that are not epistemic."""
    watched_ids_N: Tensor | None = None
    """One token per position, other than the sampled one, whose probability under the teacher to compute."""


@dataclass(frozen=True)
class WantedStatistics:
    """A `StatisticsRequest` on the device of the pass."""

    epistemic_ids_E: Tensor
    modes: bool
    watched_ids_N: Tensor | None


@dataclass(frozen=True)
class TokenStatistics:
    """Statistics of both models' distributions over the shared vocabulary; detached.

    Always at temperature 1 over the full vocabulary, whatever the loss uses, so that they are comparable between runs
    and with the sampler's log-probabilities. Entropies and log-probabilities are in nats.
    """

    student_entropy_N: Tensor
    teacher_entropy_N: Tensor
    top1_agreement_N: Tensor
    """1 if both models have the same most likely token, else 0."""
    teacher_epistemic_mass_N: Tensor
    """The teacher's total probability of the epistemic tokens."""
    student_logprob_N: Tensor | None
    """Log-probability of the sampled `token_ids_N`; None if they were not given."""
    teacher_logprob_N: Tensor | None
    teacher_path_mass_N: Tensor | None
    """The teacher's probability of its most likely token that is not epistemic: the current path continues."""
    teacher_second_path_mass_N: Tensor | None
    """The same of the second most likely token."""
    teacher_watched_mass_N: Tensor | None
    """The teacher's probability of `watched_ids_N`."""

    @classmethod
    def empty(cls, num_tokens: int, like: Tensor, wanted: WantedStatistics, *, with_sampled: bool) -> TokenStatistics:
        """Allocate the statistics of all tokens, in the dtype and on the device of `like`.

        Allocate before the pass begins: small tensors that outlive their block fragment the heap between the blocks'
        large ones, and it would grow with every block (by 0.9 GB over 2,048 tokens).
        """

        def optional(is_wanted: bool) -> Tensor | None:
            return like.new_empty(num_tokens) if is_wanted else None

        return cls(
            student_entropy_N=like.new_empty(num_tokens),
            teacher_entropy_N=like.new_empty(num_tokens),
            top1_agreement_N=like.new_empty(num_tokens),
            teacher_epistemic_mass_N=like.new_empty(num_tokens),
            student_logprob_N=optional(with_sampled),
            teacher_logprob_N=optional(with_sampled),
            teacher_path_mass_N=optional(wanted.modes),
            teacher_second_path_mass_N=optional(wanted.modes),
            teacher_watched_mass_N=optional(wanted.watched_ids_N is not None),
        )

    def write(self, rows: slice, block: TokenStatistics) -> None:
        """Write the statistics of `rows`."""
        for field in fields(self):
            all_N, values_R = getattr(self, field.name), getattr(block, field.name)
            if all_N is not None:
                all_N[rows] = values_R


def block_statistics(
    student: Distribution, teacher: Distribution, wanted: WantedStatistics, rows: slice, token_ids_R: Tensor | None
) -> TokenStatistics:
    """Compute the statistics of `rows` from distributions at temperature 1 over the full vocabulary."""
    ids_R1 = None if token_ids_R is None else token_ids_R.unsqueeze(-1)
    agrees_R = student.logits_RV.argmax(-1) == teacher.logits_RV.argmax(-1)
    first_R, second_R = _paths(teacher.probs_RV, wanted.epistemic_ids_E) if wanted.modes else (None, None)
    return TokenStatistics(
        student_entropy_N=_entropy(student),
        teacher_entropy_N=_entropy(teacher),
        top1_agreement_N=agrees_R.to(teacher.probs_RV.dtype),
        teacher_epistemic_mass_N=teacher.probs_RV.index_select(-1, wanted.epistemic_ids_E).sum(-1),
        student_logprob_N=None if ids_R1 is None else student.logprob(ids_R1).squeeze(-1),
        teacher_logprob_N=None if ids_R1 is None else teacher.logprob(ids_R1).squeeze(-1),
        teacher_path_mass_N=first_R,
        teacher_second_path_mass_N=second_R,
        teacher_watched_mass_N=None
        if wanted.watched_ids_N is None
        else teacher.probs_RV.gather(-1, wanted.watched_ids_N[rows].unsqueeze(-1)).squeeze(-1),
    )


def _paths(probs_RV: Tensor, epistemic_ids_E: Tensor) -> tuple[Tensor, Tensor]:
    """Return the probabilities of the two most likely tokens that are not epistemic, [R] each."""
    # two maxima, not a top-k: on a CPU sorting the vocabulary would cost more than everything else here
    plain_RV = probs_RV.index_fill(-1, epistemic_ids_E, 0.0)
    first_R, ids_R = plain_RV.max(-1)
    return first_R, plain_RV.scatter_(-1, ids_R.unsqueeze(-1), 0.0).amax(-1)


def _entropy(distribution: Distribution) -> Tensor:
    mean_logit_R = row_dot(distribution.probs_RV, distribution.logits_RV)
    return distribution.log_normalizer_R1.squeeze(-1) - mean_logit_R
