"""Scores of a model on a set of problems, and their confidence intervals.

Owns avg@k, pass@k and their intervals. An interval is over problems: the samples of one problem
are not independent of one another, so they never count as separate trials.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import NormalDist
from typing import NamedTuple

import numpy as np

_TAIL = 0.025
"""Probability on either side of a 95 % interval."""
_NUM_RESAMPLES = 2000
"""Resamples of the bootstrap."""
_MAX_DRAWS_AT_ONCE = 1_000_000
"""Bounds the bootstrap's memory at 8 MB of indices, however many problems there are."""


class Interval(NamedTuple):
    """Lower and upper end, both inside."""

    low: float
    high: float


@dataclass(frozen=True)
class Scores:
    """Scores of `num_problems` problems with `k` samples each; all shares are between 0 and 1."""

    k: int
    num_problems: int
    avg_at_k: float
    avg_low: float
    avg_high: float
    pass_at_k: float
    pass_low: float
    pass_high: float


def pass_at_k(num_samples: int, num_correct: int, k: int) -> float:
    """Return the probability that at least one of `k` samples, drawn without replacement, is correct.

    The unbiased estimator 1 − C(n−c, k) / C(n, k) of Chen et al. 2021 (arXiv 2107.03374), in exact
    integers and rounded once. Raises ValueError unless 0 ≤ c ≤ n and 1 ≤ k ≤ n.
    """
    if not 0 <= num_correct <= num_samples:
        raise ValueError(f"num_correct must be between 0 and {num_samples} samples, not {num_correct}")
    if not 1 <= k <= num_samples:
        raise ValueError(f"k must be between 1 and {num_samples} samples, not {k}")
    all_draws = math.comb(num_samples, k)
    return (all_draws - math.comb(num_samples - num_correct, k)) / all_draws


def wilson_interval(num_successes: int, num_trials: int) -> Interval:
    """Return Wilson's 95 % score interval of a proportion; unlike the normal one it has a width near 0 and 1."""
    if not 0 <= num_successes <= num_trials or num_trials == 0:
        raise ValueError(f"need 0 ≤ successes ≤ trials and a trial, not {num_successes} of {num_trials}")
    return _wilson_of_share(num_successes / num_trials, num_trials)


def _wilson_of_share(share: float, num_trials: int) -> Interval:
    z = NormalDist().inv_cdf(1 - _TAIL)
    spread = z * z / num_trials
    centre = share + spread / 2
    half_width = math.sqrt(spread * (share * (1 - share) + spread / 4))
    low, high = (centre - half_width) / (1 + spread), (centre + half_width) / (1 + spread)
    # The exact ends lie on 0, 1 or outside the share; rounding alone can put them on the wrong side.
    return Interval(max(0.0, min(low, share)), min(1.0, max(high, share)))


def bootstrap_interval(scores_P: Sequence[float], *, seed: int = 0) -> Interval:
    """Return the 95 % percentile interval of the mean score over resamples of the problems with replacement.

    `scores_P` has one number per problem: its share of correct samples (avg@k) or its pass@k.
    """
    scores = np.asarray(scores_P, dtype=np.float64)
    if scores.ndim != 1 or not scores.size:
        raise ValueError("at least one problem is needed, with one score each")
    generator = np.random.default_rng(seed)
    num_problems = scores.size
    at_once = max(1, _MAX_DRAWS_AT_ONCE // num_problems)
    means = []
    for start in range(0, _NUM_RESAMPLES, at_once):
        size = (min(at_once, _NUM_RESAMPLES - start), num_problems)
        means.append(scores[generator.integers(num_problems, size=size)].mean(axis=1))
    low, high = np.quantile(np.concatenate(means), [_TAIL, 1 - _TAIL])
    return Interval(float(low), float(high))


def summarise(correct_PK: Sequence[Sequence[bool]]) -> Scores:
    """Compute avg@k and pass@k with 95 % intervals; every problem has the same number k of samples.

    Scores of only 0 and 1, and scores that are all equal, get Wilson's interval, since a bootstrap of equal scores has
    no width; others get the bootstrap's. For equal scores between 0 and 1, Wilson's is wider than necessary, since
    scores of only 0 and 1 vary most among those with the same mean. Raises ValueError on no problem, no sample, or rows
    of different lengths.
    """
    shares = _shares(correct_PK)
    k = len(correct_PK[0])
    if any(len(row) != k for row in correct_PK):
        raise ValueError(f"every problem needs the same number of samples; the first has {k}")
    passes = [pass_at_k(k, sum(row), k) for row in correct_PK]
    average, passing = _interval(shares), _interval(passes)
    return Scores(
        k=k,
        num_problems=len(shares),
        avg_at_k=math.fsum(shares) / len(shares),
        avg_low=average.low,
        avg_high=average.high,
        pass_at_k=math.fsum(passes) / len(passes),
        pass_low=passing.low,
        pass_high=passing.high,
    )


def pass_curve(correct_PK: Sequence[Sequence[bool]]) -> dict[int, float]:
    """Return pass@j for j = 1, 2, 4, … and k itself, each unbiased from all k samples of every problem."""
    k = len(correct_PK[0])
    draws = [*(2**power for power in range(k.bit_length()) if 2**power < k), k]
    return {j: math.fsum(pass_at_k(k, sum(row), j) for row in correct_PK) / len(correct_PK) for j in draws}


def _interval(scores_P: list[float]) -> Interval:
    if all(score in (0.0, 1.0) for score in scores_P):
        return wilson_interval(round(sum(scores_P)), len(scores_P))
    if all(score == scores_P[0] for score in scores_P):
        return _wilson_of_share(scores_P[0], len(scores_P))
    return bootstrap_interval(scores_P)


def _shares(correct_PK: Sequence[Sequence[bool]]) -> list[float]:
    if not correct_PK or not all(correct_PK):
        raise ValueError("need at least one problem, and at least one sample of each")
    return [sum(row) / len(row) for row in correct_PK]
