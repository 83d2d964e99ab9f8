"""Recognises a file of rows by its content alone, and decompresses it within a limit.

Read are JSON Lines, JSON arrays and CSV with a header, each also compressed by gzip or zstd, and Parquet. Other files
are refused with an error that says what they look like.
"""

from __future__ import annotations

import codecs
import gzip
import re
import zlib
from dataclasses import dataclass
from typing import IO, Literal, Protocol

from trd_data.errors import DataFileError, FileTooLargeError
from trd_data.shapes.choose import READ_COLUMNS

FileFormat = Literal["jsonl", "json", "csv", "parquet"]
Compression = Literal["gzip", "zstd"]

READ_FORMATS = "JSON Lines, JSON arrays and CSV with a header (each also as .gz or .zst), and Parquet can be read"
PARQUET_MAGIC = b"PAR1"
CSV_DELIMITERS = ",;\t|"

_HEAD_BYTES = 2**16
"""How much of a file is looked at."""
_BOM = codecs.BOM_UTF8
_COMPRESSIONS: dict[bytes, Compression] = {b"\x1f\x8b": "gzip", b"\x28\xb5\x2f\xfd": "zstd"}
_ZSTD_SKIPPABLE = re.compile(rb"[\x50-\x5f]\x2a\x4d\x18")
"""A frame that decompressors pass over; parallel compressors begin with one."""
_OTHER_FORMATS = {
    b"PK\x03\x04": "a zip archive (also .xlsx, .docx and .npz files are zip archives)",
    b"PK\x05\x06": "an empty zip archive",
    b"BZh": "a file compressed by bzip2",
    b"\xfd7zXZ\x00": "a file compressed by xz",
    b"\x04\x22\x4d\x18": "a file compressed by lz4",
    b"7z\xbc\xaf\x27\x1c": "a 7z archive",
    b"Rar!\x1a\x07": "a rar archive",
    b"ARROW1": "an Arrow IPC (Feather) file",
    b"\xff\xff\xff\xff": "an Arrow IPC stream",
    b"ORC": "an ORC file",
    b"Obj\x01": "an Avro file",
    b"SQLite format 3\x00": "an SQLite database",
    b"\x89HDF\r\n\x1a\n": "an HDF5 file",
    b"\xd0\xcf\x11\xe0\xa1\xb1\x1a\xe1": "an old Excel or Word file",
    b"%PDF": "a PDF document",
    b"\x89PNG": "a PNG image",
    b"\xff\xd8\xff": "a JPEG image",
    b"GIF8": "a GIF image",
    b"\x7fELF": "a program",
    b"\x93NUMPY": "a NumPy array",
    b"GGUF": "a GGUF model",
    b"version https://git-lfs": "a Git LFS pointer, which stands for the file itself; run git lfs pull",
    b"\xff\xfe": "text in UTF-16; save it as UTF-8",
    b"\xfe\xff": "text in UTF-16; save it as UTF-8",
}
"""First bytes of files that are not read, and what to call them."""
_PICKLE = re.compile(rb"\x80[\x02-\x05][\x95(c}\]]")
_MARKUP = re.compile(rb"\s*<(!doctype|html|\?xml|head|body|!--)", re.IGNORECASE)


class Readable(Protocol):
    """What is needed of a stream."""

    def read(self, size: int = ..., /) -> bytes:
        """Return up to `size` bytes, none at the end."""
        ...


@dataclass(frozen=True)
class OpenedFile:
    """A file whose format is known."""

    format: FileFormat
    compression: Compression | None
    stream: Unpacked
    """Its decompressed bytes from the start."""
    head: bytes
    """The first of them."""


