"""The sections of the grid in the order they are run, and the pairings of the two open questions.

*support*: does refining beat distilling on the teacher's own samples, the further these are from what the student
knows? *loops*: does a student in long loops get shorter texts from a teacher that refines them, and at what cost?
"""

from __future__ import annotations

import itertools
import json
from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TypeVar

from benchmarks.paper import grid
from benchmarks.paper.grid import SEEDS, TEACHER, Cell, LearningRates
from benchmarks.paper.rows import Row
from benchmarks.paper.tables import Groups, best_baseline

SECTIONS = ("main", "controls", "support", "rounds", "lora", "loops", "timing")
DEFAULT_SECTIONS = ("main", "controls", "timing")
ALONE = ("timing",)
"""Sections that are run one at a time after the others, because their seconds are compared."""
RATE_SECTION = "learning_rate"
"""Section of the cells that choose the learning rates; ``learning_rate-NAME`` if for a single section."""
Key = TypeVar("Key")
QUESTION_RATES = (3e-4, 1e-3, 3e-3)
"""Rates that contain the best one of nearly every variant with the gap."""


@dataclass(frozen=True)
class Pairing:
    """A student, its teacher (OPD) and the compared variants: the rows of one section."""

    section: str
    student: str
    """A key of `grid.STUDENTS`."""
    teacher: str
    """Model folder."""
    variants: tuple[str, ...]
    native_share: float
    """Share of the teacher's own solutions in a style that the student does not know."""

    @property
    def rate_section(self) -> str:
        """Section of the runs that choose the learning rates."""
        return f"{RATE_SECTION}-{self.section}"


SUPPORT_VARIANTS = ("reverse_kl_topk", "trd", "kd_teacher_samples")
SUPPORT = (
    Pairing("support-half", "gap", "tiny-teacher-half-native", SUPPORT_VARIANTS, 0.5),
    Pairing("support-native", "gap", "tiny-teacher-native", SUPPORT_VARIANTS, 1.0),
)
"""Teachers trained equally, except for the share. A share of 0 is the default teacher, in *main* and *controls*."""
LOOPS = (Pairing("loops", "loops", "tiny-teacher-loops", ("forward_kl", "reverse_kl_topk", "trd"), 0.0),)
PAIRINGS = {"support": SUPPORT, "loops": LOOPS}


def rate_cells(sections: Sequence[str]) -> list[Cell]:
    """Return the runs that choose these sections' learning rates: one seed, scored on the validation problems."""
    cells = grid.learning_rate_cells() if any(name not in PAIRINGS for name in sections) else []
    names = {*sections, *(["loops"] if "timing" in sections else [])}  # timing runs the variants of the loops, too
    pairings = [pairing for name, found in PAIRINGS.items() if name in names for pairing in found]
    for pairing in pairings:
        cells += [
            _cell(pairing, pairing.rate_section, variant, rate, seed=100, split="validation")
            for variant, rate in itertools.product(pairing.variants, QUESTION_RATES)
        ]
    return cells


def section_cells(section: str, rates: LearningRates, seeds: Sequence[int] = SEEDS) -> list[Cell]:
    """Return the runs of one of `SECTIONS`."""
    if section in PAIRINGS:
        return _pairing_cells(PAIRINGS[section], rates, seeds)
    if section == "timing":
        loops = _pairing_cells(LOOPS, rates, seeds=[0])
        return [*grid.cells_of("timing", rates, seeds=[0]), *(replace(cell, section="timing") for cell in loops)]
    return grid.cells_of(section, rates, seeds)


def compared_cells(cells: Sequence[Cell], groups: Groups) -> list[Cell]:
    """Return the cells of `ALONE` whose seconds the report compares: `trd` and each setting's best baselines by the
    existing rows, or all cells of a setting without rows."""

    def is_compared(cell: Cell) -> bool:
        sections = ("main", "rounds", "loops")
        best = {best_baseline(groups, section, cell.teaching, cell.student) for section in sections} - {None}
        return cell.variant == "trd" or not best or cell.variant in best

    return [cell for cell in cells if is_compared(cell)]


def _pairing_cells(pairings: Sequence[Pairing], rates: LearningRates, seeds: Sequence[int]) -> list[Cell]:
    return [
        _cell(pairing, pairing.section, variant, rates["opd", pairing.student, pairing.teacher, variant], seed)
        for seed, pairing in itertools.product(seeds, pairings)
        for variant in pairing.variants
    ]


def _cell(pairing: Pairing, section: str, variant: str, rate: float, seed: int, split: grid.Split = "heldout") -> Cell:
    return Cell(section, "opd", pairing.student, variant, rate, seed, split=split, teacher=pairing.teacher)


def rate_key(cell: Cell) -> tuple[str, str, str, str]:
    """Return the factors that a learning rate depends on."""
    return cell.teaching, cell.student, cell.teacher, cell.variant


def best_rates(scored: Iterable[tuple[Key, float, float]]) -> dict[Key, float]:
    """Return by key the rate with the highest score, from (key, rate, score); a tie gives the smaller rate."""
    scores: dict[Key, dict[float, float]] = defaultdict(dict)
    for key, rate, score in scored:
        scores[key][rate] = score
    return {key: max(sorted(found), key=found.__getitem__) for key, found in scores.items()}


def choose_rates(rows: Iterable[Row]) -> LearningRates:
    """Return by (teaching, student, teacher, variant) the rate with the highest avg@k on the validation problems."""
    scored = []
    for row in rows:
        cell, after = row["cell"], row["after"]
        if cell["section"].partition("-")[0] == RATE_SECTION:
            key = cell["teaching"], cell["student"], cell["teacher"], cell["variant"]
            average = sum(after["num_correct"]) / len(after["num_correct"]) / after["k"]
            scored.append((key, cell["learning_rate"], average))
    return best_rates(scored)


def write_rates(path: Path, rates: LearningRates) -> None:
    """Write the chosen rates."""
    names = ("teaching", "student", "teacher", "variant")
    entries = [dict(zip(names, key, strict=True)) | {"learning_rate": rate} for key, rate in rates.items()]
    path.write_text("[\n" + ",\n".join(json.dumps(entry) for entry in entries) + "\n]\n", encoding="utf-8")


def read_rates(path: Path) -> LearningRates:
    """Read the chosen rates; none without a file. An entry without a teacher means the default teacher."""
    if not path.exists():
        return {}
    entries = json.loads(path.read_text(encoding="utf-8"))
    return {(e["teaching"], e["student"], e.get("teacher", TEACHER), e["variant"]): e["learning_rate"] for e in entries}
