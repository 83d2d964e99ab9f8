"""The OpenAPI document: what the framework derives from the routes, and what it cannot know.

That is the bodies that routes read themselves, the key, the refusals that each route has, and examples. The
examples are real answers, recorded by ``python -m tests.service.record_examples`` into `EXAMPLES_FILE`.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any

from fastapi import FastAPI
from fastapi.openapi.utils import get_openapi
from pydantic import BaseModel
from pydantic.json_schema import models_json_schema

from contract.job_spec import JobSpec
from service.auth import PUBLIC_PATHS
from service.errors import error_content
from service.jobs.endpoints import Overrides
from service.keys.schemas import NewKey
from service.openai_compat.fine_tuning.request import FineTuningRequest

EXAMPLES_FILE = Path(__file__).with_name("openapi_examples.json")

_BODIES: list[type[BaseModel]] = [JobSpec, Overrides, NewKey, FineTuningRequest]
"""Read by the routes themselves, so that FastAPI does not know them."""

_ERRORS: dict[str, tuple[str, dict[str, Any]]] = {
    "400": (
        "A value that cannot be accepted: the body names it, and all others in errors.",
        error_content(
            "method.type = sft: this service distils; choose one of opd, opsd, trd",
            type="invalid_request_error",
            code="invalid_value",
            param="method.type",
        ),
    ),
    "401": (
        "No key, or one that is not known here.",
        error_content("the key is not known here, or was revoked", type="authentication_error", code="invalid_api_key"),
    ),
    "403": (
        "A key without the scope.",
        error_content(
            "this call needs a key with scope submit; this one has read",
            type="permission_error",
            code="insufficient_scope",
        ),
    ),
    "404": (
        "Nothing there, or another owner's.",
        error_content("there is no job job_01x", type="invalid_request_error", code="job_not_found", param="job_id"),
    ),
    "409": (
        "Not in this state. x-should-retry tells whether the same request may be sent again.",
        error_content(
            "job_01x is succeeded: pause is possible when a job is queued, running, pausing, paused; for this one, "
            "delete",
            type="conflict_error",
            code="illegal_transition",
            param="status",
        ),
    ),
    "413": (
        "More bytes, rows or headers than the operator allows.",
        error_content(
            "the body is over the limit of 1048576 bytes", type="invalid_request_error", code="payload_too_large"
        ),
    ),
    "415": (
        "A body of a kind that the call does not take.",
        error_content(
            "content-type = text/plain: the body must be JSON; send content-type: application/json",
            type="invalid_request_error",
            code="unsupported_media_type",
        ),
    ),
    "422": (
        "A value that cannot be accepted: the body names field, value and remedy, and all faults in errors.",
        error_content(
            "limit = 1000: input should be less than or equal to 100",
            type="invalid_request_error",
            code="invalid_value",
            param="limit",
        ),
    ),
    "429": (
        "Too many requests of the key (retry-after tells how long to wait), or a quota is used up.",
        error_content(
            "more than 6000 requests a minute; wait 0.4 s", type="rate_limit_error", code="rate_limit_exceeded"
        ),
    ),
}
"""Description and example of each refusal."""


def openapi_document(app: FastAPI) -> dict[str, Any]:
    """The document of the application's routes."""
    document = get_openapi(title=app.title, version=app.version, summary=app.summary, routes=app.routes)
    _, bodies = models_json_schema(
        [(model, "validation") for model in _BODIES], ref_template="#/components/schemas/{model}"
    )
    components = document["components"]
    components["schemas"] = {**bodies["$defs"], **components["schemas"]}
    components["securitySchemes"] = {"key": {"type": "http", "scheme": "bearer"}}
    for path, operations in document["paths"].items():
        for method, operation in operations.items():
            operation["security"] = [] if path in PUBLIC_PATHS else [{"key": []}]
            operation["responses"].pop("422", None)  # FastAPI's own shape, which no client ever sees
            _add_errors(path, method, operation)
            _add_examples(f"{method.upper()} {path}", operation)
    for name in ("HTTPValidationError", "ValidationError"):
        components["schemas"].pop(name, None)
    return document


def _add_errors(path: str, method: str, operation: dict[str, Any]) -> None:
    responses = operation["responses"]
    for status in _statuses(path, method, operation):
        description, example = _ERRORS[status]
        content = {"application/json": {"schema": {"$ref": "#/components/schemas/Error"}, "example": example}}
        responses.setdefault(status, {"description": description, "content": content})


def _statuses(path: str, method: str, operation: dict[str, Any]) -> Iterator[str]:
    """The refusals of an operation, beside what holds for all (``4XX`` and ``5XX``)."""
    if path in PUBLIC_PATHS:
        return
    yield from ("401", "429")
    has_body, changes = "requestBody" in operation, method != "get"
    if changes or path.startswith("/keys"):
        yield "403"
    if "{" in path:
        yield "404"
    if changes and not path.startswith("/keys"):
        yield "409"
    if has_body:
        yield from ("413", "415")
    if has_body or "parameters" in operation:
        yield "400" if path.startswith("/v1") else "422"


@cache
def _examples() -> dict[str, Any]:
    examples: dict[str, Any] = json.loads(EXAMPLES_FILE.read_text(encoding="utf-8"))
    return examples


def _add_examples(operation_name: str, operation: dict[str, Any]) -> None:
    found = _examples().get(operation_name, {})
    for media_type, example in found.get("request", {}).items():
        operation["requestBody"]["content"][media_type]["example"] = example
    for status, contents in found.get("responses", {}).items():
        for media_type, example in contents.items():
            operation["responses"][status]["content"][media_type]["example"] = example
