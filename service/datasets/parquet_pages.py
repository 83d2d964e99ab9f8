"""The headers of a Parquet file's pages, read without unpacking a page.

What a file's index says of sizes is the writer's word. A reader goes by the pages' own headers, which it holds to
what it unpacks. Source: ``PageHeader`` of the Parquet format, in Thrift's compact protocol.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import dataclass
from typing import IO, Any

MAX_PAGES = 500_000
"""Of one file: writers make pages of a megabyte, at the least of 8 KiB."""
MAX_HEADER_DEPTH = 8
MAX_HEADER_ITEMS = 200
"""Fields and list items of one header. The format's own has some twenty."""

_DICTIONARIES = (2, 8)  # two names of one encoding
_DELTA_BYTE_ARRAY = 7
_TRUE, _FALSE, _BYTE, _DOUBLE, _BINARY, _LIST, _SET, _STRUCT = 1, 2, 3, 7, 8, 9, 10, 12
_INTEGERS = (4, 5, 6)


@dataclass(frozen=True)
class ColumnPages:
    """What the pages of one column, within one row group, come to."""

    num_bytes: int
    """Unpacked, and still encoded."""
    num_values: int
    """Nulls and empty lists among them."""
    dictionary_bytes: int
    """Unpacked, of the values that are written once."""
    num_looked_up: int
    """Values that only refer to the dictionary."""
    has_prefixes: bool
    """Values are written as what differs from the one before."""


class PageReader:
    """Walks the columns of one file."""

    def __init__(self, stream: IO[bytes]) -> None:
        self._stream = stream
        self._num_pages = 0

    def column(self, chunk: Any) -> ColumnPages:
        """Of pyarrow's ``ColumnChunkMetaData``; raises ValueError where the pages cannot be followed."""
        num_bytes = num_values = dictionary_bytes = num_looked_up = 0
        has_prefixes = False
        for header in self._headers(chunk):
            num_bytes += _size(header, 2)
            data = header.get(5) or header.get(8)
            if data is None:
                dictionary_bytes += _size(header, 2)
                continue
            num_values += _size(data, 1)
            encoding = data.get(2 if 5 in header else 4)
            num_looked_up += _size(data, 1) if encoding in _DICTIONARIES else 0
            has_prefixes |= encoding == _DELTA_BYTE_ARRAY
        return ColumnPages(num_bytes, num_values, dictionary_bytes, num_looked_up, has_prefixes)

    def _headers(self, chunk: Any) -> Iterator[dict[int, Any]]:
        start = chunk.data_page_offset
        if chunk.has_dictionary_page and 0 < chunk.dictionary_page_offset < start:
            start = chunk.dictionary_page_offset
        self._stream.seek(start)
        while self._stream.tell() < start + chunk.total_compressed_size:
            self._num_pages += 1
            if self._num_pages > MAX_PAGES:
                raise ValueError(f"more than {MAX_PAGES} pages; write larger ones")
            header = _CompactReader(self._stream).struct()
            yield header
            self._stream.seek(_size(header, 3), os.SEEK_CUR)


def _size(fields: dict[int, Any], number: int) -> int:
    size = fields.get(number)
    if not isinstance(size, int) or size < 0:
        raise ValueError("a page's header without a size")
    return size


class _CompactReader:
    """Thrift's compact protocol: a structure as a dictionary by its fields' numbers; texts are left out."""

    def __init__(self, stream: IO[bytes]) -> None:
        self._stream = stream
        self._num_items = 0

    def struct(self, depth: int = 0) -> dict[int, Any]:
        """The next structure."""
        if depth > MAX_HEADER_DEPTH:
            raise ValueError("a page's header nests too deep")
        fields: dict[int, Any] = {}
        number = 0
        while first := self._byte():
            number = number + (first >> 4) if first >> 4 else self._integer()
            kind = first & 15
            fields[number] = kind == _TRUE if kind in (_TRUE, _FALSE) else self._value(kind, depth)
        return fields

    def _value(self, kind: int, depth: int) -> Any:
        self._num_items += 1
        if self._num_items > MAX_HEADER_ITEMS:
            raise ValueError("a page's header holds too much")
        if kind in _INTEGERS:
            return self._integer()
        if kind == _STRUCT:
            return self.struct(depth + 1)
        if kind in (_LIST, _SET):
            return self._list(depth)
        lengths = {_TRUE: 1, _FALSE: 1, _BYTE: 1, _DOUBLE: 8}
        self._stream.seek(self._varint() if kind == _BINARY else lengths[kind], os.SEEK_CUR)
        return None

    def _list(self, depth: int) -> list[Any]:
        first = self._byte()
        count = first >> 4 if first >> 4 < 15 else self._varint()
        return [self._value(first & 15, depth + 1) for _ in range(count)]

    def _integer(self) -> int:
        value = self._varint()
        return (value >> 1) ^ -(value & 1)

    def _varint(self) -> int:
        value = 0
        for shift in range(0, 70, 7):
            byte = self._byte()
            value |= (byte & 127) << shift
            if byte < 128:
                return value
        raise ValueError("a number without an end")

    def _byte(self) -> int:
        content = self._stream.read(1)
        if not content:
            raise ValueError("a page's header without an end")
        return content[0]
