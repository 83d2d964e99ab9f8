"""The body of an upload: raw rows, or the file of a multipart form, passed on while it arrives instead of spooled."""

from __future__ import annotations

from collections.abc import AsyncIterable, Awaitable, Callable
from contextlib import suppress
from dataclasses import dataclass, field

from python_multipart.exceptions import FormParserError
from python_multipart.multipart import MultipartParser, parse_options_header
from starlette.requests import Request

from service.errors import ApiError, InvalidRequestError, MediaTypeError

RAW_TYPES = frozenset(
    {
        "application/gzip",
        "application/json",
        "application/jsonl",
        "application/jsonlines",
        "application/octet-stream",
        "application/vnd.apache.parquet",
        "application/x-jsonlines",
        "application/x-ndjson",
        "application/zstd",
        "text/csv",
        "text/tab-separated-values",
    }
)
"""Media types of a raw body. Whichever is given, the format is recognised by the content."""
MAX_FIELD_BYTES = 10_000
MAX_PARTS = 20

Sink = Callable[[bytes], Awaitable[None]]


@dataclass
class Form:
    """What came with the file."""

    filename: str | None = None
    """None if no part was a file."""
    fields: dict[str, str] = field(default_factory=dict)


@dataclass
class _Part:
    name: str = ""
    filename: str | None = None
    content: bytearray = field(default_factory=bytearray)


class _Parser:
    """Turns the parser's callbacks into parts; what belongs to the file waits in `pending`."""

    def __init__(self, boundary: bytes) -> None:
        self.form = Form()
        self.pending: list[bytes] = []
        self.is_complete = False
        self._part = _Part()
        self._num_parts = 0
        self._header_name = bytearray()
        self._header_value = bytearray()
        self._parser = MultipartParser(
            boundary,
            {
                "on_part_begin": self._begin_part,
                "on_header_field": lambda data, start, end: self._header_name.extend(data[start:end]),
                "on_header_value": lambda data, start, end: self._header_value.extend(data[start:end]),
                "on_header_end": self._end_header,
                "on_headers_finished": self._end_headers,
                "on_part_data": self._take,
                "on_part_end": self._end_part,
                "on_end": self._end,
            },
        )

    def write(self, content: bytes) -> None:
        self._parser.write(content)

    def _begin_part(self) -> None:
        self._part = _Part()
        self._num_parts += 1
        if self._num_parts > MAX_PARTS:
            raise InvalidRequestError(f"the form has more than {MAX_PARTS} parts", code="invalid_form")

    def _end_header(self) -> None:
        if self._header_name.lower() == b"content-disposition":
            _, options = parse_options_header(bytes(self._header_value))
            self._part.name = options.get(b"name", b"").decode("utf-8", "replace")
            if b"filename" in options:
                self._part.filename = options[b"filename"].decode("utf-8", "replace")
        self._header_name.clear()
        self._header_value.clear()

    def _end_headers(self) -> None:
        if self._part.filename is None:
            return
        if self.form.filename is not None:
            raise InvalidRequestError("the form has more than one file; send one at a time", code="invalid_form")
        self.form.filename = self._part.filename

    def _take(self, data: bytes, start: int, end: int) -> None:
        if self._part.filename is not None:
            self.pending.append(data[start:end])
            return
        self._part.content += data[start:end]
        if len(self._part.content) > MAX_FIELD_BYTES:
            raise InvalidRequestError(
                f"{self._part.name}: a form field may have {MAX_FIELD_BYTES} bytes; the rows belong in a file part",
                code="invalid_form",
                param=self._part.name,
            )

    def _end_part(self) -> None:
        if self._part.filename is None:
            self.form.fields[self._part.name] = self._part.content.decode("utf-8", "replace")

    def _end(self) -> None:
        self.is_complete = True


class UploadBody:
    """The rows in a request's body."""

    def __init__(self, request: Request, *, check_form: Callable[[Form], None] | None = None) -> None:
        """With `check_form`, which checks the fields beside the file, the body must be a multipart form."""
        self._headers = request.headers
        self.receive = request.receive
        self._stream = request.stream()
        self._check_form = check_form

    async def feed(self, sink: Sink) -> Form:
        """Pass the file to `sink` piece by piece; return what came with it, nothing if the body is no form."""
        content_type = self._headers.get("content-type", "")
        media_type = content_type.partition(";")[0].strip().lower()
        if self._headers.get("content-encoding", "identity").lower() != "identity":
            raise MediaTypeError("content-encoding: send the rows uncompressed")
        if media_type == "multipart/form-data":
            form = await receive_form(content_type, self._stream, sink)
            if self._check_form is not None:
                self._check_form(form)
            return form
        if self._check_form is not None or media_type not in RAW_TYPES:
            raw = ", or the rows as application/jsonl, application/json, text/csv or application/vnd.apache.parquet"
            raw = raw if self._check_form is None else ""
            raise MediaTypeError(f"content-type = {media_type or 'none'}: send a multipart/form-data file{raw}")
        async for content in self._stream:
            await sink(content)
        return Form()

    async def drain(self) -> None:
        """Read the rest of the body: a client whose connection is cut while it sends never sees the answer."""
        with suppress(ApiError):  # the limit on the body's size applies here too
            async for _ in self._stream:
                pass


async def receive_form(content_type: str, stream: AsyncIterable[bytes], sink: Sink) -> Form:
    """Read a form to its end, its file into `sink`; raises `InvalidRequestError`."""
    _, options = parse_options_header(content_type)
    boundary = options.get(b"boundary")
    if not boundary:
        raise InvalidRequestError("content-type: multipart/form-data needs a boundary", code="invalid_form")
    try:
        parser = _Parser(boundary)
        async for content in stream:
            parser.write(content)
            for piece in parser.pending:
                await sink(piece)
            parser.pending.clear()
    except FormParserError as error:  # of a boundary that is too long, too
        raise InvalidRequestError(f"the form cannot be read: {error}", code="invalid_form") from error
    if not parser.is_complete:
        raise InvalidRequestError("the form ends before its closing boundary", code="invalid_form")
    if parser.form.filename is None:
        raise InvalidRequestError(
            "file: the form holds no file; send the rows as a file part, for example curl -F file=@rows.jsonl",
            code="invalid_form",
            param="file",
        )
    return parser.form
