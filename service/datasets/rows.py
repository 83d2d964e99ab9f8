"""What a row must be, checked without keeping it.

A row is a JSON object with ``problem`` and ``answer``, and optionally ``solution`` and ``id``. Other
fields are kept for the task. Answers and ids may be numbers; a solution that is null or blank is none.
Lines are numbered from 1, as an editor shows them; blank lines count, but are no rows.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from typing import Any, NoReturn

from service.bodies import holds_unstorable_text, nests_deeper
from service.errors import PayloadTooLargeError
from service.settings import UploadLimits

MAX_ERRORS = 100
MAX_ID_CHARACTERS = 100
"""What the trajectories' table holds."""

_BOM = b"\xef\xbb\xbf"


@dataclass(frozen=True)
class RowProblem:
    """One thing that is wrong with one row."""

    row: int
    """Its line, from 1."""
    field: str | None
    """None: the row as a whole."""
    message: str

    def as_dict(self) -> dict[str, Any]:
        """For the answer to the client."""
        return asdict(self)


class RowChecker:
    """Takes a file's bytes in pieces of any size, and finds what is wrong with its rows.

    Holds one line at a time. `feed` and `finish` raise `PayloadTooLargeError` past the limits on bytes
    and rows.
    """

    def __init__(self, limits: UploadLimits) -> None:
        self._limits = limits
        self._rest = bytearray()
        self._line_number = 0
        self._skips_to_newline = False
        self._seen_ids: set[int] = set()
        self.problems: list[RowProblem] = []
        self.num_problems = 0
        """All that were found; `problems` holds the first of them."""
        self.num_rows = 0
        self.num_bytes = 0
        self.first_without_solution: int | None = None

    def feed(self, content: bytes) -> None:
        """The next piece of the file."""
        self.num_bytes += len(content)
        if self.num_bytes > self._limits.max_bytes:
            raise PayloadTooLargeError(
                f"the file is over the limit of {self._limits.max_bytes} bytes; split it", code="dataset_too_large"
            )
        first, *others = content.split(b"\n")
        self._append(first)
        for line in others:
            self._end_line()
            self._append(line)

    def finish(self) -> None:
        """The file is complete."""
        if self._rest or self._skips_to_newline:
            self._end_line()

    def _append(self, content: bytes) -> None:
        if self._skips_to_newline:
            return
        self._rest += content
        if len(self._rest) > self._limits.max_line_bytes:
            self._skips_to_newline = True
            self._rest.clear()

    def _end_line(self) -> None:
        self._line_number += 1
        line, is_too_long = bytes(self._rest), self._skips_to_newline
        self._rest.clear()
        self._skips_to_newline = False
        if is_too_long:
            self._count_row()
            self._add(RowProblem(self._line_number, None, f"longer than {self._limits.max_line_bytes} bytes"))
            return
        if self._line_number == 1:
            line = line.removeprefix(_BOM)
        if line.strip():
            self._count_row()
            self._check(line)

    def _count_row(self) -> None:
        self.num_rows += 1
        if self.num_rows > self._limits.max_rows:
            raise PayloadTooLargeError(
                f"the file has more than the {self._limits.max_rows} rows that are allowed; split it",
                code="dataset_too_large",
            )

    def _check(self, line: bytes) -> None:
        row = _parse(line, self._limits.max_json_depth)
        if isinstance(row, str):
            self._add(RowProblem(self._line_number, None, row))
            return
        for field, message in _field_problems(row):
            self._add(RowProblem(self._line_number, field, message))
        self._check_repeated_id(row.get("id"))
        solution = row.get("solution")
        if self.first_without_solution is None and not (isinstance(solution, str) and solution.strip()):
            self.first_without_solution = self._line_number

    def _check_repeated_id(self, row_id: object) -> None:
        if not isinstance(row_id, str | int):
            return
        # 64 bits a row instead of the ids themselves: a million rows may come.
        digest = int.from_bytes(hashlib.blake2b(str(row_id).encode(), digest_size=8).digest())
        if digest in self._seen_ids:
            message = f"id = {_shown(row_id)}: an earlier row has it; ids must differ"
            self._add(RowProblem(self._line_number, "id", message))
        self._seen_ids.add(digest)

    def _add(self, problem: RowProblem) -> None:
        self.num_problems += 1
        if len(self.problems) < MAX_ERRORS:
            self.problems.append(problem)


def _parse(line: bytes, max_depth: int) -> dict[str, Any] | str:
    """The row, or what is wrong with the line."""
    if nests_deeper(line, max_depth):
        return f"nests more than {max_depth} levels deep"
    try:
        row = json.loads(line.decode(), parse_constant=_refuse_constant)
    except UnicodeDecodeError as error:
        return f"not UTF-8: {error.reason} at byte {error.start + 1} of the line"
    except json.JSONDecodeError as error:
        return f"not valid JSON: {error.msg} at character {error.pos + 1} of the line"
    except ValueError as error:
        return f"not valid JSON: {error}"
    if not isinstance(row, dict):
        return f"must be a JSON object, not {_kind(row)}"
    if holds_unstorable_text(line, row):
        return "holds \\u0000 or half a surrogate pair, which is no text; remove it"
    return row


def _refuse_constant(name: str) -> NoReturn:
    raise ValueError(f"{name} is not a JSON value")


def _field_problems(row: dict[str, Any]) -> Iterator[tuple[str, str]]:
    yield from _required(row, "problem", numbers=False)
    yield from _required(row, "answer", numbers=True)
    solution = row.get("solution")
    if solution is not None and not isinstance(solution, str):
        yield "solution", f"solution = {_shown(solution)}: must be a string, not {_kind(solution)}"
    row_id = row.get("id")
    if row_id is not None and (isinstance(row_id, bool) or not isinstance(row_id, str | int)):
        yield "id", f"id = {_shown(row_id)}: must be a string or an integer, not {_kind(row_id)}"
    elif row_id is not None and not 1 <= len(str(row_id)) <= MAX_ID_CHARACTERS:
        yield "id", f"id = {_shown(row_id)}: must have 1 to {MAX_ID_CHARACTERS} characters"


def _required(row: dict[str, Any], field: str, *, numbers: bool) -> Iterator[tuple[str, str]]:
    if row.get(field) is None:
        there = ", ".join(map(str, list(row)[:10])) or "none"
        yield field, f"{field}: this field is required; the row's fields: {there[:200]}"
        return
    value = row[field]
    wanted = "a string or a number" if numbers else "a string"
    is_number = numbers and isinstance(value, int | float) and not isinstance(value, bool)
    if not isinstance(value, str) and not is_number:
        yield field, f"{field} = {_shown(value)}: must be {wanted}, not {_kind(value)}"
    elif isinstance(value, str) and not value.strip():
        yield field, f"{field} = {_shown(value)}: must not be empty"


def _kind(value: object) -> str:
    kinds = {dict: "an object", list: "a list", str: "a string", bool: "a boolean", type(None): "null"}
    return kinds.get(type(value), "a number")


def _shown(value: object) -> str:
    text = json.dumps(value, ensure_ascii=False)
    return text if len(text) <= 60 else text[:57] + "..."
