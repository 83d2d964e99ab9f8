"""From raw rows to problems: texts that can be stored, ids that differ, and the limits of a file."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass

from trd_data.errors import RowError
from trd_data.plain_json import text_fault, texts
from trd_data.readers import RawRow
from trd_data.shapes.choose import Reading, columns_needed, read_for, readings

MAX_LISTED = 100
"""Errors of one file that are listed; more are counted."""


@dataclass(frozen=True)
class ListedError:
    """What is wrong with one row."""

    row: int
    """Its number, see `readers`."""
    field: str | None
    """None if the row as a whole is at fault."""
    message: str


class RowReader:
    """Turns the rows of one file into problems whose ids differ."""

    def __init__(self, task: str | None = None, columns: Mapping[str, str] | None = None) -> None:
        """`task`: the one whose `reading` is asked for. `columns`: as for `shapes.choose.read_for`."""
        self._task = task
        self._columns = columns or {}
        self._columns_needed = columns_needed(self._columns)
        self._seen_ids: set[int] = set()

    def reading(self, row: RawRow) -> Reading:
        """Return the problem in a row with what it was read from; raises RowError. The reader has a task."""
        assert self._task is not None
        self._require_readable(row)
        found = read_for(row.values, row.number, self._task, self._columns)
        self._require_new_id(found.required().id)
        return found

    def readings(self, row: RawRow) -> dict[str, Reading]:
        """Return what a row means to each task; raises RowError if it is wrong for all of them."""
        self._require_readable(row)
        found = readings(row.values, row.number, self._columns)
        for row_id in {reading.problem.id for reading in found.values() if reading.problem is not None}:
            self._require_new_id(row_id)
        return found

    def _require_readable(self, row: RawRow) -> None:
        """Raise RowError if the row was not read, or if a text that some shape reads holds NUL, which no database
        stores, or half a surrogate pair, which is not UTF-8."""
        if row.error is not None:
            raise RowError(None, row.error)
        for name, value in row.values.items():
            if (fault := text_fault(name)) is not None:
                raise RowError(None, f"{name.encode('ascii', 'backslashreplace').decode()[:60]}: {fault}")
            if value is not None and name in self._columns_needed:
                for text in (value,) if isinstance(value, str) else texts(value):
                    if (fault := text_fault(text)) is not None:
                        raise RowError(name, f"{name[:60]}: {fault}")

    def _require_new_id(self, row_id: str) -> None:
        # 64 bits per row instead of the ids themselves, because a file may have a million rows.
        digest = int.from_bytes(hashlib.blake2b(row_id.encode(), digest_size=8).digest())
        if digest in self._seen_ids:
            raise RowError("id", f"id = {row_id}: an earlier row has it; ids must differ")
        self._seen_ids.add(digest)
