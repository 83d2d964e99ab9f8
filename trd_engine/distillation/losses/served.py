"""The loss pass over a served teacher's scores: on what was told, and the cross-entropy where nothing was.

Shapes: N trained tokens of a micro-batch, H the student's hidden size.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, fields
from typing import Any, ClassVar

import torch
from torch import Tensor

from trd_engine.distillation.losses.divergence import Divergence
from trd_engine.distillation.losses.linear_divergence import scored_divergence
from trd_engine.distillation.losses.token_statistics import StatisticsRequest, TokenStatistics
from trd_engine.models.head import LogitShape, OutputHead
from trd_engine.types import TokenScores

LossPass = Callable[[Tensor, Tensor], tuple[Tensor, Tensor, TokenStatistics]]
"""From the student's hidden states [N, H] and weights [N] to the loss, each token's D and the statistics."""


def served_pass(
    head: OutputHead,
    scores: TokenScores | None,
    token_ids_N: Tensor,
    divergence: Divergence,
    request: StatisticsRequest,
) -> LossPass:
    """`divergence` at the tokens that the teacher told of; at all others, or without `scores`, the cross-entropy.

    An untold token's statistics of the teacher are those of one that is sure of it.
    """
    num_vocabulary = len(head.weight_VH)

    def one_kind(teacher: ServedLogits, kind: Divergence, ids_N: Tensor) -> LossPass:
        return lambda hidden_NH, weights_N: scored_divergence(
            hidden_NH,
            head.weight_VH,
            teacher,
            kind,
            token_ids_N=ids_N,
            token_weights_N=weights_N,
            student_bias=head.bias_V,
            student_shape=LogitShape(head.scale, head.softcap),
            statistics=request,
        )

    cross_entropy = Divergence(token_clip=divergence.token_clip)
    if scores is None:
        return one_kind(ServedLogits.sure_of(token_ids_N, num_vocabulary), divergence, token_ids_N)
    if bool(scores.is_told.all()):
        return one_kind(ServedLogits.of(scores, token_ids_N, num_vocabulary), divergence, token_ids_N)
    told_N, untold_N = (flags_N.nonzero()[:, 0] for flags_N in (scores.is_told, ~scores.is_told))
    told_ids_N, untold_ids_N = token_ids_N[told_N], token_ids_N[untold_N]
    on_untold = one_kind(ServedLogits.sure_of(untold_ids_N, num_vocabulary), cross_entropy, untold_ids_N)
    if not len(told_N):
        return on_untold
    on_told = one_kind(ServedLogits.of(scores.at(told_N), told_ids_N, num_vocabulary), divergence, told_ids_N)

    def pass_over(hidden_NH: Tensor, weights_N: Tensor) -> tuple[Tensor, Tensor, TokenStatistics]:
        first = on_told(hidden_NH[told_N], weights_N[told_N])
        second = on_untold(hidden_NH[untold_N], weights_N[untold_N])
        places_N = torch.cat([told_N, untold_N]).argsort()
        return first[0] + second[0], torch.cat([first[1], second[1]])[places_N], _joined(first[2], second[2], places_N)

    return pass_over


def _joined(first: TokenStatistics, second: TokenStatistics, places_N: Tensor) -> TokenStatistics:
    """The statistics of both, put into the places that their tokens had."""
    joined: dict[str, Any] = {}
    for field in fields(TokenStatistics):
        parts = [getattr(one, field.name) for one in (first, second)]
        joined[field.name] = None if parts[0] is None else torch.cat(parts)[places_N]
    return TokenStatistics(**joined)


IMPOSSIBLE = -1e4
"""A logit whose probability is exactly 0 in fp32, and that is finite all the same."""


_TIE_BREAK = 1e-3
"""How far below the least of the served tokens any other one stands at least, in nats."""


@dataclass(frozen=True)
class ServedLogits:
    """A served distribution in the form in which the loss reads a teacher's logits."""

    token_ids_NK: Tensor
    logprobs_NK: Tensor
    target_ids_N: Tensor
    target_logprobs_N: Tensor
    rest_logprobs_N: Tensor
    """Of each token that the server said nothing of."""
    num_vocabulary: int
    shape: ClassVar[LogitShape] = LogitShape()

    @classmethod
    def of(cls, scores: TokenScores, target_ids_N: Tensor, num_vocabulary: int) -> ServedLogits:
        """What was served, for the target's tokens, over the student's vocabulary."""
        target_N = scores.target_logprobs_T
        is_served_N = (scores.token_ids_TK == target_ids_N.unsqueeze(-1)).any(-1)
        known_N = scores.logprobs_TK.exp().sum(-1) + target_N.exp().masked_fill(is_served_N, 0.0)
        num_others_N = (num_vocabulary - scores.token_ids_TK.shape[1] - (~is_served_N).float()).clamp(min=1)
        rest_N = ((1.0 - known_N).clamp(min=1e-12) / num_others_N).log()
        least_N = scores.logprobs_TK.amin(-1) - _TIE_BREAK
        return cls(
            scores.token_ids_TK.long(),
            scores.logprobs_TK,
            target_ids_N,
            torch.where(is_served_N, target_N, torch.minimum(target_N, least_N)),
            torch.minimum(rest_N, least_N),
            num_vocabulary,
        )

    @classmethod
    def sure_of(cls, target_ids_N: Tensor, num_vocabulary: int) -> ServedLogits:
        """All mass on the target's tokens."""
        zero_N = torch.zeros(len(target_ids_N), device=target_ids_N.device)
        ids_N1 = target_ids_N.unsqueeze(-1)
        return cls(ids_N1, zero_N.unsqueeze(-1), target_ids_N, zero_N, zero_N + IMPOSSIBLE, num_vocabulary)

    @property
    def num_tokens(self) -> int:
        """N."""
        return len(self.logprobs_NK)

    @property
    def bytes_per_logit(self) -> int:
        """Of the buffer that `room` makes."""
        return self.logprobs_NK.element_size()

    def room(self, max_rows: int) -> Tensor:
        """A buffer for the logits of at most `max_rows` tokens."""
        return self.logprobs_NK.new_empty(min(max_rows, self.num_tokens), self.num_vocabulary)

    def output(self, rows: slice, out_CV: Tensor) -> None:
        """The log-probabilities of some rows."""
        out_CV.copy_(self.rest_logprobs_N[rows].unsqueeze(-1).expand_as(out_CV))
        out_CV.scatter_(1, self.target_ids_N[rows].unsqueeze(-1), self.target_logprobs_N[rows].unsqueeze(-1))
        out_CV.scatter_(1, self.token_ids_NK[rows], self.logprobs_NK[rows])
