"""Numbers of JSON and Parquet mean the same text to every reader, with the digits that the file has."""

from __future__ import annotations

import io
from decimal import Decimal

import pyarrow as pa  # type: ignore[import-untyped]
import pyarrow.parquet as pq  # type: ignore[import-untyped]
import pytest

from trd_data.check import check_file, first_problems
from trd_data.readers import RowLimits

WRITTEN = {
    "0.00001": "0.00001",
    "1e-05": "0.00001",
    "-1E-5": "-0.00001",
    "3e8": "300000000",
    "204.0": "204",
    "-0.0": "0",
    "0.10": "0.1",
    "100": "100",
    "100.0": "100",
    "1e22": "10000000000000000000000",
    "1e23": "100000000000000000000000",
    "6.022E+23": "602200000000000000000000",
    "1e300": "1e+300",
    "2.5e-40": "2.5e-40",
    "3.14159265358979323846264338327950288": "3.14159265358979323846264338327950288",
    "123456789012345678901234567890": "123456789012345678901234567890",
    "9" * 5000: "9" * 5000,
    '"0.10"': "0.10",
    '"1e-05"': "1e-05",
}


def answer_of(content: bytes) -> str:
    ((_, problem),) = first_problems(io.BytesIO(content), "math", 2)
    return problem.answer


@pytest.mark.parametrize("written", WRITTEN)
@pytest.mark.parametrize("row", ['{"problem": "p", "answer": %s}', '[{"problem": "p", "final_answer": [%s]}]'])
def test_a_number_of_json_keeps_its_digits(written: str, row: str) -> None:
    assert answer_of((row % written).encode()) == WRITTEN[written]


@pytest.mark.parametrize(
    ("value", "kind", "text"),
    [
        (0.00001, pa.float64(), "0.00001"),
        (204.0, pa.float64(), "204"),
        (1e23, pa.float64(), "100000000000000000000000"),
        (0.5, pa.float32(), "0.5"),
        (2**63 - 1, pa.int64(), "9223372036854775807"),
        (Decimal("1.50"), pa.decimal128(5, 2), "1.5"),
        (Decimal("1e-9"), pa.decimal128(20, 9), "0.000000001"),
        ("0.10", pa.string(), "0.10"),
        (b"0.10", pa.binary(), "0.10"),
    ],
)
def test_a_number_of_parquet_is_the_same_text(value: object, kind: pa.DataType, text: str) -> None:
    buffer = io.BytesIO()
    pq.write_table(pa.table({"problem": ["p"], "answer": pa.array([value], kind)}), buffer)
    assert answer_of(buffer.getvalue()) == text


@pytest.mark.parametrize("name", ["problem", "answer", "solution", "id"])
@pytest.mark.parametrize("written", ["1e400", "-1e999", "[1e400]"])
def test_a_number_beyond_all_is_refused_by_its_field(name: str, written: str) -> None:
    fields = {"problem": '"p"', "answer": "1", "solution": '"s"', "id": '"i"', name: written}
    row = "{" + ", ".join(f'"{key}": {value}' for key, value in fields.items()) + "}"
    (error,) = check_file(io.BytesIO(row.encode()), RowLimits()).errors
    assert error.field == name
    assert f"{name} = {written.strip('[]')}: must be finite" in error.message


def test_a_gap_in_a_column_of_numbers_stays_one() -> None:
    buffer = io.BytesIO()
    table = {"problem": ["p", "q"], "answer": [1.0, float("nan")], "target": ["x", "y"], "id": [1.0, float("nan")]}
    pq.write_table(pa.table(table), buffer)
    found = first_problems(io.BytesIO(buffer.getvalue()), "exact", 2)
    assert [(p.id, p.answer) for _, p in found] == [("1", "1"), ("2", "y")]
    found = first_problems(io.BytesIO(b"id,problem,answer,target\n1,p,1,x\nNaN,q,,y\n"), "exact", 2)
    assert [(p.id, p.answer) for _, p in found] == [("1", "1"), ("2", "y")]
