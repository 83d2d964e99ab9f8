"""From scored completions to the figures of a round: pure arithmetic, in float64, on what `scoring` found.

Every figure, its formula and what a healthy value looks like: ``docs/diagnosis.md``. The sums run over the
tokens, or the trajectories, of the whole sample, so that completions that were scored by several processes are
gathered first and reported once.

Shapes: M tokens of all completions in a row.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from trd_engine.evaluation.diagnosis.prefix_failure import (
    DiagnosedRollout,
    FirstWrongStep,
    Parting,
    first_wrong_step,
    mean,
    parting,
)
from trd_engine.evaluation.diagnosis.scoring import ScoredCompletion

Array = NDArray[np.float64]

DEFAULT_CLIP = 0.1
"""Clip that is assumed if the loss clips nothing, of the usual size (`forward_kl_clip`)."""
MODE_MASS = 0.1
"""The least probability of a mode: below it the teacher all but rules a token out."""
TWO_MODES_MASS = 0.8
"""Least mass of two modes together: a distribution over many tokens is flat, not bimodal."""
NUM_DECILES = 10


@dataclass(frozen=True)
class Bin:
    """The tokens at some positions; means are None if there are none."""

    low: float
    """First position: a share of the completion's length, or a number of tokens."""
    high: float
    """The position after the last."""
    num_tokens: int
    forward_kl: float | None
    epistemic_mass: float | None
    bimodal_share: float | None


@dataclass(frozen=True)
class ViewReport:
    """All completions of one view together. Means are over tokens unless they say otherwise."""

    num_completions: int
    num_tokens: int
    forward_kl: float
    forward_kl_p50: float
    forward_kl_p95: float
    forward_kl_p99: float
    forward_kl_max: float
    forward_kl_per_completion: float
    epistemic_mass: float
    bimodal_share: float
    break_out_share: float
    clip_at: float
    clip_share: float
    clipped_kl_share: float
    top1_agreement: float
    student_entropy: float
    teacher_entropy: float
    student_perplexity: float
    teacher_perplexity: float
    by_share: list[Bin]
    by_token: list[Bin]


@dataclass(frozen=True)
class RoundReport:
    """What a round's sample says about prefix failure."""

    num_trajectories: int
    sampler_gap: float | None
    """Nats a token between the sampler's and the trainer's log-probabilities, from `sampler_gap`."""
    rollout: ViewReport
    """y_o in the teacher's vanilla context."""
    refined: ViewReport | None
    """y_r in the refine context."""
    refined_vanilla: ViewReport | None
    """y_r in the vanilla context."""
    first_wrong_step: FirstWrongStep | None
    """None if the task cannot check steps."""
    parting: Parting | None
    """None if nothing was refined."""

    def metrics(self) -> dict[str, float]:
        """Return the scalars to follow from round to round."""
        values: dict[str, float] = {}
        for name in ("rollout", "refined", "refined_vanilla"):
            view: ViewReport | None = getattr(self, name)
            if view is not None:
                values |= {f"{name}_{figure}": getattr(view, figure) for figure in _FOLLOWED}
        wrong = self.first_wrong_step
        if wrong is not None:
            values["first_wrong_step_share"] = wrong.num_wrong / wrong.num_checked
            for name in ("before", "within", "after"):
                forward_kl = getattr(wrong, name).forward_kl
                if forward_kl is not None:
                    values[f"forward_kl_{name}_wrong_step"] = forward_kl
        return values


_FOLLOWED = ("forward_kl", "epistemic_mass", "bimodal_share", "break_out_share", "clip_share")


def make_report(sample: Sequence[DiagnosedRollout], *, token_clip: float, sampler_gap: float | None) -> RoundReport:
    """Make the report of a sample of at least one trajectory; `token_clip` is the loss's, 0 for none."""
    clip_at = token_clip or DEFAULT_CLIP
    refined = [d.refined for d in sample if d.refined is not None]
    refined_vanilla = [d.refined_vanilla for d in sample if d.refined_vanilla is not None]
    return RoundReport(
        num_trajectories=len(sample),
        sampler_gap=sampler_gap,
        rollout=view_report([d.rollout for d in sample], clip_at),
        refined=view_report(refined, clip_at) if refined else None,
        refined_vanilla=view_report(refined_vanilla, clip_at) if refined_vanilla else None,
        first_wrong_step=first_wrong_step(sample),
        parting=parting(sample) if refined else None,
    )


