"""The tables of docs/data.md are those of the shapes, and what they say about a row's columns is true."""

from __future__ import annotations

from typing import Any

import pytest

from docs.make_data import TARGET, document
from tests.trd_engine.rows import HUMANEVAL, MBPP, TACO_CALL
from trd_data.errors import RowError
from trd_data.shapes.choose import readings
from trd_data.shapes.known import ALL_SHAPES, PLAIN_DATASETS

TURNS = [{"role": "user", "content": "1 + 1?"}]
ROWS: dict[str, tuple[str, dict[str, Any]]] = {
    "problem and answer": ("math", {"problem": "p", "answer": "1", "solution": "s", "level": 3, "data_source": "d"}),
    "Alpaca": ("math", {"instruction": "p", "input": "i", "output": "\\boxed{1}", "text": "t"}),
    "OpenAI chat": ("math", {"messages": TURNS, "answer": "1", "solution": "s", "name": "n"}),
    "ShareGPT": ("math", {"conversations": [{"from": "human", "value": "p"}], "system": "s", "answer": "1"}),
    "verl": ("math", {"prompt": TURNS, "reward_model": {"ground_truth": "1"}, "solution": "s", "ability": "a"}),
    "TRL": ("math", {"prompt": TURNS, "completion": "c", "answer": "1", "extra": "e"}),
    "choices (MMLU, MMLU-Pro, ARC, C-Eval)": ("choice", {"question": "q", "A": "a", "B": "b", "C": "c", "answer": "A"}),
    "reasoning-gym": ("reasoning_gym", {"question": "q", "answer": "1", "metadata": {"source_dataset": "chain_sum"}}),
    "problem and tests": (
        "code",
        {"problem": "p", "tests": {"kind": "assert", "asserts": ["a"]}, "solution": "s", "url": "u"},
    ),
    "TACO, APPS": ("code", {**TACO_CALL, "difficulty": "d", "id": "i"}),
    "LiveCodeBench": (
        "code",
        {
            "question_content": "q",
            "question_title": "t",
            "public_test_cases": [{"input": "1", "output": "2", "testtype": "functional"}],
            "private_test_cases": [{"input": "2", "output": "3", "testtype": "functional"}],
            "starter_code": "c",
            "metadata": {"func_name": "f"},
            "platform": "p",
        },
    ),
    "EvalPlus (HumanEval+, MBPP+)": (
        "code",
        {
            "prompt": "def f(x):",
            "entry_point": "f",
            "canonical_solution": " return x",
            "base_input": [[1]],
            "plus_input": [[2]],
            "atol": 0.5,
            "contract": "c",
        },
    ),
    "HumanEval": ("code", {**HUMANEVAL, "level": 1}),
    "MBPP": ("code", {**MBPP, "test_imports": ["import os"], "test": "assert 1", "challenge_test_list": ["x"]}),
}


def test_the_page_is_current() -> None:
    page = TARGET.read_text(encoding="utf-8")
    assert document(page) == page, "run: make data-docs"


def test_every_shape_has_a_row_here() -> None:
    assert set(ROWS) == {shape.name for shape in ALL_SHAPES if shape not in PLAIN_DATASETS}


@pytest.mark.parametrize("name", ROWS)
def test_exactly_the_columns_that_are_said_to_be_read_matter(name: str) -> None:
    task, row = ROWS[name]
    whole = readings(row, 1, {})[task]
    assert whole.shape is not None
    assert (whole.shape.name, whole.error) == (name, None)
    read = whole.shape.columns_read(whole.there)
    assert {column for column in row if _matters(row, column, task)} == read & set(row)
    assert not read & set(whole.shape.ignores)


def _matters(row: dict[str, Any], column: str, task: str) -> bool:
    """Return whether the row means something else without the column, or with another value in it."""
    others = [{name: value for name, value in row.items() if name != column}]
    if isinstance(row[column], str):
        others.append({**row, column: row[column] + " and more"})
    whole = readings(row, 1, {})[task].problem
    for other in others:
        try:
            if readings(other, 1, {})[task].problem != whole:
                return True
        except RowError:
            return True
    return False
