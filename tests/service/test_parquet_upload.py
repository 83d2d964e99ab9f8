from __future__ import annotations

import hashlib
import io
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa  # type: ignore[import-untyped]
import pyarrow.parquet as pq  # type: ignore[import-untyped]
import pytest
from fastapi.testclient import TestClient

from tests.service.conftest import MakeClient
from tests.service.records import job_body

PARQUET = {"content-type": "application/vnd.apache.parquet"}


def packed(rows: list[dict[str, Any]], **options: Any) -> bytes:
    buffer = io.BytesIO()
    pq.write_table(pa.Table.from_pylist(rows), buffer, **options)
    return buffer.getvalue()


def rows(count: int) -> list[dict[str, Any]]:
    return [{"problem": f"{i} + {i}", "answer": float(2 * i), "solution": "twice", "level": None} for i in range(count)]


@pytest.mark.parametrize("as_form", [False, True])
def test_parquet_is_told_by_its_bytes_and_stored_as_it_came(client: TestClient, tmp_path: Path, as_form: bool) -> None:
    content = packed(rows(300), row_group_size=50)
    how: dict[str, Any] = (
        {"files": {"file": ("r.bin", content)}} if as_form else {"content": content, "headers": PARQUET}
    )
    response = client.post("/datasets", **how)
    assert response.status_code == 201, response.text
    dataset = response.json()
    assert (dataset["format"], dataset["num_rows"], dataset["has_solutions"]) == ("parquet", 300, True)
    assert dataset["sha256"] == hashlib.sha256(content).hexdigest()
    (path,) = [path for path in (tmp_path / "storage").rglob("*") if path.is_file()]
    assert path.read_bytes() == content


def test_a_broken_row_is_named(client: TestClient) -> None:
    broken = rows(40)
    broken[16]["problem"] = ""
    broken[20]["answer"] = float("nan")
    error = client.post("/datasets", content=packed(broken), headers=PARQUET).json()["error"]
    assert error["code"] == "dataset_invalid"
    assert [(problem["row"], problem["field"]) for problem in error["errors"]] == [(17, "problem"), (21, "answer")]


def test_a_row_without_a_solution_is_found_again(client: TestClient) -> None:
    gap = rows(100)
    gap[70]["solution"] = None
    dataset = client.post("/datasets", content=packed(gap), headers=PARQUET).json()
    assert not dataset["has_solutions"]
    body = job_body(client, mode="opsd", teacher=None, dataset=dataset["id"])
    assert "row 71 has no solution" in client.post("/jobs", json=body).json()["error"]["message"]


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"PAR1 and then nonsense", "not a readable Parquet file"),
        (packed(rows(30))[:-20], "not a readable Parquet file"),
        (packed([]), "no rows"),
        (packed([{"problem": "a\0b", "answer": "1"}]), "no text"),
        (packed([{"problem": "x", "answer": "1", "tests": b"\xff\xfe"}]), "tests = "),
    ],
)
def test_files_that_are_refused(client: TestClient, tmp_path: Path, content: bytes, words: str) -> None:
    response = client.post("/datasets", content=content, headers=PARQUET)
    assert response.status_code == 422, response.text
    assert words in response.json()["error"]["message"]
    assert not [path for path in (tmp_path / "storage").rglob("*") if path.is_file()]


def test_a_file_that_unpacks_to_too_much_is_not_unpacked(make_client: MakeClient, sqlite_url: str) -> None:
    client = make_client(sqlite_url, max_upload_bytes=30_000, max_rows=2000)
    zeros = packed([{"problem": "0" * 900 + str(i), "answer": "1"} for i in range(1900)], compression="zstd")
    assert len(zeros) < 30_000
    response = client.post("/datasets", content=zeros, headers=PARQUET)
    assert (response.status_code, response.json()["error"]["code"]) == (413, "dataset_too_large")
    assert "unpacks to" in response.json()["error"]["message"]
    many = packed([{"problem": "0", "answer": "1"} for _ in range(2001)])
    assert "2001 rows" in client.post("/datasets", content=many, headers=PARQUET).json()["error"]["message"]


@pytest.fixture
def arrow_memory() -> Iterator[pa.MemoryPool]:
    """What pyarrow takes from here on."""
    usual = pa.default_memory_pool()
    counted = pa.proxy_memory_pool(usual)
    pa.set_memory_pool(counted)
    yield counted
    pa.set_memory_pool(usual)


