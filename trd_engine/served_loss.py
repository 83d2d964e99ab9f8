"""The loss pass over a served teacher's scores: on what was told, and the cross-entropy where nothing was.

Shapes: N trained tokens of a micro-batch, H the student's hidden size.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import fields
from typing import Any

import torch
from torch import Tensor

from trd_engine.fused_loss import scored_divergence
from trd_engine.fused_loss_products import LogitShape
from trd_engine.fused_loss_statistics import StatisticsRequest, TokenStatistics
from trd_engine.losses import Divergence
from trd_engine.models import OutputHead
from trd_engine.served_scores import ServedLogits, TokenScores

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
