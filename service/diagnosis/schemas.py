"""A round's diagnosis as the API shows it: the engine's figures, each with its meaning.

``docs/diagnosis.md`` has the formulas, and what healthy values look like. A figure that was not finite is null.
"""

from __future__ import annotations

from datetime import datetime
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict

from contract.tables import Diagnosis

Figure = float | None


class _View(BaseModel):
    model_config = ConfigDict(use_attribute_docstrings=True)


class PositionBin(_View):
    """The tokens at some positions of their completions."""

    low: float
    """First position: a share of the completion's length, or a number of tokens."""
    high: float
    """The position after the last."""
    num_tokens: int
    forward_kl: Figure
    epistemic_mass: Figure
    bimodal_share: Figure


class ContextFigures(_View):
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
    """Tokens where the teacher has two modes and little else."""
    break_out_share: Figure
    """Tokens where one of the teacher's modes leaves the path and another goes on with it."""
    clip_at: float
    """The loss's token clip; where it has none, 0.1."""
    clip_share: Figure
    """Tokens whose KL is above ``clip_at``."""
    clipped_kl_share: Figure
    """Share of all KL that such a clip takes away."""
    top1_agreement: Figure
    student_entropy: Figure
    teacher_entropy: Figure
    student_perplexity: Figure
    """Of the text, in the student's context."""
    teacher_perplexity: Figure
    by_share: list[PositionBin]
    """By tenths of the completion's length."""
    by_token: list[PositionBin]
    """By position, in bins that double."""


class Segment(_View):
    """A stretch of several rollouts."""

    num_tokens: int
    forward_kl: Figure
    epistemic_mass: Figure


class CurvePoint(_View):
    """The teacher's mass at a distance from an event."""

    distance: int
    num_places: int
    """Places in the sample that the mass is the mean of."""
    mass: Figure


class FirstWrongStep(_View):
    """Rollouts before, within and after their first wrong step."""

    num_checked: int
    """Rollouts whose steps could be told."""
    num_wrong: int
    """Of these, the ones with a wrong step."""
    median_share: Figure
    """How far into the rollout it begins, 0 … 1."""
    before: Segment
    within: Segment
    after: Segment
    onset_by_token: list[CurvePoint]
    """Mass on the onset of a correction at the 1st, 2nd, 3rd … token after the wrong step."""
    onset_by_step: list[CurvePoint]
    """The same at the first token of the 1st, 2nd … step after it; distance 0: of the steps up to the wrong one."""


class Parting(_View):
    """Where y_o and y_r part, in failed rollouts that refining mended."""

    num_mended: int
    median_share: Figure
    correction_by_token: list[CurvePoint]
    """Mass on y_r's own first token, along y_o: where the two part, and at each token after."""


class DiagnosisReport(_View):
    """What a sample of a round's trajectories says of prefix failure."""

    num_trajectories: int
    sampler_gap: Figure
    """Mean difference of the sampler's and the trainer's log-probabilities, nats."""
    rollout: ContextFigures
    """y_o, the teacher in the vanilla context."""
    refined: ContextFigures | None
    """y_r, the teacher in the refine context; null where nothing was refined."""
    refined_vanilla: ContextFigures | None
    """y_r, the teacher in the vanilla context."""
    first_wrong_step: FirstWrongStep | None
    """Null where the task cannot tell."""
    parting: Parting | None


class DiagnosisView(_View):
    """One round's, before anything was trained on it."""

    object: Literal["diagnosis"] = "diagnosis"
    round: int
    step: int
    """Optimizer steps taken before the round."""
    report: DiagnosisReport
    created_at: datetime


def diagnosis_view(row: Diagnosis) -> DiagnosisView:
    """A row as the API shows it."""
    report: dict[str, Any] = row.report
    return DiagnosisView(
        round=row.round, step=row.step, report=DiagnosisReport.model_validate(report), created_at=row.created_at
    )
