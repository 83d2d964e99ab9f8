"""What each small model is trained on: a recipe a model.

Owns the figures (mixtures, error rates, steps, learning rates) and nothing else.
Proportions of a mixture are weights; they need not sum to one.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass, field, fields
from typing import Any, Literal

from testbed.task import FAULTLESS, ErrorModel

Kind = Literal["solve", "prefix", "right_prefix", "refine", "privileged", "privileged_prefix", "privileged_refine"]
"""The prompt, and for ``*prefix`` a start of the completion that carries no loss: a wrong one, except for
``right_prefix``."""

Mixture = dict[Kind, float]


@dataclass(frozen=True, slots=True)
class Recipe:
    """One model's training. Steps and tokens, never clocks."""

    name: str
    mixture: Mixture
    """Shares of the kinds of example once the curriculum is over."""
    early_mixture: Mixture
    """Shares at the first step. Kinds with the solution in the context teach copying, which a model learns before
    anything else."""
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
    """Small on purpose: copying needs many updates more than precise ones."""
    warmup_steps: int = 100
    native_share: float = 0.0
    """Share of ``solve`` written in the teacher's native style, values alone between ``|``. What
    is begun in another style, or refined, keeps that style."""
    foreign_wait_rates: tuple[float, ...] = (0.0, 0.0, 0.3)
    """``wait`` rates of the attempts that it is shown, each as likely."""
    foreign_max_restarts: int = 1
    """Limit of ``wait`` in the attempts and wrong starts that it is shown."""
    half_precision: bool = False
    """Weights are stored in bf16. Training is in fp32 in either case."""
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

_NATIVE_MIXTURE: Mixture = {"solve": 0.30, "right_prefix": 0.10, "prefix": 0.25, "refine": 0.35}
"""Without right starts, a teacher that solves in its native style alone would take every start in another
style for a wrong one."""


def _native_teacher(name: str, share: float, summary: str) -> Recipe:
    return Recipe(
        name=name,
        mixture=_NATIVE_MIXTURE,
        early_mixture=_NATIVE_MIXTURE,
        steps=1000,
        starts_from="tiny-teacher",
        learning_rate=2e-3,
        curriculum_share=0.0,
        native_share=share,
        half_precision=True,
        summary=summary,
    )


NATIVE_TEACHERS = (
    _native_teacher(
        "tiny-teacher-half-native",
        0.5,
        "Solves every second time in a style that no student knows, values alone between `|`; refines in the "
        "attempt's style.",
    ),
    _native_teacher(
        "tiny-teacher-native",
        1.0,
        "Solves in a style that no student knows, values alone between `|`; refines in the attempt's style.",
    ),
)

TEACHER_LOOPS = Recipe(
    name="tiny-teacher-loops",
    mixture={"solve": 0.30, "prefix": 0.35, "refine": 0.35},
    early_mixture={"solve": 0.30, "prefix": 0.35, "refine": 0.35},
    steps=600,
    starts_from="tiny-teacher",
    learning_rate=2e-3,
    curriculum_share=0.0,
    foreign_wait_rates=(0.0, 0.3, 0.9),
    foreign_max_restarts=4,
    half_precision=True,
    summary="Reads attempts that start again up to four times, and refines them without a loop.",
)

STUDENT_LOOPS = Recipe(
    name="tiny-student-loops",
    mixture={"solve": 0.7, "privileged": 0.1, "privileged_refine": 0.2},
    early_mixture={"solve": 0.7, "privileged": 0.1, "privileged_refine": 0.2},
    steps=600,
    errors=ErrorModel(gap_rate=0.97, slip_rate=0.28, wait_rate=0.9, max_restarts=4),
    starts_from="tiny-student",
    learning_rate=1.5e-3,
    curriculum_share=0.0,
    foreign_wait_rates=(0.0, 0.3, 0.9),
    foreign_max_restarts=4,
    half_precision=True,
    summary="The student with the gap, in long loops: after an error it mostly writes `wait` and starts again, up "
    "to four times, each time with errors anew. Follows a reference.",
)

RECIPES = {
    recipe.name: recipe
    for recipe in (TEACHER, STUDENT_GAP, STUDENT_SLIPS, *NATIVE_TEACHERS, TEACHER_LOOPS, STUDENT_LOOPS)
}

_SPECIAL = ("native_share", "foreign_wait_rates", "foreign_max_restarts", "half_precision")


def record(recipe: Recipe) -> dict[str, Any]:
    """Return the recipe as a model's folder keeps it; of the special abilities it lists those that the model has."""
    absent = {f.name for f in fields(recipe) if f.name in _SPECIAL and getattr(recipe, f.name) == f.default}
    return {name: value for name, value in asdict(recipe).items() if name not in absent}
