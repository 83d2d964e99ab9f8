"""Checks a whole file of rows for every task in one pass, and reads its first problems.

Called in a child process: see `trd_data.child`.
"""

from __future__ import annotations

import random
from collections.abc import Mapping
from dataclasses import dataclass, field
from itertools import islice
from typing import IO, Any

from trd_data.data_notices import DataNotices, notable_columns
from trd_data.errors import FileTooLargeError, RowError
from trd_data.formats import open_rows
from trd_data.notices import Notice
from trd_data.problems import Problem
from trd_data.readers import RawRow, RowLimits, read_rows, rows_of
from trd_data.rows import MAX_LISTED, ListedError, RowReader
from trd_data.shapes.choose import TASKS, Reading, columns_needed, require_known_fields, suggested_reading

MAX_REFERENCES = 1000
_MAX_ANSWER, _MAX_SOLUTION = 1000, 4000  # characters
_MAX_COLUMNS = 100


@dataclass
class TaskReport:
    """What was found in the rows of a file for one task."""

    num_refused: int = 0
    """Rows that the task cannot read; a job of this task would fail at the first."""
    first_error: ListedError | None = None
    first_without_solution: int | None = None
    """Number of the first row without a reference solution; None if all have one."""


@dataclass
class FileReport:
    """What was found in a file."""

    format: str
    """One of `formats.FileFormat`."""
    compression: str | None = None
    """One of `formats.Compression`."""
    num_rows: int = 0
    num_errors: int = 0
    """Rows that are refused at an upload: the task that their columns suggest cannot read them."""
    errors: list[ListedError] = field(default_factory=list)
    """The first `rows.MAX_LISTED`."""
    first_without_solution: int | None = None
    """As in `TaskReport`, for the tasks that the columns suggest."""
    columns: list[str] = field(default_factory=list)
    """The first columns of the first row."""
    shapes: dict[str, int] = field(default_factory=dict)
    """Rows of each shape, by its name in docs/data.md."""
    tasks: dict[str, TaskReport] = field(default_factory=lambda: {task: TaskReport() for task in TASKS})
    notices: list[Notice] = field(default_factory=list)
    references: list[dict[str, Any]] = field(default_factory=list)
    """Row, answer and end of the solution of up to `MAX_REFERENCES` problems, sampled evenly."""


def check_file(stream: IO[bytes], limits: RowLimits, columns: Mapping[str, str] | None = None) -> FileReport:
    """Return what is in a file of rows.

    Raises `DataFileError`, `FileTooLargeError`, and RowError if `columns` maps an unknown field.
    """
    require_known_fields(columns or {})
    file = open_rows(stream, limits.max_unpacked_bytes)
    report = FileReport(file.format, file.compression)
    reader, notices, sample = RowReader(columns=columns), DataNotices(), ReferenceSample()
    for row in rows_of(file, stream, notable_columns(columns or {}), limits):
        report.num_rows += 1
        if report.num_rows > limits.max_rows:
            raise FileTooLargeError(f"the file has more than the {limits.max_rows} rows that are allowed; split it")
        if report.num_rows == 1:
            report.columns = list(row.values)[:_MAX_COLUMNS]
        try:
            by_task = reader.readings(row)
        except RowError as error:
            _add_error(report, row, error)
            for task in report.tasks.values():
                _refuse(task, row, error)
            continue
        _add_row(report, row, by_task)
        notices.add(row.number, by_task)
        sample.add(row.number, by_task["math"].problem)
    report.notices, report.references = list(notices.notices()), sample.references
    return report


def _add_row(report: FileReport, row: RawRow, by_task: Mapping[str, Reading]) -> None:
    for task, reading in by_task.items():
        found = report.tasks[task]
        if reading.error is not None:
            _refuse(found, row, reading.error)
        elif found.first_without_solution is None and reading.problem is not None and reading.problem.solution is None:
            found.first_without_solution = row.number
    suggested = suggested_reading(by_task)
    if suggested.error is not None:
        _add_error(report, row, suggested.error)
        return
    assert suggested.shape is not None
    report.shapes[suggested.shape.name] = report.shapes.get(suggested.shape.name, 0) + 1
    if report.first_without_solution is None and suggested.required().solution is None:
        report.first_without_solution = row.number


def _add_error(report: FileReport, row: RawRow, error: RowError) -> None:
    report.num_errors += 1
    if len(report.errors) < MAX_LISTED:
        report.errors.append(ListedError(row.number, error.field, error.message))


def _refuse(task: TaskReport, row: RawRow, error: RowError) -> None:
    task.num_refused += 1
    task.first_error = task.first_error or ListedError(row.number, error.field, error.message)


def first_problems(
    stream: IO[bytes], task: str, count: int, columns: Mapping[str, str] | None = None
) -> list[tuple[int, Problem]]:
    """Return number and problem of the first rows; raises RowError, which names the row, if `task` cannot read one."""
    reader, problems = RowReader(task, columns), []
    needed = columns_needed(columns or {})
    for row in islice(read_rows(stream, lambda name, _: name in needed), count):
        try:
            problems.append((row.number, reader.reading(row).required()))
        except RowError as error:
            raise RowError(error.field, f"row {row.number}: {error.message}") from error
    return problems


class ReferenceSample:
    """A sample of a file's references of fixed size, each row as likely as any other."""

    def __init__(self) -> None:
        self.references: list[dict[str, Any]] = []
        self._num_seen = 0
        self._random = random.Random(0)

    def add(self, number: int, problem: Problem | None) -> None:
        """Take a problem into the sample, or not."""
        if problem is None or not problem.answer or len(problem.answer) > _MAX_ANSWER:
            return
        self._num_seen += 1
        place = len(self.references)
        if place == MAX_REFERENCES:
            place = self._random.randrange(self._num_seen)
            if place >= MAX_REFERENCES:
                return
        solution = problem.solution[-_MAX_SOLUTION:] if problem.solution is not None else None
        self.references[place : place + 1] = [{"row": number, "answer": problem.answer, "solution": solution}]
