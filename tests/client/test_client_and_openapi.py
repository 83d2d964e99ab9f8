"""The client's calls compared with the service's OpenAPI document, and the sync client with its source."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from client import Client
from client._sync.transport import Transport
from client.call import Call
from client.generate import TARGET, generated_files
from service.app import create_app
from service.settings import Settings

USES: list[Callable[[Client], Any]] = [
    lambda trd: trd.health(),
    lambda trd: trd.readiness(),
    lambda trd: trd.retention(events_days=1, metrics_days=1, trajectories_days=1, checkpoints_days=1),
    lambda trd: trd.jobs.create({}),
    lambda trd: trd.jobs.dry_run({}),
    lambda trd: trd.jobs.page(),
    lambda trd: next(trd.jobs.list()),
    lambda trd: trd.jobs.get("x"),
    lambda trd: trd.jobs.cancel("x"),
    lambda trd: trd.jobs.pause("x"),
    lambda trd: trd.jobs.resume("x"),
    lambda trd: trd.jobs.clone("x"),
    lambda trd: trd.jobs.delete("x"),
    lambda trd: next(trd.events.list("x")),
    lambda trd: next(trd.events.follow("x")),
    lambda trd: trd.metrics.list("x"),
    lambda trd: next(trd.trajectories.list("x")),
    lambda trd: trd.trajectories.get("x", "0:0"),
    lambda trd: trd.trajectories.outcomes("x"),
    lambda trd: trd.evaluations.list("x"),
    lambda trd: next(trd.diagnoses.list("x")),
    lambda trd: next(trd.probe_samples.list("x")),
    lambda trd: trd.checkpoints.list("x"),
    lambda trd: trd.checkpoints.manifest("x", 1),
    lambda trd: trd.checkpoints.delete("x", 1),
    lambda trd: trd.datasets.upload(__file__),
    lambda trd: next(trd.datasets.list()),
    lambda trd: trd.datasets.get("x"),
    lambda trd: trd.datasets.preview("x", model="y"),
    lambda trd: trd.datasets.delete("x"),
    lambda trd: trd.models.list(),
    lambda trd: trd.models.get("x"),
    lambda trd: trd.keys.create("x"),
    lambda trd: next(trd.keys.list()),
    lambda trd: trd.keys.revoke("x"),
    lambda trd: trd.keys.rotate("x"),
    lambda trd: next(trd.keys.audit(owner="ann", action="job.create", target="job_1", since="2026-01-01T00:00:00Z")),
    lambda trd: trd.webhooks.create("x"),
    lambda trd: next(trd.webhooks.list()),
    lambda trd: trd.webhooks.get("x"),
    lambda trd: trd.webhooks.change("x", is_enabled=False),
    lambda trd: trd.webhooks.delete("x"),
    lambda trd: next(trd.webhooks.deliveries("x")),
    lambda trd: trd.webhooks.replay("x", "x"),
    lambda trd: trd.view("x"),
    lambda trd: next(trd.checkpoints.chat("x", 1, [])),
]
"""Every call of the client that sends a request."""


class Recorded(Exception):  # noqa: N818 - not a failure
    """Carries the call instead of sending it."""


def record(_: Transport, call: Call[Any]) -> Any:
    raise Recorded(call)


@pytest.fixture(scope="module")
def calls() -> list[Call[Any]]:
    recorded = []
    with pytest.MonkeyPatch.context() as patch, Client("http://127.0.0.1:1", "key") as trd:
        patch.setattr(Transport, "send", record)
        patch.setattr(Transport, "stream", record)
        for use in USES:
            with pytest.raises(Recorded) as raised:
                use(trd)
            recorded.append(raised.value.args[0])
    return recorded


@pytest.fixture(scope="module")
def document() -> dict[str, Any]:
    """The OpenAPI document of the service."""
    return create_app(Settings.from_environment()).openapi()


def operations(document: dict[str, Any]) -> Iterator[tuple[str, str, dict[str, Any]]]:
    for path, methods in document["paths"].items():
        for method, operation in methods.items():
            yield method.upper(), path, operation


def test_calls_are_the_services(calls: list[Call[Any]], document: dict[str, Any]) -> None:
    for call in calls:
        operation = next(
            operation
            for method, path, operation in operations(document)
            if method == call.method and re.fullmatch(re.sub(r"\{[^}]+\}", "[^/]+", path), call.path)
        )
        known = {parameter["name"] for parameter in operation.get("parameters", []) if parameter["in"] == "query"}
        assert set(call.params) <= known, f"{call.method} {call.path}"


def test_no_native_route_is_out_of_reach(calls: list[Call[Any]], document: dict[str, Any]) -> None:
    called = {(call.method, re.sub(r"(?<=/)(x|1|0%3A0)(?=/|$)", "{}", call.path)) for call in calls}
    downloads = {("GET", "/jobs/{}/checkpoints/{}/files/{}")}  # its path comes from the manifest
    not_for_programs = {("GET", "/metrics"), ("GET", "/jobs/{}/checkpoints/{}/archive")}
    routes = {
        (method, re.sub(r"\{[^}]+\}", "{}", path))
        for method, path, _ in operations(document)
        if not path.startswith("/v1/")
    }
    assert routes - called - downloads - not_for_programs == set(), "give the client a call, or name the route here"


def test_the_sync_client_is_generated_from_the_async_one() -> None:
    found = {path.name: path.read_text(encoding="utf-8") for path in Path(TARGET).glob("*.py")}
    assert found == generated_files(), "run: python client/generate.py"
