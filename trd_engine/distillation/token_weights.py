"""Weights of the tokens in the loss.

Owns the weights' formulas, as pure functions, and their product. A step's loss is Σ wᵢ Dᵢ / Σ wᵢ over the trained
tokens of the whole global batch. With masks alone that is the mean over the kept tokens, as in TIP, and a constant
factor on all weights changes nothing, so that the learning rate keeps its meaning.

Every formula reads one trajectory at a time, so that weights do not depend on how a batch is split.

Shapes: N trained tokens of a micro-batch, T tokens of one trajectory; `counts` are the trajectories' numbers of tokens.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from trd_engine.config import TokenWeightsConfig
from trd_engine.distillation.batching import MicroBatch
from trd_engine.distillation.losses.token_statistics import TokenStatistics
from trd_engine.types import Trajectory


@dataclass(frozen=True)
class TokenWeigher:
    """Computes the product of all weights in a run's spec."""

    config: TokenWeightsConfig
    special_ids: tuple[int, ...]
    """The tokenizer's special tokens, including the end-of-turn tokens."""

    @property
    def needs_figures(self) -> bool:
        """Whether a weight depends on the models' figures of the tokens."""
        return self.config.entropy_share is not None or self.config.drift_gamma > 0

    def __call__(self, batch: MicroBatch, figures: tuple[Tensor, TokenStatistics] | None) -> Tensor:
        """Return the weights [N] of the micro-batch's tokens, not negative, in fp32.

        `figures`, if `needs_figures`: the divergence of each token, of the step's kind and support, and its statistics,
        computed with the student's weights before the step.
        """
        config, counts = self.config, batch.tokens_by_sequence
        weights_N = batch.weight_N * place_mask(counts, config.skip_first_tokens, config.prefix_tokens).to(
            batch.weight_N
        )
        if config.skip_special_tokens:
            weights_N = weights_N * plain_mask(batch.token_ids_N, self.special_ids)
        if figures is None:
            return weights_N
        divergence_N, statistics = figures
        if config.entropy_share is not None:
            score_N = statistics.student_entropy_N
            if config.entropy_score == "soft_or":
                score_N = soft_or(score_N, divergence_N, counts)
            weights_N = weights_N * top_share_mask(score_N, weights_N > 0, counts, config.entropy_share)
        if config.drift_gamma > 0:
            assert statistics.teacher_logprob_N is not None
            assert statistics.student_logprob_N is not None
            log_ratio_N = statistics.teacher_logprob_N - statistics.student_logprob_N
            weights_N = weights_N * drift_weights(log_ratio_N, counts, config.drift_gamma)
        return weights_N


def make_weigher(config: TokenWeightsConfig, special_ids: Sequence[int]) -> TokenWeigher | None:
    """Make the weigher of a spec; None if all tokens have the same weight."""
    return None if config == TokenWeightsConfig() else TokenWeigher(config, tuple(special_ids))


def place_mask(counts: Sequence[int], skip_first: int, prefix: int | None) -> Tensor:
    """Return 1 at each trajectory's tokens from `skip_first` (from 0) to before `prefix` (None: its end), else 0.

    Prefix: "Fast and Effective On-policy Distillation from Reasoning Prefixes", arXiv 2602.15260, which also stops
    sampling there (`sampling.max_new_tokens`). Skipping: "Self-Distillation Enables Continual Learning" (SDFT), arXiv
    2601.19897, whose teacher reads a demonstration and may open with "Following the example…"; the mask keeps the
    student, which reads none, from learning these words.
    """
    places_N = torch.cat([torch.arange(count) for count in counts])
    last = math.inf if prefix is None else prefix
    return ((places_N >= skip_first) & (places_N < last)).float()


def plain_mask(token_ids_N: Tensor, special_ids: Sequence[int]) -> Tensor:
    """Return 1 at ordinary tokens and 0 at special ones (special-token masking, arXiv 2603.25562)."""
    special_S = torch.tensor(sorted(special_ids), dtype=token_ids_N.dtype, device=token_ids_N.device)
    return (~torch.isin(token_ids_N, special_S)).float()