def view_report(completions: Sequence[ScoredCompletion], clip_at: float) -> ViewReport:
    """Return the figures of one view's completions, none of them empty."""
    tokens = _Tokens(completions)
    kl_M = tokens.column("forward_kl_T")
    p50, p95, p99 = np.quantile(kl_M, [0.5, 0.95, 0.99])
    lengths = [c.num_tokens for c in completions]
    place_M = np.concatenate([np.arange(n) for n in lengths])
    share_M = np.concatenate([np.arange(n) / n for n in lengths])
    edges = [0, 1]
    while edges[-1] < max(lengths):
        edges.append(2 * edges[-1])
    return ViewReport(
        num_completions=len(completions),
        num_tokens=len(kl_M),
        forward_kl=float(kl_M.mean()),
        forward_kl_p50=float(p50),
        forward_kl_p95=float(p95),
        forward_kl_p99=float(p99),
        forward_kl_max=float(kl_M.max()),
        forward_kl_per_completion=float(kl_M.sum() / len(completions)),
        epistemic_mass=float(tokens.column("epistemic_mass_T").mean()),
        bimodal_share=float(tokens.bimodal_M.mean()),
        break_out_share=float(tokens.break_out_M.mean()),
        clip_at=clip_at,
        clip_share=float((kl_M > clip_at).mean()),
        clipped_kl_share=_share(np.maximum(kl_M - clip_at, 0.0).sum(), kl_M.sum()),
        top1_agreement=float(tokens.column("top1_agreement_T").mean()),
        student_entropy=float(tokens.column("student_entropy_T").mean()),
        teacher_entropy=float(tokens.column("teacher_entropy_T").mean()),
        student_perplexity=float(np.exp(-tokens.column("student_logprob_T").mean())),
        teacher_perplexity=float(np.exp(-tokens.column("teacher_logprob_T").mean())),
        by_share=tokens.bins(share_M, [i / NUM_DECILES for i in range(NUM_DECILES + 1)]),
        by_token=tokens.bins(place_M, edges),
    )


class _Tokens:
    """The tokens of several completions in a row."""

    def __init__(self, completions: Sequence[ScoredCompletion]) -> None:
        self._completions = completions
        self.bimodal_M, self.break_out_M = modes(
            self.column("epistemic_mass_T"), self.column("path_mass_T"), self.column("second_path_mass_T")
        )

    def column(self, name: str) -> Array:
        column_M: Array = np.concatenate([getattr(c, name) for c in self._completions]).astype(np.float64)
        return column_M

    def bins(self, position_M: Array, edges: Sequence[float]) -> list[Bin]:
        kl_M, mass_M = self.column("forward_kl_T"), self.column("epistemic_mass_T")
        # A share such as 3/10 may fall on either side of its edge by rounding: as written, it belongs to the next.
        index_M = np.searchsorted(np.asarray(edges[1:-1]) - 1e-9, position_M, side="right")
        bins = []
        for index in range(len(edges) - 1):
            inside_M = index_M == index
            means = [mean(values_M[inside_M]) for values_M in (kl_M, mass_M, self.bimodal_M)]
            bins.append(Bin(float(edges[index]), float(edges[index + 1]), int(inside_M.sum()), *means))
        return bins


def modes(epistemic_M: Array, path_M: Array, second_path_M: Array) -> tuple[Array, Array]:
    """Return, as 1 or 0 a token, whether the teacher is bimodal, and whether one of its modes breaks out.

    All epistemic onsets count as one outcome. With m₁ ≥ m₂ the two likeliest outcomes, bimodal is m₂ ≥ 0.1 and
    m₁ + m₂ ≥ 0.8: two modes, and little else. Breaking out is an epistemic mass of at least 0.1 beside another
    token of at least 0.1, whatever else there is (arXiv 2606.08432: one mode continues the path, one leaves it).
    """
    outcomes_3M = np.sort(np.stack([epistemic_M, path_M, second_path_M]), axis=0)
    second_M, first_M = outcomes_3M[1], outcomes_3M[2]
    bimodal_M = (second_M >= MODE_MASS) & (first_M + second_M >= TWO_MODES_MASS)
    break_out_M = (epistemic_M >= MODE_MASS) & (path_M >= MODE_MASS)
    return bimodal_M.astype(np.float64), break_out_M.astype(np.float64)


def _share(part: float, whole: float) -> float:
    return float(part / whole) if whole > 0 else 0.0
