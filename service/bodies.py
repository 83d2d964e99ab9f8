"""Reading a JSON body: its media type, its depth, and its validation into messages a user can act on."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Awaitable, Callable, Iterator
from dataclasses import dataclass
from typing import Any, Generic, NoReturn, TypeVar

from pydantic import BaseModel, ValidationError
from starlette.concurrency import run_in_threadpool
from starlette.requests import Request

from contract.spec_problems import MAX_PROBLEMS, field_problems
from service.errors import InvalidRequestError, MediaTypeError

MAX_BODY_DEPTH = 32
SMALL_BODY_BYTES = 2**14
"""Up to here a body is read between two other requests: a thread costs as much, and a full spec is smaller."""

BodyModel = TypeVar("BodyModel", bound=BaseModel)

# A string without an end takes the rest: a pattern that could fail there would be tried from every quote on.
_BRACKETS = re.compile(rb'"(?:[^"\\]+|\\.)*"?|[\[{]|[\]}]', re.DOTALL)


@dataclass(frozen=True)
class Body(Generic[BodyModel]):
    """A valid body."""

    value: BodyModel
    document: dict[str, Any]
    """As the client wrote it."""
    sha256: str
    """Of the document, whatever the order of its keys and its white space."""


def json_body(model: type[BodyModel], *, is_optional: bool = False) -> Callable[[Request], Awaitable[Body[BodyModel]]]:
    """A dependency that reads a body of `model`; with `is_optional`, no body is an empty object."""

    async def read(request: Request) -> Body[BodyModel]:
        content = await request.body()
        if not content and is_optional:
            content = b"{}"
        else:
            _check_media_type(request)
        if len(content) <= SMALL_BODY_BYTES:
            return _body(model, content)
        return await run_in_threadpool(_body, model, content)

    return read


def _body(model: type[BodyModel], content: bytes) -> Body[BodyModel]:
    document = parse_object(content)
    return Body(validated(model, document), document, document_sha256(document))


def openapi_body(model: type[BaseModel], *, is_optional: bool = False) -> dict[str, Any]:
    """What a route that reads its body itself says of it in the OpenAPI document."""
    schema = {"$ref": f"#/components/schemas/{model.__name__}"}
    return {"requestBody": {"required": not is_optional, "content": {"application/json": {"schema": schema}}}}


def _check_media_type(request: Request) -> None:
    media_type = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    if media_type != "application/json" and not media_type.endswith("+json"):
        raise MediaTypeError(
            f"content-type = {media_type or 'none'}: the body must be JSON; send content-type: application/json",
        )


def parse_object(content: bytes) -> dict[str, Any]:
    """The JSON object in `content`; raises `InvalidRequestError` with the place of the fault."""
    if nests_deeper(content, MAX_BODY_DEPTH):
        raise InvalidRequestError(f"the body nests more than {MAX_BODY_DEPTH} levels deep", code="invalid_json")
    try:
        document = json.loads(content.decode(), parse_constant=_refuse_constant)
    except ValueError as error:  # not UTF-8, too
        raise InvalidRequestError(f"the body is not valid JSON: {error}", code="invalid_json") from error
    if not isinstance(document, dict):
        raise InvalidRequestError(f"the body must be a JSON object, not {type(document).__name__}", code="invalid_json")
    if holds_unstorable_text(content, document):
        raise InvalidRequestError(
            "the body holds \\u0000 or half a surrogate pair, which is no text; remove it", code="invalid_json"
        )
    return document


def _refuse_constant(name: str) -> NoReturn:
    raise ValueError(f"{name} is not a JSON value")


def nests_deeper(content: bytes, max_depth: int) -> bool:
    """True where objects and lists nest deeper, found without parsing: the parser recurses once a level."""
    if content.count(b"[") + content.count(b"{") <= max_depth:
        return False
    depth = 0
    for token in _BRACKETS.finditer(content):
        first = token.group()[0]
        if first in b"[{":
            depth += 1
            if depth > max_depth:
                return True
        elif first in b"]}":
            depth -= 1
    return False


def holds_unstorable_text(content: bytes, document: Any) -> bool:
    """True where some text holds NUL or half a surrogate pair, which no database takes. Only escapes can
    write them, so that a document without any is not searched."""
    return b"\\u" in content and holds_unstorable(document)


def holds_unstorable(document: Any) -> bool:
    """True where some text of a parsed document, or one of its keys, is none that a database takes."""
    return any(map(_is_unstorable, _texts(document)))


def _texts(value: Any) -> Iterator[str]:
    if isinstance(value, str):
        yield value
    elif isinstance(value, list):
        for item in value:
            yield from _texts(item)
    elif isinstance(value, dict):
        for key, item in value.items():
            yield key
            yield from _texts(item)


def _is_unstorable(text: str) -> bool:
    return "\0" in text or any("\ud800" <= character <= "\udfff" for character in text)


def validated(model: type[BodyModel], document: dict[str, Any]) -> BodyModel:
    """`document` as `model`; raises `InvalidRequestError` that names the wrong fields."""
    try:
        return model.model_validate_json(json.dumps(document))
    except ValidationError as error:
        raise invalid_fields(error, model) from error


def invalid_fields(error: ValidationError, model: type[BaseModel]) -> InvalidRequestError:
    """The refusal of a body whose fields are wrong: the first one in the message, up to `MAX_PROBLEMS` in
    ``errors``."""
    problems = field_problems(error, model)
    num_more = len(problems) - 1
    more = f" (and {num_more} more {'fault' if num_more == 1 else 'faults'}, in errors)" if num_more else ""
    if len(problems) == MAX_PROBLEMS:
        more = f" (and at least {num_more} more faults, the first {MAX_PROBLEMS} in errors)"
    return InvalidRequestError(
        problems[0].message + more,
        code="invalid_spec" if model.__name__ == "JobSpec" else "invalid_value",
        param=problems[0].param or None,
        errors=[{"param": problem.param or None, "message": problem.message} for problem in problems],
    )


def document_sha256(document: dict[str, Any]) -> str:
    """A digest of a JSON document that does not change with key order and white space."""
    canonical = json.dumps(document, sort_keys=True, separators=(",", ":"), ensure_ascii=False)
    return hashlib.sha256(canonical.encode()).hexdigest()
