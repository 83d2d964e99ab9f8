"""What is found in a file's rows, in whatever format they come."""

from __future__ import annotations

import hashlib
from dataclasses import asdict, dataclass
from typing import Any

from service.datasets.shapes import inspect_row
from service.errors import PayloadTooLargeError
from service.settings import UploadLimits

MAX_ERRORS = 100


@dataclass(frozen=True)
class RowProblem:
    """One thing that is wrong with one row."""

    row: int
    """Its line in JSONL, as an editor shows it, else its place; from 1."""
    field: str | None
    """None: the row as a whole."""
    message: str

    def as_dict(self) -> dict[str, Any]:
        """For the answer to the client."""
        return asdict(self)


class RowLedger:
    """Takes rows one by one, keeps none, and remembers what is wrong with them."""

    def __init__(self, limits: UploadLimits) -> None:
        self._max_rows = limits.max_rows
        self._seen_ids: set[int] = set()
        self.problems: list[RowProblem] = []
        self.num_problems = 0
        """All that were found; `problems` holds the first of them."""
        self.num_rows = 0
        self.first_without_solution: int | None = None

    def add(self, number: int, row: dict[str, Any]) -> None:
        """A row that could be read; raises `PayloadTooLargeError` past the limit on rows."""
        self._count()
        findings = inspect_row(row)
        for problem in findings.problems:
            self._note(RowProblem(number, problem.field, problem.message))
        if findings.row_id is not None:
            self._check_repeated_id(number, findings.row_id)
        if self.first_without_solution is None and not findings.has_solution:
            self.first_without_solution = number

    def add_unreadable(self, number: int, reason: str) -> None:
        """A row that could not be read."""
        self._count()
        self._note(RowProblem(number, None, reason))

    def _count(self) -> None:
        self.num_rows += 1
        if self.num_rows > self._max_rows:
            raise PayloadTooLargeError(
                f"the file has more than the {self._max_rows} rows that are allowed; split it",
                code="dataset_too_large",
            )

    def _check_repeated_id(self, number: int, row_id: str) -> None:
        # 64 bits a row instead of the ids themselves: a million rows may come.
        digest = int.from_bytes(hashlib.blake2b(row_id.encode(), digest_size=8).digest())
        if digest in self._seen_ids:
            self._note(RowProblem(number, "id", f"id = {row_id}: an earlier row has it; ids must differ"))
        self._seen_ids.add(digest)

    def _note(self, problem: RowProblem) -> None:
        self.num_problems += 1
        if len(self.problems) < MAX_ERRORS:
            self.problems.append(problem)
