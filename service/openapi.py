"""The OpenAPI document: what FastAPI derives from the routes, and what it cannot know.

That is the key, the errors of each route, and examples. The examples are real answers, which
``python -m tests.service.record_examples`` records into `EXAMPLES_FILE`.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any

from fastapi import FastAPI
from fastapi.openapi.utils import get_openapi
from fastapi.routing import APIRoute

from contract.views.keys import KeyScope
from service.auth import PUBLIC_PATHS, RequireScope
from service.errors import (
    ApiError,
    AuthenticationError,
    BadRequestError,
    ConflictError,
    InFlightError,
    InvalidRequestError,
    MediaTypeError,
    NotFoundError,
    PayloadTooLargeError,
    PermissionDeniedError,
    QuotaError,
    RangeError,
    RateLimitError,
    error_body,
    raised_by,
)
from service.openai_compat.routes import OpenAIRoute

EXAMPLES_FILE = Path(__file__).with_name("openapi_examples.json")

_ERROR_EXAMPLES: dict[type[ApiError], ApiError] = {
    type(example): example
    for example in (
        InvalidRequestError("limit = 1000: input should be less than or equal to 100", param="limit"),
        BadRequestError("method.type = sft: this service distils; choose one of opd, opsd, trd", param="method.type"),
        AuthenticationError("the key is unknown or revoked"),
        PermissionDeniedError("this call needs a key with scope submit; this key has read"),
        NotFoundError("there is no job job_01x", code="job_not_found", param="job_id"),
        ConflictError(
            "job_01x is succeeded: pause is possible when a job is queued, running, pausing, paused; for this one, "
            "delete",
            code="illegal_transition",
            param="status",
        ),
        InFlightError("my-key"),
        PayloadTooLargeError("the body is over the limit of 1048576 bytes"),
        MediaTypeError("content-type = text/plain: the body must be JSON; send content-type: application/json"),
        RangeError("Range = bytes=900-: the file has 512 bytes", param="Range"),
        QuotaError("1000 of your jobs already wait or run; wait for one to end, or cancel one"),
        RateLimitError("more than 6000 requests a minute; wait 0.4 s"),
    )
}


def openapi_document(app: FastAPI) -> dict[str, Any]:
    """Return the document of the application's routes."""
    document = get_openapi(title=app.title, version=app.version, summary=app.summary, routes=app.routes)
    document["components"]["securitySchemes"] = {"key": {"type": "http", "scheme": "bearer"}}
    for route in app.routes:
        if not isinstance(route, APIRoute) or not route.include_in_schema:
            continue
        for method, operation in document["paths"][route.path_format].items():
            if method.upper() in route.methods:
                operation["security"] = [] if route.path in PUBLIC_PATHS else [{"key": []}]
                _add_errors(operation, _errors(route, operation))
                found = _examples().get(f"{method.upper()} {route.path_format}", {})
                for media_type, example in found.get("request", {}).items():
                    operation["requestBody"]["content"][media_type]["example"] = example
                for status, contents in found.get("responses", {}).items():
                    for media_type, example in contents.items():
                        operation["responses"][status]["content"][media_type]["example"] = example
    return document


def _errors(route: APIRoute, operation: dict[str, Any]) -> Iterator[type[ApiError]]:
    """Yield the errors of a route: those that its endpoint declares, and those of what surrounds it."""
    yield from raised_by(route.endpoint)
    if route.path in PUBLIC_PATHS:
        return
    yield AuthenticationError
    yield RateLimitError
    calls = [dependency.call for dependency in route.dependant.dependencies]
    if any(isinstance(call, RequireScope) and call.scope is not KeyScope.READ for call in calls):
        yield PermissionDeniedError
    if "requestBody" in operation:
        yield PayloadTooLargeError
        yield MediaTypeError
    if "requestBody" in operation or "parameters" in operation:
        yield BadRequestError if isinstance(route, OpenAIRoute) else InvalidRequestError


def _add_errors(operation: dict[str, Any], errors: Iterator[type[ApiError]]) -> None:
    for error in sorted(set(errors), key=lambda error: (error.status, error.__name__)):
        description = " ".join((error.__doc__ or "").split())
        example = error_body(_ERROR_EXAMPLES[error])
        content = {"application/json": {"schema": {"$ref": "#/components/schemas/Error"}, "example": example}}
        response = {"description": description, "content": content}
        known = operation["responses"].setdefault(str(error.status), response)
        if known is not response:  # several classes have one status
            known["description"] += f" Or: {description}"


@cache
def _examples() -> dict[str, Any]:
    examples: dict[str, Any] = json.loads(EXAMPLES_FILE.read_text(encoding="utf-8"))
    return examples
