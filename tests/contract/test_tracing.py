"""What makes a process send spans, and what continues in another process."""

from __future__ import annotations

import sys

import pytest
from opentelemetry.trace import ProxyTracerProvider, get_tracer_provider

from contract.json_logs import logged_id
from contract.tracing import continued, origin, start_tracing, trace_id

COLLECTOR = {"OTEL_EXPORTER_OTLP_ENDPOINT": "http://127.0.0.1:9"}
TRACE, SPAN = "0af7651916cd43dd8448eb211c80319c", "b7ad6b7169203331"


@pytest.mark.parametrize(
    "environment",
    [{}, {"OTEL_EXPORTER_OTLP_ENDPOINT": ""}, {**COLLECTOR, "OTEL_TRACES_EXPORTER": "none"},
     {**COLLECTOR, "OTEL_SDK_DISABLED": "TRUE"}, {"OTEL_EXPORTER_OTLP_LOGS_ENDPOINT": "http://127.0.0.1:9"}],
)  # fmt: skip
def test_nothing_is_sent_unless_a_collector_is_named(environment: dict[str, str]) -> None:
    start_tracing("test", environment)
    assert isinstance(get_tracer_provider(), ProxyTracerProvider)


@pytest.mark.parametrize(
    ("environment", "message"),
    [
        ({"OTEL_TRACES_EXPORTER": "zipkin"}, "OTEL_TRACES_EXPORTER = zipkin: only otlp and none"),
        (
            {**COLLECTOR, "OTEL_EXPORTER_OTLP_PROTOCOL": "grpc"},
            "OTEL_EXPORTER_OTLP_PROTOCOL = grpc: only http/protobuf",
        ),
        ({"OTEL_EXPORTER_OTLP_ENDPOINT": "host:4318"}, "OTEL_EXPORTER_OTLP_ENDPOINT = host:4318: this is not a URL"),
        ({**COLLECTOR, "OTEL_BSP_MAX_QUEUE_SIZE": "-1"}, "OTEL_BSP_MAX_QUEUE_SIZE = -1: this is not a number"),
        ({**COLLECTOR, "OTEL_EXPORTER_OTLP_TIMEOUT": "10s"}, "OTEL_EXPORTER_OTLP_TIMEOUT = 10s: this is not a number"),
        ({**COLLECTOR, "OTEL_TRACES_SAMPLER": "some"}, "OTEL_TRACES_SAMPLER = some: use one of always_off, always_on"),
        (COLLECTOR, r"pip install 'trd-service\[otel\]'"),
    ],
)
def test_a_collector_that_cannot_be_sent_to_stops_the_start(
    environment: dict[str, str], message: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "opentelemetry.exporter.otlp.proto.http.trace_exporter", None)  # not installed
    with pytest.raises(ValueError, match=message):
        start_tracing("test", environment)


def test_a_request_goes_on_where_its_origin_is_read() -> None:
    kept = {"request_id": "req_1", "traceparent": f"00-{TRACE}-{SPAN}-01"}
    with continued(kept, job_id="job_1"):
        assert (trace_id(), logged_id("trace_id"), logged_id("job_id")) == (TRACE, TRACE, "job_1")
        assert origin() == kept
    assert (trace_id(), logged_id("request_id")) == (None, None)
    with continued(None):
        assert origin() == {"request_id": None}


@pytest.mark.parametrize("header", ["", "x", f"00-{'0' * 32}-{SPAN}-01", f"00-{TRACE}-{SPAN}-01\r\nx: y", "00-" * 9999])
def test_a_bad_trace_of_a_client_is_none(header: str) -> None:
    with continued({"request_id": "req_1", "traceparent": header}):
        assert trace_id() is None
        assert origin() == {"request_id": "req_1"}
