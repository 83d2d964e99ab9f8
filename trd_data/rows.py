"""From raw rows to problems, and a report of what is wrong with a file's rows."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from trd_data.errors import FileTooLargeError, RowError
from trd_data.plain_json import text_fault, texts
from trd_data.problems import Problem
from trd_data.readers import RawRow, RowLimits
from trd_data.shapes.choose import to_problem

MAX_LISTED = 100
"""Errors of one file that are listed; more are counted."""


class RowReader:
    """Turns the rows of one file into problems whose ids differ."""

    def __init__(self, task: str | None = None, columns: Mapping[str, str] | None = None) -> None:
        """`task` and `columns`: as for `shapes.choose.to_problem`."""
        self._task = task
        self._columns = columns or {}
        self._seen_ids: set[int] = set()

    def problem(self, row: RawRow) -> Problem:
        """Return the problem in a row; raises RowError."""
        if row.error is not None:
            raise RowError(None, row.error)
        _require_text(row.values)
        try:
            problem = to_problem(row.values, row.number, self._task, self._columns)
        except RowError:
            raise
        except (ArithmeticError, AttributeError, LookupError, RecursionError, TypeError, ValueError) as error:
            # A combination of types that no shape expects is an error of the row as well.
            task = f" of task {self._task}" if self._task else ""
            raise RowError(None, f"cannot be read as a problem{task}: {type(error).__name__}: {error}"[:300]) from error
        self._require_new_id(problem.id)
        return problem

    def _require_new_id(self, row_id: str) -> None:
        # 64 bits per row instead of the ids themselves, because a file may have a million rows.
        digest = int.from_bytes(hashlib.blake2b(row_id.encode(), digest_size=8).digest())
        if digest in self._seen_ids:
            raise RowError("id", f"id = {row_id}: an earlier row has it; ids must differ")
        self._seen_ids.add(digest)


@dataclass(frozen=True)
class ListedError:
    """What is wrong with one row."""

    row: int
    """Its number, see `readers`."""
    field: str | None
    """None if the row as a whole is at fault."""
    message: str


@dataclass
class RowReport:
    """What was found in a file's rows."""

    num_rows: int = 0
    num_errors: int = 0
    errors: list[ListedError] = field(default_factory=list)
    """The first `MAX_LISTED`."""
    first_without_solution: int | None = None
    """Number of the first row without a reference solution; None if all have one."""


class RowChecker:
    """Takes the rows of an uploaded file one by one, keeps none, and reports what is wrong with them."""

    def __init__(self, limits: RowLimits, columns: Mapping[str, str] | None = None) -> None:
        self._limits = limits
        self._reader = RowReader(columns=columns)
        self._num_unpacked_bytes = 0
        self.report = RowReport()

    def add(self, row: RawRow) -> Problem | None:
        """Check a row and return its problem if it has one; raises `FileTooLargeError` if the file has more rows than
        allowed."""
        report = self.report
        report.num_rows += 1
        if report.num_rows > self._limits.max_rows:
            raise FileTooLargeError(
                f"the file has more than the {self._limits.max_rows} rows that are allowed; split it"
            )
        try:
            problem = self._reader.problem(row)
        except RowError as error:
            report.num_errors += 1
            if len(report.errors) < MAX_LISTED:
                report.errors.append(ListedError(row.number, error.field, error.message))
            return None
        if report.first_without_solution is None and problem.solution is None:
            report.first_without_solution = row.number
        return problem

    def add_unpacked(self, row: RawRow) -> Problem | None:
        """Check a row of a compressed file, whose size is not known before; raises `FileTooLargeError`."""
        num_bytes = len(json.dumps(row.values, default=str, ensure_ascii=False).encode("utf-8", "surrogatepass"))
        self._num_unpacked_bytes += num_bytes
        if self._num_unpacked_bytes > self._limits.max_unpacked_bytes:
            raise FileTooLargeError(
                f"the file decompresses to more than {self._limits.max_unpacked_bytes} bytes of rows; split it"
            )
        if num_bytes > self._limits.max_row_bytes:
            row = RawRow(row.number, {}, f"longer than {self._limits.max_row_bytes} bytes")
        return self.add(row)


def _require_text(values: Mapping[str, Any]) -> None:
    """Raise RowError if some text holds NUL, which no database stores, or half a surrogate pair, which is not UTF-8."""
    for name, value in values.items():
        for text in (name, *texts(value)):
            fault = text_fault(text)
            if fault is not None:
                shown = name.encode("ascii", "backslashreplace").decode()[:60]
                raise RowError(None if text_fault(name) else name, f"{shown}: {fault}")
