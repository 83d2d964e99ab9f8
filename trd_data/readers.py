"""Reads raw rows from JSON Lines, JSON and Parquet; what a column means is not known here.

The number of a row, which its errors name, is its line in JSON Lines (blank lines count, but are not rows), else its
place; both from 1.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any, NoReturn

from trd_data.errors import DataFileError
from trd_data.plain_json import allow_long_integers, nests_deeper
from trd_data.shapes.fields import type_name

PARQUET_MAGIC = b"PAR1"
PARQUET_BATCH_ROWS = 64
MAX_DEPTH = 100
"""Nesting of objects and lists: what reads them recurses once per level."""

_BOM = b"\xef\xbb\xbf"
_CHUNK_BYTES = 2**20
_FORMATS = "; JSON Lines, JSON (in files named .json) and Parquet can be read, uncompressed"


@dataclass(frozen=True)
class RawRow:
    """One row as it was read, or why it could not be read."""

    number: int
    values: dict[str, Any]
    error: str | None = None


@dataclass(frozen=True)
class RowLimits:
    """What a file of rows may hold at most."""

    max_row_bytes: int = 2**62
    """Size of one row as JSON."""
    max_rows: int = 2**62
    """Number of rows in the file."""
    max_depth: int = MAX_DEPTH
    """Nesting of objects and lists in a row of JSON Lines."""
    max_unpacked_bytes: int = 2**62
    """Size of all rows of a Parquet file as JSON."""


class LineReader:
    """Cuts rows out of a file of JSON Lines that arrives in pieces of any size. Holds one line at a time."""

    def __init__(self, limits: RowLimits | None = None) -> None:
        self._limits = limits or RowLimits()
        self._line = bytearray()
        self._number = 0
        self._is_too_long = False
        allow_long_integers()

    def feed(self, content: bytes) -> Iterator[RawRow]:
        """Yield the rows that end in the next piece of the file."""
        first, *others = content.split(b"\n")
        self._append(first)
        for line in others:
            yield from self._end_line()
            self._append(line)

    def finish(self) -> Iterator[RawRow]:
        """Yield the last row, if the file does not end in a line break."""
        if self._line or self._is_too_long:
            yield from self._end_line()

    def _append(self, content: bytes) -> None:
        if self._is_too_long:
            return
        self._line += content
        if len(self._line) > self._limits.max_row_bytes:
            self._is_too_long = True
            self._line.clear()

    def _end_line(self) -> Iterator[RawRow]:
        self._number += 1
        line, is_too_long = bytes(self._line), self._is_too_long
        self._line.clear()
        self._is_too_long = False
        if is_too_long:
            yield RawRow(self._number, {}, f"longer than {self._limits.max_row_bytes} bytes")
            return
        if self._number == 1:
            line = line.removeprefix(_BOM)
        if line.strip():
            yield _parse_line(self._number, line, self._limits.max_depth)


def read_lines(stream: IO[bytes], limits: RowLimits | None = None) -> Iterator[RawRow]:
    """Yield the rows of a file of JSON Lines."""
    reader = LineReader(limits)
    while content := stream.read(_CHUNK_BYTES):
        yield from reader.feed(content)
    yield from reader.finish()


def read_file(path: Path) -> Iterator[RawRow]:
    """Yield the rows of a JSON Lines, JSON or Parquet file; raises `DataFileError`."""
    with path.open("rb") as stream:
        is_parquet = path.suffix == ".parquet" or stream.read(len(PARQUET_MAGIC)) == PARQUET_MAGIC
        stream.seek(0)
        if is_parquet:
            yield from read_parquet(stream)
            return
        rows = _json_array(path) if path.suffix == ".json" else read_lines(stream)
        for place, row in enumerate(rows):
            # If even the first row is not one, the file may be of a format that is not read.
            is_first_error = place == 0 and row.error is not None and path.suffix != ".json"
            yield RawRow(row.number, {}, f"{row.error}{_FORMATS}") if is_first_error else row


def read_parquet(stream: IO[bytes]) -> Iterator[RawRow]:
    """Yield the rows of a Parquet file, in small batches; raises `DataFileError`.

    A few bytes of Parquet may stand for any number of bytes: files from users are read by `parquet_child`.
    """
    import pyarrow  # type: ignore[import-untyped]
    import pyarrow.parquet  # type: ignore[import-untyped]

    try:
        # Not pre-buffered and single-threaded: one page of each column in memory, not whole column chunks.
        file = pyarrow.parquet.ParquetFile(stream, pre_buffer=False, buffer_size=_CHUNK_BYTES)
        batches = file.iter_batches(batch_size=PARQUET_BATCH_ROWS, use_threads=False)
        yield from number_rows(row for batch in batches for row in _python_values(batch))
    except MemoryError:  # also Arrow's, which is an ArrowException besides
        raise
    except (pyarrow.ArrowException, OSError, ValueError) as error:
        raise DataFileError(f"not a readable Parquet file: {error}"[:500]) from error


def number_rows(rows: Iterable[dict[str, Any]]) -> Iterator[RawRow]:
    """Yield rows that were read elsewhere, numbered by their place."""
    return (RawRow(number, values) for number, values in enumerate(rows, start=1))


def _python_values(batch: Any) -> list[dict[str, Any]]:
    """Return the rows of a batch; raises ValueError that names the column whose values Python cannot represent."""
    try:
        rows: list[dict[str, Any]] = batch.to_pylist()
    except (OverflowError, ValueError):
        for name, column in zip(batch.schema.names, batch.columns, strict=True):
            try:
                column.to_pylist()
            except (OverflowError, ValueError) as error:
                raise ValueError(f"column {name}: {error}") from error
        raise
    return rows


def _parse_line(number: int, line: bytes, max_depth: int) -> RawRow:
    if nests_deeper(line, max_depth):
        return RawRow(number, {}, f"nests more than {max_depth} levels deep")
    try:
        values = _parse(line)
    except UnicodeDecodeError as error:
        return RawRow(number, {}, f"not UTF-8: {error.reason} at byte {error.start + 1} of the line")
    except json.JSONDecodeError as error:
        return RawRow(number, {}, f"not valid JSON: {error.msg} at character {error.pos + 1} of the line")
    except ValueError as error:
        return RawRow(number, {}, f"not valid JSON: {error}")
    return _object(number, values)


def _json_array(path: Path) -> Iterator[RawRow]:
    allow_long_integers()
    content = path.read_bytes()
    try:
        rows = _parse(content) if not nests_deeper(content, MAX_DEPTH + 1) else None
    except ValueError:
        rows = None
    if rows is None:  # JSON Lines under another name, with an error for each broken line
        with path.open("rb") as stream:
            yield from read_lines(stream)
        return
    if isinstance(rows, dict):
        rows = [rows]
    if not isinstance(rows, list):
        raise DataFileError(f"must be an array of objects, not {type_name(rows)}")
    for number, row in enumerate(rows, start=1):
        yield _object(number, row)


def _object(number: int, values: Any) -> RawRow:
    if not isinstance(values, dict):
        return RawRow(number, {}, f"must be a JSON object, not {type_name(values)}")
    return RawRow(number, values)


def _parse(content: bytes) -> Any:
    return json.loads(content.decode(), parse_constant=_refuse_constant)


def _refuse_constant(name: str) -> NoReturn:
    raise ValueError(f"{name} is not a JSON value")
