"""Files that decompress to too much, or crash the library that reads them, end in an error that says so."""

from __future__ import annotations

import io
import os
import subprocess
import tempfile
import threading
from pathlib import Path
from typing import IO, Any

import numpy as np
import pyarrow as pa  # type: ignore[import-untyped]
import pyarrow.parquet as pq  # type: ignore[import-untyped]
import pytest

from trd_data.errors import DataFileError, FileTooLargeError, RowError
from trd_data.parquet_child import MAX_CHILDREN, ChildLimits, check_parquet, first_parquet_problems
from trd_data.readers import RowLimits
from trd_data.rows import ListedError

LIMITS = RowLimits(max_row_bytes=2**20, max_rows=1_000_000, max_unpacked_bytes=2**27)


def packed(columns: dict[str, Any], **options: Any) -> bytes:
    buffer = io.BytesIO()
    dictionaries = {"use_dictionary": True, "dictionary_pagesize_limit": 2**30}
    pq.write_table(pa.table(columns), buffer, compression="zstd", store_schema=False, **{**dictionaries, **options})
    return buffer.getvalue()


def with_note(note: pa.Array, **options: Any) -> bytes:
    """The column beside problems that are right."""
    return packed({"problem": ["1 + 1"] * len(note), "answer": ["2"] * len(note), "note": note}, **options)


def shared_text(count: int, num_bytes: int) -> pa.Array:
    return pa.DictionaryArray.from_arrays(pa.array([0] * count, pa.int32()), pa.array(["a" * num_bytes]))


def stored(content: bytes, folder: Path) -> IO[bytes]:
    path = folder / "rows.parquet"
    path.write_bytes(content)
    return path.open("rb")


PREFIXES = {"use_dictionary": False, "column_encoding": {"note.list.element": "DELTA_BYTE_ARRAY"}}
BOMBS = {
    "a text of 12 MiB that 4096 rows share": lambda: with_note(shared_text(4096, 12 * 2**20)),
    "lists of one text": lambda: with_note(pa.ListArray.from_arrays([0, 4096], shared_text(4096, 2**20))),
    "prefixes": lambda: with_note(pa.array([["a" * 2**20 + str(i) for i in range(500)]]), **PREFIXES),
    "a list of numbers": lambda: with_note(pa.array([np.zeros(60_000_000, np.int8)])),
    "rows that are all allowed": lambda: with_note(shared_text(200_000, 2**19)),
}


@pytest.mark.parametrize("name", BOMBS)
def test_a_bomb_is_refused(name: str, tmp_path: Path) -> None:
    content = BOMBS[name]()
    assert len(content) < 2**17, "the file is small"
    with stored(content, tmp_path) as stream, pytest.raises(FileTooLargeError, match=r"MiB of memory|decompresses"):
        check_parquet(stream, LIMITS, ChildLimits(memory_bytes=2**30))


def test_a_long_row_is_named(tmp_path: Path) -> None:
    note = pa.array([["x" * 2**15] * (2 + 31 * (i == 2)) for i in range(3)])
    with stored(with_note(note), tmp_path) as stream:
        report = check_parquet(stream, LIMITS)
    assert report.errors == [ListedError(3, None, "longer than 1048576 bytes")]
    assert (report.num_rows, report.num_errors, report.first_without_solution) == (3, 1, 1)


def far_timestamps() -> bytes:
    """Microseconds since 1970 that lie beyond Python's last year."""
    return packed({"problem": ["x"], "answer": ["1"], "at": pa.array([2**62], pa.timestamp("us"))})


def broken_statistics() -> bytes:
    """Metadata with a bit flipped, of which some versions of the library abort and others complain."""
    content = bytearray(with_note(pa.array(["n"] * 50)))
    for place in range(len(content) - 300, len(content) - 12, 7):
        content[place] ^= 0x55
    return bytes(content)


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"PAR1 and then nonsense", "^not a readable Parquet file: "),
        (b"problem,answer\n1,2\n", "^not a readable Parquet file: "),
        (with_note(pa.array(["n"] * 50))[:-20], "^not a readable Parquet file: "),
        (far_timestamps(), "^not a readable Parquet file: column at: date value out of range"),
        (broken_statistics(), "^not a readable Parquet file: "),
    ],
)
def test_a_file_that_cannot_be_read_is_refused(content: bytes, words: str, tmp_path: Path) -> None:
    with stored(content, tmp_path) as stream, pytest.raises(DataFileError, match=words):
        check_parquet(stream, LIMITS)


