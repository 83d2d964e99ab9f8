"""Reads raw rows from files of the formats that `formats` recognises; what a column means is not known here.

The number of a row, which its errors name, is its line in JSON Lines (blank lines count, but are not rows), else its
place; both from 1.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import IO, Any

from trd_data.csv_rows import csv_rows
from trd_data.formats import OpenedFile, open_rows
from trd_data.json_rows import json_lines, json_values
from trd_data.parquet_rows import Wanted, parquet_rows
from trd_data.plain_json import allow_long_integers

MAX_DEPTH = 100
"""Nesting of objects and lists: what reads them recurses once per level."""
MAX_UNPACKED_BYTES = 2**32
"""Most bytes of a file's rows, decompressed: a run holds them in memory."""


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
    """Size of one row; of Parquet, in memory."""
    max_rows: int = 2**62
    """Number of rows in the file."""
    max_depth: int = MAX_DEPTH
    """Nesting of objects and lists in a row of JSON."""
    max_unpacked_bytes: int = MAX_UNPACKED_BYTES
    """Size of all rows, decompressed."""


def read_rows(stream: IO[bytes], wanted: Wanted) -> Iterator[RawRow]:
    """Yield the rows of a file of any format that is read; raises `DataFileError`.

    `wanted` tells which columns are read, if the format allows to leave others out.
    """
    limits = RowLimits()
    return rows_of(open_rows(stream, limits.max_unpacked_bytes), stream, wanted, limits)


def rows_of(file: OpenedFile, stream: IO[bytes], wanted: Wanted, limits: RowLimits) -> Iterator[RawRow]:
    """Yield the rows of a file that was opened from `stream`; raises `DataFileError`."""
    allow_long_integers()
    rows: Iterable[tuple[int, dict[str, Any] | str]]
    if file.format == "parquet":
        stream.seek(0)
        rows = enumerate(parquet_rows(stream, wanted, limits.max_row_bytes, limits.max_unpacked_bytes), start=1)
    elif file.format == "csv":
        rows = enumerate(csv_rows(file, limits.max_row_bytes), start=1)
    else:
        read = json_lines if file.format == "jsonl" else json_values
        rows = read(file.stream, limits.max_row_bytes, limits.max_depth)
    for number, row in rows:
        yield RawRow(number, {}, row) if isinstance(row, str) else RawRow(number, row)


def number_rows(rows: Iterable[dict[str, Any]]) -> Iterator[RawRow]:
    """Yield rows that were read elsewhere, numbered by their place."""
    return (RawRow(number, values) for number, values in enumerate(rows, start=1))
