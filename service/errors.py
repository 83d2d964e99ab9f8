"""Every way in which a request is refused, as one tree, and the one shape in which a client sees it.

ApiError                        status, stable code, message, the parameter at fault
├── InvalidRequestError         422  a value that cannot be accepted
│   └── BadRequestError         400  the same, under /v1
├── AuthenticationError         401  no key, or not one of ours
├── PermissionDeniedError       403  a key without the scope
├── NotFoundError               404  nothing there, or another owner's
├── ConflictError               409  not in this state
├── InFlightError               409  the same request is being answered
├── PayloadTooLargeError        413
├── MediaTypeError              415
├── RangeError                  416
├── QuotaError                  429  the owner has enough already
├── RateLimitError              429  the key asks too often
└── UnavailableError            503

The body is always ``{"error": {"message", "type", "param", "code"}}``, with ``errors`` beside them
where a request has several faults.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar, Self

from fastapi.exceptions import RequestValidationError
from starlette.exceptions import HTTPException
from starlette.responses import JSONResponse

NO_RETRY = {"x-should-retry": "false"}
"""The `openai` client retries every 409 and 429 unless it is told not to."""


class ApiError(HTTPException):
    """A refusal. It is an `HTTPException` so that no layer of the framework wraps it in another."""

    status: ClassVar[int] = 500
    type: ClassVar[str] = "server_error"
    default_code: ClassVar[str] = "internal_error"

    def __init__(
        self,
        message: str,
        *,
        code: str | None = None,
        param: str | None = None,
        headers: Mapping[str, str] | None = None,
        errors: Sequence[Mapping[str, Any]] | None = None,
    ) -> None:
        super().__init__(status_code=self.status, detail=message, headers=dict(headers or {}))
        self.message = message
        self.code = code or self.default_code
        self.param = param
        self.errors = errors


class InvalidRequestError(ApiError):
    """A value that cannot be accepted: the message names the field, the value and the remedy."""

    status = 422
    type = "invalid_request_error"
    default_code = "invalid_value"


class BadRequestError(InvalidRequestError):
    """A value that cannot be accepted, as the `openai` client's users know it."""

    status = 400

    @classmethod
    def like(cls, error: InvalidRequestError) -> Self:
        """The same refusal."""
        return cls(error.message, code=error.code, param=error.param, headers=error.headers, errors=error.errors)


class AuthenticationError(ApiError):
    """No key, or not one of ours."""

    status = 401
    type = "authentication_error"
    default_code = "invalid_api_key"

    def __init__(self, message: str, *, code: str | None = None) -> None:
        super().__init__(message, code=code, headers={"www-authenticate": "Bearer"})


class PermissionDeniedError(ApiError):
    """A key that lacks the scope."""

    status = 403
    type = "permission_error"
    default_code = "insufficient_scope"


class NotFoundError(ApiError):
    """Nothing there. Another owner's object looks the same."""

    status = 404
    type = "invalid_request_error"
    default_code = "not_found"


class ConflictError(ApiError):
    """Not possible in the object's state; trying again would not help."""

    status = 409
    type = "conflict_error"
    default_code = "conflict"

    def __init__(self, message: str, *, code: str | None = None, param: str | None = None) -> None:
        super().__init__(message, code=code, param=param, headers=NO_RETRY)


class InFlightError(ApiError):
    """A request with the same idempotency key has no answer yet: after a moment, the same request gets it."""

    status = 409
    type = "conflict_error"
    default_code = "idempotency_key_in_flight"

    def __init__(self, key: str) -> None:
        super().__init__(
            f"Idempotency-Key = {key}: a request with it is being answered; send it again in a second",
            param="Idempotency-Key",
            headers={"x-should-retry": "true", "retry-after": "1"},
        )


class PayloadTooLargeError(ApiError):
    """More bytes, rows or headers than the operator allows."""

    status = 413
    type = "invalid_request_error"
    default_code = "payload_too_large"


class MediaTypeError(ApiError):
    """A body of a kind that the call does not take."""

    status = 415
    type = "invalid_request_error"
    default_code = "unsupported_media_type"


class RangeError(ApiError):
    """A byte range that the file does not have."""

    status = 416
    type = "invalid_request_error"
    default_code = "range_not_satisfiable"


class QuotaError(ApiError):
    """The owner has as much as the operator grants."""

    status = 429
    type = "quota_error"
    default_code = "quota_exceeded"

    def __init__(self, message: str, *, param: str | None = None) -> None:
        super().__init__(message, param=param, headers=NO_RETRY)


class RateLimitError(ApiError):
    """The key asks too often: after a while the same request is answered."""

    status = 429
    type = "rate_limit_error"
    default_code = "rate_limit_exceeded"


class UnavailableError(ApiError):
    """Something that the service needs does not answer."""

    status = 503
    type = "server_error"
    default_code = "unavailable"


def invalid_parameters(error: RequestValidationError) -> InvalidRequestError:
    """The refusal of what the framework found wrong with a path, a query or a header."""
    problems = []
    for details in error.errors():
        param = ".".join(str(part) for part in details["loc"][1:])  # after query, path or header
        reason = details["msg"][:1].lower() + details["msg"][1:]
        shown = "" if details["type"] == "missing" else f" = {str(details['input'])[:80]}"
        problems.append({"param": param, "message": f"{param}{shown}: {reason}"})
    first = problems[0]
    return InvalidRequestError(first["message"], param=first["param"], errors=problems)


_FRAMEWORK_CODES = {400: "bad_request", 404: "not_found", 405: "method_not_allowed", 413: "payload_too_large"}
_FRAMEWORK_MESSAGES = {
    "not_found": "there is nothing at this address; GET /openapi.json lists what there is",
    "method_not_allowed": "this address does not take the method; GET /openapi.json lists what it takes",
}


def error_response(error: HTTPException) -> JSONResponse:
    """The answer to a refusal, ours or the framework's own (no such path, no such method)."""
    if isinstance(error, ApiError):
        content = error_content(error.message, type=error.type, code=error.code, param=error.param)
        if error.errors is not None:
            content["error"]["errors"] = list(error.errors)
    else:
        code = _FRAMEWORK_CODES.get(error.status_code, "bad_request")
        content = error_content(
            _FRAMEWORK_MESSAGES.get(code, str(error.detail)), type="invalid_request_error", code=code
        )
    return JSONResponse(content, status_code=error.status_code, headers=error.headers)


def error_content(message: str, *, type: str, code: str, param: str | None = None) -> dict[str, Any]:
    """The body of every answer that is not a success."""
    return {"error": {"message": message, "type": type, "param": param, "code": code}}
