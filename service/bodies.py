"""What is read from a request and checked: JSON bodies, and the errors of FastAPI's validation."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Callable, Coroutine, Mapping
from typing import Annotated, Any, TypeVar

from fastapi import Depends
from fastapi.exceptions import RequestValidationError
from fastapi.routing import APIRoute
from pydantic import BaseModel, ValidationError
from starlette.concurrency import run_in_threadpool
from starlette.requests import Request
from starlette.responses import Response

from contract.spec_problems import MAX_PROBLEMS, FieldProblem, field_problems
from service.auth import RequireScope
from service.errors import InvalidRequestError, MediaTypeError
from trd_data.plain_json import nests_deeper, text_fault, texts
from trd_data.unique_json import loads_unique

MAX_BODY_DEPTH = 32
MAX_BODY_VALUES = 10_000
"""Fields of objects and items of lists in a body, together. Each may be wrong, and FastAPI collects all errors on the
event loop, about 10 µs each."""
SMALL_BODY_BYTES = 2**14
"""Bodies up to this size are parsed on the event loop: a thread costs as much, and a full spec is smaller."""

BodyModel = TypeVar("BodyModel", bound=BaseModel)


class JsonRoute(APIRoute):
    """A route whose JSON body is parsed strictly, see `parse_object`; FastAPI then validates the endpoint's typed
    body parameter."""

    def get_route_handler(self) -> Callable[[Request], Coroutine[Any, Any, Response]]:
        """Return FastAPI's handler, which gets a `_JsonRequest` if the endpoint takes a body."""
        handle = super().get_route_handler()
        if self.body_field is None:
            return handle
        is_required = self.body_field.field_info.is_required()
        calls = [dependency.call for dependency in self.dependant.dependencies]
        scopes = [call for call in calls if isinstance(call, RequireScope)]

        async def handle_json(request: Request) -> Response:
            for require in scopes:  # FastAPI reads the body before it runs dependencies
                await require(request)
            return await handle(_JsonRequest(request, is_required=is_required))

        return handle_json


class _JsonRequest(Request):
    def __init__(self, request: Request, *, is_required: bool) -> None:
        super().__init__(request.scope, request.receive)
        self._is_required = is_required

    async def body(self) -> bytes:
        content = await super().body()
        if content or self._is_required:
            media_type = self.headers.get("content-type", "").partition(";")[0].strip().lower()
            if not re.fullmatch(r"application/(.*\+)?json", media_type):
                raise MediaTypeError(
                    f"content-type = {media_type or 'none'}: the body must be JSON; send content-type: application/json"
                )
            if not content:
                raise InvalidRequestError("the body is empty; send a JSON object", code="invalid_json")
        return content

    async def json(self) -> Any:
        if not hasattr(self, "_json"):
            content = await super().body()
            is_small = len(content) <= SMALL_BODY_BYTES
            self._json = parse_object(content) if is_small else await run_in_threadpool(parse_object, content)
        return self._json


async def _document(request: Request) -> dict[str, Any]:
    document: dict[str, Any] = await request.json()
    return document


Document = Annotated[dict[str, Any], Depends(_document)]
"""The JSON body as the client wrote it; parsed once for this and for the typed parameter."""


def parse_object(content: bytes) -> dict[str, Any]:
    """Return the JSON object in `content`; raise `InvalidRequestError` that says where the error is."""
    if nests_deeper(content, MAX_BODY_DEPTH):
        raise InvalidRequestError(f"the body nests more than {MAX_BODY_DEPTH} levels deep", code="invalid_json")
    try:
        document = loads_unique(content.decode())
    except ValueError as error:  # also if the body is not UTF-8
        raise InvalidRequestError(f"the body is not valid JSON: {error}", code="invalid_json") from error
    if not isinstance(document, dict):
        raise InvalidRequestError(f"the body must be a JSON object, not {type(document).__name__}", code="invalid_json")
    if _holds_more(document, MAX_BODY_VALUES):
        raise InvalidRequestError(f"the body has more than {MAX_BODY_VALUES} fields and items", code="invalid_json")
    # Only escapes can write such text, so that a document without any is not searched.
    if b"\\u" in content and any(text_fault(text) for text in texts(document)):
        raise InvalidRequestError(
            "the body holds \\u0000 or half a surrogate pair, which is not valid text; remove it", code="invalid_json"
        )
    return document


