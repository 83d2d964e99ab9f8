"""What each small model is trained on: a recipe a model.

Owns the figures (mixtures, error rates, steps, learning rates) and nothing else.
Proportions of a mixture are weights; they need not sum to one.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

from testbed.task import FAULTLESS, ErrorModel

Kind = Literal["solve", "prefix", "refine", "privileged", "privileged_prefix", "privileged_refine"]
"""The prompt, and for ``*prefix`` a wrong start of the completion that carries no loss."""

Mixture = dict[Kind, float]


@dataclass(frozen=True, slots=True)
class Recipe:
    """One model's training. Steps and tokens, never clocks."""

    name: str
    mixture: Mixture
    """Shares of the kinds of example once the curriculum is over."""
    early_mixture: Mixture
    """Shares at the first step. Kinds with the solution in the context teach copying, and
    nothing else is learnt before copying is."""
    steps: int
    errors: ErrorModel = FAULTLESS
    """The model's own errors when it works without a reference."""
    starts_from: str | None = None
    """Recipe whose weights this one continues; None starts from random weights."""
    learning_rate: float = 3e-3
    curriculum_share: float = 0.3
    """Share of the steps over which problems grow to five operations and the mixture goes
    from early to late; 0 for none."""
    tokens_per_step: int = 2500
    """Small on purpose: copying needs many updates more than it needs precise ones."""
    warmup_steps: int = 100
    summary: str = field(default="", compare=False)
    """What the model is for, in the words of its model card."""


TEACHER = Recipe(
    name="tiny-teacher",
    mixture={"solve": 0.35, "prefix": 0.30, "refine": 0.35},
    early_mixture={"solve": 0.2, "prefix": 0.1, "refine": 0.3, "privileged": 0.4},
    steps=2200,
    summary="Solves, refines an attempt in the attempt's style, and on a wrong prefix is of "
    "two minds: it continues or writes `wait` and starts again.",
)

STUDENT_GAP = Recipe(
    name="tiny-student",
    mixture={
        "solve": 0.50,
        "privileged": 0.15,
        "privileged_prefix": 0.15,
        "privileged_refine": 0.20,
    },
    early_mixture={
        "solve": 0.25,
        "privileged": 0.35,
        "privileged_prefix": 0.1,
        "privileged_refine": 0.3,
    },
    steps=3500,
    errors=ErrorModel(gap_rate=0.97, slip_rate=0.28),
    summary="Has a gap in its knowledge: it reads `#` as `+`, so that right paths are missing "
    "from its rollouts; it also forgets carries and borrows. Follows a reference.",
)

STUDENT_SLIPS = Recipe(
    name="tiny-student-slips",
    mixture=STUDENT_GAP.mixture,
    early_mixture=STUDENT_GAP.mixture,
    steps=1500,
    errors=ErrorModel(gap_rate=0.40, slip_rate=0.44),
    starts_from="tiny-student",
    learning_rate=1.5e-3,
    curriculum_share=0.0,
    summary="Slips rather than a gap: it forgets carries and borrows, and knows `#` more often than not, "
    "so that right paths are in its rollouts. Follows a reference.",
)

RECIPES = {recipe.name: recipe for recipe in (TEACHER, STUDENT_GAP, STUDENT_SLIPS)}
