"""A collector of traces on 127.0.0.1: OTLP over HTTP, parsed by OpenTelemetry's own messages."""

from __future__ import annotations

import gzip
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest


@dataclass(frozen=True)
class Span:
    """A span that was received."""

    process: str
    """Name of the service's process: trd-api, trd-worker."""
    name: str
    trace_id: str
    id: str
    parent_id: str
    began: int
    ended: int
    attributes: dict[str, Any]
    is_error: bool


class Collector(ThreadingHTTPServer):
    """Keeps what it receives; one that hangs accepts requests and never answers."""

    daemon_threads = True
    block_on_close = False

    def __init__(self, *, hangs: bool) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.spans: list[Span] = []
        self.num_requests = 0
        self.released = threading.Event()
        if not hangs:
            self.released.set()

    @property
    def environment(self) -> dict[str, str]:
        """Variables of a process that sends its spans here, without much delay."""
        address = f"http://127.0.0.1:{self.server_address[1]}"
        return {"OTEL_EXPORTER_OTLP_ENDPOINT": address, "OTEL_BSP_SCHEDULE_DELAY": "200"}

    def named(self, name: str) -> list[Span]:
        """Return the spans of this name, in the order of their beginning."""
        return sorted((span for span in list(self.spans) if span.name == name), key=lambda span: span.began)


class _Handler(BaseHTTPRequestHandler):
    server: Collector

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers["content-length"]))
        self.server.num_requests += 1
        if not self.server.released.wait(60):
            return
        assert self.path == "/v1/traces"
        if self.headers.get("content-encoding") == "gzip":
            body = gzip.decompress(body)
        self.server.spans += _spans(ExportTraceServiceRequest.FromString(body))
        self.send_response(200)
        self.send_header("content-length", "0")
        self.end_headers()

    def log_message(self, format: str, *args: Any) -> None:
        return


def _spans(request: ExportTraceServiceRequest) -> Iterator[Span]:
    for resource in request.resource_spans:
        process = next(a.value.string_value for a in resource.resource.attributes if a.key == "service.name")
        for span in (span for scope in resource.scope_spans for span in scope.spans):
            values = {a.key: getattr(a.value, str(a.value.WhichOneof("value"))) for a in span.attributes}
            ids = (span.trace_id.hex(), span.span_id.hex(), span.parent_span_id.hex())
            times = (span.start_time_unix_nano, span.end_time_unix_nano)
            yield Span(process, span.name, *ids, *times, values, span.status.code == span.status.STATUS_CODE_ERROR)


@contextmanager
def collector(*, hangs: bool = False) -> Iterator[Collector]:
    """Run a collector until the block ends."""
    server = Collector(hangs=hangs)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield server
    finally:
        server.released.set()
        server.shutdown()
        thread.join()
        server.server_close()
