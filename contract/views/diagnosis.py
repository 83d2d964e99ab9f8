"""The diagnosis of a round: the engine's figures, each with its meaning.

``docs/diagnosis.md`` has the formulas, and what healthy values look like. A figure that was not finite is null.
"""

from __future__ import annotations

from datetime import datetime
from typing import Literal

from contract.views import View

Figure = float | None


class PositionBin(View):
    """The tokens at a range of positions in their completions."""

    low: float
    """First position: a share of the completion's length, or a number of tokens."""
    high: float
    """The position after the last."""
    num_tokens: int
    forward_kl: Figure
    epistemic_mass: Figure
    bimodal_share: Figure


class ContextFigures(View):
    """Completions scored by both models, the teacher in one context. Means are over tokens; KL is in nats."""

    num_completions: int
    num_tokens: int
    forward_kl: Figure
    """KL(teacher‖student), full vocabulary, temperature 1, no clip."""
    forward_kl_p50: Figure
    forward_kl_p95: Figure
    forward_kl_p99: Figure
    forward_kl_max: Figure
    forward_kl_per_completion: Figure
    epistemic_mass: Figure
    """The teacher's probability of words that open a correction ("Wait", "Actually" …)."""
    bimodal_share: Figure
    """Tokens at which the teacher's distribution has two modes and little else."""
    break_out_share: Figure
    """Tokens at which one of the teacher's modes leaves the path and another continues it."""
    clip_at: float
    """The loss's token clip; 0.1 if the loss has none."""
    clip_share: Figure
    """Tokens whose KL is above ``clip_at``."""
    clipped_kl_share: Figure
    """Share of the total KL that such a clip removes."""
    top1_agreement: Figure
    student_entropy: Figure
    teacher_entropy: Figure
    student_perplexity: Figure
    """Perplexity of the text, in the student's context."""
    teacher_perplexity: Figure
    by_share: list[PositionBin]
    """Figures by tenths of the completion's length."""
    by_token: list[PositionBin]
    """Figures by position, in bins that double."""


class Segment(View):
    """The same part of several rollouts."""

    num_tokens: int
    forward_kl: Figure
    epistemic_mass: Figure


class CurvePoint(View):
    """The teacher's mass at a distance from an event."""

    distance: int
    num_places: int
    """Number of positions that the mean is over."""
    mass: Figure


class FirstWrongStep(View):
    """Rollouts before, within and after their first wrong step."""

    num_checked: int
    """Rollouts whose steps could be checked."""
    num_wrong: int
    """Checked rollouts that have a wrong step."""
    median_share: Figure
    """Relative position in the rollout at which the wrong step begins, 0 … 1."""
    before: Segment
    within: Segment
    after: Segment
    onset_by_token: list[CurvePoint]
    """Mass on the onset of a correction at the 1st, 2nd, 3rd … token after the wrong step."""
    onset_by_step: list[CurvePoint]
    """The same at the first token of the 1st, 2nd … step after it; distance 0: of the steps up to the wrong one."""


class Parting(View):
    """Where y_o and y_r diverge, over failed rollouts whose refinement is correct."""

    num_fail_to_pass: int
    """Failed rollouts whose refinement is correct."""
    median_share: Figure
    correction_by_token: list[CurvePoint]
    """Mass on the first token of y_r that differs, along y_o: where the two diverge, and at each token after."""


class DiagnosisReport(View):
    """What a sample of a round's trajectories shows about prefix failure."""

    num_trajectories: int
    sampler_gap: Figure
    """Mean difference of the sampler's and the trainer's log-probabilities, nats."""
    rollout: ContextFigures
    """y_o, the teacher in the vanilla context."""
    refined: ContextFigures | None
    """y_r, the teacher in the refine context; null if nothing was refined."""
    refined_vanilla: ContextFigures | None
    """y_r, the teacher in the vanilla context."""
    first_wrong_step: FirstWrongStep | None
    """Null if the task cannot check single steps."""
    parting: Parting | None


class DiagnosisView(View):
    """The diagnosis of one round, before any training on it."""

    object: Literal["diagnosis"] = "diagnosis"
    round: int
    step: int
    """Optimizer steps taken before the round."""
    report: DiagnosisReport
    created_at: datetime
