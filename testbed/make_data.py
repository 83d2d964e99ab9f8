"""Write problems of the task as JSONL files with provably disjoint splits.

    python -m testbed.make_data --out DIR --train 1024 --heldout 250 --validation 250 --seed 0

Fields: ``problem``, ``answer`` (two digits), ``solution`` (a reference ending in the box).
A problem's split is a hash of its text, and the models here train on the train split only:
no model has seen a held-out or validation problem, whatever the seeds.
"""

from __future__ import annotations

import argparse
import json
import random
from pathlib import Path
from typing import get_args

from testbed import task


def draw_rows(split: task.Split, num_rows: int, seed: int) -> list[dict[str, str]]:
    """Draw rows of one split, all different."""
    rng = random.Random(f"data/{split}/{seed}")
    problems: dict[str, None] = {}
    while len(problems) < num_rows:
        problems[task.draw_problem(rng, split).text] = None
    return [{"problem": text, "answer": task.answer(text), "solution": task.reference(text)} for text in problems]


def main(arguments: list[str] | None = None) -> None:
    """Write the files given on the command line."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n", 1)[0])
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--train", type=int, default=1024, help="number of problems")
    parser.add_argument("--heldout", type=int, default=250)
    parser.add_argument("--validation", type=int, default=250)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args(arguments)
    options.out.mkdir(parents=True, exist_ok=True)
    for split in get_args(task.Split):
        rows = draw_rows(split, getattr(options, split), options.seed)
        lines = "".join(json.dumps(row) + "\n" for row in rows)
        (options.out / f"{split}.jsonl").write_text(lines)


if __name__ == "__main__":
    main()
