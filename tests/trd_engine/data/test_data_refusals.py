"""Files and rows that are not what they should be: each is said so, by its row and field."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from tests.trd_engine.rows import load_rows
from trd_data.shapes.known import PLAIN
from trd_engine.config import DataSource
from trd_engine.data.problems import load_problems
from trd_engine.runtime.errors import DataError

ROW = {"problem": "1+1?", "answer": "2"}


def test_a_parquet_file_with_bytes_that_are_no_text_is_named(tmp_path: Path) -> None:
    import pyarrow
    import pyarrow.parquet

    raw = pyarrow.array([b"1+1", b"1+\xff"], pyarrow.binary()).cast(pyarrow.string(), safe=False)
    path = tmp_path / "rows.parquet"
    pyarrow.parquet.write_table(pyarrow.table({"problem": raw, "answer": ["2", "2"], "note": raw}), path)
    with pytest.raises(DataError, match=r"^row 2: problem: the value cannot be read: UnicodeDecodeError: .*utf-8"):
        load_problems(DataSource(path=str(path)), "math")


@pytest.mark.parametrize("roles", [("system", "system"), ("system", "developer"), ("developer", "system")])
def test_all_that_the_system_says_stands_before_the_problem_in_order(tmp_path: Path, roles: tuple[str, str]) -> None:
    turns = [(roles[0], "One."), (roles[1], "Two."), ("user", "1+1?"), ("assistant", "\\boxed{2}")]
    row = {"messages": [{"role": role, "content": content} for role, content in turns]}
    (problem,) = load_rows(tmp_path, row)
    assert problem.problem == "One.\n\nTwo.\n\n1+1?"


def test_a_mapped_field_that_is_none_of_ours_is_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"columns maps 'probelm', which is not one of our fields: these are id, "):
        load_rows(tmp_path, ROW, columns={"probelm": "problem"})


@pytest.mark.parametrize(
    ("written", "words"),
    [
        ("Infinity", "not valid JSON: Infinity is not"),
        ("-Infinity", "not valid JSON: -Infinity"),
        ("1e400", "answer = 1e400: must be finite"),
    ],
)
def test_an_answer_that_is_not_finite_is_refused(tmp_path: Path, written: str, words: str) -> None:
    path = tmp_path / "rows.jsonl"
    path.write_text(f'{{"problem": "p", "answer": {written}}}\n', encoding="utf-8")
    with pytest.raises(DataError, match=f"^row 1: {words}"):
        load_problems(DataSource(path=str(path)), "math")


def test_what_no_shape_thought_of_is_still_the_rows_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def unprepared(row: dict[str, Any], *_: Any) -> None:
        raise TypeError("unhashable type: 'list'")

    unlike = replace(PLAIN, read=unprepared)
    monkeypatch.setattr("trd_data.shapes.choose._shape", lambda *_: unlike)
    with pytest.raises(
        DataError, match=r"^row 1: cannot be read as problem and answer by task math: TypeError: unhashable"
    ):
        load_rows(tmp_path, ROW)
