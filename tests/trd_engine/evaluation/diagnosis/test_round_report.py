"""The figures of a round, against the same arithmetic written out token by token."""

from __future__ import annotations

import json
import math
from dataclasses import asdict
from itertools import pairwise
from typing import Any

import numpy as np
import pytest

from trd_engine.evaluation.diagnosis.prefix_failure import DiagnosedRollout, TokenSteps
from trd_engine.evaluation.diagnosis.report import make_report, modes, view_report
from trd_engine.evaluation.diagnosis.scoring import ScoredCompletion, choose_sample


def completion(kl: list[float], **figures: list[float]) -> ScoredCompletion:
    """Make a completion whose other figures are zero unless given."""
    names = [name for name in ScoredCompletion.__dataclass_fields__ if name != "forward_kl_T"]
    given = {f"{name}_T": values for name, values in figures.items()}
    arrays = {name: np.asarray(given.get(name, [0.0] * len(kl)), dtype=np.float32) for name in names}
    return ScoredCompletion(forward_kl_T=np.asarray(kl, dtype=np.float32), **arrays)


def rollout(scored: ScoredCompletion, **changes: Any) -> DiagnosedRollout:
    base: dict[str, Any] = {"position": 0, "rollout_correct": False, "refined_correct": True, "refined": None}
    base |= {"refined_vanilla": None, "steps": None, "parts_at": None, "rollout": scored}
    return DiagnosedRollout(**{**base, **changes})


@pytest.mark.parametrize(
    ("epistemic", "path", "second_path", "is_bimodal", "breaks_out"),
    [
        (0.0, 1.0, 0.0, 0, 0),
        (0.0, 0.6, 0.4, 1, 0),
        (0.4, 0.6, 0.0, 1, 1),
        (0.6, 0.4, 0.0, 1, 1),
        (0.05, 0.9, 0.05, 0, 0),
        (0.0, 0.4, 0.3, 0, 0),
        (0.2, 0.3, 0.25, 0, 1),
        (0.95, 0.03, 0.01, 0, 0),
        (0.09, 0.8, 0.11, 1, 0),
    ],
)
def test_modes(epistemic: float, path: float, second_path: float, is_bimodal: int, breaks_out: int) -> None:
    bimodal_M, break_out_M = modes(*(np.array([x]) for x in (epistemic, path, second_path)))
    assert (bimodal_M[0], break_out_M[0]) == (is_bimodal, breaks_out)


