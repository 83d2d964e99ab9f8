"""Files of every format that is read hold the same rows; all others are refused by what they look like."""

from __future__ import annotations

import bz2
import csv
import gzip
import io
import json
import lzma
import pickle
import re
import sqlite3
import tarfile
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa  # type: ignore[import-untyped]
import pyarrow.parquet as pq  # type: ignore[import-untyped]
import pytest

from trd_data.check import check_file, first_problems
from trd_data.errors import DataFileError, FileTooLargeError
from trd_data.formats import Unpacked
from trd_data.json_rows import _Cutter
from trd_data.readers import RowLimits

ROWS: list[dict[str, Any]] = [
    {"id": "a", "problem": "1 + 1, in\nfigures", "answer": "2", "solution": 'say "two"; done'},
    {"id": "b", "problem": "é ∑ 漢字 🙂 {[", "answer": "0.5", "solution": None},
    {"id": "c", "problem": "\\frac{1}{2}\t+ 1", "answer": "3/2", "solution": "x" * 5000},
]
LIMITS = RowLimits(max_row_bytes=10_000, max_rows=100, max_depth=16, max_unpacked_bytes=2**22)


def jsonl(rows: list[dict[str, Any]] = ROWS) -> bytes:
    return b"".join(json.dumps(row).encode() + b"\n" for row in rows)


def as_csv(delimiter: str = ",", rows: list[dict[str, Any]] = ROWS) -> bytes:
    text = io.StringIO(newline="")
    writer = csv.DictWriter(text, list(rows[0]), delimiter=delimiter)
    writer.writeheader()
    writer.writerows(rows)
    return text.getvalue().encode()


def zstd(content: bytes) -> bytes:
    return bytes(pa.compress(content, codec="zstd", asbytes=True))


def parquet(rows: list[dict[str, Any]] = ROWS) -> bytes:
    buffer = io.BytesIO()
    pq.write_table(pa.Table.from_pylist(rows), buffer)
    return buffer.getvalue()


BOM = b"\xef\xbb\xbf"
ARRAY = json.dumps(ROWS).encode()
READ: dict[str, tuple[str, str | None, Callable[[], bytes]]] = {
    "lines": ("jsonl", None, jsonl),
    "lines with a mark": ("jsonl", None, lambda: BOM + jsonl()),
    "lines with CRLF": ("jsonl", None, lambda: jsonl().replace(b"\n", b"\r\n")),
    "lines without an end": ("jsonl", None, lambda: jsonl().rstrip()),
    "array": ("json", None, lambda: ARRAY),
    "array with a mark": ("json", None, lambda: BOM + b"\n " + ARRAY + b" \n"),
    "indented array": ("json", None, lambda: json.dumps(ROWS, indent=2).encode()),
    "array of a row a line": ("json", None, lambda: b"[\n" + b",\n".join(jsonl().splitlines()) + b"\n]\n"),
    "objects over several lines": ("json", None, lambda: b"\n".join(json.dumps(r, indent=1).encode() for r in ROWS)),
    "CSV": ("csv", None, as_csv),
    "CSV with a mark": ("csv", None, lambda: BOM + as_csv()),
    "CSV with semicolons": ("csv", None, lambda: as_csv(";")),
    "CSV with tabs": ("csv", None, lambda: as_csv("\t")),
    "CSV with LF": ("csv", None, lambda: as_csv().replace(b"\r\n", b"\n")),
    "CSV with blank lines at its end": ("csv", None, lambda: as_csv() + b"\r\n\r\n"),
    "gzip": ("jsonl", "gzip", lambda: gzip.compress(jsonl())),
    "gzip of two members": ("jsonl", "gzip", lambda: gzip.compress(jsonl()[:50]) + gzip.compress(jsonl()[50:])),
    "gzip of an array": ("json", "gzip", lambda: gzip.compress(ARRAY)),
    "gzip of CSV": ("csv", "gzip", lambda: gzip.compress(as_csv())),
    "zstd": ("jsonl", "zstd", lambda: zstd(jsonl())),
    "zstd of two frames": ("jsonl", "zstd", lambda: zstd(jsonl()[:50]) + zstd(jsonl()[50:])),
    "zstd behind a frame to skip": ("jsonl", "zstd", lambda: b"\x50\x2a\x4d\x18\x04\0\0\0skip" + zstd(jsonl())),
    "zstd of an array": ("json", "zstd", lambda: zstd(ARRAY)),
    "Parquet": ("parquet", None, parquet),
}


