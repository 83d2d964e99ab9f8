"""The cells on the real model, and the engine spec of each. The student is its own teacher unless an endpoint is."""

from __future__ import annotations

import itertools
import json
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks.paper.grid import Cell
from benchmarks.paper.real.tasks import (
    ALL_FORMS,
    FORMS,
    PROMPTS,
    SIZES,
    TEACHER_ALL_FORMS,
    TEACHER_FORMS,
    TEACHER_PROMPTS,
)
from benchmarks.paper.rows import Row
from benchmarks.paper.sections import best_rates

STUDENT = "smollm2-135m-instruct"
SEEDS = (0, 1, 2)
LEARNING_RATES = (3e-4, 1e-3, 3e-3)
LORA = {"rank": 16, "alpha": 32.0}
NUM_TRAIN, BATCH_SIZE = SIZES["train"], 16
K = {"heldout": 4, "validation": 2, "search": 2}
MAX_SOLVE_TOKENS, MAX_REFINE_TOKENS, MAX_NEW_TOKENS = 256, 384, 48
WARM_UP_LEARNING_RATE, WARM_UP_BATCH_SIZE = 1e-3, 8
VARIANTS: dict[str, dict[str, Any]] = {
    "forward_kl": {"mode": "opsd"},
    "reverse_kl_topk": {
        "mode": "opsd",
        "loss": {"divergence": "reverse_kl", "support": "top_k", "teacher_top_k": 32},
    },
    "ce_reference": {
        "mode": "trd",
        "loss": {"divergence": "cross_entropy"},
    },
    "trd": {"mode": "trd", "loss": {"teacher_context": "refine"}},
    "trd_served": {
        "mode": "trd",
        "loss": {"divergence": "cross_entropy"},
        "prompts": TEACHER_PROMPTS,
    },
}
"""Variant → its part of the spec."""
ENDPOINTS = {"ce_reference": "reference", "trd_served": "teacher"}
"""Variant → the name of its endpoint, and the model there."""
SUMMARIES = {
    "forward_kl": "y_o, forward KL, the teacher is shown y*",
    "reverse_kl_topk": "y_o, reverse KL on the teacher's top 32, the teacher is shown y*",
    "ce_reference": "cross-entropy on y* itself, which a served teacher answers as its text",
    "trd": "y_r, written with y* and y_o in sight, forward KL in the refine context",
    "trd_served": "cross-entropy on the y_r of another teacher, which is served, gives text alone and is not shown y*",
}


@dataclass(frozen=True)
class RealCell(Cell):
    """One run with LoRA, one round."""

    task: str = ""
    """A key of `CANDIDATES`."""
    batch_size: int = BATCH_SIZE

    @property
    def is_warm_up(self) -> bool:
        """True for training of the untrained model before the grid."""
        return self.section in (WARM_UP, STUDENT_SECTION, TEACHER_SECTION)

    @property
    def makes_model(self) -> bool:
        """True if the result is a model of the grid: its student or its served teacher."""
        return self.section in (STUDENT_SECTION, TEACHER_SECTION)

    @property
    def needs_server(self) -> bool:
        """True if a model is served during the run, which then uses two cores."""
        return self.variant == "trd_served"


WARM_UP = "real_warm_up"
"""Warm-up of every candidate for the choice: only problems."""
STUDENT_SECTION = "real_student"
"""Warm-up of the chosen task: each problem in every form that the grid uses."""
TEACHER_SECTION = "real_teacher"
"""Training of the served teacher: more problems, in the forms that it is used in."""


def real_cell(section: str, task: str, variant: str, rate: float, seed: int, **fields: Any) -> RealCell:
    """Return a cell with the common settings."""
    common = {"lora": True, "num_train": NUM_TRAIN, "teacher": "", "task": task}
    return RealCell(section, "opsd", STUDENT, variant, rate, seed, **(common | fields))


def warm_up_cell(task: str) -> RealCell:
    """Return the candidates' warm-ups on separate problems, scored on the search problems before and after."""
    fields = {"num_train": SIZES["warm_up"], "batch_size": WARM_UP_BATCH_SIZE, "split": "search"}
    return real_cell(WARM_UP, task, "ce_reference", WARM_UP_LEARNING_RATE, seed=0, **fields)


def student_cell(task: str) -> RealCell:
    """Return the warm-up that the grid starts from: the same problems in all `FORMS`."""
    fields = {"num_train": SIZES["warm_up"] * len(FORMS), "batch_size": WARM_UP_BATCH_SIZE, "split": "search"}
    return real_cell(STUDENT_SECTION, task, "ce_reference", WARM_UP_LEARNING_RATE, seed=0, **fields)