def top_share_mask(score_N: Tensor, candidate_N: Tensor, counts: Sequence[int], share: float) -> Tensor:
    """Return 1 at the ⌈share · n⌉ of each trajectory's n candidates with the highest scores, else 0; of equal scores,
    the earlier token wins.

    With the student's entropy as the score: "TIP: Token Importance in On-Policy Distillation", arXiv 2604.14084, which
    keeps the top share of each rollout (half of the tokens train as well as all).
    """
    masks = []
    for score_T, candidate_T in zip(score_N.split(list(counts)), candidate_N.split(list(counts)), strict=True):
        num_kept = math.ceil(share * int(candidate_T.sum()))
        order_T = score_T.masked_fill(~candidate_T, -torch.inf).argsort(descending=True, stable=True)
        masks.append(torch.zeros_like(score_T, dtype=torch.float32).index_fill_(0, order_T[:num_kept], 1.0))
    return torch.cat(masks)


def soft_or(entropy_N: Tensor, divergence_N: Tensor, counts: Sequence[int]) -> Tensor:
    """Return h + d − h·d of the student's entropy h and its divergence d from the teacher, each scaled to 0 … 1.

    TIP's score (arXiv 2604.14084) that also keeps confident errors: low entropy, high divergence. Here h and d are
    scaled by each trajectory's minimum and maximum, with the entropy cut at its 98th percentile; d is the divergence
    that the run trains on, while the paper uses the reverse KL.
    """
    scores = []
    for entropy_T, divergence_T in zip(entropy_N.split(list(counts)), divergence_N.split(list(counts)), strict=True):
        entropy_T = entropy_T.clamp(max=float(torch.quantile(entropy_T.float(), 0.98)))
        h_T, d_T = _unit(entropy_T), _unit(divergence_T)
        scores.append(h_T + d_T - h_T * d_T)
    return torch.cat(scores)


def drift_weights(log_ratio_N: Tensor, counts: Sequence[int], gamma: float) -> Tensor:
    """Return wₜ = 1 + γ (1 − Σ_{s<t} |Aₛ| / Σₛ |Aₛ|), Aₛ = log q(yₛ) − log p(yₛ): from 1 + γ down to 1, the less the
    more of the trajectory's drift from the teacher comes before the token.

    IW-OPD, "On the Position Bias of On-Policy Distillation", arXiv 2606.22600, Algorithm 1, with γ = 0.5. There log p
    is the sampler's; here it is the student's at this step, which is equal on a round's first step and also exists for
    refined trajectories, which no student sampled.
    """
    weights = []
    for ratio_T in log_ratio_N.abs().split(list(counts)):
        behind_T = ratio_T.cumsum(0) - ratio_T
        weights.append(1.0 + gamma * (1.0 - behind_T / ratio_T.sum().clamp(min=1e-8)))
    return torch.cat(weights).float()


def problem_weights(trajectories: Sequence[Trajectory]) -> list[float]:
    """Return p (1 − p) for each trajectory, with p the share of its problem's rollouts in the round that pass.

    PACED, "Distillation at the Frontier of Student Competence", arXiv 2603.11178: a problem that is always or never
    solved has weight 0.
    """
    verdicts: dict[str, list[bool]] = defaultdict(list)
    for trajectory in trajectories:
        verdicts[trajectory.problem.id].append(trajectory.rollout_verdict.correct)
    rates = {name: sum(correct) / len(correct) for name, correct in verdicts.items()}
    return [rates[t.problem.id] * (1.0 - rates[t.problem.id]) for t in trajectories]


def _unit(values_T: Tensor) -> Tensor:
    """Scale from 0 at the minimum to 1 at the maximum; 0 if all values are equal."""
    low, high = values_T.min(), values_T.max()
    return (values_T - low) / (high - low).clamp(min=1e-12)
