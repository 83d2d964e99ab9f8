from __future__ import annotations

import hashlib
import io
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
def test_parquet_is_recognised_and_stored_as_it_came(client: TestClient, tmp_path: Path, as_form: bool) -> None:
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
        (packed([{"problem": "a\0b", "answer": "1"}]), "has \\u0000 at character 2, which is not text"),
        (packed([{"problem": "x", "answer": "1", "tests": b"\xff\xfe"}]), "tests = "),
    ],
)
def test_files_that_are_refused(client: TestClient, tmp_path: Path, content: bytes, words: str) -> None:
    response = client.post("/datasets", content=content, headers=PARQUET)
    assert response.status_code == 422, response.text
    assert words in response.json()["error"]["message"]
    assert not [path for path in (tmp_path / "storage").rglob("*") if path.is_file()]


@pytest.mark.parametrize("limits", [{"max_unpacked_bytes": 600_000}, {"max_rows": 1000}])
def test_a_file_with_too_much_in_it_is_refused(
    make_client: MakeClient, sqlite_url: str, limits: dict[str, int]
) -> None:
    client = make_client(sqlite_url, **limits)
    zeros = packed([{"problem": "0" * 900 + str(i), "answer": "1"} for i in range(1900)], compression="zstd")
    assert len(zeros) < 30_000
    response = client.post("/datasets", content=zeros, headers=PARQUET)
    assert (response.status_code, response.json()["error"]["code"]) == (413, "dataset_too_large")
    words = "unpacks to more than 600000 bytes" if "max_unpacked_bytes" in limits else "more than the 1000 rows"
    assert words in response.json()["error"]["message"]
