"""The client's calls compared with the service's OpenAPI document."""

from __future__ import annotations

import re
from typing import Any

import pytest

from client.checkpoints import _delete, _list, _manifest
from client.datasets import _delete as delete_dataset
from client.datasets import _get as get_dataset
from client.datasets import _page as page_datasets
from client.datasets import _preview as preview_dataset
from client.events import _page as page_events
from client.jobs import _CALLS
from client.operations import _MODELS, HEALTH, READINESS, _create_key, _keys, _model, _revoke_key
from client.probe_samples import _page as page_probe_samples
from client.run_records import _diagnoses, _evaluations, _metrics, _outcomes, _trajectories, _trajectory
from service.app import create_app
from service.settings import Settings

CALLS = [
    _CALLS.create({}, None),
    _CALLS.page(None, None, 1),
    _CALLS.get("x"),
    *(_CALLS.act("x", action) for action in ("cancel", "pause", "resume")),
    _CALLS.clone("x", None, None),
    _CALLS.delete("x"),
    page_events("x", 0, 1),
    _metrics("x", (), None, None, None),
    _trajectories("x", (), None, None, 1),
    _trajectory("x", "0:0"),
    _outcomes("x"),
    _evaluations("x"),
    _diagnoses("x", None, 1),
    page_probe_samples("x", None, None, 1),
    _list("x"),
    _manifest("x", 1),
    _delete("x", 1),
    page_datasets(None, 1),
    get_dataset("x"),
    delete_dataset("x"),
    preview_dataset("x", "y", None),
    _MODELS,
    _model("x"),
    _create_key("x", None, ()),
    _keys(None, 1),
    _revoke_key("x"),
    HEALTH,
]


@pytest.fixture(scope="module")
def document() -> dict[str, Any]:
    """What the service says of itself."""
    return create_app(Settings.from_environment()).openapi()


@pytest.mark.parametrize("call", CALLS, ids=lambda call: f"{call.method} {call.path}")
def test_calls_are_the_services(document: dict[str, Any], call: Any) -> None:
    operation = next(
        operations[call.method.lower()]
        for path, operations in document["paths"].items()
        if re.fullmatch(re.sub(r"\{[^}]+\}", "[^/]+", path), call.path) and call.method.lower() in operations
    )
    known = {parameter["name"] for parameter in operation.get("parameters", []) if parameter["in"] == "query"}
    assert set(call.params) <= known


def test_no_native_route_is_out_of_reach(document: dict[str, Any]) -> None:
    called = {(call.method, re.sub(r"(?<=/)(x|1|0%3A0)(?=/|$)", "{}", call.path)) for call in CALLS}
    called |= {("GET", READINESS.path), ("POST", "/datasets"), ("GET", "/jobs/{}/checkpoints/{}/files/{}")}
    not_for_programs = {("GET", "/metrics"), ("GET", "/jobs/{}/checkpoints/{}/archive")}
    routes = {
        (method.upper(), re.sub(r"\{[^}]+\}", "{}", path))
        for path, operations in document["paths"].items()
        for method in operations
        if not path.startswith("/v1/")
    }
    assert routes - called - not_for_programs == set(), "give the client a call, or name the route here"
