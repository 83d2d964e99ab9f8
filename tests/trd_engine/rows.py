"""Rows as the known data sets have them, and files of rows."""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from trd_engine.config import DataSource
from trd_engine.data.problems import load_problems
from trd_engine.types import Problem

TACO_STDIO = {
    "question": "Add two numbers.",
    "solutions": json.dumps(["a, b = map(int, input().split())\nprint(a + b)", "print(3)"]),
    "starter_code": "",
    "input_output": json.dumps({"inputs": ["1 2\n", ["3 4", ""]], "outputs": ["3\n", ["7"]]}),
}
TACO_CALL = {
    "question": "Add two numbers.",
    "solutions": ["class Solution:\n    def add(self, a, b):\n        return a + b"],
    "starter_code": "class Solution:\n    def add(self, a, b):\n",
    "input_output": {"fn_name": "add", "inputs": [[1, 2], "3\n4"], "outputs": [3, [7]]},
}
HUMANEVAL = {
    "task_id": "HumanEval/0",
    "prompt": 'def add(a, b):\n    """Add."""\n',
    "entry_point": "add",
    "canonical_solution": "    return a + b\n",
    "test": "def check(candidate):\n    assert candidate(1, 2) == 3\n",
}
MBPP = {
    "task_id": 11,
    "text": "Write a function to add.",
    "code": "def add(a, b):\n    return a + b",
    "test_list": ["assert add(1, 2) == 3", "assert add(0, 0) == 0"],
    "test_setup_code": "import math",
}
MBPP_PLUS = {
    "task_id": 11,
    "prompt": "Write a function to add.",
    "code": "def add(a, b):\n    return a + b",
    "test_imports": ["import math"],
    "test_list": ["assert add(1, 2) == 3"],
    "test": "assert add(5, 5) == 10\nassert add(math.inf, 1) == math.inf",
}


def write_jsonl(path: Path, rows: Iterable[Any]) -> Path:
    path.write_text("".join((row if isinstance(row, str) else json.dumps(row)) + "\n" for row in rows))
    return path


def load_rows(folder: Path, *rows: Any, task: str = "math", **source: Any) -> list[Problem]:
    path = write_jsonl(folder / "rows.jsonl", rows)
    return load_problems(DataSource(path=str(path), **source), task).problems
