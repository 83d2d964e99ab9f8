"""Probe samples."""

from __future__ import annotations

from datetime import datetime
from typing import Literal

from contract.views import View


class ProbeSampleView(View):
    """The student's answer to one of a few fixed problems at one evaluation."""

    object: Literal["probe_sample"] = "probe_sample"
    id: str
    """``step:position``, for ``after``."""
    step: int
    """0 is the baseline, before training."""
    position: int
    """Of the problem: the same problem at every step."""
    problem_id: str
    prompt: str
    """As the student sees it."""
    completion: str
    correct: bool
    created_at: datetime
