"""Scores against enumeration, and intervals against what they promise."""

from __future__ import annotations

import itertools
import math
from statistics import fmean

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from trd_engine.evaluation.intervals import (
    bootstrap_interval,
    pass_at_k,
    pass_curve,
    summarise,
    wilson_interval,
)

SAMPLES = st.integers(1, 9).flatmap(
    lambda n: st.tuples(st.lists(st.booleans(), min_size=n, max_size=n), st.integers(1, n))
)


@given(SAMPLES)
def test_pass_at_k_is_the_share_of_draws_with_a_correct_sample(case: tuple[list[bool], int]) -> None:
    samples, k = case
    draws = list(itertools.combinations(samples, k))
    share = sum(any(draw) for draw in draws) / len(draws)
    assert pass_at_k(len(samples), sum(samples), k) == pytest.approx(share, abs=1e-12)


@given(st.integers(1, 60), st.data())
def test_pass_at_k_grows_with_k_and_with_correct_samples(num_samples: int, data: st.DataObject) -> None:
    correct = data.draw(st.integers(0, num_samples))
    values = [pass_at_k(num_samples, correct, k) for k in range(1, num_samples + 1)]
    assert values[0] == pytest.approx(correct / num_samples)
    assert values == sorted(values)
    assert values[-1] == (1.0 if correct else 0.0)


def test_pass_at_k_is_exact_where_products_of_floats_are_not() -> None:
    assert pass_at_k(100_000, 1, 1) == 1e-5
    assert pass_at_k(2_000, 1, 1_000) == 0.5
    assert 0.0 < pass_at_k(10_000, 1, 2) < 2.0001e-4


@pytest.mark.parametrize(("n", "c", "k"), [(4, 5, 1), (4, -1, 1), (4, 2, 0), (4, 2, 5), (0, 0, 1)])
def test_pass_at_k_refuses_what_cannot_be_drawn(n: int, c: int, k: int) -> None:
    with pytest.raises(ValueError, match="between"):
        pass_at_k(n, c, k)


@given(st.integers(1, 5000), st.data())
def test_wilson_interval_holds_the_share_and_stays_within_zero_and_one(trials: int, data: st.DataObject) -> None:
    successes = data.draw(st.integers(0, trials))
    low, high = wilson_interval(successes, trials)
    assert 0.0 <= low <= successes / trials <= high <= 1.0
    assert high > low


def test_wilson_interval_solves_its_own_equation() -> None:
    """Its ends are the shares p at which the observed share lies z standard errors away."""
    z = 1.959963984540054
    for end in wilson_interval(37, 120):
        assert abs(37 / 120 - end) == pytest.approx(z * math.sqrt(end * (1 - end) / 120), rel=1e-12)


def test_wilson_interval_covers_the_truth_as_often_as_it_says() -> None:
    draws = np.random.default_rng(1).binomial(50, 0.1, size=4000)
    covered = [low <= 0.1 <= high for low, high in (wilson_interval(int(c), 50) for c in draws)]
    assert 0.93 <= np.mean(covered) <= 0.98


def test_bootstrap_interval_is_that_of_the_mean_and_does_not_hang_on_the_block_size(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    scores = np.random.default_rng(0).normal(0.4, 0.2, size=400).tolist()
    low, high = bootstrap_interval(scores, seed=3)
    half_width = 1.96 * float(np.std(scores)) / math.sqrt(400)
    assert (low, high) == pytest.approx((np.mean(scores) - half_width, np.mean(scores) + half_width), abs=0.003)
    assert bootstrap_interval(scores, seed=3) == (low, high)
    assert bootstrap_interval(scores, seed=4) != (low, high)
    monkeypatch.setattr("trd_engine.evaluation.intervals._MAX_DRAWS_AT_ONCE", 4000)
    assert bootstrap_interval(scores, seed=3) == (low, high)


@given(st.integers(1, 6).flatmap(lambda k: st.lists(st.lists(st.booleans(), min_size=k, max_size=k), min_size=1)))
def test_summary_agrees_with_its_parts(correct: list[list[bool]]) -> None:
    scores = summarise(correct)
    assert scores.k == len(correct[0])
    assert scores.num_problems == len(correct)
    assert scores.avg_at_k == pytest.approx(fmean(sum(row) / len(row) for row in correct))
    assert scores.pass_at_k == pytest.approx(sum(map(any, correct)) / len(correct))
    assert 0.0 <= scores.avg_low <= scores.avg_at_k <= scores.avg_high <= 1.0
    assert 0.0 <= scores.pass_low <= scores.pass_at_k <= scores.pass_high <= 1.0


def test_summary_of_equal_scores_still_admits_doubt() -> None:
    scores = summarise([[True, True]] * 5)
    assert scores.avg_at_k == 1.0
    assert 0.4 < scores.avg_low < 0.9


@pytest.mark.parametrize("correct", [[], [[]], [[True], [True, False]]])
def test_summary_refuses_missing_or_uneven_samples(correct: list[list[bool]]) -> None:
    with pytest.raises(ValueError, match="sample"):
        summarise(correct)


def test_equal_scores_between_0_and_1_have_an_interval_with_a_width() -> None:
    """Of n problems with the share 1/2 each: that of n/2 right ones, which vary more."""
    for num_problems in (2, 30):
        scores = summarise([[True, False, True, False]] * num_problems)
        assert (scores.avg_low, scores.avg_high) == wilson_interval(num_problems // 2, num_problems)
    one = summarise([[True, False, True, False]])
    assert one.avg_low < 0.2 < one.avg_at_k == 0.5 < 0.8 < one.avg_high


@pytest.mark.parametrize(("k", "draws"), [(1, [1]), (2, [1, 2]), (4, [1, 2, 4]), (6, [1, 2, 4, 6])])
def test_the_curve_goes_from_avg_at_k_to_pass_at_k(k: int, draws: list[int]) -> None:
    correct = [[place < num_correct for place in range(k)] for num_correct in range(k + 1)]
    curve, scores = pass_curve(correct), summarise(correct)
    assert list(curve) == draws
    assert curve[1] == pytest.approx(scores.avg_at_k)
    assert curve[k] == scores.pass_at_k
    assert sorted(curve.values()) == list(curve.values())
