"""Which tokens the loss is taken on, and how much each counts.

Owns the weights' formulas, as pure functions, and their product. A step's loss is Σ wᵢ Dᵢ / Σ wᵢ over the trained
tokens of the whole global batch: with masks alone that is the mean over what they keep, as TIP takes it, and a
constant factor on all weights changes nothing, the learning rate's meaning least of all.

Every formula looks at one trajectory at a time, so that a weight does not depend on how a batch is split.

Shapes: N trained tokens of a micro-batch, trajectory after trajectory; `counts` are the trajectories' tokens.
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
from trd_engine.types import Trajectory


@dataclass(frozen=True)
class TokenFigures:
    """What the models say of each token before it is trained on; the student's weights are the step's own."""

    student_entropy_N: Tensor
    divergence_N: Tensor
    """Of the step's own kind and support."""
    student_logprob_N: Tensor
    teacher_logprob_N: Tensor


@dataclass(frozen=True)
class TokenWeigher:
    """The product of all weights that a run asks for."""

    config: TokenWeightsConfig
    special_ids: tuple[int, ...]
    """Of the tokenizer, end-of-turn tokens among them."""

    @property
    def needs_figures(self) -> bool:
        """True where a weight hangs on what the models say of the tokens."""
        return self.config.entropy_share is not None or self.config.drift_gamma > 0

    def __call__(self, batch: MicroBatch, figures: TokenFigures | None) -> Tensor:
        """Weights [N] of the micro-batch's tokens, none negative; fp32. `figures` where `needs_figures`."""
        config, counts = self.config, batch.tokens_by_sequence
        weights_N = batch.weight_N * place_mask(counts, config.skip_first_tokens, config.prefix_tokens).to(
            batch.weight_N
        )
        if config.skip_special_tokens:
            weights_N = weights_N * plain_mask(batch.token_ids_N, self.special_ids)
        if figures is None:
            return weights_N
        if config.entropy_share is not None:
            score_N = figures.student_entropy_N
            if config.entropy_score == "soft_or":
                score_N = soft_or(score_N, figures.divergence_N, counts)
            weights_N = weights_N * top_share_mask(score_N, weights_N > 0, counts, config.entropy_share)
        if config.drift_gamma > 0:
            log_ratio_N = figures.teacher_logprob_N - figures.student_logprob_N
            weights_N = weights_N * drift_weights(log_ratio_N, counts, config.drift_gamma)
        return weights_N


def make_weigher(config: TokenWeightsConfig, special_ids: Sequence[int]) -> TokenWeigher | None:
    """None where nothing is asked for: every token then weighs the same, by the shortest way."""
    return None if config == TokenWeightsConfig() else TokenWeigher(config, tuple(special_ids))


def place_mask(counts: Sequence[int], skip_first: int, prefix: int | None) -> Tensor:
    """1 from token number `skip_first` (from 0) of each trajectory up to token number `prefix` (None: its end).

    The prefix alone: "Fast and Effective On-policy Distillation from Reasoning Prefixes", arXiv 2602.15260, where
    sampling stops there too (`sampling.max_new_tokens`). The skipping: "Self-Distillation Enables Continual Learning"
    (SDFT), arXiv 2601.19897, whose teacher reads a demonstration and may open with "Following the example…"; masking
    the first few tokens keeps the student, who reads none, from learning to say so.
    """
    places_N = torch.cat([torch.arange(count) for count in counts])
    last = math.inf if prefix is None else prefix
    return ((places_N >= skip_first) & (places_N < last)).float()


def plain_mask(token_ids_N: Tensor, special_ids: Sequence[int]) -> Tensor:
    """1 at tokens that stand for text, 0 at special ones (special-token masking, arXiv 2603.25562)."""
    special_S = torch.tensor(sorted(special_ids), dtype=token_ids_N.dtype, device=token_ids_N.device)
    return (~torch.isin(token_ids_N, special_S)).float()


def top_share_mask(score_N: Tensor, candidate_N: Tensor, counts: Sequence[int], share: float) -> Tensor:
    """1 at the ⌈share · n⌉ candidates of highest score of each trajectory, n its candidates; ties to the earlier.

    With the student's entropy as the score: "TIP: Token Importance in On-Policy Distillation", arXiv 2604.14084,
    which keeps the top share of each rollout (half of the tokens does as well as all).
    """
    masks = []
    for score_T, candidate_T in zip(score_N.split(list(counts)), candidate_N.split(list(counts)), strict=True):
        num_kept = math.ceil(share * int(candidate_T.sum()))
        order_T = score_T.masked_fill(~candidate_T, -torch.inf).argsort(descending=True, stable=True)
        masks.append(torch.zeros_like(score_T, dtype=torch.float32).index_fill_(0, order_T[:num_kept], 1.0))
    return torch.cat(masks)


def soft_or(entropy_N: Tensor, divergence_N: Tensor, counts: Sequence[int]) -> Tensor:
    """h + d − h·d of the student's entropy and of its divergence from the teacher, each brought to 0 … 1.

    TIP's score (arXiv 2604.14084) that keeps confident errors too: low entropy, high divergence. Here h and d run
    from the least to the largest value of the trajectory, the entropy cut at its 98th percentile; d is the
    divergence that the run trains on, where the paper takes the reverse KL.
    """
    scores = []
    for entropy_T, divergence_T in zip(entropy_N.split(list(counts)), divergence_N.split(list(counts)), strict=True):
        entropy_T = entropy_T.clamp(max=float(torch.quantile(entropy_T.float(), 0.98)))
        h_T, d_T = _unit(entropy_T), _unit(divergence_T)
        scores.append(h_T + d_T - h_T * d_T)
    return torch.cat(scores)


def drift_weights(log_ratio_N: Tensor, counts: Sequence[int], gamma: float) -> Tensor:
    """wₜ = 1 + γ (1 − Σ_{s<t} |Aₛ| / Σₛ |Aₛ|), Aₛ = log q(yₛ) − log p(yₛ): the more of a trajectory's drift from the
    teacher lies behind a token, the less it counts; from 1 + γ down to 1.

    IW-OPD, "On the Position Bias of On-Policy Distillation", arXiv 2606.22600, Algorithm 1, with γ = 0.5. There
    log p is the sampler's; here it is the student's at this step, which is the same on a round's first step and
    exists for refined trajectories too, which no student sampled.
    """
    weights = []
    for ratio_T in log_ratio_N.abs().split(list(counts)):
        behind_T = ratio_T.cumsum(0) - ratio_T
        weights.append(1.0 + gamma * (1.0 - behind_T / ratio_T.sum().clamp(min=1e-8)))
    return torch.cat(weights).float()


def problem_weights(trajectories: Sequence[Trajectory]) -> list[float]:
    """p (1 − p) for each trajectory, p the share of its problem's rollouts in the round that the verifier passed.

    PACED, "Distillation at the Frontier of Student Competence", arXiv 2603.11178: a problem that is always or never
    solved counts nothing.
    """
    verdicts: dict[str, list[bool]] = defaultdict(list)
    for trajectory in trajectories:
        verdicts[trajectory.problem.id].append(trajectory.rollout_verdict.correct)
    rates = {name: sum(correct) / len(correct) for name, correct in verdicts.items()}
    return [rates[t.problem.id] * (1.0 - rates[t.problem.id]) for t in trajectories]


def _unit(values_T: Tensor) -> Tensor:
    """From 0 at the least to 1 at the largest; 0 where all are alike."""
    low, high = values_T.min(), values_T.max()
    return (values_T - low) / (high - low).clamp(min=1e-12)
