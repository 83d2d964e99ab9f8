"""Reads rows from Parquet: only the columns that are wanted, in small batches of bounded size.

Columns that nobody reads are not even decompressed, so that no value in them can fail, whatever its type.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator
from typing import IO, Any

from trd_data.errors import DataFileError, FileTooLargeError
from trd_data.plain_json import Unreadable

BATCH_ROWS = 64
_BUFFER_BYTES = 2**20

Wanted = Callable[[str, bool], bool]
"""Whether a column is read, given its name and whether it holds text."""


def parquet_rows(
    stream: IO[bytes], wanted: Wanted, max_row_bytes: int, max_bytes: int
) -> Iterator[dict[str, Any] | str]:
    """Yield the rows of a Parquet file, or what is wrong with one; raises `DataFileError`.

    Each row names all columns of the file; those that are not wanted are None. A few bytes of Parquet may stand for any
    number of bytes: sizes are those of the decoded values, and files of users are read in a child process.
    """
    import pyarrow  # type: ignore[import-untyped]
    import pyarrow.parquet  # type: ignore[import-untyped]

    try:
        # Not pre-buffered and single-threaded: one page of each column in memory, not whole column chunks.
        file = pyarrow.parquet.ParquetFile(stream, pre_buffer=False, buffer_size=_BUFFER_BYTES)
        schema = file.schema_arrow
        columns = [field.name for field in schema if wanted(field.name, _holds_text(field.type))]
        counts = Counter(schema.names)
        for name in columns:
            if counts[name] > 1:
                raise DataFileError(f"two columns are named {name!r}; rename one")
        num_bytes = 0
        for batch in file.iter_batches(batch_size=BATCH_ROWS, columns=columns, use_threads=False):
            num_bytes += batch.nbytes
            if num_bytes > max_bytes:
                raise FileTooLargeError(f"the file unpacks to more than {max_bytes} bytes of rows; split it")
            # Some row is too long only if all of them together are.
            parts = [batch] if batch.nbytes <= max_row_bytes else [batch.slice(i, 1) for i in range(batch.num_rows)]
            for part in parts:
                if part.nbytes > max_row_bytes:
                    yield f"longer than {max_row_bytes} bytes"
                else:
                    yield from _python_rows(part, schema.names)
    except (MemoryError, DataFileError):  # Arrow's MemoryError is an ArrowException besides
        raise
    except (pyarrow.ArrowException, OSError, ValueError) as error:
        raise DataFileError(f"not a readable Parquet file: {error}"[:500]) from error


def _holds_text(kind: Any) -> bool:
    from pyarrow import types

    if types.is_dictionary(kind):
        kind = kind.value_type
    return bool(types.is_string(kind) or types.is_large_string(kind) or types.is_string_view(kind))


def _python_rows(batch: Any, names: list[str]) -> Iterator[dict[str, Any]]:
    empty = dict.fromkeys(names)
    columns = [(name, _python_values(column)) for name, column in zip(batch.schema.names, batch.columns, strict=True)]
    for place in range(batch.num_rows):
        yield {**empty, **{name: values[place] for name, values in columns}}


def _python_values(column: Any) -> list[Any]:
    """Return the values of a column; a value that Python cannot represent becomes `Unreadable`."""
    import pyarrow

    try:
        if pyarrow.types.is_temporal(column.type):  # as text, because Python's types have a smaller range
            column = column.cast(pyarrow.string())
        values: list[Any] = column.to_pylist(maps_as_pydicts="strict")
    except MemoryError:
        raise
    except Exception:  # noqa: BLE001 - any type of column, with any value: the row that needs it is at fault
        values = [_python_value(value) for value in column]
    return values


def _python_value(value: Any) -> Any:
    try:
        return value.as_py(maps_as_pydicts="strict")
    except MemoryError:
        raise
    except Exception as error:  # noqa: BLE001 - see above
        return Unreadable(f"{type(error).__name__}: {error}"[:200])
