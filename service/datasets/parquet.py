"""Rows as Parquet: read in small batches from a file that has arrived whole, since its index is at its end.

A few bytes of Parquet may stand for any number: a text that many rows share is written once. What rows unpack to is
therefore bounded before they are unpacked.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import IO, Any

from service.bodies import holds_unstorable
from service.datasets.parquet_pages import ColumnPages, PageReader
from service.datasets.rows import RowLedger
from service.errors import InvalidRequestError, PayloadTooLargeError
from service.settings import UploadLimits

MAGIC = b"PAR1"
BATCH_ROWS = 64

MAX_UNPACKING = 20
"""How many times larger than the limit on files the unpacked columns may be: a file of zeros packs far better."""
MAX_ROW_GROUP_BYTES = 2**29
"""Unpacked: what one reader may have to hold."""
SMALL_BYTES = 2**20
"""A column that cannot unpack to more is not looked at more closely."""

_WIDTHS = {"BOOLEAN": 1, "INT32": 4, "INT64": 8, "INT96": 12, "FLOAT": 4, "DOUBLE": 8, "BYTE_ARRAY": 4}
"""Bytes of a value in memory, by its physical type; of a text, what points to it."""


@dataclass(frozen=True)
class _Column:
    """One column of one row group."""

    path: str
    is_list: bool
    num_bytes: int
    """Decoded, if no text were shared."""
    shared_bytes: int
    """Of the longest text that many values may share."""
    num_sharing: int
    """Values that may."""


def read_parquet(stream: IO[bytes], ledger: RowLedger, limits: UploadLimits) -> None:
    """Give every row to the ledger; raises `ApiError` where the file cannot be read or is too large."""
    import pyarrow  # type: ignore[import-untyped]
    import pyarrow.parquet  # type: ignore[import-untyped]

    try:
        file = pyarrow.parquet.ParquetFile(stream)
        batch_rows = _safe_batch_rows(stream, file.metadata, limits)
        for number, row in enumerate(_bounded_rows(file, batch_rows, limits.max_line_bytes), start=1):
            _take(number, row, ledger, limits)
    except (pyarrow.ArrowException, OSError, ValueError) as error:
        raise InvalidRequestError(f"not a readable Parquet file: {error}"[:500], code="dataset_invalid") from error


def first_parquet_rows(stream: IO[bytes]) -> Iterator[tuple[int, dict[str, Any]]]:
    """Number and row, from 1, of a file that was accepted."""
    import pyarrow.parquet

    batches = pyarrow.parquet.ParquetFile(stream).iter_batches(batch_size=BATCH_ROWS)
    yield from enumerate((row for batch in batches for row in batch.to_pylist()), start=1)


def _safe_batch_rows(stream: IO[bytes], metadata: Any, limits: UploadLimits) -> int:
    """How many rows to unpack at once; raises `PayloadTooLargeError` where even one might be too much."""
    if metadata.num_rows > limits.max_rows:
        raise PayloadTooLargeError(
            f"the file has {metadata.num_rows} rows, more than the {limits.max_rows} that are allowed; split it",
            code="dataset_too_large",
        )
    reader = PageReader(stream)
    groups = [_columns(stream, reader, metadata, number) for number in range(metadata.num_row_groups)]
    _check_sizes([sum(column.num_bytes for column in columns) for columns in groups], limits)
    for columns in groups:
        _check_lists([column for column in columns if column.is_list])
    shared = max((sum(c.shared_bytes for c in columns if not c.is_list) for columns in groups), default=0)
    return min(max(BATCH_ROWS * limits.max_line_bytes // max(shared, 1), 1), BATCH_ROWS)


def _columns(stream: IO[bytes], reader: PageReader, metadata: Any, group: int) -> list[_Column]:
    columns = []
    for position in range(metadata.num_columns):
        leaf = metadata.schema.column(position)
        is_text = leaf.physical_type == "BYTE_ARRAY"
        pages = reader.column(metadata.row_group(group).column(position))
        width = _WIDTHS.get(leaf.physical_type, leaf.length)
        column = _Column(
            path=leaf.path,
            is_list=leaf.max_repetition_level > 0,
            num_bytes=max(pages.num_bytes, pages.num_values * width),
            shared_bytes=_shared_bytes(stream, group, leaf.path, pages) if is_text else 0,
            num_sharing=pages.num_values if pages.has_prefixes else pages.num_looked_up,
        )
        columns.append(column)
    return columns


def _shared_bytes(stream: IO[bytes], group: int, path: str, pages: ColumnPages) -> int:
    import pyarrow.compute  # type: ignore[import-untyped]
    import pyarrow.parquet

    if pages.has_prefixes:
        return pages.num_bytes
    if pages.dictionary_bytes * pages.num_looked_up <= SMALL_BYTES:
        return pages.dictionary_bytes
    # A batch of one row brings the whole dictionary, and of the values only where in it they are.
    file = pyarrow.parquet.ParquetFile(stream, read_dictionary=[path])
    try:
        (array,) = next(file.iter_batches(batch_size=1, row_groups=[group], columns=[path])).columns
    except pyarrow.ArrowNotImplementedError:  # a list that begins in the dictionary and ends outside
        return pages.dictionary_bytes
    while pyarrow.types.is_nested(array.type):
        array = array.field(0) if pyarrow.types.is_struct(array.type) else array.values
    if not pyarrow.types.is_dictionary(array.type):
        return pages.dictionary_bytes
    return int(pyarrow.compute.max(pyarrow.compute.binary_length(array.dictionary)).as_py() or 0)


def _check_sizes(groups: list[int], limits: UploadLimits) -> None:
    if max(groups, default=0) > MAX_ROW_GROUP_BYTES or sum(groups) > limits.max_bytes * MAX_UNPACKING:
        raise PayloadTooLargeError(
            f"the file unpacks to {sum(groups)} bytes, its largest row group to {max(groups)}; write smaller row "
            "groups, or split it",
            code="dataset_too_large",
        )


def _check_lists(columns: list[_Column]) -> None:
    """One row may hold all of a group's values. How many it does is not known before they are unpacked."""
    if sum(column.num_sharing * column.shared_bytes for column in columns) <= MAX_ROW_GROUP_BYTES:
        return
    most = max(columns, key=lambda column: column.num_sharing * column.shared_bytes)
    raise PayloadTooLargeError(
        f"{most.path}: {most.num_sharing} values in lists may share a text of {most.shared_bytes} bytes, and their row "
        f"group unpack to more than {MAX_ROW_GROUP_BYTES}; write the column plain, or smaller row groups",
        code="dataset_too_large",
    )