def _holds_more(document: dict[str, Any], most: int) -> bool:
    waiting: list[Any] = [document]
    num_values = 0
    while waiting:
        value = waiting.pop()
        if isinstance(value, dict | list):
            num_values += len(value)
            if num_values > most:
                return True
            waiting.extend(value.values() if isinstance(value, dict) else value)
    return False


def validated(model: type[BodyModel], document: dict[str, Any]) -> BodyModel:
    """Return `document` as `model`; raise `InvalidRequestError` that names the wrong fields."""
    try:
        return model.model_validate(document)
    except ValidationError as error:
        raise _invalid(field_problems(error.errors(include_url=False), model), model) from error


def invalid_request(error: RequestValidationError, route: APIRoute) -> InvalidRequestError:
    """Return our error for what FastAPI's validation found in a path, query, header or body."""
    details = error.errors()
    body = [{**item, "loc": item["loc"][1:]} for item in details if item["loc"][0] == "body"]
    if body:
        assert route.body_field is not None, "only a route with a body has errors in it"
        model: type[BaseModel] = route.body_field.field_info.annotation  # type: ignore[assignment]
        return _invalid(field_problems(body, model), model)  # type: ignore[arg-type]
    problems = []
    for item in details[:MAX_PROBLEMS]:
        param = ".".join(str(part) for part in item["loc"][1:])  # without query, path or header
        reason = item["msg"][:1].lower() + item["msg"][1:]
        shown = "" if item["type"] == "missing" else f" = {str(item['input'])[:80]}"
        problems.append(FieldProblem(param, f"{param}{shown}: {reason}"))
    return _invalid(problems)


def _invalid(problems: list[FieldProblem], model: type[BaseModel] | None = None) -> InvalidRequestError:
    """Put the first problem in the message, and up to `MAX_PROBLEMS` in ``errors``."""
    num_more = len(problems) - 1
    more = f" (and {num_more} more {'fault' if num_more == 1 else 'faults'}, in errors)" if num_more else ""
    if len(problems) == MAX_PROBLEMS:
        more = f" (and at least {num_more} more faults, the first {MAX_PROBLEMS} in errors)"
    return InvalidRequestError(
        problems[0].message + (more if model is not None else ""),
        code="invalid_spec" if model is not None and model.__name__ == "JobSpec" else "invalid_value",
        param=problems[0].param or None,
        errors=[{"param": problem.param or None, "message": problem.message} for problem in problems],
    )


def document_sha256(document: dict[str, Any]) -> str:
    """Return a digest of a JSON document that does not depend on the order of keys and white space."""
    canonical = json.dumps(document, sort_keys=True, separators=(",", ":"), ensure_ascii=False)
    return hashlib.sha256(canonical.encode()).hexdigest()


_WHOLE = frozenset({"dataset", "teacher"})
"""Fields whose objects are of one of several kinds: a merge of two kinds would be neither."""


def overridden(requested: Mapping[str, Any], overrides: Mapping[str, Any]) -> dict[str, Any]:
    """Return the body of a clone: the original's body with `overrides` merged in.

    Objects merge key by key; everything else, including null and references to data and teachers, is replaced.
    """
    merged = dict(requested)
    for key, value in overrides.items():
        before = merged.get(key)
        if isinstance(value, dict) and isinstance(before, dict) and key not in _WHOLE:
            merged[key] = overridden(before, value)
        else:
            merged[key] = value
    return merged