def test_an_empty_row_group_is_read(tmp_path: Path) -> None:
    buffer = io.BytesIO()
    table = pa.table({"problem": ["1 + 1", "2 + 2"], "answer": ["2", "4"]})
    with pq.ParquetWriter(buffer, table.schema) as writer:
        writer.write_table(table)
        writer.write_table(table.slice(0, 0))
    with stored(buffer.getvalue(), tmp_path) as stream:
        assert check_parquet(stream, LIMITS).num_rows == 2


@pytest.mark.parametrize("limits", [ChildLimits(cpu_seconds=1), ChildLimits(wall_seconds=0.01)])
def test_a_file_that_takes_too_long_is_refused(limits: ChildLimits, tmp_path: Path) -> None:
    content = packed({"problem": [str(i) for i in range(300_000)], "answer": ["1"] * 300_000})
    with stored(content, tmp_path) as stream, pytest.raises(FileTooLargeError, match="seconds to read; split it"):
        check_parquet(stream, LIMITS, limits)


def test_a_reader_that_crashes_is_an_error_of_the_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Any library may abort; here the first one that the child loads does."""
    broken = tmp_path / "broken" / "pyarrow"
    broken.mkdir(parents=True)
    (broken / "__init__.py").write_text("import os\nos.abort()\n")
    root = Path(__file__).parents[2]
    monkeypatch.setattr("trd_data.parquet_child._PACKAGE_ROOT", os.pathsep.join([str(broken.parent), str(root)]))
    content = with_note(pa.array(["n"]))
    with stored(content, tmp_path) as stream, pytest.raises(DataFileError, match=r"crashes the reader \(SIGABRT\)"):
        check_parquet(stream, LIMITS)


def test_the_stream_stays_where_it_was() -> None:
    content = with_note(pa.array(["n"] * 7))
    with tempfile.SpooledTemporaryFile() as stream:
        stream.write(content)
        stream.seek(0)
        assert check_parquet(stream, LIMITS).num_rows == 7  # type: ignore[arg-type]
        assert stream.read() == content


def test_a_stream_that_is_no_local_file_is_read_too() -> None:
    assert check_parquet(io.BytesIO(with_note(pa.array(["n"] * 7))), LIMITS).num_rows == 7


def test_the_first_problems_are_the_tasks() -> None:
    rows = {"question": ["q"] * 3, "choices": [["red", "green"]] * 3, "answer": [1, 0, 7]}
    found = first_parquet_problems(io.BytesIO(packed(rows)), "choice", 2)
    assert [(number, problem.id, problem.answer) for number, problem in found] == [(1, "1", "B"), (2, "2", "A")]
    assert found[0][1].problem == "q\n\n(A) red\n(B) green"
    with pytest.raises(RowError, match="row 3: answer = 7: names none of the options"):
        first_parquet_problems(io.BytesIO(packed(rows)), "choice", 3)


def test_few_children_run_at_the_same_time(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each child notes when it started and ended; no more than the limit overlap."""
    content = with_note(pa.array(["n"] * 10))
    running, most, lock = 0, 0, threading.Lock()

    class Counted(subprocess.Popen[bytes]):
        def __init__(self, *args: Any, **options: Any) -> None:
            nonlocal running, most
            with lock:
                running += 1
                most = max(most, running)
            super().__init__(*args, **options)

        def wait(self, timeout: float | None = None) -> int:
            nonlocal running
            status = super().wait(timeout)
            with lock:
                running -= 1
            return status

    monkeypatch.setattr("trd_data.parquet_child.subprocess.Popen", Counted)
    threads = [threading.Thread(target=check_parquet, args=(io.BytesIO(content), LIMITS)) for _ in range(5)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert most == MAX_CHILDREN
