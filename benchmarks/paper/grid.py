"""The cells of the grid: its runs, and the engine spec of each."""

from __future__ import annotations

import hashlib
import itertools
import json
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

from benchmarks.paper.variants import CONTROLS, MAIN, VARIANTS

Teaching = Literal["opd", "opsd"]
"""opd: another model teaches; opsd: the student's step-0 weights, which see the reference solution."""

Split = Literal["heldout", "validation"]

STUDENTS = {"gap": "tiny-student", "slips": "tiny-student-slips", "loops": "tiny-student-loops"}
MAIN_STUDENTS = ("gap", "slips")
TEACHER = "tiny-teacher"
SEEDS = tuple(range(5))
LEARNING_RATES = (1e-4, 3e-4, 1e-3, 3e-3, 1e-2)
ROUNDS, PROBLEMS_A_ROUND = 4, 512
LORA = {"rank": 16, "alpha": 32.0}
LORA_LEARNING_RATE_FACTOR = 3.0
"""Adapters need a larger rate than full weights; the factor is the same for every variant."""
NUM_TRAIN, NUM_HELDOUT, BATCH_SIZE = 1024, 250, 32
NUM_DIAGNOSED = 512
K = {"heldout": 8, "validation": 4}
MAX_SOLVE_TOKENS, MAX_REFINE_TOKENS, MAX_NEW_TOKENS = 64, 256, 160
LOOPS_MAX_REFINE_TOKENS, LOOPS_MAX_NEW_TOKENS = 512, 320
"""Token limit of the student in long loops: enough for five attempts in one answer."""


@dataclass(frozen=True)
class Cell:
    """One run: all factors of the design."""

    section: str
    """Part of the report that uses the run."""
    teaching: Teaching
    student: str
    """A key of `STUDENTS`."""
    variant: str
    learning_rate: float
    seed: int
    rounds: int = 1
    lora: bool = False
    num_train: int = NUM_TRAIN
    """Number of problems, divided among the rounds."""
    split: Split = "heldout"
    teacher: str = TEACHER
    """Model folder of OPD's teacher."""

    @property
    def id(self) -> str:
        """Return a key that identifies the run."""
        document = json.dumps(asdict(self), sort_keys=True)
        digest = hashlib.sha256(document.encode()).hexdigest()[:10]
        return f"{self.section}-{self.teaching}-{self.student}-{self.variant}-s{self.seed}-{digest}"


def engine_spec(cell: Cell, *, data: Path, models: Path) -> dict[str, Any]:
    """Return the spec for ``python -m trd_engine run``."""
    variant = VARIANTS[cell.variant]
    lora = LORA if cell.lora else None
    # One seed of `trd`: before training, rollouts are the same for all variants.
    is_diagnosed = cell.seed == 0 and cell.variant == "trd" and cell.section in ("main", "rounds")
    max_refine_tokens, max_new_tokens = MAX_REFINE_TOKENS, MAX_NEW_TOKENS
    if cell.student == "loops":
        max_refine_tokens, max_new_tokens = LOOPS_MAX_REFINE_TOKENS, LOOPS_MAX_NEW_TOKENS
    return {
        "mode": "trd" if variant.refines else cell.teaching,
        "student": str(models / STUDENTS.get(cell.student, cell.student)),
        "teacher": str(models / cell.teacher) if cell.teaching == "opd" else None,
        "dataset": {"path": str(data / f"train-{cell.num_train}.jsonl")},
        "task": "exact",
        "loss": variant.loss,
        "sampling": {
            "engine": "transformers",
            "max_prompt_tokens": MAX_SOLVE_TOKENS,
            "max_new_tokens": max_new_tokens,
        },
        "refine": {"max_prompt_tokens": max_refine_tokens, "max_new_tokens": max_new_tokens, **variant.refine},
        "prompts": variant.prompts,
        "lora": lora,
        "optim": {
            "learning_rate": cell.learning_rate * (LORA_LEARNING_RATE_FACTOR if cell.lora else 1.0),
            "batch_size": BATCH_SIZE,
        },
        "rounds": cell.rounds,
        "evaluation": {
            "dataset": {"path": str(data / f"{cell.split}.jsonl")},
            "k": K[cell.split],
            # After each round: the curve along which a baseline may catch up.
            "every_steps": max(1, cell.num_train // cell.rounds // BATCH_SIZE),
            "at_start": _scores_the_untrained(cell),
        },
        "diagnosis": {"num_trajectories": NUM_DIAGNOSED if is_diagnosed else 0, "steps": "reference"},
        "checkpoints": {"every_steps": 10_000, "keep": 1, "merged": False},
        "seed": cell.seed,
        "device": "cpu",
    }


def _scores_the_untrained(cell: Cell) -> bool:
    """Return whether the run also evaluates before training: one seed of the first variant in each setting."""
    if cell.seed != 0 or cell.section == "timing":
        return False
    is_once = cell.section in ("main", "controls", "lora", "other_models")
    return not is_once or cell.variant in (next(iter(MAIN)), next(iter(CONTROLS)))


def learning_rate_cells() -> list[Cell]:
    """Return every variant at every rate, with one seed, scored on the validation problems."""
    return [
        Cell("learning_rate", teaching, student, variant, rate, seed=100, split="validation")
        for teaching, student, variant, rate in itertools.product(_TEACHINGS, MAIN_STUDENTS, VARIANTS, LEARNING_RATES)
    ]


LearningRates = dict[tuple[str, str, str, str], float]
"""(teaching, student, teacher, variant) → the rate chosen on the validation problems."""

_TEACHINGS: tuple[Teaching, ...] = ("opd", "opsd")


_SECTIONS: dict[str, tuple[Iterable[str], dict[str, Any]]] = {
    "main": (MAIN, {}),
    "controls": (CONTROLS, {}),
    "rounds": (MAIN, {"rounds": ROUNDS, "num_train": ROUNDS * PROBLEMS_A_ROUND}),
    "lora": (MAIN, {"lora": True}),
    "other_models": (MAIN, {}),
    "timing": (MAIN, {}),
}
"""The variants of each section, and what only its runs have: half the problems of *rounds* in each of four
rounds, and in *other_models* models that were trained with another seed."""


def cells_of(section: str, rates: LearningRates, seeds: Sequence[int] = SEEDS) -> list[Cell]:
    """Return the runs of a section, seed by seed, so that an interrupted grid has the same seeds for every cell."""
    variants, fields = _SECTIONS[section]
    return [
        Cell(section, teaching, student, variant, rates[teaching, student, TEACHER, variant], seed, **fields)
        for seed, teaching, student, variant in itertools.product(seeds, _TEACHINGS, MAIN_STUDENTS, variants)
    ]
