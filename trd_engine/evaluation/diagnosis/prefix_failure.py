"""The two signs of prefix failure: what happens after the first wrong step, and where y_o and y_r diverge.

Pure arithmetic on scored completions. Both show the fragmented gradient: the teacher proposes the first token of a
correction at position after position, because its context never contains the rest of the correction.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from trd_engine.evaluation.diagnosis.scoring import ScoredCompletion

MAX_TOKENS_AFTER = 16
"""Length of the curves by token."""
MAX_STEPS_AFTER = 8
"""Length of the curve by step; later steps are not shown."""


@dataclass(frozen=True)
class TokenSteps:
    """The steps of a completion as token positions."""

    starts: tuple[int, ...]
    """First token of each step."""
    first_wrong: int | None
    """Index into `starts`."""


@dataclass(frozen=True)
class DiagnosedRollout:
    """One diagnosed trajectory."""

    position: int
    """Position in the round."""
    rollout_correct: bool
    refined_correct: bool | None
    rollout: ScoredCompletion
    """y_o in the vanilla context; its watched token is y_r's at the position where the two diverge."""
    refined: ScoredCompletion | None
    """y_r in the refine context."""
    refined_vanilla: ScoredCompletion | None
    steps: TokenSteps | None
    """Steps of y_o; None if the task cannot check steps."""
    parts_at: int | None
    """First token at which y_o and y_r differ; None if they are equal or nothing was refined."""

    @property
    def wrong_tokens(self) -> tuple[int, int] | None:
        """First token of the first wrong step of y_o, and the first token after it; None if there is none."""
        if self.steps is None or self.steps.first_wrong is None:
            return None
        later = self.steps.starts[self.steps.first_wrong + 1 :]
        return self.steps.starts[self.steps.first_wrong], later[0] if later else self.rollout.num_tokens


@dataclass(frozen=True)
class Segment:
    """The same part of several rollouts. Means are over its tokens; None if there are none."""

    num_tokens: int
    forward_kl: float | None
    epistemic_mass: float | None


@dataclass(frozen=True)
class CurvePoint:
    """The teacher's mean mass at a distance from an event, over the rollouts that are long enough."""

    distance: int
    num_places: int
    """Number of positions that the mean is over."""
    mass: float | None


@dataclass(frozen=True)
class FirstWrongStep:
    """Rollouts before, within and after their first wrong step."""

    num_checked: int
    """Rollouts whose steps could be checked."""
    num_wrong: int
    """Checked rollouts that have a wrong step; the fields below are about these."""
    median_share: float | None
    """Relative position at which the wrong step begins, 0 … 1."""
    before: Segment
    within: Segment
    after: Segment
    onset_by_token: list[CurvePoint]
    """Mass on epistemic onsets at the 1st, 2nd, 3rd … token after the wrong step."""
    onset_by_step: list[CurvePoint]
    """The same at the first token of the 1st, 2nd, 3rd … step after it; distance 0 is the mean over the steps up to
    and including the wrong one, whose prefix is correct."""


@dataclass(frozen=True)
class Parting:
    """Where y_o and y_r diverge, over failed rollouts whose refinement is correct."""

    num_fail_to_pass: int
    median_share: float | None
    """Relative position in the rollout, 0 … 1."""
    correction_by_token: list[CurvePoint]
    """Mass on the first token of y_r that differs, along y_o: distance 0 is where the two diverge."""


def first_wrong_step(sample: Sequence[DiagnosedRollout]) -> FirstWrongStep | None:
    """Return the figures around the first wrong step; None if no rollout's steps could be checked."""
    checked = [d for d in sample if d.steps is not None]
    if not checked:
        return None
    failed = [(d.rollout, *d.wrong_tokens) for d in checked if d.wrong_tokens is not None]
    return FirstWrongStep(
        num_checked=len(checked),
        num_wrong=len(failed),
        median_share=_median([start / c.num_tokens for c, start, _ in failed]),
        before=_segment([(c, 0, start) for c, start, _ in failed]),
        within=_segment([(c, start, end) for c, start, end in failed]),
        after=_segment([(c, end, c.num_tokens) for c, _, end in failed]),
        onset_by_token=[
            _point(k, [c.epistemic_mass_T[end + k - 1] for c, _, end in failed if end + k - 1 < c.num_tokens])
            for k in range(1, MAX_TOKENS_AFTER + 1)
        ],
        onset_by_step=_onset_by_step(checked),
    )


def parting(sample: Sequence[DiagnosedRollout]) -> Parting:
    """Use the pairs with a wrong y_o and a correct y_r: only there y_r is known to be a correction."""
    corrected = [
        (d.rollout, d.parts_at)
        for d in sample
        if d.parts_at is not None and not d.rollout_correct and d.refined_correct and d.parts_at < d.rollout.num_tokens
    ]
    return Parting(
        num_fail_to_pass=len(corrected),
        median_share=_median([place / c.num_tokens for c, place in corrected]),
        correction_by_token=[
            _point(k, [c.watched_mass_T[place + k] for c, place in corrected if place + k < c.num_tokens])
            for k in range(MAX_TOKENS_AFTER + 1)
        ],
    )


def _onset_by_step(checked: Sequence[DiagnosedRollout]) -> list[CurvePoint]:
    masses: list[list[float]] = [[] for _ in range(MAX_STEPS_AFTER + 1)]
    for diagnosed in checked:
        steps = diagnosed.steps
        if steps is None or steps.first_wrong is None:
            continue
        for index, start in enumerate(steps.starts):
            distance = max(0, index - steps.first_wrong)
            if distance <= MAX_STEPS_AFTER and start < diagnosed.rollout.num_tokens:
                masses[distance].append(float(diagnosed.rollout.epistemic_mass_T[start]))
    return [_point(distance, found) for distance, found in enumerate(masses)]


def _segment(stretches: Sequence[tuple[ScoredCompletion, int, int]]) -> Segment:
    kl_M = _joined([c.forward_kl_T[start:end] for c, start, end in stretches])
    mass_M = _joined([c.epistemic_mass_T[start:end] for c, start, end in stretches])
    return Segment(len(kl_M), mean(kl_M), mean(mass_M))


def _joined(parts: Sequence[NDArray[np.float32]]) -> NDArray[np.float64]:
    return np.concatenate(parts).astype(np.float64) if parts else np.zeros(0)


def _point(distance: int, masses: Sequence[float]) -> CurvePoint:
    return CurvePoint(distance, len(masses), mean(np.asarray(masses, dtype=np.float64)))


def mean(values: NDArray[np.float64]) -> float | None:
    """Return the mean; None of nothing."""
    return float(values.mean()) if len(values) else None


def _median(values: Sequence[float]) -> float | None:
    return float(np.median(values)) if values else None
