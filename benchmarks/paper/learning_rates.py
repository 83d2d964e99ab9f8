"""The learning rate of each variant: the best of the same few on validation problems, chosen alike for all."""

from __future__ import annotations

import json
from collections import defaultdict
from pathlib import Path

from benchmarks.paper.grid import LearningRates
from benchmarks.paper.rows import Row

Key = tuple[str, str, str]


def choose(rows: list[Row]) -> LearningRates:
    """For each (teaching, student, variant) the rate with the highest avg@k; the smaller one where they tie."""
    scores: dict[Key, dict[float, float]] = defaultdict(dict)
    for row in rows:
        cell = row["cell"]
        if cell["section"] == "learning_rate":
            after = row["after"]
            average = sum(after["num_correct"]) / len(after["num_correct"]) / after["k"]
            scores[cell["teaching"], cell["student"], cell["variant"]][cell["learning_rate"]] = average
    return {key: max(sorted(found), key=found.__getitem__) for key, found in scores.items()}


def write(path: Path, rates: LearningRates) -> None:
    """Keep the choice."""
    entries = [{"teaching": t, "student": s, "variant": v, "learning_rate": r} for (t, s, v), r in rates.items()]
    path.write_text("[\n" + ",\n".join(json.dumps(entry) for entry in entries) + "\n]\n", encoding="utf-8")


def read(path: Path) -> LearningRates:
    """The choice that was kept."""
    entries = json.loads(path.read_text(encoding="utf-8"))
    return {(e["teaching"], e["student"], e["variant"]): e["learning_rate"] for e in entries}
