"""Verdicts on a table of pairs, pairs.jsonl, whose truth was decided by hand.

A row has the kind of the difference, the source of that kind (a data set or a public report of a defect), a reference,
what a box contains, and whether that is right.
"""

from __future__ import annotations

import json
from collections import Counter
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest

from trd_engine.tasks.math.task import MathTask
from trd_engine.tasks.verifier_pool.pool import GuardedPool
from trd_engine.types import Problem

ROWS = [json.loads(line) for line in Path(__file__).with_name("pairs.jsonl").read_text("utf-8").splitlines()]
KNOWN_DISAGREEMENTS = {
    (r"\sqrt{x^2+2x+1}", "|x+1|"),  # sympy takes no root of a square
    ("3, 5", r"\{x \mid x=3, x=5\}"),  # a set that is described by equations
}
"""Reference and answer of every row on which the verdict is not the truth."""


def test_the_table_is_large_and_has_each_pair_once() -> None:
    assert len(ROWS) >= 400
    assert max(Counter((row["reference"], row["answer"]) for row in ROWS).values()) == 1
    assert 0.4 < sum(row["right"] for row in ROWS) / len(ROWS) < 0.6
    assert all(row["kind"] and row["source"] for row in ROWS)


@pytest.mark.parametrize("rows", [ROWS[::6], pytest.param(ROWS, marks=pytest.mark.slow)], ids=["some", "all"])
def test_verdicts_agree_with_the_truth_but_for_the_known_rows(rows: list[dict[str, Any]]) -> None:
    pairs = [(Problem("1", "?", row["reference"]), f"so $\\boxed{{{row['answer']}}}$.") for row in rows]
    with closing(GuardedPool("math", 20.0)) as pool:
        verdicts = MathTask(pool).verify_many(pairs)
    wrong = [row for row, verdict in zip(rows, verdicts, strict=True) if verdict.correct != row["right"]]
    assert {(row["reference"], row["answer"]) for row in wrong} == KNOWN_DISAGREEMENTS & {
        (row["reference"], row["answer"]) for row in rows
    }
    assert len(wrong) <= len(ROWS) / 100
