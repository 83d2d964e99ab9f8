"""Limits on the headers of requests before the application sees them: their size, and the time in which they come.

uvicorn's fast parser, httptools, collects a header that never ends for as long as bytes arrive, from clients without a
key too, and uvicorn has no option against it. (Its slow parser, h11, has a limit on bytes.) uvicorn itself starts the
application, so the application puts the limits in when it starts. Imported only if httptools serves the process.
"""

from __future__ import annotations

import asyncio
import json
from typing import Any

from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

from service.errors import error_content

_REFUSALS = {
    400: (b"400 Bad Request", "invalid_http", "the request is not HTTP, or its address is too long"),
    408: (b"408 Request Timeout", "request_timeout", "the request's headers did not come in time"),
    431: (b"431 Request Header Fields Too Large", "headers_too_large", "the request's headers are too long"),
}


class LimitedProtocol(HttpToolsProtocol):
    """A connection that ends, with 431 and 408, if a request has too many bytes of headers or takes too long to send
    them.

    The limit on bytes also holds for what comes in place of a body's content: trailers, and extensions of chunks.
    """

    max_bytes = 2**16
    seconds = 20.0

    def __init__(self, *arguments: Any, **options: Any) -> None:
        super().__init__(*arguments, **options)
        self._awaits_headers = True
        self._num_bytes = 0
        self._timer: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        self._start_timer()

    def connection_lost(self, exc: Exception | None) -> None:
        self._stop_timer()
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        if self.transport.is_closing():
            return
        self._start_timer()
        self._num_bytes += len(data)
        super().data_received(data)
        if self._num_bytes > self.max_bytes and not self.transport.is_closing():
            self._refuse(431)

    def on_headers_complete(self) -> None:
        self._stop_timer()
        self._awaits_headers, self._num_bytes = False, 0
        # The parser reports trailers as headers: those must not join the ones that the application sees.
        self.scope["headers"] = list(self.headers)
        super().on_headers_complete()

    def on_body(self, body: bytes) -> None:
        self._num_bytes = 0
        super().on_body(body)

    def on_message_complete(self) -> None:
        self._awaits_headers, self._num_bytes = True, 0
        super().on_message_complete()

    def _start_timer(self) -> None:
        if self._timer is None and self._awaits_headers:
            self._timer = self.loop.call_later(self.seconds, self._refuse, 408)

    def _stop_timer(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _refuse(self, status: int) -> None:
        self._stop_timer()
        if self._awaits_headers and (self.cycle is None or self.cycle.response_complete):
            self._answer(status)
        else:  # an answer may have begun
            self.transport.abort()

    def send_400_response(self, msg: str) -> None:
        """Answer what the parser cannot read; its own message says nothing that helps."""
        self._answer(400)

    def _answer(self, status: int) -> None:
        """Send the document's error, as the application would, and close the connection."""
        line, code, message = _REFUSALS[status]
        body = json.dumps(error_content(message, type="invalid_request_error", code=code)).encode()
        head = b"HTTP/1.1 %s\r\ncontent-type: application/json\r\nx-content-type-options: nosniff\r\n"
        end = b"content-length: %d\r\nconnection: close\r\n\r\n%s"
        self.transport.write(head % line + end % (len(body), body))
        self.transport.close()


def limit_headers(max_bytes: int, seconds: float) -> None:
    """Let connections that begin from now on be `LimitedProtocol`s."""
    LimitedProtocol.max_bytes, LimitedProtocol.seconds = max_bytes, seconds
    # The server holds the parent class already, and calls it for each connection.
    HttpToolsProtocol.__new__ = lambda _class, *_arguments, **_options: object.__new__(LimitedProtocol)  # type: ignore[assignment, method-assign]