def _bounded_rows(file: Any, batch_rows: int, max_bytes: int) -> Iterator[dict[str, Any] | None]:
    """None for a row that is longer than `max_bytes` before it is unpacked."""
    for batch in file.iter_batches(batch_size=batch_rows):
        if _min_text_bytes(batch) <= max_bytes:
            yield from batch.to_pylist()
            continue
        for position in range(batch.num_rows):
            row = batch.slice(position, 1)
            yield row.to_pylist()[0] if _min_text_bytes(row) <= max_bytes else None


def _min_text_bytes(batch: Any) -> int:
    """What the rows take as JSON, or less."""
    return sum(_min_column_bytes(column) for column in batch.columns)


def _min_column_bytes(array: Any) -> int:
    import pyarrow
    import pyarrow.compute

    if isinstance(array, pyarrow.ExtensionArray):
        return _min_column_bytes(array.storage)
    if isinstance(array, pyarrow.StructArray):
        return sum(_min_column_bytes(child) for child in array.flatten())
    if isinstance(array, pyarrow.MapArray):
        start, stop = array.offsets[0].as_py(), array.offsets[-1].as_py()  # its parts know nothing of a slice
        return sum(_min_column_bytes(part.slice(start, stop - start)) for part in (array.keys, array.items))
    if pyarrow.types.is_nested(array.type):
        return _min_column_bytes(array.flatten())
    if pyarrow.types.is_dictionary(array.type):
        lengths = pyarrow.compute.binary_length(array.dictionary).take(array.indices)
    elif _has_length(array.type):
        lengths = pyarrow.compute.binary_length(array)
    else:
        return len(array)
    return len(array) + (pyarrow.compute.sum(lengths).as_py() or 0)


def _has_length(kind: Any) -> bool:
    import pyarrow

    tests = pyarrow.types
    return bool(tests.is_string(kind) or tests.is_binary(kind) or tests.is_large_string(kind))


def _take(number: int, row: dict[str, Any] | None, ledger: RowLedger, limits: UploadLimits) -> None:
    if row is not None:
        row = {name: None if _is_gap(value) else value for name, value in row.items()}
        if holds_unstorable(row):
            ledger.add_unreadable(number, "holds \\0 or half a surrogate pair, which is no text; remove it")
            return
    if row is None or len(json.dumps(row, default=str, ensure_ascii=False).encode()) > limits.max_line_bytes:
        ledger.add_unreadable(number, f"longer than {limits.max_line_bytes} bytes")
    else:
        ledger.add(number, row)


def _is_gap(value: object) -> bool:
    """A missing number in a column of floats."""
    return isinstance(value, float) and math.isnan(value)
