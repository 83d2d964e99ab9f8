"""Files that decompress to too much, or crash the library that reads them, end in an error that says so."""

from __future__ import annotations

import io
import os
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa  # type: ignore[import-untyped]
import pyarrow.parquet as pq  # type: ignore[import-untyped]
import pytest

from tests.trd_data.children import check
from trd_data.child import ChildLimits
from trd_data.errors import DataFileError, FileTooLargeError
from trd_data.readers import RowLimits
from trd_data.rows import ListedError

LIMITS = RowLimits(max_row_bytes=2**20, max_rows=1_000_000, max_unpacked_bytes=2**27)
LITTLE_MEMORY = ChildLimits(memory_bytes=3 * 2**28)
"""Half of which the libraries take; the smaller it is, the smaller a bomb may be."""


def packed(columns: dict[str, Any], **options: Any) -> bytes:
    buffer = io.BytesIO()
    dictionaries = {"use_dictionary": True, "dictionary_pagesize_limit": 2**30}
    pq.write_table(pa.table(columns), buffer, compression="zstd", store_schema=False, **{**dictionaries, **options})
    return buffer.getvalue()


def with_note(note: pa.Array, name: str = "context", **options: Any) -> bytes:
    """Return a file with the column beside problems that are right."""
    return packed({"problem": ["1 + 1"] * len(note), "answer": ["2"] * len(note), name: note}, **options)


def repeated(value: pa.Array, count: int) -> pa.Array:
    """Repeat the one element of `value` so many times: written as a dictionary, it takes little time and space."""
    return pa.DictionaryArray.from_arrays(pa.array(np.zeros(count, np.int32)), value)


def shared_text(count: int, num_bytes: int) -> pa.Array:
    return repeated(pa.array(["a" * num_bytes]), count)


PREFIXES = {"use_dictionary": False, "column_encoding": {"context.list.element": "DELTA_BYTE_ARRAY"}}
BOMBS = {
    "a text of 12 MiB that 4096 rows share": lambda: with_note(shared_text(4096, 12 * 2**20)),
    "lists of one text": lambda: with_note(pa.ListArray.from_arrays([0, 4096], shared_text(4096, 2**20))),
    "prefixes": lambda: with_note(pa.array([["a" * 2**20 + str(i) for i in range(250)]]), **PREFIXES),
    "a list of numbers": lambda: with_note(
        pa.ListArray.from_arrays([0, 70_000_000], repeated(pa.array([0], pa.int8()), 70_000_000))
    ),
    "rows that are all allowed": lambda: with_note(shared_text(200_000, 2**19)),
}


@pytest.mark.parametrize("name", BOMBS)
def test_a_bomb_is_refused(name: str) -> None:
    content = BOMBS[name]()
    assert len(content) < 2**17, "the file is small"
    with pytest.raises(FileTooLargeError, match=r"MiB of memory|unpacks to more"):
        check(content, LIMITS, LITTLE_MEMORY)


def test_what_nobody_reads_is_not_even_decompressed() -> None:
    report = check(with_note(shared_text(4096, 12 * 2**20), "note"), LIMITS, LITTLE_MEMORY)
    assert (report.num_rows, report.num_errors) == (4096, 0)


def test_a_long_row_is_named() -> None:
    note = pa.array([["x" * 2**15] * (2 + 31 * (i == 2)) for i in range(3)])
    report = check(with_note(note), LIMITS)
    assert report.errors == [ListedError(3, None, "longer than 1048576 bytes")]
    assert (report.num_rows, report.num_errors, report.first_without_solution) == (3, 1, 1)


def broken_statistics() -> bytes:
    """Flip a bit of the metadata, at which some versions of the library abort and others complain."""
    content = bytearray(with_note(pa.array(["n"] * 50)))
    for place in range(len(content) - 300, len(content) - 12, 7):
        content[place] ^= 0x55
    return bytes(content)


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"PAR1 and then nonsense", "^not a readable Parquet file: "),
        (with_note(pa.array(["n"] * 50))[:-20], "^not a readable Parquet file: "),
        (broken_statistics(), "^not a readable Parquet file: "),
    ],
)
def test_a_file_that_cannot_be_read_is_refused(content: bytes, words: str) -> None:
    with pytest.raises(DataFileError, match=words):
        check(content, LIMITS)


def test_an_empty_row_group_is_read() -> None:
    buffer = io.BytesIO()
    table = pa.table({"problem": ["1 + 1", "2 + 2"], "answer": ["2", "4"]})
    with pq.ParquetWriter(buffer, table.schema) as writer:
        writer.write_table(table)
        writer.write_table(table.slice(0, 0))
    assert check(buffer.getvalue(), LIMITS).num_rows == 2


def test_a_file_that_takes_too_long_is_refused() -> None:
    content = packed({"problem": [str(i) for i in range(300_000)], "answer": ["1"] * 300_000})
    with pytest.raises(FileTooLargeError, match="to read; split it"):
        check(content, LIMITS, ChildLimits(cpu_seconds=1))


def test_a_reader_that_crashes_is_an_error_of_the_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Any library may abort; here the first one that the child loads does."""
    broken = tmp_path / "broken" / "pyarrow"
    broken.mkdir(parents=True)
    (broken / "__init__.py").write_text("import os\nos.abort()\n")
    root = Path(__file__).parents[2]
    monkeypatch.setattr("trd_data.child._PACKAGE_ROOT", os.pathsep.join([str(broken.parent), str(root)]))
    content = with_note(pa.array(["n"]))
    with pytest.raises(DataFileError, match=r"crashes the reader \(SIGABRT\)"):
        check(content, LIMITS)
