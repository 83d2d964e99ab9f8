"""Columns of any type: unread they do no harm, and a row that needs a value that cannot be read is refused by name."""

from __future__ import annotations

import io
from typing import Any

import pyarrow as pa  # type: ignore[import-untyped]
import pyarrow.parquet as pq  # type: ignore[import-untyped]
import pytest

from trd_data.check import check_file, first_problems
from trd_data.readers import RowLimits

BROKEN_TEXT = pa.array([b"x", b"\xff"], pa.binary()).cast(pa.string(), safe=False)
FAR = [0, 2**62]
ODD: dict[str, pa.Array] = {
    "timestamp[us]": pa.array(FAR, pa.timestamp("us")),
    "timestamp[s]": pa.array([0, 2**50], pa.timestamp("s")),
    "timestamp[ns]": pa.array([0, 1], pa.timestamp("ns")),
    "timestamp with an unknown zone": pa.array([0, 1], pa.timestamp("us", "Nowhere/Atall")),
    "date32": pa.array([0, 2**31 - 1], pa.date32()),
    "date64": pa.array([0, 86_400_000 * 10**8], pa.date64()),
    "time64[ns]": pa.array([0, 1], pa.time64("ns")),
    "duration": pa.array(FAR, pa.duration("s")),
    "decimal256": pa.array([None, None], pa.decimal256(70, 3)),
    "text that is no UTF-8": BROKEN_TEXT,
    "struct of far times": pa.StructArray.from_arrays([pa.array(FAR, pa.timestamp("us"))], ["at"]),
    "list of far times": pa.array([[0], FAR], pa.list_(pa.timestamp("us"))),
    "map": pa.array([[("a", 1)], [("a", 1), ("a", 2)]], pa.map_(pa.string(), pa.int64())),
    "binary": pa.array([b"", b"\xff\0"], pa.binary()),
    "fixed binary": pa.array([b"ab", b"\xff\xff"], pa.binary(2)),
    "null": pa.nulls(2),
    "half floats": pa.array([1.5, float("inf")], pa.float32()).cast(pa.float16()),
    "dictionary": pa.array(["x", "y"]).dictionary_encode(),
    "large text": pa.array(["x", "y"], pa.large_string()),
}


def stored(columns: dict[str, Any]) -> io.BytesIO:
    buffer = io.BytesIO()
    pq.write_table(pa.table(columns), buffer)
    return buffer


@pytest.mark.parametrize("kind", ODD)
@pytest.mark.parametrize("name", ["created_at", "context"])
def test_a_column_that_nobody_reads_does_no_harm(kind: str, name: str) -> None:
    file = stored({"problem": ["1 + 1", "2 + 2"], "answer": ["2", "4"], name: ODD[kind]})
    report = check_file(file, RowLimits())
    assert (report.num_rows, report.errors) == (2, [])
    assert [p.answer for _, p in first_problems(file, "math", 2)] == ["2", "4"]


CANNOT_BE_READ = {
    "text that is no UTF-8": "the value cannot be read: UnicodeDecodeError",
    "struct of far times": "the value cannot be read: OverflowError",
    "list of far times": "the value cannot be read: OverflowError",
    "map": "the value cannot be read: ",
    "binary": "must be text in UTF-8",
    "fixed binary": "must be text in UTF-8",
    "half floats": "must be finite",
}


@pytest.mark.parametrize("kind", CANNOT_BE_READ)
@pytest.mark.parametrize("name", ["solution", "answer", "problem"])
def test_a_row_that_needs_such_a_value_is_refused(kind: str, name: str) -> None:
    columns = {"problem": ["1 + 1", "2 + 2"], "answer": ["2", "4"], name: ODD[kind]}
    error = check_file(stored(columns), RowLimits()).errors[-1]
    assert (error.row, error.field) == (2, name)
    assert f"{name}" in error.message
    assert CANNOT_BE_READ[kind] in error.message


@pytest.mark.parametrize("kind", ["timestamp[ns]", "time64[ns]", "dictionary", "large text"])
def test_what_can_be_written_is_text(kind: str) -> None:
    found = first_problems(stored({"problem": ODD[kind], "answer": ["2", "4"]}), "math", 2)
    assert len({problem.problem for _, problem in found}) == 2


def test_two_columns_of_one_name_are_refused_only_if_they_are_read() -> None:
    twice = pa.Table.from_arrays([pa.array(["p"])] * 2 + [pa.array(["1"])] * 2, ["problem", "note", "answer", "note"])
    buffer = io.BytesIO()
    pq.write_table(twice, buffer)
    assert check_file(buffer, RowLimits()).errors == []
    buffer = io.BytesIO()
    pq.write_table(twice.rename_columns(["problem", "answer", "note", "answer"]), buffer)
    with pytest.raises(ValueError, match="two columns are named 'answer'; rename one"):
        check_file(buffer, RowLimits())