class Unpacked:
    """Decompressed bytes of a file; raises `FileTooLargeError` once they are more than `max_bytes`."""

    def __init__(self, stream: Readable, max_bytes: int, compression: Compression | None = None) -> None:
        """`compression`: what `stream` decompresses, for errors."""
        self._stream = stream
        self._max_bytes = max_bytes
        self._compression = compression
        self._waiting = b""
        self.num_bytes = 0
        """Bytes read so far."""

    def read(self, size: int, /) -> bytes:
        """Return up to `size` bytes, none at the end."""
        if self._waiting:
            content, self._waiting = self._waiting[:size], self._waiting[size:]
            return content
        return self._next(size)

    def head(self) -> bytes:
        """Return the first bytes, which the next call of `read` returns again."""
        while len(self._waiting) < _HEAD_BYTES and (content := self._next(_HEAD_BYTES)):
            self._waiting += content
        return self._waiting

    def _next(self, size: int) -> bytes:
        try:
            content = self._stream.read(size)
        except (OSError, EOFError, zlib.error) as error:  # Arrow's are OSErrors
            if self._compression is None:
                raise
            raise DataFileError(f"the {self._compression} data is damaged or cut off: {error}"[:300]) from error
        self.num_bytes += len(content)
        if self.num_bytes > self._max_bytes:
            raise FileTooLargeError(f"the file unpacks to more than {self._max_bytes} bytes of rows; split it")
        return content


def open_rows(stream: IO[bytes], max_bytes: int = 2**62) -> OpenedFile:
    """Return the file's format and its decompressed bytes, at most `max_bytes`; raises `DataFileError`, also while the
    bytes are read."""
    stream.seek(0)
    packed = Unpacked(stream, max_bytes)
    head = packed.head()
    compression = _compression(head)
    if compression is None:
        return OpenedFile(recognise(head), None, packed, head)
    stream.seek(0)
    unpacked = Unpacked(_decompressed(stream, compression), max_bytes, compression)
    head = unpacked.head()
    if nested := _compression(head):
        raise DataFileError(f"the file is compressed twice, by {compression} around {nested}; unpack it once")
    try:
        inner = recognise(head)
    except DataFileError as error:
        raise DataFileError(f"inside of {compression}: {error}") from error
    if inner == "parquet":
        raise DataFileError(f"a Parquet file inside of {compression}; unpack it: Parquet is compressed by itself")
    return OpenedFile(inner, compression, unpacked, head)


def recognise(head: bytes) -> FileFormat:
    """Return the format of an uncompressed file that begins with `head`; raises `DataFileError` for other files."""
    if head.startswith(PARQUET_MAGIC):
        return "parquet"
    refused = _other_format(head)
    if refused is not None:
        raise DataFileError(f"the file looks like {refused}; {READ_FORMATS}")
    text = head.removeprefix(_BOM).lstrip()
    if not text:
        raise DataFileError(f"the file is empty: it has no rows; {READ_FORMATS}")
    first_line = text.partition(b"\n")[0].strip()
    if text.startswith(b"[") and (first_line == b"[" or text[1:].lstrip()[:1] in (b"{", b"]", b"")):
        return "json"
    if first_line == b"{":
        return "json"  # one object over several lines
    if text[:1] not in (b"{", b"[") and any(first_line.count(d.encode()) for d in CSV_DELIMITERS):
        return "csv"
    if first_line.strip(b'"').decode(errors="replace") in READ_COLUMNS:
        return "csv"  # of one column
    return "jsonl"


def needs_arrow(stream: IO[bytes]) -> bool:
    """Return whether pyarrow is needed to read the file."""
    stream.seek(0)
    head = stream.read(4)
    return head == PARQUET_MAGIC or _compression(head) == "zstd"


def _compression(head: bytes) -> Compression | None:
    for magic, name in _COMPRESSIONS.items():
        if head.startswith(magic):
            return name
    return "zstd" if _ZSTD_SKIPPABLE.match(head) else None


def _decompressed(stream: IO[bytes], compression: Compression) -> Readable:
    if compression == "gzip":
        return gzip.GzipFile(fileobj=stream)
    import pyarrow  # type: ignore[import-untyped]

    reader: Readable = pyarrow.CompressedInputStream(stream, "zstd")
    return reader


def _other_format(head: bytes) -> str | None:
    """Return what a file that is not read looks like; None if it may be text."""
    for magic, name in _OTHER_FORMATS.items():
        if head.startswith(magic):
            return name
    if head[257:262] == b"ustar":
        return "a tar archive"
    if _PICKLE.match(head):
        return "a Python pickle"
    if _MARKUP.match(head.removeprefix(_BOM)):
        return "a web page or XML, such as an error page that was saved instead of the data"
    if b"\0" in head:
        is_utf16 = head[1::2].count(0) > len(head) // 3 or head[::2].count(0) > len(head) // 3
        return "text in UTF-16; save it as UTF-8" if is_utf16 else "a binary file"
    return None
