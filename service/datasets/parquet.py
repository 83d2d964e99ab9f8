"""Rows as Parquet: read in small batches from a file that has arrived whole, since its index is at its end."""

from __future__ import annotations

import importlib.util
import json
import math
from collections.abc import Iterator
from typing import IO, Any

from service.bodies import holds_unstorable
from service.datasets.rows import RowLedger
from service.errors import InvalidRequestError, MediaTypeError, PayloadTooLargeError
from service.settings import UploadLimits

MAGIC = b"PAR1"
BATCH_ROWS = 64

MAX_UNPACKING = 20
"""How many times larger than the limit on files the unpacked columns may be: a file of zeros packs far better."""
MAX_ROW_GROUP_BYTES = 2**29
"""Unpacked: what one reader may have to hold."""


def read_parquet(stream: IO[bytes], ledger: RowLedger, limits: UploadLimits) -> None:
    """Give every row to the ledger; raises `ApiError` where the file cannot be read or is too large."""
    if importlib.util.find_spec("pyarrow") is None:
        raise MediaTypeError(
            "Parquet cannot be read here, pyarrow is not installed; send the rows as application/jsonl"
        )
    import pyarrow  # type: ignore[import-untyped]
    import pyarrow.parquet  # type: ignore[import-untyped]

    try:
        file = pyarrow.parquet.ParquetFile(stream)
        _check_sizes(file.metadata, limits)
        for number, row in enumerate(_rows(file), start=1):
            _take(number, row, ledger, limits)
    except (pyarrow.ArrowException, OSError, ValueError) as error:
        raise InvalidRequestError(f"not a readable Parquet file: {error}"[:500], code="dataset_invalid") from error


def first_parquet_rows(stream: IO[bytes]) -> Iterator[tuple[int, dict[str, Any]]]:
    """Number and row, from 1, of a file that was accepted."""
    import pyarrow.parquet

    yield from enumerate(_rows(pyarrow.parquet.ParquetFile(stream)), start=1)


def _check_sizes(metadata: Any, limits: UploadLimits) -> None:
    if metadata.num_rows > limits.max_rows:
        raise PayloadTooLargeError(
            f"the file has {metadata.num_rows} rows, more than the {limits.max_rows} that are allowed; split it",
            code="dataset_too_large",
        )
    groups = [metadata.row_group(number).total_byte_size for number in range(metadata.num_row_groups)]
    if max(groups, default=0) > MAX_ROW_GROUP_BYTES or sum(groups) > limits.max_bytes * MAX_UNPACKING:
        raise PayloadTooLargeError(
            f"the file unpacks to {sum(groups)} bytes, its largest row group to {max(groups)}; write smaller row "
            "groups, or split it",
            code="dataset_too_large",
        )


def _rows(file: Any) -> Iterator[dict[str, Any]]:
    for batch in file.iter_batches(batch_size=BATCH_ROWS):
        yield from batch.to_pylist()


def _take(number: int, row: dict[str, Any], ledger: RowLedger, limits: UploadLimits) -> None:
    row = {name: None if _is_gap(value) else value for name, value in row.items()}
    if holds_unstorable(row):
        ledger.add_unreadable(number, "holds \\0 or half a surrogate pair, which is no text; remove it")
    elif len(json.dumps(row, default=str, ensure_ascii=False).encode()) > limits.max_line_bytes:
        ledger.add_unreadable(number, f"longer than {limits.max_line_bytes} bytes")
    else:
        ledger.add(number, row)


def _is_gap(value: object) -> bool:
    """A missing number in a column of floats."""
    return isinstance(value, float) and math.isnan(value)
