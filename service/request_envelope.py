"""Middleware around every request: its id, the limits on headers and body, its log line, and the last error handler, so
that a client sees our error shape whatever happens.
"""

from __future__ import annotations

import asyncio
import logging
import re
import time
import uuid
from datetime import UTC, datetime

from opentelemetry.trace import Span, SpanKind, StatusCode
from starlette.datastructures import Headers, MutableHeaders
from starlette.requests import ClientDisconnect
from starlette.responses import JSONResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from contract.tracing import continued, span
from service.errors import (
    ApiError,
    InvalidRequestError,
    PayloadTooLargeError,
    RequestTimeoutError,
    error_content,
    error_response,
)
from service.metrics import RequestMetrics, method_and_route
from service.outages import outage
from service.settings import Settings

logger = logging.getLogger("service.requests")

REQUEST_ID = "x-request-id"
MULTIPART_OVERHEAD_BYTES = 100_000
"""Bytes of boundaries and fields around a file."""

MAX_HEADERS = 200

_REQUEST_ID = re.compile(r"^[\w.-]{1,128}$", re.ASCII)
_UPLOADS = frozenset({("POST", "/datasets"), ("POST", "/v1/files")})


class RequestEnvelope:
    """The outermost of our middlewares."""

    def __init__(self, app: ASGIApp, settings: Settings, metrics: RequestMetrics) -> None:
        self._app = app
        self._settings = settings
        self._metrics = metrics

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        headers = Headers(scope=scope)
        given = headers.get(REQUEST_ID, "")
        answer = _Answer(send, given if _REQUEST_ID.match(given) else f"req_{uuid.uuid4().hex}")
        origin = {"request_id": answer.request_id, "traceparent": headers.get("traceparent", "")}
        with (
            continued(origin),
            span("request", SpanKind.SERVER) as made,
        ):
            try:
                await self._answered(scope, receive, answer)
            finally:
                if made.is_recording():
                    _describe(made, scope, answer)

    async def _answered(self, scope: Scope, receive: Receive, answer: _Answer) -> None:
        scope.setdefault("state", {}).update(request_id=answer.request_id, received_at=datetime.now(UTC))
        began = time.perf_counter()
        try:
            self._check(scope)
            await self._app(scope, self._limited(scope, receive), answer.send)
        except ClientDisconnect:
            answer.status = answer.status or 499  # no client is left to read an answer
        except ApiError as error:
            await answer.give(error_response(error), scope, receive)
        except Exception as error:
            logger.exception("unhandled", extra={"request_id": answer.request_id, "path": scope["path"]})
            refusal = outage(error)
            response = error_response(refusal) if refusal is not None else _defect(answer.request_id)
            await answer.give(response, scope, receive)
        finally:
            ended = time.perf_counter()
            self._metrics.answered(scope, answer.status, (answer.began_at or ended) - began)
            caller = scope["state"].get("caller")
            logger.info(
                "%s %s %s",
                scope["method"],
                scope["path"],
                answer.status,
                extra={
                    "request_id": answer.request_id,
                    "method": scope["method"],
                    "path": scope["path"],
                    "status": answer.status,
                    "milliseconds": round((ended - began) * 1000, 1),
                    "key_id": caller.key_id if caller is not None else None,
                },
            )

    def _check(self, scope: Scope) -> None:
        num_bytes = sum(len(name) + len(value) for name, value in scope["headers"])
        if num_bytes > self._settings.max_header_bytes:
            raise PayloadTooLargeError(
                f"the headers have {num_bytes} bytes; at most {self._settings.max_header_bytes} are allowed"
            )
        if len(scope["headers"]) > MAX_HEADERS:
            raise PayloadTooLargeError(f"the request has more than {MAX_HEADERS} headers")
        if "\0" in scope["path"] or b"%00" in scope["query_string"]:
            raise InvalidRequestError("the path or query contains a NUL character; remove it")
        declared = Headers(scope=scope).get("content-length", "0")
        limit = self._max_body(scope)
        if declared.isascii() and declared.isdigit() and int(declared[:20]) > limit:
            raise _too_large(limit)

    def _max_body(self, scope: Scope) -> int:
        if (scope["method"], scope["path"]) in _UPLOADS:
            return self._settings.max_upload_bytes + MULTIPART_OVERHEAD_BYTES
        return self._settings.max_body_bytes

    def _limited(self, scope: Scope, receive: Receive) -> Receive:
        limit, seconds = self._max_body(scope), self._settings.body_idle_seconds
        num_bytes, is_complete, is_idle = 0, False, False

        async def limited() -> Message:
            nonlocal num_bytes, is_complete, is_idle
            if is_idle:
                raise _idle(seconds)
            try:
                async with asyncio.timeout(None if is_complete else seconds):
                    message = await receive()
            except TimeoutError:
                is_idle = True
                raise _idle(seconds) from None
            is_complete = not message.get("more_body", False)
            num_bytes += len(message.get("body", b""))
            if num_bytes > limit:
                raise _too_large(limit)
            return message

        return limited


class _Answer:
    """What is sent, with the request's id on it."""

    def __init__(self, send: Send, request_id: str) -> None:
        self._send = send
        self.request_id = request_id
        self.status: int | None = None
        self.began_at: float | None = None

    async def send(self, message: Message) -> None:
        if message["type"] == "http.response.start":
            self.began_at = time.perf_counter()
            self.status = message["status"]
            headers = MutableHeaders(scope=message)
            headers[REQUEST_ID] = self.request_id
            headers["x-content-type-options"] = "nosniff"  # what users stored is never a page or a script
            headers.setdefault("content-security-policy", "default-src 'none'; frame-ancestors 'none'")
        await self._send(message)

    async def give(self, response: JSONResponse, scope: Scope, receive: Receive) -> None:
        """Answer, unless an answer has begun: that one can only be cut off, by raising."""
        if self.status is not None:
            raise ConnectionAbortedError("the answer had begun when the request failed")
        await response(scope, receive, self.send)


def _describe(made: Span, scope: Scope, answer: _Answer) -> None:
    method, route = method_and_route(scope)
    made.update_name(f"{method} {route}")
    status = answer.status or 499
    made.set_attributes({"http.request.method": method, "http.route": route, "http.response.status_code": status})
    made.set_attribute("trd.request_id", answer.request_id)
    if status >= 500:
        made.set_status(StatusCode.ERROR)


def _too_large(limit: int) -> PayloadTooLargeError:
    return PayloadTooLargeError(f"the body is over the limit of {limit} bytes")


def _idle(seconds: float) -> RequestTimeoutError:
    return RequestTimeoutError(f"nothing more of the body came for {seconds:g} s; send the request again")


def _defect(request_id: str) -> JSONResponse:
    message = f"a defect of the service; its log has details under {request_id}"
    return JSONResponse(error_content(message, type="server_error", code="internal_error"), status_code=500)