def test_a_views_figures_are_means_over_its_tokens() -> None:
    generator = np.random.default_rng(1)
    lengths = [1, 3, 10, 25]
    kls = [generator.exponential(0.5, n).astype(np.float32).tolist() for n in lengths]
    masses = [generator.uniform(0, 0.3, n).astype(np.float32).tolist() for n in lengths]
    report = view_report([completion(k, epistemic_mass=m) for k, m in zip(kls, masses, strict=True)], 0.2)
    tokens = [
        (k, m, i, n)
        for ks, ms, n in zip(kls, masses, lengths, strict=True)
        for i, (k, m) in enumerate(zip(ks, ms, strict=True))
    ]
    all_kl = sorted(k for k, *_ in tokens)
    assert (report.num_completions, report.num_tokens) == (4, 39)
    assert report.forward_kl == pytest.approx(math.fsum(all_kl) / 39)
    assert report.forward_kl_per_completion == pytest.approx(math.fsum(all_kl) / 4)
    assert (report.forward_kl_p50, report.forward_kl_max) == (pytest.approx(all_kl[19]), pytest.approx(all_kl[-1]))
    assert report.epistemic_mass == pytest.approx(sum(m for _, m, *_ in tokens) / 39)
    assert report.clip_share == sum(k > 0.2 for k in all_kl) / 39
    assert report.clipped_kl_share == pytest.approx(sum(max(0.0, k - 0.2) for k in all_kl) / sum(all_kl))
    for decile, found in enumerate(report.by_share):
        inside = [(k, m) for k, m, i, n in tokens if 10 * i // n == decile]
        assert found.num_tokens == len(inside)
        assert found.forward_kl == pytest.approx(sum(k for k, _ in inside) / len(inside))
        assert found.epistemic_mass == pytest.approx(sum(m for _, m in inside) / len(inside))
    edges = [0, 1, 2, 4, 8, 16, 32]
    assert [(b.low, b.high) for b in report.by_token] == list(pairwise(edges))
    assert [b.num_tokens for b in report.by_token] == [
        sum(low <= i < high for *_, i, _ in tokens) for low, high in pairwise(edges)
    ]


def test_perplexity_is_of_the_text() -> None:
    report = view_report([completion([0.0, 0.0], student_logprob=[-1.0, -3.0], teacher_logprob=[0.0, -1.0])], 0.1)
    assert report.student_perplexity == pytest.approx(math.exp(2.0))
    assert report.teacher_perplexity == pytest.approx(math.exp(0.5))
    assert report.clipped_kl_share == 0.0


def test_before_within_and_after_the_first_wrong_step() -> None:
    """Steps of two tokens; the second one is wrong in the first rollout, the last one in the second."""
    first = completion([0.1, 0.1, 3.0, 1.0, 0.5, 0.7, 0.9, 0.3], epistemic_mass=[0, 0.1, 0.2, 0, 0.4, 0, 0.3, 0])
    second = completion([0.3, 0.3, 5.0, 1.0], epistemic_mass=[0.5, 0, 0, 0])
    right = completion([9.0] * 4)
    sample = [
        rollout(first, steps=TokenSteps((0, 2, 4, 6), 1)),
        rollout(second, steps=TokenSteps((0, 2), 1)),
        rollout(right, steps=TokenSteps((0, 2), None)),
        rollout(right),
    ]
    wrong = make_report(sample, token_clip=0.0, sampler_gap=None).first_wrong_step
    assert wrong is not None
    assert (wrong.num_checked, wrong.num_wrong, wrong.median_share) == (3, 2, pytest.approx(0.375))
    assert (wrong.before.num_tokens, wrong.before.forward_kl) == (4, pytest.approx(0.2))
    assert (wrong.within.num_tokens, wrong.within.forward_kl) == (4, pytest.approx(2.5))
    assert (wrong.after.num_tokens, wrong.after.forward_kl) == (4, pytest.approx(0.6))
    assert wrong.after.epistemic_mass == pytest.approx(0.175)
    assert [p.mass for p in wrong.onset_by_token[:4]] == pytest.approx([0.4, 0.0, 0.3, 0.0])
    assert (wrong.onset_by_token[4].num_places, wrong.onset_by_token[4].mass) == (0, None)
    by_step = {p.distance: (p.num_places, p.mass) for p in wrong.onset_by_step if p.num_places}
    assert by_step == {0: (4, pytest.approx(0.175)), 1: (1, pytest.approx(0.4)), 2: (1, pytest.approx(0.3))}


def test_without_steps_there_are_no_figures_of_steps() -> None:
    report = make_report([rollout(completion([1.0]))], token_clip=0.3, sampler_gap=0.5)
    assert report.first_wrong_step is None
    assert report.refined is None
    assert report.parting is None
    assert report.rollout.clip_at == 0.3
    assert "rollout_forward_kl" in report.metrics()
    assert not any("wrong" in name or "refined" in name for name in report.metrics())
    assert json.loads(json.dumps(asdict(report)))["sampler_gap"] == 0.5


def test_the_corrections_first_token_is_followed_on_corrected_rollouts_only() -> None:
    failed = completion([0.0] * 4, watched_mass=[0.0, 0.9, 0.2, 0.1])
    other = completion([0.0] * 4, watched_mass=[1.0] * 4)
    refined = completion([0.0])
    sample = [
        rollout(failed, refined=refined, parts_at=1),
        rollout(other, refined=refined, parts_at=0, rollout_correct=True),
        rollout(other, refined=refined, parts_at=0, refined_correct=False),
        rollout(other, refined=refined, parts_at=None),
        rollout(other, refined=refined, parts_at=4),
    ]
    parting = make_report(sample, token_clip=0.0, sampler_gap=None).parting
    assert parting is not None
    assert (parting.num_fail_to_pass, parting.median_share) == (1, 0.25)
    assert [(p.num_places, p.mass) for p in parting.correction_by_token[:4]] == [
        (1, pytest.approx(0.9)),
        (1, pytest.approx(0.2)),
        (1, pytest.approx(0.1)),
        (0, None),
    ]


def test_the_sample_is_fixed_by_seed_and_round() -> None:
    chosen = choose_sample(100, 10, seed=0, round_index=0)
    assert chosen == sorted(set(chosen))
    assert len(chosen) == 10
    assert chosen == choose_sample(100, 10, seed=0, round_index=0)
    assert chosen != choose_sample(100, 10, seed=0, round_index=1)
    assert choose_sample(5, 64, seed=0, round_index=0) == [0, 1, 2, 3, 4]
    assert choose_sample(5, 0, seed=0, round_index=0) == []
