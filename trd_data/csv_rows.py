"""Reads rows from CSV with a header, its cells delimited by commas, semicolons, tabs or vertical bars, with or without
a byte-order mark.

Cells are text; an empty cell, or NaN, is a gap.
"""

from __future__ import annotations

import csv
import io
from collections import Counter
from collections.abc import Iterator
from itertools import islice

from trd_data.errors import DataFileError
from trd_data.formats import CSV_DELIMITERS, OpenedFile, Unpacked

_CHUNK_BYTES = 2**20
_SAMPLE_ROWS = 20
_GAPS = ("", "NaN", "nan")
_MAX_CELL = 2**31 - 1
"""Limit of the csv module, whose own is 128 KiB."""


def csv_rows(file: OpenedFile, max_row_bytes: int) -> Iterator[dict[str, str | None] | str]:
    """Yield the rows of a file, or what is wrong with one; raises `DataFileError` if the header cannot be read."""
    # Of the whole process, as the module has it; an unclosed quote may make a cell of the rest of the file.
    csv.field_size_limit(min(max_row_bytes, _MAX_CELL))
    raw = io.BufferedReader(_RawText(file.stream), _CHUNK_BYTES)
    text = io.TextIOWrapper(raw, encoding="utf-8-sig", errors="surrogateescape", newline="")
    sample = file.head.decode("utf-8-sig", "replace")
    reader = _reader(text, _delimiter(sample), sample, strict=True)
    try:
        names = [name.strip() for name in next(cells for cells in reader if cells)]
        "".join(names).encode()
    except (csv.Error, UnicodeEncodeError) as error:
        raise DataFileError(f"the header of the CSV file cannot be read: {error}") from error
    _require_header(names)
    while True:
        try:
            cells = next(reader)
        except StopIteration:
            return
        except csv.Error as error:
            yield f"not valid CSV: {error}; is a quote left open, or not doubled within a quoted cell?"
            continue
        if not cells or (len(names) > 1 and cells == [""]):
            continue
        if not any(cells[len(names) :]):  # delimiters at the end of a line are no cells
            cells = cells[: len(names)]
        if len(cells) != len(names):
            yield f"has {len(cells)} cells, and the header {len(names)}; quote cells that hold the delimiter"
        elif (num_bytes := _num_bytes(cells)) is None:
            yield "not UTF-8; save the file as UTF-8"
        elif num_bytes > max_row_bytes:
            yield f"longer than {max_row_bytes} bytes"
        else:
            yield {name: None if cell in _GAPS else cell for name, cell in zip(names, cells, strict=True)}


def _num_bytes(cells: list[str]) -> int | None:
    """Return the size of the cells; None if they are not UTF-8."""
    try:
        return len("".join(cells).encode())
    except UnicodeEncodeError:
        return None


def _reader(text: io.TextIOBase, delimiter: str, sample: str, *, strict: bool = False) -> Iterator[list[str]]:
    # A header with spaces behind its delimiters says that the cells have them too, and that they mean nothing. Before a
    # quote such a space would make the quotes a part of the cell.
    header = sample.lstrip().partition("\n")[0]
    return csv.reader(text, delimiter=delimiter, strict=strict, skipinitialspace=f"{delimiter} " in header)


class _RawText(io.RawIOBase):
    """Passes decompressed bytes on to Python's text reader."""

    def __init__(self, stream: Unpacked) -> None:
        self._stream = stream

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: memoryview) -> int:  # type: ignore[override]
        content = self._stream.read(len(buffer))
        buffer[: len(content)] = content
        return len(content)


def _delimiter(sample: str) -> str:
    """Return the delimiter by which the first rows have the same number of cells; raises `DataFileError` if several
    do."""
    likely, possible = [], []
    for delimiter in CSV_DELIMITERS:
        lengths = []
        try:
            for cells in islice(_reader(io.StringIO(sample, newline=""), delimiter, sample), _SAMPLE_ROWS):
                lengths += [len(cells)] if cells else []
        except csv.Error:
            continue
        lengths = lengths[:-1] if len(lengths) > 1 and len(sample) >= 2**15 else lengths  # the last may be cut off
        if lengths and lengths[0] > 1:
            possible.append(delimiter)
            if len(set(lengths)) == 1:
                likely.append(delimiter)
    candidates = likely or possible
    if len(candidates) > 1:
        shown = " and ".join("tabs" if delimiter == "\t" else repr(delimiter) for delimiter in candidates)
        raise DataFileError(
            f"the CSV file's cells may be delimited by {shown}; quote the header's names, or write JSON Lines"
        )
    return candidates[0] if candidates else CSV_DELIMITERS[0]


def _require_header(names: list[str]) -> None:
    if names[0].startswith("sep="):
        raise DataFileError(f"the CSV file begins with the line {names[0]!r} of a spreadsheet; remove this line")
    counts = Counter(names)
    twice = sorted(name for name, count in counts.items() if count > 1 and name)
    if twice:
        raise DataFileError(f"the CSV header names {', '.join(map(repr, twice))[:200]} twice; rename one")
    if counts[""] > 1:
        raise DataFileError("the CSV header has columns without a name; name each")
    if all(not name or name.replace(".", "").replace("-", "").isdigit() for name in names):
        raise DataFileError("the CSV file has no header; its first line must name the columns, as problem,answer")
