"""The rows of uploaded files: how `trd_data` is called for them, and its errors as answers of the API."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict
from itertools import islice
from typing import IO

from contract.storage import Storage
from contract.tables import Dataset
from service.errors import InvalidRequestError, PayloadTooLargeError
from service.settings import UploadLimits
from trd_data.errors import DataFileError, FileTooLargeError, RowError
from trd_data.parquet_child import check_parquet, first_parquet_problems
from trd_data.problems import Problem
from trd_data.readers import RowLimits, read_lines
from trd_data.rows import MAX_LISTED, RowChecker, RowReader, RowReport

MAX_UNPACKING = 20
"""How many times larger than the limit on files the rows of a Parquet file may be: a file of zeros packs far better."""


def row_limits(limits: UploadLimits) -> RowLimits:
    """Return the limits of `trd_data` for the service's."""
    return RowLimits(
        max_row_bytes=limits.max_line_bytes,
        max_rows=limits.max_rows,
        max_depth=limits.max_json_depth,
        max_unpacked_bytes=limits.max_bytes * MAX_UNPACKING,
    )


@contextmanager
def data_errors(param: str | None = None) -> Iterator[None]:
    """Raise errors of `trd_data` as refusals: 413 for files that are too large, else 422."""
    try:
        yield
    except FileTooLargeError as error:
        raise PayloadTooLargeError(str(error), code="dataset_too_large") from error
    except DataFileError as error:
        raise InvalidRequestError(str(error), code="dataset_invalid") from error
    except RowError as error:
        raise InvalidRequestError(error.message, code="dataset_invalid", param=param or error.field) from error


def refuse_bad_rows(report: RowReport) -> None:
    """Raise `InvalidRequestError` with row, field and message of each error, if there is any, or if there is no row."""
    if report.num_rows == 0:
        raise InvalidRequestError("the file has no rows; write one JSON object a line", code="dataset_invalid")
    if not report.errors:
        return
    first = report.errors[0]
    more = f" ({report.num_errors} problems in all"
    more += f", the first {MAX_LISTED} are listed)" if report.num_errors > MAX_LISTED else ")"
    raise InvalidRequestError(
        f"row {first.row}: {first.message}" + (more if report.num_errors > 1 else ""),
        code="dataset_invalid",
        param=first.field,
        errors=[asdict(error) for error in report.errors],
    )


def first_problems(stream: IO[bytes], dataset: Dataset, task: str, count: int) -> list[tuple[int, Problem]]:
    """Return number and problem of a stored dataset's first rows; raises `InvalidRequestError` for a row that `task`
    cannot read, as a job would."""
    with data_errors("task"):
        if dataset.format == "parquet":
            return first_parquet_problems(stream, task, count)
        problems, reader = [], RowReader(task)
        for row in islice(read_lines(stream), count):
            try:
                problems.append((row.number, reader.problem(row)))
            except RowError as error:
                raise RowError(error.field, f"row {row.number}: {error.message}") from error
        return problems


def first_row_without_solution(storage: Storage, dataset: Dataset) -> int:
    """Return the number of the first row without a solution, for a message. Reads the stored file: the database
    holds only whether there is such a row."""
    with storage.open(dataset.storage_key) as stream:
        if dataset.format == "parquet":
            report = check_parquet(stream, RowLimits())
        else:
            checker = RowChecker(RowLimits())
            report = checker.report
            for row in read_lines(stream):
                checker.add(row)
                if report.first_without_solution is not None:
                    break
    assert report.first_without_solution is not None, "the dataset is recorded as lacking a solution"
    return report.first_without_solution