def teacher_cell(task: str) -> RealCell:
    """Return the training of the served teacher, scored on the held-out problems, which decides nothing."""
    fields = {"num_train": SIZES["teacher"] * len(TEACHER_FORMS), "batch_size": WARM_UP_BATCH_SIZE}
    return real_cell(TEACHER_SECTION, task, "ce_reference", WARM_UP_LEARNING_RATE, seed=0, **fields)


def learning_rate_cells(tasks: Sequence[str], variants: Collection[str] = VARIANTS) -> list[RealCell]:
    """Return every variant at every rate with one otherwise unused seed, scored on the validation problems."""
    cells = [
        real_cell("real_learning_rate", task, variant, rate, seed=100, split="validation")
        for task, variant, rate in itertools.product(tasks, variants, LEARNING_RATES)
    ]
    return sorted(cells, key=lambda cell: cell.needs_server)


def choose_rates(rows: Sequence[Row]) -> dict[tuple[str, str], float]:
    """Return by (task, variant) the rate with the highest validation avg@k; a tie gives the smaller."""
    return best_rates(
        ((cell["task"], cell["variant"]), cell["learning_rate"], sum(row["after"]["num_correct"]))
        for row in rows
        if (cell := row["cell"])["section"] == "real_learning_rate"
    )


def main_cells(
    tasks: Sequence[str], rates: dict[tuple[str, str], float], variants: Collection[str] = VARIANTS
) -> list[RealCell]:
    """Return every variant at its rate, seed by seed, so that an interrupted grid can still be compared."""
    cells = [
        real_cell("real", task, variant, rates[task, variant], seed)
        for seed, task, variant in itertools.product(SEEDS, tasks, variants)
    ]
    return sorted(cells, key=lambda cell: cell.needs_server)


def engine_spec(cell: RealCell, *, data: Path, student: Path, endpoint_url: str) -> dict[str, Any]:
    """Return the spec for ``python -m trd_engine run``.

    `student`: its folder. `endpoint_url`: the text-only endpoint of the variants in `ENDPOINTS`.
    """
    variant = VARIANTS[cell.variant]
    served = None
    if name := ENDPOINTS.get(cell.variant):
        served = {"endpoint": name, "base_url": endpoint_url, "model": name, "network": "loopback"}
    files = data / cell.task
    return {
        "mode": variant["mode"],
        "student": str(student),
        "teacher": served,
        "dataset": {"path": str(files / f"{train_split(cell)}.jsonl")},
        "task": "reasoning_gym",
        "loss": variant.get("loss", {}),
        "sampling": {
            "engine": "transformers",
            "max_prompt_tokens": MAX_SOLVE_TOKENS,
            "max_new_tokens": MAX_NEW_TOKENS,
        },
        "refine": {"max_prompt_tokens": MAX_REFINE_TOKENS, "max_new_tokens": MAX_NEW_TOKENS},
        "prompts": variant.get("prompts", PROMPTS),
        "lora": LORA,
        "optim": {"learning_rate": cell.learning_rate, "batch_size": cell.batch_size},
        "evaluation": {
            "dataset": {"path": str(files / f"{cell.split}.jsonl")},
            "k": K[cell.split],
            # The initial student is the same in every run: it is scored once, in one variant's first seed.
            "at_start": cell.is_warm_up or (cell.seed == 0 and cell.variant == "forward_kl"),
            "num_probe_samples": 0,
        },
        "diagnosis": {"num_trajectories": 0},
        "checkpoints": {"every_steps": 10_000, "keep": 1, "merged": cell.makes_model},
        # On a CPU fp32 samples several times as fast, and like the trainer; the candidates' rows are in bf16.
        "precision": "bf16" if cell.section == WARM_UP else "fp32",
        "seed": cell.seed,
        "device": "cpu",
    }


def train_split(cell: RealCell) -> str:
    """Return the file with the cell's training rows."""
    files = {WARM_UP: "warm_up", STUDENT_SECTION: ALL_FORMS, TEACHER_SECTION: TEACHER_ALL_FORMS}
    return files.get(cell.section, "train")


def reference_answers(cell: RealCell, data: Path) -> dict[str, str]:
    """Return y* by problem for the cell's training and scored problems, some of which are the engine's probes."""
    answers: dict[str, str] = {}
    for split in (train_split(cell), cell.split):
        for line in (data / cell.task / f"{split}.jsonl").read_text(encoding="utf-8").splitlines():
            row = json.loads(line)
            answers[row["question"]] = row["solution"]
    return answers
