"""The learning rate of each variant: the best of a few on the validation problems, chosen the same way for all."""

from __future__ import annotations

import json
from collections import defaultdict
from pathlib import Path

from benchmarks.paper.grid import TEACHER, Cell, LearningRates
from benchmarks.paper.rows import Row

RATE_SECTION = "learning_rate"
"""Section of the cells that choose; ``learning_rate-NAME`` if they choose for a single section."""
Key = tuple[str, str, str, str]


def key_of(cell: Cell) -> Key:
    """Return the factors that a rate depends on."""
    return cell.teaching, cell.student, cell.teacher, cell.variant


def choose(rows: list[Row]) -> LearningRates:
    """Return by (teaching, student, teacher, variant) the rate with the highest avg@k; a tie gives the smaller."""
    scores: dict[Key, dict[float, float]] = defaultdict(dict)
    for row in rows:
        cell = row["cell"]
        if cell["section"].partition("-")[0] == RATE_SECTION:
            after = row["after"]
            average = sum(after["num_correct"]) / len(after["num_correct"]) / after["k"]
            key = cell["teaching"], cell["student"], cell["teacher"], cell["variant"]
            scores[key][cell["learning_rate"]] = average
    return {key: max(sorted(found), key=found.__getitem__) for key, found in scores.items()}


def write(path: Path, rates: LearningRates) -> None:
    """Write the chosen rates."""
    names = ("teaching", "student", "teacher", "variant")
    entries = [dict(zip(names, key, strict=True)) | {"learning_rate": rate} for key, rate in rates.items()]
    path.write_text("[\n" + ",\n".join(json.dumps(entry) for entry in entries) + "\n]\n", encoding="utf-8")


def read(path: Path) -> LearningRates:
    """Read the chosen rates; none without a file. An entry without a teacher means the default teacher."""
    if not path.exists():
        return {}
    entries = json.loads(path.read_text(encoding="utf-8"))
    return {(e["teaching"], e["student"], e.get("teacher", TEACHER), e["variant"]): e["learning_rate"] for e in entries}