@pytest.mark.parametrize("name", READ)
def test_every_format_holds_the_same_rows(name: str) -> None:
    kind, compression, make = READ[name]
    content = make()
    report = check_file(io.BytesIO(content), LIMITS)
    assert (report.format, report.compression, report.errors) == (kind, compression, [])
    assert (report.num_rows, report.first_without_solution) == (3, 2)
    assert report.columns == list(ROWS[0])
    found = [
        {"id": p.id, "problem": p.problem, "answer": p.answer, "solution": p.solution}
        for _, p in first_problems(io.BytesIO(content), "math", 5)
    ]
    assert found == ROWS


def zipped() -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        archive.writestr("rows.jsonl", jsonl())
    return buffer.getvalue()


def tarred() -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as archive:
        info = tarfile.TarInfo("rows.jsonl")
        info.size = len(jsonl())
        archive.addfile(info, io.BytesIO(jsonl()))
    return buffer.getvalue()


def database() -> bytes:
    with sqlite3.connect(":memory:") as connection:
        connection.execute("CREATE TABLE rows (problem TEXT)")
        return connection.serialize()


def feather() -> bytes:
    buffer = io.BytesIO()
    table = pa.Table.from_pylist(ROWS)
    with pa.ipc.new_file(buffer, table.schema) as writer:
        writer.write_table(table)
    return buffer.getvalue()


