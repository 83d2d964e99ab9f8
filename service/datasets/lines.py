"""Rows as JSON Lines, cut out of a stream.

Lines are numbered from 1, as an editor shows them; blank lines count, but are no rows.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import IO, Any, NoReturn

from service.bodies import holds_unstorable_text, nests_deeper
from service.datasets.rows import RowLedger
from service.datasets.shapes import type_name
from service.settings import UploadLimits

_BOM = b"\xef\xbb\xbf"


class LineReader:
    """Takes a file's bytes in pieces of any size, and gives its rows to a ledger. Holds one line at a time."""

    def __init__(self, ledger: RowLedger, limits: UploadLimits) -> None:
        self._ledger = ledger
        self._limits = limits
        self._rest = bytearray()
        self._number = 0
        self._skips_to_newline = False

    def feed(self, content: bytes) -> None:
        """The next piece of the file."""
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
        self._number += 1
        line, is_too_long = bytes(self._rest), self._skips_to_newline
        self._rest.clear()
        self._skips_to_newline = False
        if is_too_long:
            self._ledger.add_unreadable(self._number, f"longer than {self._limits.max_line_bytes} bytes")
            return
        if self._number == 1:
            line = line.removeprefix(_BOM)
        if line.strip():
            self._take(line)

    def _take(self, line: bytes) -> None:
        row = _parse(line, self._limits.max_json_depth)
        if isinstance(row, str):
            self._ledger.add_unreadable(self._number, row)
        else:
            self._ledger.add(self._number, row)


def first_rows(stream: IO[bytes]) -> Iterator[tuple[int, dict[str, Any]]]:
    """Number and row of each line of a file that was accepted."""
    for number, line in enumerate(stream, start=1):
        text = line.removeprefix(_BOM) if number == 1 else line
        if text.strip():
            yield number, json.loads(text)


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
        return f"must be a JSON object, not {type_name(row)}"
    if holds_unstorable_text(line, row):
        return "holds \\u0000 or half a surrogate pair, which is no text; remove it"
    return row


def _refuse_constant(name: str) -> NoReturn:
    raise ValueError(f"{name} is not a JSON value")