def packed_column(column: pa.Array, **options: Any) -> bytes:
    """Beside problems that are right."""
    table = pa.table({"problem": ["1 + 1"] * len(column), "answer": ["2"] * len(column), "note": column})
    buffer = io.BytesIO()
    dictionaries = {"use_dictionary": True, "dictionary_pagesize_limit": 2**30}
    pq.write_table(table, buffer, compression="zstd", store_schema=False, **{**dictionaries, **options})
    return buffer.getvalue()


def one_text(count: int, num_bytes: int) -> pa.Array:
    return pa.DictionaryArray.from_arrays(pa.array([0] * count, pa.int32()), pa.array(["a" * num_bytes]))


def test_a_text_that_all_rows_share_is_not_unpacked_for_each(client: TestClient, arrow_memory: pa.MemoryPool) -> None:
    content = packed_column(one_text(64, 12 * 2**20))
    assert len(content) < 2000
    error = client.post("/datasets", content=content, headers=PARQUET).json()["error"]
    assert (error["code"], len(error["errors"])) == ("dataset_invalid", 64)
    assert error["errors"][63] == {"row": 64, "field": None, "message": "longer than 1048576 bytes"}
    assert arrow_memory.max_memory() < 2**28


@pytest.mark.parametrize(
    ("note", "options", "words"),
    [
        (pa.ListArray.from_arrays([0, 2048], one_text(2048, 2**20)), {}, "note.list.element: 2048 values in lists"),
        (
            pa.array([["a" * 2**20 + str(i) for i in range(700)]]),
            {"use_dictionary": False, "column_encoding": {"note.list.element": "DELTA_BYTE_ARRAY"}},
            "note.list.element: 700 values in lists",
        ),
    ],
)
def test_a_text_that_lists_share_is_not_unpacked(
    client: TestClient, arrow_memory: pa.MemoryPool, note: pa.Array, options: dict[str, Any], words: str
) -> None:
    response = client.post("/datasets", content=packed_column(note, **options), headers=PARQUET)
    assert (response.status_code, response.json()["error"]["code"]) == (413, "dataset_too_large")
    assert words in response.json()["error"]["message"]
    assert arrow_memory.max_memory() < 2**28


def test_a_long_list_of_numbers_is_one_row_that_is_too_long(client: TestClient) -> None:
    response = client.post("/datasets", content=packed_column(pa.array([[0] * 2_000_000])), headers=PARQUET)
    assert response.json()["error"]["message"] == "row 1: longer than 1048576 bytes"


@pytest.mark.parametrize("options", [{}, {"data_page_version": "2.0"}, {"use_dictionary": False}])
def test_rows_of_every_shape_and_a_large_dictionary_are_read(client: TestClient, options: dict[str, Any]) -> None:
    note = pa.array([[{"k": ["x" * 40 + str(i)] * 3, "m": [("n", i)]}] for i in range(3000)], _NESTED)
    whole = client.post("/datasets", content=packed_column(note, data_page_size=8192, **options), headers=PARQUET)
    assert (whole.status_code, whole.json()["num_rows"]) == (201, 3000)
    long = pa.array([[{"k": ["x" * 2**15] * (2 + 31 * (i == 2))}] for i in range(3)], _NESTED)
    error = client.post("/datasets", content=packed_column(long, **options), headers=PARQUET).json()["error"]
    assert error["message"] == "row 3: longer than 1048576 bytes"


_NESTED = pa.list_(pa.struct([("k", pa.large_list(pa.string())), ("m", pa.map_(pa.string(), pa.int64()))]))


def test_an_index_that_tells_less_than_the_pages_hold_is_not_believed(client: TestClient) -> None:
    content = bytearray(packed_column(one_text(64, 12 * 2**20)))
    sizes = pq.ParquetFile(io.BytesIO(content)).metadata.row_group(0)
    index = len(content) - 8 - int.from_bytes(content[-8:-4], "little")
    for size in (sizes.total_byte_size, sizes.column(2).total_uncompressed_size):
        content[index:] = content[index:].replace(_varint(2 * size), _varint(2 * 2**21))
    assert pq.ParquetFile(io.BytesIO(content)).metadata.row_group(0).total_byte_size == 2**21
    error = client.post("/datasets", content=bytes(content), headers=PARQUET).json()["error"]
    assert len(error["errors"]) == 64


def _varint(number: int) -> bytes:
    """As Thrift writes it, in four bytes."""
    return bytes((number >> shift) & 127 | (128 if shift < 21 else 0) for shift in range(0, 28, 7))
