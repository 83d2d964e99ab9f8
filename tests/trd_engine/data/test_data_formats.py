"""The same rows, whatever format they are stored in: the same problems and the same fingerprint."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pyarrow
import pyarrow.parquet
import pytest

from tests.trd_engine.rows import write_jsonl
from trd_engine.config import DataSource
from trd_engine.data.problems import LoadedData, load_problems

ROWS: dict[str, tuple[str, list[dict[str, Any]]]] = {
    "a column with gaps": ("math", [{"level": 1}, {}, {"level": None}]),
    "whole numbers and fractions": ("math", [{"level": 1}, {"level": 2.5}]),
    "objects of other keys": ("math", [{"source": {"book": 1}}, {"source": {"page": {"number": 2}}}, {}]),
    "lists of objects": ("math", [{"steps": [{"a": 1}, {"b": [None, 2]}]}, {"steps": []}]),
    "tests of each kind": (
        "code",
        [
            {"tests": {"kind": "stdio", "inputs": ["1"], "outputs": ["2"]}},
            {"tests": {"kind": "call", "entry_point": "f", "inputs": ["1\n2"], "outputs": ["3"]}},
            {"tests": {"kind": "assert", "setup": "import math", "asserts": ["assert f(1) == 2"]}},
            {"tests": {"kind": "check", "entry_point": "f", "preamble": "", "test": "def check(f): ..."}},
        ],
    ),
    "options by name": ("choice", [{"choices": {"A": "x", "B": "y"}}, {"choices": {"A": "x", "B": "y", "C": "z"}}]),
    "generated entries": (
        "reasoning_gym",
        [
            {"metadata": {"source_dataset": "chain_sum", "digits": {"low": 1}}},
            {"metadata": {"source_dataset": "chain_sum"}},
        ],
    ),
}
"""A task, and what its rows have beside a problem and an answer."""


def stored(folder: Path, rows: list[dict[str, Any]], task: str) -> tuple[LoadedData, LoadedData]:
    """Store the rows as JSON Lines and as Parquet, and read both."""
    whole = [{"problem": f"1+{number}", "answer": "B", **row} for number, row in enumerate(rows)]
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(_with_all_columns(whole)), folder / "rows.parquet")
    paths = (write_jsonl(folder / "rows.jsonl", whole), folder / "rows.parquet")
    lines, table = (load_problems(DataSource(path=str(path)), task) for path in paths)
    return lines, table


def _with_all_columns(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Give all rows all columns: pyarrow takes those of the first row."""
    names = dict.fromkeys(name for row in rows for name in row)
    return [{name: row.get(name) for name in names} for row in rows]


@pytest.mark.parametrize("name", ROWS)
def test_parquet_and_json_lines_hold_the_same_problems(tmp_path: Path, name: str) -> None:
    task, rows = ROWS[name]
    lines, table = stored(tmp_path, rows, task)
    assert [(p.problem, p.answer, p.solution) for p in table.problems] == [
        (p.problem, p.answer, p.solution) for p in lines.problems
    ]
    assert table.fingerprint == lines.fingerprint


def test_the_fingerprint_of_plain_rows_does_not_change(tmp_path: Path) -> None:
    lines, table = stored(tmp_path, [{"solution": "2, for B", "level": 3, "topics": ["sums"]}, {"level": 4}], "math")
    assert lines.fingerprint == table.fingerprint
    assert lines.fingerprint == "a279a16206303da5a3040c04dba3f07fbeee82482531cc61de1223cf8d97c244"
    more = stored(tmp_path, [{"level": 3.5}, {"level": 4}], "math")
    assert more[0].fingerprint != lines.fingerprint
