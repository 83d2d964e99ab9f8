"""The loss over a served teacher's scores: a divergence at scored tokens, the cross-entropy at unscored ones.

Shapes: N trained tokens of a micro-batch, H the student's hidden size.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, fields
from typing import Any, ClassVar

import torch
from torch import Tensor

from trd_engine.distillation.losses.divergence import Divergence
from trd_engine.distillation.losses.linear_divergence import linear_divergence
from trd_engine.distillation.losses.projection import Projection
from trd_engine.distillation.losses.token_statistics import StatisticsRequest, TokenStatistics
from trd_engine.models.head import LogitTransform, OutputHead
from trd_engine.types import TokenScores

LossPass = Callable[[Tensor, Tensor], tuple[Tensor, Tensor, TokenStatistics]]
"""Maps the student's hidden states [N, H] and weights [N] to the loss, each token's D and the statistics."""


def served_pass(
    head: OutputHead,
    scores: TokenScores | None,
    token_ids_N: Tensor,
    divergence: Divergence,
    request: StatisticsRequest,
) -> LossPass:
    """Return the loss pass: `divergence` at scored tokens, the cross-entropy at the others or without `scores`.

    The teacher's statistics of an unscored token are those of a teacher whose probability of it is 1.
    """
    num_vocabulary = len(head.weight_VH)

    def one_kind(teacher: ServedLogits, kind: Divergence, ids_N: Tensor) -> LossPass:
        return lambda hidden_NH, weights_N: linear_divergence(
            Projection.of(head, hidden_NH),
            teacher,
            kind,
            token_weights_N=weights_N,
            token_ids_N=ids_N,
            statistics=request,
        )

    cross_entropy = Divergence(token_clip=divergence.token_clip)
    if scores is None:
        return one_kind(ServedLogits.one_hot(token_ids_N, num_vocabulary), divergence, token_ids_N)
    if bool(scores.is_scored.all()):
        return one_kind(ServedLogits.from_scores(scores, token_ids_N, num_vocabulary), divergence, token_ids_N)
    scored_N, unscored_N = (flags_N.nonzero()[:, 0] for flags_N in (scores.is_scored, ~scores.is_scored))
    scored_ids_N, unscored_ids_N = token_ids_N[scored_N], token_ids_N[unscored_N]
    on_unscored = one_kind(ServedLogits.one_hot(unscored_ids_N, num_vocabulary), cross_entropy, unscored_ids_N)
    if not len(scored_N):
        return on_unscored
    on_scored = one_kind(
        ServedLogits.from_scores(scores.at(scored_N), scored_ids_N, num_vocabulary), divergence, scored_ids_N
    )

    def pass_over(hidden_NH: Tensor, weights_N: Tensor) -> tuple[Tensor, Tensor, TokenStatistics]:
        first = on_scored(hidden_NH[scored_N], weights_N[scored_N])
        second = on_unscored(hidden_NH[unscored_N], weights_N[unscored_N])
        places_N = torch.cat([scored_N, unscored_N]).argsort()
        return first[0] + second[0], torch.cat([first[1], second[1]])[places_N], _joined(first[2], second[2], places_N)

    return pass_over


def _joined(first: TokenStatistics, second: TokenStatistics, places_N: Tensor) -> TokenStatistics:
    """Concatenate two statistics and restore the tokens' order."""
    joined: dict[str, Any] = {}
    for field in fields(TokenStatistics):
        parts = [getattr(one, field.name) for one in (first, second)]
        joined[field.name] = None if parts[0] is None else torch.cat(parts)[places_N]
    return TokenStatistics(**joined)


IMPOSSIBLE = -1e4
"""A finite logit whose probability is exactly 0 in fp32."""


_TIE_BREAK = 1e-3
"""Least distance in nats of every other token below the least likely served token."""


@dataclass(frozen=True)
class ServedLogits:
    """A `LogitSource` made of a served teacher's scores."""

    token_ids_NK: Tensor
    logprobs_NK: Tensor
    target_ids_N: Tensor
    target_logprobs_N: Tensor
    other_logprobs_N: Tensor
    """Log-probability of every token that the server did not return."""
    num_vocabulary: int
    transform: ClassVar[LogitTransform] = LogitTransform()

    @classmethod
    def from_scores(cls, scores: TokenScores, target_ids_N: Tensor, num_vocabulary: int) -> ServedLogits:
        """Spread the mass that the server did not return evenly over the rest of the student's vocabulary."""
        target_N = scores.target_logprobs_T
        is_served_N = (scores.token_ids_TK == target_ids_N.unsqueeze(-1)).any(-1)
        known_N = scores.logprobs_TK.exp().sum(-1) + target_N.exp().masked_fill(is_served_N, 0.0)
        num_others_N = (num_vocabulary - scores.token_ids_TK.shape[1] - (~is_served_N).float()).clamp(min=1)
        other_N = ((1.0 - known_N).clamp(min=1e-12) / num_others_N).log()
        least_N = scores.logprobs_TK.amin(-1) - _TIE_BREAK
        return cls(
            scores.token_ids_TK.long(),
            scores.logprobs_TK,
            target_ids_N,
            torch.where(is_served_N, target_N, torch.minimum(target_N, least_N)),
            torch.minimum(other_N, least_N),
            num_vocabulary,
        )

    @classmethod
    def one_hot(cls, target_ids_N: Tensor, num_vocabulary: int) -> ServedLogits:
        """Put all mass on the target's tokens."""
        zero_N = torch.zeros(len(target_ids_N), device=target_ids_N.device)
        ids_N1 = target_ids_N.unsqueeze(-1)
        return cls(ids_N1, zero_N.unsqueeze(-1), target_ids_N, zero_N, zero_N + IMPOSSIBLE, num_vocabulary)

    @property
    def num_tokens(self) -> int:
        """Number of tokens N."""
        return len(self.logprobs_NK)

    @property
    def bytes_per_logit(self) -> int:
        """Bytes per logit of a buffer from `allocate`."""
        return self.logprobs_NK.element_size()

    def allocate(self, max_rows: int) -> Tensor:
        """Allocate a buffer for the logits of at most `max_rows` tokens."""
        return self.logprobs_NK.new_empty(min(max_rows, self.num_tokens), self.num_vocabulary)

    def write_logits(self, rows: slice, out_CV: Tensor) -> None:
        """Write the log-probabilities of `rows` into `out_CV`."""
        out_CV.copy_(self.other_logprobs_N[rows].unsqueeze(-1).expand_as(out_CV))
        out_CV.scatter_(1, self.target_ids_N[rows].unsqueeze(-1), self.target_logprobs_N[rows].unsqueeze(-1))
        out_CV.scatter_(1, self.token_ids_NK[rows], self.logprobs_NK[rows])
