"""Checks a whole file of rows in one pass, and reads its first problems.

Called in a child process: see `trd_data.child`.
"""

from __future__ import annotations

import random
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from itertools import islice
from typing import IO, Any

from trd_data.errors import RowError
from trd_data.notices import Notice
from trd_data.problems import Problem
from trd_data.readers import PARQUET_MAGIC, RawRow, RowLimits, read_lines, read_parquet
from trd_data.rows import ListedError, RowChecker, RowReader

MAX_REFERENCES = 1000
_MAX_ANSWER, _MAX_SOLUTION = 1000, 4000  # characters


@dataclass
class FileReport:
    """What was found in a file."""

    format: str
    num_rows: int = 0
    num_errors: int = 0
    errors: list[ListedError] = field(default_factory=list)
    """The first `rows.MAX_LISTED`."""
    first_without_solution: int | None = None
    """Number of the first row without a reference solution; None if all have one."""
    notices: list[Notice] = field(default_factory=list)
    references: list[dict[str, Any]] = field(default_factory=list)
    """Row, answer and end of the solution of up to `MAX_REFERENCES` problems, sampled evenly."""


def check_file(stream: IO[bytes], limits: RowLimits, columns: Mapping[str, str] | None = None) -> FileReport:
    """Return what is in a file of rows; raises `DataFileError` and `FileTooLargeError`."""
    is_parquet = _is_parquet(stream)
    checker = RowChecker(limits, columns)
    sample = ReferenceSample()
    for row in _rows(stream, limits):
        problem = checker.add_unpacked(row) if is_parquet else checker.add(row)
        if problem is not None:
            sample.add(row.number, problem)
    report = checker.report
    return FileReport(
        "parquet" if is_parquet else "jsonl",
        report.num_rows,
        report.num_errors,
        report.errors,
        report.first_without_solution,
        references=sample.references,
    )


def first_problems(
    stream: IO[bytes], task: str, count: int, columns: Mapping[str, str] | None = None
) -> list[tuple[int, Problem]]:
    """Return number and problem of the first rows; raises RowError, which names the row, if `task` cannot read one."""
    reader, problems = RowReader(task, columns), []
    for row in islice(_rows(stream, RowLimits()), count):
        try:
            problems.append((row.number, reader.problem(row)))
        except RowError as error:
            raise RowError(error.field, f"row {row.number}: {error.message}") from error
    return problems


def load_libraries(stream: IO[bytes]) -> None:
    """Import what reads the file, so that it is loaded before the process's memory is limited."""
    if _is_parquet(stream):
        import pyarrow.parquet  # type: ignore[import-untyped]  # noqa: F401


class ReferenceSample:
    """A sample of a file's references of fixed size, each row as likely as any other."""

    def __init__(self) -> None:
        self.references: list[dict[str, Any]] = []
        self._num_seen = 0
        self._random = random.Random(0)

    def add(self, number: int, problem: Problem) -> None:
        """Take a problem into the sample, or not."""
        if not problem.answer or len(problem.answer) > _MAX_ANSWER:
            return
        self._num_seen += 1
        place = len(self.references)
        if place == MAX_REFERENCES:
            place = self._random.randrange(self._num_seen)
            if place >= MAX_REFERENCES:
                return
        solution = problem.solution[-_MAX_SOLUTION:] if problem.solution is not None else None
        self.references[place : place + 1] = [{"row": number, "answer": problem.answer, "solution": solution}]


def _is_parquet(stream: IO[bytes]) -> bool:
    stream.seek(0)
    is_parquet = stream.read(len(PARQUET_MAGIC)) == PARQUET_MAGIC
    stream.seek(0)
    return is_parquet


def _rows(stream: IO[bytes], limits: RowLimits) -> Iterator[RawRow]:
    return read_parquet(stream) if _is_parquet(stream) else read_lines(stream, limits)
