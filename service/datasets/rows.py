"""The rows of uploaded files: errors of `trd_data` as answers of the API."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict

from service.errors import InvalidRequestError, PayloadTooLargeError
from trd_data.check import FileReport
from trd_data.errors import DataFileError, FileTooLargeError, RowError
from trd_data.rows import MAX_LISTED


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


def refuse_bad_rows(report: FileReport) -> None:
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
