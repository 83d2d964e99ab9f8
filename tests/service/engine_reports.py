"""Reports of a round's diagnosis, as the engine makes them."""

from __future__ import annotations

from dataclasses import asdict
from typing import Any

import numpy as np

from trd_engine.evaluation.diagnosis.prefix_failure import DiagnosedRollout, TokenSteps
from trd_engine.evaluation.diagnosis.report import make_report
from trd_engine.evaluation.diagnosis.scoring import ScoredCompletion


def engine_report(*, refined: bool = True) -> dict[str, Any]:
    """Make a report with the engine's own functions, from random figures."""
    generator = np.random.default_rng(2)
    names = ScoredCompletion.__dataclass_fields__
    rollout, corrected = (
        ScoredCompletion(**{name: generator.uniform(0, 1, 20).astype(np.float32) for name in names}) for _ in range(2)
    )
    diagnosed = DiagnosedRollout(
        position=0,
        rollout_correct=False,
        refined_correct=True if refined else None,
        rollout=rollout,
        refined=corrected if refined else None,
        refined_vanilla=corrected if refined else None,
        steps=TokenSteps((0, 5, 10), 1) if refined else None,
        parts_at=6 if refined else None,
    )
    return asdict(make_report([diagnosed], token_clip=0.0, sampler_gap=1e-6))
