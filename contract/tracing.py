"""OpenTelemetry spans of requests, submissions and attempts, and how they and log lines continue in another process.

Spans are sent to the collector that the operator names in OpenTelemetry's own variables; if none is named, nothing is
recorded or sent. They wait in the library's bounded queue, and a separate thread sends them: a collector that hangs
or is away costs spans, and no request or job waits for it.
"""

from __future__ import annotations

import os
import re
import threading
from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any

from opentelemetry import context, trace
from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

from contract.json_logs import log_ids, logged_id

STOP_SECONDS = 3.0
"""How long the end of a process waits for its last spans to be sent."""
_ENDPOINTS = ("OTEL_EXPORTER_OTLP_TRACES_ENDPOINT", "OTEL_EXPORTER_OTLP_ENDPOINT")
_PROTOCOLS = ("OTEL_EXPORTER_OTLP_TRACES_PROTOCOL", "OTEL_EXPORTER_OTLP_PROTOCOL")
_NUMBERS = {"OTEL_BSP_.*": r"\d*[1-9]\d*", "OTEL_EXPORTER_OTLP_(TRACES_)?TIMEOUT": r"\d*[1-9]\d*|\d+\.\d+"}
_SAMPLERS = frozenset(
    prefix + name for prefix in ("", "parentbased_") for name in ("always_on", "always_off", "traceidratio")
)
_PROPAGATOR = TraceContextTextMapPropagator()

tracer = trace.get_tracer("trd")
"""Makes spans. One that records nothing costs 20 µs: use `span` if that counts."""


def start_tracing(process: str, environment: Mapping[str, str] = os.environ) -> None:
    """Send this process's spans if the environment names a collector. Raises ValueError if they could not be sent."""
    if not sends_spans(environment):
        return
    try:
        from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
        from opentelemetry.sdk.resources import SERVICE_NAME, Resource
        from opentelemetry.sdk.trace import TracerProvider
        from opentelemetry.sdk.trace.export import BatchSpanProcessor
    except ImportError as error:
        raise ValueError(
            "the environment names a collector for traces (OTEL_…), and OpenTelemetry's SDK is not installed: "
            "pip install 'trd-service[otel]', or unset the variables"
        ) from error
    name = {} if environment.get("OTEL_SERVICE_NAME") else {SERVICE_NAME: process}
    provider = TracerProvider(resource=Resource.create(name), shutdown_on_exit=False)
    provider.add_span_processor(BatchSpanProcessor(OTLPSpanExporter()))
    trace.set_tracer_provider(provider)


def sends_spans(environment: Mapping[str, str] = os.environ) -> bool:
    """Return whether the environment names a collector. Raises ValueError that names a variable with a wrong value."""
    exporter = environment.get("OTEL_TRACES_EXPORTER") or (
        "otlp" if any(environment.get(name) for name in _ENDPOINTS) else "none"
    )
    if exporter == "none" or environment.get("OTEL_SDK_DISABLED", "").lower() == "true":
        return False
    if exporter != "otlp":
        raise ValueError(f"OTEL_TRACES_EXPORTER = {exporter}: only otlp and none are known here")
    protocol = next(filter(None, map(environment.get, _PROTOCOLS)), "http/protobuf")
    if protocol != "http/protobuf":
        raise ValueError(f"OTEL_EXPORTER_OTLP_PROTOCOL = {protocol}: only http/protobuf is known here (port 4318)")
    for name in filter(environment.get, _ENDPOINTS):
        if not re.match(r"https?://[^/\s]", environment[name], re.IGNORECASE):
            raise ValueError(f"{name} = {environment[name]}: this is not a URL; write it like http://collector:4318")
    for name, value in environment.items():
        pattern = next((numbers for names, numbers in _NUMBERS.items() if re.fullmatch(names, name)), ".*")
        if value and not re.fullmatch(pattern, value.strip(), re.DOTALL):
            raise ValueError(f"{name} = {value}: this is not a number above 0 that OpenTelemetry takes")
    if (sampler := environment.get("OTEL_TRACES_SAMPLER")) and sampler.strip().lower() not in _SAMPLERS:
        raise ValueError(f"OTEL_TRACES_SAMPLER = {sampler}: use one of {', '.join(sorted(_SAMPLERS))}")
    return True


def stop_tracing() -> None:
    """Send the last spans, and give up after `STOP_SECONDS`."""
    shutdown = getattr(trace.get_tracer_provider(), "shutdown", None)
    if shutdown is not None:
        thread = threading.Thread(target=shutdown, name="last-spans", daemon=True)
        thread.start()
        thread.join(STOP_SECONDS)


def origin() -> dict[str, Any]:
    """Return the ids of the current request, which a row stores for `continued`."""
    carrier: dict[str, str] = {}
    _PROPAGATOR.inject(carrier)
    return {"request_id": logged_id("request_id"), **carrier}


@contextmanager
def continued(origin: Mapping[str, Any] | None, **ids: str | int) -> Iterator[None]:
    """Let spans and log lines of the block belong to the request of `origin`, and add `ids` to the lines."""
    known = origin or {}
    if not known.get("traceparent") and trace.get_current_span() is trace.INVALID_SPAN:
        with log_ids(request_id=known.get("request_id"), **ids):  # there is no trace to continue, and none to leave
            yield
        return
    token = context.attach(_PROPAGATOR.extract(known))
    try:
        with log_ids(request_id=known.get("request_id"), trace_id=trace_id(), **ids):
            yield
    finally:
        context.detach(token)


def span(name: str, kind: trace.SpanKind = trace.SpanKind.INTERNAL) -> AbstractContextManager[trace.Span]:
    """Make a span of the block, whose log lines get the trace's id; make nothing if no spans are recorded."""
    is_recorded = not isinstance(trace.get_tracer_provider(), trace.ProxyTracerProvider)
    return _recorded(name, kind) if is_recorded else nullcontext(trace.INVALID_SPAN)


@contextmanager
def _recorded(name: str, kind: trace.SpanKind) -> Iterator[trace.Span]:
    with tracer.start_as_current_span(name, kind=kind) as made, log_ids(trace_id=trace_id()):
        yield made


def trace_id() -> str | None:
    """Return the id of the current trace."""
    current = trace.get_current_span().get_span_context()
    return trace.format_trace_id(current.trace_id) if current.is_valid else None