LFS = b"version https://git-lfs.github.com/spec/v1\noid sha256:4d7a\nsize 12345\n"
REFUSED: dict[str, tuple[Callable[[], bytes], str]] = {
    "empty": (lambda: b"", "the file is empty"),
    "blank": (lambda: b" \n\r\n\t", "the file is empty"),
    "a mark alone": (lambda: BOM, "the file is empty"),
    "gzip of nothing": (lambda: gzip.compress(b""), "inside of gzip: the file is empty"),
    "zip, as .xlsx is": (zipped, "zip archive"),
    "tar": (tarred, "a tar archive"),
    "gzip of tar": (lambda: gzip.compress(tarred()), "inside of gzip: the file looks like a tar archive"),
    "bzip2": (lambda: bz2.compress(jsonl()), "bzip2"),
    "xz": (lambda: lzma.compress(jsonl()), "xz"),
    "web page": (lambda: b"\n<!DOCTYPE html><html><body>404", "a web page or XML"),
    "XML": (lambda: b"<?xml version='1.0'?><rows/>", "a web page or XML"),
    "pickle": (lambda: pickle.dumps(ROWS), "a Python pickle"),
    "LFS pointer": (lambda: LFS, "a Git LFS pointer.*run git lfs pull"),
    "UTF-16": (lambda: jsonl().decode().encode("utf-16"), "UTF-16; save it as UTF-8"),
    "UTF-16 without a mark": (lambda: jsonl().decode().encode("utf-16-le"), "UTF-16; save it as UTF-8"),
    "UTF-32": (lambda: jsonl().decode().encode("utf-32-le"), "UTF-16|binary"),
    "SQLite": (database, "an SQLite database"),
    "Feather": (feather, "an Arrow IPC"),
    "PDF": (lambda: b"%PDF-1.7\n", "a PDF document"),
    "PNG": (lambda: b"\x89PNG\r\n\x1a\n\0\0", "a PNG image"),
    "noise": (lambda: bytes(range(256)), "a binary file"),
    "gzip in gzip": (lambda: gzip.compress(gzip.compress(jsonl())), "compressed twice, by gzip around gzip"),
    "zstd in gzip": (lambda: gzip.compress(zstd(jsonl())), "compressed twice, by gzip around zstd"),
    "Parquet in gzip": (lambda: gzip.compress(parquet()), "a Parquet file inside of gzip; unpack it"),
    "half of gzip": (lambda: gzip.compress(jsonl())[:-20], "the gzip data is damaged or cut off"),
    "half of zstd": (lambda: zstd(jsonl())[:-20], "the zstd data is damaged or cut off"),
    "gzip with a wrong sum": (lambda: gzip.compress(jsonl())[:-8] + b"\0" * 8, "the gzip data is damaged"),
    "gzip magic alone": (lambda: b"\x1f\x8b", "the gzip data is damaged or cut off"),
    "a name twice in CSV": (lambda: b"problem,answer,answer\n1,2,3\n", "names 'answer' twice"),
    "CSV without a header": (lambda: b"1,2\n3,4\n", "has no header"),
    "CSV of two delimiters": (lambda: b"problem;answer,id\n1;2,3\n", "may be delimited by ',' and ';'"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_another_file_is_told_what_it_looks_like(name: str) -> None:
    make, words = REFUSED[name]
    with pytest.raises(DataFileError, match=words):
        check_file(io.BytesIO(make()), LIMITS)


def test_the_error_says_which_formats_are_read() -> None:
    for content in (zipped(), b""):
        with pytest.raises(DataFileError, match=r"JSON Lines, JSON arrays and CSV .*, and Parquet can be read$"):
            check_file(io.BytesIO(content), LIMITS)
    (error,) = check_file(io.BytesIO(b"hello world\n"), LIMITS).errors
    assert error.message.startswith("not valid JSON: Expecting value at character 1 of the line; JSON Lines, JSON arr")


BOMBS = {
    "lines": lambda: gzip.compress(jsonl() * 1000),
    "zstd": lambda: zstd(jsonl() * 1000),
    "one endless line": lambda: gzip.compress(b'{"problem": "' + b"a" * 2**26),
    "one endless row of an array": lambda: zstd(b'[{"problem": "' + b"a" * 2**26),
    "blank lines": lambda: gzip.compress(jsonl() + b"\n" * 2**26),
    "spaces in an array": lambda: zstd(b"[" + b" " * 2**26),
    "a cell": lambda: gzip.compress(b'problem,answer\n"' + b"a" * 2**26),
}


@pytest.mark.parametrize("name", BOMBS)
def test_what_unpacks_to_too_much_is_refused_early(name: str) -> None:
    content = BOMBS[name]()
    assert len(content) < 2**18
    try:
        report = check_file(io.BytesIO(content), RowLimits(max_row_bytes=10_000, max_unpacked_bytes=2**22))
    except FileTooLargeError as error:
        assert re.search("unpacks to more than 4194304 bytes|blank lines", str(error))  # noqa: PT017 - or a bad row
    else:
        assert report.num_errors > 0


ERRORS: list[tuple[bytes, list[tuple[int, str]]]] = [
    (b'[{"problem": "p", "answer": 1}, 7, {"problem": "q", "answer": 2}]', [(2, "must be a JSON object, with one")]),
    (b'[{"problem": "p", "answer": 1},, {"problem": "q", "answer": 2}]', [(2, "one comma between two")]),
    (b'[{"problem": "p", "answer": 1} {"problem": "q", "answer": 2}]', [(2, "one comma between two")]),
    (b'[{"problem": "p", "answer": 1},]', [(2, "one comma between two")]),
    (b'[{"problem": "p", "answer": 1}', [(2, "the file ends before its array does")]),
    (b'[{"problem": "p", "answer": 1}, {"problem": "q"', [(2, "the file ends within a row")]),
    (b'[{"problem": "p", "answer": 1}, {"problem": "q]}', [(2, "the file ends within a row")]),
    (b'[{"problem": "p", "answer": 1}] and more', [(2, "there is text after the array: 'and more'")]),
    (b'[{"problem": "p", "answer": 1}}', [(2, "must be a JSON object")]),
    (b'[{"problem": "p" "answer": 1}, {"problem": "q", "answer": 2}]', [(1, "not valid JSON: Expecting ',' del")]),
    (b'[{"problem": "p", "answer": NaN}, {"problem": "q"}]', [(1, "NaN is not"), (2, "answer: this field is req")]),
    (b'[{"problem": "\xff", "answer": 1}]', [(1, "not UTF-8")]),
    (b"[" + b"[" * 200_000 + b"]" * 200_000 + b"]", [(1, "longer than")]),
    (b'[{"a": ' + b"[" * 200 + b"]" * 200 + b"}]", [(1, "nests more than 16 levels")]),
    (b'{"problem": "p", "answer": 1, "answer": 2}\n', [(1, 'the key "answer" stands in an object twice')]),
    (b'{"problem": "p", "answer": 1, "extra": {"a": 1, "a": 1}}\n', [(1, 'the key "a" stands in an object twice')]),
    (b"problem,answer\np,1,2\nq,2\nr\n", [(1, "has 3 cells, and the header 2"), (3, "has 1 cells")]),
    (b'problem,answer\n"p,1\nq,2\n', [(1, "not valid CSV: unexpected end of data; is a quote left open")]),
    (b'problem,answer\np,"1" or 2\nq,2\n', [(1, "not valid CSV")]),
    (b"problem,answer\np,1\n\xff,2\n", [(2, "not UTF-8")]),
    (b"problem,answer\np,\nq,nan\nr,2\n", [(1, "answer: this field is required"), (2, "answer: this field is req")]),
    (b"problem,answer\n" + b"p" * 10_001 + b",1\n", [(1, "not valid CSV: field larger than")]),
    (b'{"problem": "p", "answer": 1}\n' + b"x" * 10_001 + b'\n{"problem": 2}\n', [(2, "longer"), (3, "answer")]),
]


@pytest.mark.parametrize(("content", "expected"), ERRORS)
def test_an_error_names_its_row_and_ends_no_other(content: bytes, expected: list[tuple[int, str]]) -> None:
    errors = check_file(io.BytesIO(content), LIMITS).errors
    assert [error.row for error in errors] == [row for row, _ in expected]
    for error, (_, words) in zip(errors, expected, strict=True):
        assert words in error.message


@pytest.mark.parametrize("make", [jsonl, lambda: json.dumps(ROWS, indent=1).encode(), as_csv])
@pytest.mark.parametrize("size", [1, 7, 100])
def test_a_row_may_be_cut_by_the_end_of_a_chunk(
    make: Callable[[], bytes], size: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("trd_data.json_rows._CHUNK_BYTES", size)
    monkeypatch.setattr("trd_data.formats._HEAD_BYTES", max(size, 20))
    report = check_file(io.BytesIO(make()), LIMITS)
    assert (report.num_rows, report.errors, report.first_without_solution) == (3, [], 2)


def test_a_long_array_is_read_in_little_memory(tmp_path: Path) -> None:
    import tracemalloc

    path = tmp_path / "rows.json"
    with path.open("wb") as file:
        file.write(b"[")
        for number in range(2000):
            file.write(b"," * (number > 0) + json.dumps({"problem": f"{number} {'x' * 10_000}", "answer": 1}).encode())
        file.write(b"]")
    with path.open("rb") as stream:
        tracemalloc.start()
        report = check_file(stream, RowLimits())
        _, peak = tracemalloc.get_traced_memory()
        tracemalloc.stop()
    assert (report.num_rows, report.errors) == (2000, [])
    assert peak < path.stat().st_size // 2


def test_an_array_costs_in_proportion_to_its_length() -> None:
    """Copying the rest of a chunk after each element would take minutes."""
    import time

    started = time.process_time()
    for number, (_, element) in enumerate(
        _Cutter(Unpacked(io.BytesIO(b"[" + b"{}," * 300_000), 2**30), 1000).elements()
    ):
        assert element == b"{}", number
    assert time.process_time() - started < 5
