"""Reads rows from JSON Lines, from a JSON array, and from objects that each extend over several lines.

One row at a time is in memory, whatever the size of the file.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from typing import Any

from trd_data.errors import FileTooLargeError
from trd_data.formats import READ_FORMATS, Unpacked
from trd_data.plain_json import WrittenFloat, nests_deeper
from trd_data.shapes.fields import type_name
from trd_data.unique_json import refuse_constant, unique_object

_BOM = b"\xef\xbb\xbf"
MAX_BLANK_LINES = 100_000
_CHUNK_BYTES = 2**20
# A string that is not closed extends to the end, and its group is empty.
_TOKENS = re.compile(rb'"(?:[^"\\]+|\\.)*("?)|[\[{]|[\]}]', re.DOTALL)

JsonRow = dict[str, Any] | str
"""A row, or what is wrong with it."""


def json_lines(stream: Unpacked, max_row_bytes: int, max_depth: int) -> Iterator[tuple[int, JsonRow]]:
    """Yield number and row of each line that is not blank."""
    num_blank = 0
    for number, line in enumerate(_lines(stream, max_row_bytes), start=1):
        line = line.removeprefix(_BOM) if number == 1 else line
        if len(line) > max_row_bytes:
            yield number, f"longer than {max_row_bytes} bytes"
        elif line.strip():
            row = _parsed(line, max_depth, "of the line")
            # If even the first row is not one, the file may be of a format that is not read.
            yield number, f"{row}; {READ_FORMATS}" if number == 1 and isinstance(row, str) else row
        else:
            num_blank += 1
            if num_blank > MAX_BLANK_LINES:
                raise FileTooLargeError(f"the file has more than {MAX_BLANK_LINES} blank lines; remove them")


def _lines(stream: Unpacked, max_bytes: int) -> Iterator[bytes]:
    """Yield the lines of a stream; of a line that is too long, the first `max_bytes` + 1 bytes."""
    line = bytearray()
    while content := stream.read(_CHUNK_BYTES):
        first, *others = content.split(b"\n")
        line += first[: max_bytes + 1 - len(line)]
        for piece in others:
            yield bytes(line)
            line = bytearray(piece[: max_bytes + 1])
    if line:
        yield bytes(line)


def json_values(stream: Unpacked, max_row_bytes: int, max_depth: int) -> Iterator[tuple[int, JsonRow]]:
    """Yield number and row of each element of an array, or of each object of a file without one."""
    cutter = _Cutter(stream, max_row_bytes)
    number = 0
    for number, (gap, element) in enumerate(cutter.elements(), start=1):
        if gap != (b"," if cutter.is_array and number > 1 else b""):
            yield number, _stray(gap)
        else:
            yield number, _parsed(element, max_depth, "of the row")
    if cutter.fault is not None:
        yield number + 1, cutter.fault


class _Cutter:
    """Cuts the objects out of a stream of JSON by its brackets alone, so that an error within one ends no other."""

    def __init__(self, stream: Unpacked, max_row_bytes: int) -> None:
        self._stream = stream
        self._max_row_bytes = max_row_bytes
        self._buffer = stream.read(_CHUNK_BYTES).removeprefix(_BOM).lstrip()
        self.is_array = self._buffer.startswith(b"[")
        self._place = self._end = int(self.is_array)
        """Up to where the buffer was searched, and where the last element ends."""
        self._start = 0
        """Where the current element starts."""
        self.fault: str | None = None
        """What is wrong after the last element."""

    def elements(self) -> Iterator[tuple[bytes, bytes]]:
        """Yield what stands before each element, without spaces, and the element."""
        depth = 0
        while (bracket := self._next_bracket()) is not None:
            if bracket in b"[{":
                self._start = self._place - 1 if depth == 0 else self._start
                depth += 1
                continue
            if depth == 0:
                gap = self._buffer[self._end : self._place - 1].strip()
                rest = self._buffer[self._place :] + self._stream.read(1000)
                if bracket == b"]" and self.is_array and not gap:
                    self.fault = f"there is text after the array: {_shown(rest)}" if rest.strip() else None
                else:
                    self.fault = _stray(gap or bracket)
                return
            depth -= 1
            if depth == 0:
                yield self._buffer[self._end : self._start].strip(), self._buffer[self._start : self._place]
                self._end = self._place
        if self.fault is None and (depth or self.is_array):
            self.fault = "the file ends within a row" if depth else "the file ends before its array does; is it cut?"
        elif self.fault is None and self._buffer[self._end :].strip():
            self.fault = _stray(self._buffer[self._end :])

    def _next_bracket(self) -> bytes | None:
        """Return the next bracket outside of strings, with `_place` behind it; None at the end or if there is none
        within the length of a row."""
        while True:
            token = _TOKENS.search(self._buffer, self._place)
            if token is not None and token[1] != b"":
                self._place = token.end()
                if token[1] is None:
                    return token.group()
                continue
            self._place = len(self._buffer) if token is None else token.start()
            if len(self._buffer) - self._end > self._max_row_bytes:
                self.fault = f"longer than {self._max_row_bytes} bytes; the rest of the file was not read"
                return None
            # As much as there is of the element, so that the start of a long text is searched few times.
            more = self._stream.read(max(_CHUNK_BYTES, len(self._buffer) - self._end))
            if not more:
                return None
            self._buffer = self._buffer[self._end :] + more
            self._place, self._start, self._end = self._place - self._end, self._start - self._end, 0


def _stray(text: bytes) -> str:
    return f"must be a JSON object, with one comma between two of an array, not {_shown(text)}"


def _shown(text: bytes) -> str:
    return repr(text.strip()[:40].decode("utf-8", "replace"))


def _parsed(content: bytes, max_depth: int, of_what: str) -> JsonRow:
    if nests_deeper(content, max_depth):
        return f"nests more than {max_depth} levels deep"
    try:
        values = json.loads(
            content.decode(),
            parse_float=WrittenFloat,
            parse_constant=refuse_constant,
            object_pairs_hook=unique_object,
        )
    except UnicodeDecodeError as error:
        return f"not UTF-8: {error.reason} at byte {error.start + 1} {of_what}"
    except json.JSONDecodeError as error:
        return f"not valid JSON: {error.msg} at character {error.pos + 1} {of_what}"
    except ValueError as error:
        return f"not valid JSON: {error}"
    return values if isinstance(values, dict) else f"must be a JSON object, not {type_name(values)}"
